"""Limits how often lines about the same kind of event are written; time is passed in."""

from __future__ import annotations


class MessageThrottle:
    """Allows one line in a given number of seconds, with a count of the events since the last line.

    Call `line_for` for each event, and `due_line` from time to time. The first event gets its line at once. Later
    events share the next line, which has the message of the last event.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._written_at = -seconds
        self._unwritten = 0
        self._message = ""

    def line_for(self, message: str, now: float) -> str | None:
        """Returns the line to write now; None if the event has to wait for a later line."""
        self._unwritten += 1
        self._message = message
        return self.due_line(now)

    def due_line(self, now: float) -> str | None:
        """Returns the line for events that wait, if it is due; `now` is in seconds of the monotonic clock."""
        if not self._unwritten or now - self._written_at < self._seconds:
            return None
        count, self._unwritten, self._written_at = self._unwritten, 0, now
        return self._message if count == 1 else f"{self._message} ({count} times since the last such line)"
