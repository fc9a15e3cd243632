"""Lines, `if` and negation of Postfix's pcre: and regexp: tables (pcre_table(5), regexp_table(5)).

The first line that matches decides, as in a ruleset. A negated expression becomes the rule's exception. An `if` around
a line is left out if the line's own expression implies it; otherwise it becomes a second condition, if possible.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import re2

from policyd.config.conditions import CONDITIONS
from policyd.core.lookups import expression_options
from policyd.core.ruleset import Verb
from policyd.exchange.access.specificity import exemptions_as_exceptions
from policyd.exchange.model import Imported, Row, SkippedError, Term, UnsupportedError
from policyd.exchange.postfix.table import check_room, close_if, is_endif, lets_through, logical_lines, verdict
from policyd.exchange.regex_subjects import ADDRESSES, MAIL_ADDRESSES, NAMES, Questions
from policyd.exchange.values import term

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from policyd.exchange.model import Line, Report, Verdict

_OPENING = re.compile(r"(?P<if>if\s+)?(?P<not>!\s*)?(?P<delimiter>[^\sa-zA-Z0-9])", re.IGNORECASE)
_SUBSTITUTION = re.compile(r"\$(?:(?P<dollar>\$)|\d+|\{\d+\}|\(\d+\))")

# Digits of a group number; no expression has 10,000 groups.
_DIGITS = 4

# A domain, spelled out and anchored: `@example\.com$`, `\.example\.com$`, `(^|\.)example\.com$`.
_DOMAIN = re.compile(r"(?P<left>@|\\\.|\(\^\|\\\.\)|\(\?:\^\|\\\.\))(?P<name>(?:[a-z0-9_-]|\\[.-])+)\$", re.IGNORECASE)

_ASSUMED = "read as names and addresses of clients; use --attribute if the table is for something else"
_TOO_COMPLEX = (
    "too complex to analyse: treated as if it could match both names and addresses, and as if the "
    "`if` around it restricted it further"
)
_SENDERS = "only a mail address can match it, so it was read as an expression for senders (--attribute)"


class _Half(NamedTuple):
    """One expression that must hold (or, negated, must not), for one attribute."""

    pattern: str
    negated: bool


class _Block(NamedTuple):
    """An open `if`: its line and its condition, or None if that could not be read."""

    line: Line
    asks: _Half | None


class _Parts(NamedTuple):
    """The parts of a line. `pattern` is between the delimiters."""

    opens: bool
    negated: bool
    pattern: str
    flags: str
    result: str


def read(
    lines: Iterable[Line], report: Report, translate: Callable[[str, str], str], *, attribute: str | None = None
) -> Imported:
    """The table's rows in the order in which they decide. `translate` converts a pattern and its flags to an RE2
    expression.

    `attribute` is `client`, `helo_name`, `sender` or `recipient`; None means `client`, or `sender` for expressions that
    only a mail address can match. For a client, Postfix looks up the name, and then the address if no line matched the
    name; so all rows for names come first, and a line that can match both becomes two rows.
    """
    blocks: list[_Block] = []
    rows: dict[str, list[Row]] = {"sender": [], "name": [], "address": []}
    maker = _Maker(attribute, report)

    def take(line: Line) -> bool:
        if is_endif(line):
            close_if(blocks)
            return False
        parts = _split(line)
        if parts.opens:
            _open(line, parts, translate, blocks)
            return False
        try:
            half = _Half(translate(parts.pattern, parts.flags), parts.negated)
            says = _verdict(parts.result, half, line, report)
            for order, row in maker.rows(line, [*_around(blocks), half], says):
                rows[order].append(row)
        except SkippedError:
            raise
        except UnsupportedError as error:
            error.exempts = lets_through(parts.result, line)
            raise
        return True

    report.take_each(logical_lines(lines), take)
    for block in blocks:
        report.note(block.line, "the `if` has no endif; it extends to the end of the table")
    of_clients = rows["name"] + rows["address"]
    if attribute is None and of_clients:
        report.note(of_clients[0].line, _ASSUMED)
    if not of_clients or attribute is not None:
        return Imported(rows=rows["sender"] + of_clients)
    # Two lookups in one file: one may block a client that the other lets through.
    of_senders, idle = exemptions_as_exceptions(rows["sender"])
    for row in idle:
        report.lose(row.line, "no line below it blocks a sender, so that there is nothing to exempt from")
        report.taken -= 1
    return Imported(rows=of_senders + of_clients)


def _split(line: Line) -> _Parts:
    opening = _OPENING.match(line.text)
    if opening is None:
        raise SkippedError("not a line of such a table; write `/EXPRESSION/ ACTION`")
    start = opening.end()
    end = _closing(line.text, opening["delimiter"], start)
    if end < 0:
        raise SkippedError(f"the closing `{opening['delimiter']}` is missing; Postfix skips the line")
    flags, _, result = line.text[end + 1 :].partition(" ")
    flags, tab, rest = flags.partition("\t")
    result = (rest + " " + result if tab else result).strip()
    opens = opening["if"] is not None
    if not opens and not result:
        raise SkippedError("there is no action; Postfix skips the line")
    return _Parts(opens, opening["not"] is not None, line.text[start:end], flags, result)


def _open(line: Line, parts: _Parts, translate: Callable[[str, str], str], blocks: list[_Block]) -> None:
    try:
        check_room(blocks)
        blocks.append(_Block(line, _Half(translate(parts.pattern, parts.flags), parts.negated)))
    except UnsupportedError as error:
        blocks.append(_Block(line, None))
        raise UnsupportedError(f"{error}; all lines up to its endif are lost, too") from None


def _around(blocks: list[_Block]) -> list[_Half]:
    """Returns the conditions of the open `if` blocks. Raises `UnsupportedError` if one of them could not be read."""
    asks = [block.asks for block in blocks if block.asks is not None]
    if len(asks) < len(blocks):
        raise UnsupportedError("the `if` around it is lost")
    return asks


def _closing(text: str, delimiter: str, start: int) -> int:
    """Returns the place of the first delimiter without a backslash, or -1."""
    place = start
    while place < len(text):
        if text[place] == "\\":
            place += 1
        elif text[place] == delimiter:
            return place
        place += 1
    return -1


def _verdict(result: str, half: _Half, line: Line, report: Report) -> Verdict:
    groups = 0 if half.negated else re2.compile(half.pattern, expression_options()).groups
    lost = False
    for match in _SUBSTITUTION.finditer(result):
        if match["dollar"] is None:
            lost = True
            digits = re.sub(r"\D", "", match[0])
            if len(digits) > _DIGITS or int(digits) > groups:
                message = f"{match[0]} is not a group of the expression; Postfix skips the line"
                raise SkippedError(message)
    if lost:
        report.note(line, "$1, $2 and so on are not supported: the text has `...` in their place")
    return verdict(_SUBSTITUTION.sub(lambda match: match["dollar"] or "...", result), line, report)


# --- One line as rules ------------------------------------------------------------------------------------------------


class _Maker:
    """Makes the rows of a table's lines for `attribute`."""

    def __init__(self, attribute: str | None, report: Report) -> None:
        self._attribute = attribute
        self._report = report
        self._questions = Questions()

    def rows(self, line: Line, halves: list[_Half], says: Verdict) -> list[tuple[str, Row]]:
        """The rows of a line, each with the lookup that it is for: `sender`, `name` or `address`."""
        self._questions.begin_line()
        try:
            return self._rows(line, halves, says)
        finally:
            if self._questions.gave_up:
                self._report.note(line, _TOO_COMPLEX)

    def _rows(self, line: Line, halves: list[_Half], says: Verdict) -> list[tuple[str, Row]]:
        needed = self._not_implied([half.pattern for half in halves if not half.negated])
        excluded = list(dict.fromkeys(half.pattern for half in halves if half.negated))
        if self._attribute in {"helo_name", "recipient"}:
            return [("name", _row(line, self._attribute, needed, excluded, says))]
        if self._attribute == "sender":
            _mind_the_null_sender(halves, line, self._report)
            return [("sender", _row(line, self._attribute, needed, excluded, says))]
        rows = []
        if self._questions.can_match(NAMES, needed, excluded):
            # To Postfix `unknown` is a name like any other; policyd finds it only in the attribute that Postfix sends.
            options = expression_options()
            finds_unknown = all(re2.search(pattern, "unknown", options) for pattern in needed)
            finds_unknown &= not any(re2.search(pattern, "unknown", options) for pattern in excluded)
            subject = "client_name" if finds_unknown else "hostname"
            rows.append(("name", _row(line, subject, needed, excluded, says)))
        if self._questions.can_match(ADDRESSES, needed, excluded):
            possible = [pattern for pattern in excluded if self._questions.can_match(ADDRESSES, [pattern], [])]
            rows.append(("address", _row(line, "client_address", needed, possible, says)))
        if rows:
            return rows
        if self._attribute is None and self._questions.can_match(MAIL_ADDRESSES, needed, excluded):
            self._report.note(line, _SENDERS)
            return [("sender", _row(line, "sender", needed, excluded, says))]
        if len(halves) > 1 and (others := self._rows(line, halves[-1:], says)):
            alone = "address" if others[0][0] == "address" else "name"
            raise SkippedError(f"it can match a client's {alone}, but not within the `if` around it")
        raise SkippedError(
            "no name or address of a client can match it; set --attribute to what is looked up in the table"
        )

    def _not_implied(self, patterns: list[str]) -> list[str]:
        """The expressions that must hold, without those that another implies."""
        needed = list(dict.fromkeys(patterns))
        for pattern in reversed(needed[:-1]):
            if any(self._questions.implies(other, pattern) for other in needed if other != pattern):
                needed.remove(pattern)
        return needed


