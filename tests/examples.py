"""The number of examples that hypothesis tries: all of them in `make test`, a few in `make unit`."""

from __future__ import annotations

import os

UNIT = bool(os.environ.get("UNIT"))


def examples(usual: int) -> int:
    """Returns the number for a test in which `usual` replaces hypothesis's default of 100."""
    return max(5, usual // 20) if UNIT else usual
