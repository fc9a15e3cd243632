"""Writes one decision as a line of the decision log: text or JSON.

Promises one line of printable ASCII of at most 4 KiB, whatever text a client or DNS sends. A common line in the text
format is made by a single `%`, after a single check that nothing in it needs an escape (about 2 us together). Every
other line is made by `policyd.decision_log.record`, which makes the same line for the same decision.
"""

from __future__ import annotations

import time
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from policyd.core.identity import Status
from policyd.core.owners import NO_OWNER
from policyd.core.protocol import SENDER_STATES
from policyd.core.ruleset import Verb
from policyd.decision_log.lists import format_answers
from policyd.decision_log.record import (
    KEPT_WHEN_EMPTY,
    LIMITS,
    MAX_LINE,
    NO_NAME,
    PLAIN,
    PLAIN_IN_QUOTES,
    format_json,
    format_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from policyd.core.engine import Decision
    from policyd.core.owners import Owner
    from policyd.core.protocol import Request
    from policyd.decision_log.record import Value


class DecisionEntry(NamedTuple):
    """One decision, as it is logged."""

    time: bytes  # RFC 3339
    decision_id: bytes
    request: Request
    decision: Decision
    hostname: bytes  # the verified name; empty if there is none
    reply: bytes  # the code and text that Postfix was sent
    ruleset: str  # its hash
    dns_seconds: float  # spent waiting for DNS; 0 if the decision did not wait
    seconds: float  # from the request's arrival to its answer
    memory_is_local: bool = False  # the shared memory did not answer, so the process's own did


def record_of(entry: DecisionEntry) -> dict[str, Value]:
    """Returns the fields of a decision, without those that are empty (except KEPT_WHEN_EMPTY)."""
    get = entry.request.get
    decision, identity = entry.decision, entry.decision.identity
    owner = decision.owner or NO_OWNER
    record: dict[str, Value | None] = {
        "time": entry.time,
        "action": str(decision.action),
        "would": str(decision.verb) if decision.verb != decision.action else None,
        "id": entry.decision_id,
        "rule": decision.rule.name if decision.rule is not None else None,
        "client_address": get("client_address"),
        "hostname": entry.hostname or NO_NAME,
        "asn": owner.asn,
        "asn_name": owner.asn_name,
        "country": owner.country,
        "claimed": identity.claimed if identity is not None else None,
        "reverse_dns": str(identity.status) if identity is not None else None,
        "lists": format_answers(decision.lists),
        "dns_error": str(identity.reason) if identity is not None and identity.reason is not None else None,
        "downgraded": decision.downgraded,
        "protocol_state": get("protocol_state"),
        "sender": get("sender") or (b"" if get("protocol_state") in SENDER_STATES else None),
        "recipient": get("recipient"),
        "helo_name": get("helo_name"),
        "sasl_username": get("sasl_username"),
        "instance": get("instance"),
        "queue_id": get("queue_id"),
        "observed": tuple(name.encode() for name in decision.observed),
        "greylist": str(decision.greylist) if decision.greylist is not None else None,
        "memory": "local" if entry.memory_is_local else None,
        "ruleset": entry.ruleset,
        "dns_ms": round(entry.dns_seconds * 1000, 1) if entry.dns_seconds else None,
        "ms": round(entry.seconds * 1000, 1),
        "reply": entry.reply,
    }
    return {key: value for key, value in record.items() if value or (value is not None and key in KEPT_WHEN_EMPTY)}


def _fit_line(format_record: Callable[[Mapping[str, Value], int], bytes], entry: DecisionEntry) -> bytes:
    """The line of an entry, with its values cut no more than necessary."""
    record = record_of(entry)
    for limit in LIMITS:
        line = format_record(record, limit) + b"\n"
        if len(line) <= MAX_LINE:
            break
    return line


def json_line(entry: DecisionEntry) -> bytes:
    """Returns a decision as one JSON object."""
    return _fit_line(format_json, entry)


_LINE = b"%b %b id=%b%b client=%b[%b]%b%b state=%b from=<%b> to=<%b> helo=<%b>%b instance=%b%b ruleset=%b%b ms=%.1f%b\n"
_BRACKET = 0x5B  # `[`; searching for its number is ten times as fast as for b"["
_DUNNO = Verb.DUNNO  # before Python 3.12, looking up an Enum member takes 0.1 us


class _AttributeGetter:
    """Gets several attributes together, five times as fast as one by one.

    It remembers their places in the last request, because requests with a known layout share one mapping of places.
    """

    __slots__ = ("_names", "_places", "_take")

    def __init__(self, *names: str) -> None:
        self._names = names
        self._find({})

    def of(self, request: Request) -> tuple[bytes, ...]:
        """Returns the values of the attributes; empty for an attribute that Postfix did not send."""
        if request.places is not self._places:
            self._find(request.places)
        return self._take(request.values)

    def _find(self, places: Mapping[str, int]) -> None:
        self._places = places
        wanted = [places.get(name) for name in self._names]
        self._take: Callable[[Sequence[bytes]], tuple[bytes, ...]]
        if None in wanted:
            self._take = lambda values: tuple([b"" if place is None else values[place] for place in wanted])
        else:
            self._take = itemgetter(*wanted)


_ATTRIBUTES = _AttributeGetter(
    *("protocol_state", "client_address", "sender", "recipient", "helo_name", "instance", "sasl_username", "queue_id")
)
_RDNS = {status: b" rdns=" + status.encode() for status in Status}


def text_line(entry: DecisionEntry) -> bytes:
    """Returns a decision as a line of the text format, in the style of Postfix's own log."""
    time, decision_id, request, decision, hostname, reply, ruleset, dns_seconds, seconds, is_local = entry
    verb, rule, _, _, observed, downgraded, identity, observing, lists, _, owner, greylist, _ = decision
    state, address, sender, recipient, helo_name, instance, sasl_username, queue_id = _ATTRIBUTES.of(request)
    from_outside = b"".join((state, address, hostname, sender, recipient, helo_name, sasl_username, instance, queue_id))
    if (
        from_outside.translate(None, PLAIN)
        or reply.translate(None, PLAIN_IN_QUOTES)
        or not (address and recipient and helo_name and instance)
        or state not in SENDER_STATES
        or _BRACKET in hostname
        or downgraded
        or (observing and verb is not _DUNNO)
        or (identity is not None and (identity.claimed or identity.reason is not None))
    ):
        return _fit_line(format_text, entry)
    owner_fields = b""
    if owner is not None:
        asn, _, country = owner
        owner_fields = f" asn={asn} country={country}".encode() if asn and country else _owner_fields(owner)
    dns_fields = _RDNS[identity.status] if identity is not None else b""
    if lists and (answers := format_answers(lists)):
        dns_fields += b" lists=" + b",".join(answers)
    more = b" queue_id=" + queue_id if queue_id else b""
    if observed:
        more += b" observed=" + ",".join(observed).encode()
    if greylist is not None:
        more += b" greylist=" + greylist.encode()
    if is_local:
        more += b" memory=local"
    line = _LINE % (
        time,
        verb.encode(),
        decision_id,
        b" rule=" + rule.name.encode() if rule is not None else b"",
        hostname or NO_NAME,
        address,
        owner_fields,
        dns_fields,
        state,
        sender,
        recipient,
        helo_name,
        b" sasl_username=" + sasl_username if sasl_username else b"",
        instance,
        more,
        ruleset.encode(),
        b" dns_ms=%.1f" % (dns_seconds * 1000) if dns_seconds else b"",
        seconds * 1000,
        b' reply="%b"' % reply if reply else b"",
    )
    return line if len(line) <= MAX_LINE else _fit_line(format_text, entry)


def _owner_fields(owner: Owner) -> bytes:
    """The fields of an owner for which the system or the country is not known."""
    asn, _, country = owner
    if asn:
        return b" asn=%d" % asn
    return b" country=" + country.encode() if country else b""


class Timestamps:
    """Formats the current time for the log: RFC 3339 with milliseconds and the offset of local time."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._millisecond = self._second = -1
        self._start = self._offset = self._timestamp = b""

    def now(self) -> bytes:
        """Returns the current timestamp. Its milliseconds are formatted once each, the rest once per second."""
        millisecond = int(self._clock() * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            second, rest = divmod(millisecond, 1000)
            if second != self._second:
                self._second = second
                local = time.localtime(second)
                self._start = time.strftime("%Y-%m-%dT%H:%M:%S", local).encode()
                minutes = abs(local.tm_gmtoff) // 60
                self._offset = b"%c%02d:%02d" % (b"-+"[local.tm_gmtoff >= 0], minutes // 60, minutes % 60)
            self._timestamp = b"%b.%03d%b" % (self._start, rest, self._offset)
        return self._timestamp
