"""Reads policyd's own decision log, in both formats, a line at a time.

Promises: any line gives a `LoggedDecision` or None, never an exception; values come back as the bytes that the client
sent, with escapes undone, as far as the line still has them (long values are cut in the log and end in `...`). What
is logged, and how, is in docs/decision-log.md; this module only has to agree with it.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from policyd.core.ruleset import SENDER_STATES, Verb

VERBS = frozenset(verb.value.encode() for verb in Verb)

# `2026-11-21T17:16:00.123+09:00 REJECT ...`
_TEXT = re.compile(
    rb"(\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:?\d\d)) (REJECT|DEFER|DEFER_IF_PERMIT|DUNNO) (.*)", re.DOTALL
)
_PAIR = re.compile(rb'([a-z_]+)=("[^"]*"|\S*)')
_CLIENT = re.compile(rb"(.*)\[([^\[\]]*)\]", re.DOTALL)
_NUMBER = re.compile(rb"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_ESCAPE = re.compile(rb"\\x([0-9A-Fa-f]{2})")


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
    def rule_name(self) -> bytes:
        """The rule that decided, `default` where none did."""
        return self.rule or b"default"


def parse(line: bytes) -> LoggedDecision | None:
    """The decision that a line tells of, or None for a line that is none."""
    if line.startswith(b"{"):
        return _parse_json(line)
    if match := _TEXT.match(line):
        return _parse_text(*match.groups())
    return None


def _parse_text(stamp: bytes, action: bytes, rest: bytes) -> LoggedDecision | None:
    fields: dict[bytes, bytes] = dict(_PAIR.findall(rest))
    client = _CLIENT.fullmatch(fields.get(b"client", b""))
    if client is None:
        return None
    if b"\\" in rest:
        fields = {key: _unescape(value) for key, value in fields.items()}
        client_name, client_address = _unescape(client[1]), _unescape(client[2])
    else:
        client_name, client_address = client.groups()
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
        _names(get(b"claimed")),
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
        _names(get(b"observed")),
        get(b"ruleset", b""),
        _milliseconds(get(b"dns_ms")),
        _milliseconds(get(b"ms")),
        get(b"reply", b"").strip(b'"'),
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
        return float(value) if isinstance(value, int | float) and abs(value) < 1e15 else None

    action, stamp, state, hostname = text("action"), text("time"), text("protocol_state"), text("hostname")
    if action not in VERBS or not stamp:
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
