"""Converts regular expressions to RE2: Perl's (pcre:, postfwd, rspamd, plain lists) and POSIX's (regexp:).

Constructs that RE2 lacks (look-around, back references, possessive quantifiers) are refused, with their names.
Characters that mean something else in RE2 are rewritten. Every result compiles within the ruleset's limits, and is
case-insensitive unless its flags say otherwise.
"""

from __future__ import annotations

import re

from policyd.config.entries import ExpressionError, compile_expression
from policyd.exchange.model import TooLargeError, UnsupportedError

# Constructs of Perl that RE2 lacks, with their names in messages.
_PERL_ONLY = (
    (re.compile(r"\(\?<?[=!]"), "look-around, `(?=`, `(?!`, `(?<=` or `(?<!`"),
    (re.compile(r"\(\?>"), "atomic groups, `(?>`"),
    (re.compile(r"\(\?\("), "conditions, `(?(`"),
    (re.compile(r"\(\?(?:R|\d|&|P>)"), "recursion"),
    (re.compile(r"\(\?#"), "comments, `(?#`"),
    (re.compile(r"\(\?\|"), "branch resets, `(?|`"),
    (re.compile(r"\(\*"), "verbs, `(*`"),
)

# Escapes of Perl with another form in RE2 (None: RE2 has no form). Values have no line breaks, so `\Z` is `\z`.
_PERL_ESCAPES = {"h": r"[ \t]", "Z": r"\z", "e": r"\x1b", "_": "_", "R": r"[\r\n]", "N": "[^\\n]", "K": None, "G": None}

_QUANTIFIER = re.compile(r"[*+?]|\{\d+(?:,\d*)?\}")
# The longest name in brackets is one of POSIX's collating symbols, `[.right-square-bracket.]`.
_POSIX_CLASS = re.compile(r"\[([:.=])(.{0,20}?)\1\]")


def from_perl(pattern: str, flags: str = "") -> str:
    """Converts a Perl expression. Each of Postfix's flags (pcre_table(5)) reverses a default.

    Raises `UnsupportedError` for constructs that RE2 lacks, and for invalid expressions and flags.
    """
    for flag in flags:
        if flag not in "imsxAEUX":
            raise UnsupportedError(f"'{flag}' is not a flag of an expression")
    expression = _translate_perl(pattern, extended="x" in flags)
    if "A" in flags:
        expression = f"^(?:{expression})"
    return _finish(expression, matches_case="i" in flags)


def from_posix(pattern: str, flags: str = "") -> str:
    """Converts a POSIX extended expression. Each of Postfix's flags (regexp_table(5)) reverses a default.

    Raises `UnsupportedError` for constructs that RE2 lacks, and for invalid expressions and flags.
    """
    for flag in flags:
        if flag not in "imx":
            raise UnsupportedError(f"'{flag}' is not a flag of an expression")
    if "x" in flags:
        raise UnsupportedError("a basic expression (flag x); write it as an extended one")
    return _finish(_translate_posix(pattern), matches_case="i" in flags)


def _finish(expression: str, *, matches_case: bool) -> str:
    if not expression.isprintable():
        character = next(character for character in expression if not character.isprintable())
        if "\ud800" <= character <= "\udfff":
            raise UnsupportedError("it has bytes that are not UTF-8")
        raise UnsupportedError(f"it has an invisible character (U+{ord(character):04X})")
    finished = f"(?-i:{expression})" if matches_case else expression
    try:
        compile_expression(finished)
    except ExpressionError as error:
        kind = TooLargeError if error.is_too_large else UnsupportedError
        raise kind(f"RE2 cannot express it: {error}") from None
    return finished


def _translate_perl(pattern: str, *, extended: bool) -> str:
    parts: list[str] = []
    place = 0
    after_quantifier = False
    while place < len(pattern):
        character = pattern[place]
        if character == "\\":
            piece, place = _perl_escape(pattern, place)
        elif character == "[":
            piece, place = _perl_class(pattern, place)
        elif extended and character.isspace():
            place += 1
            continue
        else:
            if character == "(":
                _refuse_perl_only(pattern, place)
            quantifier = _QUANTIFIER.match(pattern, place)
            if quantifier:
                piece = quantifier[0]
                if after_quantifier and piece == "+":
                    raise UnsupportedError("RE2 has no possessive quantifiers, such as `++`")
                parts.append(piece)
                place = quantifier.end()
                after_quantifier = True
                continue
            piece = character
            place += 1
        parts.append(piece)
        after_quantifier = False
    return "".join(parts)


