"""Builds the `policyd.core.index.Index` of a ruleset from its rules and their entries.

Each rule is filed under one of its conditions only, the condition that probably holds for the fewest clients; the
engine checks the others when the rule is a candidate. Long lists have separate tables, which serve other rules too.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from policyd.core.facts import Needs
from policyd.core.hits import hits_by_number, hits_of
from policyd.core.identity import Status
from policyd.core.index import LISTED, Index, ListTerm, ListTerms, ListUsers, Plan, RuleBucket
from policyd.core.lookups import (
    AddressLookup,
    CounterLookup,
    CountryLookup,
    DomainTable,
    ExpressionLookup,
    ExpressionTable,
    GenericLookup,
    HostnameLookup,
    Lookup,
    NameLookup,
    StatusLookup,
    SystemLookup,
    SystemNameLookup,
    ValueLookup,
)
from policyd.core.ruleset import Condition, Kind, Subject, Verb
from policyd.core.tables import NOTHING, Entries, LongList, NameTable, Networks, RangeTable
from policyd.tables.generic import is_generic

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from policyd.core.hits import HitsByNumber
    from policyd.core.public_suffix import RegistrableDomains
    from policyd.core.ruleset import Rule


class EntrySource(NamedTuple):
    """Entries, the kind of the conditions that use them, and the numbers of these conditions."""

    entries: Entries
    kind: Kind
    users: frozenset[int]


class BuiltTable(NamedTuple):
    """A table; for each number in it, the mask of the sources that it stands for; and the sources.

    In a table of networks, the source at place n has the bit 1 << n. In a table of names it has two bits: 1 << 2n for
    entries, and 1 << 2n + 1 for entries with a leading dot, which stand only for the names under them. A place is None
    if no condition uses its list.
    """

    table: RangeTable | NameTable
    masks: Sequence[int]
    places: Sequence[EntrySource | None]


_NO_CONDITIONS: frozenset[int] = frozenset()

# Makes an attribute's tables of networks, names or values, at most two each (NAME and DOMAIN share tables).
MakeTables: TypeAlias = "Callable[[str, Sequence[EntrySource]], Iterable[BuiltTable]]"


def build_index(
    rules: Sequence[Rule],
    entries: Mapping[int, Sequence[Entries]],
    make_tables: MakeTables,
    hostname_lists: AbstractSet[str] = frozenset(),
    domains: RegistrableDomains | None = None,
    *,
    counter_conditions: Sequence[Sequence[Condition]] = (),
) -> Index:
    """Builds the index.

    `entries` has, by the condition's number, the collections of its entries: `Networks`; folded names, with a leading
    dot if only names under it are meant; folded values; expressions; statuses; names of DNS lists; or a `LongList` of
    networks, names or values. A list that several conditions use is the same object in each. Conditions are numbered
    from 0 without a gap. `hostname_lists` names the DNS lists that are asked for host names. `domains` is needed only
    for `hostname_generic`. `counter_conditions` has, for each counter, the conditions on the requests that it counts.

    Raises ValueError if an attribute's entries are more than a table can hold.
    """
    conditions = {c.number: c for rule in rules for c in (*rule.match, *rule.exceptions)}
    conditions |= {c.number: c for where in counter_conditions for c in where}
    # A rule with an empty list in its match never matches, so it is not filed, and causes no lookups.
    filed_under = {
        _narrowest_condition(rule, entries).number: rule.number for rule in rules if not _has_empty(rule, entries)
    }
    families: dict[tuple[str, Kind], list[Condition]] = defaultdict(list)
    list_terms: dict[int, ListTerm] = {}
    for condition in conditions.values():
        if condition.kind is Kind.LISTED:
            names = tuple(dict.fromkeys(str(name) for names in entries[condition.number] for name in _texts(names)))
            by_hostname = not hostname_lists.isdisjoint(names)
            list_terms[condition.number] = ListTerm(names, condition.at_least, by_hostname)
            continue
        kind: Kind = Kind.DOMAIN if condition.kind is Kind.NAME else condition.kind
        families[condition.subject, kind].append(condition)

    lookups: list[Lookup] = []
    lookup_of = [0] * len(conditions)
    # Networks last: the other tables could not reuse the memory of their temporary integers, up to a million.
    for (subject, kind), family in sorted(families.items(), key=lambda item: item[0][1] is Kind.NETWORK):
        for condition in family:
            lookup_of[condition.number] = len(lookups)
        lookups.append(
            _build_lookup(subject, kind, _sources(family, entries), filed_under, make_tables, domains=domains)
        )

    def pair(condition: Condition) -> tuple[int, int]:
        return lookup_of[condition.number], condition.number

    plans = tuple(
        Plan(
            tuple(pair(c) for c in rule.match if not c.needs_facts and c.number not in filed_under),
            tuple(pair(c) for c in rule.exceptions if not c.needs_facts),
            tuple(pair(c) for c in rule.match if c.needs_identity),
            tuple(pair(c) for c in rule.exceptions if c.needs_identity),
            _list_terms(rule, list_terms),
        )
        for rule in rules
    )
    needs = Needs(
        any(c.needs_identity for c in conditions.values()) or any(term.by_hostname for term in list_terms.values()),
        frozenset(name for term in list_terms.values() for name in term.names),
        any(c.kind is Kind.COUNTER for c in conditions.values()),
        any(rule.action.verb is Verb.GREYLIST for rule in rules),
    )
    for number in list_terms:
        lookup_of[number] = LISTED
    buckets = _buckets(rules, conditions, filed_under, lookup_of, plans)
    return Index(
        tuple(lookups),
        buckets,
        plans,
        tuple(lookup_of),
        needs,
        list_terms,
        hostname_lists,
        not needs.counters and not needs.greylist,
        next((place for place, lookup in enumerate(lookups) if isinstance(lookup, CounterLookup)), -1),
        tuple(tuple(map(pair, where)) for where in counter_conditions),
    )


def _texts(entries: Entries) -> Sequence[bytes] | Sequence[str]:
    assert not isinstance(entries, Networks | LongList)
    return entries


def _list_terms(rule: Rule, list_terms: Mapping[int, ListTerm]) -> ListTerms | None:
    match = tuple(list_terms[c.number] for c in rule.match if c.number in list_terms)
    exceptions = tuple(list_terms[c.number] for c in rule.exceptions if c.number in list_terms)
    terms = (*match, *exceptions)
    if not terms:
        return None
    names = frozenset(name for term in terms for name in term.names)
    by_hostname = any(term.by_hostname for term in terms)
    waits_for_all = not by_hostname and all(len(term.names) >= term.at_least for term in terms)
    return ListTerms(match, exceptions, names, by_hostname, waits_for_all)


def _buckets(
    rules: Sequence[Rule],
    conditions: Mapping[int, Condition],
    filed_under: Mapping[int, int],
    lookup_of: Sequence[int],
    plans: Sequence[Plan],
) -> tuple[tuple[int, int, bool, RuleBucket], ...]:
    by_lookup: dict[int, list[int]] = defaultdict(list)
    with_facts: set[int] = set()
    for condition, rule in filed_under.items():
        by_lookup[lookup_of[condition]].append(rule)
        if conditions[condition].needs_facts:
            with_facts.add(lookup_of[condition])
    buckets = []
    for lookup, numbers in by_lookup.items():
        numbers.sort()
        needs_facts = lookup in with_facts
        exempting = [n for n in numbers if rules[n].action.verb is Verb.DUNNO and not rules[n].observe]
        buckets.append(
            RuleBucket(
                lookup,
                numbers[0],
                needs_facts,
                needs_facts and _rests_on_identity(rules[numbers[0]]),
                tuple(numbers) if needs_facts else (),
                tuple(exempting) if needs_facts else (),
                _list_users(numbers, exempting, plans, is_filed=lookup == LISTED) if needs_facts else (),
            )
        )
    # The fields that each request reads come first: an element of a plain tuple is read faster than a named field.
    return tuple(
        (bucket.first, bucket.lookup, bucket.needs_facts, bucket)
        for bucket in sorted(buckets, key=lambda bucket: bucket.first)
    )


def _list_users(
    numbers: Sequence[int], exempting: Sequence[int], plans: Sequence[Plan], *, is_filed: bool
) -> tuple[ListUsers, ...]:
    """Each DNS list that these rules use, with its rules. `is_filed` says that the rules are filed under `listed`."""
    users: dict[str, list[int]] = {}
    filed: dict[str, list[int]] = defaultdict(list)
    for number in numbers:
        terms = plans[number].lists
        if terms is None:
            continue
        for term in (*terms.match, *terms.exceptions):
            for name in term.names:
                rules = users.setdefault(name, [])
                if not rules or rules[-1] != number:
                    rules.append(number)
                if is_filed and term in terms.match:
                    filed[name].append(number)
    lets_through = frozenset(exempting)
    return tuple(
        ListUsers(name, tuple(rules), tuple(filed[name]), tuple(n for n in filed[name] if n in lets_through))
        for name, rules in users.items()
    )


def _rests_on_identity(rule: Rule) -> bool:
    return rule.expires is None and all(c.needs_identity for c in (*rule.match, *rule.exceptions))


def _has_empty(rule: Rule, entries: Mapping[int, Sequence[Entries]]) -> bool:
    """Whether a condition of the rule's match has no entry, for example because a list is empty."""
    return any(
        condition.kind in _WITH_ENTRIES and not any(map(len, entries[condition.number])) for condition in rule.match
    )


