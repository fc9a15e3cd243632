"""Reads policyd's own decision log, in both formats, bare or within syslog or the journal.

Promises: any line gives a `LoggedDecision` or None, never an exception; values come back as the bytes that the client
sent, with escapes undone, as far as the line still has them (long values are cut in the log and end in `...`). What
is logged, and how, is in docs/decision-log.md; this module only has to agree with it.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from policyd.core.protocol import SENDER_STATES
from policyd.core.ruleset import Verb

VERBS = frozenset(verb.value.encode() for verb in Verb)

# `2026-11-21T17:16:00.123+09:00 REJECT ...`
_STAMP = re.compile(rb"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:?\d\d)")
_TEXT = re.compile(rb"(%b) (REJECT|DEFER|DEFER_IF_PERMIT|DUNNO) (.*)" % _STAMP.pattern, re.DOTALL)
_PAIR = re.compile(rb'(?<!\S)([a-z_]+)=("[^"]*"|\S*)')
_CLIENT = re.compile(rb"([^\[]*)\[(.*)\]", re.DOTALL)
_NUMBER = re.compile(rb"[0-9]{1,15}(?:\.[0-9]{1,9})?")
# `Nov 21 17:16:00 mx policyd[12]: 2026-11-21T...`
_IN_SYSLOG = re.compile(rb".{14,80}? policyd\[\d+\]: (.*)", re.DOTALL)
_ESCAPE = re.compile(rb"\\x([0-9A-Fa-f]{2})")


# Postfix makes this attribute itself (smtpd(8) writes its process number into it), so no client can choose it.
_PROBE_INSTANCE = b"policyd-doctor"


class LoggedDecision(NamedTuple):
    """One line of the decision log.

    `stamp` is the time as it was written (RFC 3339). What the line does not say is empty, or None where empty means
    something: `sender` (empty is the null sender), `dns_ms` and `ms` (milliseconds). `hostname` is a verified name, or
    empty. `action` is what Postfix was told and `would`, under a top-level `mode: observe`, what it would have been.
    """

    stamp: bytes
    action: bytes
    would: bytes
    id: bytes
    rule: bytes
    client_address: bytes
    hostname: bytes
    claimed: tuple[bytes, ...]
    reverse_dns: bytes
    dns_error: bytes
    downgraded: bool
    protocol_state: bytes
    sender: bytes | None
    recipient: bytes
    helo_name: bytes
    sasl_username: bytes
    instance: bytes
    queue_id: bytes
    observed: tuple[bytes, ...]
    ruleset: bytes
    dns_ms: float | None
    ms: float | None
    reply: bytes

    @property
    def decided(self) -> bytes:
        """The ruleset's decision, sent or not."""
        return self.would or self.action

    @property
    def is_probe(self) -> bool:
        """Whether this is the question of `policyd doctor`, which policyd 0.1 logged: no client has asked it."""
        return self.instance == _PROBE_INSTANCE

    @property
    def rule_name(self) -> bytes:
        """The rule that decided, `default` where none did."""
        return self.rule or b"default"


def parse_anywhere(line: bytes) -> LoggedDecision | None:
    """As `parse`, also for a line of syslog or of `journalctl` (-o short or json) that has the decision in it."""
    decision = parse(line)
    if decision is not None:
        return decision
    if line.startswith(b"{") and b'"MESSAGE"' in line:
        try:
            message = json.loads(line).get("MESSAGE")
        except (ValueError, RecursionError):
            return None
        return parse(message.encode("utf-8", "replace")) if isinstance(message, str) else None
    if in_syslog := _IN_SYSLOG.fullmatch(line):
        return parse(in_syslog[1])
    return None


def parse(line: bytes) -> LoggedDecision | None:
    """The decision that a line tells of, or None for a line that is none."""
    if line.startswith(b"{"):
        return _parse_json(line)
    if match := _TEXT.match(line):
        return _parse_text(*match.groups())
    return None


