"""Waiting for what another process does, by asking again until it has."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# Far more than anything takes here, on a machine however busy: a wait ends as soon as it can.
PATIENCE_SECONDS = 30


def until(what: str, probe: Callable[[], T | None], seconds: float = PATIENCE_SECONDS) -> T:
    """What `probe` gives as soon as it gives anything.

    Raises TimeoutError, which names `what`, if that took longer than `seconds`.
    """
    deadline = time.monotonic() + seconds
    while (found := probe()) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.01)
    return found
