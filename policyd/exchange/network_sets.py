"""Computes the addresses that rows block, as the fewest networks, for formats that are plain sets."""

from __future__ import annotations

import heapq
from dataclasses import replace
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

import netaddr

from policyd.core.ruleset import Verb
from policyd.exchange.model import DUNNO, by_condition
from policyd.exchange.values import network_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from policyd.exchange.model import ConversionReport, Row, Term

_DEFERS = frozenset({Verb.DEFER, Verb.DEFER_IF_PERMIT})


def only_networks(row: Row) -> bool:
    """Whether a row is about addresses only."""
    return all(term.condition == "cidr" for term in (*row.match, *row.exceptions))


def addresses_of(terms: Iterable[Term]) -> netaddr.IPSet:
    """The addresses of terms with the condition `cidr`."""
    return netaddr.IPSet(term.value for term in terms)


def blocked_addresses(rows: Iterable[Row]) -> netaddr.IPSet:
    """The addresses whose first matching row blocks. `only_networks` must be true for every row."""
    groups: list[tuple[bool, netaddr.IPSet]] = []
    for blocks, group in groupby(rows, key=lambda row: row.verdict.verb is not Verb.DUNNO):
        # Consecutive rows with the same exceptions (usually none) share a set: many small sets are slow to build.
        by_exceptions = groupby(group, key=lambda row: row.exceptions)
        parts = [_matched_addresses(exceptions, alike) for exceptions, alike in by_exceptions]
        found = parts[0] if len(parts) == 1 else netaddr.IPSet(cidr for part in parts for cidr in part.iter_cidrs())
        groups.append((blocks, found))
    match groups:
        case [(True, found)]:
            return found
        case _:
            return netaddr.IPSet(cidr for version in (4, 6) for cidr in _blocked_ranges(groups, version))


def _blocked_ranges(groups: list[tuple[bool, netaddr.IPSet]], version: int) -> Iterator[netaddr.IPRange]:
    """Yields the blocked ranges: between two borders of networks, the first group that has these addresses decides.

    Subtracting the sets of 10,000 groups from each other would take a minute.
    """
    networks = sorted(
        (cidr.first, cidr.last, number)
        for number, (_, found) in enumerate(groups)
        for cidr in found.iter_cidrs()
        if cidr.version == version
    )
    borders = sorted({border for first, last, _ in networks for border in (first, last + 1)})
    containing: list[tuple[int, int]] = []  # a heap: group and last address of the networks that contain `start`
    place = 0
    for start, end in pairwise(borders):
        while place < len(networks) and networks[place][0] == start:
            _, last, number = networks[place]
            heapq.heappush(containing, (number, last))
            place += 1
        while containing and containing[0][1] < start:
            heapq.heappop(containing)
        if containing and groups[containing[0][0]][0]:
            yield netaddr.IPRange(netaddr.IPAddress(start, version), netaddr.IPAddress(end - 1, version))


def _matched_addresses(exceptions: tuple[Term, ...], rows: Iterable[Row]) -> netaddr.IPSet:
    matched = addresses_of(term for row in rows for term in row.match)
    return matched - addresses_of(exceptions) if exceptions else matched


def rejected_addresses(rows: Sequence[Row], report: ConversionReport, *, deferred: bool) -> netaddr.IPSet:
    """The addresses that rules reject and, with `deferred`, those that rules defer.

    The first matching rule decides, as in the ruleset. Rules about anything but addresses are reported as lost.
    """
    return blocked_addresses(supported_rows(rows, report, deferred=deferred))


def supported_rows(rows: Sequence[Row], report: ConversionReport, *, deferred: bool) -> Iterator[Row]:
    """Yields the rows about addresses only, and reports all others as lost.

    Without `deferred`, a row that defers is reported, too. It becomes DUNNO, so that its clients do not reach the rows
    below.
    """
    for row in rows:
        if not only_networks(row):
            report.lose(row.line, _why_not(row))
        elif row.verdict.verb in _DEFERS and not deferred:
            report.lose(row.line, f"{row.verdict.verb} is not a rejection (--deferred treats it as one)")
            yield replace(row, verdict=DUNNO)
        else:
            report.taken += 1
            yield row


def _why_not(row: Row) -> str:
    conditions = [name for name in by_condition((*row.match, *row.exceptions)) if name != "cidr"]
    what = f"uses {', '.join(conditions)}; this format supports IP addresses only"
    if row.verdict.verb is Verb.DUNNO:
        return f"{what}, so a rule below it may block the clients that this rule exempts"
    return what


def network_texts(of: netaddr.IPSet, version: int | None = None) -> list[str]:
    """The fewest networks of a set as texts, in order of addresses, IPv4 first; `version` selects one IP version."""
    return [network_text(cidr) for cidr in of.iter_cidrs() if version is None or cidr.version == version]
