"""Requests and answers of the control socket: a JSON object in a line (docs/systemd.md, "Ask the daemon").

An example of a request is `{"command": "reload", "data": true}`. The answer is `{"ok": true, ...}`, or `{"ok": false,
"errors": [...]}` with a text for each error. Nothing here reads a socket.
"""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# Maximum bytes of a request, newline included: enough for a command with a host name or with the key of a counter.
MAX_REQUEST_BYTES = 4096

# Maximum bytes of an answer. The largest holds a rules file (64 MiB, policyd.config.files), at worst with escapes.
MAX_ANSWER_BYTES = 160 << 20

# Bytes of a long text that are encoded at a time, so that requests from Postfix do not wait for the whole text.
_PIECE = 1 << 16


class Command(StrEnum):
    """The commands of the control socket."""

    ALIVE = "alive"
    STATUS = "status"
    RELOAD = "reload"
    FORGET = "forget"
    RULES = "rules"
    COUNTED = "counted"


class RequestError(Exception):
    """A request cannot be understood. The message is for the peer that sent it."""


@dataclass(frozen=True, slots=True)
class ControlRequest:
    """One request.

    `reload`: with `data`, only list files and databases are read again.
    `forget`: `what` is an address or a name; with `greylist`, an address; with `counter`, a key of this counter, its
    parts separated by LF.
    `status`: with `counter`, the answer has the keys of this counter with the highest values.
    `counted`: asks for the value that `counter` would have for one more request with the key `what`. `definition` is
    the counter's fingerprint in hexadecimal digits; `value` is the value that a counter of distinct values would count.
    """

    command: Command
    data: bool = False
    what: str = ""
    counter: str = ""
    greylist: bool = False
    value: str = ""
    definition: str = ""

    def encode(self) -> bytes:
        """Returns the request as a line."""
        fields: dict[str, Any] = {"command": self.command}
        if self.data:
            fields["data"] = True
        if self.what:
            fields["what"] = self.what
        if self.counter:
            fields["counter"] = self.counter
        if self.greylist:
            fields["greylist"] = True
        if self.command is Command.COUNTED:
            fields |= {"value": self.value, "definition": self.definition}
        return encode(fields)


def parse_request(line: bytes) -> ControlRequest:
    """Parses a request. Raises RequestError."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise RequestError("expected one JSON object in a line") from None
    if not isinstance(fields, dict):
        raise RequestError("expected one JSON object in a line")
    unknown = sorted(set(fields) - {"command", "data", "what", "counter", "greylist", "value", "definition"})
    if unknown:
        raise RequestError(f"unknown key {unknown[0]!r:.80}")
    try:
        command = Command(str(fields.get("command")))
    except ValueError:
        raise RequestError(f"unknown command; the commands are {', '.join(Command)}") from None
    data, what = fields.get("data", False), fields.get("what", "")
    counter, greylist = fields.get("counter", ""), fields.get("greylist", False)
    if not (isinstance(data, bool) and isinstance(greylist, bool)):
        raise RequestError("expected true or false for 'data' and 'greylist'")
    if not (isinstance(what, str) and isinstance(counter, str)):
        raise RequestError("expected text for 'what' and 'counter'")
    if command is Command.COUNTED or "value" in fields or "definition" in fields:
        return _parse_counted(fields, command)
    if command is Command.FORGET and not what:
        raise RequestError("'forget' needs 'what'")
    if what and command is not Command.FORGET:
        raise RequestError("'what' is for 'forget' and 'counted' only")
    if counter and command not in {Command.STATUS, Command.FORGET}:
        raise RequestError("'counter' is for 'status', 'forget' and 'counted' only")
    if greylist and (command is not Command.FORGET or counter):
        raise RequestError("'greylist' is for 'forget' only, without 'counter'")
    return ControlRequest(command, data, what, counter, greylist)


def _parse_counted(fields: dict[str, Any], command: Command) -> ControlRequest:
    """Parses the other fields of a `counted` request. Raises RequestError."""
    words = {name: fields.get(name, "") for name in ("what", "counter", "value", "definition")}
    if command is not Command.COUNTED:
        raise RequestError("'value' and 'definition' are for 'counted' only")
    if set(fields) - set(words) - {"command"} or not all(isinstance(word, str) for word in words.values()):
        raise RequestError("expected text for 'what', 'counter', 'value' and 'definition', and nothing else")
    if not (words["what"] and words["counter"] and words["definition"]):
        raise RequestError("'counted' needs 'what', 'counter' and 'definition'")
    return ControlRequest(command, **words)


def encode(fields: dict[str, Any]) -> bytes:
    """Returns an object as a line."""
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def encode_with_text(fields: dict[str, Any], name: str, text: memoryview) -> Iterator[bytes]:
    """Yields the pieces of a line: an object with these fields and, as its last field `name`, a long UTF-8 text."""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    yield json.dumps(fields, separators=(",", ":"))[:-1].encode() + f',"{name}":"'.encode()
    for start in range(0, len(text), _PIECE):
        yield json.dumps(decode(text[start : start + _PIECE]), ensure_ascii=False)[1:-1].encode()
    yield b'"}\n'


def failure(*errors: str) -> dict[str, Any]:
    """Returns the answer to a request that failed."""
    return {"ok": False, "errors": list(errors)}
