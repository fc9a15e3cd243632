"""Sliding windows: how often something happened, or how many values were seen, in the last seconds.

A window is cut into SLOTS parts, and is exact to one of them: an event counts for at least 59/60 of the window and for
at most all of it. A slot is a number that grows with time, `slot_of(now, within)`; every method takes the current slot.
If the clock is set back, events of slots to come count as events of now.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# Parts of a window: docs/memory.md promises a sixtieth.
SLOTS = 60

# Values that one `distinct` window keeps: one more than the largest number that a condition may compare with (256), so
# that the condition is decided even when older values have been dropped.
MAX_DISTINCT = 257

# Events of one slot, in the lower bits of an entry.
_COUNT_BITS = 24
_COUNT_MASK = (1 << _COUNT_BITS) - 1


def slot_of(now: float, within: float) -> int:
    """Returns the number of the slot that `now` (Unix seconds) lies in, for a window of `within` seconds."""
    return int(now * SLOTS / within)


class EventWindow:
    """Counts events. A key that is seen once takes about 150 bytes."""

    __slots__ = ("_slots", "_total")

    def __init__(self) -> None:
        self._slots = array("Q")  # slot << _COUNT_BITS | events, oldest first
        self._total = 0

    def add(self, slot: int) -> int:
        """Counts an event in the present slot. Returns how many the window holds now."""
        slots = self._slots
        newest = slots[-1] if slots else -1
        if newest >> _COUNT_BITS < slot:
            self._expire(slot)
            slots.append(slot << _COUNT_BITS | 1)
        elif newest & _COUNT_MASK == _COUNT_MASK:
            return self._total
        else:
            slots[-1] = newest + 1
        self._total += 1
        return self._total

    def count(self, slot: int) -> int:
        """Returns how many events the window holds."""
        self._expire(slot)
        return self._total

    @property
    def newest(self) -> int:
        """The slot of the newest event; -1 if there is none."""
        return self._slots[-1] >> _COUNT_BITS if self._slots else -1

    def entries(self) -> list[tuple[int, int]]:
        """Returns (slot, events), oldest first: what is to be stored."""
        return [(entry >> _COUNT_BITS, entry & _COUNT_MASK) for entry in self._slots]

    @classmethod
    def of(cls, entries: Iterable[tuple[int, int]], now: int) -> EventWindow:
        """Returns the window with these entries, without those that lie in the future of slot `now`."""
        window = cls()
        for slot, events in sorted(entries):
            if slot <= now and events:
                window.add(slot)
                more = min(events, _COUNT_MASK) - 1
                window._slots[-1] += more
                window._total += more
        return window

    def _expire(self, slot: int) -> None:
        slots, gone = self._slots, 0
        while gone < len(slots) and slots[gone] >> _COUNT_BITS <= slot - SLOTS:
            self._total -= slots[gone] & _COUNT_MASK
            gone += 1
        if gone:
            del slots[:gone]


class DistinctWindow:
    """Counts distinct values, exactly up to MAX_DISTINCT; beyond it, the values not seen for longest are dropped."""

    __slots__ = ("_values", "charged")

    def __init__(self) -> None:
        self.charged = 0  # values that the memory which holds this window has taken into account
        self._values: dict[bytes, int] = {}  # the slot in which each was last seen, oldest first

    def add(self, slot: int, value: bytes) -> int:
        """Takes a value seen in the present slot. Returns how many the window holds now."""
        values = self._values
        seen = values.get(value)
        if seen is None:
            self._expire(slot)
            values[value] = slot
            if len(values) > MAX_DISTINCT:
                del values[next(iter(values))]
        elif seen < slot:
            del values[value]
            self._expire(slot)
            values[value] = slot
        return len(values)

    def count(self, slot: int) -> int:
        """Returns how many values the window holds."""
        self._expire(slot)
        return len(self._values)

    def count_with(self, slot: int, value: bytes) -> int:
        """Returns how many values the window would hold with this one, which is not taken."""
        self._expire(slot)
        return len(self._values) + (value not in self._values)

    @property
    def newest(self) -> int:
        """The slot of the newest value; -1 if there is none."""
        return next(reversed(self._values.values()), -1)

    def __len__(self) -> int:
        return len(self._values)

    def entries(self) -> list[tuple[bytes, int]]:
        """Returns (value, slot), oldest first: what is to be stored."""
        return list(self._values.items())

    @classmethod
    def of(cls, entries: Iterable[tuple[bytes, int]], now: int) -> DistinctWindow:
        """Returns the window with these entries, without those that lie in the future of slot `now`."""
        window = cls()
        for value, slot in sorted(entries, key=lambda entry: entry[1]):
            if slot <= now:
                window.add(slot, value)
        return window

    def _expire(self, slot: int) -> None:
        values = self._values
        while values:
            oldest = next(iter(values))
            if values[oldest] > slot - SLOTS:
                return
            del values[oldest]
