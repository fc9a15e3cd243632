"""The short ids of decisions: eight characters of Crockford's base 32, unique on this host.

40 bits are too few for random ids (a repeat among 1.2 million would be as likely as not), so ids are handed out in
order. Time is cut into windows of 1/64 s, numbered in 30 bits, with 1,024 ids each. A process that needs ids claims the
present window or, if that is taken, the next free one, and uses all ids of the window, however long that takes. So:

- A process that starts later gets later windows: no repeat over restarts.
- Until its time has passed, a window is claimed by binding an abstract unix socket (unix(7)) named after it. Only one
  process can bind it, and the kernel releases it when the process ends: no repeat between processes.
- The numbers of windows repeat after 2^24 seconds, 194 days. A host with a million decisions a day has used one window
  in 5,000 by then, so even a year's ids are as good as unique.

If a host needs more than 65,536 ids a second, the windows of its processes run ahead of the clock. If a process ends
while its windows are ahead, or the clock is set back after its end, the next process may repeat its last ids.

Ids sort nearly by time. They are not secret, and knowing an id grants nothing.
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

WINDOWS_A_SECOND = 64
_WINDOW_BITS = 30

# Maximum number of claims held for windows whose time has not passed; each takes a descriptor. Further windows are used
# without a claim, so two processes that are both a quarter of a second ahead could repeat ids.
MAX_CLAIMS = 16

# Windows tried in a row before a window is used without a claim. Daemons claim far fewer, so a longer row of claimed
# windows means that another program occupies the names.
MAX_TAKEN = 1024


class DecisionIds:
    """An endless iterator over ids, as bytes."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._next = 0
        self._claims: list[tuple[int, socket.socket]] = []
        self._warned = False  # it has been logged that no window can be claimed at present
        self._ids: Iterator[bytes] = iter(())

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        for decision_id in self._ids:
            return decision_id
        self._ids = map(self._claim_window().__add__, _ENDINGS)
        return next(self._ids)

    def close(self) -> None:
        """Releases all claims."""
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
        window = max(present, self._next)
        if len(self._claims) < MAX_CLAIMS:
            window = self._claim_from(window)
        self._next = window + 1
        bits = window & ((1 << _WINDOW_BITS) - 1)
        return "".join(ALPHABET[bits >> shift & 31] for shift in range(25, -1, -5)).encode()

    def _claim_from(self, first: int) -> int:
        for window in range(first, first + MAX_TAKEN):
            try:
                self._claims.append((window, _claim(window)))
            except OSError as error:  # no descriptor left, for instance: an answer matters more than a unique id
                if error.errno == errno.EADDRINUSE:
                    continue
                self._warn(f"cannot claim decision ids ({error.strerror}); another process could use the same ones")
                return window
            self._warned = False
            return window
        self._warn(f"all decision ids of the next {MAX_TAKEN // WINDOWS_A_SECOND} s are claimed; ids may repeat")
        return first

    def _warn(self, message: str) -> None:
        if not self._warned:
            _log.warning("%s", message)
            self._warned = True


def _claim(window: int) -> socket.socket:
    """Binds the socket of a window. Raises OSError; EADDRINUSE if another process has it."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        claim.bind(f"\0policyd-decisions-{window}")
    except OSError:
        claim.close()
        raise
    return claim
