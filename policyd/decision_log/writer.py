"""Writes one decision as a line of the decision log: text or JSON.

Promises one line of printable ASCII of at most 4 KiB whatever the client or DNS said. `text_line` and `json_line` are
pure: everything that they show is passed in. The common line is made by one bytes format and one check that nothing in
it needs an escape (about 2 us together); unusual lines go the general way, which makes the same line.
"""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from policyd.core.identity import Status
from policyd.core.protocol import SENDER_STATES, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from policyd.core.engine import Decision

# A line's bound, with its line end: PIPE_BUF, so that a write to a pipe is all or nothing (pipe(7)).
MAX_LINE = 4096

# How long each value may become, the first limit with which the line fits. There are at most a dozen values that
# somebody else can make long, so the last limit always fits.
_LIMITS = (MAX_LINE, 1024, 512, 256)


class Entry(NamedTuple):
    """One decision, as it is logged."""

    time: bytes  # RFC 3339
    decision_id: bytes
    action: str  # what Postfix was told
    request: Request
    decision: Decision
    hostname: bytes  # the verified name, or `unknown`
    reply: str  # the code and text that Postfix was sent
    ruleset: str  # its hash
    dns_seconds: float  # of waiting for DNS; 0 where nobody waited
    seconds: float  # all of it


Value: TypeAlias = "str | bytes | tuple[bytes, ...] | float | bool"


def _described(entry: Entry) -> dict[str, Value]:
    """What both formats say, by the keys of JSON and in their order, without what has nothing to say."""
    get = entry.request.get
    decision, identity = entry.decision, entry.decision.identity
    state = get("protocol_state")
    described: dict[str, Value | None] = {
        "time": entry.time,
        "action": entry.action,
        "would": str(decision.verb) if decision.verb != entry.action else None,
        "id": entry.decision_id,
        "rule": decision.rule.name if decision.rule is not None else None,
        "client_address": get("client_address"),
        "hostname": entry.hostname,
        "claimed": identity.claimed if identity is not None else None,
        "reverse_dns": str(identity.status) if identity is not None else None,
        "dns_error": str(identity.reason) if identity is not None and identity.reason is not None else None,
        "downgraded": decision.downgraded,
        "protocol_state": state,
        "sender": get("sender"),
        "recipient": get("recipient"),
        "helo_name": get("helo_name"),
        "sasl_username": get("sasl_username"),
        "instance": get("instance"),
        "queue_id": get("queue_id"),
        "observed": tuple(name.encode() for name in decision.observed),
        "ruleset": entry.ruleset,
        "dns_ms": round(entry.dns_seconds * 1000, 1) if entry.dns_seconds else None,
        "ms": round(entry.seconds * 1000, 1),
        "reply": entry.reply,
    }
    # The null sender says something, where Postfix knows the sender; so does a time too short to show.
    said_when_empty = {"dns_ms", "ms", "sender"} if state in SENDER_STATES else {"dns_ms", "ms"}
    return {key: value for key, value in described.items() if value or (value is not None and key in said_when_empty)}


def _fit(formatted: Callable[[dict[str, Value], int], bytes], entry: Entry) -> bytes:
    """The line, with no more cut away than has to be."""
    described = _described(entry)
    for limit in _LIMITS:
        line = formatted(described, limit)
        if len(line) <= MAX_LINE:
            break
    return line


# Printable ASCII without blank, quotes, `<`, `>` and backslash: what stands in a text value as it is.
_PLAIN = bytes(c for c in range(0x21, 0x7F) if c not in b"\"'<>\\")

_TO_ESCAPE = re.compile(rb"[^%b]" % re.escape(_PLAIN))

_TO_ESCAPE_IN_LIST = re.compile(rb"[^%b]" % re.escape(_PLAIN.replace(b",", b"")))

_TO_ESCAPE_IN_NAME = re.compile(rb"[^%b]" % re.escape(_PLAIN.replace(b"[", b"")))  # where the address begins

_PLAIN_IN_QUOTES = b" <>" + _PLAIN

_TO_ESCAPE_IN_QUOTES = re.compile(rb"[^%b]" % re.escape(_PLAIN_IN_QUOTES))

_LINE = b"%b %b id=%b%b client=%b[%b]%b state=%b from=<%b> to=<%b> helo=<%b> instance=%b ruleset=%b%b ms=%.1f%b\n"

_RDNS = {status: b" rdns=" + status.encode() for status in Status}