def _parse_text(stamp: bytes, action: bytes, rest: bytes) -> LoggedDecision | None:
    # The first of a key counts: what follows in a reply that was cut off may be the client's words.
    fields: dict[bytes, bytes] = dict(reversed(_PAIR.findall(rest)))
    client = _CLIENT.fullmatch(fields.get(b"client", b""))
    if client is None:
        return None
    client_name, client_address = client.groups()
    claimed, observed = _names(fields.get(b"claimed")), _names(fields.get(b"observed"))
    reply = fields.get(b"reply", b"").removeprefix(b'"').removesuffix(b'"')
    if b"\\" in rest:
        fields = {key: _unescape(value) for key, value in fields.items()}
        client_name, client_address, reply = _unescape(client_name), _unescape(client_address), _unescape(reply)
        claimed, observed = tuple(map(_unescape, claimed)), tuple(map(_unescape, observed))
    get = fields.get
    state = get(b"state", b"")
    sender = get(b"from")
    if sender is not None:
        sender = sender[1:-1]
    elif state in SENDER_STATES:
        sender = b""
    return LoggedDecision(
        stamp,
        action,
        get(b"would", b""),
        get(b"id", b""),
        get(b"rule", b""),
        client_address,
        b"" if client_name == b"unknown" else client_name,
        claimed,
        get(b"rdns", b""),
        get(b"dns_error", b""),
        get(b"downgraded") == b"true",
        state,
        sender,
        get(b"to", b"")[1:-1],
        get(b"helo", b"")[1:-1],
        get(b"sasl_username", b""),
        get(b"instance", b""),
        get(b"queue_id", b""),
        observed,
        get(b"ruleset", b""),
        _milliseconds(get(b"dns_ms")),
        _milliseconds(get(b"ms")),
        reply,
    )


def _parse_json(line: bytes) -> LoggedDecision | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return from_json(fields) if isinstance(fields, dict) else None


def from_json(fields: dict[str, Any]) -> LoggedDecision | None:
    """The decision that an object of the JSON format tells of, or None if it is something else."""

    def text(key: str) -> bytes:
        value = fields.get(key)
        # An escape in JSON can stand for half a character, which UTF-8 has no bytes for.
        return value.encode("utf-8", "replace") if isinstance(value, str) else b""

    def names(key: str) -> tuple[bytes, ...]:
        value = fields.get(key)
        if not isinstance(value, list):
            return ()
        return tuple(name.encode("utf-8", "replace") for name in value if isinstance(name, str))

    def number(key: str) -> float | None:
        value = fields.get(key)
        # No time is negative, and the text format has no sign; JSON has a zero with one.
        return abs(float(value)) if isinstance(value, int | float) and 0 <= value < 1e15 else None

    action, stamp, state, hostname = text("action"), text("time"), text("protocol_state"), text("hostname")
    if action not in VERBS or not _STAMP.fullmatch(stamp):
        return None
    return LoggedDecision(
        stamp,
        action,
        text("would"),
        text("id"),
        text("rule"),
        text("client_address"),
        b"" if hostname == b"unknown" else hostname,
        names("claimed"),
        text("reverse_dns"),
        text("dns_error"),
        fields.get("downgraded") is True,
        state,
        text("sender") if "sender" in fields or state in SENDER_STATES else None,
        text("recipient"),
        text("helo_name"),
        text("sasl_username"),
        text("instance"),
        text("queue_id"),
        names("observed"),
        text("ruleset"),
        number("dns_ms"),
        number("ms"),
        text("reply"),
    )


def _names(value: bytes | None) -> tuple[bytes, ...]:
    return tuple(value.split(b",")) if value else ()


def _milliseconds(value: bytes | None) -> float | None:
    return float(value) if value and _NUMBER.fullmatch(value) else None


def _unescape(value: bytes) -> bytes:
    return _ESCAPE.sub(lambda escape: bytes.fromhex(escape[1].decode()), value)


