"""Maps the numbers of a table to the conditions of a ruleset.

A number stands for a combination of lists: a *mask*, an integer with a bit for each list that has the entry. A table
does not know which conditions use a list, or which rules are filed under these conditions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from policyd.core.tables import NOTHING, Hits, packed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from policyd.core.tables import Buffer

    # Hits by the number in a table.
    HitsByNumber: TypeAlias = "list[Hits] | LazyHits"

# Maximum number of conditions in all Hits of a table; above it, Hits are made when a lookup first finds them. 10,000
# rules with an entry each make 10,000 conditions; each takes 60 bytes.
MAX_EAGER = 1_000_000

# Maximum number of Hits that LazyHits keeps; each takes 1 kB.
MAX_LAZY = 20_000


def hits_of(conditions: Iterable[int], rule_of: Mapping[int, int]) -> Hits:
    """Returns the hits for these conditions; `rule_of` maps a condition to its indexed rule."""
    found = frozenset(conditions)
    return Hits(found, tuple(sorted({rule_of[condition] for condition in found if condition in rule_of})))


def hits_by_number(masks: Sequence[int], users: Sequence[frozenset[int]], rule_of: Mapping[int, int]) -> HitsByNumber:
    """The Hits of each number of a table; `users` has, for each bit of a mask, the conditions that use its list."""
    made = []
    left = MAX_EAGER
    for mask in masks:
        hits = hits_of(_conditions(mask, users), rule_of)
        made.append(hits if hits.conditions else NOTHING)
        left -= len(hits.conditions)
        if left < 0:
            return LazyHits.of(masks, users, rule_of)
    return made


def _conditions(mask: int, users: Sequence[frozenset[int]]) -> frozenset[int]:
    found = []
    while mask:
        lowest = mask & -mask
        found.append(users[lowest.bit_length() - 1])
        mask ^= lowest
    return found[0] if len(found) == 1 else frozenset[int]().union(*found)


class LazyHits(dict[int, Hits]):
    """Hits by number, made at first use; at most MAX_LAZY are kept."""

    def __init__(self, masks: Buffer, width: int, users: Sequence[frozenset[int]], rule_of: Mapping[int, int]) -> None:
        super().__init__()
        self._masks = memoryview(masks)
        self._width = width  # bytes of a mask
        self._users = users
        self._rule_of = rule_of

    @classmethod
    def of(cls, masks: Sequence[int], users: Sequence[frozenset[int]], rule_of: Mapping[int, int]) -> LazyHits:
        """Makes LazyHits for these masks, which it keeps as concatenated bytes."""
        width = len(users) + 7 >> 3
        return cls(b"".join(mask.to_bytes(width) for mask in masks), width, users, rule_of)

    def __missing__(self, number: int) -> Hits:
        mask = int.from_bytes(self._masks[number * self._width : (number + 1) * self._width])
        if len(self) >= MAX_LAZY:
            self.clear()
        hits = self[number] = hits_of(_conditions(mask, self._users), self._rule_of)
        return hits

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return type(self), (packed(self._masks, protocol), self._width, self._users, self._rule_of)
