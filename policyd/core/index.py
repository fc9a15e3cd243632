"""The index of a ruleset, to find the conditions that hold for a request in time that does not grow with the ruleset.

The entries of all rules are in a few tables (`policyd.core.tables`). There is a table of address ranges, and for each
attribute a table of its names, a table of its exact values and a set of its expressions, if rules compare the attribute
with these. Long lists have separate tables. Each rule is *filed* under one condition of its match, and is a candidate
for a request if this condition holds, or may hold. `policyd.tables.index` builds the index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from policyd.core.facts import Needs
    from policyd.core.lookups import Lookup
    from policyd.core.owners import Owners
    from policyd.core.ruleset import Action, Rule


class ListUsers(NamedTuple):
    """The rules of a bucket that use a DNS list, in order."""

    name: str
    users: tuple[int, ...]  # all rules with the list in their match or except
    filed: tuple[int, ...]  # those that are filed under a `listed` condition with this list
    exempting: tuple[int, ...]  # the enforcing DUNNO rules in `filed`


class RuleBucket(NamedTuple):
    """A lookup, and the rules that are filed under the conditions that it finds.

    The rules filed under `listed` are one bucket, whose lookup is LISTED; `lists` says which list finds which rules.
    """

    lookup: int  # its place in `Index.lookups`
    first: int  # the first of these rules: the lookup is not needed before this rule has its turn
    needs_facts: bool  # whether these conditions need the client's identity or DNS lists
    surely_needed: bool  # whether only the identity can rule out `first`
    rules: tuple[int, ...]  # all of these rules, in order; empty without `needs_facts`
    exempting: tuple[int, ...]  # the enforcing DUNNO rules in `rules`
    lists: tuple[ListUsers, ...]  # the DNS lists that these rules use


# The place of the DNS lists, which have no lookup: their answers are passed in.
LISTED: Final = -1


# Pairs of a lookup's place and a condition's number.
Pairs: TypeAlias = "tuple[tuple[int, int], ...]"


class ListTerm(NamedTuple):
    """A `listed` condition: at least this number of these lists must say *listed*."""

    names: tuple[str, ...]
    at_least: int
    by_hostname: bool  # at least one of the lists is asked for host names, so the client's identity is needed first


class ListTerms(NamedTuple):
    """The `listed` conditions of one rule."""

    match: tuple[ListTerm, ...]
    exceptions: tuple[ListTerm, ...]
    names: frozenset[str]  # of all lists in these conditions
    by_hostname: bool  # at least one of the lists is asked for host names
    waits_for_all: bool  # while no list has answered, the rule waits for every one of them


class Plan(NamedTuple):
    """The steps that check one candidate rule."""

    match: Pairs  # conditions that need no facts, without the condition under which the rule is filed
    exceptions: Pairs  # exceptions that need no facts
    match_identity: Pairs  # conditions that need the client's identity, all of them
    exceptions_identity: Pairs
    lists: ListTerms | None = None


class Index(NamedTuple):
    """The lookups and plans that the engine uses to decide."""

    lookups: tuple[Lookup, ...]
    buckets: tuple[tuple[int, int, bool, RuleBucket], ...]  # (first, lookup, needs_facts, bucket), sorted
    plans: tuple[Plan, ...]  # by the rule's number
    lookup_of: tuple[int, ...]  # by the condition's number
    needs: Needs  # all facts that any rule may need
    list_terms: Mapping[int, ListTerm]  # by the number of a `listed` condition
    hostname_lists: AbstractSet[str]  # DNS lists that are asked for host names
    needs_only_dns: bool  # none of the rules needs counters or greylisting
    counter_lookup: int = -1  # the place of the lookup of counters; -1 if there is none
    counter_conditions: tuple[Pairs, ...] = ()  # by counter: the conditions on the requests that it counts


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of what was loaded, for the summary that `check`, start and reload print."""

    rules: int = 0
    networks: int = 0
    names: int = 0
    expressions: int = 0


class Counter(NamedTuple):
    """A counter: its definition, which memory reads, and whether it counts in every state or only at RCPT."""

    name: str
    definition: Any
    any_state: bool


@dataclass(frozen=True, slots=True)
class Ruleset:
    """The rules in order, the default action, and the index over all entries.

    `observe` is the top-level `mode: observe`: decisions are made and logged, and every answer is DUNNO. `hash` is the
    first 8 hexadecimal digits of the SHA-256 over the rules file and each list file, in order of appearance, without
    lists that have `from` or `local`. `owners` are the databases of networks, None if none is declared.
    """

    rules: tuple[Rule, ...]
    default: Action
    index: Index
    observe: bool = False
    hash: str = "00000000"
    counts: Counts = Counts()
    dns_lists: tuple[Any, ...] = ()  # definitions of the DNS lists that a rule uses; policyd.dns reads them
    owners: Owners | None = None
    counters: tuple[Counter, ...] = ()
    greylist: Any = None  # the settings of greylisting, which memory reads; None if no rule greylists
