"""Counting what a log has, in bounded memory."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

_Value = TypeVar("_Value")


class Distinct:
    """Counts how many different values there are in many sets, of all sets together at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def add(self, seen: set[_Value], value: _Value) -> bool:
        """Whether the value is in the set from now on; False for one too many."""
        if value in seen:
            return True
        if not self._left:
            return False
        self._left -= 1
        seen.add(value)
        return True


class Frequent(Generic[_Value]):
    """Counts how often each value comes, and forgets those that came once or twice when there are too many.

    What is frequent is counted exactly unless it was forgotten in between; `forgotten` says how much was.
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
        """The most frequent values with their counts; equals in the order in which they came."""
        return self._counts.most_common(number)

    def _forget(self) -> None:
        often = 1
        while len(self._counts) > self._limit // 2:
            kept = Counter({value: count for value, count in self._counts.items() if count > often})
            self.forgotten += len(self._counts) - len(kept)
            self._counts = kept
            often *= 2


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """For a loop that makes no cycles: looking for some among all that it remembers takes a fifth of its time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
