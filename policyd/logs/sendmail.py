"""Combines sendmail's log lines into mail transactions.

One mail has a `from=` line when the session ends, refusals of its recipients before that, and a `to=` line for each
attempt to deliver; all begin with its queue id, except the line of a client that is refused at once (check_relay). A
user's login is logged before all of them, by the same process. A mail that a second sendmail on the same host takes
from the first (with a content filter between them) is one mail. Formats as in sendmail 8.12 to 8.18 (logsender() and
logdelivery(); Bat Book, chapter 14.6).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from policyd.logs.transaction import MAX_RECIPIENTS, MailOutcome, NameStatus, Observation

if TYPE_CHECKING:
    from policyd.logs.counts import LeftOut
    from policyd.logs.timestamps import LogClock

# Maximum number of mails of one host that are open at the same time; see policyd.logs.postfix.MAX_OPEN.
MAX_OPEN = 65_536

# Maximum number of sessions of a host with a remembered user. sendmail forks for each session, and does not log its
# end.
_MAX_USERS = 4096

# Maximum number of ended mails from this host that another mail's `Sent (ID Message accepted)` may still name.
_MAX_RETURNED = 4096

_QUEUE_ID = re.compile(rb"([A-Za-z0-9]{8,20}): ")
# `name [address]`: the name is verified, unless `(may be forged)` follows; without a name, the lookup found none or
# failed. The answer of an ident server may precede the name.
_RELAY = re.compile(rb"relay=(?:[^@\s\[,]*@)?([^\s\[,]*) ?\[(?:IPv6:)?([0-9A-Fa-f.:]+)\]( \(may be forged\))?")
_RULESET = re.compile(rb"ruleset=(check_\w+), arg1=(.*?)(?:, arg2=(.*?))?, relay=")
_AUTHENTICATED = re.compile(rb"(?:NOQUEUE: )?AUTH=server, relay=(.*), authid=([^,]*), mech=")
# RFC 3848: the protocol shows a login, even if the line with the user is not in the log.
_PROTO_AUTH = re.compile(rb", proto=E?SMTPS?A,")
# The name of a user whose login only the protocol shows.
_UNKNOWN_USER = b"unknown"
_SENT_ON = re.compile(rb"Sent \((?:\d{3} \d\.\d\.\d )?(?:.*queued as )?([A-Za-z0-9]{8,20})\b")
_LOOPBACK = re.compile(rb"127\.|::1$|0:0:0:0:0:0:0:1$|IPv6:::1$")
_MILTER = re.compile(
    rb"Milter: (?:to=(<.*?>), |from=(<.*?>), |data, |connect: .*?, |helo=.*?, |eoh, |body, )?"
    rb"(?:reject=(.*)|(discard)\b.*)"
)
_NO_RECIPIENT = re.compile(rb"<([^<>]*)>\.\.\. (?:User unknown|No such user)")
_RECIPIENT = re.compile(rb"<([^>]*)>|([^\s,<>]+)")
_NRCPTS = re.compile(rb", nrcpts=(\d{1,6}),")


class _Mail:
    """An open transaction."""

    __slots__ = (
        "by",
        "done",
        "expected",
        "outcome",
        "parent",
        "recipients",
        "relay",
        "sasl_username",
        "sender",
        "text",
        "time",
        "waits",
    )

    def __init__(self, time: float | None) -> None:
        self.time = time
        self.relay: tuple[bytes, tuple[bytes, ...], NameStatus] | None = None
        self.sender: bytes | None = None
        self.recipients: list[bytes] = []
        self.outcome = MailOutcome.UNKNOWN
        self.by = b""
        self.text = b""
        self.sasl_username = b""
        self.parent: _Mail | None = None  # the same mail before a filter
        self.waits = False  # waiting for its outcome behind the filter
        self.expected = 0  # recipients that the session accepted
        self.done = 0  # accepted recipients that will not be tried again


class SendmailLog:
    """Reads the lines of one sendmail on one host.

    Complete mails are appended to `observations`; `flush` appends the others with the facts known so far.
    """

    def __init__(self, clock: LogClock, observations: list[Observation], left_out: LeftOut) -> None:
        self._seconds = clock.seconds
        self._observations = observations
        self._left_out = left_out
        self._mails: dict[bytes, _Mail] = {}
        self._users: dict[bytes, tuple[bytes, bytes]] = {}  # relay and user, by process id or relay
        self._returned: dict[bytes, _Mail] = {}  # ended mails from this host, by queue id

    def read(self, stamp: bytes, pid: bytes, message: bytes) -> bool:
        """Reads one line; returns whether it was used."""
        queue_id = b""
        rest = message
        if with_id := _QUEUE_ID.match(message):
            queue_id = with_id[1]
            rest = message[with_id.end() :]
        if rest.startswith(b"to="):
            known = self._to(queue_id, rest)
        elif rest.startswith(b"from="):
            known = self._from(stamp, pid, queue_id, rest)
        elif rest.startswith(b"ruleset="):
            known = self._ruleset(stamp, pid, queue_id, rest)
        elif rest.startswith(b"Milter: "):
            known = self._milter(stamp, queue_id, rest)
        elif rest.startswith(b"<"):
            known = self._recipient_unknown(stamp, queue_id, rest)
        else:
            known = rest.startswith((b"AUTH=server", b"NOQUEUE: AUTH=server")) and self._logged_in(pid, rest)
        return known

    def flush(self) -> None:
        """Ends the log: appends the open mails, with the facts known so far."""
        for queue_id in list(self._mails):
            self._finish(queue_id)
        for mail in self._returned.values():
            self._report(mail)
        self._returned.clear()

    def _logged_in(self, pid: bytes, rest: bytes) -> bool:
        """`AUTH=server, relay=name [address], authid=joe, mech=PLAIN, bits=0`."""
        found = _AUTHENTICATED.match(rest)
        relay = _RELAY.match(b"relay=" + found[1]) if found is not None else None
        if found is None or relay is None:
            return False
        if len(self._users) >= _MAX_USERS:
            del self._users[next(iter(self._users))]
        self._users.pop(pid or relay[2], None)
        self._users[pid or relay[2]] = (relay[2], found[2])
        return True

    def _user(self, pid: bytes, relay: tuple[bytes, tuple[bytes, ...], NameStatus], rest: bytes) -> bytes:
        address, user = self._users.get(pid or relay[0], (b"", b""))
        if address == relay[0]:
            return user
        return _UNKNOWN_USER if _PROTO_AUTH.search(rest) is not None else b""

    def _from(self, stamp: bytes, pid: bytes, queue_id: bytes, rest: bytes) -> bool:
        """`from=<a@b>, size=1, class=0, nrcpts=1, msgid=<...>, proto=ESMTP, daemon=MTA, relay=name [address]`."""
        relay = _relay(rest)
        if relay is None:
            return False  # submitted on this host
        mail = self._mail(stamp, queue_id)
        mail.relay = relay
        mail.sasl_username = self._user(pid, relay, rest)
        mail.sender = _address(rest[5 : rest.find(b", size=")])
        nrcpts = _NRCPTS.search(rest)
        mail.expected = int(nrcpts[1]) if nrcpts else 1
        if mail.expected == 0:
            if mail.outcome is MailOutcome.UNKNOWN:
                _refuse(mail, b"sendmail", b"no recipient was accepted (nrcpts=0)")
            self._finish(queue_id)
        elif mail.outcome is not MailOutcome.UNKNOWN and mail.by != b"milter":
            mail.outcome = MailOutcome.UNKNOWN  # some recipients were refused, and the others accepted
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
            outcome, done = MailOutcome.DELIVERED, len(recipients)
        elif text.startswith((b"Deferred", b"queued", b"Operating system error")) or b"dsn=4." in rest[:status]:
            outcome, done = MailOutcome.DEFERRED, 0
        else:
            outcome, done = MailOutcome.REJECTED, len(recipients)
        behind = _SENT_ON.match(text) if outcome is MailOutcome.DELIVERED else None
        if outcome is MailOutcome.DELIVERED and b"discard" in text.lower():
            outcome = MailOutcome.REJECTED
        if mail.outcome is not MailOutcome.DELIVERED:
            relay = rest.find(b", relay=")
            mail.by = rest[relay + 8 : rest.find(b", ", relay + 8)] if relay >= 0 else b"sendmail"
            mail.outcome, mail.text = outcome, text
        if behind is not None:
            self._join(mail, behind[1])
        mail.done += done
        if mail.done >= mail.expected:
            self._finish(queue_id)
        return True

    def _join(self, mail: _Mail, queue_id: bytes) -> None:
        """Joins a mail to the mail with this queue id, if that came from this host: a filter returned it."""
        behind = self._returned.pop(queue_id, None) or self._mails.get(queue_id)
        if behind is None or behind is mail or behind.parent is not None or mail.parent is behind:
            return
        if behind.relay is None or _LOOPBACK.match(behind.relay[0]) is None:
            return
        if queue_id in self._mails:
            behind.parent, mail.waits = mail, True
        else:
            mail.outcome, mail.by, mail.text = behind.outcome, behind.by, behind.text

    def _ruleset(self, stamp: bytes, pid: bytes, queue_id: bytes, rest: bytes) -> bool:
        """`ruleset=check_rcpt, arg1=<a@b>, relay=name [address], reject=550 5.7.1 text`; or `discard` at its end."""
        relay = _relay(rest)
        reject = rest.rfind(b", reject=")
        if reject < 0 and rest.endswith(b", discard"):
            rest = rest.removesuffix(b"discard") + b"reject=discarded"
            reject = rest.rfind(b", reject=")
        refusal = _RULESET.match(rest) if relay is not None and reject >= 0 else None
        if refusal is None:
            return False
        assert relay is not None  # there is a refusal only with a relay
        check, argument, _ = refusal.groups()
        mail = self._mail(stamp, queue_id)
        mail.relay = relay
        mail.sasl_username = mail.sasl_username or self._user(pid, relay, rest)
        if check == b"check_rcpt":
            _add(mail.recipients, _address(argument))
        elif check in {b"check_mail", b"check_from"}:
            mail.sender = _address(argument)
        _refuse(mail, check, rest[reject + 9 :])
        if not queue_id or check == b"check_relay":
            self._finish(queue_id)
        return True

    def _milter(self, stamp: bytes, queue_id: bytes, rest: bytes) -> bool:
        """`Milter: data, reject=550 5.7.1 text`; the client is in the `from=` line that follows."""
        refusal = _MILTER.match(rest)
        if refusal is None or not queue_id:
            return False
        recipient, sender, text, discarded = refusal.groups()
        mail = self._mail(stamp, queue_id)
        if recipient is not None:
            _add(mail.recipients, _address(recipient))
        if sender is not None:
            mail.sender = _address(sender)
        _refuse(mail, b"milter", text if discarded is None else b"discarded")
        return True

    def _recipient_unknown(self, stamp: bytes, queue_id: bytes, rest: bytes) -> bool:
        """`<joe@example.com>... User unknown`, which explains a later `from=` line with nrcpts=0."""
        refusal = _NO_RECIPIENT.match(rest)
        if refusal is None or not queue_id:
            return False
        mail = self._mail(stamp, queue_id)
        if mail.relay is not None:
            return False  # the session has ended
        _add(mail.recipients, refusal[1])
        _refuse(mail, b"sendmail", b"550 5.1.1 " + rest)
        return True

    def _mail(self, stamp: bytes, queue_id: bytes) -> _Mail:
        mail = self._mails.get(queue_id)
        if mail is None:
            if len(self._mails) >= MAX_OPEN:
                self._left_out.mails += 1
                self._finish(next(iter(self._mails)))
            mail = self._mails[queue_id] = _Mail(self._seconds(stamp))
        return mail

    def _finish(self, queue_id: bytes) -> None:
        mail = self._mails.pop(queue_id)
        if mail.parent is not None:
            parent = mail.parent
            if mail.outcome is not MailOutcome.UNKNOWN:
                parent.outcome, parent.by, parent.text = mail.outcome, mail.by, mail.text
            parent.waits = False
            if parent.done >= parent.expected:
                self._report(parent)
        elif mail.waits:
            mail.expected = 0  # it ends with the mail behind the filter
        elif mail.relay is not None and _LOOPBACK.match(mail.relay[0]) is not None:
            if len(self._returned) >= _MAX_RETURNED:
                self._report(self._returned.pop(next(iter(self._returned))))
            if (replaced := self._returned.pop(queue_id, None)) is not None:
                self._report(replaced)
            self._returned[queue_id] = mail
        else:
            self._report(mail)

    def _report(self, mail: _Mail) -> None:
        if mail.relay is None:
            return  # a milter's refusal without a known client
        address, names, name_status = mail.relay
        self._observations.append(
            Observation(
                mail.time,
                address,
                names,
                name_status,
                b"",
                mail.sender,
                tuple(mail.recipients),
                mail.sasl_username,
                mail.outcome,
                mail.by,
                mail.text,
                "sendmail",
            )
        )


def _relay(rest: bytes) -> tuple[bytes, tuple[bytes, ...], NameStatus] | None:
    """Returns address, names and their status; None for a mail from this host."""
    # The last match: everything before it may be client text.
    at = rest.rfind(b", relay=")
    relay = _RELAY.match(rest, at + 2) if at >= 0 else None
    if relay is None:
        return None
    name, address, forged = relay.groups()
    name = name.lower().rstrip(b".")
    if not name:
        return address, (), NameStatus.UNKNOWN
    return address, (name,), NameStatus.CLAIMED if forged else NameStatus.VERIFIED


def _refuse(mail: _Mail, by: bytes, text: bytes) -> None:
    """Notes a refusal. A deferral takes precedence over a rejection, because the mail may come again."""
    outcome = MailOutcome.DEFERRED if text.startswith(b"4") else MailOutcome.REJECTED
    if mail.outcome is MailOutcome.UNKNOWN or outcome is MailOutcome.DEFERRED:
        mail.outcome, mail.by, mail.text = outcome, by, text


def _address(written: bytes) -> bytes:
    """Returns an address without its brackets."""
    return written[1:-1] if written.startswith(b"<") and written.endswith(b">") else written


def _add(recipients: list[bytes], recipient: bytes) -> None:
    if recipient not in recipients and len(recipients) < MAX_RECIPIENTS:
        recipients.append(recipient)
