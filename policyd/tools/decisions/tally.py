"""Counts the distinct values of one key in decision logs and mail logs, with the first and last time of each.

Promises: it counts exactly what `find.every` finds; times with different offsets compare correctly; memory is limited
by MAX_VALUES. If the search filters by time only, one regular expression reads a block of many decisions at once. Lines
are read one by one if the search has another filter, if the key is `asn`, or if a line of the block has another form.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING

from policyd.config.garbage_collection import without_garbage_collection
from policyd.core.address import parse_address
from policyd.core.normalize import domain_of, fold_name
from policyd.decision_log.reader import LoggedDecision
from policyd.decision_log.record import unescape
from policyd.logs.either import batches
from policyd.logs.timestamps import LogClock
from policyd.tools.address_blocks import block_of, part_of
from policyd.tools.decisions.find import Matcher, found_in, owner_in
from policyd.tools.display import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from policyd.core.index import Ruleset
    from policyd.logs.either import Batch
    from policyd.tools.decisions.find import Found, Search

# Maximum number of distinct values; each takes up to 350 bytes. Values beyond the maximum are counted together.
MAX_VALUES = 1_000_000

# Number of values processed or printed at once.
_AT_ONCE = 10_000

# Maximum number of minutes whose conversion to another offset is cached.
_MAX_MINUTES = 100_000


class By(StrEnum):
    """The key whose distinct values are counted."""

    HOSTNAME = "hostname"
    CLIENT = "client"
    NETWORK = "network"
    SENDER = "sender"
    SENDER_DOMAIN = "sender_domain"
    RECIPIENT = "recipient"
    ASN = "asn"


@dataclass(slots=True)
class ValueCount:
    """The count of a value, and the first and last time of the value (RFC 3339, empty if the log has no time).

    `verified` is False for a host name that is only claimed.
    """

    value: str
    count: int
    first: str
    last: str
    verified: bool = True


@dataclass(slots=True)
class Tally:
    """The distinct values and their counts.

    `found` is the number of matches, `others` the number of occurrences of values beyond MAX_VALUES.
    """

    by: By
    values: Values
    found: int = 0
    others: int = 0

    def counts(self) -> Iterator[ValueCount]:
        """Yields the values with their counts, the most frequent first."""
        for count, values in self.values.by_count():
            for value, first, last in values:
                verified = not value.endswith(_UNVERIFIED)
                text = value.removesuffix(_UNVERIFIED).decode()
                yield ValueCount(text, count, first.decode(), last.decode(), verified)

    def lines(self) -> Iterator[bytes]:
        """Yields many lines at a time. A line has count, first and last time (in whole seconds), and value."""
        width = 0
        for count, values in self.values.by_count():
            width = width or len(str(count))
            number = b"%*d" % (width, count)
            if count == 1:
                rows = [(number, short := _short(first), short, value) for value, first, _ in values]
            else:
                rows = [(number, _short(first), _short(last), value) for value, first, last in values]
            yield b"".join([b"%b  %b  %b  %b\n" % row for row in rows]).replace(_UNVERIFIED, b" (unverified)")


def _short(time: bytes) -> bytes:
    """Returns a time without the fraction of a second; `-` for an empty time."""
    return time[:19] + time[23:] or b"-"


def tally(paths: Sequence[str], search: Search, by: By, advance: Callable[[int], None] | None = None) -> Tally:
    """Counts the distinct values of matching decisions and mails. Raises `LogError`."""
    counter = _Counter(search, by)
    with without_garbage_collection():
        for batch in batches(paths, advance):
            counter.add(batch)
        return counter.finish()


# --- Patterns of decisions --------------------------------------------------------------------------------------------

# One expression reads a whole block: each match is a whole line, with its time and the value to count. In the text
# format, everything before the value is without blanks and quotes, so a reply, which comes last, is never read as a
# field; in JSON a quote within a value is escaped, so no value is read as a key. If a match extends beyond the end of a
# line, there are fewer matches than lines, and the block is read line by line.
_TIME = rb"(\d\d\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\d%b)"
_ANY_OFFSET = rb"(?:Z|[+-]\d\d:\d\d)"
_STANDARD_TIME = re.compile(_TIME % _ANY_OFFSET)
_VERB = rb"(?:REJECT|DEFER_IF_PERMIT|DEFER|DUNNO)"
_TO_CLIENT = rb"(?:would=[A-Z_]++ )?(?:id=[^ ]++ )?(?:rule=[^ ]++ )?client="
_FIELDS = rb'(?:[a-z_]++=[^ "\n]*+ )*?'
_OWNER = rb"(?:asn=[^ \n]*+ )?(?:country=[^ \n]*+ )?"
_TEXT = {
    By.CLIENT: _TO_CLIENT + rb"[^\[]*+\[([^\]]*+)\] ",
    # A client without a verified name: its first claimed name, if there is one.
    By.HOSTNAME: _TO_CLIENT + rb"(?:unknown\[[^\]]*+\] %b(?:claimed=([^ ,\n]*+))?|([^\[]*+)\[)" % _OWNER,
    By.SENDER: _FIELDS + rb"from=<([^> \n]*+)>",
    By.RECIPIENT: _FIELDS + rb"to=<([^> \n]*+)>",
}
_JSON_TO_CLIENT = rb'(?:"(?:would|id|rule)":"[^"\\\n]*+",)*+"client_address":'
_JSON_OWNER = rb'(?:,"(?:asn|asn_name|country)":(?:"[^"\\\n]*+"|\d++))*+'
_JSON = {
    By.CLIENT: _JSON_TO_CLIENT + rb'"([^"\\\n]*+)"',
    By.HOSTNAME: _JSON_TO_CLIENT
    + rb'"[^"\\\n]*+","hostname":(?:"unknown"%b(?:,"claimed":\["([^"\\\n]*+)")?|"([^"\\\n]*+)")' % _JSON_OWNER,
    By.SENDER: rb'[^\n]*?"sender":"([^"\\\n]*+)"',
    By.RECIPIENT: rb'[^\n]*?"recipient":"([^"\\\n]*+)"',
}


def _pattern(by: By, offset: bytes, *, as_json: bool) -> re.Pattern[bytes]:
    """Compiles the pattern that finds time and value in lines with this offset, or with any offset if it is empty."""
    time = _TIME % (re.escape(offset) or _ANY_OFFSET)
    if as_json:
        return re.compile(rb'\{"time":"%b","action":"%b",%b.*+\n' % (time, _VERB, _JSON[by]))
    return re.compile(rb"%b %b %b.*+\n" % (time, _VERB, _TEXT[by]))


# The `instance` in a probe of `policyd doctor`, the same bytes in both formats.
_PROBE = b"policyd-doctor"


# --- Counting ---------------------------------------------------------------------------------------------------------


class Values:
    """Distinct values, each with its count, first and last time.

    Most values of a large log occur once, so only repeated values have entries in all three tables. For most values,
    this takes one access to a table that is too large for the processor's caches, instead of three.
    """

    def __init__(self) -> None:
        self._first: dict[bytes | None, bytes] = {}
        self._more: Counter[bytes | None] = Counter()  # number of occurrences after the first
        self._last: dict[bytes | None, bytes] = {}  # for repeated values
        self._latest = b""

    def __len__(self) -> int:
        return len(self._first)

    def add_in_order(self, found: Sequence[tuple[bytes, bytes | None]]) -> int | None:
        """Counts pairs of time and value; returns the number of pairs whose value is beyond MAX_VALUES.

        Returns None, with nothing counted, if the pairs are not in order of time, if the first is earlier than a
        counted pair, or if perhaps only some of them fit.
        """
        times: Sequence[bytes]
        times, values = zip(*found, strict=True)
        if times[0] < self._latest or [*times] != sorted(times):
            return None
        if len(self._first) >= MAX_VALUES:
            known = map(self._first.get, values)
            again = [pair for pair, first in zip(found, known, strict=True) if first is not None]
        elif len(self._first) + len(found) <= MAX_VALUES:
            # setdefault returns the given time if, and only if, the value is new.
            stored = map(self._first.setdefault, values, times)
            again = [pair for pair, first in zip(found, stored, strict=True) if first is not pair[0]]
            found = again
        else:
            return None
        self._latest = times[-1]
        if again:
            times, values = zip(*again, strict=True)
            self._more.update(values)
            self._last.update(zip(values, times, strict=True))
        return len(found) - len(again)

    def add(self, value: bytes | None, first: bytes, last: bytes, count: int = 1) -> bool:
        """Counts occurrences of a value; returns False, with nothing counted, for a new value beyond MAX_VALUES."""
        known = self._first.get(value)
        if known is None:
            if len(self._first) >= MAX_VALUES:
                return False
            self._first[value] = first
            count -= 1
        elif first and (first < known or not known):
            self._first[value] = first
        if count:
            self._more[value] += count
            self._last[value] = max(self._last.get(value, known or b""), last)
        self._latest = max(self._latest, last)
        return True

    def into_shown(self, show: Callable[[bytes | None], str]) -> Values:
        """Returns the values in printed form (ASCII), with equal ones combined; this object is empty afterwards."""
        printed = Values()
        while self._first:
            value, first = self._first.popitem()
            count, last = 1 + self._more.pop(value, 0), self._last.pop(value, first)
            printed.add(show(value).encode("ascii"), first, last, count)
        return printed

    def are_plain(self) -> bool:
        """Whether all values are printable ASCII without escapes, and none is empty or missing."""
        if None in self._first or b"" in self._first:
            return False
        values = iter(self._first)
        while some := b"\n".join(value or b"" for value in islice(values, _AT_ONCE)):
            if _ODD.search(some):
                return False
        return True

    def by_count(self) -> Iterator[tuple[int, list[tuple[bytes, bytes, bytes]]]]:
        """Yields a count and the values with this count, each with its first and last time.

        The highest count comes first, the values are in alphabetical order, and no more than _AT_ONCE come at a time.
        """
        groups: defaultdict[int, list[bytes]] = defaultdict(list)
        more = self._more.get
        for value in self._first:
            assert value is not None
            groups[more(value, 0)].append(value)
        for again in sorted(groups, reverse=True):
            values = iter(sorted(groups.pop(again)))
            while some := [*islice(values, _AT_ONCE)]:
                first = [*map(self._first.__getitem__, some)]
                last = map(self._last.__getitem__, some) if again else first
                yield again + 1, [*zip(some, first, last, strict=True)]


# Bytes that the printed form of a value escapes. A line feed only separates values.
_ODD = re.compile(rb"[^\n -~]|\\")


class _Counter:
    """Counts raw values: the bytes of the log, or None if the log has no value."""

    def __init__(self, search: Search, by: By) -> None:
        self._by = _COUNTED_BY.get(by, by)
        self._tally = Tally(by, Values())
        self._matcher = Matcher(search)
        self._search = search
        self._pattern = functools.cache(functools.partial(_pattern, self._by))
        self._clock = LogClock()
        self._times = _Times()

    def add(self, batch: Batch) -> None:
        """Counts the matching decisions or mails of a batch."""
        if batch.text and self._by in _TEXT and self._search.is_everything and self._add_text(batch.text):
            return
        for found in found_in(batch, self._matcher, self._clock):
            source = found.source
            if isinstance(source, LoggedDecision) and _STANDARD_TIME.fullmatch(source.time):
                time = self._times.of(source.time)
            else:
                time = self._times.of_seconds(found.time)
            self._tally.found += 1
            for value in _values(found, self._by, self._search.ruleset):
                self._count(time, value)

    def _add_text(self, text: bytes) -> bool:
        """Counts decisions. Returns False, with nothing counted, if a line has another form, or may be a probe."""
        found = self._read(text)
        if found is None or _PROBE in text:
            return False
        search = self._search
        if search.since is not None:
            since = self._times.of_seconds(search.since)
            found = [pair for pair in found if pair[0] >= since]
        if search.until is not None:
            until = self._times.of_seconds(search.until)
            found = [pair for pair in found if pair[0] < until]
        if found:
            self._tally.found += len(found)
            others = self._tally.values.add_in_order(found)
            if others is None:
                for time, value in found:
                    self._count(time, value)
            else:
                self._tally.others += others
        return True

    def _read(self, text: bytes) -> Sequence[tuple[bytes, bytes | None]] | None:
        """Reads time and value of each line; returns None if a line does not match the pattern."""
        lines = text.count(b"\n")
        is_json = text.startswith(b"{")
        offset = self._times.offset
        found = self._pattern(offset, as_json=is_json).findall(text) if offset else ()
        if len(found) != lines:
            found = self._pattern(b"", as_json=is_json).findall(text)
            if len(found) != lines:
                return None
            found = [(self._times.of(groups[0]), *groups[1:]) for groups in found]
        if self._by is By.HOSTNAME:
            return [(time, name or (_UNVERIFIED + claimed if claimed else None)) for time, claimed, name in found]
        return found

    def _count(self, time: bytes, value: bytes | None) -> None:
        if not self._tally.values.add(value, time, time):
            self._tally.others += 1

    def finish(self) -> Tally:
        """Combines raw values into printed values."""
        tally = self._tally
        if not (self._by is tally.by and tally.by in _SHOWN_AS_LOGGED and tally.values.are_plain()):
            tally.values = tally.values.into_shown(_SHOWN[tally.by])
        return tally


# Derived keys are counted by their source key, and combined at the end.
_COUNTED_BY = {By.NETWORK: By.CLIENT, By.SENDER_DOMAIN: By.SENDER}


# --- Values -----------------------------------------------------------------------------------------------------------

# Marks a claimed name: before the raw name, and after the printed name. No log has this byte raw.
_UNVERIFIED = b"\0"


def _values(found: Found, by: By, ruleset: Ruleset | None) -> Sequence[bytes | None]:
    """Returns the raw values of a key: all recipients of a mail; for any other key one value."""
    match by:
        case By.CLIENT:
            return (found.client_address,)
        case By.HOSTNAME:
            if not found.names:
                return (None,)
            return (found.names[0] if found.verified else _UNVERIFIED + found.names[0],)
        case By.SENDER:
            return (found.sender,)
        case By.RECIPIENT:
            return found.recipients or (None,)
        case _:
            asn = owner_in(found.source, ruleset).asn
            return (b"%d" % asn if asn else None,)


def _unescaped(raw: bytes) -> bytes:
    return unescape(raw) if b"\\" in raw else raw


def _plain(raw: bytes | None) -> str:
    """Returns a value in printed form; a printable value without escapes is unchanged, and an empty value is `-`."""
    text = (raw or b"").decode("ascii", "replace")
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text or "-"
    return shown(_unescaped(raw or b""))


def _hostname(raw: bytes | None) -> str:
    """Returns a printed name. A claimed name has its mark at the end, which keeps the alphabetical order."""
    if raw is None:
        return "unknown"
    name = shown(fold_name(_unescaped(raw.removeprefix(_UNVERIFIED))))
    return name + _UNVERIFIED.decode() if raw.startswith(_UNVERIFIED) else name


def _network(raw: bytes | None) -> str:
    address = parse_address(_unescaped(raw or b""))
    if address is None:
        return _plain(raw)
    return str(block_of(*part_of(*address)))


def _sender(raw: bytes | None) -> str:
    return "-" if raw is None else _plain(raw) if raw else "<>"


def _sender_domain(raw: bytes | None) -> str:
    return "-" if raw is None else shown(domain_of(_unescaped(raw))) or "<>"


# By key: the function that makes the printed form of a raw value.
_SHOWN: dict[By, Callable[[bytes | None], str]] = {
    By.HOSTNAME: _hostname,
    By.CLIENT: _plain,
    By.NETWORK: _network,
    By.SENDER: _sender,
    By.SENDER_DOMAIN: _sender_domain,
    By.RECIPIENT: _plain,
    By.ASN: _plain,
}

# Keys whose values are printed as logged if `Values.are_plain`.
_SHOWN_AS_LOGGED = frozenset({By.CLIENT, By.SENDER, By.RECIPIENT, By.ASN})


# --- Times ------------------------------------------------------------------------------------------------------------


class _Times:
    """Converts times to RFC 3339 with one offset, that of the first time, so that they compare as bytes."""

    def __init__(self) -> None:
        self.offset = b""
        self._zone: datetime.tzinfo = datetime.UTC
        self._minutes: dict[bytes, bytes] = {}

    def of(self, time: bytes) -> bytes:
        """Converts a time of the form `2026-11-21T17:16:00.123+09:00` (_STANDARD_TIME)."""
        offset = self.offset or self._use(time)
        if time.endswith(offset):
            return time
        key = time[:16] + time[23:]
        minute = self._minutes.get(key)
        if minute is None:
            moment = datetime.datetime.fromisoformat((time[:16] + b":00" + time[23:]).decode())
            minute = self._minutes[key] = moment.astimezone(self._zone).strftime("%Y-%m-%dT%H:%M").encode()
            if len(self._minutes) > _MAX_MINUTES:
                self._minutes.clear()
        return minute + time[16:23] + offset

    def of_seconds(self, seconds: float | None) -> bytes:
        """Converts a time in Unix seconds; the result is empty for None."""
        if seconds is None:
            return b""
        if not self.offset:
            self._use(datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="milliseconds").encode())
        moment = datetime.datetime.fromtimestamp(seconds, self._zone)
        return moment.isoformat(timespec="milliseconds").encode()

    def _use(self, time: bytes) -> bytes:
        self.offset = time[23:]
        self._zone = datetime.datetime.fromisoformat(time.decode()).tzinfo or datetime.UTC
        return self.offset
