"""The fields of a decision log line: their names, order and escapes, for both formats, for writing and for reading.

A record is a mapping from the keys of the JSON format to values: bytes from outside, policyd's own words as `str`,
names as tuples, numbers and flags. A field without a value is left out. docs/decision-log.md explains each field.
"""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Maximum bytes of a line with its line end: PIPE_BUF, so that a write to a pipe is all or nothing (pipe(7)).
MAX_LINE = 4096

# Maximum bytes of each value; the limits are tried in this order until the line fits. At most a
# dozen values of a line are text from clients or DNS and can be long, so the line always fits with the last limit.
LIMITS = (MAX_LINE, 1024, 512, 256)

Value: TypeAlias = "str | bytes | tuple[bytes, ...] | float | int | bool"


class FieldForm(Enum):
    """The form of a field in the text format."""

    WORD = "word"  # the bare value; the first two fields of a line
    VALUE = "value"  # key=value
    BRACKETS = "brackets"  # key=<value>
    SENDER = "sender"  # key=<value>; an empty value, the null sender, is kept
    QUOTES = "quotes"  # key="value"
    LIST = "list"  # key=value,value
    NUMBER = "number"  # key=1.0
    INTEGER = "integer"  # key=1
    FLAG = "flag"  # key=true
    DNS_LISTS = "DNS lists"  # their answers: key=list:127.0.0.2+127.0.0.9,list:-,list:?reason; in JSON an object
    CLIENT = "client"  # client=NAME[ADDRESS]
    ADDRESS = "address"  # part of `client=`
    JSON_ONLY = "json only"  # not in the text format


class Field(NamedTuple):
    """One field: its key in JSON, its key in text, its form in text."""

    key: str
    text: str
    form: FieldForm = FieldForm.VALUE


FIELDS = (
    Field("time", "", FieldForm.WORD),
    Field("action", "", FieldForm.WORD),
    Field("would", "would"),
    Field("id", "id"),
    Field("rule", "rule"),
    Field("client_address", "", FieldForm.ADDRESS),
    Field("hostname", "client", FieldForm.CLIENT),
    Field("asn", "asn", FieldForm.INTEGER),
    Field("asn_name", "", FieldForm.JSON_ONLY),
    Field("country", "country"),
    Field("claimed", "claimed", FieldForm.LIST),
    Field("reverse_dns", "rdns"),
    Field("lists", "lists", FieldForm.DNS_LISTS),
    Field("dns_error", "dns_error"),
    Field("downgraded", "downgraded", FieldForm.FLAG),
    Field("protocol_state", "state"),
    Field("sender", "from", FieldForm.SENDER),
    Field("recipient", "to", FieldForm.BRACKETS),
    Field("helo_name", "helo", FieldForm.BRACKETS),
    Field("sasl_username", "sasl_username"),
    Field("instance", "instance"),
    Field("queue_id", "queue_id"),
    Field("observed", "observed", FieldForm.LIST),
    Field("greylist", "greylist"),
    Field("memory", "memory"),
    Field("ruleset", "ruleset"),
    Field("dns_ms", "dns_ms", FieldForm.NUMBER),
    Field("ms", "ms", FieldForm.NUMBER),
    Field("reply", "reply", FieldForm.QUOTES),
)

# The null sender and times that round to 0 are kept; every other empty field is left out.
KEPT_WHEN_EMPTY = frozenset({"sender", "dns_ms", "ms"})

_NOT_IN_TEXT = frozenset({FieldForm.ADDRESS, FieldForm.JSON_ONLY})

# The `hostname` of a client without a verified name.
NO_NAME = b"unknown"


# --- Text ---------------------------------------------------------------------------------------------------------

# Characters that need no escape in the text format: printable ASCII without blank, quotes, `<`, `>` and backslash.
PLAIN = bytes(c for c in range(0x21, 0x7F) if c not in b"\"'<>\\")
PLAIN_IN_QUOTES = b" <>" + PLAIN


def _other_than(plain: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"[^%b]" % re.escape(plain))


_TO_ESCAPE = _other_than(PLAIN)
_TO_ESCAPE_IN_LIST = _other_than(PLAIN.replace(b",", b""))
_TO_ESCAPE_IN_NAME = _other_than(PLAIN.replace(b"[", b""))  # `[` begins the address
_TO_ESCAPE_IN_QUOTES = _other_than(PLAIN_IN_QUOTES)
_ESCAPED = re.compile(rb"\\x([0-9A-Fa-f]{2})")