def _narrowest_condition(rule: Rule, entries: Mapping[int, Sequence[Entries]]) -> Condition:
    """The condition of a rule's match that is likely to hold for the fewest requests."""
    return min(rule.match, key=lambda condition: _breadth(condition, entries[condition.number]))


# Kinds of conditions that never hold without an entry.
_WITH_ENTRIES = frozenset({Kind.NETWORK, Kind.NAME, Kind.DOMAIN, Kind.VALUE, Kind.EXPRESSION})


# Attributes with few different values, so that each value is that of many requests.
_FEW_VALUES = frozenset(
    {"request", "protocol_state", "protocol_name", "encryption_protocol", "policy_context", "country"}
)


# Breadth of a condition, lower if it holds for fewer requests. The first number is for the HELO name, the sender or the
# recipient, the second for everything else.
_BREADTHS = {
    Kind.NAME: (1, 2),
    Kind.DOMAIN: (1, 2),
    Kind.VALUE: (1, 5),
    Kind.EXPRESSION: (3, 5),
    Kind.LISTED: (6, 6),
    Kind.GENERIC: (6, 6),
    Kind.STATUS: (8, 8),
    Kind.COUNTER: (7, 7),
}


def _breadth(condition: Condition, collections: Sequence[Entries]) -> int:
    mail_or_helo = condition.subject in {"helo_name", "sender", "recipient"}
    if condition.kind is Kind.NETWORK:
        return 9 if any(_has_wide(networks) for networks in collections) else 0
    if condition.kind is Kind.EXPRESSION and condition.subject == Subject.HOSTNAME:
        return 4
    if condition.kind is Kind.VALUE and condition.subject in _FEW_VALUES:
        return 7
    if condition.kind is Kind.VALUE and condition.subject == Subject.ASN:
        return 2
    breadth_of_mail_or_helo, breadth = _BREADTHS[condition.kind]
    return breadth_of_mail_or_helo if mail_or_helo else breadth


