"""Mail logs, whoever wrote them: lines in, mail transactions out.

Knows Postfix and sendmail in the forms of syslog (RFC 3164 and RFC 3339 stamps, any host or none, any instance name)
and of `journalctl -o short` and `-o json`, and policyd's own decision log in both of its formats, bare or within a
journal. Promises: no line raises; lines that tell nothing are counted; what is held is bounded, since the readers of
each format give up their oldest open mail at a bound. Lines of several hosts and programs may be mixed.

The way of a line: what stands before the process id names the writer, and a dict leads from that to its reader, or
to nothing for the many lines of other programs. No expression is tried on a line before that.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from policyd.decision_log import reader
from policyd.logs.files import LogError, read_blocks
from policyd.logs.postfix import PostfixLog
from policyd.logs.sendmail import SendmailLog
from policyd.logs.timestamps import LogClock
from policyd.logs.transaction import MAX_RECIPIENTS, Observation, Outcome, Standing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from policyd.decision_log.reader import LoggedDecision

    Reader = Callable[[bytes, bytes, bytes], bool]

# No mail program writes a longer line (Postfix cuts at 2 KiB, policyd at 4), so a longer one is no line of a mail log
# and need not be looked through. JSON carries a journal's fields around the message.
_MAX_LINE = 8 * 1024
_MAX_JSON_LINE = 64 * 1024

# Writers (host and program) remembered. A site has dozens; junk that looks like lines must not fill memory.
_MAX_WRITERS = 4096

# Hosts and instances read apart, for the same reason.
_MAX_LOGS = 256

# Messages whose recipients policyd may still be asked about: one for each smtpd process.
_MAX_INSTANCES = 4096

# A host name is no longer (RFC 1035 section 2.3.4).
_MAX_HOST = 255

# A journal has the lines of everything; only those whose writer is worth it are read as JSON.
_IDENTIFIER = re.compile(rb'"SYSLOG_IDENTIFIER"\s*:\s*"([^"\\]{1,200})"')

_PROGRAM = re.compile(rb"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")
_SENDMAIL = frozenset({b"sendmail", b"sm-mta", b"sm-mta-in", b"sendmail-in", b"MTA"})
_POLICYD = b"policyd"

_OUTCOMES = {b"DUNNO": Outcome.PASSED, b"REJECT": Outcome.REJECTED}
_STANDINGS = {
    b"verified": Standing.VERIFIED,
    b"mismatch": Standing.CLAIMED,
    b"missing": Standing.NONE,
    b"error": Standing.ERROR,
}


@dataclass(slots=True)
class LineCounts:
    """What became of the lines."""

    lines: int = 0
    used: int = 0  # told something of a mail
    other: int = 0  # of a program, or of a matter, that tells nothing of mail from outside
    unknown: int = 0  # in no form that is known


class MailLog:
    """Reads the lines of one or several logs, in order, into observations.

    Feed it the lines of each file after `start_file`; at the end, `finish` gives up the mails that are still open.
    """

    def __init__(self) -> None:
        self.counts = LineCounts()
        self._clock = LogClock()
        self._observations: list[Observation] = []
        self._readers: dict[bytes, Reader] = {}
        self._postfix: dict[bytes, PostfixLog] = {}
        self._sendmail: dict[bytes, SendmailLog] = {}
        self._asked: dict[bytes, Observation] = {}  # by instance: what policyd was asked of, not yet complete

    def start_file(self, modified: float) -> None:
        """Begin a file that was last written to at `modified` (Unix seconds), which dates stamps without a year."""
        self._clock.start_file(modified)

    def feed(self, lines: Sequence[bytes]) -> list[Observation]:
        """Takes lines, without their ends; returns the mails that they complete, in no strict order."""
        readers = self._readers
        used = other = unknown = 0
        for line in lines:
            # b"Aug  3 12:15:23 ulysses postfix/smtpd[9105]: NOQUEUE: reject: ..."
            head, _, message = line.partition(b"]: ")
            writer, _, pid = head.rpartition(b"[")
            # Fourteen is where the shortest stamp, `Mar 9 23:12:23`, ends.
            end = writer.find(b" ", 14)
            reader = readers.get(writer[end:])
            if reader is _ignore:
                other += 1
            elif reader is not None and len(line) <= _MAX_LINE:
                if reader(writer[:end], pid, message):
                    used += 1
                else:
                    other += 1
            else:
                known = self._unusual(line, writer, pid, message)
                if known is None:
                    unknown += 1
                elif known:
                    used += 1
                else:
                    other += 1
        counts = self.counts
        counts.lines += len(lines)
        counts.used += used
        counts.other += other
        counts.unknown += unknown
        return self._take()

    def finish(self) -> list[Observation]:
        """End of all logs: the mails that are still open, with what is known of them."""
        for postfix in self._postfix.values():
            postfix.flush()
        for sendmail in self._sendmail.values():
            sendmail.flush()
        self._observations.extend(self._asked.values())
        self._asked.clear()
        return self._take()

    def _take(self) -> list[Observation]:
        taken = self._observations[:]
        self._observations.clear()
        return taken

    # --- Lines whose writer is not known yet, and those without one -------------------------------------------------

    def _unusual(self, line: bytes, writer: bytes, pid: bytes, message: bytes) -> bool | None:
        """As a reader; None for a line in no known form."""
        if line.startswith(b"{"):
            return self._json(line) if len(line) <= _MAX_JSON_LINE else None
        if len(line) > _MAX_LINE:
            return None
        if (decision := reader.parse(line)) is not None:
            return self._decided(decision)
        end = writer.find(b" ", 14)
        stamp = writer[:end]
        if end < 0 or not pid.isdigit() or b": " in writer or self._clock.seconds(stamp) is None:
            # `program: message` without a process id, and what is no line of syslog.
            return False if self._clock.seconds(line[:40]) is not None else None
        read = self._learn(writer[end:])
        return read(stamp, pid, message)

    def _learn(self, source: bytes) -> Reader:
        """The reader for a writer seen for the first time: `ulysses postfix-in/smtpd`."""
        host, _, program = source.strip().rpartition(b" ")
        read = self._reader_for(host, program)
        if len(self._readers) >= _MAX_WRITERS:
            self._readers.clear()
        self._readers[source] = read
        return read

    def _reader_for(self, host: bytes, program: bytes) -> Reader:
        if not _PROGRAM.fullmatch(program):
            return _ignore
        if program == _POLICYD:
            return self._policyd
        if program in _SENDMAIL:
            sendmail = _log_of(self._sendmail, host, lambda: SendmailLog(self._clock, self._observations))
            return sendmail.read if sendmail is not None else _ignore
        instance, slash, daemon = program.partition(b"/")
        if not slash:
            return _ignore
        # `postfix/submission/smtpd` is a service of the instance `postfix`, whose queue it shares.
        postfix = _log_of(self._postfix, host + b" " + instance, lambda: PostfixLog(self._clock, self._observations))
        return (postfix.reader(daemon.rpartition(b"/")[2]) if postfix is not None else None) or _ignore

    def _json(self, line: bytes) -> bool | None:
        """policyd's own format, or `journalctl -o json`; as a reader, and None for neither."""
        identifier = _IDENTIFIER.search(line)
        if identifier is not None and self._readers.get(b" " + identifier[1]) is _ignore:
            return False
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if not isinstance(fields, dict):
            return None
        if (decision := reader.from_json(fields)) is not None:
            return self._decided(decision)
        return self._journal(fields, b" " + identifier[1] if identifier is not None else b" -")

    def _journal(self, fields: dict[str, Any], program: bytes) -> bool | None:
        message, stamp = _journal_bytes(fields.get("MESSAGE")), _journal_bytes(fields.get("__REALTIME_TIMESTAMP"))
        if message is None or stamp is None:
            return None
        # The same program of another host is another writer.
        host = _journal_bytes(fields.get("_HOSTNAME")) or b"-"
        source = b" " + host[:_MAX_HOST] + program
        read = self._readers.get(source) or self._learn(source)
        if read is _ignore:
            self._readers[program] = read  # on whatever host: such a line is not read as JSON again
            return False
        pid = _journal_bytes(fields.get("SYSLOG_PID")) or _journal_bytes(fields.get("_PID")) or b""
        return read(b"@" + stamp, pid, message)

    # --- policyd's own lines ----------------------------------------------------------------------------------------

    def _policyd(self, _stamp: bytes, _pid: bytes, message: bytes) -> bool:
        decision = reader.parse(message)
        return decision is not None and self._decided(decision)

    def _decided(self, decision: LoggedDecision) -> bool:
        """The recipients of one mail are asked about one by one, with the same `instance`."""
        if decision.is_probe:
            return False
        seen = self._asked.pop(decision.instance, None) if decision.instance else None
        observation = self._observation(decision)
        if seen is not None:
            observation = _with_recipient(seen, observation)
        if not decision.instance:
            self._observations.append(observation)
            return True
        if len(self._asked) >= _MAX_INSTANCES:
            self._observations.append(self._asked.pop(next(iter(self._asked))))
        self._asked[decision.instance] = observation
        return True

    def _observation(self, decision: LoggedDecision) -> Observation:
        names = decision.claimed
        standing = _STANDINGS.get(decision.reverse_dns, Standing.UNKNOWN)
        if decision.hostname:
            # Where nobody had to know, it is the name that Postfix had checked.
            names, standing = (decision.hostname,), Standing.VERIFIED
        return Observation(
            self._clock.seconds(decision.time),
            decision.client_address,
            names,
            standing,
            decision.helo_name,
            decision.sender,
            (decision.recipient,) if decision.recipient else (),
            decision.sasl_username,
            _OUTCOMES.get(decision.action, Outcome.DEFERRED),
            b"policyd",
            decision.rule_name + b" " + decision.reply if decision.reply else decision.rule_name,
            "policyd",
        )


