"""Converts the timestamps of log lines to Unix seconds.

Promises: a syslog timestamp (RFC 3164, `Aug  3 12:15:23`) is local time without a year; it gets the year that puts it
nearest to the line before and not into the future. A timestamp with a year is not changed. Text that is not a timestamp
gives None, never an exception. The hours, and the minute of the previous timestamp, are cached.
"""

from __future__ import annotations

import datetime
import math
import re

from policyd.config.durations import whole_duration

_MONTHS = {
    name: number
    for number, name in enumerate(
        (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"), start=1
    )
}

# Groups: the date with the hour; month, day, hour, minute, second and fraction. `Aug 03` is journald's, `Mar 9` some
# sendmail's; a raw syslog stream has a priority such as `<22>`.
_SYSLOG = re.compile(rb"(?:<\d{1,3}>)?(([A-Z][a-z]{2}) {1,2}(\d{1,2}) (\d\d)):(\d\d):(\d\d)([.,]\d{1,9})?")
_RFC3339 = re.compile(
    rb"(?:<\d{1,3}>)?(\d{4}-\d\d-\d\d[T ]\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?(?: ?(Z|[+-]\d\d:?\d\d))?", re.IGNORECASE
)
# Microseconds, as `journalctl -o json` writes them; policyd.logs.journal puts the `@` in front.
_JOURNAL = re.compile(rb"@(\d{1,16})")

# Less common forms, first converted to RFC 3339: `2026 Jan  5 10:05:01` (syslog-ng's ts-format(full)), `Jan  5 2026
# 10:05:01`, `Mon Jan  5 10:05:01 2026` (ctime), `05-Jan-2026 10:05:01` and `2026/01/05_10:05:01`.
_YEAR_FIRST = re.compile(rb"(\d{4}) ([A-Z][a-z]{2}) {1,2}(\d{1,2}) (\d\d:\d\d:\d\d\S*)")
_YEAR_WITHIN = re.compile(rb"([A-Z][a-z]{2}) {1,2}(\d{1,2}),? (\d{4}) (\d\d:\d\d:\d\d\S*)")
_YEAR_LAST = re.compile(rb"([A-Z][a-z]{2}) {1,2}(\d{1,2}) (\d\d:\d\d:\d\d\S*)(?: [A-Z]{2,5})? (\d{4})")
_DAY_FIRST = re.compile(rb"(\d{1,2})[-/ ]([A-Z][a-z]{2})[-/ ](\d{4})[: ](\d\d:\d\d:\d\d\S*)")
_WEEKDAY = re.compile(rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? +")
# `2026/01/05`, `2026-01-05_10:05:01`, `10:05:01 +0100`, and an offset without minutes.
_NEARLY_RFC3339 = re.compile(
    rb"(\d{4})[-/](\d\d)[-/](\d\d)[T_ ]{1,2}(\d\d:\d\d:\d\d(?:[.,]\d{1,9})?) ?(Z|UTC|GMT|[+-]\d\d(?::?\d\d)?)?",
    re.IGNORECASE,
)
_UNIX = re.compile(rb"(\d{9,10}(?:\.\d{1,9})?)(\d{3})?")
# https://cr.yp.to/libtai/tai64.html: seconds of TAI from 2^62, then nanoseconds. TAI is 37 s ahead of UTC since 2017.
_TAI64N = re.compile(rb"@4([0-9a-f]{15})([0-9a-f]{8})")
_TAI_AHEAD = 37
# The second at the end of a timestamp like `Aug  3 12:15:23`, by its two digits.
_SECOND = {b"%02d" % second: second for second in range(60)}

_DAY = 86400.0
_YEAR = 365.25 * _DAY

# Seconds by which a timestamp may be later than the file's date, because clocks differ.
_FUTURE = 2 * _DAY

# The year 2200, beyond which a timestamp is invalid: year 9999 with an offset overflows.
_MAX_TIME = 230 * _YEAR

# Maximum number of cached hours; a log in order needs one, a log with several time zones a few.
_HOURS = 256


class LogClock:
    """Reads the timestamps of one log, in the order of its lines."""

    def __init__(self) -> None:
        self._latest = 0.0  # limit for timestamps of this file
        self._previous: float | None = None
        self._hours: dict[bytes, float] = {}
        self._stamp = b""
        self._seconds: float | None = None
        self._minute = b""  # of the previous timestamp, if that was like `Aug  3 12:15:23`
        self._minute_start = 0.0

    def start_file(self, modified: float) -> None:
        """Begins a file that was last written to at `modified` (Unix seconds).

        The first timestamp without a year gets the latest year that puts it at most two days after `modified`.
        """
        self._latest = modified + _FUTURE
        self._previous = None
        self._hours.clear()
        self._stamp = self._minute = b""

    def seconds(self, stamp: bytes) -> float | None:
        """Returns Unix seconds for a timestamp (`@` and a number: microseconds), or None if it is invalid."""
        if stamp == self._stamp:
            return self._seconds
        self._stamp = stamp
        # `Aug  3 12:15:23`, in the minute of the previous timestamp: most lines of most logs.
        if stamp[:13] == self._minute and (second := _SECOND.get(stamp[13:])) is not None:
            self._seconds = self._minute_start + second
            return self._seconds
        if syslog := _SYSLOG.match(stamp):
            self._seconds = self._syslog(syslog)
            second = _SECOND.get(stamp[13:])
            if self._seconds is not None and second is not None and stamp[12:13] == b":":
                self._minute, self._minute_start = stamp[:13], self._seconds - second
        elif rfc3339 := _RFC3339.match(stamp):
            self._seconds = self._rfc3339(rfc3339)
        elif journal := _JOURNAL.fullmatch(stamp):
            self._seconds = int(journal[1]) / 1e6
        else:
            self._seconds = self._less_common(stamp)
        return self._seconds

    def _less_common(self, stamp: bytes) -> float | None:
        if tai := _TAI64N.fullmatch(stamp):
            seconds = int(tai[1], 16) - _TAI_AHEAD + int(tai[2], 16) / 1e9
            return seconds if 0 <= seconds < _MAX_TIME else None
        if unix := _UNIX.fullmatch(stamp):
            return float(unix[1])  # three more digits, without a point, are milliseconds, which are dropped
        stamp = stamp[weekday.end() :] if (weekday := _WEEKDAY.match(stamp)) else stamp
        if nearly := _NEARLY_RFC3339.match(stamp):
            year, month, day, time, zone = nearly.groups()
            if zone is not None:
                zone = b"Z" if zone.upper() in {b"UTC", b"GMT"} else zone + b"00" * (len(zone) == 3)
            return self._from_parts(year, month, day, time + (zone or b""))
        if found := _YEAR_FIRST.match(stamp):
            year, name, day, time = found.groups()
        elif found := _YEAR_WITHIN.match(stamp):
            name, day, year, time = found.groups()
        elif found := _YEAR_LAST.match(stamp):
            name, day, time, year = found.groups()
        elif found := _DAY_FIRST.match(stamp):
            day, name, year, time = found.groups()
        else:
            syslog = _SYSLOG.match(stamp)
            return self._syslog(syslog) if syslog is not None else None
        number = _MONTHS.get(name)
        return None if number is None else self._from_parts(year, b"%02d" % number, day.zfill(2), time)

    def _from_parts(self, year: bytes, month: bytes, day: bytes, time: bytes) -> float | None:
        found = _RFC3339.match(b"%b-%b-%bT%b" % (year, month, day, time))
        return self._rfc3339(found) if found is not None else None

    def _syslog(self, stamp: re.Match[bytes]) -> float | None:
        hour, month_name, day, hour_of_day, minute, second, fraction = stamp.groups()
        start = self._hours.get(hour)
        if start is None or (self._previous is not None and abs(start - self._previous) > _YEAR / 2):
            month = _MONTHS.get(month_name)
            start = None if month is None else self._start_of_hour(month, int(day), int(hour_of_day))
            if start is None:
                return None
            self._keep(hour, start)
        self._previous = start
        seconds = start + int(minute) * 60 + int(second)
        return seconds + float(b"0." + fraction[1:]) if fraction else seconds

    def _start_of_hour(self, month: int, day: int, hour: int) -> float | None:
        """Returns the hour in the year that is nearest to the line before and not in the future."""
        near = self._latest - _YEAR / 2 if self._previous is None else self._previous
        around = datetime.datetime.fromtimestamp(near, datetime.UTC).year
        best: float | None = None
        # Eight years back always include a leap day (2100 has none).
        for year in range(around - 8, around + 2):
            try:
                start = datetime.datetime(year, month, day, hour).timestamp()  # noqa: DTZ001 - syslog writes local time
            except ValueError:
                continue  # 29 February of a common year, or no date at all
            if start <= self._latest and (best is None or abs(start - near) < abs(best - near)):
                best = start
        return best

    def _rfc3339(self, stamp: re.Match[bytes]) -> float | None:
        hour, minute, second, fraction, zone = stamp.groups()
        key = hour + zone if zone else hour
        start = self._hours.get(key)
        if start is None:
            try:
                start = datetime.datetime.fromisoformat((hour + b":00:00" + (zone or b"").upper()).decode()).timestamp()
            except (ValueError, OverflowError):
                return None
            if not 0 <= start < _MAX_TIME:
                return None
            self._keep(key, start)
        seconds = start + int(minute) * 60 + int(second)
        return seconds + float(b"0." + fraction) if fraction else seconds

    def _keep(self, hour: bytes, start: float) -> None:
        if len(self._hours) >= _HOURS:
            self._hours.clear()
        self._hours[hour] = start


def rfc3339(seconds: float | None) -> str:
    """Returns local time to the second with its offset; `-` for an unknown time."""
    if seconds is None:
        return "-"
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def parse_since(text: str, now: float) -> float:
    """Converts `7d`, `12h`, `2026-11-21` or `2026-11-21T17:00` (local unless it has an offset) to Unix seconds.

    Raises ValueError with a message for the user.
    """
    duration = whole_duration(text, "smhdw", 0, math.inf)
    if duration is not None:
        return now - duration
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"'{text}' is not a time; write 7d, 12h, 2026-11-21 or 2026-11-21T17:00") from None
