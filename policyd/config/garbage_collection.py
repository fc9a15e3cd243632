"""Turns off Python's garbage collector for work that makes many objects and no reference cycles."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Turns the collector off, and afterwards on again if it was on.

    The collector would double the time of loading 10,000 rules, and take a fifth of the time of reading a log.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
