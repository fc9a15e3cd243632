"""Reads policyd's decision log in both formats, also inside lines of syslog or the journal.

Promises that any line gives a `LoggedDecision` or None, never an exception. Escapes are undone, so values are the bytes
that the client sent; long values were cut when they were logged, and end in `...`. `policyd.decision_log.record`
and docs/decision-log.md describe the formats.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from policyd.core.owners import NO_OWNER, Owner
from policyd.core.protocol import SENDER_STATES
from policyd.core.ruleset import DEFAULT_RULE, Verb
from policyd.decision_log.record import FIELDS, KEPT_WHEN_EMPTY, NO_NAME, FieldForm, as_object, format_text, unescape

if TYPE_CHECKING:
    from collections.abc import Callable

    from policyd.decision_log.record import Value

VERBS = frozenset(verb.value.encode() for verb in Verb)

# `2026-11-21T17:16:00.123+09:00 REJECT ...`
_TIMESTAMP = re.compile(rb"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:?\d\d)")
_TEXT = re.compile(rb"(%b) (REJECT|DEFER|DEFER_IF_PERMIT|DUNNO) (.*)" % _TIMESTAMP.pattern, re.DOTALL)
_PAIR = re.compile(rb'(?<!\S)([a-z_]+)=("[^"]*"|\S*)')
_CLIENT = re.compile(rb"([^\[]*)\[(.*)\]", re.DOTALL)
_NUMBER = re.compile(rb"[0-9]{1,15}(?:\.[0-9]{1,9})?")
# `Nov 21 17:16:00 mx policyd[12]: 2026-11-21T...`
_IN_SYSLOG = re.compile(rb".{14,80}? policyd\[\d+\]: (.*)", re.DOTALL)


# The `instance` of a probe. Postfix makes this attribute itself (it begins with the process number of smtpd(8)), so no
# client can choose it.
_PROBE_INSTANCE = b"policyd-doctor"


class LoggedDecision(NamedTuple):
    """One line of the decision log.

    `time` is as written (RFC 3339). A value that the line does not have is empty, with these exceptions: `sender` is
    None, because an empty one is the null sender; `dns_ms` and `ms` (milliseconds) are None; `asn` is 0. `asn_name` is
    in the JSON format only. `hostname` is a verified name, or empty. `action` was sent to Postfix; `would` is the
    action that a top-level `mode: observe` suppressed.
    """

    time: bytes
    action: bytes
    would: bytes
    id: bytes
    rule: bytes
    client_address: bytes
    hostname: bytes
    asn: int
    asn_name: bytes
    country: bytes
    claimed: tuple[bytes, ...]
    reverse_dns: bytes
    lists: tuple[bytes, ...]
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
    greylist: bytes
    memory: bytes
    ruleset: bytes
    dns_ms: float | None
    ms: float | None
    reply: bytes

    @property
    def decided(self) -> bytes:
        """The ruleset's decision, sent or not."""
        return self.would or self.action

    @property
    def owner(self) -> Owner:
        """The owner of the client's address, from the line."""
        if not (self.asn or self.country):
            return NO_OWNER
        return Owner(self.asn, self.asn_name.decode("utf-8", "replace"), self.country.decode("utf-8", "replace"))

    @property
    def is_probe(self) -> bool:
        """Whether this is a probe of `policyd doctor`: policyd 0.1 logged probes like requests of clients."""
        return self.instance == _PROBE_INSTANCE

    @property
    def rule_name(self) -> bytes:
        """The deciding rule's name, `default` for none."""
        return self.rule or DEFAULT_RULE.encode()


def parse_anywhere(line: bytes) -> LoggedDecision | None:
    """Parses a line of the decision log, also within a line of syslog or of `journalctl` (-o short or json)."""
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
    """Parses a line of the decision log; returns None if it is not one."""
    if line.startswith(b"{"):
        return _parse_json(line)
    if match := _TEXT.match(line):
        return _parse_text(*match.groups())
    return None


def _parse_text(time: bytes, action: bytes, rest: bytes) -> LoggedDecision | None:
    # The first occurrence of a key counts: later ones may be client text in a truncated reply.
    words: dict[bytes, bytes] = dict(reversed(_PAIR.findall(rest)))
    client = _CLIENT.fullmatch(words.get(b"client", b""))
    if client is None:
        return None
    words[b"client"], words[_ADDRESS] = client.groups()
    words[_TIME], words[_ACTION] = time, action
    read = unescape if b"\\" in rest else bytes
    get = words.get
    return _decision_of([_from_text[form](get(word), read) for word, form in _WORDS])


def _decision_of(values: list[Any]) -> LoggedDecision:
    """Returns the decision with these values, which are in the order of FIELDS."""
    decision = LoggedDecision._make(values)
    if decision.sender is None and decision.protocol_state in SENDER_STATES:
        decision = decision._replace(sender=b"")
    return decision


