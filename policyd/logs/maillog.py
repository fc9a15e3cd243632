"""Reads mail logs of every known program: lines in, mail transactions out.

Reads Postfix and sendmail within all wrappings that policyd.logs.wrappings and policyd.logs.journal remove, and
policyd's own decision log in both formats, bare or within another log. Promises: no line raises; each line is counted
once; memory is bounded, and lines and mails left out because of a limit are counted. Lines of several hosts and
programs may be mixed.

How a line is read: the text between its timestamp and its process id names the writer, and a dict maps it to the
writer's reader, or to a reader that ignores the many lines of other programs. Wrappings are removed only from lines
whose writer is not in the dict. A writer with an unknown name is recognised by the form of its first messages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from policyd.decision_log import reader
from policyd.logs.counts import LeftOut, LineCounts
from policyd.logs.files import LogError, read_blocks
from policyd.logs.journal import Collector, entry_of, parse_json
from policyd.logs.postfix import OpenMails, PostfixHost
from policyd.logs.sendmail import SendmailLog
from policyd.logs.timestamps import LogClock
from policyd.logs.transaction import MAX_RECIPIENTS, MailOutcome, NameStatus, Observation
from policyd.logs.wrappings import LogEntry, is_stamped, repeats, unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from policyd.decision_log.reader import LoggedDecision

    Reader = Callable[[bytes, bytes, bytes], bool]

# Maximum bytes of a line; mail servers write shorter ones (Postfix cuts at 2 KiB, policyd at 4).
_MAX_LINE = 8 * 1024
# Maximum bytes of a JSON line, which has a journal's fields around the message.
_MAX_JSON_LINE = 64 * 1024

# Maximum number of writers (host and program) whose readers are cached, in 20 MB; beyond it the cache is emptied.
_MAX_WRITERS = 131_072

# Maximum number of hosts; a central log server has thousands, and junk that looks like hosts must not fill memory.
_MAX_HOSTS = 16_384

# Messages of a writer with an unknown name that are checked for a mail server's form.
_MAX_TRIES = 1000

# Maximum number of mails that may get further decisions, by `instance`; each smtpd process has one at a time.
_MAX_PENDING = 4096

# Maximum repetitions that one line such as `last message repeated 9 times` adds; it may stand for an hour of mail.
_MAX_REPEATS = 10_000

# A line of only these bytes counts as empty, also in a quotation.
_BLANK = b" \t\r>`\"'"

# Maximum bytes of a line kept as an example for a message.
_MAX_EXAMPLE = 300

# Bytes of the shortest timestamp, `Mar 9 23:12:23`.
_SHORTEST_STAMP = 14

# A journal has the entries of every program; only those of a possible mail server are parsed as JSON.
_IDENTIFIER = re.compile(rb'"SYSLOG_IDENTIFIER"\s*:\s*"([^"\\]{1,200})"')

# Beginnings of a text around the message: Solaris's message id, rsyslog's repetitions, and pasted blanks; also of
# `[88B blob data]`, which journalctl writes in place of a message.
_WITHIN = (b"[", b"message repeated ", b" ")
_MESSAGE_ID = re.compile(rb"\[ID \d{1,10} [a-z0-9]{1,10}\.[a-z]{1,10}\] ")
_REPEATED = re.compile(rb"message repeated (\d{1,9}) times: \[ ?(.*)\]", re.DOTALL)
_BLOB = re.compile(rb"\[[\d.]{1,8}[BKMG]? blob data\]")

_PROGRAM = re.compile(rb"[A-Za-z0-9._@-]+(?:/[A-Za-z0-9._@-]+)*")
_SENDMAIL = frozenset({b"sendmail", b"sm-mta", b"sm-mta-in", b"sendmail-in", b"MTA"})
_POLICYD = b"policyd"

# The forms of messages of Postfix and of sendmail, for programs with an unknown name.
_POSTFIX_SHAPE = re.compile(
    rb"(?:NOQUEUE|[0-9A-F]{5,15}|[0-9B-DF-HJ-NP-TV-Zb-df-hj-np-tv-z]{10,20}): "
    rb"(?:client=\S*\[|from=<.*>, size=\d+, nrcpt=|to=<.*>, .*status=|removed$|message-id=<"
    rb"|(?:milter-|proxy-)?(?:reject|discard|accept): )"
    rb"|(?:dis)?connect from \S*\[[0-9A-Fa-f:.]+\]|proxy-(?:accept|reject): "
    rb"|warning: hostname \S+ does not resolve to address "
)
_SENDMAIL_SHAPE = re.compile(
    rb"(?:[A-Za-z0-9]{8,20}: )?(?:from=.*, class=|to=.*, stat=|ruleset=check_\w+, arg1=|Milter\b.*(?:reject|discard)"
    rb"|(?:AUTH|STARTTLS)=server, relay=)"
)

_OUTCOMES = {b"DUNNO": MailOutcome.PASSED, b"REJECT": MailOutcome.REJECTED}
_NAME_STATUSES = {
    b"verified": NameStatus.VERIFIED,
    b"mismatch": NameStatus.CLAIMED,
    b"missing": NameStatus.NONE,
    b"error": NameStatus.ERROR,
}


class MailLog:
    """Reads the lines of one or several logs, in order, into observations.

    Feed it the lines of each file after `start_file`; at the end, `finish` returns the mails that are still open.
    """

    def __init__(self) -> None:
        self.counts = LineCounts()
        self._clock = LogClock()
        self._observations: list[Observation] = []
        # By the text between timestamp and process id; for JSON, by `"` and the program.
        self._readers: dict[bytes, Reader] = {}
        self._writers: dict[tuple[bytes, bytes], Reader] = {}  # by host and program
        self._open = OpenMails(self.counts.left_out)
        self._postfix: dict[bytes, PostfixHost] = {}
        self._sendmail: dict[bytes, SendmailLog] = {}
        # By `instance`: mails with a decision that may get further decisions.
        self._pending: dict[bytes, Observation] = {}
        # In lines like the last one learned: where the timestamp begins, and where to search for the blank after it.
        self._start, self._behind = 0, _SHORTEST_STAMP
        self._previous = b""
        self._collector: Collector | None = None

    def start_file(self, modified: float) -> None:
        """Begins a file, last written to at `modified` (Unix seconds), which dates timestamps without a year."""
        self._end_entry()
        self._previous = b""
        self._clock.start_file(modified)

    def feed(self, lines: Sequence[bytes]) -> list[Observation]:
        """Takes lines, without their ends; returns the mails that they complete, in no particular order."""
        readers = self._readers
        start, behind, previous = self._start, self._behind, self._previous
        used = other = unknown = 0
        for line in lines:
            # b"Aug  3 12:15:23 ulysses postfix/smtpd[9105]: NOQUEUE: reject: ..."
            head, _, message = line.partition(b"]: ")
            writer, _, pid = head.rpartition(b"[")
            end = writer.find(b" ", behind)
            read = readers.get(writer[end:])
            if read is _ignore:
                other += 1
            elif read is not None and message and len(line) <= _MAX_LINE:
                if read(writer[start:end], pid, message) or (
                    message.startswith(_WITHIN) and self._within(read, writer[start:end], pid, message)
                ):
                    used += 1
                else:
                    other += 1
            else:
                known = self._read_unusual(line, previous)
                start, behind = self._start, self._behind
                if known is None:
                    unknown += 1
                elif known:
                    used += 1
                else:
                    other += 1
            previous = line
        self._previous = previous
        counts = self.counts
        counts.lines += len(lines)
        counts.used += used
        counts.other += other
        counts.unknown += unknown
        return self._take()

    def finish(self) -> list[Observation]:
        """Ends all logs; returns the mails that are still open, with the facts known so far."""
        self._end_entry()
        for postfix in self._postfix.values():
            postfix.flush()
        self._open.flush(self._observations)
        for sendmail in self._sendmail.values():
            sendmail.flush()
        self._observations.extend(self._pending.values())
        self._pending.clear()
        return self._take()

    def _take(self) -> list[Observation]:
        taken = self._observations[:]
        self._observations.clear()
        return taken

    # --- Lines without a known writer -------------------------------------------------------------------------------

    def _read_unusual(self, line: bytes, previous: bytes) -> bool | None:
        """Reads a line that the dict has no reader for. Returns whether it was used; None if its form is unknown."""
        known = self._read(line, previous)
        if known is None and not self.counts.example:
            self.counts.example = line[:_MAX_EXAMPLE]
        return known

    def _read(self, line: bytes, previous: bytes) -> bool | None:
        if self._collector is not None or Collector.begins(line):
            return self._collect(line)
        if line.startswith(b"{"):
            return self._json(line, b"")
        if len(line) > _MAX_LINE:
            self.counts.left_out.long_lines += 1
            return None
        # `ulysses dovecot: `, without a process id.
        end = line.find(b" ", self._behind)
        colon = line.find(b": ", end)
        if end > 0 and (read := self._readers.get(line[end : colon + 1])) is not None:
            known: bool | None = self._read_message(read, line[self._start : end], b"", line[colon + 2 :])
        elif (decision := reader.parse(line)) is not None:
            known = self._add_decision(decision)
        elif times := repeats(line):
            known = self._repeat(times, lambda: self._read(previous, b""))
        elif line.strip(_BLANK):
            known = self._entry(unwrap(line), line)
        else:
            self.counts.blank += 1
            known = False
        return known

    def _entry(self, entry: LogEntry, line: bytes) -> bool | None:
        stamp, host, program, pid, message, start = entry
        if not program or (not pid and b"/" not in program):
            # A message without a tag (`journalctl -o cat`); its queue id looks like a program.
            text = program + b": " + message if program else message
            if text.startswith(b"{"):
                return self._json(text, stamp)
            if (decision := reader.parse(text)) is not None:
                return self._add_decision(decision)
            if (read := self._reader_by_shape(host, text)) is not None:
                return self._read_message(read, stamp, pid, text)
            if not program:
                if not is_stamped(line):
                    return None
                self.counts.example = self.counts.example or line[:_MAX_EXAMPLE]
                return False
        read = self._reader(host, program)
        if start >= 0:
            self._learn(line, entry, read)
        return self._read_message(read, stamp, pid, message)

    def _learn(self, line: bytes, entry: LogEntry, read: Reader) -> None:
        """Remembers the writer, and the form of the line around it."""
        behind = entry.start + (len(entry.stamp) if b" " in entry.stamp[_SHORTEST_STAMP:] else _SHORTEST_STAMP)
        end = line.find(b" ", behind)
        if end != entry.start + len(entry.stamp):
            return
        writer = line.partition(b"]: ")[0].rpartition(b"[")[0] if entry.pid else line[: line.find(b": ", end) + 1]
        key = writer[end:]
        if not key.rstrip(b":").endswith(entry.program):
            return
        if len(self._readers) >= _MAX_WRITERS:
            self._readers.clear()
        self._readers[key] = read
        self._start, self._behind = entry.start, behind

    def _read_message(self, read: Reader, stamp: bytes, pid: bytes, message: bytes) -> bool:
        """Reads a message of a known writer."""
        return read(stamp, pid, message) or (message.startswith(_WITHIN) and self._within(read, stamp, pid, message))

    def _within(self, read: Reader, stamp: bytes, pid: bytes, message: bytes) -> bool:
        """Reads a message within the text that a syslog daemon wrote around it."""
        if (message_id := _MESSAGE_ID.match(message)) is not None:
            return self._read_message(read, stamp, pid, message[message_id.end() :])
        if message.startswith(b" "):
            return self._read_message(read, stamp, pid, message.lstrip(b" "))
        if (repeated := _REPEATED.fullmatch(message)) is not None:
            times, inner = int(repeated[1]), repeated[2].rstrip()
            return self._repeat(times, lambda: read(stamp, pid, inner)) is True
        if _BLOB.fullmatch(message) is not None:
            self.counts.hidden += 1
        return False

    def _repeat(self, times: int, read: Callable[[], bool | None]) -> bool | None:
        if times > _MAX_REPEATS:
            self.counts.left_out.repeats += times - _MAX_REPEATS
        known: bool | None = False
        for _ in range(min(times, _MAX_REPEATS)):
            known = read()
            if not known:
                return False
        self.counts.repeated += min(times, _MAX_REPEATS)
        return known

    # --- Readers by program -----------------------------------------------------------------------------------------

    def _reader(self, host: bytes, program: bytes) -> Reader:
        read = self._writers.get((host, program))
        if read is None:
            read = self._new_reader(host, program)
            if len(self._writers) >= _MAX_WRITERS:
                self._writers.clear()
            self._writers[host, program] = read
        return read

    def _new_reader(self, host: bytes, program: bytes) -> Reader:
        if not _PROGRAM.fullmatch(program):
            return _ignore
        if program == _POLICYD:
            return self._policyd
        if program in _SENDMAIL:
            return self._sendmail_of(host)
        instance, slash, daemon = program.partition(b"/")
        if not slash:
            return self._unknown_writer(host, program)
        # `postfix/submission/smtpd` is a service of the instance `postfix`, whose queue it shares.
        daemon = daemon.rpartition(b"/")[2]
        if not PostfixHost.knows(daemon):
            return self._unknown_writer(host, program)
        postfix = self._postfix_of(host)
        return postfix.reader(instance, daemon) if postfix is not None else self._too_many_hosts

    def _reader_by_shape(self, host: bytes, message: bytes) -> Reader | None:
        """Returns the reader for a message of this form; None if the form is unknown."""
        if _POSTFIX_SHAPE.match(message) is not None:
            postfix = self._postfix_of(host)
            return postfix.reader(b"", None) if postfix is not None else self._too_many_hosts
        return self._sendmail_of(host) if _SENDMAIL_SHAPE.match(message) is not None else None

    def _postfix_of(self, host: bytes) -> PostfixHost | None:
        if host not in self._postfix:
            if len(self._postfix) >= _MAX_HOSTS:
                return None
            self._postfix[host] = PostfixHost(host, self._clock, self._observations, self._open)
        return self._postfix[host]

    def _sendmail_of(self, host: bytes) -> Reader:
        if host not in self._sendmail:
            if len(self._sendmail) >= _MAX_HOSTS:
                return self._too_many_hosts
            self._sendmail[host] = SendmailLog(self._clock, self._observations, self.counts.left_out)
        return self._sendmail[host].read

    def _too_many_hosts(self, _stamp: bytes, _pid: bytes, _message: bytes) -> bool:
        """Counts the lines of hosts beyond the maximum."""
        self.counts.left_out.hosts += 1
        return False

    def _unknown_writer(self, host: bytes, program: bytes) -> Reader:
        unknown = _UnknownWriter(host, program)
        unknown.read = partial(self._try, unknown)
        return unknown.read

    def _try(self, unknown: _UnknownWriter, stamp: bytes, pid: bytes, message: bytes) -> bool:
        """Reads a message of a writer that may or may not be a mail server."""
        text = message[message_id.end() :] if (message_id := _MESSAGE_ID.match(message)) is not None else message
        if (read := self._reader_by_shape(unknown.host, text)) is not None:
            self._set_reader(unknown, read)
            return read(stamp, pid, text)
        # A container whose lines syslog or the journal has wrapped: each may be of another program.
        if is_stamped(text) and (inner := unwrap(text)).program:
            read = self._reader(inner.host or unknown.host, inner.program)
            return self._read_message(read, inner.stamp, inner.pid, inner.message)
        if (decision := reader.parse(text)) is not None:
            return self._add_decision(decision)
        unknown.left -= 1
        if not unknown.left:
            self._set_reader(unknown, _ignore)
        return False

    def _set_reader(self, unknown: _UnknownWriter, read: Reader) -> None:
        """Makes `read` the reader of a writer, once its program is known."""
        self._writers[unknown.host, unknown.program] = read
        for key in [key for key, known in self._readers.items() if known is unknown.read]:
            self._readers[key] = read

    # --- Entries with fields ----------------------------------------------------------------------------------------

    def _json(self, line: bytes, stamp: bytes) -> bool | None:
        """Reads JSON of policyd, `journalctl -o json` or another logger; returns None for other lines."""
        if len(line) > _MAX_JSON_LINE:
            self.counts.left_out.long_lines += 1
            return None
        identifier = _IDENTIFIER.search(line)
        if identifier is not None and self._readers.get(b'"' + identifier[1]) is _ignore:
            return False
        fields = parse_json(line)
        if fields is None:
            return None
        if (decision := reader.from_json(fields)) is not None:
            return self._add_decision(decision)
        return self._fields(fields, stamp)

    def _fields(self, fields: dict[str, Any], stamp: bytes) -> bool | None:
        entry = entry_of(fields, stamp)
        if entry is None:
            if "MESSAGE" in fields and "__REALTIME_TIMESTAMP" in fields:
                self.counts.hidden += 1  # journalctl writes null for a value that is too long
                return False
            return None
        if not entry.program:
            known = self._entry(entry, b"")
            return False if known is None and "MESSAGE" in fields else known
        read = self._reader(entry.host, entry.program)
        if read is _ignore and "SYSLOG_IDENTIFIER" in fields:
            # From now on, lines of this program are not parsed as JSON, on any host.
            self._readers[b'"' + entry.program] = read
            return False
        return self._read_message(read, entry.stamp, entry.pid, entry.message)

    def _collect(self, line: bytes) -> bool | None:
        if self._collector is None:
            self._collector = Collector()
        belongs, fields = self._collector.take(line)
        known = self._fields(fields, b"") if fields is not None else False
        if belongs:
            return bool(known)
        self._collector = None
        return known or self._read(line, b"")

    def _end_entry(self) -> None:
        if self._collector is not None and (fields := self._collector.end()) is not None:
            self._fields(fields, b"")
        self._collector = None

    # --- policyd's own lines ----------------------------------------------------------------------------------------

    def _policyd(self, _stamp: bytes, _pid: bytes, message: bytes) -> bool:
        decision = reader.parse(message)
        return decision is not None and self._add_decision(decision)

    def _add_decision(self, decision: LoggedDecision) -> bool:
        """Combines decisions with the same `instance`, one for each recipient of a mail."""
        if decision.is_probe:
            return False
        seen = self._pending.pop(decision.instance, None) if decision.instance else None
        observation = self._observation(decision)
        if seen is not None:
            observation = _combined(seen, observation)
        if not decision.instance:
            self._observations.append(observation)
            return True
        if len(self._pending) >= _MAX_PENDING:
            self._observations.append(self._pending.pop(next(iter(self._pending))))
        self._pending[decision.instance] = observation
        return True

    def _observation(self, decision: LoggedDecision) -> Observation:
        names = decision.claimed
        name_status = _NAME_STATUSES.get(decision.reverse_dns, NameStatus.UNKNOWN)
        if decision.hostname:
            # Also without `rdns=`: if no rule needed the identity, the log has the name that Postfix verified.
            names, name_status = (decision.hostname,), NameStatus.VERIFIED
        return Observation(
            self._clock.seconds(decision.time),
            decision.client_address,
            names,
            name_status,
            decision.helo_name,
            decision.sender,
            (decision.recipient,) if decision.recipient else (),
            decision.sasl_username,
            _OUTCOMES.get(decision.action, MailOutcome.DEFERRED),
            b"policyd",
            decision.rule_name + b" " + decision.reply if decision.reply else decision.rule_name,
            "policyd",
            decision.lists,
            decision.owner,
        )


def observations(
    paths: Iterable[str], log: MailLog, advance: Callable[[int], None] | None = None
) -> Iterator[Sequence[Observation]]:
    """Yields the mails in all of these files, read by `log`, in lists; `log.counts` counts the lines.

    Raises `LogError` for a file that cannot be read, or that has no line of a mail log.
    """
    name = ""
    before = LineCounts()
    for block in read_blocks(paths, advance):
        if block.first:
            _refuse_foreign(name, before, log.counts)
            name, before = block.name, replace(log.counts, left_out=LeftOut())
            log.start_file(block.modified)
        yield log.feed(block.lines)
    _refuse_foreign(name, before, log.counts)
    yield log.finish()


def _refuse_foreign(name: str, before: LineCounts, after: LineCounts) -> None:
    lines = after.lines - before.lines
    if lines and after.used == before.used and after.other - after.blank == before.other - before.blank:
        quoted = quote(after.example)
        raise LogError(
            f"{name}: not a mail log: none of its {lines:,} lines has the form of syslog, of the journal or of "
            f"policyd's decision log{f'; the first begins with {quoted}' if quoted else ''}; {WAYS_OUT}"
        )


# Advice about lines in an unknown form.
WAYS_OUT = (
    "write plain lines with `grep -h`, `docker compose logs --no-log-prefix`, `journalctl -o short` or the syslog"
    " daemon's traditional format"
)
# Maximum characters of a quoted line.
_QUOTED_LENGTH = 60


def quote(line: bytes) -> str:
    """Returns the beginning of a log line for a message: printable ASCII in quotes, or nothing for an empty line."""
    text = "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in line[: _QUOTED_LENGTH + 1])
    return f"'{text[:_QUOTED_LENGTH]}{'...' if len(text) > _QUOTED_LENGTH else ''}'" if text.strip() else ""


@dataclass(slots=True, eq=False)
class _UnknownWriter:
    """A writer with an unknown name, until one of its messages has the form of a mail server's."""

    host: bytes
    program: bytes
    left: int = _MAX_TRIES
    read: Reader | None = None  # its reader until then


def _ignore(_stamp: bytes, _pid: bytes, _message: bytes) -> bool:
    """The reader for programs that do not handle mail."""
    return False


# Outcomes from best to worst; a mail has the best outcome of its recipients.
_BEST = (MailOutcome.PASSED, MailOutcome.DEFERRED, MailOutcome.REJECTED)


def _combined(seen: Observation, new: Observation) -> Observation:
    """Returns the mail of two decisions, with the recipients of both and the better outcome."""
    recipients = seen.recipients
    if new.recipients and new.recipients[0] not in recipients and len(recipients) < MAX_RECIPIENTS:
        recipients += new.recipients
    better = new if _BEST.index(new.outcome) < _BEST.index(seen.outcome) else seen
    return better._replace(time=seen.time, recipients=recipients)
