"""Which addresses rows keep out, as the fewest networks: for what can only hold a set of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import netaddr

from policyd.core.ruleset import Verb
from policyd.tools.formats.exchange import DUNNO, by_condition
from policyd.tools.formats.values import network_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from policyd.tools.formats.exchange import Report, Row, Term

_DEFERS = frozenset({Verb.DEFER, Verb.DEFER_IF_PERMIT})


def only_networks(row: Row) -> bool:
    """Whether a row is about addresses alone."""
    return all(one.condition == "cidr" for one in (*row.match, *row.exceptions))


def addresses_of(terms: Iterable[Term]) -> netaddr.IPSet:
    """The addresses of terms with the condition `cidr`."""
    return netaddr.IPSet(one.value for one in terms)


def kept_out(rows: Iterable[Row]) -> netaddr.IPSet:
    """The addresses whose first matching row blocks. Every row must be `only_networks`."""
    blocked, settled = netaddr.IPSet(), netaddr.IPSet()
    for blocks, group in groupby(rows, key=lambda row: row.verdict.verb is not Verb.DUNNO):
        # Most rows have no exceptions, and are taken together: sets are slow to build up one by one.
        parts = [_about(exceptions, alike) for exceptions, alike in groupby(group, key=lambda row: row.exceptions)]
        found = parts[0] if len(parts) == 1 else netaddr.IPSet(one for part in parts for one in part.iter_cidrs())
        if blocks:
            blocked = _joined(blocked, found - settled if settled else found)
        settled = _joined(settled, found)
    return blocked


def _joined(one: netaddr.IPSet, other: netaddr.IPSet) -> netaddr.IPSet:
    return one | other if one and other else one or other  # a union merges all networks of both once more


def _about(exceptions: tuple[Term, ...], rows: Iterable[Row]) -> netaddr.IPSet:
    about = addresses_of(one for row in rows for one in row.match)
    return about - addresses_of(exceptions) if exceptions else about


def rejected(rows: Sequence[Row], report: Report, *, deferred: bool) -> netaddr.IPSet:
    """The addresses that rules reject, or with `deferred` also those that they defer, for what can hold nothing else.

    First match, exceptions and DUNNO are in the set already. What cannot be is reported.
    """
    return kept_out(sayable(rows, report, deferred=deferred))


def sayable(rows: Sequence[Row], report: Report, *, deferred: bool) -> Iterator[Row]:
    """The rows about addresses alone; those that defer, unless they are wanted, as DUNNO: what they catch is not
    rejected by a row below. The others are reported."""
    for row in rows:
        if not only_networks(row):
            report.lose(row.line, _why_not(row))
        elif row.verdict.verb in _DEFERS and not deferred:
            report.lose(row.line, f"{row.verdict.verb} is no rejection (--deferred takes it for one)")
            yield replace(row, verdict=DUNNO)
        else:
            report.taken += 1
            yield row


def _why_not(row: Row) -> str:
    conditions = [name for name in by_condition((*row.match, *row.exceptions)) if name != "cidr"]
    what = f"it asks for {', '.join(conditions)}, and the other side knows addresses alone"
    if row.verdict.verb is Verb.DUNNO:
        return f"{what}; whom it lets through, a network of a rule below it may keep out there"
    return what


def texts(of: netaddr.IPSet, version: int | None = None) -> list[str]:
    """The networks of a set, the fewest, in order of addresses, of one version or, IPv4 first, of both."""
    return [network_text(one) for one in of.iter_cidrs() if version is None or one.version == version]


def count(number: int) -> str:
    """`1 network`, `1,000 networks`."""
    return f"{number:,} network{'' if number == 1 else 's'}"
