"""Parses dates in a ruleset, and the ends of entries in list files, both in UTC."""

from __future__ import annotations

import datetime
import re

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2})?Z")


def utc_today() -> datetime.date:
    """Today's date in UTC, by which rules expire."""
    return datetime.datetime.now(datetime.UTC).date()


def parse_date(text: str) -> datetime.date | None:
    """Parses a date as YYYY-MM-DD, and in no other form of ISO 8601. Returns None for other text."""
    if not _DATE.fullmatch(text):
        return None
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        return None


def parse_end(text: str) -> float | None:
    """Parses the end of an entry into Unix seconds; None if the text is neither a date nor a time.

    A date means its first second in UTC. A time is written as 2026-12-06T18:30Z or 2026-12-06T18:30:45Z.
    """
    if not (_DATE.fullmatch(text) or _TIME.fullmatch(text)):
        return None
    try:
        end = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return end.replace(tzinfo=datetime.UTC).timestamp()


def format_end(seconds: float) -> str:
    """Formats an end for `policyd block`: a time in UTC, with seconds."""
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
