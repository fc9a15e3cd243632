"""Postfix's log lines, put together to mail transactions.

The lines of one mail come from several daemons and are tied by its queue id; a refused one has none (`NOQUEUE`) and
is tied by the smtpd process that logged it. Formats as in Postfix 2.3 to 3.12 (smtpd.c, smtpd_check.c,
smtpd_peer.c for the names and the warnings about them, cleanup_milter.c, qmgr_active.c, log_adhoc.c).

What a line has is cut out with `find` where that is enough, since most lines of a log come here: an expression for
each costs half the speed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from policyd.logs.transaction import MAX_RECIPIENTS, Observation, Outcome, Standing

if TYPE_CHECKING:
    from collections.abc import Callable

    from policyd.logs.timestamps import LogClock

# Mails that are open at the same time: in the queue of a large site, or begun and left by their client. One takes
# about 1 KB here, so all of them 64 MB. The oldest is given up first, with what is known of it.
MAX_OPEN = 65_536

# smtpd processes with something to remember; Postfix's default_process_limit is 100, large sites set a few thousand.
MAX_SESSIONS = 16_384

# Nearly every refusal, at one go.
_USUAL_REFUSAL = re.compile(
    rb"(reject|milter-reject): ([A-Z][A-Z-]*) from ([^\s\[]*)\[([0-9A-Fa-f:.]+)\]: "
    rb"([^;]*); from=<([^>]*)> to=<([^>]*)> proto=\w+ helo=<([^>]*)>"
)
# Otherwise: the start of `reject: RCPT from name[address]: text; from=<...> ...`, of smtpd, cleanup and postscreen.
_REFUSAL = re.compile(
    rb"(reject|milter-reject|discard|milter-discard): ([A-Z][A-Z-]*) "
    rb"from ([^\s\[]*)\[([0-9A-Fa-f:.]+|unknown)\](?::\d+)?: "
)
# The same of header_checks(5) and body_checks(5), which begins with the line of the mail.
_CONTENT_REFUSAL = re.compile(rb"(reject|discard): (header|body|mime-header|nested-header) ")
# Its end, where each part may be missing; postscreen puts commas. Atomic groups, so that a client whose words
# look like parts of it costs no time.
_ENVELOPE = re.compile(
    rb";(?: from=<(?>(.*?)>(?=,? (?:to=<|proto=))),?)?(?: to=<(?>(.*?)>(?=,? proto=)),?)?"
    rb" proto=\w+,?(?: helo=<(?>(.*?)>(?=$|[ ,:;])))?(?:,? sasl_username=<([^>]*)>)?(?:: (.*))?"
)
_CLIENT = re.compile(rb"([^\s\[,]*)\[([0-9A-Fa-f:.]+|unknown)\]")
_WRONG_NAME = re.compile(rb"warning: hostname (\S+) does not resolve to address ([0-9A-Fa-f:.]+)(?:: (.*))?")
# Before Postfix 2.6.
_WRONG_NAME_ONCE = re.compile(
    rb"warning: ([0-9A-Fa-f:.]+): "
    rb"(?:address not listed for hostname (\S+)|hostname (\S+) verification failed(?:: (.*))?)"
)
# gai_strerror(3) of EAI_AGAIN, the one that may be another answer tomorrow.
_TEMPORARY = b"Temporary failure"

_NO_NAMES: tuple[bytes, ...] = ()


class _Mail:
    """A transaction that is under way."""

    __slots__ = (
        "by",
        "client_address",
        "helo_name",
        "names",
        "outcome",
        "recipients",
        "refused",
        "sasl_username",
        "sender",
        "standing",
        "text",
        "time",
    )

    def __init__(self, time: float | None, client_address: bytes, names: tuple[bytes, ...], standing: Standing) -> None:
        self.time = time
        self.client_address = client_address
        self.names = names
        self.standing = standing
        self.helo_name = b""
        self.sender: bytes | None = None
        self.recipients: list[bytes] = []
        self.refused: list[bytes] = []  # recipients that the session refused while others were accepted
        self.sasl_username = b""
        self.outcome = Outcome.UNKNOWN
        self.by = b""
        self.text = b""

    def observation(self) -> Observation:
        return Observation(
            self.time,
            self.client_address,
            self.names,
            self.standing,
            self.helo_name,
            self.sender,
            tuple(self.recipients or self.refused),
            self.sasl_username,
            self.outcome,
            self.by,
            self.text,
            "postfix",
        )


class _Session:
    """What one smtpd process said that later lines of it need."""

    __slots__ = ("claimed", "claimed_address", "lookup_failed", "refused")

    def __init__(self) -> None:
        self.claimed = b""
        self.claimed_address = b""
        self.lookup_failed = False
        self.refused: Observation | None = None


class PostfixLog:
    """The lines of one Postfix instance on one host, whose queue ids and process ids are its own.

    What is complete is appended to `observations`; `flush` gives up the rest.
    """

    def __init__(self, clock: LogClock, observations: list[Observation]) -> None:
        self._seconds = clock.seconds
        self._observations = observations
        self._mails: dict[bytes, _Mail] = {}
        self._sessions: dict[bytes, _Session] = {}

    def reader(self, daemon: bytes) -> Callable[[bytes, bytes, bytes], bool] | None:
        """What reads the lines of a daemon, by its name in the log; None for one whose lines say nothing of clients.

        A reader takes stamp, process id and message, and says whether the line told something.
        """
        match daemon:
            case b"smtpd" | b"postscreen":
                return self._smtpd
            case b"qmgr" | b"nqmgr" | b"oqmgr":
                return self._qmgr
            case b"cleanup":
                return self._cleanup
            case b"smtp" | b"lmtp" | b"local" | b"virtual" | b"pipe" | b"error" | b"retry" | b"discard" | b"relay":
                return self._delivery
            case _:
                return None

    def flush(self) -> None:
        """End of the log: what is open is given up with what is known of it."""
        for session in self._sessions.values():
            self._end_refused(session)
        self._sessions.clear()
        for mail in self._mails.values():
            self._observations.append(mail.observation())
        self._mails.clear()

    # --- smtpd ------------------------------------------------------------------------------------------------------

    def _smtpd(self, stamp: bytes, pid: bytes, message: bytes) -> bool:
        if message.startswith((b"connect from", b"disconnect from")):
            session = self._sessions.get(pid)
            if session is not None:
                self._end_refused(session)
                if message.startswith(b"disconnect"):
                    del self._sessions[pid]
            return True
        if message.startswith(b"warning: "):
            return self._warning(pid, message)
        queue_id, _, rest = message.partition(b": ")
        if rest.startswith(b"client="):
            return self._accepted(stamp, pid, queue_id, rest)
        if rest.startswith((b"reject: ", b"milter-reject: ", b"discard: ", b"milter-discard: ")):
            return self._refused(stamp, pid, queue_id, rest)
        return False

    def _warning(self, pid: bytes, message: bytes) -> bool:
        """The only lines that tell a claimed name: it comes right before `connect from unknown[...]`."""
        if wrong := _WRONG_NAME.fullmatch(message):
            name, address, reason = wrong.groups()
        elif wrong := _WRONG_NAME_ONCE.fullmatch(message):
            address, reason, name = wrong[1], wrong[4], wrong[2] or wrong[3]
        else:
            return False
        session = self._session(pid)
        self._end_refused(session)
        session.claimed = name.lower().rstrip(b".")
        session.claimed_address = address
        session.lookup_failed = reason is not None and reason.startswith(_TEMPORARY)
        return True

    def _accepted(self, stamp: bytes, pid: bytes, queue_id: bytes, rest: bytes) -> bool:
        """`client=name[address], sasl_method=..., sasl_username=..., orig_queue_id=..., orig_client=name[address]`."""
        client = _CLIENT.match(rest, 7)
        if client is None:
            return False
        name, address = client.groups()
        details = rest[client.end() :]
        sasl_username = b""
        if details:
            if (original := details.find(b"orig_client=")) >= 0:
                # A content filter gives the mail back (XFORWARD). Where the mail it was given is in this log, it is
                # that mail; else its client is the one that counts.
                before = details.find(b"orig_queue_id=")
                if before >= 0 and details[before + 14 :].partition(b",")[0] in self._mails:
                    return True
                if (client := _CLIENT.match(details, original + 12)) is not None:
                    name, address = client.groups()
            if (user := details.find(b"sasl_username=")) >= 0:
                sasl_username = details[user + 14 :].partition(b", ")[0]
        names, standing = self._identity(pid, name, address)
        mail = _Mail(self._seconds(stamp), address, names, standing)
        mail.sasl_username = sasl_username
        if queue_id in self._mails:
            self._finish(queue_id)  # short queue ids come again after some time
        elif len(self._mails) >= MAX_OPEN:
            self._finish(next(iter(self._mails)))
        self._mails[queue_id] = mail
        return True

    def _refused(self, stamp: bytes, pid: bytes, queue_id: bytes, rest: bytes) -> bool:
        refusal = _read_refusal(rest)
        if refusal is None:
            return False
        how, state, name, address, text, sender, recipient, helo_name, sasl_username = refusal
        by = b"milter" if how.startswith(b"milter") else b"smtpd"
        if how.endswith(b"discard"):
            outcome = Outcome.REJECTED
            text = b"discarded: " + text
        else:
            outcome = Outcome.DEFERRED if text.startswith(b"4") else Outcome.REJECTED
        mail = self._mails.get(queue_id)
        if mail is not None:
            # It has a queue id since one of its recipients was accepted. This one was not, or in the end none.
            mail.helo_name = helo_name or mail.helo_name
            mail.sender = mail.sender if sender is None else sender
            if state == b"RCPT":
                _add(mail.refused, recipient or b"")
            else:
                mail.outcome, mail.by, mail.text = outcome, by, text
            return True
        session = self._session(pid)
        pending = session.refused
        if pending is not None:
            if (
                recipient is not None
                and recipient not in pending.recipients
                and pending.client_address == address
                and pending.sender == sender
                and pending.helo_name == helo_name
            ):
                session.refused = _with_recipient(pending, recipient, outcome, by, text)
                return True
            self._observations.append(pending)
        names, standing = self._identity(pid, name, address)
        session.refused = Observation(
            self._seconds(stamp),
            address,
            names,
            standing,
            helo_name,
            sender,
            (recipient,) if recipient is not None else (),
            sasl_username,
            outcome,
            by,
            text,
            "postfix",
        )
        return True

    def _identity(self, pid: bytes, name: bytes, address: bytes) -> tuple[tuple[bytes, ...], Standing]:
        if name and name != b"unknown":
            return (name.lower(),), Standing.VERIFIED
        session = self._sessions.get(pid)
        if session is not None and session.claimed_address == address:
            return (session.claimed,), Standing.ERROR if session.lookup_failed else Standing.CLAIMED
        return _NO_NAMES, Standing.UNKNOWN

    def _session(self, pid: bytes) -> _Session:
        session = self._sessions.get(pid)
        if session is None:
            if len(self._sessions) >= MAX_SESSIONS:
                oldest = next(iter(self._sessions))
                self._end_refused(self._sessions.pop(oldest))
            session = self._sessions[pid] = _Session()
        return session

    def _end_refused(self, session: _Session) -> None:
        if session.refused is not None:
            self._observations.append(session.refused)
            session.refused = None

    # --- From the queue on ------------------------------------------------------------------------------------------

    def _cleanup(self, _stamp: bytes, _pid: bytes, message: bytes) -> bool:
        """`milter-reject: END-OF-MESSAGE from ...` and header_checks; the queue manager never sees such a mail."""
        queue_id, _, rest = message.partition(b": ")
        if not rest.startswith((b"reject: ", b"milter-reject: ", b"discard: ", b"milter-discard: ")):
            return False
        mail = self._mails.get(queue_id)
        if mail is None:
            return False
        if refusal := _REFUSAL.match(rest):
            text, sender, recipient, helo_name, _, _ = _read_envelope(rest, refusal.end())
            by = b"milter" if refusal[1].startswith(b"milter") else b"cleanup"
        elif refusal := _CONTENT_REFUSAL.match(rest):
            _, sender, recipient, helo_name, _, text = _read_envelope(rest, refusal.end())
            by = refusal[2] + b"_checks"
        else:
            return False
        mail.sender = mail.sender if sender is None else sender
        mail.helo_name = helo_name or mail.helo_name
        if recipient is not None:
            _add(mail.recipients, recipient)
        mail.outcome = Outcome.DEFERRED if text.startswith(b"4") else Outcome.REJECTED
        mail.by, mail.text = by, text
        self._finish(queue_id)
        return True

    def _qmgr(self, _stamp: bytes, _pid: bytes, message: bytes) -> bool:
        queue_id, _, rest = message.partition(b": ")
        if rest == b"removed":
            if queue_id not in self._mails:
                return False
            self._finish(queue_id)
            return True
        if rest.startswith(b"from=<"):
            mail = self._mails.get(queue_id)
            if mail is None:
                return False
            if (end := rest.find(b">, size=")) >= 0:
                mail.sender = rest[6:end]
            return True
        return False

    def _delivery(self, _stamp: bytes, _pid: bytes, message: bytes) -> bool:
        """`to=<a>, orig_to=<b>, relay=host[address]:25, delay=..., dsn=2.0.0, status=sent (text)`."""
        queue_id, _, rest = message.partition(b": ")
        if not rest.startswith(b"to=<"):
            return False
        mail = self._mails.get(queue_id)
        status = rest.find(b", status=")
        if mail is None or status < 0:
            return False
        recipient_end = rest.find(b">, ")
        recipient = rest[4:recipient_end]
        if rest.startswith(b"orig_to=<", recipient_end + 3):
            # The address before aliases and virtual domains, the one that RCPT TO had.
            recipient = rest[recipient_end + 12 : rest.find(b">, ", recipient_end + 12)]
        _add(mail.recipients, recipient)
        if mail.outcome is Outcome.DELIVERED:
            return True
        word, _, text = rest[status + 9 :].partition(b" ")
        if word == b"sent":
            mail.outcome = Outcome.DELIVERED
        elif word == b"deferred":
            mail.outcome = Outcome.DEFERRED
        elif word in {b"bounced", b"expired"}:
            mail.outcome = Outcome.REJECTED
        else:
            return False
        relay = rest.find(b"relay=", recipient_end)
        mail.by = rest[relay + 6 : rest.find(b", ", relay)] if relay >= 0 else b""
        mail.text = text[1:-1]
        return True

    def _finish(self, queue_id: bytes) -> None:
        self._observations.append(self._mails.pop(queue_id).observation())


def _read_refusal(
    rest: bytes,
) -> tuple[bytes, bytes, bytes, bytes, bytes, bytes | None, bytes | None, bytes, bytes] | None:
    """How, state, name, address, text, sender, recipient, HELO, user; None if it is no refusal."""
    if usual := _USUAL_REFUSAL.fullmatch(rest):
        return *usual.groups(), b""  # type: ignore[return-value] # nine of them; mypy does not count groups
    refusal = _REFUSAL.match(rest)
    if refusal is None:
        return None
    how, state, name, address = refusal.groups()
    text, sender, recipient, helo_name, sasl_username, _ = _read_envelope(rest, refusal.end())
    return how, state, name, address, text, sender, recipient, helo_name, sasl_username


def _read_envelope(rest: bytes, start: int) -> tuple[bytes, bytes | None, bytes | None, bytes, bytes, bytes]:
    """Text, sender, recipient, HELO, user and end of `text; from=<a> to=<b> proto=ESMTP helo=<c>: end`.

    Anything but the text may be missing.
    """
    # The last one, since the text may quote a client.
    at = max(rest.rfind(b"; from=<", start), rest.rfind(b"; to=<", start))
    if at < 0:
        at = rest.rfind(b"; proto=", start)
    envelope = _ENVELOPE.match(rest, at) if at >= 0 else None
    if envelope is None:
        return rest[start:], None, None, b"", b"", b""
    sender, recipient, helo_name, sasl_username, end = envelope.groups()
    return rest[start:at], sender, recipient, helo_name or b"", sasl_username or b"", end or b""


def _with_recipient(pending: Observation, recipient: bytes, outcome: Outcome, by: bytes, text: bytes) -> Observation:
    """The same mail with one more recipient refused. One that was deferred may come again, so that counts more."""
    if len(pending.recipients) < MAX_RECIPIENTS:
        pending = pending._replace(recipients=(*pending.recipients, recipient))
    if outcome is Outcome.DEFERRED and pending.outcome is Outcome.REJECTED:
        pending = pending._replace(outcome=outcome, by=by, text=text)
    return pending


def _add(recipients: list[bytes], recipient: bytes) -> None:
    if recipient not in recipients and len(recipients) < MAX_RECIPIENTS:
        recipients.append(recipient)