def _has_wide(networks: Entries) -> bool:
    """Whether there is a network that covers much of the Internet; False for a list of 1,000 networks or more."""
    return (
        isinstance(networks, Networks)
        and len(networks) < 1000
        and (any(packed & 0x3F < 6 for packed in networks.v4) or any(packed & 0xFF < 12 for packed in networks.v6))
    )


def _sources(family: Iterable[Condition], entries: Mapping[int, Sequence[Entries]]) -> list[EntrySource]:
    """Makes a source of each collection and each kind of condition that uses it.

    A long list is one collection, even if there are several objects for it.
    """
    users: dict[tuple[Hashable, Kind], tuple[Entries, set[int]]] = {}
    for condition in family:
        for collection in entries[condition.number]:
            key = collection.key if isinstance(collection, LongList) else id(collection)
            _, numbers = users.setdefault((key, condition.kind), (collection, set()))
            numbers.add(condition.number)
    return [EntrySource(collection, kind, frozenset(numbers)) for (_, kind), (collection, numbers) in users.items()]


def _build_lookup(  # noqa: PLR0911 - a return for each kind
    subject: str,
    kind: Kind,
    sources: list[EntrySource],
    rule_of: Mapping[int, int],
    make_tables: MakeTables,
    *,
    domains: RegistrableDomains | None,
) -> Lookup:
    match kind:
        case Kind.EXPRESSION:
            users = _users_of_entries(sources)
            hits = tuple(hits_of(conditions, rule_of) for conditions in users.values())
            expressions = ExpressionTable(tuple(users), hits)
            if subject == Subject.ASN_NAME:
                return SystemNameLookup(expressions)
            return (
                HostnameLookup(expressions) if subject == Subject.HOSTNAME else ExpressionLookup(subject, expressions)
            )
        case Kind.COUNTER:
            users = _users_of_entries(sources)
            terms = ((*_comparison(entry), c) for entry, conditions in users.items() for c in conditions)
            numbers = frozenset(c for conditions in users.values() for c in conditions)
            return CounterLookup(terms, {c: hits_of({c}, rule_of) for c in numbers})
        case Kind.STATUS:
            users = _users_of_entries(sources)
            return StatusLookup({s: hits_of(users[s], rule_of) if s in users else NOTHING for s in Status})
        case Kind.NETWORK:
            return AddressLookup([*_range_tables(subject, sources, rule_of, make_tables)])
        case Kind.VALUE if subject == Subject.ASN:
            systems = _users_of_entries(sources)
            return SystemLookup({int(asn): hits_of(users, rule_of) for asn, users in systems.items()})
        case Kind.VALUE if subject == Subject.COUNTRY:
            countries = _users_of_entries(sources)
            return CountryLookup({country.decode(): hits_of(users, rule_of) for country, users in countries.items()})
        case Kind.GENERIC:
            if domains is None:
                raise TypeError("hostname_generic needs registrable domains")
            return GenericLookup(
                partial(is_generic, domains=domains),
                hits_of({user for source in sources for user in source.users}, rule_of),
            )
        case Kind.VALUE:
            values = _name_tables(subject, sources, rule_of, make_tables)
            return ValueLookup(subject, [(table, exact) for table, exact, _ in values])
        case _:
            names = DomainTable([*_name_tables(subject, sources, rule_of, make_tables)])
            return HostnameLookup(names) if subject == Subject.HOSTNAME else NameLookup(subject, names)


