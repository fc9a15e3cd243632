"""Parses durations as users write them: a number and its unit."""

from __future__ import annotations

import datetime
import re

# Seconds of each unit.
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}

# Seconds of a leap year: the maximum of a window, an interval or a lifetime.
YEAR = 366 * SECONDS["d"]

# Time before a rule's expiry in which notices mention the rule.
EXPIRY_NOTICE = datetime.timedelta(days=14)

_WHOLE = re.compile(r"([0-9]{1,9})([smhdw])")


def whole_duration(text: str, units: str, minimum: float, maximum: float) -> float | None:
    """Returns the seconds of a whole number with its unit, such as `30s` or `12h`; `units` has the allowed units.

    None if the text has another form, or the duration is not between `minimum` and `maximum` seconds.
    """
    found = _WHOLE.fullmatch(text)
    if found is None or found[2] not in units:
        return None
    seconds = int(found[1]) * SECONDS[found[2]]
    return seconds if minimum <= seconds <= maximum else None
