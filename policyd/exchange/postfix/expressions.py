"""Reads the lines, `if`s and negations of Postfix's pcre: and regexp: tables (pcre_table(5), regexp_table(5)).

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
from policyd.exchange.postfix.table import check_nesting, close_if, is_endif, lets_through, logical_lines, parse_verdict
from policyd.exchange.regex_subjects import ADDRESSES, MAIL_ADDRESSES, NAMES, ONLY_SENDERS, Questions
from policyd.exchange.values import term

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from policyd.exchange.model import ConversionReport, Line, Verdict

_OPENING = re.compile(r"(?P<if>if\s+)?(?P<not>!\s*)?(?P<delimiter>[^\sa-zA-Z0-9])", re.IGNORECASE)
_SUBSTITUTION = re.compile(r"\$(?:(?P<dollar>\$)|\d+|\{\d+\}|\(\d+\))")

# Maximum digits of a group number; no expression has 10,000 groups.
_DIGITS = 4

# A domain, spelled out and anchored: `@example\.com$`, `\.example\.com$`, `(^|\.)example\.com$`.
_DOMAIN = re.compile(r"(?P<left>@|\\\.|\(\^\|\\\.\)|\(\?:\^\|\\\.\))(?P<name>(?:[a-z0-9_-]|\\[.-])+)\$", re.IGNORECASE)

_ASSUMED = "read as names and addresses of clients; use --attribute if the table is for something else"
_TOO_COMPLEX = (
    "too complex to analyse: treated as if it could match both names and addresses, and as if the "
    "`if` around it restricted it further"
)


class _Expression(NamedTuple):
    """An expression that must match or, if `negated`, must not match."""

    pattern: str
    negated: bool


class _If(NamedTuple):
    """An open `if`: its line and its expression, or None if the `if` was lost."""

    line: Line
    expression: _Expression | None


class _Parts(NamedTuple):
    """The parts of a line. `pattern` is between the delimiters."""

    opens: bool
    negated: bool
    pattern: str
    flags: str
    result: str


def read(
    lines: Iterable[Line],
    report: ConversionReport,
    translate: Callable[[str, str], str],
    *,
    attribute: str | None = None,
) -> Imported:
    """The table's rows in the order in which they decide.

    `translate` converts a pattern and its flags to an RE2 expression. `attribute` is `client`, `helo_name`, `sender` or
    `recipient`; None means `client`, or `sender` for expressions that only a mail address can match.

    For a client, Postfix looks up the name, and then the address if no line matched the name. So all rows for names
    come first, and a line that can match both becomes two rows.
    """
    open_ifs: list[_If] = []
    rows: dict[str, list[Row]] = {"sender": [], "name": [], "address": []}
    maker = _Maker(attribute, report)

    def take(line: Line) -> bool:
        if is_endif(line):
            close_if(open_ifs)
            return False
        parts = _split(line)
        if parts.opens:
            _open(line, parts, translate, open_ifs)
            return False
        try:
            expression = _Expression(translate(parts.pattern, parts.flags), parts.negated)
            verdict = _verdict(parts.result, expression, line, report)
            for order, row in maker.rows(line, [*_conditions(open_ifs), expression], verdict):
                rows[order].append(row)
        except SkippedError:
            raise
        except UnsupportedError as error:
            error.exempts = lets_through(parts.result, line)
            raise
        return True

    report.take_each(logical_lines(lines), take)
    for open_if in open_ifs:
        report.note(open_if.line, "the `if` has no endif; it extends to the end of the table")
    of_clients = rows["name"] + rows["address"]
    if attribute is None and of_clients:
        report.note(of_clients[0].line, _ASSUMED)
    if not of_clients or attribute is not None:
        return Imported(rows=rows["sender"] + of_clients)
    # Two lookups in one file: a client that one lookup lets through must still pass the other.
    of_senders, unused = exemptions_as_exceptions(rows["sender"], report)
    for row in unused:
        report.lose(row.line, "no line below it blocks a sender, so there is nothing to exempt from")
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


def _open(line: Line, parts: _Parts, translate: Callable[[str, str], str], open_ifs: list[_If]) -> None:
    try:
        check_nesting(open_ifs)
        open_ifs.append(_If(line, _Expression(translate(parts.pattern, parts.flags), parts.negated)))
    except UnsupportedError as error:
        open_ifs.append(_If(line, None))
        raise UnsupportedError(f"{error}; all lines up to its endif are lost, too") from None


def _conditions(open_ifs: list[_If]) -> list[_Expression]:
    """Returns the expressions of the open `if`s. Raises `UnsupportedError` if one of them could not be read."""
    expressions = [open_if.expression for open_if in open_ifs if open_if.expression is not None]
    if len(expressions) < len(open_ifs):
        raise UnsupportedError("the `if` around it is lost")
    return expressions


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


def _verdict(result: str, expression: _Expression, line: Line, report: ConversionReport) -> Verdict:
    groups = 0 if expression.negated else re2.compile(expression.pattern, expression_options()).groups
    has_groups = False
    for match in _SUBSTITUTION.finditer(result):
        if match["dollar"] is None:
            has_groups = True
            digits = re.sub(r"\D", "", match[0])
            if len(digits) > _DIGITS or int(digits) > groups:
                message = f"{match[0]} is not a group of the expression; Postfix skips the line"
                raise SkippedError(message)
    if has_groups:
        report.note(line, "$1, $2 and so on are not supported: the text has `...` in their place")
    return parse_verdict(_SUBSTITUTION.sub(lambda match: match["dollar"] or "...", result), line, report)


# --- One line as rules ------------------------------------------------------------------------------------------------


class _Maker:
    """Makes the rows for the lines of a table; `attribute` is as in `read`."""

    def __init__(self, attribute: str | None, report: ConversionReport) -> None:
        self._attribute = attribute
        self._report = report
        self._questions = Questions()

    def rows(self, line: Line, expressions: list[_Expression], verdict: Verdict) -> list[tuple[str, Row]]:
        """The rows of a line, each with its lookup: `sender`, `address` or `name`.

        The lookups of HELO names and recipients also count as `name`.
        """
        self._questions.begin_line()
        try:
            return self._rows(line, expressions, verdict)
        finally:
            if self._questions.gave_up:
                self._report.note(line, _TOO_COMPLEX)

    def _rows(self, line: Line, expressions: list[_Expression], verdict: Verdict) -> list[tuple[str, Row]]:
        needed = self._not_implied([expression.pattern for expression in expressions if not expression.negated])
        excluded = list(dict.fromkeys(expression.pattern for expression in expressions if expression.negated))
        if self._attribute in {"helo_name", "recipient"}:
            return [("name", _row(line, self._attribute, needed, excluded, verdict))]
        if self._attribute == "sender":
            _note_null_sender(expressions, line, self._report)
            return [("sender", _row(line, self._attribute, needed, excluded, verdict))]
        rows = []
        if self._questions.can_match(NAMES, needed, excluded):
            # In Postfix, `unknown` is a name like any other; in policyd, only `client_name` can be `unknown`.
            options = expression_options()
            finds_unknown = all(re2.search(pattern, "unknown", options) for pattern in needed)
            finds_unknown &= not any(re2.search(pattern, "unknown", options) for pattern in excluded)
            subject = "client_name" if finds_unknown else "hostname"
            rows.append(("name", _row(line, subject, needed, excluded, verdict)))
        if self._questions.can_match(ADDRESSES, needed, excluded):
            possible = [pattern for pattern in excluded if self._questions.can_match(ADDRESSES, [pattern], [])]
            rows.append(("address", _row(line, "client_address", needed, possible, verdict)))
        if rows:
            return rows
        if self._attribute is None and self._questions.can_match(MAIL_ADDRESSES, needed, excluded):
            self._report.note(line, ONLY_SENDERS)
            return [("sender", _row(line, "sender", needed, excluded, verdict))]
        if len(expressions) > 1 and (others := self._rows(line, expressions[-1:], verdict)):
            what = "address" if others[0][0] == "address" else "name"
            raise SkippedError(f"it can match a client's {what}, but not within the `if` around it")
        raise SkippedError(
            "no name or address of a client can match it; set --attribute to what is looked up in the table"
        )

    def _not_implied(self, patterns: list[str]) -> list[str]:
        """The patterns that must match, without those that another pattern implies."""
        needed = list(dict.fromkeys(patterns))
        for pattern in reversed(needed[:-1]):
            if any(self._questions.implies(other, pattern) for other in needed if other != pattern):
                needed.remove(pattern)
        return needed


def _row(line: Line, subject: str, needed: list[str], excluded: list[str], verdict: Verdict) -> Row:
    exceptions: tuple[Term, ...] = ()
    if not needed:
        # The row is for every value that no excluded pattern matches: each client has a name, even if it is `unknown`.
        match: tuple[Term, ...] = (term(f"{subject}_regex", ".*"),)
    elif len(needed) == 1:
        match = _single_term(subject, needed[0])
    elif len(needed) == 2:
        match, exceptions = _two_terms(subject, needed[0], needed[1], verdict)
    else:
        raise UnsupportedError("more than two expressions must match one attribute; write them as one expression")
    return Row(line, match, verdict, (*exceptions, *(term(f"{subject}_regex", pattern) for pattern in excluded)))


def _single_term(subject: str, pattern: str) -> tuple[Term, ...]:
    if subject == "sender" and pattern in {"^<>$", "<>"}:
        return (Term("sender", "<>"),)
    if subject == "client_name" and re.fullmatch(r"\^unknown\$", pattern):
        return (Term("client_name", "unknown"),)
    return (term(f"{subject}_regex", pattern),)


def _two_terms(subject: str, first: str, other: str, verdict: Verdict) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    """Two expressions on one attribute as terms and exceptions.

    One of them must be a domain, unless the row blocks clients by their host names.
    """
    condition = {"hostname": "hostname_suffix", "helo_name": "helo_name_suffix"}.get(subject, f"{subject}_domain")
    if condition in CONDITIONS:
        for domain, rest in ((first, other), (other, first)):
            named = _DOMAIN.fullmatch(domain)
            if named is None or (named["left"] == "@") != (subject in {"sender", "recipient"}):
                continue
            name = named["name"].replace("\\", "")
            matching = term(f"{subject}_regex", rest)
            if named["left"] == "@":
                return (term(condition, name), matching), (term(condition, f".{name}"),)
            return (term(condition, f".{name}" if named["left"] == r"\." else name), matching), ()
    if subject == "hostname" and verdict.verb is not Verb.DUNNO:
        # Postfix's name of a client is the verified name, or else `unknown`.
        return (term("hostname_regex", other), term("client_name_regex", first)), ()
    raise UnsupportedError("two expressions must match one attribute; write them as one expression, or one as a domain")


def _note_null_sender(expressions: list[_Expression], line: Line, report: ConversionReport) -> None:
    options = expression_options()
    for pattern in (expression.pattern for expression in expressions):
        if pattern not in {"^<>$", "<>"} and bool(re2.search(pattern, "<>", options)) != bool(
            re2.search(pattern, "", options)
        ):
            report.note(
                line,
                "the null sender is `<>` in Postfix's tables but empty for sender_regex, so it may be judged "
                "differently",
            )
