"""Which addresses rows keep out, as the fewest networks: for what can only hold a set of them."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import netaddr

from policyd.core.ruleset import Verb

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from policyd.tools.formats.exchange import Row, Term


def only_networks(row: Row) -> bool:
    """Whether a row is about addresses alone."""
    return all(one.condition == "cidr" for one in (*row.match, *row.exceptions))


def kept_out(rows: Iterable[Row]) -> netaddr.IPSet:
    """The addresses whose first matching row blocks. Every row must be `only_networks`."""
    blocked, settled = netaddr.IPSet(), netaddr.IPSet()
    for blocks, group in groupby(rows, key=lambda row: row.verdict.verb is not Verb.DUNNO):
        found = netaddr.IPSet()
        # Most rows have no exceptions, and are taken together: a set is slow to build up one by one.
        for exceptions, alike in groupby(group, key=lambda row: row.exceptions):
            found |= _set(term for row in alike for term in row.match) - _set(exceptions)
        if blocks:
            blocked |= found - settled
        settled |= found
    return blocked


def _set(terms: Iterable[Term]) -> netaddr.IPSet:
    return netaddr.IPSet(term.value for term in terms)


def fewest(of: netaddr.IPSet, version: int | None = None) -> Sequence[netaddr.IPNetwork]:
    """The networks of a set, in order of addresses, of one version or, IPv4 first, of both."""
    return [network for network in of.iter_cidrs() if version is None or network.version == version]
