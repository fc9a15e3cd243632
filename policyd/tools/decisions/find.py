"""Finds decisions in decision logs, and mails in mail logs: by client, name, sender, recipient and time.

`every` gives them one by one; `tally` counts the distinct values of one key, with the first and the last time of each.
A line is read in full only if it may be wanted: most lines are passed over after a search for a few bytes, or counted
by one expression over a whole block.
"""

from __future__ import annotations

import datetime
import functools
import re
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from policyd.core.address import parse_address
from policyd.core.normalize import domain_of, fold_name, fold_value
from policyd.decision_log.reader import LoggedDecision, as_text, parse_anywhere
from policyd.decision_log.record import unescape
from policyd.logs.counting import without_garbage_collection
from policyd.logs.either import Batch, batches
from policyd.logs.timestamps import LogClock, rfc3339
from policyd.logs.transaction import NameStatus, Observation, Outcome
from policyd.tools.address_blocks import Block, part_of
from policyd.tools.display import shown
from policyd.tools.owned import owner_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import netaddr

    from policyd.core.index import Ruleset
    from policyd.core.owners import Owner

# Distinct values that are counted, 350 bytes each. What is beyond is counted together.
MAX_VALUES = 1_000_000

# Addresses whose membership in the wanted networks is remembered.
_MAX_REMEMBERED = 100_000

Source: TypeAlias = "LoggedDecision | Observation"


class By(StrEnum):
    """The key whose distinct values are counted."""

    HOSTNAME = "hostname"
    CLIENT = "client"
    NETWORK = "network"
    SENDER = "sender"
    SENDER_DOMAIN = "sender_domain"
    RECIPIENT = "recipient"
    ASN = "asn"


@dataclass(frozen=True, slots=True)
class Search:
    """Filter of a search; an empty part selects all. `since` is the first second (Unix), `until` the end, exclusive.

    `suffix` is as in `hostname_suffix`, and finds names that are only claimed as well. `sender` and `recipient` are an
    address, or a domain (then addresses at it or under it); `<>` is the null sender. `asn` and `country` are of the
    owner of the client's address, as the line says, or else the databases of `ruleset`.
    """

    networks: tuple[netaddr.IPNetwork, ...] = ()
    suffix: str = ""
    sender: str = ""
    recipient: str = ""
    since: float | None = None
    until: float | None = None
    asn: int = 0
    country: str = ""
    ruleset: Ruleset | None = None

    @property
    def is_everything(self) -> bool:
        """Whether nothing but the time is asked for."""
        return not (self.networks or self.suffix or self.sender or self.recipient or self.asn or self.country)

    def covers(self, time: float | None) -> bool:
        """Whether a time (Unix seconds) lies between `since` and `until`; an unknown one only if neither is given."""
        if time is None:
            return self.since is None and self.until is None
        return (self.since is None or time >= self.since) and (self.until is None or time < self.until)


class Found(NamedTuple):
    """The searchable parts of a decision or a mail. `time` is in Unix seconds; `verified` is said of the first name."""

    time: float | None
    client_address: bytes
    names: tuple[bytes, ...]
    verified: bool
    sender: bytes | None
    recipients: tuple[bytes, ...]
    asn: bytes
    source: Source


@dataclass(slots=True)
class Count:
    """How often a value came, and from when to when (RFC 3339, empty if the log does not say)."""

    value: str
    count: int
    first: str
    last: str
    verified: bool = True


@dataclass(slots=True)
class Tally:
    """The distinct values, the most frequent first; `others` were too many to tell apart. `found` counts all."""

    by: By
    counts: list[Count] = field(default_factory=list)
    found: int = 0
    others: int = 0


# --- One by one -------------------------------------------------------------------------------------------------------


def every(paths: Sequence[str], search: Search, advance: Callable[[int], None] | None = None) -> Iterator[Found]:
    """The decisions or mails that are wanted, in the order of the logs. Raises `LogError`."""
    matcher = _Matcher(search)
    clock = LogClock()
    for batch in batches(paths, advance):
        yield from _found(batch, matcher, clock)


def _found(batch: Batch, matcher: _Matcher, clock: LogClock) -> Iterator[Found]:
    for line in matcher.candidates(batch.text):
        decision = parse_anywhere(line)
        if decision is not None and not decision.is_probe:
            found = _of_decision(decision, clock)
            if matcher.matches(found):
                yield found
    for mail in batch.mails:
        found = _of_mail(mail)
        if matcher.matches(found):
            yield found