# Keys of values that have no key in the text format.
_TIME, _ACTION, _ADDRESS = b"time", b"action", b"client_address"
_WORDS = tuple((field.text.encode() or field.key.encode(), field.form) for field in FIELDS)

_DIGITS = re.compile(rb"[0-9]{1,10}")


def _as_asn(number: int) -> int:
    """Returns the number if it can be an AS number (RFC 6793: four bytes), else 0."""
    return number if 0 < number <= 0xFFFFFFFF else 0


Read: TypeAlias = "Callable[[bytes], bytes]"


def _bare(value: bytes | None, read: Read) -> bytes:
    return read(value) if value else b""


_from_text: dict[FieldForm, Callable[[bytes | None, Read], Any]] = {
    FieldForm.WORD: _bare,
    FieldForm.VALUE: _bare,
    FieldForm.ADDRESS: _bare,
    FieldForm.CLIENT: lambda value, read: b"" if value == NO_NAME else _bare(value, read),
    FieldForm.BRACKETS: lambda value, read: read(value[1:-1]) if value else b"",
    FieldForm.SENDER: lambda value, read: read(value[1:-1]) if value is not None else None,
    FieldForm.QUOTES: lambda value, read: read(value.removeprefix(b'"').removesuffix(b'"')) if value else b"",
    FieldForm.LIST: lambda value, read: tuple(map(read, value.split(b","))) if value else (),
    FieldForm.NUMBER: lambda value, _read: float(value) if value and _NUMBER.fullmatch(value) else None,
    FieldForm.INTEGER: lambda value, _read: _as_asn(int(value)) if value and _DIGITS.fullmatch(value) else 0,
    FieldForm.FLAG: lambda value, _read: value == b"true",
    FieldForm.DNS_LISTS: lambda value, read: tuple(map(read, value.split(b","))) if value else (),
    FieldForm.JSON_ONLY: lambda _value, _read: b"",
}


def _parse_json(line: bytes) -> LoggedDecision | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return from_json(fields) if isinstance(fields, dict) else None


def from_json(fields: dict[str, Any]) -> LoggedDecision | None:
    """Returns the decision of an object of the JSON format; None if the object is not a decision."""
    if _text(fields.get("action")) not in VERBS:
        return None  # checked first, because most objects of a journal are other messages
    decision = _decision_of([_from_json[form](fields.get(key)) for key, _, form in FIELDS])
    return decision if _TIMESTAMP.fullmatch(decision.time) else None


def _text(value: Any) -> bytes:
    # An escape in JSON can stand for a lone surrogate, which cannot be encoded in UTF-8.
    return value.encode("utf-8", "replace") if isinstance(value, str) else b""


def _names(value: Any) -> tuple[bytes, ...]:
    return tuple(_text(name) for name in value if isinstance(name, str)) if isinstance(value, list) else ()


def _number(value: Any) -> float | None:
    # The text format has no sign, because no time is negative. JSON allows -0.
    return abs(float(value)) if isinstance(value, int | float) and 0 <= value < 1e15 else None


_from_json: dict[FieldForm, Callable[[Any], Any]] = {
    FieldForm.WORD: _text,
    FieldForm.VALUE: _text,
    FieldForm.ADDRESS: _text,
    FieldForm.CLIENT: lambda value: b"" if value == "unknown" else _text(value),
    FieldForm.BRACKETS: _text,
    FieldForm.SENDER: lambda value: _text(value) if isinstance(value, str) else None,
    FieldForm.QUOTES: _text,
    FieldForm.LIST: _names,
    FieldForm.NUMBER: _number,
    FieldForm.INTEGER: lambda value: _as_asn(value) if type(value) is int else 0,
    FieldForm.FLAG: lambda value: value is True,
    FieldForm.DNS_LISTS: lambda value: (
        tuple(_text(f"{name}:{answer}") for name, answer in value.items() if isinstance(answer, str))
        if isinstance(value, dict)
        else ()
    ),
    FieldForm.JSON_ONLY: _text,
}


# --- Back to lines --------------------------------------------------------------------------------------------------

# Maximum bytes of a value: so many that no value is cut. The line that was read has bounded the values already.
_UNCUT = 1 << 30


def as_text(decision: LoggedDecision) -> str:
    """Returns the decision as a line of the text format, in printable ASCII, without its line end."""
    return format_text(_record(decision), _UNCUT).decode("ascii")


def as_json(decision: LoggedDecision) -> dict[str, Any]:
    """Returns the decision as an object of the JSON format."""
    return as_object(_record(decision), _UNCUT)


def _record(decision: LoggedDecision) -> dict[str, Value]:
    values = zip((field.key for field in FIELDS), decision, strict=True)
    return {key: value for key, value in values if value or (value is not None and key in KEPT_WHEN_EMPTY)}
