"""sendmail's log lines, put together to mail transactions.

One mail is a `from=` line when the session ends, refusals of its recipients before that, and a `to=` line for each
try to deliver; all have its queue id in front, save a client that is refused at once (check_relay). Formats as in
sendmail 8.12 to 8.18 (logsender() and logdelivery(); Bat Book, chapter 14.6).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from policyd.logs.transaction import MAX_RECIPIENTS, Observation, Outcome, Standing

if TYPE_CHECKING:
    from policyd.logs.timestamps import LogClock

# Mails that are open at the same time; see policyd.logs.postfix.MAX_OPEN.
MAX_OPEN = 65_536

_QUEUE_ID = re.compile(rb"([A-Za-z0-9]{8,20}): ")
# The name that verified, `(may be forged)` one that did not, none where the look-up gave none. Before it may stand
# what an ident server said.
_RELAY = re.compile(rb"relay=(?:[^@\s\[,]*@)?([^\s\[,]*) ?\[(?:IPv6:)?([0-9A-Fa-f.:]+)\]( \(may be forged\))?")
_RULESET = re.compile(rb"ruleset=(check_\w+), arg1=(.*?)(?:, arg2=(.*?))?, relay=")
_MILTER = re.compile(
    rb"Milter: (?:to=(<.*?>), |from=(<.*?>), |data, |connect: .*?, |helo=.*?, |eoh, |body, )?reject=(.*)"
)
_RECIPIENT = re.compile(rb"<([^>]*)>|([^\s,<>]+)")
_NRCPTS = re.compile(rb", nrcpts=(\d{1,6}),")


class _Mail:
    """A transaction that is under way."""

    __slots__ = ("by", "done", "expected", "outcome", "recipients", "relay", "sender", "text", "time")

    def __init__(self, time: float | None) -> None:
        self.time = time
        self.relay: tuple[bytes, tuple[bytes, ...], Standing] | None = None
        self.sender: bytes | None = None
        self.recipients: list[bytes] = []
        self.outcome = Outcome.UNKNOWN
        self.by = b""
        self.text = b""
        self.expected = 0  # recipients that the session accepted
        self.done = 0  # of them, those that will not be tried again


class SendmailLog:
    """The lines of one sendmail on one host.

    What is complete is appended to `observations`; `flush` gives up the rest.
    """

    def __init__(self, clock: LogClock, observations: list[Observation]) -> None:
        self._seconds = clock.seconds
        self._observations = observations
        self._mails: dict[bytes, _Mail] = {}

    def read(self, stamp: bytes, _pid: bytes, message: bytes) -> bool:
        """Takes one line; says whether it told something."""
        queue_id = b""
        rest = message
        if with_id := _QUEUE_ID.match(message):
            queue_id = with_id[1]
            rest = message[with_id.end() :]
        if rest.startswith(b"to="):
            return self._to(queue_id, rest)
        if rest.startswith(b"from="):
            return self._from(stamp, queue_id, rest)
        if rest.startswith(b"ruleset="):
            return self._ruleset(stamp, queue_id, rest)
        if rest.startswith(b"Milter: "):
            return self._milter(stamp, queue_id, rest)
        return False

    def flush(self) -> None:
        """End of the log: what is open is given up with what is known of it."""
        for queue_id in list(self._mails):
            self._finish(queue_id)

    def _from(self, stamp: bytes, queue_id: bytes, rest: bytes) -> bool:
        """`from=<a@b>, size=1, class=0, nrcpts=1, msgid=<...>, proto=ESMTP, daemon=MTA, relay=name [address]`."""
        relay = _relay(rest)
        if relay is None:
            return False  # submitted on this host
        mail = self._mail(stamp, queue_id)
        mail.relay = relay
        mail.sender = _address(rest[5 : rest.find(b", size=")])
        nrcpts = _NRCPTS.search(rest)
        mail.expected = int(nrcpts[1]) if nrcpts else 1
        if mail.expected == 0:
            if mail.outcome is Outcome.UNKNOWN:
                _refuse(mail, b"sendmail", b"no recipient was accepted (nrcpts=0)")
            self._finish(queue_id)
        elif mail.outcome is not Outcome.UNKNOWN and mail.by != b"milter":
            mail.outcome = Outcome.UNKNOWN  # some recipients were refused, but not these
            mail.recipients.clear()
        return True

    def _to(self, queue_id: bytes, rest: bytes) -> bool:
        """`to=<a>,<b>, delay=00:00:01, mailer=local, relay=local, dsn=2.0.0, stat=Sent (text)`."""
        mail = self._mails.get(queue_id)
        status = rest.find(b", stat=")
        if mail is None or mail.relay is None or status < 0:
            return False
        recipients = [bracketed or bare for bracketed, bare in _RECIPIENT.findall(rest, 3, max(rest.find(b", "), 3))]
        for recipient in recipients:
            _add(mail.recipients, recipient)
        text = rest[status + 7 :]
        if text.startswith(b"Sent"):
            outcome, done = Outcome.DELIVERED, len(recipients)
        elif text.startswith((b"Deferred", b"queued", b"Operating system error")) or b"dsn=4." in rest[:status]:
            outcome, done = Outcome.DEFERRED, 0
        else:
            outcome, done = Outcome.REJECTED, len(recipients)
        if mail.outcome is not Outcome.DELIVERED:
            relay = rest.find(b", relay=")
            mail.by = rest[relay + 8 : rest.find(b", ", relay + 8)] if relay >= 0 else b"sendmail"
            mail.outcome, mail.text = outcome, text
        mail.done += done
        if mail.done >= mail.expected:
            self._finish(queue_id)
        return True

    def _ruleset(self, stamp: bytes, queue_id: bytes, rest: bytes) -> bool:
        """`ruleset=check_rcpt, arg1=<a@b>, relay=name [address], reject=550 5.7.1 text`."""
        relay = _relay(rest)
        reject = rest.rfind(b", reject=")
        refusal = _RULESET.match(rest) if relay is not None and reject >= 0 else None
        if refusal is None:
            return False
        check, argument, _ = refusal.groups()
        mail = self._mail(stamp, queue_id)
        mail.relay = relay
        if check == b"check_rcpt":
            _add(mail.recipients, _address(argument))
        elif check in {b"check_mail", b"check_from"}:
            mail.sender = _address(argument)
        _refuse(mail, check, rest[reject + 9 :])
        if not queue_id or check == b"check_relay":
            self._finish(queue_id)
        return True

    def _milter(self, stamp: bytes, queue_id: bytes, rest: bytes) -> bool:
        """`Milter: data, reject=550 5.7.1 text`; the client stands in the `from=` line that follows."""
        refusal = _MILTER.match(rest)
        if refusal is None or not queue_id:
            return False
        recipient, sender, text = refusal.groups()
        mail = self._mail(stamp, queue_id)
        if recipient is not None:
            _add(mail.recipients, _address(recipient))
        if sender is not None:
            mail.sender = _address(sender)
        _refuse(mail, b"milter", text)
        return True

    def _mail(self, stamp: bytes, queue_id: bytes) -> _Mail:
        mail = self._mails.get(queue_id)
        if mail is None:
            if len(self._mails) >= MAX_OPEN:
                self._finish(next(iter(self._mails)))
            mail = self._mails[queue_id] = _Mail(self._seconds(stamp))
        return mail

    def _finish(self, queue_id: bytes) -> None:
        mail = self._mails.pop(queue_id)
        if mail.relay is None:
            return  # a milter's refusal whose client the log does not tell
        address, names, standing = mail.relay
        self._observations.append(
            Observation(
                mail.time,
                address,
                names,
                standing,
                b"",
                mail.sender,
                tuple(mail.recipients),
                b"",
                mail.outcome,
                mail.by,
                mail.text,
                "sendmail",
            )
        )


def _relay(rest: bytes) -> tuple[bytes, tuple[bytes, ...], Standing] | None:
    """Address, names and their standing; None for a mail that came from this host itself."""
    # The last one: everything before it may be the client's words.
    at = rest.rfind(b", relay=")
    relay = _RELAY.match(rest, at + 2) if at >= 0 else None
    if relay is None:
        return None
    name, address, forged = relay.groups()
    name = name.lower().rstrip(b".")
    if not name:
        return address, (), Standing.UNKNOWN
    return address, (name,), Standing.CLAIMED if forged else Standing.VERIFIED


def _refuse(mail: _Mail, by: bytes, text: bytes) -> None:
    """Recipients may be refused for different reasons; one that was deferred may come again, so it counts more."""
    outcome = Outcome.DEFERRED if text.startswith(b"4") else Outcome.REJECTED
    if mail.outcome is Outcome.UNKNOWN or outcome is Outcome.DEFERRED:
        mail.outcome, mail.by, mail.text = outcome, by, text


def _address(written: bytes) -> bytes:
    """An address without its brackets."""
    return written[1:-1] if written.startswith(b"<") and written.endswith(b">") else written


def _add(recipients: list[bytes], recipient: bytes) -> None:
    if recipient not in recipients and len(recipients) < MAX_RECIPIENTS:
        recipients.append(recipient)
