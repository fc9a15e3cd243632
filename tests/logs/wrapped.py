# ruff: noqa: ISC004 - log lines as programs write them

"""One log of three mails, in every known wrapping.

The mails: one delivered, from a client whose name verified; one refused, from a client whose name did not verify;
one refused by a milter after its data.
"""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    Wrap = Callable[["Line"], str]


class Line(NamedTuple):
    """A message of a Postfix daemon to syslog, with its time (UTC)."""

    when: datetime.datetime
    daemon: str
    pid: int
    message: str

    @property
    def severity(self) -> str:
        return "warning" if self.message.startswith("warning") else "info"

    @property
    def bsd(self) -> str:
        return f"{self.when:%b} {self.when.day:2d} {self.when:%H:%M:%S}"

    @property
    def iso(self) -> str:
        return f"{self.when:%Y-%m-%dT%H:%M:%S}.{self.when.microsecond:06d}+00:00"

    @property
    def nano(self) -> str:
        return f"{self.when:%Y-%m-%dT%H:%M:%S}.{self.when.microsecond:06d}789Z"

    @property
    def tag(self) -> str:
        return f"postfix/{self.daemon}[{self.pid}]:"

    @property
    def plain(self) -> str:
        return f"{self.bsd} mx {self.tag} {self.message}"


_START = datetime.datetime(2026, 1, 5, 10, 5, 1, 123456, datetime.UTC)
_MESSAGES = (
    ("smtpd", 101, "connect from mail.example.com[192.0.2.10]"),
    ("smtpd", 101, "4AB1CD2EF3: client=mail.example.com[192.0.2.10]"),
    ("cleanup", 102, "4AB1CD2EF3: message-id=<1@example.com>"),
    ("qmgr", 90, "4AB1CD2EF3: from=<a@example.com>, size=900, nrcpt=1 (queue active)"),
    ("smtpd", 101, "disconnect from mail.example.com[192.0.2.10] ehlo=1 mail=1 rcpt=1 data=1 quit=1 commands=5"),
    (
        "local",
        103,
        "4AB1CD2EF3: to=<b@example.net>, relay=local, delay=1, delays=1/0/0/0, dsn=2.0.0, status=sent"
        " (delivered to mailbox)",
    ),
    ("qmgr", 90, "4AB1CD2EF3: removed"),
    (
        "smtpd",
        104,
        "warning: hostname bad.example.org does not resolve to address 198.51.100.7: Name or service not known",
    ),
    ("smtpd", 104, "connect from unknown[198.51.100.7]"),
    (
        "smtpd",
        104,
        "NOQUEUE: reject: RCPT from unknown[198.51.100.7]: 554 5.7.1 <b@example.net>: Relay access denied;"
        " from=<x@example.org> to=<b@example.net> proto=ESMTP helo=<h1>",
    ),
    ("smtpd", 104, "disconnect from unknown[198.51.100.7] ehlo=1 mail=1 rcpt=0/1 quit=1 commands=3/4"),
    ("smtpd", 105, "connect from spam.example.org[203.0.113.9]"),
    ("smtpd", 105, "5BC2DE3FA4: client=spam.example.org[203.0.113.9]"),
    (
        "cleanup",
        106,
        "5BC2DE3FA4: milter-reject: END-OF-MESSAGE from spam.example.org[203.0.113.9]: 5.7.1 Spam message rejected;"
        " from=<s@example.org> to=<b@example.net> proto=ESMTP helo=<spam.example.org>",
    ),
    ("smtpd", 105, "disconnect from spam.example.org[203.0.113.9] ehlo=1 mail=1 rcpt=1 data=0/1 commands=3/4"),
)
LINES = [Line(_START + datetime.timedelta(seconds=number), *message) for number, message in enumerate(_MESSAGES)]


def _journal(line: Line, **more: object) -> dict[str, object]:
    return {
        "__CURSOR": "s=1;i=1",
        "__REALTIME_TIMESTAMP": str(int(line.when.timestamp() * 1e6)),
        "_HOSTNAME": "mx",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": f"postfix/{line.daemon}",
        "SYSLOG_PID": str(line.pid),
        "_PID": str(line.pid),
        "MESSAGE": line.message,
    } | more


