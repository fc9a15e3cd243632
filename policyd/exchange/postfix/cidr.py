"""Imports and exports Postfix's cidr: tables (cidr_table(5)); postscreen's access list has the same form.

The first line that matches decides, as in a ruleset. `if` and `!` become exceptions of the rule, or a narrower network.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from policyd.core.ruleset import Verb
from policyd.exchange.firewall.address_block import EVERYTHING, NO_ADDRESS, AddressBlock
from policyd.exchange.model import Imported, Row, SkippedError, UnsupportedError, static_text
from policyd.exchange.network_sets import addresses_of, network_texts, supported_rows
from policyd.exchange.postfix.table import check_nesting, close_if, is_endif, lets_through, logical_lines, parse_verdict
from policyd.exchange.values import network

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import netaddr

    from policyd.exchange.model import ConversionReport, ExportOptions, Line

_LINE = re.compile(
    r"(?P<if>if\s+)?(?P<not>!\s*)?(?P<pattern>\[[^\]]*\](?:/\d+)?|[^\s!]\S*)(?:\s+(?P<result>.*))?", re.IGNORECASE
)


class _If(NamedTuple):
    """An open `if`: the addresses that enter it, or None if this `if` or one around it was lost."""

    line: Line
    addresses: AddressBlock | None


def read(lines: Iterable[Line], report: ConversionReport) -> Imported:
    """The table's rows, each with a condition `cidr`."""
    imported = Imported()
    open_ifs: list[_If] = []

    def take(line: Line) -> bool:
        if is_endif(line):
            close_if(open_ifs)
            return False
        match = _LINE.fullmatch(line.text)
        if match is None:
            raise SkippedError("not a line of a cidr: table; write `NETWORK ACTION`")
        try:
            row = _read_line(line, match, open_ifs, report)
        except SkippedError:
            raise
        except UnsupportedError as error:
            error.exempts = match["result"] is not None and not match["if"] and lets_through(match["result"], line)
            raise
        if row is not None:
            imported.rows.append(row)
        return row is not None

    report.take_each(logical_lines(lines), take)
    for unfinished in open_ifs:
        report.note(unfinished.line, "the `if` has no endif; it extends to the end of the table")
    return imported


def _read_line(line: Line, match: re.Match[str], open_ifs: list[_If], report: ConversionReport) -> Row | None:
    """Returns the row of a line; opens an `if` and returns None for it."""
    around = open_ifs[-1].addresses if open_ifs else AddressBlock()
    try:
        if match["if"]:
            check_nesting(open_ifs)
        addresses = _narrow(around, _pattern(match["pattern"]), negated=match["not"] is not None) if around else None
    except UnsupportedError as error:
        if match["if"]:
            open_ifs.append(_If(line, None))
            raise UnsupportedError(f"{error}; all lines up to its endif are lost, too") from None
        raise
    if match["if"]:
        open_ifs.append(_If(line, addresses))
        return None
    if addresses is None:
        raise UnsupportedError("the `if` around it is lost")
    if not match["result"]:
        raise SkippedError("there is no action; Postfix skips the line")
    if addresses.empty:
        raise SkippedError(NO_ADDRESS)
    inside, exceptions = addresses.terms()
    return Row(line, inside, parse_verdict(match["result"], line, report), exceptions)


def _narrow(addresses: AddressBlock, pattern: netaddr.IPNetwork, *, negated: bool) -> AddressBlock:
    if not negated:
        return addresses.within(pattern)
    # A pattern never matches an address of the other IP version, negated or not (`cidr_match.c`).
    return addresses.within(EVERYTHING[pattern.version]).without(pattern)


def _pattern(text: str) -> netaddr.IPNetwork:
    if ":" in text and "." in text:
        message = "Postfix writes an IPv4-mapped client as IPv4, so this never matches; write it as IPv4"
        raise SkippedError(message)
    try:
        return network(text.replace("[", "").replace("]", ""))
    except UnsupportedError as error:
        raise SkippedError(f"{error}; Postfix skips the line") from None


# --- Export -----------------------------------------------------------------------------------------------------------


def write(rows: Sequence[Row], report: ConversionReport, options: ExportOptions) -> str:
    """A cidr: table: a line for each network, in the order of the rules."""
    lines = [f"# {options.heading}"]
    for row in supported_rows(rows, report, deferred=True):
        action = f"{row.verdict.verb} {static_text(row, report)}".rstrip()
        lines += [f"{network}\t{action}" for network in _networks(row)]
    return "\n".join(lines) + "\n"


def write_postscreen(rows: Sequence[Row], report: ConversionReport, options: ExportOptions) -> str:
    """A cidr: table for postscreen_access_list (postconf(5)); postscreen uses its own text."""
    lines = [f"# {options.heading}"]
    for row in supported_rows(rows, report, deferred=options.deferred):
        action = "dunno" if row.verdict.verb is Verb.DUNNO else "reject"
        lines += [f"{network}\t{action}" for network in _networks(row)]
        if row.verdict.text or row.verdict.code:
            report.note(row.line, "postscreen answers with a text of its own")
    return "\n".join(lines) + "\n"


def _networks(row: Row) -> list[str]:
    """The addresses of a rule, without its exceptions, as the fewest networks."""
    return network_texts(addresses_of(row.match) - addresses_of(row.exceptions))