def _comparison(entry: str) -> tuple[str, int]:
    name, _, minimum = entry.rpartition(">=")
    return name, int(minimum)


def _users_of_entries(sources: Iterable[EntrySource]) -> dict[Any, set[int]]:
    """Each entry with the conditions that use it."""
    users: dict[Any, set[int]] = defaultdict(set)
    for source in sources:
        assert not isinstance(source.entries, Networks | LongList)
        for entry in source.entries:
            users[entry] |= source.users
    return users


def _range_tables(
    subject: str, sources: Sequence[EntrySource], rule_of: Mapping[int, int], make_tables: MakeTables
) -> Iterator[tuple[RangeTable, HitsByNumber]]:
    for table, masks, places in make_tables(subject, sources):
        assert isinstance(table, RangeTable)
        yield (
            table,
            hits_by_number(masks, [_NO_CONDITIONS if place is None else place.users for place in places], rule_of),
        )


def _name_tables(
    subject: str, sources: Sequence[EntrySource], rule_of: Mapping[int, int], make_tables: MakeTables
) -> Iterator[tuple[NameTable, HitsByNumber, HitsByNumber]]:
    """Yields each table with the hits of its numbers: for the name itself, and for the names under it."""
    for table, masks, places in make_tables(subject, sources):
        assert isinstance(table, NameTable)
        exact: list[frozenset[int]] = []
        under: list[frozenset[int]] = []
        for place in places:
            users = _NO_CONDITIONS if place is None else place.users
            exact += users, _NO_CONDITIONS
            under += (
                (users, users) if place is not None and place.kind is Kind.DOMAIN else (_NO_CONDITIONS, _NO_CONDITIONS)
            )
        of_exact = hits_by_number(masks, exact, rule_of)
        yield table, of_exact, hits_by_number(masks, under, rule_of)
