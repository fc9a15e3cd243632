"""Finds likely mistakes in expressions that RE2 compiles."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from policyd.config.problems import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

# Two labels or more at the end of a pattern, dots escaped or not, and the anchor if there is one. A match does not
# begin inside an escape: in ^host\d\.example the d does not belong to the name.
_DOMAIN_AT_END = re.compile(
    r"(?<!\\)(?P<domain>(?:[A-Za-z0-9_-]+\\?\.)+[A-Za-z][A-Za-z0-9-]+)(?P<end>(?:\\\.\??)?\$)?$"
)

# Number of characters at the end of an expression that are searched for a domain. A domain has at most 253 characters,
# and some backslashes in an expression.
_LONGEST_DOMAIN = 300

# Anchors before a domain: with one of them, `example.com` is not found in `badexample.com`.
_BOUNDARY = re.compile(r"(?:\^|\\\.|@|\[[.@]+\]|\((?:\?:)?(?:\^\|\\\.|\\\.\|\^|\^\|@\|\\\.|@\|\\\.|\\\.\|@)\))$")

# Signs that the first label of a domain is only the end of a varying label, as `-pool` is in ^ip-[0-9]+-pool\.example.
_VARYING = re.compile(r"(?:\]|\)|\}|\\[dwDW])[*+?]?\??$|(?<!\.)[*+?]\??$|\\[a-zA-Z]$")


def complaints(expression: str) -> Iterator[str]:
    """Yields a sentence for each likely mistake."""
    for before, after in _bare_dots(expression):
        yield f"the '.' in '{before}.{after}' stands for any character; write '\\.'"
    for alternative in _alternatives(expression):
        found = _DOMAIN_AT_END.search(alternative, max(0, len(alternative) - _LONGEST_DOMAIN))
        if not found:
            continue
        domain = found["domain"].replace("\\", "")
        if not found["end"]:
            yield f"{quoted(domain)} is found in longer names, too, such as '{domain}.example.net'; end it with '$'"
        before_domain = alternative[: found.start()]
        if not _BOUNDARY.search(before_domain) and not _VARYING.search(before_domain):
            yield f"{quoted(domain)} is found in 'bad{domain}', too; put '^', '@' or '(^|\\.)' before it"


def _pieces(expression: str) -> Iterator[tuple[int, str]]:
    """Splits an expression into escapes, classes in brackets and single characters, each with its position."""
    place = 0
    while place < len(expression):
        end = place + 1
        if expression[place] == "\\":
            if expression.startswith("\\Q", place):  # literal text, up to \E
                literal_end = expression.find("\\E", place)
                end = len(expression) if literal_end < 0 else literal_end + 2
            else:
                end = place + 2
        elif expression[place] == "[":
            end += expression[end : end + 1] == "^"
            end += expression[end : end + 1] == "]"  # directly after the bracket, it is a member
            while end < len(expression) and expression[end] != "]":
                inner = expression.find(":]", end) if expression.startswith("[:", end) else -1
                end = inner + 2 if inner >= 0 else end + (2 if expression[end] == "\\" else 1)
            end += 1
        yield place, expression[place:end]
        place = end


def _bare_dots(expression: str) -> Iterator[tuple[str, str]]:
    """Yields the letters or digits around each dot that is not escaped, bracketed or quantified."""
    pieces = [piece for _, piece in _pieces(expression)]
    for before, dot, after in zip(pieces, pieces[1:], pieces[2:], strict=False):
        if dot == "." and _is_letter_or_digit(before) and _is_letter_or_digit(after):
            yield before, after


def _is_letter_or_digit(piece: str) -> bool:
    return len(piece) == 1 and piece.isalnum()


def _alternatives(expression: str) -> Iterator[str]:
    """Splits an expression at each `|` outside parentheses."""
    depth = start = 0
    for place, piece in _pieces(expression):
        depth += (piece == "(") - (piece == ")")
        if piece == "|" and depth == 0:
            yield expression[start:place]
            start = place + 1
    yield expression[start:]
