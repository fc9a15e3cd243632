"""Tables of a million entries without an object for each entry: networks to numbers, byte strings to numbers.

The tables are flat arrays: a million names take 50 MB, a million networks 12 MB. A process that has built a table
passes it to another process through shared memory (`__reduce_ex__`: pickle protocol 5, buffers out of band) without
a copy. The table of names uses `hash(bytes)`, whose random key only a fork passes on, so a process can build it only
for processes that are forks of the same parent.

`policyd.tables` builds the tables, `policyd.core.hits` says what the numbers mean.
"""

from __future__ import annotations

import pickle
from array import array
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence


Buffer: TypeAlias = "bytes | bytearray | array[int] | memoryview[int] | pickle.PickleBuffer"


class Hits(NamedTuple):
    """The result of a lookup: the conditions that hold, and the rules filed under one of them, in order."""

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
        """Adds the network `first`/`prefix`. Its host bits must be zero; an IPv4-mapped one is given as IPv4."""
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


class Repetitions:
    """Entries of a list that repeat an earlier entry: their number, and at most MAX_KEPT of them."""

    MAX_KEPT = 1000

    __slots__ = ("count", "examples")

    def __init__(self) -> None:
        self.count = 0
        self.examples: set[Hashable] = set()  # a name; or the IP version, and the network as in `Networks`

    def add(self, entry: Hashable) -> None:
        """Counts an entry."""
        self.count += 1
        if len(self.examples) < self.MAX_KEPT:
            self.examples.add(entry)


class LongList:
    """A list that is long enough to keep its table when the ruleset changes.

    Two lists with the same `key` have the same entries. Each call of `read` gives all entries, a block at a time.
    `path` is the list's file. `repeated` is None unless a table was built in which this list shares no bit.
    """

    __slots__ = ("_length", "key", "path", "read", "repeated")

    def __init__(
        self, key: Hashable, length: int, read: Callable[[], Iterable[Networks | Sequence[bytes]]], path: str = ""
    ) -> None:
        self.key = key
        self._length = length
        self.read = read
        self.path = path
        self.repeated: Repetitions | None = None

    def __len__(self) -> int:
        return self._length


PlainEntries: TypeAlias = "Networks | Sequence[bytes] | Sequence[str]"
Entries: TypeAlias = "PlainEntries | LongList"


class RangeTable:
    """IPv4 and IPv6 addresses -> a number, by ranges that do not overlap.

    IPv4: the starts of the ranges, sorted, and a table over the top 16 bits that narrows the search. IPv6: upper and
    lower halves of the starts in two arrays, compared one after the other.
    """

    __slots__ = ("_numbers4", "_numbers6", "_starts4", "_starts6_high", "_starts6_low", "_top")

    def __init__(  # noqa: PLR0917 - the arguments that __reduce_ex__ passes
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

    def number4(self, address: int) -> int:
        """The number of the range that contains an IPv4 address; 0 for none."""
        top, block = self._top, address >> 16
        # A range always starts at 0, so the place found is never -1.
        return self._numbers4[bisect_right(self._starts4, address, top[block], top[block + 1]) - 1]

    def number6(self, address: int) -> int:
        """The number of the range that contains an IPv6 address; 0 for none."""
        high = address >> 64
        end = bisect_right(self._starts6_high, high)
        begin = bisect_left(self._starts6_high, high, 0, end)
        return self._numbers6[bisect_right(self._starts6_low, address & 0xFFFFFFFFFFFFFFFF, begin, end) - 1]

    @property
    def parts(self) -> tuple[memoryview[int], ...]:
        """The arrays, in the order of the constructor's arguments."""
        return self._top, self._starts4, self._numbers4, self._starts6_high, self._starts6_low, self._numbers6

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return type(self), tuple(packed(part, protocol) for part in self.parts)


class NameTable:
    """Byte strings -> a number, as an open-addressing hash table in flat arrays.

    `marks` has a byte for each slot: 0 for an empty slot, else 0x80 plus seven bits of the key's hash.
    There are at least three times as many slots as keys. Most lookups find nothing, and most of these end at the first
    mark. Even the marks of a million keys are small enough for the processor's cache.
    """

    __slots__ = ("_ends", "_keys", "_numbers", "_places", "marks", "mask")

    def __init__(self, marks: Buffer, places: Buffer, ends: Buffer, keys: Buffer, numbers: Buffer) -> None:
        self.marks = memoryview(marks)
        self.mask = len(self.marks) - 1
        self._places = _view(places, "I")
        self._ends = _view(ends, "I")
        self._keys = memoryview(keys)
        self._numbers = _view(numbers, "I")

    def number(self, key: bytes) -> int:
        """The key's number; 0 for none. If `marks[hash(key) & mask]` is 0 the key is not there: check that first."""
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

    @property
    def parts(self) -> tuple[memoryview[int], ...]:
        """The arrays, in the order of the constructor's arguments."""
        return self.marks, self._places, self._ends, self._keys, self._numbers

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return type(self), tuple(packed(part, protocol) for part in self.parts)


def _view(part: Buffer, item: Literal["I", "Q"]) -> memoryview[int]:
    return memoryview(part).cast("B").cast(item)


def packed(part: memoryview[int], protocol: int) -> pickle.PickleBuffer | bytes:
    """An array as it is pickled: out of band if the protocol allows it."""
    return pickle.PickleBuffer(part) if protocol >= 5 else bytes(part)
