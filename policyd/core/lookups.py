"""One class for each way to compare a request with the conditions of the ruleset.

A lookup returns `Hits`: the numbers of the conditions that hold, and of the rules filed under them.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakValueDictionary

import re2

from policyd.core.normalize import decode_for_expressions, domain_of, fold_name, fold_value
from policyd.core.protocol import SENDER_STATES, Request
from policyd.core.tables import NOTHING, Hits, NameTable, RangeTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from policyd.core.address import Address
    from policyd.core.facts import Known
    from policyd.core.hits import HitsByNumber
    from policyd.core.identity import Status


def _sender_of(request: Request) -> bytes | None:
    """The sender, empty for the null sender; None before MAIL, when an empty sender means nothing."""
    return request.get("sender") if request.get("protocol_state") in SENDER_STATES else None


def _recipient_of(request: Request) -> bytes | None:
    """The recipient; None if there is none, or several."""
    return request.get("recipient") or None


# The functions that return the text to compare. For all other attributes, the text is the attribute's value.
_TEXT_OF: Mapping[str, Callable[[Request], bytes | None]] = {"sender": _sender_of, "recipient": _recipient_of}


class AddressLookup:
    """`cidr`: the networks that `client_address` lies in."""

    def __init__(self, tables: Sequence[tuple[RangeTable, HitsByNumber]]) -> None:
        (self._table, self._hits), *more = tables
        self._other: RangeTable | None
        self._other, self._other_hits = more[0] if more else (None, self._hits)
        self.tables = tables

    def find(self, request: Request, _known: Known) -> Hits:
        address = request.address
        if address is None:
            return NOTHING
        version, value = address
        if version != 4:
            return self.of_address(version, value)
        number = self._table.number4(value)
        found = self._hits[number] if number else NOTHING
        if self._other is not None and (number := self._other.number4(value)):
            return merge((found, self._other_hits[number]))
        return found

    def of_address(self, version: int, address: int) -> Hits:
        """Returns the hits of an address."""
        return merge([h[t.number4(address) if version == 4 else t.number6(address)] for t, h in self.tables])


class DomainTable:
    """Maps names to the conditions that hold for the name itself or for names under it.

    Each key stands for two sets of conditions: those that hold for this very name, and those that hold for the
    names under it. So one walk, from a name up to its last label, finds exact names, suffixes, and suffixes with a
    leading dot. Long lists have a separate table; then one walk searches both tables.
    """

    __slots__ = ("_exact", "_other", "_other_exact", "_other_under", "_table", "_under")

    def __init__(self, tables: Sequence[tuple[NameTable, HitsByNumber, HitsByNumber]]) -> None:
        # By the number in the table: Hits for this very name, and for the names under it.
        (self._table, self._exact, self._under), *more = tables
        self._other: NameTable | None
        self._other, self._other_exact, self._other_under = more[0] if more else (None, self._exact, self._under)

    def find(self, name: bytes) -> Hits:
        """Returns the hits of a folded name; none for an empty name."""
        if not name:
            return NOTHING
        if self._other is not None:
            return self._find_in_both(name, self._other)
        table = self._table
        marks, mask = table.marks, table.mask
        found = self._exact[table.number(name)] if marks[hash(name) & mask] else NOTHING
        dot = name.find(b".")
        while dot >= 0:
            parent = name[dot + 1 :]
            if marks[hash(parent) & mask] and (number := table.number(parent)):
                found = merge((found, self._under[number]))
            dot = name.find(b".", dot + 1)
        return found

    def _find_in_both(self, name: bytes, other: NameTable) -> Hits:
        """Walks over both tables together, so that each name is hashed only once."""
        table = self._table
        marks, mask, other_marks, other_mask = table.marks, table.mask, other.marks, other.mask
        key_hash = hash(name)
        found = self._exact[table.number(name)] if marks[key_hash & mask] else NOTHING
        if other_marks[key_hash & other_mask]:
            found = merge((found, self._other_exact[other.number(name)]))
        dot = name.find(b".")
        while dot >= 0:
            parent = name[dot + 1 :]
            key_hash = hash(parent)
            if marks[key_hash & mask] and (number := table.number(parent)):
                found = merge((found, self._under[number]))
            if other_marks[key_hash & other_mask] and (number := other.number(parent)):
                found = merge((found, self._other_under[number]))
            dot = name.find(b".", dot + 1)
        return found


class NameLookup:
    """`helo_name`, `helo_name_suffix`, `sender_domain`, `recipient_domain`."""

    def __init__(self, subject: str, table: DomainTable) -> None:
        self._subject = subject
        self._text_of = _TEXT_OF.get(subject)
        self._name_of = fold_name if subject == "helo_name" else domain_of
        self.table = table

    def find(self, request: Request, _known: Known) -> Hits:
        text = self._text_of(request) if self._text_of is not None else request.get(self._subject)
        return self.table.find(self._name_of(text)) if text else NOTHING


class ValueLookup:
    """Compares mail addresses and all other attributes with exact values."""

    def __init__(self, subject: str, tables: Sequence[tuple[NameTable, HitsByNumber]]) -> None:
        self._subject = subject
        self._text_of = _TEXT_OF.get(subject)
        (self._table, self._hits), *more = tables
        self._more = tuple(more)
        self._empty = b"<>" if subject == "sender" else b""

    def find(self, request: Request, _known: Known) -> Hits:
        text = self._text_of(request) if self._text_of is not None else request.get(self._subject)
        if text is None:
            return NOTHING
        value = fold_value(text) or self._empty
        if not self._more and not self._table.marks[hash(value) & self._table.mask]:
            return NOTHING  # most values end here
        return self.of_value(value)

    def of_value(self, value: bytes) -> Hits:
        """Returns the hits of a folded value."""
        table = self._table
        found = self._hits[table.number(value)]
        for table, hits in self._more:
            number = table.number(value)
            if number:
                found = merge((found, hits[number]))
        return found


class _ExpressionSet:
    """Expressions compiled by RE2 into one automaton. Raises re2.error if RE2 cannot compile them."""

    # RE2's budget in bytes for the automaton: a base, and an amount for each expression, measured with names that match
    # a long list of patterns. With less memory, RE2 drops its states and rebuilds them at almost every name.
    MEMORY = 8 << 20
    MEMORY_EACH = 16 << 10

    def __init__(self, expressions: tuple[str, ...]) -> None:
        compiled = re2.Set.SearchSet(expression_options(self.MEMORY + self.MEMORY_EACH * len(expressions)))
        for expression in expressions:
            compiled.Add(expression)
        compiled.Compile()
        self.match = compiled.Match  # UTF-8 -> the places of the expressions that are found in it


# The sets in use. Compiling a set delays requests (19 ms for 1,671 expressions), and most reloads have the same
# expressions, so the new ruleset shares the set of the old one.
_sets: WeakValueDictionary[tuple[str, ...], _ExpressionSet] = WeakValueDictionary()


class ExpressionTable:
    """All expressions on one attribute: one pass over the text, however many expressions there are.

    Raises re2.error if RE2 cannot compile them together.
    """

    def __init__(self, expressions: tuple[str, ...], hits: tuple[Hits, ...]) -> None:
        self._expressions = expressions
        self._hits = hits
        self._set = _sets.get(expressions) or _ExpressionSet(expressions)
        _sets[expressions] = self._set
        self._match = self._set.match
        self._empty = self._all(self._match(b"") or [])

    def find(self, text: bytes) -> Hits:
        """Returns the hits of a text, which may be any bytes."""
        if not text:
            return self._empty
        places = self._match(text if text.isascii() else decode_for_expressions(text))
        return self._all(places) if places else NOTHING

    def _all(self, places: list[int]) -> Hits:
        return merge([self._hits[place] for place in places])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._expressions, self._hits)


def expression_options(max_mem: int = _ExpressionSet.MEMORY) -> re2.Options:
    """Returns the RE2 options of every expression in a ruleset (https://github.com/google/re2/wiki/Syntax)."""
    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    options.max_mem = max_mem
    return options


class ExpressionLookup:
    """`helo_name_regex`, `sender_regex`, and `NAME_regex` of every other attribute."""

    def __init__(self, subject: str, table: ExpressionTable) -> None:
        self.subject = subject
        self.table = table
        self._text_of = _TEXT_OF.get(subject)

    def find(self, request: Request, _known: Known) -> Hits:
        text = self._text_of(request) if self._text_of is not None else request.get(self.subject)
        return NOTHING if text is None else self.table.find(text)


class HostnameLookup:
    """`hostname`, `hostname_suffix` or `hostname_regex`: the verified names or, without any, the claimed names."""

    def __init__(self, table: DomainTable | ExpressionTable) -> None:
        self.table = table

    def find(self, _request: Request, known: Known) -> Hits:
        identity = known.identity
        if identity is None:
            return NOTHING
        names = identity.verified or identity.claimed
        if len(names) == 1:
            return self.table.find(names[0])
        return merge([self.table.find(name) for name in names])


class StatusLookup:
    """`reverse_dns`."""

    def __init__(self, hits: dict[Status, Hits]) -> None:
        self.hits = hits

    def find(self, _request: Request, known: Known) -> Hits:
        return NOTHING if known.identity is None else self.hits[known.identity.status]


class GenericLookup:
    """`hostname_generic`: whether a verified name, or else a claimed one, contains the client's own address."""

    def __init__(self, is_generic: Callable[[bytes, Address], bool], hits: Hits) -> None:
        self._is_generic = is_generic
        self._hits = hits

    def find(self, request: Request, known: Known) -> Hits:
        identity, address = known.identity, request.address
        if identity is None or address is None:
            return NOTHING
        names = identity.verified or identity.claimed
        return self._hits if any(self._is_generic(name, address) for name in names) else NOTHING

    def conditions_of(self, entry: bytes) -> frozenset[int]:
        """The conditions that hold because of an entry (`yes`)."""
        return self._hits.conditions if entry == b"yes" else NOTHING.conditions


class SystemLookup:
    """`asn`: the autonomous system that announces the client's address."""

    def __init__(self, hits: dict[int, Hits]) -> None:
        self._hits = hits

    def find(self, _request: Request, known: Known) -> Hits:
        return NOTHING if known.owner is None else self._hits.get(known.owner.asn, NOTHING)

    def conditions_of(self, entry: bytes) -> frozenset[int]:
        """The conditions that hold because of an entry (`9371`)."""
        return self._hits.get(int(entry), NOTHING).conditions


class SystemNameLookup:
    """`asn_name_regex`: the name of the client's autonomous system. An address without a record has none."""

    def __init__(self, table: ExpressionTable) -> None:
        self._table = table

    def find(self, _request: Request, known: Known) -> Hits:
        owner = known.owner
        if owner is None or not owner.asn:
            return NOTHING
        return self._table.find(owner.asn_name.encode("utf-8", "replace"))


class CountryLookup:
    """`country`: the country of the client's network."""

    def __init__(self, hits: dict[str, Hits]) -> None:
        self._hits = hits

    def find(self, _request: Request, known: Known) -> Hits:
        return NOTHING if known.owner is None else self._hits.get(known.owner.country, NOTHING)

    def conditions_of(self, entry: bytes) -> frozenset[int]:
        """The conditions that hold because of an entry (`JP`)."""
        return self._hits.get(entry.decode(), NOTHING).conditions


class CounterLookup:
    """`counter`: the conditions whose number is reached. The values are passed in, because the request does not have
    them.
    """

    def __init__(self, terms: Iterable[tuple[str, int, int]], hits: Mapping[int, Hits]) -> None:
        """Takes (counter, least value, condition) of every comparison, and the hits of each condition."""
        self._terms: dict[str, list[tuple[int, int]]] = {}
        for name, minimum, condition in terms:
            self._terms.setdefault(name, []).append((minimum, condition))
        for pairs in self._terms.values():
            pairs.sort()
        self._hits = hits
        self.everything = merge([*hits.values()])

    def of_values(self, values: Mapping[str, int]) -> Hits:
        """Returns the hits of these values."""
        found: list[Hits] = []
        for name, value in values.items():
            terms = self._terms.get(name)
            if terms is not None and value >= terms[0][0]:  # usually none is reached
                found += (self._hits[condition] for _, condition in terms[: bisect_right(terms, (value, _LAST))])
        return merge(found) if found else NOTHING

    def value_of(self, condition: int, values: Mapping[str, int]) -> int | None:
        """Returns the value of the first counter that makes a condition hold."""
        for name, pairs in self._terms.items():
            if any(number == condition and minimum <= values.get(name, 0) for minimum, number in pairs):
                return values[name]
        return None

    def find(self, _request: Request, _known: Known) -> Hits:
        """Returns no hits: the engine calls `of_values` instead."""
        return NOTHING


# Sorts after the number of every condition.
_LAST = 1 << 62

Lookup: TypeAlias = (
    "AddressLookup | NameLookup | ValueLookup | ExpressionLookup | HostnameLookup | StatusLookup | GenericLookup"
    " | SystemLookup | SystemNameLookup | CountryLookup | CounterLookup"
)


def merge(found: Sequence[Hits]) -> Hits:
    """Combines hits."""
    if len(found) == 2:  # usually at most one is not empty
        if not found[0].conditions:
            return found[1]
        if not found[1].conditions:
            return found[0]
    found = [hits for hits in found if hits.conditions]
    if not found:
        return NOTHING
    if len(found) == 1:
        return found[0]
    conditions = frozenset[int]().union(*(hits.conditions for hits in found))
    return Hits(conditions, tuple(sorted({rule for hits in found for rule in hits.rules})))
