"""Rules that no request can reach, because one rule above decides wherever they would match.

Sound, not complete: what is reported is certain. A rule is covered by an earlier one if each condition of the
earlier rule is implied by some condition of the later. The two principles make implication depend on where a
condition stands: a host name that blocks may be a claimed one, which lets nobody through, and a DUNNO rule that is
unknown while DNS fails has an effect even though it does not match.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, TypeAlias

from policyd.core.normalize import domain_of
from policyd.core.ruleset import Kind, Subject, Verb
from policyd.core.tables import Networks

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

    from policyd.config.written import WrittenCondition, WrittenRule

# Conditions with more entries than this are compared only as a whole (the same list): a look at each entry of a list
# of a million would make `policyd check` slower than the load.
MAX_ENTRIES = 100_000

# So many pairs of rules and of entries are compared in one look at a ruleset, in half a second. Ten thousand rules of
# different names and networks make a seventh of them; thousands that have entries in common would be compared each with
# each, and what is covered among the last of those is not seen.
MAX_COMPARED = 100_000

# A key stands for a set of requests: (subject, kind of key, ...). An entry's own key and those of all sets that
# contain it are a few dictionary lookups.
Key: TypeAlias = "tuple[Hashable, ...]"


def unreachable(rules: Sequence[WrittenRule]) -> Iterator[tuple[WrittenRule, WrittenRule]]:
    """Each rule that is covered, with the first rule that covers it."""
    covers = _Covers()
    for written in rules:
        cover = covers.find(written)
        rule = written.rule
        if cover is not None:
            yield written, cover  # and what this one would cover, the other does
        elif not rule.observe and rule.expires is None and not rule.exceptions:
            covers.add(written)


def always_excepted(written: WrittenRule) -> WrittenCondition | None:
    """The exception of a rule that holds wherever its match does, so that the rule never has an effect; None if there
    is none."""
    for exception in written.exceptions:
        known = _whole(exception)
        if _is_small(exception):
            known |= {key for key, _ in _keys(exception)}
        if any(_is_excepted(one, exception, known, written.rule.action.verb) for one in written.match):
            return exception
    return None


def _is_excepted(one: WrittenCondition, exception: WrittenCondition, known: frozenset[Key], verb: Verb) -> bool:
    if one.condition.subject != exception.condition.subject or not any(map(len, one.collections)):
        return False
    # The match of a blocking rule sees claimed names too, and its exception verified names only.
    if one.condition.subject == Subject.HOSTNAME and verb is not Verb.DUNNO:
        return False
    return _whole(one) <= known or (
        _is_small(one) and not any(known.isdisjoint(containing) for _, containing in _keys(one))
    )


class _Covers:
    """The rules so far that always decide where they match, findable by what their conditions contain."""

    def __init__(self) -> None:
        self._by_key: dict[Key, list[WrittenRule]] = defaultdict(list)
        self._keys: dict[int, frozenset[Key]] = {}  # of each condition added, by its number
        self._of_lists: dict[frozenset[Key], frozenset[Key]] = {}
        self._left = MAX_COMPARED

    def add(self, written: WrittenRule) -> None:
        # Where one is not small, the others may be, but each of them must be implied.
        look_at_entries = all(_is_small(one) for one in written.match)
        for one in written.match:
            self._keys[one.condition.number] = self._all_keys(one) if look_at_entries else _whole(one)
        # A rule that this one covers implies each condition of this one, so any of them is enough to be found by: the
        # one by which the fewest others are.
        of_each = (self._keys[one.condition.number] for one in written.match)
        for key in min(of_each, key=lambda keys: max(len(self._by_key.get(key, ())) for key in keys)):
            self._by_key[key].append(written)

    def _all_keys(self, one: WrittenCondition) -> frozenset[Key]:
        """Those of the condition's entries too; one set of them for all conditions that name the same lists."""
        whole = _whole(one)
        if whole not in self._of_lists:
            self._of_lists[whole] = whole | {key for key, _ in _keys(one)}
        return self._of_lists[whole]

    def find(self, later: WrittenRule) -> WrittenRule | None:
        candidates: dict[int, WrittenRule] = {}
        for one in later.match:
            for key in self._first_keys(one):
                candidates.update((candidate.rule.number, candidate) for candidate in self._by_key.get(key, ()))
        for _, candidate in sorted(candidates.items()):
            self._left -= 1
            if self._left < 0:
                return None
            if all(self._is_implied(wanted, candidate, later) for wanted in candidate.match):
                return candidate
        return None

    def _first_keys(self, one: WrittenCondition) -> Iterator[Key]:
        yield from _whole(one)
        if _is_small(one):
            for _, containing in _keys(one):
                yield from containing
                return

    def _is_implied(self, wanted: WrittenCondition, earlier: WrittenRule, later: WrittenRule) -> bool:
        """Whether the earlier rule's condition holds wherever the later rule has an effect."""
        known = self._keys[wanted.condition.number]
        return any(
            _may_imply(one, wanted, earlier, later)
            and (_whole(one) <= known or (_is_small(one) and self._are_all_in(known, _keys(one))))
            for one in later.match
        )

    def _are_all_in(self, known: frozenset[Key], entries: Iterable[tuple[Key, list[Key]]]) -> bool:
        for _, containing in entries:
            self._left -= 1
            if known.isdisjoint(containing):
                return False
        return True


