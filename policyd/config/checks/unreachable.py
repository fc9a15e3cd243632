"""Finds rules that no request can reach, because a rule above decides whenever they would match, or their own `except`
holds.

Sound, not complete: a reported rule is certainly unreachable. A rule is covered by an earlier rule if each condition of
the earlier rule is implied by some condition of the later. The two principles limit implication: a blocking rule also
uses claimed names, a DUNNO rule only verified names; and a DUNNO rule that is unknown while DNS fails has an effect,
even though it does not match.
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

# Maximum number of entries of a condition that are compared one by one with an earlier condition; longer lists are only
# compared as a whole (the same list). Comparing a million entries would make `policyd check` slower than the load.
MAX_ENTRIES = 100_000

# Maximum number of pairs of rules and entries compared in a check, about half a second. Ten thousand rules with
# different names and networks need a seventh of that; for thousands of rules with common entries every pair would be
# compared, so covered rules among the last of these are not found.
MAX_COMPARED = 100_000

# A part of a condition: a list as a whole, or an entry of a short list.
Key: TypeAlias = "tuple[Hashable, ...]"


def unreachable(rules: Sequence[WrittenRule], coverage: Coverage) -> Iterator[tuple[WrittenRule, WrittenRule]]:
    """Yields each rule that is covered, with the first rule that covers it."""
    covers = _Covers(coverage)
    for written in rules:
        cover = covers.find(written)
        rule = written.rule
        if cover is not None:
            yield written, cover  # not added: the other rule covers whatever this rule would
        elif not rule.observe and rule.expires is None and not rule.exceptions:
            covers.add(written)


def always_excepted(written: WrittenRule, coverage: Coverage) -> WrittenCondition | None:
    """Returns the exception of a rule that holds whenever the rule's match does, so that the rule never has an effect;
    None without such an exception.
    """
    for exception in written.exceptions:
        if any(_is_excepted(condition, exception, coverage, written.rule.action.verb) for condition in written.match):
            return exception
    return None


def _is_excepted(condition: WrittenCondition, exception: WrittenCondition, coverage: Coverage, verb: Verb) -> bool:
    if condition.condition.subject != exception.condition.subject or not any(map(len, condition.collections)):
        return False
    if condition.condition.kind is Kind.LISTED:  # `at_least` decides how many entries must hold
        return False
    # The match of a blocking rule also uses claimed names, its `except` only verified names.
    if condition.condition.subject == Subject.HOSTNAME and verb is not Verb.DUNNO:
        return False
    if _collection_keys(condition) <= _collection_keys(exception):
        return True
    return _is_small(condition) and all(
        exception.condition.number in holding for holding in coverage.of_entries(condition)
    )


class _Covers:
    """Earlier rules that always decide if they match, indexed by the parts of their conditions."""

    def __init__(self, coverage: Coverage) -> None:
        self._coverage = coverage
        self._by_key: dict[Key, list[WrittenRule]] = defaultdict(list)
        self._by_condition: dict[int, WrittenRule] = {}
        self._left = MAX_COMPARED

    def add(self, written: WrittenRule) -> None:
        """Indexes the rule by one condition, which is enough: a covered rule implies all conditions.

        It is the condition that the fewest rules share.
        """
        with_keys = [(condition, _keys(condition)) for condition in written.match]
        chosen, keys = min(with_keys, key=lambda pair: max(len(self._by_key.get(key, ())) for key in pair[1]))
        self._by_condition[chosen.condition.number] = written
        for key in keys:
            self._by_key[key].append(written)

    def find(self, later: WrittenRule) -> WrittenRule | None:
        """The first rule that covers this one, as far as MAX_COMPARED allows."""
        candidates: dict[int, WrittenRule] = {}
        for condition in later.match:
            found = [candidate for key in _collection_keys(condition) for candidate in self._by_key.get(key, ())]
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
            and (
                _collection_keys(condition) <= _collection_keys(wanted)
                or (_is_small(condition) and self._are_all_in(wanted, condition))
            )
            for condition in later.match
        )

    def _are_all_in(self, wanted: WrittenCondition, given: WrittenCondition) -> bool:
        for holding in self._coverage.of_entries(given):
            self._left -= 1
            if self._left < 0 or wanted.condition.number not in holding:
                return False
        return True


def _may_imply(given: WrittenCondition, wanted: WrittenCondition, earlier: WrittenRule, later: WrittenRule) -> bool:
    """Whether two conditions can be compared: they have one subject, and see the same names (verified or claimed)."""
    if given.condition.subject != wanted.condition.subject or not any(map(len, given.collections)):
        return False
    if given.condition.kind is Kind.LISTED:
        return False
    if not given.condition.needs_identity:
        return True
    earlier_lets_through = earlier.rule.action.verb is Verb.DUNNO
    later_lets_through = later.rule.action.verb is Verb.DUNNO
    if earlier_lets_through == later_lets_through:
        return True
    # A DUNNO rule below a blocking rule has an effect while DNS fails. A blocking rule below a DUNNO rule uses claimed
    # names; a status is the same for both rules.
    return earlier_lets_through and given.condition.subject == Subject.REVERSE_DNS


def _is_small(written: WrittenCondition) -> bool:
    return sum(map(len, written.collections)) <= MAX_ENTRIES


def _collection_keys(written: WrittenCondition) -> frozenset[Key]:
    """Keys for whole collections: the same list in two conditions of one kind."""
    return frozenset(
        (
            written.condition.subject,
            written.condition.kind,
            entries.key if isinstance(entries, LongList) else id(entries),
        )
        for entries in written.collections
    )


def _keys(written: WrittenCondition) -> frozenset[Key]:
    """Keys for counting the rules with the same list or, for short lists, the same entries."""
    subject, kind = written.condition.subject, written.condition.kind
    short = (entries for entries in written.collections if not isinstance(entries, LongList))
    return _collection_keys(written) | {(subject, kind, entry) for entries in short for entry in _hashable(entries)}


def _hashable(entries: PlainEntries) -> Iterable[Hashable]:
    return chain(entries.v4, entries.v6) if isinstance(entries, Networks) else entries