def _row(line: Line, subject: str, needed: list[str], excluded: list[str], says: Verdict) -> Row:
    exceptions: tuple[Term, ...] = ()
    if not needed:
        # Every expression except these: Postfix has a name for each client, even if it is `unknown`.
        match: tuple[Term, ...] = (term(f"{subject}_regex", ".*"),)
    elif len(needed) == 1:
        match = _alone(subject, needed[0])
    elif len(needed) == 2:
        match, exceptions = _both(subject, needed[0], needed[1], says)
    else:
        raise UnsupportedError("more than two expressions must match one attribute; write them as one expression")
    return Row(line, match, says, (*exceptions, *(term(f"{subject}_regex", pattern) for pattern in excluded)))


def _alone(subject: str, pattern: str) -> tuple[Term, ...]:
    if subject == "sender" and pattern in {"^<>$", "<>"}:
        return (Term("sender", "<>"),)
    if subject == "client_name" and re.fullmatch(r"\^unknown\$", pattern):
        return (Term("client_name", "unknown"),)
    return (term(f"{subject}_regex", pattern),)


def _both(subject: str, first: str, other: str, says: Verdict) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    """Two expressions on one attribute, if one of them only names a domain; for names that are blocked, any two."""
    condition = {"hostname": "hostname_suffix", "helo_name": "helo_name_suffix"}.get(subject, f"{subject}_domain")
    if condition in CONDITIONS:
        for domain, rest in ((first, other), (other, first)):
            named = _DOMAIN.fullmatch(domain)
            if named is None or (named["left"] == "@") != (subject in {"sender", "recipient"}):
                continue
            name = named["name"].replace("\\", "")
            expression = term(f"{subject}_regex", rest)
            if named["left"] == "@":
                return (term(condition, name), expression), (term(condition, f".{name}"),)
            return (term(condition, f".{name}" if named["left"] == r"\." else name), expression), ()
    if subject == "hostname" and says.verb is not Verb.DUNNO:
        # Postfix's name of a client is the verified name, or else `unknown`.
        return (term("hostname_regex", other), term("client_name_regex", first)), ()
    raise UnsupportedError("two expressions must match one attribute; write them as one expression, or one as a domain")


def _mind_the_null_sender(halves: list[_Half], line: Line, report: Report) -> None:
    options = expression_options()
    for pattern in (half.pattern for half in halves):
        if pattern not in {"^<>$", "<>"} and bool(re2.search(pattern, "<>", options)) != bool(
            re2.search(pattern, "", options)
        ):
            report.note(
                line,
                "the null sender is `<>` in Postfix's tables but empty for sender_regex, so it may be judged "
                "differently",
            )