def observations(
    paths: Iterable[str], log: MailLog, advance: Callable[[int], None] | None = None
) -> Iterator[Sequence[Observation]]:
    """The mails in all of these files, read by `log`, in lists; `log.counts` says how it went.

    Raises `LogError` for a file that cannot be read, and for one in which nothing is known as a line of a mail log.
    """
    name = ""
    before = LineCounts()
    for block in read_blocks(paths, advance):
        if block.first:
            _refuse_foreign(name, before, log.counts)
            name, before = block.name, LineCounts(log.counts.lines, log.counts.used, log.counts.other)
            log.start_file(block.modified)
        yield log.feed(block.lines)
    _refuse_foreign(name, before, log.counts)
    yield log.finish()


def _refuse_foreign(name: str, before: LineCounts, after: LineCounts) -> None:
    lines = after.lines - before.lines
    if lines and after.used == before.used and after.other == before.other:
        raise LogError(
            f"{name}: no mail log: none of its {lines:,} lines has the form of syslog, of the journal or of"
            " policyd's decision log"
        )


_Log = TypeVar("_Log")


def _log_of(logs: dict[bytes, _Log], key: bytes, begin: Callable[[], _Log]) -> _Log | None:
    """The log that a writer belongs to; None for one too many."""
    if key not in logs and len(logs) < _MAX_LOGS:
        logs[key] = begin()
    return logs.get(key)


def _journal_bytes(value: object) -> bytes | None:
    """A field of the journal, which has what is not UTF-8 as an array of numbers; None for no field."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    if isinstance(value, list):
        try:
            return bytes(value)
        except (TypeError, ValueError):
            return None
    return None


def _ignore(_stamp: bytes, _pid: bytes, _message: bytes) -> bool:
    """The reader of programs that say nothing of mail."""
    return False


# What counts where recipients of one mail were answered differently: the best that happened to one of them.
_BEST = (Outcome.PASSED, Outcome.DEFERRED, Outcome.REJECTED)


def _with_recipient(seen: Observation, new: Observation) -> Observation:
    recipients = seen.recipients
    if new.recipients and new.recipients[0] not in recipients and len(recipients) < MAX_RECIPIENTS:
        recipients += new.recipients
    better = new if _BEST.index(new.outcome) < _BEST.index(seen.outcome) else seen
    return better._replace(time=seen.time, recipients=recipients)
