"""Rules that no request can reach, because one rule above decides wherever they would match.

Sound, not complete: what is reported is certain. A rule is covered by an earlier one if each condition of the
earlier rule is implied by some condition of the later. The two principles make implication depend on where a
condition stands: a host name that blocks may be a claimed one, which lets no client through, and a DUNNO rule that is
unknown while DNS fails has an effect even though it does not match.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

from policyd.core.ruleset import Kind, Subject, Verb
from policyd.core.tables import LongList, Networks

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

    from policyd.config.checks.coverage import Coverage
    from policyd.config.written import WrittenCondition, WrittenRule
    from policyd.core.tables import PlainEntries

# Conditions with more entries than this are compared as a whole (the same list) only, where they would have to be
# contained in another: a look at each of a million entries would make `policyd check` slower than the load.
MAX_ENTRIES = 100_000

# Pairs of rules and entries that are compared in one look at a ruleset, in half a second. Ten thousand rules of
# different names and networks make a seventh of them; thousands that have entries in common would be compared each with
# each, and what is covered among the last of those is not seen.
MAX_COMPARED = 100_000

# What a condition consists of: a list as a whole, or an entry of a short one.
Key: TypeAlias = "tuple[Hashable, ...]"


def unreachable(rules: Sequence[WrittenRule], coverage: Coverage) -> Iterator[tuple[WrittenRule, WrittenRule]]:
    """Each rule that is covered, with the first rule that covers it."""
    covers = _Covers(coverage)
    for written in rules:
        cover = covers.find(written)
        rule = written.rule
        if cover is not None:
            yield written, cover  # the other rule covers all that this one would
        elif not rule.observe and rule.expires is None and not rule.exceptions:
            covers.add(written)


def always_excepted(written: WrittenRule, coverage: Coverage) -> WrittenCondition | None:
    """The exception of a rule that holds wherever its match does, so that the rule never has an effect; None if there
    is none."""
    for exception in written.exceptions:
        if any(_is_excepted(condition, exception, coverage, written.rule.action.verb) for condition in written.match):
            return exception
    return None


def _is_excepted(one: WrittenCondition, exception: WrittenCondition, coverage: Coverage, verb: Verb) -> bool:
    if one.condition.subject != exception.condition.subject or not any(map(len, one.collections)):
        return False
    if one.condition.kind is Kind.LISTED:  # which entries satisfy it depends on how many must
        return False
    # The match of a blocking rule sees claimed names too, and its exception verified names only.
    if one.condition.subject == Subject.HOSTNAME and verb is not Verb.DUNNO:
        return False
    if _whole(one) <= _whole(exception):
        return True
    return _is_small(one) and all(exception.condition.number in holding for holding in coverage.of_entries(one))


class _Covers:
    """The rules so far that always decide where they match, found by what their conditions contain."""

    def __init__(self, coverage: Coverage) -> None:
        self._coverage = coverage
        self._by_key: dict[Key, list[WrittenRule]] = defaultdict(list)
        self._by_condition: dict[int, WrittenRule] = {}
        self._left = MAX_COMPARED

    def add(self, written: WrittenRule) -> None:
        """A rule that this one covers implies each condition of this one, so any of them is enough to be found by: the
        one by which the fewest others are found."""
        of_each = [(condition, _keys(condition)) for condition in written.match]
        chosen, keys = min(of_each, key=lambda one: max(len(self._by_key.get(key, ())) for key in one[1]))
        self._by_condition[chosen.condition.number] = written
        for key in keys:
            self._by_key[key].append(written)

    def find(self, later: WrittenRule) -> WrittenRule | None:
        """The first rule that covers this one, as far as MAX_COMPARED allows."""
        candidates: dict[int, WrittenRule] = {}
        for condition in later.match:
            found = [candidate for key in _whole(condition) for candidate in self._by_key.get(key, ())]
            holding = next(self._coverage.of_entries(condition), frozenset()) if _is_small(condition) else frozenset()
            found += (self._by_condition[number] for number in holding if number in self._by_condition)
            candidates.update((candidate.rule.number, candidate) for candidate in found)
        for _, candidate in sorted(candidates.items()):
            self._left -= 1
            if self._left < 0:
                return None
            if all(self._is_implied(wanted, candidate, later) for wanted in candidate.match):
                return candidate
        return None

    def _is_implied(self, wanted: WrittenCondition, earlier: WrittenRule, later: WrittenRule) -> bool:
        """Whether the earlier rule's condition holds wherever the later rule has an effect."""
        return any(
            _may_imply(condition, wanted, earlier, later)
            and (_whole(condition) <= _whole(wanted) or (_is_small(condition) and self._are_all_in(wanted, condition)))
            for condition in later.match
        )

    def _are_all_in(self, wanted: WrittenCondition, one: WrittenCondition) -> bool:
        for holding in self._coverage.of_entries(one):
            self._left -= 1
            if self._left < 0 or wanted.condition.number not in holding:
                return False
        return True


def _may_imply(one: WrittenCondition, wanted: WrittenCondition, earlier: WrittenRule, later: WrittenRule) -> bool:
    """Whether to compare two conditions at all: the same subject, seen in the same light."""
    if one.condition.subject != wanted.condition.subject or not any(map(len, one.collections)):
        return False
    if one.condition.kind is Kind.LISTED:
        return False
    if not one.condition.needs_identity:
        return True
    earlier_lets_through = earlier.rule.action.verb is Verb.DUNNO
    later_lets_through = later.rule.action.verb is Verb.DUNNO
    if earlier_lets_through == later_lets_through:
        return True
    # A DUNNO rule below a blocking one leaves a doubt while DNS fails. A blocking one below a DUNNO rule sees
    # claimed names; but a status is what it is.
    return earlier_lets_through and one.condition.subject == Subject.REVERSE_DNS


def _is_small(one: WrittenCondition) -> bool:
    return sum(map(len, one.collections)) <= MAX_ENTRIES


def _whole(one: WrittenCondition) -> frozenset[Key]:
    """Keys for the collections as such: the same list in two conditions of one kind."""
    return frozenset(
        (one.condition.subject, one.condition.kind, entries.key if isinstance(entries, LongList) else id(entries))
        for entries in one.collections
    )


def _keys(one: WrittenCondition) -> frozenset[Key]:
    """Keys by which it can be told how many rules have the same list or, of short lists, the same entries."""
    subject, kind = one.condition.subject, one.condition.kind
    short = (entries for entries in one.collections if not isinstance(entries, LongList))
    return _whole(one) | {(subject, kind, entry) for entries in short for entry in _hashable(entries)}


def _hashable(entries: PlainEntries) -> Iterable[Hashable]:
    return chain(entries.v4, entries.v6) if isinstance(entries, Networks) else entries