def _of_decision(decision: LoggedDecision, clock: LogClock) -> Found:
    return Found(
        clock.seconds(decision.time),
        decision.client_address,
        ((decision.hostname,) if decision.hostname else ()) + decision.claimed,
        bool(decision.hostname),
        decision.sender,
        (decision.recipient,) if decision.recipient else (),
        b"%d" % decision.asn if decision.asn else b"",
        decision,
    )


def _of_mail(mail: Observation) -> Found:
    verified = mail.name_status is NameStatus.VERIFIED
    return Found(mail.time, mail.client_address, mail.names, verified, mail.sender, mail.recipients, b"", mail)


class _Matcher:
    """Tells whether something is wanted; of lines, cheaply, whether they may be."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._suffix = fold_name(search.suffix.encode("utf-8", "surrogateescape"))
        self._sender = _address_or_domain(search.sender)
        self._recipient = _address_or_domain(search.recipient)
        self._needle = self._longest_needle()
        self._remembered: dict[bytes, bool] = {}

    def candidates(self, text: bytes) -> Sequence[bytes]:
        """The lines of a decision log that may be wanted."""
        needle = self._needle
        if needle and needle not in text.lower():
            return ()
        lines = text.split(b"\n")
        if needle:
            lines = [line for line in lines if needle in line.lower()]
        if self._search.networks:
            lines = [line for line in lines if self._may_be_in_networks(line)]
        return lines

    def matches(self, found: Found) -> bool:
        """Whether a decision or a mail is wanted."""
        search = self._search
        if not search.covers(found.time):
            return False
        if search.networks and not self._in_networks(found.client_address):
            return False
        if self._suffix and not is_under(found.names, self._suffix):
            return False
        if not self._is_owned(found):
            return False
        if self._sender and not (found.sender is not None and _is_at(found.sender, self._sender)):
            return False
        return not self._recipient or any(_is_at(each, self._recipient) for each in found.recipients)

    def _is_owned(self, found: Found) -> bool:
        search = self._search
        if not (search.asn or search.country):
            return True
        owner = owner_in(found.source, search.ruleset)
        return (not search.asn or owner.asn == search.asn) and (not search.country or owner.country == search.country)

    def _longest_needle(self) -> bytes:
        """Bytes that every wanted line has, whatever the format: letters that neither format escapes."""
        network = self._search.networks[0] if len(self._search.networks) == 1 else None
        address = str(network.ip).encode() if network is not None and str(network.cidr).endswith("/32") else b""
        plain = [
            each
            for each in (self._suffix.lstrip(b"."), self._sender, self._recipient, address)
            if re.fullmatch(rb"[a-z0-9@._-]+", each)
        ]
        return max(plain, key=len, default=b"")

    def _may_be_in_networks(self, line: bytes) -> bool:
        client = _CLIENT.search(line)
        return client is None or self._in_networks(client[1] if client[1] is not None else client[2])

    def _in_networks(self, text: bytes) -> bool:
        known = self._remembered.get(text)
        if known is None:
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            known = self._remembered[text] = in_networks(text, self._search.networks)
        return known


# Where a decision log has the client's address, in both formats. A client's words cannot look like either: a blank is
# escaped in one format, a quote in the other; but a reply may, at the end of the line.
_CLIENT = re.compile(rb' client=[^\[ ]*\[([^\] ]*)\]|"client_address":\s?"([^"]*)"')


def in_networks(text: bytes, networks: Sequence[netaddr.IPNetwork]) -> bool:
    """Whether an address lies in one of the networks."""
    parsed = parse_address(text)
    if parsed is None:
        return False
    version, number = parsed
    return any(network.version == version and network.first <= number <= network.last for network in networks)


def owner_in(source: Source, ruleset: Ruleset | None) -> Owner:
    """Returns the owner of the client: as the line says, or else the databases of a ruleset."""
    logged = source.owner
    return logged if logged.asn or logged.country else owner_of(ruleset, source.client_address, logged)


def is_under(names: Sequence[bytes], suffix: bytes) -> bool:
    """Whether a name is the folded suffix or lies under it; a leading dot means only under."""
    bare = suffix.lstrip(b".")
    return any(name.endswith(b"." + bare) or (name == bare and bare == suffix) for name in map(fold_name, names))


def _address_or_domain(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    if raw.removeprefix(b"<").removesuffix(b">").count(b"@"):
        return fold_value(raw.removeprefix(b"<").removesuffix(b">"))
    return raw if raw == b"<>" else fold_name(raw)


def _is_at(address: bytes, wanted: bytes) -> bool:
    if wanted == b"<>":
        return not address
    if b"@" in wanted.lstrip(b"@"):
        return fold_value(address) == wanted
    domain, wanted = domain_of(address), wanted.lstrip(b"@.")
    return domain == wanted or domain.endswith(b"." + wanted)


# --- Counted ----------------------------------------------------------------------------------------------------------


def tally(paths: Sequence[str], search: Search, by: By, advance: Callable[[int], None] | None = None) -> Tally:
    """Counts the distinct values of what is wanted. Raises `LogError`."""
    counter = _Counter(search, by)
    with without_garbage_collection():
        for batch in batches(paths, advance):
            counter.add(batch)
        return counter.finish()


# One expression reads a whole block: each match is a whole line, with its time and a value that is to be counted. In
# the text format, everything before the value is without blanks and quotes, so a reply, which comes last, is never
# taken for a field; in JSON a quote within a value is escaped, so no value is taken for a key.
_TIME = rb"(\d\d\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\d%b)"
_ANY_OFFSET = rb"(?:Z|[+-]\d\d:\d\d)"
_STANDARD_TIME = re.compile(_TIME % _ANY_OFFSET)
_VERB = rb"(?:REJECT|DEFER_IF_PERMIT|DEFER|DUNNO)"
_TO_CLIENT = rb"(?:would=[A-Z_]+ )?(?:id=\w+ )?(?:rule=[\w.-]+ )?client="
_FIELDS = rb'(?:[a-z_]+=[^ "\n]* )*?'
_OWNER = rb"(?:asn=[^ \n]* )?(?:country=[^ \n]* )?"
_TEXT = {
    By.CLIENT: _TO_CLIENT + rb"[^\[ \n]*\[([^\] \n]*)\] ",
    # A client without a verified name: the first of those that it claims, if there is one.
    By.HOSTNAME: _TO_CLIENT + rb"(?:unknown\[[^\] \n]*\] %b(?:claimed=([^ ,\n]*))?|([^\[ \n]*)\[)" % _OWNER,
    By.SENDER: _FIELDS + rb"from=<([^> \n]*)>",
    By.RECIPIENT: _FIELDS + rb"to=<([^> \n]*)>",
}
_JSON_OWNER = rb'(?:,"(?:asn|asn_name|country)":(?:"[^"\\\n]*"|\d+))*'
_JSON = {
    By.CLIENT: rb'[^\n]*?"client_address":"([^"\\\n]*)"',
    By.HOSTNAME: rb'[^\n]*?"hostname":(?:"unknown"%b(?:,"claimed":\["([^"\\\n]*)")?|"([^"\\\n]*)")' % _JSON_OWNER,
    By.SENDER: rb'[^\n]*?"sender":"([^"\\\n]*)"',
    By.RECIPIENT: rb'[^\n]*?"recipient":"([^"\\\n]*)"',
}


def _pattern(by: By, offset: bytes, *, as_json: bool) -> re.Pattern[bytes]:
    """Compiles the pattern that finds time and value in lines with this offset, or with any offset if it is empty."""
    time = _TIME % (re.escape(offset) or _ANY_OFFSET)
    if as_json:
        return re.compile(rb'\{"time":"%b","action":"%b",%b[^\n]*\n' % (time, _VERB, _JSON[by]))
    return re.compile(rb"%b %b %b[^\n]*\n" % (time, _VERB, _TEXT[by]))


# Keys that follow from another one are counted by that, and put together at the end.
_COUNTED_BY = {By.NETWORK: By.CLIENT, By.SENDER_DOMAIN: By.SENDER}

# `policyd doctor` asks with this instance, in either format.
_PROBE = b"policyd-doctor"

Entry: TypeAlias = "list[Any]"  # how often, the first time, the last time


class _Counter:
    """Counts raw values: bytes as the log has them, or None if it has none."""

    def __init__(self, search: Search, by: By) -> None:
        self._tally = Tally(by)
        self._by = _COUNTED_BY.get(by, by)
        self._matcher = _Matcher(search)
        self._search = search
        self._pattern = functools.cache(functools.partial(_pattern, self._by))
        self._clock = LogClock()
        self._times = _Times()
        self._entries: dict[bytes | None, Entry] = {}

    def add(self, batch: Batch) -> None:
        """Counts what is wanted of a batch."""
        if batch.text and self._by in _TEXT and self._search.is_everything and self._add_text(batch.text):
            return
        for found in _found(batch, self._matcher, self._clock):
            source = found.source
            if isinstance(source, LoggedDecision) and _STANDARD_TIME.fullmatch(source.time):
                time = self._times.of(source.time)
            else:
                time = self._times.of_seconds(found.time)
            self._tally.found += 1
            for value in _values(found, self._by):
                self._count(value, time)

    def _add_text(self, text: bytes) -> bool:
        """Counts lines of the decision log; False, with nothing counted, if any of them is something else."""
        lines = text.count(b"\n")
        is_json = text.startswith(b"{")
        offset = self._times.offset
        found = self._pattern(offset, as_json=is_json).findall(text) if offset else ()
        if len(found) != lines:
            found = self._pattern(b"", as_json=is_json).findall(text)
            if len(found) != lines:
                return False
            found = [(self._times.of(each[0]), *each[1:]) for each in found]
        if _PROBE in text:
            return False
        if self._by is By.HOSTNAME:
            found = [(time, name or (_UNVERIFIED + claimed if claimed else None)) for time, claimed, name in found]
        search = self._search
        if search.since is not None:
            since = self._times.of_seconds(search.since)
            found = [each for each in found if each[0] >= since]
        if search.until is not None:
            until = self._times.of_seconds(search.until)
            found = [each for each in found if each[0] < until]
        self._tally.found += len(found)
        entries = self._entries
        get = entries.get
        for time, value in found:
            entry = get(value)
            if entry is None:
                self._count(value, time)
                continue
            entry[0] += 1
            if time > entry[2]:
                entry[2] = time
            elif time < entry[1]:
                entry[1] = time
        return True

    def _count(self, value: bytes | None, time: bytes) -> None:
        entry = self._entries.get(value)
        if entry is None:
            if len(self._entries) >= MAX_VALUES:
                self._tally.others += 1
            else:
                self._entries[value] = [1, time, time]
            return
        entry[0] += 1
        if time:
            entry[1] = min(entry[1] or time, time)
            entry[2] = max(entry[2], time)

    def finish(self) -> Tally:
        """Puts raw values together as they are shown."""
        tally = self._tally
        show = _SHOWN[tally.by]
        together: dict[str, Count] = {}
        while self._entries:
            raw, (count, first, last) = self._entries.popitem()
            value = show(raw)
            known = together.get(value)
            if known is None:
                begin = first.decode()
                together[value] = Count(value, count, begin, begin if last is first else last.decode())
            else:
                known.count += count
                known.first = min(known.first or first.decode(), first.decode() or known.first)
                known.last = max(known.last, last.decode())
        tally.counts = [*together.values()]
        if tally.by is By.HOSTNAME:
            for each in tally.counts:
                each.verified = not each.value.startswith("\0")
                each.value = each.value.removeprefix("\0")
        tally.counts.sort(key=attrgetter("value"))
        tally.counts.sort(key=attrgetter("count"), reverse=True)
        return tally


_UNVERIFIED = b"\0"  # before a name that is only claimed: no log has this byte raw


def _values(found: Found, by: By) -> Sequence[bytes | None]:
    """The raw values of a key; a mail may have several recipients."""
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
            return (found.asn or None,)


def _unescaped(raw: bytes) -> bytes:
    return unescape(raw) if b"\\" in raw else raw


def _plain(raw: bytes | None) -> str:
    """A value as it is, if that is printable."""
    text = (raw or b"").decode("ascii", "replace")
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text or "-"
    return shown(_unescaped(raw or b""))


def _hostname(raw: bytes | None) -> str:
    """A name that is only claimed keeps its mark."""
    if raw is None:
        return "unknown"
    name = shown(fold_name(_unescaped(raw.removeprefix(_UNVERIFIED))))
    return f"\0{name}" if raw.startswith(_UNVERIFIED) else name


def _network(raw: bytes | None) -> str:
    address = parse_address(_unescaped(raw or b""))
    if address is None:
        return _plain(raw)
    version, part = part_of(*address)
    prefix, width = (24, 32) if version == 4 else (48, 128)
    return str(Block(version, part << (width - prefix), prefix))


def _sender(raw: bytes | None) -> str:
    return "-" if raw is None else _plain(raw) if raw else "<>"


def _sender_domain(raw: bytes | None) -> str:
    return "-" if raw is None else shown(domain_of(_unescaped(raw))) or "<>"


# How a raw value is shown.
_SHOWN: dict[By, Callable[[bytes | None], str]] = {
    By.HOSTNAME: _hostname,
    By.CLIENT: _plain,
    By.NETWORK: _network,
    By.SENDER: _sender,
    By.SENDER_DOMAIN: _sender_domain,
    By.RECIPIENT: _plain,
    By.ASN: _plain,
}


class _Times:
    """Times as RFC 3339 with one offset, so that they compare as bytes: the offset of the first that is seen."""

    def __init__(self) -> None:
        self.offset = b""
        self._zone: datetime.tzinfo = datetime.UTC
        self._minutes: dict[bytes, bytes] = {}

    def of(self, time: bytes) -> bytes:
        """A time of the decision log, `2026-11-21T17:16:00.123+09:00`, with the offset."""
        offset = self.offset or self._use(time)
        if time.endswith(offset):
            return time
        key = time[:16] + time[23:]
        minute = self._minutes.get(key)
        if minute is None:
            moment = datetime.datetime.fromisoformat((time[:16] + b":00" + time[23:]).decode())
            minute = self._minutes[key] = moment.astimezone(self._zone).strftime("%Y-%m-%dT%H:%M").encode()
            if len(self._minutes) > _MAX_REMEMBERED:
                self._minutes.clear()
        return minute + time[16:23] + offset

    def of_seconds(self, seconds: float | None) -> bytes:
        """A time in Unix seconds; empty for None."""
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


# --- As lines ---------------------------------------------------------------------------------------------------------


def is_refused(source: Source) -> bool:
    """Whether the mail was refused, for good or for now; under `mode: observe`, whether it would have been."""
    if isinstance(source, LoggedDecision):
        return source.decided != b"DUNNO"
    return source.outcome in {Outcome.REJECTED, Outcome.DEFERRED}


def time_of(source: Source) -> str:
    """When it was decided, or the mail came, in RFC 3339."""
    return shown(source.time) if isinstance(source, LoggedDecision) else rfc3339(source.time)


def as_line(source: Source) -> str:
    """A decision in the text format of the decision log, a mail in its style: printable ASCII."""
    if isinstance(source, LoggedDecision):
        return as_text(source)
    name = shown(source.names[0]) if source.names and source.name_status is NameStatus.VERIFIED else "unknown"
    words = [rfc3339(source.time), source.outcome.upper(), f"client={name}[{shown(source.client_address)}]"]
    if source.names and source.name_status is not NameStatus.VERIFIED:
        words.append(f"claimed={','.join(map(_word, source.names))}")
    if source.sender is not None:
        words.append(f"from=<{_word(source.sender)}>")
    words += [f"to=<{_word(recipient)}>" for recipient in source.recipients]
    if source.helo_name:
        words.append(f"helo=<{_word(source.helo_name)}>")
    if source.by:
        words.append(f"by={_word(source.by)}")
    if source.text:
        words.append(f'reply="{shown(source.text).replace(chr(34), chr(92) + "x22")}"')
    return " ".join(words)


def _word(value: bytes) -> str:
    """Without blanks and brackets, as in the decision log."""
    return re.sub(r"[ \"'<>]", lambda found: f"\\x{ord(found[0]):02x}", shown(value))


def mail_as_json(mail: Observation) -> dict[str, Any]:
    """A mail as an object with the decision log's keys where there is one for it."""
    fields: dict[str, Any] = {
        "time": rfc3339(mail.time) if mail.time is not None else None,
        "outcome": str(mail.outcome),
        "client_address": shown(mail.client_address) or None,
        "hostname": shown(mail.names[0]) if mail.names and mail.name_status is NameStatus.VERIFIED else "unknown",
        "claimed": [shown(name) for name in mail.names] if mail.name_status is not NameStatus.VERIFIED else None,
        "sender": shown(mail.sender) if mail.sender is not None else None,
        "recipients": [shown(recipient) for recipient in mail.recipients] or None,
        "helo_name": shown(mail.helo_name) or None,
        "sasl_username": shown(mail.sasl_username) or None,
        "by": shown(mail.by) or None,
        "reply": shown(mail.text) or None,
    }
    return {key: value for key, value in fields.items() if value is not None and value != []}
