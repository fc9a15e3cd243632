"""From what a request carries to the conditions that hold, in time that does not grow with the ruleset.

All entries of all rules stand in a few tables (`policyd.core.tables`): one of address ranges, one of names for each
attribute that is a host name or a mail address's domain, one of exact values, one set of expressions for each
attribute that has some. Each rule is filed under one of its conditions only, the one that will hold for the fewest
clients; the engine checks the others when the rule comes up.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from policyd.core.facts import Needs
from policyd.core.identity import Status
from policyd.core.lookups import (
    AddressLookup,
    DomainTable,
    ExpressionLookup,
    ExpressionTable,
    HostnameLookup,
    Lookup,
    NameLookup,
    StatusLookup,
    ValueLookup,
)
from policyd.core.ruleset import Action, Condition, Kind, Subject, Verb
from policyd.core.tables import Entries, Filing, NameTable, Networks, RangeTable, network_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from policyd.core.ruleset import Rule


# --- What is compared ---------------------------------------------------------------------------------------------


# --- Entries, as the loader brings them ---------------------------------------------------------------------------


# --- Tables -------------------------------------------------------------------------------------------------------


# --- Lookups: one for each way in which an attribute is looked at ---------------------------------------------------


# --- The index ------------------------------------------------------------------------------------------------------


class RuleBucket(NamedTuple):
    """A lookup, and the rules that are filed under conditions which it answers."""

    lookup: int  # its place in `Index.lookups`
    first: int  # the first such rule: until the ruleset has come to it, the lookup need not be made
    needs_identity: bool
    surely_needed: bool  # whether nothing but the identity can rule `first` out
    rules: tuple[int, ...]  # all such rules, in order; only where `needs_identity`
    exempting: tuple[int, ...]  # of these, the enforcing DUNNO rules


# A lookup's place and a condition's number, of each of some conditions.
Pairs: TypeAlias = "tuple[tuple[int, int], ...]"


class Plan(NamedTuple):
    """How to check one rule that came up."""

    match: Pairs  # without the condition under which the rule is filed
    exceptions: Pairs
    match_identity: Pairs  # what needs the client's identity, all of it
    exceptions_identity: Pairs


class Index(NamedTuple):
    """Everything that the engine asks while it decides."""

    lookups: tuple[Lookup, ...]
    buckets: tuple[RuleBucket, ...]  # by `first`
    plans: tuple[Plan, ...]  # by the rule's number
    lookup_of: tuple[int, ...]  # by the condition's number
    needs: Needs  # everything that any of the rules may need


def build_index(rules: Sequence[Rule], entries: Mapping[int, Sequence[Entries]]) -> Index:
    """Files every entry of every condition.

    `entries` has, by the condition's number, the collections of its entries: `Networks`; folded names, with a
    leading dot where only names under it are meant; folded values; expressions; or statuses. A list that several
    conditions use is the same object in each. Conditions are numbered from 0 without a gap.

    Raises ValueError where an attribute's entries are more than a table can hold.
    """
    conditions = {c.number: c for rule in rules for c in (*rule.match, *rule.exceptions)}
    filed_under = {_filing_condition(rule, entries).number: rule.number for rule in rules}
    filing = Filing(filed_under)
    families: dict[tuple[str, Kind], list[Condition]] = defaultdict(list)
    for condition in conditions.values():
        kind: Kind = Kind.DOMAIN if condition.kind is Kind.NAME else condition.kind
        families[condition.subject, kind].append(condition)

    lookups: list[Lookup] = []
    lookup_of = [0] * len(conditions)
    # Networks last: what their million integers take for a while is not given back to the other tables.
    for (subject, kind), family in sorted(families.items(), key=lambda one: one[0][1] is Kind.NETWORK):
        for condition in family:
            lookup_of[condition.number] = len(lookups)
        lookups.append(_build_lookup(subject, kind, _collections(family, entries), filing))

    def pair(condition: Condition) -> tuple[int, int]:
        return lookup_of[condition.number], condition.number

    plans = tuple(
        Plan(
            tuple(pair(c) for c in rule.match if not c.needs_identity and c.number not in filed_under),
            tuple(pair(c) for c in rule.exceptions if not c.needs_identity),
            tuple(pair(c) for c in rule.match if c.needs_identity),
            tuple(pair(c) for c in rule.exceptions if c.needs_identity),
        )
        for rule in rules
    )
    needs = Needs(identity=any(condition.needs_identity for condition in conditions.values()))
    buckets = _buckets(rules, conditions, filed_under, lookup_of)
    return Index(tuple(lookups), buckets, plans, tuple(lookup_of), needs)


def _buckets(
    rules: Sequence[Rule],
    conditions: Mapping[int, Condition],
    filed_under: Mapping[int, int],
    lookup_of: Sequence[int],
) -> tuple[RuleBucket, ...]:
    by_lookup: dict[int, list[int]] = defaultdict(list)
    with_identity: set[int] = set()
    for condition, rule in filed_under.items():
        by_lookup[lookup_of[condition]].append(rule)
        if conditions[condition].needs_identity:
            with_identity.add(lookup_of[condition])
    buckets = []
    for lookup, numbers in by_lookup.items():
        numbers.sort()
        needs_identity = lookup in with_identity
        exempting = (n for n in numbers if rules[n].action.verb is Verb.DUNNO and not rules[n].observe)
        buckets.append(
            RuleBucket(
                lookup,
                numbers[0],
                needs_identity,
                needs_identity and _rests_on_identity(rules[numbers[0]]),
                tuple(numbers) if needs_identity else (),
                tuple(exempting) if needs_identity else (),
            )
        )
    return tuple(sorted(buckets, key=lambda bucket: bucket.first))


def _rests_on_identity(rule: Rule) -> bool:
    return rule.expires is None and all(c.needs_identity for c in (*rule.match, *rule.exceptions))


def _filing_condition(rule: Rule, entries: Mapping[int, Sequence[Entries]]) -> Condition:
    """The condition of a rule's match that is likely to hold for the fewest requests."""
    return min(rule.match, key=lambda condition: _breadth(condition, entries[condition.number]))


