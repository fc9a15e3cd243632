"""Asks a ruleset's own index which conditions hold for every request that matches an entry.

So the entries of a long list need not be read to find out whether the list covers an entry.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

from policyd.core.identity import Status
from policyd.core.lookups import (
    AddressLookup,
    CountryLookup,
    DomainTable,
    GenericLookup,
    HostnameLookup,
    NameLookup,
    StatusLookup,
    SystemLookup,
    ValueLookup,
)
from policyd.core.normalize import domain_of
from policyd.core.ruleset import Kind
from policyd.core.tables import LongList, Networks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from policyd.config.written import WrittenCondition, WrittenRule
    from policyd.core.index import Index
    from policyd.core.lookups import Lookup
    from policyd.core.tables import Entries, Hits, RangeTable

# A label that no entry can contain. Before a domain it makes a name under this domain that is not itself in a list.
_ANY_LABEL = b"\0."

# Maximum number of entries whose answer is cached. The entries of a rule are looked up again for each rule above it, so
# the answers for the entries of one rule are enough.
_KEPT_ANSWERS = 64


class Coverage:
    """Finds the conditions that hold for every request that matches an entry; compares conditions on the same attribute
    only. An expression implies only the same expression.
    """

    def __init__(self, rules: Sequence[WrittenRule], index: Index) -> None:
        self._lookups: dict[str, list[Lookup]] = defaultdict(list)  # by subject
        self._by_expression: dict[tuple[str, str], set[int]] = defaultdict(set)
        self._of_text = lru_cache(_KEPT_ANSWERS)(self._find_text)
        seen = set()
        for rule in rules:
            for used in (*rule.match, *rule.exceptions):
                condition = used.condition
                if condition.kind is Kind.LISTED:
                    continue  # the answers of DNS lists are not known
                place = index.lookup_of[condition.number]
                if place not in seen:
                    seen.add(place)
                    self._lookups[condition.subject].append(index.lookups[place])
                if condition.kind is Kind.EXPRESSION:
                    for expression in chain.from_iterable(map(_strings, used.collections)):
                        self._by_expression[condition.subject, expression].add(condition.number)

    def of_entries(self, written: WrittenCondition) -> Iterator[frozenset[int]]:
        """Yields, for each entry of a condition, the conditions that hold for everything that the entry matches.

        A network gives several sets: one for each part of it in which the same conditions hold.
        """
        subject, kind = written.condition.subject, written.condition.kind
        for collection in written.collections:
            for block in collection.read() if isinstance(collection, LongList) else (collection,):
                if isinstance(block, Networks):
                    yield from self._of_networks(block)
                else:
                    for entry in block:
                        yield self._of_text(subject, kind, entry)

    def is_every_address(self, written: WrittenCondition, version: int) -> bool:
        """Whether a condition of networks holds for every address of an IP version."""
        lookup = self._address_lookup()
        last = (1 << (32 if version == 4 else 128)) - 1
        return all(written.condition.number in hits.conditions for hits in _of_network(lookup, version, 0, last))

    def _address_lookup(self) -> AddressLookup:
        return next(lookup for lookup in self._lookups["client_address"] if isinstance(lookup, AddressLookup))

    def _of_networks(self, networks: Networks) -> Iterator[frozenset[int]]:
        lookup = self._address_lookup()
        for version, width, bits, packed_networks in ((4, 32, 6, networks.v4), (6, 128, 8, networks.v6)):
            for packed in packed_networks:
                first = packed >> bits
                last = first + (1 << width - (packed & (1 << bits) - 1)) - 1
                yield from (hits.conditions for hits in _of_network(lookup, version, first, last))

    def _find_text(self, subject: str, kind: Kind, entry: bytes | str) -> frozenset[int]:
        if isinstance(entry, str):
            if kind is Kind.EXPRESSION:
                return frozenset(self._by_expression[subject, entry])
            statuses = (lookup for lookup in self._lookups[subject] if isinstance(lookup, StatusLookup))
            return frozenset().union(*(lookup.hits[Status(entry)].conditions for lookup in statuses))
        found: frozenset[int] = frozenset()
        for lookup in self._lookups[subject]:
            if kind is Kind.GENERIC or isinstance(lookup, GenericLookup):
                if kind is Kind.GENERIC and isinstance(lookup, GenericLookup):
                    found |= lookup.conditions_of(entry)
            elif isinstance(lookup, SystemLookup | CountryLookup):
                found |= lookup.conditions_of(entry)
            elif isinstance(lookup, ValueLookup) and kind is Kind.VALUE:
                found |= lookup.of_value(entry).conditions
            elif isinstance(lookup, NameLookup | HostnameLookup) and isinstance(lookup.table, DomainTable):
                found |= _of_name(lookup.table, kind, domain_of(entry) if kind is Kind.VALUE else entry)
        return found


def _of_network(lookup: AddressLookup, version: int, first: int, last: int) -> Iterator[Hits]:
    """Yields the hits of addresses from `first` to `last`: of at least one address in each range of the tables."""
    yield lookup.of_address(version, first)
    for table, _ in lookup.tables:
        for start in _starts_between(table, version, first, last):
            yield lookup.of_address(version, start)


def _starts_between(table: RangeTable, version: int, first: int, last: int) -> Iterator[int]:
    """The starts of ranges after `first` and up to `last`, ascending."""
    _, starts4, _, high, low, _ = table.parts
    if version == 4:
        yield from starts4[bisect_right(starts4, first) : bisect_right(starts4, last)]
        return
    for place in range(bisect_left(high, first >> 64), bisect_right(high, last >> 64)):
        start = high[place] << 64 | low[place]
        if first < start <= last:
            yield start


def _of_name(table: DomainTable, kind: Kind, entry: bytes) -> frozenset[int]:
    if kind is not Kind.DOMAIN:
        return table.find(entry).conditions
    under = table.find(_ANY_LABEL + entry.removeprefix(b".")).conditions
    return under if entry.startswith(b".") else under & table.find(entry).conditions


def _strings(entries: Entries) -> Iterable[str]:
    return (entry for entry in entries if isinstance(entry, str)) if isinstance(entries, list) else ()
