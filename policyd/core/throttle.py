"""Limits how often the same message is repeated; time is passed in."""

from __future__ import annotations


class Throttled:
    """Allows a message at most once in a given number of seconds, with a count of suppressed events.

    Call `happened` for each event, and `tell` from time to time: the first event gets its line at once; later events
    share a line when the time is over.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._told = -seconds
        self._untold = 0
        self._last = ""

    def happened(self, message: str, now: float) -> str | None:
        """Returns the line to write now; None if it is suppressed."""
        self._untold += 1
        self._last = message
        return self.tell(now)

    def tell(self, now: float) -> str | None:
        """Returns the line for suppressed events, if it is due; `now` in seconds of the monotonic clock."""
        if not self._untold or now - self._told < self._seconds:
            return None
        count, self._untold, self._told = self._untold, 0, now
        return self._last if count == 1 else f"{self._last} ({count} times since the last such line)"