def _breadth(condition: Condition, collections: Sequence[Entries]) -> int:
    mail_or_helo = condition.subject in {"helo_name", "sender", "recipient"}
    match condition.kind:
        case Kind.NETWORK:
            return 8 if any(_has_wide(networks) for networks in collections) else 0
        case Kind.NAME | Kind.DOMAIN:
            return 1 if mail_or_helo else 2
        case Kind.VALUE:
            return 1 if mail_or_helo else 6
        case Kind.EXPRESSION if condition.subject == Subject.HOSTNAME:
            return 4
        case Kind.EXPRESSION:
            return 3 if mail_or_helo else 5
        case Kind.STATUS:
            return 7


def _has_wide(networks: Entries) -> bool:
    """Whether there is a network so wide that much of the Internet lies in it. Long lists have none."""
    return (
        isinstance(networks, Networks)
        and len(networks) < 1000
        and (any(packed & 0x3F < 6 for packed in networks.v4) or any(packed & 0xFF < 12 for packed in networks.v6))
    )


def _collections(
    family: Iterable[Condition], entries: Mapping[int, Sequence[Entries]]
) -> list[tuple[Entries, dict[Kind, set[int]]]]:
    """Each collection once, with the conditions that use it, by kind."""
    users: dict[int, tuple[Entries, dict[Kind, set[int]]]] = {}
    for condition in family:
        for collection in entries[condition.number]:
            _, by_kind = users.setdefault(id(collection), (collection, {}))
            by_kind.setdefault(condition.kind, set()).add(condition.number)
    return list(users.values())


