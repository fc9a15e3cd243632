"""The lock under which `policyd fetch`, `block` and `allow` change the list files of a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NAME = ".policyd.lock"

# Seconds to wait for another command. A fetch holds the lock while it replaces one file, `block` and `allow` while they
# check the ruleset.
_SECONDS = 30.0

# Seconds between two attempts.
_PAUSE = 0.05


class ListLockedError(OSError):
    """Another command held the lock for too long."""


@contextlib.contextmanager
def list_lock(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder. Raises OSError, and LockedError if another command does not release it in time."""
    descriptor = os.open(folder / _NAME, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        deadline = time.monotonic() + _SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ListLockedError(None, f"another command holds the lock {folder / _NAME}") from None
                time.sleep(_PAUSE)
        yield
    finally:
        os.close(descriptor)