# --- Back to lines --------------------------------------------------------------------------------------------------

_TO_ESCAPE = re.compile(rb"""[^!-~]|["'<>\\]""")
_TO_ESCAPE_IN_LIST = re.compile(rb"""[^!-~]|["',<>\\]""")
_TO_ESCAPE_IN_NAME = re.compile(rb"""[^!-~]|["'<>\\[]""")
_TO_ESCAPE_IN_QUOTES = re.compile(rb"""[^ -~]|["'\\]""")


def as_text(decision: LoggedDecision) -> str:
    """The decision as a line of the text format, whatever format it was read from: printable ASCII."""
    name, address = _escaped(decision.hostname or b"unknown", _TO_ESCAPE_IN_NAME), _escaped(decision.client_address)
    words = [_escaped(decision.stamp), _escaped(decision.action)]
    for key, value in (
        ("would", decision.would),
        ("id", decision.id),
        ("rule", decision.rule),
        ("client", f"{name}[{address}]"),
        ("claimed", _list(decision.claimed)),
        ("rdns", decision.reverse_dns),
        ("dns_error", decision.dns_error),
        ("downgraded", b"true" if decision.downgraded else b""),
        ("state", decision.protocol_state),
        ("from", f"<{_escaped(decision.sender)}>" if decision.sender is not None else ""),
        ("to", f"<{_escaped(decision.recipient)}>" if decision.recipient else ""),
        ("helo", f"<{_escaped(decision.helo_name)}>" if decision.helo_name else ""),
        ("sasl_username", decision.sasl_username),
        ("instance", decision.instance),
        ("queue_id", decision.queue_id),
        ("observed", _list(decision.observed)),
        ("ruleset", decision.ruleset),
        ("dns_ms", f"{decision.dns_ms:.1f}" if decision.dns_ms is not None else ""),
        ("ms", f"{decision.ms:.1f}" if decision.ms is not None else ""),
        ("reply", f'"{_escaped(decision.reply, _TO_ESCAPE_IN_QUOTES)}"' if decision.reply else ""),
    ):
        if value:
            words.append(f"{key}={value if isinstance(value, str) else _escaped(value)}")
    return " ".join(words)


def as_json(decision: LoggedDecision) -> dict[str, Any]:
    """The decision as an object of the JSON format."""

    def text(value: bytes) -> str:
        return value.decode("utf-8", "replace")

    fields: dict[str, Any] = {
        "time": text(decision.stamp),
        "action": text(decision.action),
        "would": text(decision.would),
        "id": text(decision.id),
        "rule": text(decision.rule),
        "client_address": text(decision.client_address),
        "hostname": text(decision.hostname) or "unknown",
        "claimed": [text(name) for name in decision.claimed],
        "reverse_dns": text(decision.reverse_dns),
        "dns_error": text(decision.dns_error),
        "downgraded": decision.downgraded,
        "protocol_state": text(decision.protocol_state),
        "sender": text(decision.sender) if decision.sender is not None else None,
        "recipient": text(decision.recipient),
        "helo_name": text(decision.helo_name),
        "sasl_username": text(decision.sasl_username),
        "instance": text(decision.instance),
        "queue_id": text(decision.queue_id),
        "observed": [text(name) for name in decision.observed],
        "ruleset": text(decision.ruleset),
        "dns_ms": decision.dns_ms,
        "ms": decision.ms,
        "reply": text(decision.reply),
    }
    kept = {"sender", "dns_ms", "ms"}  # where empty, or 0, says something
    return {key: value for key, value in fields.items() if value or (key in kept and value is not None)}


def _list(values: tuple[bytes, ...]) -> str:
    return ",".join(_escaped(value, _TO_ESCAPE_IN_LIST) for value in values)


def _escaped(value: bytes, to_escape: re.Pattern[bytes] = _TO_ESCAPE) -> str:
    return to_escape.sub(lambda byte: b"\\x%02x" % byte[0][0], value).decode("ascii")