def _build_lookup(
    subject: str, kind: Kind, collections: list[tuple[Any, dict[Kind, set[int]]]], filing: Filing
) -> Lookup:
    match kind:
        case Kind.NETWORK:
            v4: list[int] = []
            v6: list[int] = []
            for networks, users in collections:
                number = filing.number(users[kind])
                v4 += [network_key(packed, number) for packed in networks.v4]
                v6 += [network_key(packed, number) for packed in networks.v6]
            return AddressLookup(RangeTable.build(v4, v6, filing), filing.hits)
        case Kind.VALUE:
            return ValueLookup(subject, NameTable.build(_by_entry(collections, kind, filing)), filing.hits)
        case Kind.EXPRESSION:
            by_expression = _by_entry(collections, kind, filing)
            hits = tuple(filing.hits[number] for number in by_expression.values())
            expressions = ExpressionTable(tuple(by_expression), hits)
            return (
                HostnameLookup(expressions) if subject == Subject.HOSTNAME else ExpressionLookup(subject, expressions)
            )
        case Kind.STATUS:
            by_status = _by_entry(collections, kind, filing)
            return StatusLookup({status: filing.hits[by_status.get(status, 0)] for status in Status})
        case _:
            domains = _build_domains(collections, filing)
            return HostnameLookup(domains) if subject == Subject.HOSTNAME else NameLookup(subject, domains)


def _by_entry(collections: list[tuple[Any, dict[Kind, set[int]]]], kind: Kind, filing: Filing) -> dict[Any, int]:
    """Each entry with the number of the conditions that it satisfies."""
    numbers: dict[Any, int] = {}
    for entries, users in collections:
        number = filing.number(users[kind])
        if not numbers:
            numbers = dict.fromkeys(entries, number)
            continue
        for entry in entries:
            numbers[entry] = filing.union(numbers.get(entry, 0), number)
    return numbers


def _build_domains(collections: list[tuple[Any, dict[Kind, set[int]]]], filing: Filing) -> DomainTable:
    """Names and suffixes of all collections; a key's number stands for a pair (exact, under) of combinations."""
    known = [(0, 0)]  # pairs by number
    numbers = {(0, 0): 0}
    keys: dict[bytes, int] = {}

    def number_of(pair: tuple[int, int]) -> int:
        number = numbers.setdefault(pair, len(known))
        if number == len(known):
            known.append(pair)
        return number

    def add(names: Sequence[bytes], exact: int, under: int) -> None:
        nonlocal keys
        number = number_of((exact, under))
        if not keys:
            keys = dict.fromkeys(names, number)
            return
        for name in names:
            old = keys.get(name, 0)
            if not old:
                keys[name] = number
            elif old != number:
                old_exact, old_under = known[old]
                keys[name] = number_of((filing.union(old_exact, exact), filing.union(old_under, under)))

    for names, users in collections:
        whole = filing.number(users.get(Kind.NAME, ()))
        suffix = filing.number(users.get(Kind.DOMAIN, ()))
        only_under = [name[1:] for name in names if name.startswith(b".")]
        add(
            [name for name in names if not name.startswith(b".")] if only_under else names,
            filing.union(whole, suffix),
            suffix,
        )
        if only_under:
            add(only_under, 0, suffix)
            if whole:  # a HELO argument may be any word, one that begins with a dot too
                add([name for name in names if name.startswith(b".")], whole, 0)
    exact = [filing.hits[pair[0]] for pair in known]
    under = [filing.hits[pair[1]] for pair in known]
    return DomainTable(NameTable.build(keys), exact, under)


@dataclass(frozen=True, slots=True)
class Counts:
    """What was loaded, for the summary that `check`, start and reload print."""

    rules: int = 0
    networks: int = 0
    names: int = 0
    expressions: int = 0


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Rules in order, what decides if none of them does, and the index over all of their entries.

    `observe` is the top-level `mode: observe`: everything is decided, and every answer is DUNNO. `hash` is the
    first 8 hexadecimal digits of the SHA-256 over the rules file and each list file in order of appearance.
    """

    rules: tuple[Rule, ...]
    default: Action
    index: Index
    observe: bool = False
    hash: str = "00000000"
    counts: Counts = Counts()
