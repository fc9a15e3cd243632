"""Reads log entries with fields: `journalctl -o json`, `verbose` and `export`, and other JSON.

Promises: no input raises; an entry collected over several lines is bounded. Formats: journalctl(1), "Journal Export
Formats" and "Journal JSON Format" (https://systemd.io/JOURNAL_EXPORT_FORMATS), Docker's json-file driver, the JSON
templates of rsyslog, syslog-ng and fluentd, and the Elastic Common Schema.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

from policyd.logs.wrappings import LogEntry, is_stamped, unwrap

# Maximum bytes of an entry collected over several lines; a mail server's journal entry has 2 KiB.
_MAX_ENTRY = 64 * 1024

# Maximum nesting of JSON within JSON; a container runtime around a program that logs JSON needs one level.
_MAX_DEPTH = 3

# Names, in lower case, of the fields for the message, host, program, process id and timestamp. The first found counts.
_MESSAGE = ("message", "msg", "log", "short_message", "line", "@message", "textpayload")
_HOST = ("_hostname", "hostname", "host", "computer")
_PROGRAM = (
    "syslog_identifier",
    "programname",
    "program",
    "appname",
    "app-name",
    "app_name",
    "ident",
    "syslogtag",
    "tag",
)
_PID = ("syslog_pid", "_pid", "procid", "pid")
_STAMP = ("@timestamp", "timestamp", "time", "timereported", "timegenerated", "isodate", "date", "ts")

_TAG = re.compile(r"([A-Za-z][\w./@-]{0,200})(?:\[(\d{1,10})\])?:?")
_VERBOSE_START = re.compile(rb"([A-Z][a-z]{2} \d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? \S{1,8}) \[s=[0-9a-f]+;")
_FIELD = re.compile(rb"\s*([A-Z0-9_]{1,64})=(.*)", re.DOTALL)
_BINARY_FIELD = re.compile(rb"[A-Z0-9_]{1,64}")
_LENGTH_BYTES = 8


def entry_of(fields: dict[str, Any], stamp: bytes = b"", depth: int = 0) -> LogEntry | None:
    """Returns the entry with these fields, or None if they have no message.

    `stamp`, the timestamp of the wrapping around the fields, is used if the fields have none. `depth` is the number of
    JSON objects around the fields. A tag at the beginning of the message counts if the fields name no program, or if
    the message has its own timestamp and the program's name has no slash: a container logs lines of other programs. The
    program is empty if it is not known.
    """
    message, program = fields.get("MESSAGE"), fields.get("SYSLOG_IDENTIFIER")
    if isinstance(message, str) and isinstance(program, str) and "/" in program:
        return _postfix_entry(fields, message, program)
    known = {key.lower(): value for key, value in fields.items()}
    realtime = _text(known.get("__realtime_timestamp")) or _text(known.get("_source_realtime_timestamp"))
    stamp = b"@" + realtime if realtime else _first(known, _STAMP) or stamp
    text = _first(known, _MESSAGE)
    if text is None:
        # Elastic nests the logged fields one level deeper; journalctl writes null for a value that is too long.
        inner = known.get("_source")
        return entry_of(inner, stamp, depth + 1) if isinstance(inner, dict) and depth < _MAX_DEPTH else None
    process = known.get("process")
    inner_process = process if isinstance(process, dict) else {}
    host_value = known.get("host")
    host = _text(host_value.get("name")) if isinstance(host_value, dict) else _first(known, _HOST)
    name = (_first(known, _PROGRAM) or _text(inner_process.get("name")) or b"").decode("utf-8", "replace")
    pid = _first(known, _PID) or _text(inner_process.get("pid")) or b""
    if (tag := _TAG.fullmatch(name)) is not None:
        name, pid = tag[1], (tag[2] or "").encode() or pid
    else:
        name = ""
    if text.startswith(b"{") and depth < _MAX_DEPTH and (within := parse_json(text)) is not None:
        inner_entry = entry_of(within, stamp, depth + 1)
        if inner_entry is not None and (inner_entry.program or not name):
            return inner_entry._replace(host=inner_entry.host or host or b"")
    text = text.lstrip(b" ").rstrip(b"\r\n")
    unwrapped = unwrap(text) if not name or ("/" not in name and is_stamped(text)) else None
    if unwrapped is not None and unwrapped.program:
        return unwrapped._replace(stamp=unwrapped.stamp or stamp, host=unwrapped.host or host or b"", start=-1)
    if not name and unwrapped is not None:
        return LogEntry(unwrapped.stamp or stamp, host or b"", b"", b"", unwrapped.message)
    return LogEntry(stamp, host or b"", name.encode(), pid if pid.isdigit() else b"", text)


def _postfix_entry(fields: dict[str, Any], message: str, program: str) -> LogEntry:
    """Returns the entry of a Postfix daemon in the journal."""
    realtime = _text(fields.get("__REALTIME_TIMESTAMP"))
    pid = _text(fields.get("SYSLOG_PID")) or _text(fields.get("_PID")) or b""
    return LogEntry(
        b"@" + realtime if realtime else b"",
        _text(fields.get("_HOSTNAME")) or b"",
        program.encode("utf-8", "replace"),
        pid,
        message.encode("utf-8", "replace"),
    )


class Collector:
    """Collects an entry of several lines: `verbose`, `export` and `json-pretty`.

    Feed it every line from the first for which `begins` is true. It returns the fields of an entry when the entry ends:
    at an empty line, a closing brace or the next entry, or when `end` is called.
    """

    def __init__(self) -> None:
        self._fields: dict[str, Any] = {}
        self._size = 0
        self._binary = ""  # the field whose length and value are on the next line
        self._pretty: list[bytes] | None = None

    @staticmethod
    def begins(line: bytes) -> bool:
        """Returns whether a line begins an entry of several lines."""
        return line.startswith(b"__CURSOR=") or line == b"{" or _VERBOSE_START.match(line) is not None

    def take(self, line: bytes) -> tuple[bool, dict[str, Any] | None]:
        """Returns whether the line belongs to an entry, and the fields of the entry that it completes."""
        if self._pretty is not None:
            return self._take_pretty(line)
        if line == b"{":
            done = self.end()
            self._pretty = [line]
            return True, done
        if self.begins(line):
            done = self.end()
            if (verbose := _VERBOSE_START.match(line)) is not None:
                self._set("time", verbose[1])
            return True, done
        if not line:
            return True, self.end()
        if self._binary:
            self._set(self._binary, line[_LENGTH_BYTES:])
            self._binary = ""
            return True, None
        return self._take_field(line), None

    def end(self) -> dict[str, Any] | None:
        """Ends the current entry; returns its fields, if there is one."""
        fields, self._fields, self._size, self._binary, self._pretty = self._fields, {}, 0, "", None
        return fields or None

    def _take_field(self, line: bytes) -> bool:
        if field := _FIELD.fullmatch(line):
            self._set(field[1].decode("ascii"), field[2])
            return True
        if _BINARY_FIELD.fullmatch(line):
            self._binary = line.decode("ascii")
            return True
        return False

    def _set(self, name: str, value: bytes) -> None:
        if self._size + len(value) <= _MAX_ENTRY:
            self._size += len(value)
            self._fields[name] = value

    def _take_pretty(self, line: bytes) -> tuple[bool, dict[str, Any] | None]:
        assert self._pretty is not None
        self._pretty.append(line)
        self._size += len(line)
        if self._size > _MAX_ENTRY:
            self.end()
            return False, None
        if line not in {b"}", b"},"}:
            return True, None
        text = b"\n".join(self._pretty).removesuffix(b",")
        self.end()
        return True, parse_json(text)


def parse_json(text: bytes) -> dict[str, Any] | None:
    """Returns the JSON object in a text, or None if the text is anything else."""
    try:
        found = json.loads(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _first(fields: dict[str, Any], names: tuple[str, ...]) -> bytes | None:
    for name in names:
        if (value := _text(fields.get(name))) is not None:
            return value
    return None


def _text(value: object) -> bytes | None:
    """Returns a field's bytes: text, a number, or the array of byte numbers that the journal writes for non-UTF-8
    values.

    Returns the first of several values, and None for a field that is missing, null or an object.
    """
    if isinstance(value, list) and value:
        # Either byte numbers or several values; the first value may be byte numbers, too.
        value = value if isinstance(value[0], int) else value[0]
    if isinstance(value, list):
        with contextlib.suppress(TypeError, ValueError):
            return bytes(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.6f}".encode() if isinstance(value, float) else str(value).encode()
    return value if isinstance(value, bytes) else None