def _may_imply(one: WrittenCondition, wanted: WrittenCondition, earlier: WrittenRule, later: WrittenRule) -> bool:
    """Whether to compare two conditions at all: the same subject, seen in the same light."""
    if one.condition.subject != wanted.condition.subject or not any(map(len, one.collections)):
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
    return frozenset((one.condition.subject, one.condition.kind, id(collection)) for collection in one.collections)


def _keys(one: WrittenCondition) -> Iterator[tuple[Key, list[Key]]]:
    """For each entry its own key, and those of every set that contains it (itself included)."""
    subject = one.condition.subject
    for collection in one.collections:
        if isinstance(collection, Networks):
            for packed in collection.v4:
                yield from _network_keys(4, packed >> 6, packed & 63, 32)
            for packed in collection.v6:
                yield from _network_keys(6, packed >> 8, packed & 255, 128)
        else:
            for entry in collection:
                yield _entry_keys(subject, one.condition.kind, entry)


def _network_keys(version: int, first: int, prefix: int, width: int) -> Iterator[tuple[Key, list[Key]]]:
    containing: list[Key] = [
        (version, first >> width - length << width - length, length) for length in range(prefix + 1)
    ]
    yield containing[-1], containing


def _entry_keys(subject: str, kind: Kind, entry: bytes | str) -> tuple[Key, list[Key]]:
    match entry:
        case bytes() if kind is Kind.NAME:
            own: Key = (subject, "name", entry)
            return own, [own, (subject, "domain", entry), *_parents(subject, entry)]
        case bytes() if kind is Kind.DOMAIN and entry.startswith(b"."):
            own = (subject, "under", entry[1:])
            return own, [own, (subject, "domain", entry[1:]), *_parents(subject, entry[1:])]
        case bytes() if kind is Kind.DOMAIN:
            own = (subject, "domain", entry)
            return own, [own, *_parents(subject, entry)]
        case bytes() if subject in {"sender", "recipient"} and (domain := domain_of(entry)):
            own = (subject, "value", entry)
            return own, [own, (subject, "domain", domain), *_parents(subject, domain)]
        case _:
            own = (subject, kind, entry)
            return own, [own]


def _parents(subject: str, name: bytes) -> Iterable[Key]:
    """Keys of the domains that a name lies under."""
    dot = name.find(b".")
    while dot >= 0:
        parent = name[dot + 1 :]
        yield subject, "domain", parent
        yield subject, "under", parent
        dot = name.find(b".", dot + 1)