def text_line(entry: Entry) -> bytes:
    """A decision in the style of Postfix's own log."""
    time, decision_id, action, request, decision, hostname, reply, ruleset, dns_seconds, seconds = entry
    get = request.get
    identity = decision.identity
    state, address, sender, recipient = get("protocol_state"), get("client_address"), get("sender"), get("recipient")
    helo_name, instance = get("helo_name"), get("instance")
    outside = b"".join((state, address, hostname, sender, recipient, helo_name, instance))
    said = reply.encode()
    if (
        outside.translate(None, _PLAIN)
        or said.translate(None, _PLAIN_IN_QUOTES)
        or not (address and recipient and helo_name and instance)
        or state not in SENDER_STATES
        or b"[" in hostname
        or get("sasl_username")
        or get("queue_id")
        or decision.observed
        or decision.downgraded
        or action != decision.verb
        or (identity is not None and (identity.claimed or identity.reason is not None))
    ):
        return _fit(_general_text, entry)
    line = _LINE % (
        time,
        action.encode(),
        decision_id,
        b" rule=" + decision.rule.name.encode() if decision.rule is not None else b"",
        hostname,
        address,
        _RDNS[identity.status] if identity is not None else b"",
        state,
        sender,
        recipient,
        helo_name,
        instance,
        ruleset.encode(),
        b" dns_ms=%.1f" % (dns_seconds * 1000) if dns_seconds else b"",
        seconds * 1000,
        b' reply="%b"' % said if said else b"",
    )
    return line if len(line) <= MAX_LINE else _fit(_general_text, entry)


_TEXT_KEYS = {
    "protocol_state": "state",
    "sender": "from",
    "recipient": "to",
    "helo_name": "helo",
    "reverse_dns": "rdns",
}

_IN_BRACKETS = {"sender", "recipient", "helo_name"}


def _general_text(described: dict[str, Value], limit: int) -> bytes:
    words = []
    for key, value in described.items():
        match key, value:
            case (("time" | "action"), _):
                words.append(_escaped(value, limit))
            case "client_address", _:
                pass  # stands with the host name
            case "hostname", _:
                address = _escaped(described.get("client_address", b""), limit)
                words.append(b"client=%b[%b]" % (_escaped(value, limit, _TO_ESCAPE_IN_NAME), address))
            case "reply", _:
                words.append(b'reply="%b"' % _escaped(value, limit, _TO_ESCAPE_IN_QUOTES))
            case _:
                start = _TEXT_KEYS.get(key, key).encode()
                words.append((b"%b=<%b>" if key in _IN_BRACKETS else b"%b=%b") % (start, _escaped(value, limit)))
    return b" ".join(words) + b"\n"


def _escaped(value: Value, limit: int, to_escape: re.Pattern[bytes] = _TO_ESCAPE) -> bytes:
    """A value as it stands in text, cut at so many bytes, but never within an escape."""
    match value:
        case bool():
            return b"true"
        case float():
            return b"%.1f" % value
        case tuple():
            escaped = b",".join(_escaped(item, limit, _TO_ESCAPE_IN_LIST) for item in value[: limit + 2])
        case _:
            raw = value.encode() if isinstance(value, str) else value
            escaped = to_escape.sub(lambda found: b"\\x%02x" % ord(found[0]), raw[: limit + 1])
    if len(escaped) <= limit:
        return escaped
    end = limit - 3
    begun = escaped.rfind(b"\\", end - 3, end)  # an escape that would be cut: `\xNN` is four bytes
    return escaped[: begun if begun >= 0 else end] + b"..."


def _general_json(described: dict[str, Value], limit: int) -> bytes:
    shown = {key: _readable(value, limit) for key, value in described.items()}
    return _dumped(shown) + b"\n"


def json_line(entry: Entry) -> bytes:
    """A decision as one JSON object."""
    return _fit(_general_json, entry)


def _readable(value: Value, limit: int) -> str | list[str] | float | bool:
    """A value as JSON can say it, cut where its JSON would be longer than so many bytes."""
    match value:
        case bytes():
            return _cut(value[: limit + 1].decode("utf-8", "replace"), limit)
        case str():
            return _cut(value, limit)
        case tuple():
            items: list[str] = []
            for item in value:
                text = _cut(item[: limit + 1].decode("utf-8", "replace"), limit)
                limit -= _json_length(text) + len('"",')
                if limit < 0:
                    return [*items, "..."]
                items.append(text)
            return items
        case _:
            return value


# What one character may take in JSON: two surrogates, each as `\uNNNN`.
_JSON_CHARACTER = 12


def _cut(text: str, limit: int) -> str:
    if len(text) * _JSON_CHARACTER <= limit or _json_length(text) <= limit:
        return text
    room = max(0, limit - len("..."))
    text = text[:room]
    while text and (length := _json_length(text)) > room:
        text = text[: len(text) * room // length]  # always shorter than it was
    return text + "..."


def _json_length(text: str) -> int:
    return len(_dumped(text)) - len('""')


_encode_json = json.JSONEncoder(separators=(",", ":")).encode


def _dumped(value: object) -> bytes:
    """JSON in ASCII. DEL is a control character too, though JSON lets it stand."""
    return _encode_json(value).replace("\x7f", "\\u007f").encode("ascii")


class Stamps:
    """The time as the log writes it: RFC 3339 with milliseconds and the local offset."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._millisecond = self._second = -1
        self._start = self._offset = self._stamp = b""

    def now(self) -> bytes:
        """The present; made anew once a millisecond, and the local time of it once a second."""
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
            self._stamp = b"%b.%03d%b" % (self._start, rest, self._offset)
        return self._stamp
