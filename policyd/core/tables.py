"""Tables of a million entries without an object for an entry: networks to numbers, byte strings to numbers.

Tables of addresses and names are flat arrays: a million names take 50 MB, a million networks 12, and a process that
has built them hands them to another through shared memory (`__reduce_ex__`: pickle protocol 5, buffers out of band)
without a copy. The table of names uses `hash(bytes)`, whose key differs from process to process: only a process forked
from the same parent may build for another.
"""

from __future__ import annotations

import pickle
from array import array
from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


Buffer: TypeAlias = "bytes | bytearray | array[int] | memoryview[int] | pickle.PickleBuffer"


class Hits(NamedTuple):
    """What a lookup found: conditions that hold, and rules filed under one of them, in their order."""

    conditions: frozenset[int]
    rules: tuple[int, ...]


NOTHING = Hits(frozenset(), ())


class Networks:
    """The networks of one list, or of a condition's own values: flat, in the order in which they were added."""

    __slots__ = ("v4", "v6")

    def __init__(self) -> None:
        self.v4 = array("Q")  # first address << 6 | prefix length
        self.v6: list[int] = []  # first address << 8 | prefix length

    def append(self, version: int, first: int, prefix: int) -> None:
        """Adds the network of `prefix` bits that begins at `first`; host bits must be zero, mapped IPv6 turned to 4."""
        if version == 4:
            self.v4.append(first << 6 | prefix)
        else:
            self.v6.append(first << 8 | prefix)

    def extend(self, others: Networks) -> None:
        """Adds these networks."""
        self.v4.extend(others.v4)
        self.v6.extend(others.v6)

    def __len__(self) -> int:
        return len(self.v4) + len(self.v6)


Entries: TypeAlias = "Networks | Sequence[bytes] | Sequence[str]"


class RangeTable:
    """IPv4 and IPv6 addresses -> a number, by ranges that do not overlap.

    IPv4: the starts of the ranges, sorted, and a table over the top 16 bits that says where to look among them.
    IPv6: upper and lower halves of the starts in two arrays, compared one after the other.
    """

    __slots__ = ("_numbers4", "_numbers6", "_starts4", "_starts6_high", "_starts6_low", "_top")

    def __init__(  # noqa: PLR0917 - what __reduce_ex__ passes
        self,
        top: Buffer,
        starts4: Buffer,
        numbers4: Buffer,
        starts6_high: Buffer,
        starts6_low: Buffer,
        numbers6: Buffer,
    ) -> None:
        self._top = _view(top, "I")
        self._starts4 = _view(starts4, "I")
        self._numbers4 = _view(numbers4, "I")
        self._starts6_high = _view(starts6_high, "Q")
        self._starts6_low = _view(starts6_low, "Q")
        self._numbers6 = _view(numbers6, "I")

    @classmethod
    def build(cls, v4: list[int], v6: list[int], filing: Filing) -> RangeTable:
        """From network keys (`network_key`), in any order; sorts both lists."""
        starts4, numbers4 = array("I"), array("I")
        _flatten(v4, 32, filing, starts4, numbers4)
        top = _count_before_blocks(starts4)
        starts6: list[int] = []
        numbers6 = array("I")
        _flatten(v6, 128, filing, starts6, numbers6)
        high = array("Q", (start >> 64 for start in starts6))
        low = array("Q", (start & 0xFFFFFFFFFFFFFFFF for start in starts6))
        return cls(top, starts4, numbers4, high, low, numbers6)

    def number4(self, address: int) -> int:
        """The number of the range that an IPv4 address lies in; 0 for none."""
        top, block = self._top, address >> 16
        # There is always a range that starts at 0, so the place found is never -1.
        return self._numbers4[bisect_right(self._starts4, address, top[block], top[block + 1]) - 1]

    def number6(self, address: int) -> int:
        """The same for IPv6."""
        high = address >> 64
        end = bisect_right(self._starts6_high, high)
        begin = bisect_left(self._starts6_high, high, 0, end)
        return self._numbers6[bisect_right(self._starts6_low, address & 0xFFFFFFFFFFFFFFFF, begin, end) - 1]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        parts = (
            self._top,
            self._starts4,
            self._numbers4,
            self._starts6_high,
            self._starts6_low,
            self._numbers6,
        )
        return type(self), tuple(_packed(part, protocol) for part in parts)


def _count_before_blocks(starts: array[int]) -> array[int]:
    """How many starts lie before each block of 65,536 addresses, and before the end of the last one."""
    if len(starts) > 65536:
        return array("I", (bisect_left(starts, block << 16) for block in range(65537)))
    counts = array("I")
    for place, start in enumerate(starts):  # most rulesets have few, and a bisection for each block takes 10 ms
        counts.extend(array("I", (place,)) * ((start >> 16) + 1 - len(counts)))
    counts.extend(array("I", (len(starts),)) * (65537 - len(counts)))
    return counts


def network_key(packed: int, number: int) -> int:
    """An integer that sorts networks by first address, the wider first; `packed` as in `Networks`."""
    return packed << 32 | number


