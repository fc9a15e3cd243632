"""Removes the wrappings of a mail log's lines, so that readers get only host, program, process id and message.

Knows the timestamps and tags of syslog daemons (RFC 3164 and its relatives, RFC 5424, syslog-ng, rsyslog's templates,
metalog, busybox, socklog, AIX, macOS, Solaris), of `journalctl -o short*` and `with-unit`, and the text around such a
line: container runtimes, `docker compose logs`, `kubectl logs`, `grep`, line numbers, quoting and colours. Promises: no
line raises; no expression looks beyond the start of a line or takes more than linear time; client text within a line is
never mistaken for a line of another program, because the outermost tag counts.

Sources: syslogd(8) of FreeBSD, Solaris and AIX, RFC 3164, RFC 5424 section 6, journalctl(1), the Kubernetes CRI log
format, and the loggers named above.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Maximum number of nested wrappings: `docker compose logs -t` of a container that runs rsyslog, through grep, has five.
_MAX_LAYERS = 8


class LogEntry(NamedTuple):
    """One entry of a log, without its wrappings. Parts that the line does not have are empty.

    `stamp` is a timestamp in a form that `LogClock` reads. `start` is the offset of the timestamp in the line if the
    rest of the line has the plain form, with `]: ` or `: ` after the tag; otherwise -1.
    """

    stamp: bytes
    host: bytes
    program: bytes
    pid: bytes
    message: bytes
    start: int = -1


_TIME = rb"\d\d:\d\d:\d\d(?:[.,]\d{1,9})?"
_MONTH_DAY = rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\ {1,2}\d{1,2}"
_STAMP = rb"""(?:
    (?:[A-Z][a-z]{2},?\ )? (?:\d{4}\ )? %(month_day)b (?:,?\ \d{4})? \ %(time)b (?:(?:\ [A-Z]{2,5})?\ \d{4}(?=[\s:]))?
  | (?:[A-Z][a-z]{2}\ )? \d{4}[-/]\d\d[-/]\d\d (?:T|_|\ \ ?) %(time)b (?:\ ?(?:[Zz]|UTC|[+-]\d\d(?::?\d\d)?)(?![\w.]))?
  | \d{1,2}[-/.\ ](?:[A-Z][a-z]{2}|\d\d)[-/.\ ]\d{4}[:,\ ]\ ?%(time)b (?:\ [+-]\d{4})?
  | @4[0-9a-f]{23}
  | \d{9,10}\.\d{3,9} | \d{10}(?=\s)
  | \[\ *\d{1,9}\.\d{3,9}(?:\ *<\ *\d{1,9}\.\d{3,9}\ *>)?\]
)""" % {b"month_day": _MONTH_DAY, b"time": _TIME}
# journalctl -o short-full and with-unit: only the weekday in front shows that a time zone, not a host, follows.
_STAMP_FULL = rb"[A-Z][a-z]{2}\ \d{4}-\d\d-\d\d\ %b\ (?:[A-Z][A-Za-z0-9]{0,5}|[+-]\d\d(?::?\d\d)?)(?=\s)" % _TIME

_FACILITY = rb"(?:kern|user|mail|daemon|auth|syslog|lpr|news|uucp|cron|authpriv|ftp|ntp|security|console|local[0-7])"
_SEVERITY = (
    rb"(?:emerg(?:ency)?|panic|alert|crit(?:ical)?|error|err|warning|warn|notice|informational|information|info|debug)"
)
# A line's priority: `<mail.info>`, `<2.6>`, `<22>`, `mail.info:`, `mail:info`, `[info]` or `INFO`; or the stream that a
# container runtime names.
_PRIORITY = rb"""(?:
    (?i:[<\[(]? (?:%(facility)b[.:|/])? %(severity)b [>\])]? :?) (?=\s)
  | <\d{1,3}(?:\.\d{1,2})?> | (?:stdout|stderr)(?:\ [FP])?
)""" % {b"facility": _FACILITY, b"severity": _SEVERITY}

# A host name does not end in a colon, as a tag does, and is not in brackets.
_HOST = rb"[^\s\[\]<>|\"(){}=,;]{0,254}[^\s\[\]<>|\"(){}=,;:]"
_PROGRAM = rb"[A-Za-z][A-Za-z0-9._@-]*(?:/[A-Za-z0-9._@-]+)*"
# `postfix/smtpd[104]: `, `postfix/smtpd: `, macOS's `postfix/smtpd[104] <Info>: ` and metalog's `[postfix/smtpd] `.
_TAG = rb"""(?:
    (?!%(facility)b[.]%(severity)b:) (?P<program>%(program)b) (?:\[(?P<pid>\d{1,10})\])?
    (?:\ <[A-Za-z]{4,9}>|\ \([^()\s]{1,100}\))?:(?:\s+|$)
  | \[(?P<bracketed>%(program)b)(?:\[(?P<bracketed_pid>\d{1,10})\])?\]:?\s
)""" % {b"program": _PROGRAM, b"facility": _FACILITY, b"severity": _SEVERITY}
_FORWARDED = rb"(?:Message\ forwarded\ from\ (?P<origin>[^\s:]{1,255}):\s+)?"
# The address that some relays log in front of the host name.
_ADDRESS = rb"(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})\s+"

_ENTRY = re.compile(
    rb"""(?P<stamp>%(full)b|%(stamp)b):?\s+ (?:%(priority)b\s+){0,3}
    (?:(?:%(address)b(?=%(host)b\s+%(program)b[\[:]))?(?P<host>%(host)b)\s+(?:%(priority)b\s+){0,3})??
    %(forwarded)b %(tag)b(?P<message>.*)"""
    % {
        b"full": _STAMP_FULL,
        b"stamp": _STAMP,
        b"priority": _PRIORITY,
        b"address": _ADDRESS,
        b"host": _HOST,
        b"program": _PROGRAM,
        b"forwarded": _FORWARDED,
        b"tag": _TAG,
    },
    re.VERBOSE | re.DOTALL,
)
# RFC 5424 section 6, with or without its priority and its version: `<22>1 2026-... mx postfix/smtpd 104 - - message`.
_RFC5424 = re.compile(
    rb"""(?:<\d{1,3}>)?(?:\d{1,2}\ )?(?P<stamp>\d{4}-\d\d-\d\dT%b(?:Z|[+-]\d\d:?\d\d)|-)\ (?P<host>\S{1,255})
    \ (?P<program>\S{1,48})\ (?P<pid>\S{1,128})\ \S{1,32}
    \ (?:-|(?>\[(?:[^\]"\\]|\\.|"(?:[^"\\]|\\.)*")*\])+)(?:\ (?:\xef\xbb\xbf)?(?P<message>.*))?"""
    % _TIME,
    re.VERBOSE | re.DOTALL,
)
# A tag without a timestamp before it, perhaps with a host.
_UNSTAMPED = re.compile(rb"(?:(%b)\s+)?(%b)\[(\d{1,10})\]:\s+(.*)" % (_HOST, _PROGRAM), re.DOTALL)

# The prefixes that other programs add. Each is recognised by its form, and none contains a tag.
_LAYER = re.compile(
    rb"""
      \s+ | \xef\xbb\xbf | \x1e | data:\ | (?:[>|*\#+-]\ ?){1,8}(?=[^\s>|*\#+-]) | ["'`]+
    | <\d{1,3}>:?\s?                                                        # a priority
    | \d{1,7}\ (?=<\d{1,3}>)                                                # RFC 6587: the length of the message
    | \d{1,9}[:)\t\ ]\s*(?=["'`<]?%(stamp)b|["'`]?<)                        # a line's number
    | [\w./@+~-]{1,200}\ *\|\ ?                                             # docker compose
    | \[[^\]\s][^\]]{0,200}\]:?\s+(?=\S)                                    # kubectl logs --prefix
    | [^\s:|]{1,255}[:-](?:\d{1,9}[:-])?(?=["'`]?(?:<\d|%(stamp)b|\{))      # grep
    | [^:|]{1,255}:(?:\d{1,9}:)?(?=%(stamp)b)                               # grep, in a folder with a blank in its name
    | (?:[\w./@+~-]{1,200}\s+){1,2}(?=%(stamp)b)                            # podman logs --names, stern
    # A timestamp in front of another, with the text that a relay or a container runtime puts between them.
    | (?P<stamp>%(stamp)b) (?:\s+[^\s:]{1,255}|\s+%(priority)b){0,3} :?\s+
      (?=(?:<\d{1,3}>)?(?:\d\ )?%(stamp)b\b|\{|<\d{1,3}>\d\ )
    | (?P<before>%(full)b|%(stamp)b)(?:\s+%(priority)b){0,3}\s+(?=\S)
    """
    % {b"stamp": _STAMP, b"full": _STAMP_FULL, b"priority": _PRIORITY},
    re.VERBOSE,
)
_COLOURS = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")
# Web pages and mails have this character in place of a blank.
_NO_BREAK_SPACE = b"\xc2\xa0"
_STAMP_LENGTH = 60  # maximum bytes of a timestamp and its prefixes, where no-break spaces are looked for
_QUOTES = b"\"'`"

# Messages of syslogd in place of repeated lines: `last message repeated 3 times` (BSD, Solaris, macOS), and syslog-ng's
# `Last message '...' repeated 3 times, suppressed by syslog-ng on mx`.
_REPEATED = re.compile(
    rb"(?:%b):?\s+(?:%b\s+){0,3}(?:%b\s+)?(?:syslogd?(?:\[\d+\])?:\s+)?(?:---\s+)?[Ll]ast\smessage\s(?:'.{0,300}'\s)?"
    rb"repeated\s(\d{1,9})\stimes?" % (_STAMP, _PRIORITY, _HOST),
    re.VERBOSE,
)
_STAMPED = re.compile(rb"(?:%b|%b)(?=[\s:])" % (_STAMP_FULL, _STAMP), re.VERBOSE)


def unwrap(line: bytes) -> LogEntry:
    """Returns the entry in a line.

    If the line has no tag, the program is empty, and the message is the text within the wrappings.
    """
    written = line
    if line.startswith(b"\x1b["):
        line = _COLOURS.sub(b"", line)
    if _NO_BREAK_SPACE in line[:_STAMP_LENGTH]:
        line = line.replace(_NO_BREAK_SPACE, b" ")
    start, stamp = 0, b""
    for _ in range(_MAX_LAYERS):
        if found := _ENTRY.match(line, start):
            return _entry(found, as_written=line is written)
        if found := _RFC5424.match(line, start):
            entry_stamp, host, program, pid, message = found.groups()
            return LogEntry(
                stamp if entry_stamp == b"-" else entry_stamp,
                host if host != b"-" else b"",
                program,
                pid if pid.isdigit() else b"",
                message or b"",
            )
        if line.startswith(b"{", start):
            break
        if found := _UNSTAMPED.match(line, start):
            host, program, pid, message = found.groups()
            return LogEntry(stamp, host or b"", program, pid, message)
        layer = _LAYER.match(line, start)
        if layer is None or layer.end() == start:
            break
        if (quote := line[start : start + 1]) and quote in _QUOTES and line.endswith(quote):
            line = line[:-1]
        stamp = layer["stamp"] or layer["before"] or stamp
        start = layer.end()
    return LogEntry(stamp, b"", b"", b"", line[start:])


def _entry(found: re.Match[bytes], *, as_written: bool) -> LogEntry:
    stamp, host, origin, program, pid, bracketed, bracketed_pid, message = found.groups()
    end = (b"]: ", found.end("pid")) if pid is not None else (b": ", found.end("program"))
    plain = as_written and program is not None and found.string.startswith(*end)
    return LogEntry(
        stamp,
        origin or host or b"",
        program or bracketed,
        pid or bracketed_pid or b"",
        message,
        found.start("stamp") if plain else -1,
    )


def repeats(line: bytes) -> int:
    """Returns the count in a line such as `last message repeated 3 times`; 0 for any other line."""
    found = _REPEATED.match(line) if b"essage" in line[:200] else None
    return int(found[1]) if found is not None else 0


def is_stamped(line: bytes) -> bool:
    """Returns whether a line begins with a timestamp."""
    return _STAMPED.match(line) is not None
