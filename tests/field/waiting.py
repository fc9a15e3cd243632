"""Waits for another process, by polling."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# Timeout in seconds, far more than needed even on a busy machine.
PATIENCE_SECONDS = 30


def until(what: str, probe: Callable[[], T | None], seconds: float = PATIENCE_SECONDS) -> T:
    """Calls `probe` until it returns something other than None, and returns that.

    Raises TimeoutError, which names `what`, after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while (found := probe()) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.01)
    return found