def _flatten(keys: list[int], width: int, filing: Filing, starts: array[int] | list[int], numbers: array[int]) -> None:
    """Turns networks into ranges that do not overlap, neighbours with the same number merged.

    Networks either nest or are disjoint, so a stack of those still open is enough.
    """
    keys.sort()
    prefix_bits = 6 if width == 32 else 8
    prefix_mask = (1 << prefix_bits) - 1
    starts.append(0)
    numbers.append(0)

    def begin(start: int, number: int) -> None:
        if starts[-1] == start:  # what was to begin here is wholly covered by what does
            numbers[-1] = number
        elif numbers[-1] != number:
            starts.append(start)
            numbers.append(number)

    open_end, open_number = (
        1 << width + 1,
        0,
    )  # the innermost network still open: the whole space, with nothing
    outer: list[tuple[int, int]] = []
    for key in keys:
        number, packed = key & 0xFFFFFFFF, key >> 32
        first = packed >> prefix_bits
        while open_end <= first:
            ended = open_end
            open_end, open_number = outer.pop()
            begin(ended, open_number)
        outer.append((open_end, open_number))
        open_end = first + (1 << width - (packed & prefix_mask))
        open_number = filing.union(open_number, number)
        begin(first, open_number)
    while outer:
        ended = open_end
        open_end, open_number = outer.pop()
        if ended < 1 << width:
            begin(ended, open_number)


class NameTable:
    """Byte strings -> a number, as an open-addressing hash table in flat arrays.

    `marks` has a byte for each slot: 0 for an empty one, or seven further bits of the hash of the key that is there.
    Slots are at least four times as many as keys, so that a miss, which is what most lookups are, mostly ends at the
    first mark; and marks are small enough to be found in the processor's cache, even those of a million keys.
    """

    __slots__ = ("_ends", "_keys", "_numbers", "_places", "marks", "mask")

    def __init__(self, marks: Buffer, places: Buffer, ends: Buffer, keys: Buffer, numbers: Buffer) -> None:
        self.marks = memoryview(marks)
        self.mask = len(self.marks) - 1
        self._places = _view(places, "I")
        self._ends = _view(ends, "I")
        self._keys = memoryview(keys)
        self._numbers = _view(numbers, "I")

    @classmethod
    def build(cls, entries: Mapping[bytes, int]) -> NameTable:
        """From keys and their numbers (not 0). Raises ValueError beyond 4 GiB of keys."""
        keys = b"".join(entries)
        if len(keys) > 0xFFFFFFFF:
            raise ValueError("more than 4 GiB of names")
        size = 4
        while size < 4 * len(entries):
            size *= 2
        mask = size - 1
        marks = bytearray(size)
        places = array("I", [0]) * size
        for place, key_hash in enumerate(map(hash, entries)):
            slot = key_hash & mask
            while marks[slot]:
                slot = (slot + 1) & mask
            marks[slot] = key_hash >> 32 & 0x7F | 0x80
            places[slot] = place
        ends = array("I", accumulate(map(len, entries), initial=0))
        return cls(marks, places, ends, keys, array("I", entries.values()))

    def number(self, key: bytes) -> int:
        """The key's number; 0 for none. Where `marks[hash(key) & mask]` is 0 there is none: look there first."""
        key_hash = hash(key)
        mark = key_hash >> 32 & 0x7F | 0x80
        mask, marks = self.mask, self.marks
        slot = key_hash & mask
        while found := marks[slot]:
            if found == mark:
                place = self._places[slot]
                if self._keys[self._ends[place] : self._ends[place + 1]] == key:
                    return self._numbers[place]
            slot = (slot + 1) & mask
        return 0

    def __len__(self) -> int:
        return len(self._numbers)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        parts = (self.marks, self._places, self._ends, self._keys, self._numbers)
        return type(self), tuple(_packed(part, protocol) for part in parts)


def _view(part: Buffer, item: Literal["I", "Q"]) -> memoryview[int]:
    return memoryview(part).cast("B").cast(item)


def _packed(part: memoryview[int], protocol: int) -> pickle.PickleBuffer | bytes:
    return pickle.PickleBuffer(part) if protocol >= 5 else bytes(part)


class Filing:
    """Numbers each combination of conditions that some entry stands for, and makes its Hits; 0 is no condition."""

    def __init__(self, rule_of: Mapping[int, int]) -> None:
        self._rule_of = rule_of  # condition -> the rule that is filed under it
        self._numbers: dict[frozenset[int], int] = {frozenset(): 0}
        self._unions: dict[tuple[int, int], int] = {}
        self.hits: list[Hits] = [NOTHING]

    def number(self, conditions: Iterable[int]) -> int:
        """The number of a combination."""
        combination = frozenset(conditions)
        number = self._numbers.get(combination)
        if number is None:
            number = self._numbers[combination] = len(self.hits)
            self.hits.append(self.hits_of(combination))
        return number

    def hits_of(self, combination: frozenset[int]) -> Hits:
        """What a lookup answers that finds these conditions."""
        rules = sorted({self._rule_of[condition] for condition in combination if condition in self._rule_of})
        return Hits(combination, tuple(rules))

    def union(self, one: int, other: int) -> int:
        """The number of two combinations taken together."""
        if one == other or not other:
            return one
        if not one:
            return other
        number = self._unions.get((one, other))
        if number is None:
            number = self.number(self.hits[one].conditions | self.hits[other].conditions)
            self._unions[one, other] = number
        return number
