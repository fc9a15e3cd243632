"""Counts values of a log in bounded memory."""

from __future__ import annotations

from collections import Counter
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


def mail_key(sender: bytes, recipient: bytes) -> int:
    """Returns a hash of a mail's sender and recipient, ignoring case; a retry of the mail has the same hash."""
    return hash((sender.lower(), recipient.lower()))


class Distinct:
    """Counts distinct values in many sets, at most `limit` in all sets together."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def add(self, seen: set[_Value], value: _Value) -> bool:
        """Adds the value to the set. Returns False if it is new and the limit is reached."""
        if value in seen:
            return True
        if not self._left:
            return False
        self._left -= 1
        seen.add(value)
        return True


class Frequent(Generic[_Value]):
    """Counts each value's occurrences, and forgets the rarest values when there are too many.

    A frequent value is counted exactly unless it was forgotten in between. `forgotten` counts how often a value was
    forgotten.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: Counter[_Value] = Counter()
        self.forgotten = 0

    def add(self, value: _Value) -> None:
        self._counts[value] += 1
        if len(self._counts) > self._limit:
            self._forget()

    def most_common(self, number: int) -> list[tuple[_Value, int]]:
        """Returns the most frequent values with their counts; ties in order of appearance."""
        return self._counts.most_common(number)

    def _forget(self) -> None:
        least = 1
        while len(self._counts) > self._limit // 2:
            kept = Counter({value: count for value, count in self._counts.items() if count > least})
            self.forgotten += len(self._counts) - len(kept)
            self._counts = kept
            least *= 2
