"""Sliding windows: how often something happened, or how many values were seen, in the last seconds.

A window is cut into SLOTS parts, and is exact to one of them: an event counts for at least 59/60 of the window and for
at most all of it. A slot is a number that grows with time: `slot_of(now, within)`. Methods take the current slot
instead of the time. If the clock is set back, events in later slots count as events of the current slot.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# Number of parts of a window: docs/memory.md promises that windows are exact to a sixtieth.
SLOTS = 60

# Maximum number of values in a `distinct` window: one more than the largest number that a condition may compare with
# (256), so that the condition is decided even if older values have been dropped.
MAX_DISTINCT = 257

# An entry of an EventWindow has its slot in the upper bits, and the number of events in these lower bits.
_COUNT_BITS = 24
_COUNT_MASK = (1 << _COUNT_BITS) - 1


def slot_of(now: float, within: float) -> int:
    """Returns the number of the slot that `now` (Unix seconds) lies in, for a window of `within` seconds."""
    return int(now * SLOTS / within)


class EventWindow:
    """Counts events. The window of a key with a single event takes about 150 bytes."""

    __slots__ = ("_events", "_older", "_total", "newest")

    def __init__(self) -> None:
        self.newest = -1  # the slot of the newest event; -1 if there is none
        self._events = 0  # in the newest slot
        self._older: array[int] | None = None  # entries of older slots, oldest first; most keys have none
        self._total = 0

    def add(self, slot: int) -> int:
        """Counts an event in the current slot. Returns the number of events in the window."""
        if slot > self.newest:
            self._begin(slot)
        elif self._events == _COUNT_MASK:
            return self._total
        self._events += 1
        self._total += 1
        return self._total

    def count(self, slot: int) -> int:
        """Returns the number of events in the window."""
        self._expire(slot)
        return self._total

    def entries(self) -> list[tuple[int, int]]:
        """Returns (slot, events), oldest first, for storing."""
        older = [(entry >> _COUNT_BITS, entry & _COUNT_MASK) for entry in self._older or ()]
        return [*older, (self.newest, self._events)] if self._events else older

    @classmethod
    def of(cls, entries: Iterable[tuple[int, int]], now: int) -> EventWindow:
        """Returns the window with these entries, without entries of later slots than `now`."""
        window = cls()
        for slot, events in sorted(entries):
            if slot <= now and events:
                window.add(slot)
                more = min(events, _COUNT_MASK) - 1
                window._events += more
                window._total += more
        return window

    def _begin(self, slot: int) -> None:
        """Begins a slot that is newer than all others."""
        self._expire(slot)
        if self._events:
            if self._older is None:
                self._older = array("Q")
            self._older.append(self.newest << _COUNT_BITS | self._events)
        self.newest, self._events = slot, 0

    def _expire(self, slot: int) -> None:
        if self._older is not None:
            older, gone = self._older, 0
            while gone < len(older) and older[gone] >> _COUNT_BITS <= slot - SLOTS:
                self._total -= older[gone] & _COUNT_MASK
                gone += 1
            if gone:
                del older[:gone]
        if self.newest <= slot - SLOTS:
            self.newest, self._events, self._total, self._older = -1, 0, 0, None


class DistinctWindow:
    """Counts distinct values, exactly up to MAX_DISTINCT; beyond it, the values not seen for longest are dropped."""

    __slots__ = ("_older", "_value", "charged", "newest")

    def __init__(self) -> None:
        self.charged = 0  # the number of values that ProcessMemory counts as its entries for this window
        self.newest = -1  # the slot of the newest value; -1 if there is none
        self._value = b""  # the newest value
        self._older: dict[bytes, int] | None = None  # the slot in which each other value was last seen, oldest first

    def add(self, slot: int, value: bytes) -> int:
        """Takes a value seen in the current slot. Returns the number of values in the window."""
        if slot > self.newest or value != self._value:
            self._take(slot, value)
        return 1 if self._older is None else len(self._older) + 1

    def count(self, slot: int) -> int:
        """Returns the number of values in the window."""
        self._expire(slot)
        return len(self)

    def count_with(self, slot: int, value: bytes) -> int:
        """Returns the number of values that the window would hold with this value, without taking it."""
        self._expire(slot)
        return len(self) + (self.newest < 0 or (value != self._value and value not in (self._older or ())))

    def __len__(self) -> int:
        return (len(self._older) if self._older is not None else 0) + (self.newest >= 0)

    def entries(self) -> list[tuple[bytes, int]]:
        """Returns (value, slot), oldest first, for storing."""
        older = list(self._older.items()) if self._older is not None else []
        return [*older, (self._value, self.newest)] if self.newest >= 0 else older

    @classmethod
    def of(cls, entries: Iterable[tuple[bytes, int]], now: int) -> DistinctWindow:
        """Returns the window with these entries, without entries of later slots than `now`."""
        window = cls()
        for value, slot in sorted(entries, key=lambda entry: entry[1]):
            if slot <= now:
                window.add(slot, value)
        return window

    def _take(self, slot: int, value: bytes) -> None:
        """Takes a value that is not the newest, or was last seen in an earlier slot."""
        if self._older is not None and (seen := self._older.get(value)) is not None:
            if seen >= slot:
                return
            del self._older[value]
        self._expire(slot)
        if self.newest >= 0 and value != self._value:
            if self._older is None:
                self._older = {}
            elif len(self._older) == MAX_DISTINCT - 1:
                del self._older[next(iter(self._older))]
            self._older[self._value] = self.newest
        self._value, self.newest = value, slot

    def _expire(self, slot: int) -> None:
        while self._older:
            oldest = next(iter(self._older))
            if self._older[oldest] > slot - SLOTS:
                return
            del self._older[oldest]
        self._older = None
        if self.newest <= slot - SLOTS:
            self._value, self.newest = b"", -1
