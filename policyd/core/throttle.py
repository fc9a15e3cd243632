"""Limits how often the same message is repeated; time is passed in."""

from __future__ import annotations


class Throttled:
    """Says something at most once in so many seconds, with how often it happened meanwhile.

    Call `happened` each time, and `tell` now and then: the first gets its line at once, those after it one line
    together when the time is over, or with the first that happens then.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._told = -seconds
        self._untold = 0
        self._last = ""

    def happened(self, message: str, now: float) -> str | None:
        """What to say at once, or nothing."""
        self._untold += 1
        self._last = message
        return self.tell(now)

    def tell(self, now: float) -> str | None:
        """What has been kept back and may be said by now; `now` in seconds of the monotonic clock."""
        if not self._untold or now - self._told < self._seconds:
            return None
        count, self._untold, self._told = self._untold, 0, now
        return self._last if count == 1 else f"{self._last} ({count} times since the last such line)"