def _fields(line: Line, indent: str = "") -> str:
    return "\n".join(
        f"{indent}{key}={value}" for key, value in _journal(line).items() if indent == "" or key[:2] != "__"
    )


def _full(line: Line, zone: str = "UTC") -> str:
    return f"{line.when:%a %Y-%m-%d %H:%M:%S} {zone}"


# A TAI64 label minus the Unix time: 2^62, and the 37 s that TAI is ahead of UTC.
_TAI = 2**62 + 37

# Wrappings by name, which tells the program or the format; each function wraps a line.
WRAPPINGS: dict[str, Wrap] = {
    "syslog (RFC 3164)": lambda line: line.plain,
    "syslog without a host": lambda line: f"{line.bsd} {line.tag} {line.message}",
    "syslog without process ids": lambda line: f"{line.bsd} mx postfix/{line.daemon}: {line.message}",
    "syslog without host and process ids": lambda line: f"{line.bsd} postfix/{line.daemon}: {line.message}",
    "syslog with an address as host": lambda line: f"{line.bsd} 2001:db8::25 {line.tag} {line.message}",
    "syslog with a priority": lambda line: f"<22>{line.plain}",
    "syslog with milliseconds": lambda line: f"{line.bsd}.123 mx {line.tag} {line.message}",
    "a day without padding": lambda line: line.plain.replace("Jan  5", "Jan 5"),
    "a day padded with zero (journalctl -o short)": lambda line: line.plain.replace("Jan  5", "Jan 05"),
    "a year in front (syslog-ng, ts-format(full))": lambda line: f"2026 {line.plain}",
    "a year within (Cisco, some relays)": lambda line: line.plain.replace("Jan  5", "Jan  5 2026"),
    "ctime (busybox logread)": lambda line: (
        f"{line.when:%a} {line.bsd} 2026 mail.{line.severity} {line.tag} {line.message}"
    ),
    "RFC 3339 (rsyslog's file format)": lambda line: f"{line.iso} mx {line.tag} {line.message}",
    "RFC 3339 in UTC": lambda line: f"{line.when:%Y-%m-%dT%H:%M:%S}Z mx {line.tag} {line.message}",
    "date and time, separated by a blank": lambda line: f"{line.when:%Y-%m-%d %H:%M:%S} mx {line.tag} {line.message}",
    "date, time and offset": lambda line: f"{line.when:%Y-%m-%d %H:%M:%S} +0000 mx {line.tag} {line.message}",
    "a date with slashes": lambda line: f"{line.when:%Y/%m/%d %H:%M:%S} mx {line.tag} {line.message}",
    "a date with the day first": lambda line: f"{line.when:%d-%b-%Y %H:%M:%S}.123 mx {line.tag} {line.message}",
    "RFC 5424": lambda line: f"<22>1 {line.iso} mx postfix/{line.daemon} {line.pid} - - {line.message}",
    "RFC 5424 with structured data": lambda line: (
        f'<22>1 {line.iso} mx postfix/{line.daemon} {line.pid} MAIL [timeQuality tzKnown="1"][x y="a\\]b"]'
        f" \ufeff{line.message}"
    ),
    "RFC 5424 in a file (no priority)": lambda line: (
        f"1 {line.iso} mx postfix/{line.daemon} {line.pid} - - {line.message}"
    ),
    "RFC 5424 framed by length (RFC 6587)": lambda line: (
        f"182 <22>1 {line.iso} mx postfix/{line.daemon} {line.pid} - - {line.message}"
    ),
    "FreeBSD syslogd -v": lambda line: f"{line.bsd} <2.6> mx {line.tag} {line.message}",
    "FreeBSD syslogd -vv": lambda line: f"{line.bsd} <mail.{line.severity}> mx {line.tag} {line.message}",
    "busybox syslogd": lambda line: f"{line.bsd} mx mail.{line.severity} {line.tag} {line.message}",
    "AIX": lambda line: f"{line.bsd} mx mail:{line.severity} {line.tag} {line.message}",
    "AIX, forwarded": lambda line: f"{line.bsd} loghost Message forwarded from mx: {line.tag} {line.message}",
    "Solaris": lambda line: f"{line.bsd} mx {line.tag} [ID 197553 mail.{line.severity}] {line.message}",
    "macOS": lambda line: f"{line.bsd} mx {line.tag[:-1]} <{line.severity.title()}>: {line.message}",
    "metalog": lambda line: f"{line.bsd} [postfix/{line.daemon}] {line.message}",
    "socklog": lambda line: (
        f"{line.when:%Y-%m-%d_%H:%M:%S}.12345 mail.{line.severity}: {line.bsd} {line.tag} {line.message}"
    ),
    "severity in capitals (container images)": lambda line: (
        f"{line.iso} {line.severity.upper():<7} {line.tag} {line.message}"
    ),
    "severity in brackets": lambda line: f"{line.iso} mx [{line.severity}] {line.tag} {line.message}",
    "Kiwi": lambda line: f"{line.when:%Y-%m-%d %H:%M:%S}\tMail.Info\t192.0.2.1\t{line.plain}",
    "a relay's timestamp and name in front": lambda line: f"{line.bsd} loghost {line.plain}",
    "a relay's address in front": lambda line: f"{line.bsd} 192.0.2.1 mx {line.tag} {line.message}",
    "journalctl -o short-precise": lambda line: f"Jan 05 {line.when:%H:%M:%S}.123456 mx {line.tag} {line.message}",
    "journalctl -o short-iso": lambda line: f"{line.when:%Y-%m-%dT%H:%M:%S}+0000 mx {line.tag} {line.message}",
    "journalctl -o short-iso-precise": lambda line: f"{line.iso} mx {line.tag} {line.message}",
    "journalctl -o short-full": lambda line: f"{_full(line)} mx {line.tag} {line.message}",
    "journalctl -o short-full, another zone": lambda line: f"{_full(line, '+03')} mx {line.tag} {line.message}",
    "journalctl -o short-unix": lambda line: f"{line.when.timestamp():.6f} mx {line.tag} {line.message}",
    "journalctl -o short-monotonic": lambda line: f"[{line.when.second + 90:6d}.678901] mx {line.tag} {line.message}",
    "journalctl -o short-delta": lambda line: (
        f"[ {line.when.second + 90:5d}.678901 <    0.000123 >] mx {line.tag} {line.message}"
    ),
    "journalctl -o with-unit": lambda line: f"{_full(line)} mx postfix@-.service[{line.pid}]: {line.message}",
    "journalctl -o cat": lambda line: line.message,
    "journalctl -o json": lambda line: json.dumps(_journal(line)),
    "journalctl -o json, byte numbers": lambda line: json.dumps(_journal(line, MESSAGE=list(line.message.encode()))),
    "journalctl -o json --output-fields=MESSAGE": lambda line: json.dumps(
        {"__REALTIME_TIMESTAMP": _journal(line)["__REALTIME_TIMESTAMP"], "MESSAGE": line.message}
    ),
    "journalctl -o json-sse": lambda line: f"data: {json.dumps(_journal(line))}\n",
    "journalctl -o json-seq": lambda line: f"\x1e{json.dumps(_journal(line))}",
    "journalctl -o json-pretty": lambda line: json.dumps(_journal(line), indent="\t", separators=(",", " : ")),
    "journalctl -o verbose": lambda line: (
        f"{line.when:%a %Y-%m-%d %H:%M:%S}.123456 UTC [s=0123;i=4;b=5;m=6;t=7;x=8]\n{_fields(line, '    ')}"
    ),
    "journalctl -o export": lambda line: f"{_fields(line)}\n",
    "journald that wraps a log to standard output": lambda line: json.dumps(
        _journal(line, SYSLOG_IDENTIFIER="master", SYSLOG_PID="1", _PID="1", MESSAGE=line.plain)
    ),
    "docker logs -t": lambda line: f"{line.nano} {line.plain}",
    "docker logs -t, no syslog": lambda line: f"{line.nano} {line.tag} {line.message}",
    "docker's json-file": lambda line: json.dumps({"log": line.plain + "\n", "stream": "stdout", "time": line.nano}),
    "docker's syslog driver": lambda line: f"{line.bsd} dockerhost docker/mail[881]: {line.plain}",
    "docker compose logs": lambda line: f"postfix-1  | {line.plain}",
    "docker compose logs -t": lambda line: f"postfix-1  | {line.nano} {line.plain}",
    "docker compose logs, coloured": lambda line: f"\x1b[36mpostfix-1  | \x1b[0m{line.plain}",
    "podman logs -t": lambda line: f"{line.iso} {line.plain}",
    "podman logs --names": lambda line: f"mail {line.plain}",
    "CRI": lambda line: f"{line.nano} stdout F {line.plain}",
    "CRI around JSON": lambda line: f"{line.nano} stderr F {json.dumps({'message': line.message})}",
    "kubectl logs --prefix": lambda line: f"[pod/mail-0/postfix] {line.plain}",
    "stern": lambda line: f"mail-0 postfix {line.plain}",
    "s6 and multilog (TAI64N)": lambda line: (
        f"@{int(line.when.timestamp()) + _TAI:016x}{line.when.microsecond * 1000:08x} {line.tag} {line.message}"
    ),
    "fluentd": lambda line: (
        f"{line.iso}\tmail.postfix\t"
        + json.dumps({"host": "mx", "ident": f"postfix/{line.daemon}", "pid": str(line.pid), "message": line.message})
    ),
    "rsyslog as JSON": lambda line: json.dumps(
        {"timereported": line.iso, "hostname": "mx", "syslogtag": line.tag, "msg": f" {line.message}"}
    ),
    "syslog-ng as JSON": lambda line: json.dumps(
        {
            "PROGRAM": f"postfix/{line.daemon}",
            "PID": str(line.pid),
            "MESSAGE": line.message,
            "HOST": "mx",
            "DATE": line.bsd,
        }
    ),
    "Elastic": lambda line: json.dumps(
        {
            "_source": {
                "@timestamp": line.nano,
                "host": {"name": "mx"},
                "process": {"name": f"postfix/{line.daemon}", "pid": line.pid},
                "message": line.message,
            }
        }
    ),
    "grep -H": lambda line: f"/var/log/mail.log:{line.plain}",
    "grep -Hn": lambda line: f"mail.log:{line.when.second + 7}:{line.plain}",
    "grep -n": lambda line: f"{line.when.second + 7}:{line.plain}",
    "grep -H with context": lambda line: f"mail.log-{line.plain}",
    "grep -H, a blank in the folder": lambda line: f"/srv/old logs/mail.log:{line.plain}",
    "grep -H, RFC 3339": lambda line: f"/var/log/mail.log:{line.iso} mx {line.tag} {line.message}",
    "cat -n": lambda line: f"{line.when.second:6d}\t{line.plain}",
    "quoted in a mail": lambda line: f"> > {line.plain}",
    "quoted in Markdown": lambda line: f"    {line.plain}",
    "in quotation marks": lambda line: f'"{line.plain}"',
    "in backquotes": lambda line: f"`{line.plain}`",
    "in a list of Markdown": lambda line: f"- {line.plain}",
    "non-breaking spaces": lambda line: line.plain.replace("Jan  5", "Jan\u00a0\u00a05"),
    "carriage returns": lambda line: f"{line.plain}\r",
    "a byte order mark": lambda line: f"\ufeff{line.plain}" if line is LINES[0] else line.plain,
    "Unix seconds": lambda line: f"{int(line.when.timestamp())} mx {line.tag} {line.message}",
    "host and tag without a timestamp": lambda line: f"mx {line.tag} {line.message}",
    "a tag without a timestamp": lambda line: f"{line.tag} {line.message}",
}
