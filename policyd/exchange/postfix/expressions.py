"""What Postfix's pcre: and regexp: tables have in common (pcre_table(5), regexp_table(5)): lines, `if`, negation.

The first line that matches decides, as in a ruleset. A negated expression becomes the rule's exception. Two expressions
that must both hold for one attribute are one too many for a rule, unless one of them only says which domain it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import re2

from policyd.config.conditions import CONDITIONS
from policyd.core.lookups import expression_options
from policyd.exchange.model import Imported, NoEqualError, Row, Term
from policyd.exchange.postfix.table import check_room, close_if, is_endif, logical_lines, verdict
from policyd.exchange.values import term

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from policyd.exchange.model import Line, Report, Verdict

_OPENING = re.compile(r"(?P<if>if\s+)?(?P<not>!\s*)?(?P<delimiter>[^\sa-zA-Z0-9])", re.IGNORECASE)
_SUBSTITUTION = re.compile(r"\$(?:(?P<dollar>\$)|\d+|\{\d+\}|\(\d+\))")

# No expression has 10,000 groups.
_DIGITS = 4

# A domain, spelled out and anchored: `@example\.com$`, `\.example\.com$`, `(^|\.)example\.com$`.
_DOMAIN = re.compile(r"(?P<left>@|\\\.|\(\^\|\\\.\)|\(\?:\^\|\\\.\))(?P<name>(?:[a-z0-9_-]|\\[.-])+)\$", re.IGNORECASE)

# What remains of an expression when everything that is not a letter of a name or address is gone.
_SYNTAX = re.compile(r"\\[a-zA-Z]|\[\[?:?[^\]]*:?\]?\]|\{[\d,]*\}|\(\?[a-z-]*:|[\\^$.|?*+()]")


class _Half(NamedTuple):
    """One expression that must hold (or, negated, must not), for one attribute."""

    pattern: str
    negated: bool


class _Block(NamedTuple):
    """An open `if`: its line and what it asks, or None where that could not be read."""

    line: Line
    asks: _Half | None


def read(
    lines: Iterable[Line], report: Report, translate: Callable[[str, str], str], *, attribute: str | None = None
) -> Imported:
    """The table's rows in order. `translate` makes an RE2 expression of a pattern and its flags.

    `attribute` is `client` (None: the same), `helo_name`, `sender` or `recipient`. Of a client, Postfix looks up the
    name, then the address: each line goes to the one that it can be meant for.
    """
    imported = Imported()
    blocks: list[_Block] = []

    def take(line: Line) -> bool:
        if is_endif(line):
            close_if(blocks)
            return False
        opens, half, result = _split(line, translate, blocks)
        if opens:
            blocks.append(_Block(line, half))
            return False
        if any(block.asks is None for block in blocks):
            raise NoEqualError("the `if` around it is lost")
        halves = [*(block.asks for block in blocks if block.asks is not None), half]
        says = _verdict(result, half, line, report)
        imported.rows.append(_row(line, halves, says, attribute or "client", report))
        return True

    report.take_each(logical_lines(lines), take)
    for block in blocks:
        report.note(block.line, "the `if` has no endif; it goes to the end of the table")
    return imported


def _split(line: Line, translate: Callable[[str, str], str], blocks: list[_Block]) -> tuple[bool, _Half, str]:
    """Whether the line opens a block, its expression, and the result to the right of it."""
    opening = _OPENING.match(line.text)
    if opening is None:
        raise NoEqualError("no line of such a table; it would be `/EXPRESSION/ ACTION`")
    start = opening.end()
    end = _closing(line.text, opening["delimiter"], start)
    flags, _, result = line.text[end + 1 :].partition(" ") if end >= 0 else ("", "", "")
    flags, tab, rest = flags.partition("\t")
    result = (rest + " " + result if tab else result).strip()
    try:
        if opening["if"]:
            check_room(blocks)
        half = _Half(_translated(line.text, start, end, flags, translate), opening["not"] is not None)
    except NoEqualError as error:
        if opening["if"]:
            blocks.append(_Block(line, None))
            raise NoEqualError(f"{error}; all up to its endif is lost with it") from None
        raise
    return bool(opening["if"]), half, result


def _translated(text: str, start: int, end: int, flags: str, translate: Callable[[str, str], str]) -> str:
    if end < 0:
        raise NoEqualError(f"the closing `{text[start - 1]}` is missing; Postfix skips the line")
    return translate(text[start:end], flags)


def _closing(text: str, delimiter: str, start: int) -> int:
    """Where the expression ends: at the first delimiter without a backslash. -1 where there is none."""
    place = start
    while place < len(text):
        if text[place] == "\\":
            place += 1
        elif text[place] == delimiter:
            return place
        place += 1
    return -1


def _verdict(result: str, half: _Half, line: Line, report: Report) -> Verdict:
    if not result:
        raise NoEqualError("there is no action; Postfix skips the line")
    groups = 0 if half.negated else re2.compile(half.pattern, expression_options()).groups
    lost = False
    for match in _SUBSTITUTION.finditer(result):
        if match["dollar"] is None:
            lost = True
            digits = re.sub(r"\D", "", match[0])
            if len(digits) > _DIGITS or int(digits) > groups:
                raise NoEqualError(f"{match[0]} stands for no group of the expression; Postfix skips the line")
    if lost:
        report.note(line, "$1 and its like have no equal: the text has `...` in their place")
    return verdict(_SUBSTITUTION.sub(lambda match: match["dollar"] or "...", result), line, report)


# --- One line as a rule -----------------------------------------------------------------------------------------------


def _row(line: Line, halves: list[_Half], says: Verdict, attribute: str, report: Report) -> Row:
    needed = [half.pattern for half in halves if not half.negated]
    excluded = [half.pattern for half in halves if half.negated]
    if len(needed) > 2:
        raise NoEqualError("more than two expressions would have to hold for one attribute; write it as one expression")
    subject = _subject(halves, attribute)
    if attribute == "sender":
        _mind_the_null_sender(halves, line, report)
    if not needed:
        # Everything but these: Postfix's own name of the client is there for each, `unknown` if need be.
        match: tuple[Term, ...] = (term(f"{subject}_regex", ".*"),)
        exceptions: tuple[Term, ...] = ()
    elif len(needed) == 1:
        match, exceptions = _alone(subject, needed[0]), ()
    else:
        match, exceptions = _both(subject, needed[0], needed[1])
    return Row(line, match, says, (*exceptions, *(term(f"{subject}_regex", pattern) for pattern in excluded)))


def _alone(subject: str, pattern: str) -> tuple[Term, ...]:
    if subject == "sender" and pattern in {"^<>$", "<>"}:
        return (Term("sender", "<>"),)
    if subject == "client_name" and re.fullmatch(r"\^unknown\$", pattern):
        return (Term("client_name", "unknown"),)
    return (term(f"{subject}_regex", pattern),)


def _both(subject: str, one: str, other: str) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    """Two expressions on one attribute, if one of them only names a domain."""
    condition = {"hostname": "hostname_suffix", "helo_name": "helo_name_suffix"}.get(subject, f"{subject}_domain")
    if condition in CONDITIONS:
        for domain, rest in ((one, other), (other, one)):
            named = _DOMAIN.fullmatch(domain)
            if named is None or (named["left"] == "@") != (subject in {"sender", "recipient"}):
                continue
            name = named["name"].replace("\\", "")
            expression = term(f"{subject}_regex", rest)
            if named["left"] == "@":
                return (term(condition, name), expression), (term(condition, f".{name}"),)
            return (term(condition, f".{name}" if named["left"] == r"\." else name), expression), ()
    raise NoEqualError(
        "two expressions would have to hold for one attribute; write them as one expression, or one as a domain"
    )


def _subject(halves: list[_Half], attribute: str) -> str:
    """The attribute that the line's expressions are for. Of a client it is its address, or else its name."""
    if attribute != "client":
        return attribute
    if all(_is_for_addresses(half.pattern) for half in halves):
        return "client_address"
    # `unknown` is a name to Postfix, and none here: what finds it must look at what Postfix sent.
    finds_unknown = any(half.negated or re2.search(half.pattern, "unknown", expression_options()) for half in halves)
    return "client_name" if finds_unknown else "hostname"


def _is_for_addresses(pattern: str) -> bool:
    left = _SYNTAX.sub("", pattern)
    return re.fullmatch(r"[\d:/]*", left) is not None or (
        ":" in left and re.fullmatch(r"[\da-f:]*", left, re.IGNORECASE) is not None
    )


def _mind_the_null_sender(halves: list[_Half], line: Line, report: Report) -> None:
    options = expression_options()
    for pattern in (half.pattern for half in halves):
        if pattern not in {"^<>$", "<>"} and bool(re2.search(pattern, "<>", options)) != bool(
            re2.search(pattern, "", options)
        ):
            report.note(
                line, "the null sender is `<>` to Postfix's tables and empty to sender_regex: it is judged otherwise"
            )