def format_text(record: Mapping[str, Value], limit: int) -> bytes:
    """Returns the record as a line of text without its line end, each value cut at `limit` bytes."""
    words = []
    for key, text, form in FIELDS:
        if form is FieldForm.CLIENT:
            name = _escape(record.get(key) or NO_NAME, limit, _TO_ESCAPE_IN_NAME)
            words.append(b"client=%b[%b]" % (name, _escape(record.get("client_address", b""), limit)))
            continue
        value = record.get(key)
        if value is None or form in _NOT_IN_TEXT:
            continue
        start = text.encode()
        match form:
            case FieldForm.WORD:
                words.append(_escape(value, limit))
            case FieldForm.BRACKETS | FieldForm.SENDER:
                words.append(b"%b=<%b>" % (start, _escape(value, limit)))
            case FieldForm.QUOTES:
                words.append(b'%b="%b"' % (start, _escape(value, limit, _TO_ESCAPE_IN_QUOTES)))
            case _:
                words.append(b"%b=%b" % (start, _escape(value, limit)))
    return b" ".join(words)


def _escape(value: Value, limit: int, to_escape: re.Pattern[bytes] = _TO_ESCAPE) -> bytes:
    """Returns a value escaped for the text format, cut at `limit` bytes, but never within an escape."""
    match value:
        case bool():
            return b"true"
        case int():
            return b"%d" % value
        case float():
            return b"%.1f" % value
        case tuple():
            escaped = b",".join(_escape(item, limit, _TO_ESCAPE_IN_LIST) for item in value[: limit + 2])
        case _:
            raw = value.encode() if isinstance(value, str) else value
            escaped = to_escape.sub(lambda found: b"\\x%02x" % ord(found[0]), raw[: limit + 1])
    if len(escaped) <= limit:
        return escaped
    end = limit - 3
    cut_escape = escaped.rfind(b"\\", end - 3, end)  # the start of an escape `\xNN` that would be cut
    return escaped[: cut_escape if cut_escape >= 0 else end] + b"..."


def unescape(value: bytes) -> bytes:
    """Undoes the escapes of a text value."""
    return _ESCAPED.sub(lambda escape: bytes.fromhex(escape[1].decode()), value)


# --- JSON ---------------------------------------------------------------------------------------------------------


def as_object(record: Mapping[str, Value], limit: int) -> dict[str, str | list[str] | dict[str, str] | float | bool]:
    """Returns the record as an object of the JSON format, each value cut if its JSON is longer than `limit` bytes."""
    fields: dict[str, str | list[str] | dict[str, str] | float | bool] = {}
    for key, _, form in FIELDS:
        value = record.get(key)
        if form is FieldForm.CLIENT:
            value = value or NO_NAME
        if form is FieldForm.DNS_LISTS and isinstance(value, tuple):
            items = (item.decode("ascii", "replace") for item in value)
            fields[key] = dict(item.split(":", 1) for item in _json_items(items, limit) if ":" in item)
        elif value is not None:
            fields[key] = _json_value(value, limit)
    return fields


def format_json(record: Mapping[str, Value], limit: int) -> bytes:
    """Returns the record as a line of JSON in ASCII, without its line end."""
    return _to_json(as_object(record, limit))


def _json_value(value: Value, limit: int) -> str | list[str] | float | bool:
    match value:
        case bytes():
            return _cut(value[: limit + 1].decode("utf-8", "replace"), limit)
        case str():
            return _cut(value, limit)
        case tuple():
            return _json_items((item[: limit + 1].decode("utf-8", "replace") for item in value), limit)
        case _:
            return value


def _json_items(items: Iterable[str], limit: int) -> list[str]:
    """The items that fit, then `...` if some do not."""
    shown: list[str] = []
    for item in items:
        text = _cut(item, limit)
        limit -= _json_length(text) + len('"",')
        if limit < 0:
            return [*shown, "..."]
        shown.append(text)
    return shown


# Maximum bytes of one character in JSON: two surrogates, each as `\uNNNN`.
_JSON_CHARACTER = 12


def _cut(text: str, limit: int) -> str:
    if len(text) * _JSON_CHARACTER <= limit or _json_length(text) <= limit:
        return text
    room = max(0, limit - len("..."))
    text = text[:room]
    while text and (length := _json_length(text)) > room:
        text = text[: len(text) * room // length]  # always shorter than before
    return text + "..."


def _json_length(text: str) -> int:
    return len(_to_json(text)) - len('""')


_encode_json = json.JSONEncoder(separators=(",", ":")).encode


def _to_json(value: object) -> bytes:
    """JSON in ASCII. DEL is escaped too, although JSON allows it raw."""
    return _encode_json(value).replace("\x7f", "\\u007f").encode("ascii")