def _refuse_perl_only(pattern: str, place: int) -> None:
    for construct, name in _PERL_ONLY:
        if construct.match(pattern, place):
            raise UnsupportedError(f"RE2 has no {name}")


def _perl_escape(pattern: str, place: int) -> tuple[str, int]:
    if place + 1 == len(pattern):
        raise UnsupportedError("it ends in a backslash")
    letter = pattern[place + 1]
    if letter in "123456789gk":
        raise UnsupportedError("RE2 has no back references, such as `\\1`")
    if letter in _PERL_ESCAPES:
        piece = _PERL_ESCAPES[letter]
        if piece is None:
            raise UnsupportedError(f"RE2 has no `\\{letter}`")
        return piece, place + 2
    if letter == "Q":
        end = pattern.find("\\E", place)
        end = end if end >= 0 else len(pattern)
        return pattern[place:end] + "\\E", end + 2
    return pattern[place : place + 2], place + 2


def _perl_class(pattern: str, start: int) -> tuple[str, int]:
    """A bracket expression and its end; `\\h` and `\\_`, which RE2 does not have, and a literal `[` are rewritten."""
    place = start + 1
    if pattern[place : place + 1] == "^":
        place += 1
    if pattern[place : place + 1] == "]":
        place += 1
    parts = [pattern[start:place]]
    while place < len(pattern):
        if pattern[place] == "]":
            return "".join((*parts, "]")), place + 1
        if named := _POSIX_CLASS.match(pattern, place):
            parts.append(named[0])
            place = named.end()
        elif pattern[place] == "\\" and pattern[place + 1 : place + 2] in {"h", "_"}:
            parts.append(" \\t" if pattern[place + 1] == "h" else "_")
            place += 2
        elif pattern[place] == "\\":
            parts.append(pattern[place : place + 2])
            place += 2
        else:
            parts.append("\\[" if pattern[place] == "[" else pattern[place])
            place += 1
    raise UnsupportedError("a `[` without its `]`")


# Escapes of glibc's regcomp(3), which Postfix uses on Linux, in RE2's form.
_GNU_ESCAPES = {"<": r"\b", ">": r"\b", "`": r"\A", "'": r"\z"} | {letter: "\\" + letter for letter in "wWsSbB"}


def _translate_posix(pattern: str) -> str:
    parts: list[str] = []
    place = 0
    after_quantifier = False
    while place < len(pattern):
        character = pattern[place]
        quantifier = _QUANTIFIER.match(pattern, place)
        if quantifier:
            if after_quantifier:
                raise UnsupportedError(
                    "a quantifier after a quantifier, which means something else in RE2; use parentheses"
                )
            parts.append(quantifier[0])
            place = quantifier.end()
            after_quantifier = True
            continue
        after_quantifier = False
        if character == "\\":
            piece, place = _posix_escape(pattern, place)
        elif character == "[":
            piece, place = _posix_class(pattern, place)
        elif pattern.startswith("(?", place):
            raise UnsupportedError("POSIX has no `(?`; Postfix skips the line")
        else:
            piece = character
            place += 1
        parts.append(piece)
    return "".join(parts)


def _posix_escape(pattern: str, place: int) -> tuple[str, int]:
    letter = pattern[place + 1 : place + 2]
    if not letter:
        raise UnsupportedError("it ends in a backslash")
    if letter in _GNU_ESCAPES:
        return _GNU_ESCAPES[letter], place + 2
    if letter in "123456789":
        raise UnsupportedError("RE2 has no back references, such as `\\1`")
    if letter.isalnum() or letter == "_":
        return letter, place + 2  # `\d` is the letter d
    return "\\" + letter, place + 2


def _posix_class(pattern: str, start: int) -> tuple[str, int]:
    """A bracket expression and its end; POSIX has no escapes in it, so a backslash is literal."""
    place = start + 1
    if pattern[place : place + 1] == "^":
        place += 1
    parts = [pattern[start:place]]
    if pattern[place : place + 1] == "]":
        parts.append("\\]")
        place += 1
    while place < len(pattern):
        if pattern[place] == "]":
            return "".join((*parts, "]")), place + 1
        if named := _POSIX_CLASS.match(pattern, place):
            if named[1] != ":":
                raise UnsupportedError(f"RE2 has no `{named[0]}`")
            parts.append(named[0])
            place = named.end()
        else:
            character = pattern[place]
            parts.append("\\" + character if character in "\\[" else character)
            place += 1
    raise UnsupportedError("a `[` without its `]`")
