"""The short ids of decisions: eight characters of Crockford's base 32, unique on this host.

40 bits are too few to draw at random (a million ids would be as likely as not to hold a repeat), so they are handed
out in order. Time is cut into windows of a sixteenth of a second, numbered in 30 bits; each window has 1,024 ids. A
process that needs ids claims the first free window from now on, and may use it up however late. So:

- a process that starts later gets later windows: no repeat over restarts;
- while a window lies in the present or future, its claim is a bound abstract unix socket named after it, which no
  two processes can have at a time and which the kernel lets go when a process ends: no repeat between processes;
- the numbers come round after 2^26 seconds, two years and a month;
- 16,384 ids a second last for ever. Faster than that, the windows run ahead of the clock, and a process that ends
  while it is ahead may be followed by one that repeats ids: by as much time as it was ahead. The same holds for a
  clock that is set back. No host that takes mail comes near that rate.

Ids sort by time. They are no secret, and nothing is granted to whoever knows one.
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_log = logging.getLogger(__name__)

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # https://www.crockford.com/base32.html
_ENDINGS = [(a + b).encode() for a in ALPHABET for b in ALPHABET]

WINDOWS_A_SECOND = 16
_WINDOW_BITS = 30

# Claims of windows ahead of the clock that are held at a time: a descriptor each. With more than this, which is a
# second ahead, windows are taken without a claim; two processes that both decide so fast could then repeat ids.
MAX_CLAIMS = 16

# How many taken windows are passed over before one is used all the same: other processes' claims lie at most
# MAX_CLAIMS ahead for each of them, so this many means that somebody squats on the names.
MAX_TAKEN = 1024


class DecisionIds:
    """An endless iterator over ids, as bytes."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._window = -1
        self._claims: list[tuple[int, socket.socket]] = []
        self._ids: Iterator[bytes] = iter(())

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        for decision_id in self._ids:
            return decision_id
        self._ids = map(self._claim_window().__add__, _ENDINGS)
        return next(self._ids)

    def close(self) -> None:
        """Lets go of all claims."""
        for _, claim in self._claims:
            claim.close()
        self._claims.clear()

    def _claim_window(self) -> bytes:
        """Claims the next window; returns the six characters with which its ids begin."""
        present = int(self._now() * WINDOWS_A_SECOND)
        for number, claim in self._claims:
            if number < present:
                claim.close()
        self._claims = [held for held in self._claims if held[0] >= present]
        window = max(present, self._window + 1)
        if len(self._claims) < MAX_CLAIMS:
            window = self._claim_from(window)
        self._window = window
        bits = window & ((1 << _WINDOW_BITS) - 1)
        return "".join(ALPHABET[bits >> shift & 31] for shift in range(25, -1, -5)).encode()

    def _claim_from(self, first: int) -> int:
        for window in range(first, first + MAX_TAKEN):
            claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            try:
                claim.bind(f"\0policyd-decisions-{window}")
            except OSError as error:
                claim.close()
                if error.errno != errno.EADDRINUSE:
                    _log.warning("cannot claim decision ids (%s); another process could use the same ones", error)
                    return window
                continue
            self._claims.append((window, claim))
            return window
        _log.warning("other processes hold the names of all decision ids of the next minute; ids may repeat")
        return first
