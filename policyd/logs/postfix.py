"""Combines Postfix's log lines into mail transactions.

The lines of one mail come from several daemons and share its queue id. A refused mail has no queue id (`NOQUEUE`); its
lines share the smtpd process, or the client's address if the log has no process ids. postscreen is one process for all
clients; its lines share address and port. A mail that goes to a content filter and returns under another queue id is
one mail, with the outcome of the second queue id. Formats as in Postfix 2.3 to 3.12 (smtpd.c, smtpd_check.c,
smtpd_proxy.c, smtpd_peer.c for the names and the warnings about them, postscreen.c, cleanup_milter.c, qmgr_active.c,
log_adhoc.c).

Fields are cut out with `find` if that is enough: an expression for each line would halve the speed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from policyd.logs.transaction import MAX_RECIPIENTS, MailOutcome, NameStatus, Observation

if TYPE_CHECKING:
    from collections.abc import Callable

    from policyd.logs.counts import LeftOut
    from policyd.logs.timestamps import LogClock

# Maximum number of mails that are open at the same time, on all hosts: those in the queue, and those that their client
# has begun and left. A mail takes about 1 KB, so all of them 64 MB. Beyond the maximum, each new mail ends the oldest
# open mail of its Postfix instance, which is counted with the facts known so far.
MAX_OPEN = 65_536

# Maximum number of remembered sessions of one Postfix instance: one for each smtpd process, for each client of
# postscreen, and for each address in a log without process ids. default_process_limit is 100, large sites set a few
# thousand.
MAX_SESSIONS = 16_384

# Maximum number of Postfix instances of one host; multi-instance setups have a handful. All further instances share one
# set of queue ids.
_MAX_INSTANCES = 64

# Maximum number of mails from this host or a private network that a filter may have handed back. Such a mail is part of
# another mail.
MAX_RETURNED = 16_384

# Maximum seconds until a filter answers; a mail that is dropped later than this was not handed back by a filter.
_FILTER_SECONDS = 3600

# Maximum number of filters' answers with a queue id that is not known yet; the mail's line comes within a second.
_MAX_EXPECTED = 4096

# Maximum number of filters in a row; more are a loop in a forged log.
_MAX_FILTERS = 8

# Maximum number of mails from a filter compared with its answer, newest first, if the answer has no queue id.
_MAX_COMPARED = 64

# Nearly every refusal, in one match. The last group is empty: it stands for the user, whom such a line does not name.
_USUAL_REFUSAL = re.compile(
    rb"(reject|milter-reject): ([A-Z][A-Z-]*) from ([^[]*)\[([0-9A-Fa-f:.]+)\]: "
    rb"([^;]*); from=<([^>]*)> to=<([^>]*)> proto=\w+ helo=<([^>]*)>()"
)
# Other refusals: the start of `reject: RCPT from name[address]: text; from=<...> ...`, of smtpd, cleanup and
# postscreen.
_REFUSAL = re.compile(
    rb"(reject|milter-reject|discard|milter-discard): ([A-Z][A-Z-]*) "
    rb"from ([^\s\[]*)\[([0-9A-Fa-f:.]+|unknown)\](?::\d+)?: "
)
# The start of a refusal by header_checks(5) or body_checks(5); the refused line of the mail follows.
_CONTENT_REFUSAL = re.compile(rb"(reject|discard): (header|body|mime-header|nested-header) ")
# Lines of postscreen that end a session, with the address and port that name it.
_SCREENED = re.compile(rb"(?:DISCONNECT|HANGUP|PASS (?:NEW|OLD)) ?(?:after \S+ from )?(\[[0-9A-Fa-f:.]+\]:\d+)")
_SCREEN_REFUSAL = re.compile(rb"(?:NOQUEUE: )?reject: ([A-Z][A-Z-]*) from (\[[0-9A-Fa-f:.]+\]:\d+): ")
# smtpd_proxy_filter's answer: `proxy-reject: END-OF-MESSAGE: 554 ...; from=<...>`, in some versions after NOQUEUE.
_PROXY = re.compile(rb"(?:NOQUEUE: )?proxy-(accept|reject): [A-Z-]+(?: from \S+)?: ?")
_QUEUED_AS = re.compile(rb"(?:queued as|forwarded as) ([0-9A-Za-z]{5,20})")
# Answers of a filter that keeps a mail: amavis's `Ok, discarded` and `BOUNCE`, quarantines, and discarded files.
_NOT_DELIVERED = re.compile(rb"\bdiscard|\bBOUNCE\b|\bquarantin|delivered to file: /dev/null", re.IGNORECASE)
# The end of a refusal; each part may be missing, and postscreen adds commas. Atomic groups, so that client text which
# looks like these parts costs no time.
_ENVELOPE = re.compile(
    rb";(?: from=<(?>(.*?)>(?=,? (?:to=<|proto=))),?)?(?: to=<(?>(.*?)>(?=,? proto=)),?)?"
    rb" proto=\w+,?(?: helo=<(?>(.*?)>(?=$|[ ,:;])))?(?:,? sasl_username=<([^>]*)>)?(?:: (.*))?"
)
_CLIENT = re.compile(rb"([^\s\[,]*)\[([0-9A-Fa-f:.]+|unknown)\]")
_WRONG_NAME = re.compile(rb"warning: hostname (\S+) does not resolve to address ([0-9A-Fa-f:.]+)(?:: (.*))?")
# The same warning before Postfix 2.6.
_OLD_WRONG_NAME = re.compile(
    rb"warning: ([0-9A-Fa-f:.]+): "
    rb"(?:address not listed for hostname (\S+)|hostname (\S+) verification failed(?:: (.*))?)"
)
# The beginning of gai_strerror(3) for EAI_AGAIN, the only temporary error.
_TEMPORARY = b"Temporary failure"

# Searching bytes for a number is ten times as fast as searching for bytes.
_BLANK: Final = ord(" ")

_NO_NAMES: tuple[bytes, ...] = ()

# Before Python 3.12, looking up an Enum member takes 0.1 us; a global name is free.
_VERIFIED: Final = NameStatus.VERIFIED
_UNKNOWN_NAME: Final = NameStatus.UNKNOWN
_UNKNOWN: Final = MailOutcome.UNKNOWN
_DELIVERED: Final = MailOutcome.DELIVERED
_DEFERRED: Final = MailOutcome.DEFERRED
_REJECTED: Final = MailOutcome.REJECTED

# Addresses of this host and of private networks (RFC 1918, 4193), where filters live.
_NEAR = re.compile(
    rb"127\.|10\.|192\.168\.|172\.(?:1[6-9]|2\d|3[01])\.|::1$|f[cd][0-9a-f]{2}:|::ffff:127\.", re.IGNORECASE
)
# The relay of a filter: `127.0.0.1[127.0.0.1]:10024`, `local` and a unix socket.
_NEAR_RELAY = re.compile(rb"\[(?:%b)|^(?:local$|[^\[]*\[(?!\d))" % _NEAR.pattern, re.IGNORECASE)


class _Mail:
    """An open transaction."""

    __slots__ = (
        "by",
        "children",
        "client_address",
        "earlier",
        "ended",
        "helo_name",
        "name_status",
        "names",
        "outcome",
        "parent",
        "queue_id",
        "recipients",
        "refused",
        "reported",
        "sasl_username",
        "sender",
        "text",
        "time",
        "waits",
    )

    def __init__(
        self, time: float | None, client_address: bytes, names: tuple[bytes, ...], name_status: NameStatus
    ) -> None:
        self.time = time
        self.client_address = client_address
        self.names = names
        self.name_status = name_status
        self.helo_name = b""
        self.sender: bytes | None = None
        self.recipients: list[bytes] = []
        self.refused: list[bytes] = []  # refused recipients of a session that accepted others
        self.sasl_username = b""
        self.outcome = _UNKNOWN
        self.by = b""
        self.text = b""
        self.earlier: Observation | None = None  # refusals before it had a queue id, which may be of this mail
        self.queue_id = b""  # empty for a mail that a filter takes before the queue
        self.ended = False
        self.reported = False  # already among the observations
        self.parent: _Mail | None = None  # the mail that a filter returned, or an alias forwarded, as this mail
        self.children: tuple[bytes, ...] = ()  # queue ids of mails that filters returned or aliases forwarded
        self.waits = 0  # children that have not ended

    def observation(self) -> Observation:
        return Observation(
            self.time,
            self.client_address,
            self.names,
            self.name_status,
            self.helo_name,
            self.sender,
            tuple(self.recipients or self.refused),
            self.sasl_username,
            self.outcome,
            self.by,
            self.text,
            "postfix",
        )

    def absorb(self, child: _Mail) -> None:
        """Takes over the outcome of a mail that a filter returned or an alias forwarded."""
        if not self.recipients:
            self.recipients = child.recipients
        if self.sender is None:
            self.sender = child.sender
        if self.outcome is _DELIVERED:
            return
        if child.outcome is _UNKNOWN:
            self.outcome = _DELIVERED  # the log has no later outcome
        else:
            self.outcome, self.by, self.text = child.outcome, child.by, child.text


class _Session:
    """State that later lines of an smtpd process need from its earlier lines."""

    __slots__ = ("claimed", "claimed_address", "lookup_failed", "proxied", "refused", "refused_state")

    def __init__(self) -> None:
        self.claimed = b""
        self.claimed_address = b""
        self.lookup_failed = False
        self.refused: Observation | None = None
        self.refused_state = b""
        self.proxied: _Mail | None = None  # accepted for a filter before the queue (smtpd_proxy_filter)


class OpenMails:
    """The open mails of all hosts: their number, and those that a filter may have handed back."""

    def __init__(self, left_out: LeftOut) -> None:
        self.left_out = left_out
        self.count = 0
        self.returned: dict[tuple[bytes, bytes], _Mail] = {}  # by host and queue id, oldest first
        self.expected: dict[tuple[bytes, bytes], _Mail] = {}  # given to a filter whose answer has this queue id

    def flush(self, observations: list[Observation]) -> None:
        """Ends the log: a mail that no filter's answer names counts as a separate mail."""
        observations.extend(mail.observation() for mail in self.returned.values() if mail.ended and not mail.waits)
        self.returned.clear()
        self.expected.clear()


class PostfixHost:
    """The Postfix instances of one host. Complete mails are appended to `observations`; `flush` appends the rest."""

    def __init__(self, name: bytes, clock: LogClock, observations: list[Observation], open_mails: OpenMails) -> None:
        self.name = name
        self.seconds = clock.seconds
        self.observations = observations
        self.open_mails = open_mails
        self._instances: dict[bytes, _Instance] = {}

    @staticmethod
    def knows(daemon: bytes) -> bool:
        """Whether a name is that of a Postfix daemon."""
        return daemon in _DAEMONS

    def reader(self, instance: bytes, daemon: bytes | None) -> Callable[[bytes, bytes, bytes], bool]:
        """Returns the reader for the lines of a daemon, by its name in the log (None: any daemon).

        A reader takes timestamp, process id and message, and returns whether the line was used.
        """
        if instance not in self._instances and len(self._instances) >= _MAX_INSTANCES:
            instance = b""
        found = self._instances.get(instance)
        if found is None:
            found = self._instances[instance] = _Instance(self)
        return found.reader(daemon)

    def mail(self, queue_id: bytes) -> _Mail | None:
        """Returns the open mail with a queue id, of any instance."""
        for instance in self._instances.values():
            if (mail := instance.mails.get(queue_id)) is not None:
                return mail
        return None

    def flush(self) -> None:
        """Ends the log: appends the open mails, with the facts known so far."""
        for instance in self._instances.values():
            instance.flush()

    # --- Filters ----------------------------------------------------------------------------------------------------

    def may_be_returned(self, queue_id: bytes, mail: _Mail) -> None:
        """Remembers a mail from this host or a private network until a filter's answer names it."""
        key = self.name, queue_id
        parent = self.open_mails.expected.pop(key, None)
        if parent is not None and not _goes_back_to(parent, mail):
            # The lines of two processes may be logged in either order. `sent` to a filter is not yet a delivery.
            parent.outcome = _UNKNOWN
            self.join(mail, parent)
            return
        returned = self.open_mails.returned
        if len(returned) >= MAX_RETURNED:
            oldest = returned.pop(next(iter(returned)))
            if mail.time is not None and oldest.time is not None and 0 <= mail.time - oldest.time < _FILTER_SECONDS:
                self.open_mails.left_out.returns += 1
            if oldest.ended and not oldest.waits:
                self._report(oldest)
        replaced = returned.pop(key, None)  # short queue ids are reused
        if replaced is not None and replaced.ended and not replaced.waits:
            self._report(replaced)
        returned[key] = mail

    def claim(self, queue_id: bytes, parent: _Mail) -> bool:
        """Joins `parent`, a mail given to a filter, with the mail that the filter returned, if that has been read.

        Returns whether it has. If not, `parent` waits in `expected` for that mail.
        """
        key = self.name, queue_id
        child = self.open_mails.returned.get(key)
        if child is None or child is parent or _goes_back_to(parent, child):
            expected = self.open_mails.expected
            if len(expected) >= _MAX_EXPECTED:
                del expected[next(iter(expected))]
            expected[key] = parent
            return False
        del self.open_mails.returned[key]
        self.join(child, parent)
        return True

    def join(self, child: _Mail, parent: _Mail) -> None:
        """Makes a mail part of another."""
        child.parent = parent
        parent.children += (child.queue_id,)
        if child.ended:
            parent.absorb(child)
        else:
            parent.waits += 1

    def claim_by_sender(self, parent: _Mail) -> bool:
        """Like `claim`, but for a filter before the queue whose answer does not name the returned mail."""
        compared = 0
        possible = b""
        for (host, queue_id), child in reversed(self.open_mails.returned.items()):
            if host != self.name:
                continue
            compared += 1
            earlier = child.time is not None and parent.time is not None and child.time < parent.time
            if compared > _MAX_COMPARED or earlier:
                break
            if child.sender == parent.sender:
                return self.claim(queue_id, parent)
            if child.sender is None:
                possible = queue_id  # the oldest of those whose sender is not known yet
        return bool(possible) and self.claim(possible, parent)

    def end(self, mail: _Mail) -> None:
        """Appends a mail, unless its outcome is not known yet or belongs to another mail."""
        mail.ended = True
        if mail.waits:
            return
        parent = mail.parent
        if parent is not None:
            parent.absorb(mail)
            parent.waits -= 1
            if parent.ended:
                self.end(parent)
        elif self.open_mails.returned.get((self.name, mail.queue_id)) is not mail:
            self._report(mail)

    def _report(self, mail: _Mail) -> None:
        if not mail.reported:
            mail.reported = True
            self.observations.append(mail.observation())


def _goes_back_to(mail: _Mail, origin: _Mail) -> bool:
    """Returns whether a mail was returned for `origin`, or passed too many filters."""
    ancestor: _Mail | None = mail
    for _ in range(_MAX_FILTERS):
        ancestor = ancestor.parent if ancestor is not None else None
        if ancestor is None:
            return False
        if ancestor is origin:
            return True
    return True


class _Instance:
    """Reads the lines of one Postfix instance, which has its own queue ids and process ids."""

    def __init__(self, host: PostfixHost) -> None:
        self._host = host
        self._seconds = host.seconds
        self._observations = host.observations
        self._open_mails = host.open_mails
        self.mails: dict[bytes, _Mail] = {}
        self._sessions: dict[bytes, _Session] = {}

    def reader(self, daemon: bytes | None) -> Callable[[bytes, bytes, bytes], bool]:
        match daemon:
            case b"smtpd":
                return self._smtpd
            case b"postscreen":
                return self._postscreen
            case b"qmgr" | b"nqmgr" | b"oqmgr":
                return self._qmgr
            case b"cleanup":
                return self._cleanup
            case None:
                return self._any
            case _:
                return self._delivery

    def flush(self) -> None:
        """Ends the log."""
        for session in self._sessions.values():
            self._end_session(session)
        self._sessions.clear()
        for queue_id in list(self.mails):
            self._finish(queue_id)

    def _any(self, stamp: bytes, pid: bytes, message: bytes) -> bool:
        """Reads a message whose daemon is recognised by its form."""
        return (
            (not message.startswith((b"NOQUEUE", b"proxy-")) and self._cleanup(stamp, pid, message))
            or self._smtpd(stamp, pid, message)
            or self._qmgr(stamp, pid, message)
            or self._delivery(stamp, pid, message)
        )

    # --- smtpd ------------------------------------------------------------------------------------------------------

    def _smtpd(self, stamp: bytes, pid: bytes, message: bytes) -> bool:
        if message.startswith(b"NOQUEUE: reject: "):  # first, because a log of refusals has little else
            return self._refused(stamp, pid, b"NOQUEUE", message[9:])
        if message.startswith((b"connect from", b"disconnect from")):
            session = self._sessions.get(pid or _client_key(message))
            if session is not None:
                self._end_session(session)
                if message.startswith(b"disconnect"):
                    del self._sessions[pid or _client_key(message)]
            return True
        if message.startswith(b"warning: "):
            return self._warning(pid, message)
        queue_id, _, rest = message.partition(b": ")
        if rest.startswith(b"client="):
            return self._accepted(stamp, pid, queue_id, rest)
        if rest.startswith((b"reject: ", b"milter-reject: ", b"discard: ", b"milter-discard: ")):
            return self._refused(stamp, pid, queue_id, rest)
        return message.find(b"proxy-", 0, 20) >= 0 and self._proxy_answered(pid, message)

    def _warning(self, pid: bytes, message: bytes) -> bool:
        """Reads warnings, the only lines with a claimed name; they come right before `connect from unknown[...]`."""
        if wrong := _WRONG_NAME.fullmatch(message):
            name, address, reason = wrong.groups()
        elif wrong := _OLD_WRONG_NAME.fullmatch(message):
            address, reason, name = wrong[1], wrong[4], wrong[2] or wrong[3]
        else:
            return False
        session = self._session(pid or b"@" + address)
        self._end_session(session)
        session.claimed = name.lower().rstrip(b".")
        session.claimed_address = address
        session.lookup_failed = reason is not None and reason.startswith(_TEMPORARY)
        return True

    def _accepted(self, stamp: bytes, pid: bytes, queue_id: bytes, rest: bytes) -> bool:
        """`client=name[address], sasl_method=..., sasl_username=..., orig_queue_id=..., orig_client=name[address]`."""
        client = _CLIENT.match(rest, 7)
        if client is None or _BLANK in queue_id:
            return False
        name, address = session_address = client.groups()
        details = rest[client.end() :]
        sasl_username = original_id = b""
        parent: _Mail | None = None
        if details:
            if (original := details.find(b"orig_client=")) >= 0:
                # A content filter returns the mail (XFORWARD): the original client counts.
                before = details.find(b"orig_queue_id=")
                original_id = details[before + 14 :].partition(b",")[0] if before >= 0 else b""
                if (client := _CLIENT.match(details, original + 12)) is not None:
                    name, address = client.groups()
                parent = self._host.mail(original_id) if original_id else self._proxied_from(address)
            if (user := details.find(b"sasl_username=")) >= 0:
                sasl_username = details[user + 14 :].partition(b", ")[0]
        names, name_status = _identity(self._sessions.get(pid or b"@" + address), name, address)
        mail = _Mail(self._seconds(stamp), address, names, name_status)
        mail.sasl_username = sasl_username
        session = self._sessions.get(pid or b"@" + session_address[1])
        if session is not None and session.refused is not None and session.refused.client_address == address:
            # Recipients refused before any was accepted belong to this mail if the sender is the same.
            if session.refused_state == b"RCPT":
                mail.earlier, session.refused = session.refused, None
            else:
                self._end_refused(session)
        if queue_id == b"NOQUEUE":
            session = self._session(pid or b"@" + address)
            self._end_proxied(session)
            session.proxied = mail
            return True
        if queue_id in self.mails:
            self._finish(queue_id)  # short queue ids are reused after some time
        self._add_mail(queue_id, mail)
        if parent is not None and parent is not mail and not _goes_back_to(parent, mail):
            self._host.join(mail, parent)
        elif _NEAR.match(session_address[1]) is not None and not original_id:
            self._host.may_be_returned(queue_id, mail)
        return True

    def _add_mail(self, queue_id: bytes, mail: _Mail) -> None:
        if self._open_mails.count >= MAX_OPEN and self.mails:
            self._open_mails.left_out.mails += 1
            self._finish(next(iter(self.mails)))
        self._open_mails.count += 1
        mail.queue_id = queue_id
        self.mails[queue_id] = mail

    def _refused(self, stamp: bytes, pid: bytes, queue_id: bytes, rest: bytes) -> bool:
        refusal = _read_refusal(rest)
        if refusal is None or _BLANK in queue_id:
            return False
        how, state, name, address, text, sender, recipient, helo_name, sasl_username = refusal
        by = b"milter" if how.startswith(b"milter") else b"smtpd"
        if how.endswith(b"discard"):
            outcome = _REJECTED
            text = b"discarded: " + text
        else:
            outcome = _DEFERRED if text.startswith(b"4") else _REJECTED
        session = self._sessions.get(pid or b"@" + address)
        mail = self.mails.get(queue_id)
        if mail is None and session is not None and session.proxied is not None:
            proxied = session.proxied
            if proxied.client_address == address and sender is not None and proxied.sender in {None, sender}:
                mail = proxied
        if mail is not None:
            # A recipient of this mail was accepted before. Now another recipient or the data are refused.
            mail.helo_name = helo_name or mail.helo_name
            mail.sender = mail.sender if sender is None else sender
            if mail.earlier is not None:
                self._settle(mail)
            if state == b"RCPT":
                self._add(mail.refused, recipient or b"")
            else:
                mail.outcome, mail.by, mail.text = outcome, by, text
            return True
        if session is None:
            session = self._session(pid or b"@" + address)
        names, name_status = _identity(session, name, address)
        self._add_refusal(
            session,
            state,
            Observation(
                self._seconds(stamp),
                address,
                names,
                name_status,
                helo_name,
                sender,
                (recipient,) if recipient is not None else (),
                sasl_username,
                outcome,
                by,
                text,
                "postfix",
            ),
        )
        return True

    def _add_refusal(self, session: _Session, state: bytes, new: Observation) -> None:
        """Counts a refusal as a mail, or as another recipient of the mail that was refused last in the session."""
        pending = session.refused
        if pending is not None:
            recipients = new.recipients
            if (
                recipients
                and recipients[0] not in pending.recipients
                and pending.client_address == new.client_address
                and pending.sender == new.sender
                and pending.helo_name == new.helo_name
            ):
                if len(pending.recipients) >= MAX_RECIPIENTS:
                    self._open_mails.left_out.recipients += 1
                session.refused = _with_recipient(pending, recipients[0], new.outcome, new.by, new.text)
                return
            self._observations.append(pending)
        session.refused = new
        session.refused_state = state

    def _session(self, key: bytes) -> _Session:
        session = self._sessions.get(key)
        if session is None:
            if len(self._sessions) >= MAX_SESSIONS:
                oldest = next(iter(self._sessions))
                # Only sessions by process id count as left out: a log may have any number of addresses.
                self._open_mails.left_out.sessions += oldest.isdigit()
                self._end_session(self._sessions.pop(oldest))
            session = self._sessions[key] = _Session()
        return session

    def _end_session(self, session: _Session) -> None:
        self._end_refused(session)
        self._end_proxied(session)

    def _end_refused(self, session: _Session) -> None:
        if session.refused is not None:
            self._observations.append(session.refused)
            session.refused = None

    # --- smtpd_proxy_filter -----------------------------------------------------------------------------------------

    def _proxy_answered(self, pid: bytes, message: bytes) -> bool:
        """`proxy-accept: END-OF-MESSAGE: 250 Ok: queued as ID; from=<a> to=<b> proto=ESMTP helo=<c>`."""
        answer = _PROXY.match(message)
        session = self._sessions.get(pid)
        mail = session.proxied if session is not None else None
        if answer is None or session is None or mail is None:
            return False
        session.proxied = None
        text, sender, recipient, helo_name, sasl_username, _ = _read_envelope(message, answer.end())
        mail.sender = mail.sender if sender is None else sender
        mail.helo_name = helo_name or mail.helo_name
        mail.sasl_username = mail.sasl_username or sasl_username
        if recipient is not None:
            self._add(mail.recipients, recipient)
        mail.by, mail.text = b"proxy", text
        if answer[1] == b"reject":
            mail.outcome = _DEFERRED if text.startswith(b"4") else _REJECTED
        elif _NOT_DELIVERED.search(text) is not None:
            mail.outcome = _REJECTED
        else:
            queued = _QUEUED_AS.search(text)
            if not mail.children and not (queued is not None and self._host.claim(queued[1], mail)):
                self._host.claim_by_sender(mail)
            if not mail.children:
                mail.outcome = MailOutcome.PASSED
        self._end(mail)
        return True

    def _proxied_from(self, address: bytes) -> _Mail | None:
        """Returns the mail of this client that a filter before the queue is checking."""
        for session in reversed(self._sessions.values()):
            if session.proxied is not None and session.proxied.client_address == address:
                return session.proxied
        return None

    def _end_proxied(self, session: _Session) -> None:
        if session.proxied is not None:
            self._end(session.proxied)
            session.proxied = None

    # --- postscreen -------------------------------------------------------------------------------------------------

    def _postscreen(self, stamp: bytes, _pid: bytes, message: bytes) -> bool:
        """`NOQUEUE: reject: RCPT from [address]:port: text; from=<a>, to=<b>, proto=ESMTP, helo=<c>`."""
        if (ended := _SCREENED.match(message)) is not None:
            session = self._sessions.pop(ended[1], None)
            if session is not None:
                self._end_session(session)
            return session is not None
        start = _SCREEN_REFUSAL.match(message)
        refusal = _read_refusal(message.removeprefix(b"NOQUEUE: ")) if start is not None else None
        if start is None or refusal is None or start[1] == b"CONNECT":
            return False  # a client that was refused before any mail: too many connections, all ports busy
        _, state, _, address, text, sender, recipient, helo_name, _ = refusal
        self._add_refusal(
            self._session(start[2]),
            state,
            Observation(
                self._seconds(stamp),
                address,
                _NO_NAMES,
                NameStatus.NOT_LOOKED_UP,
                helo_name,
                sender,
                (recipient,) if recipient is not None else (),
                b"",
                _DEFERRED if text.startswith(b"4") else _REJECTED,
                b"postscreen",
                text,
                "postfix",
            ),
        )
        return True

    # --- cleanup, qmgr and the delivery agents ----------------------------------------------------------------------

    def _cleanup(self, stamp: bytes, _pid: bytes, message: bytes) -> bool:
        """`milter-reject: END-OF-MESSAGE from ...` and header_checks; the queue manager never sees such a mail."""
        queue_id, _, rest = message.partition(b": ")
        if not rest.startswith((b"reject: ", b"milter-reject: ", b"discard: ", b"milter-discard: ")):
            return False
        if refusal := _REFUSAL.match(rest):
            name, address = refusal[3], refusal[4]
            text, sender, recipient, helo_name, sasl_username, _ = _read_envelope(rest, refusal.end())
            by = b"milter" if refusal[1].startswith(b"milter") else b"cleanup"
        elif refusal := _CONTENT_REFUSAL.match(rest):
            at, sender, recipient, helo_name, sasl_username, text = _read_envelope(rest, refusal.end())
            client = _CLIENT.fullmatch(at[at.rfind(b" from ") + 6 :])
            name, address = client.groups() if client is not None else (b"", b"")
            by = refusal[2] + b"_checks"
        else:
            return False
        mail = self.mails.get(queue_id)
        if mail is None:
            # The log begins in the middle of the mail, or has only its refusals. This line has all that is needed.
            if not address or _BLANK in queue_id:
                return False
            session = self._sessions.get(b"@" + address)
            mail = _Mail(self._seconds(stamp), address, *_identity(session, name, address))
            mail.sasl_username = sasl_username
            self._add_mail(queue_id, mail)
        mail.sender = mail.sender if sender is None else sender
        mail.helo_name = helo_name or mail.helo_name
        if recipient is not None:
            self._add(mail.recipients, recipient)
        mail.outcome = _DEFERRED if text.startswith(b"4") else _REJECTED
        mail.by, mail.text = by, text
        self._finish(queue_id)
        return True

    def _qmgr(self, _stamp: bytes, _pid: bytes, message: bytes) -> bool:
        queue_id, _, rest = message.partition(b": ")
        if rest == b"removed":
            if queue_id not in self.mails:
                return False
            self._finish(queue_id)
            return True
        if rest.startswith(b"from=<"):
            mail = self.mails.get(queue_id)
            if mail is None:
                return False
            if (end := rest.find(b">, size=")) >= 0:
                mail.sender = rest[6:end]
                if mail.earlier is not None:
                    self._settle(mail)
            return True
        return False

    def _delivery(self, _stamp: bytes, _pid: bytes, message: bytes) -> bool:
        """`to=<a>, orig_to=<b>, relay=host[address]:25, delay=..., dsn=2.0.0, status=sent (text)`."""
        queue_id, _, rest = message.partition(b": ")
        if not rest.startswith(b"to=<"):
            return False
        mail = self.mails.get(queue_id)
        status = rest.find(b", status=")
        if mail is None or status < 0:
            return False
        recipient_end = rest.find(b">, ")
        recipient = rest[4:recipient_end]
        if rest.startswith(b"orig_to=<", recipient_end + 3):
            # The address before aliases and virtual domains, as in RCPT TO.
            recipient = rest[recipient_end + 12 : rest.find(b">, ", recipient_end + 12)]
        self._add(mail.recipients, recipient)
        if mail.outcome is _DELIVERED:
            return True
        word, _, text = rest[status + 9 :].partition(b" ")
        relay_at = rest.find(b"relay=", recipient_end)
        relay = rest[relay_at + 6 : rest.find(b", ", relay_at)] if relay_at >= 0 else b""
        if word == b"sent":
            if relay == b"none" or _NOT_DELIVERED.search(text) is not None:
                # discard(8), the only program that logs `sent` without a relay, or a filter that kept the mail.
                mail.outcome = _REJECTED
                text = b"(discarded: " + text[1:]
            elif self._goes_on(mail, relay, text):
                mail.by, mail.text = relay, text[1:-1]
                return True
            else:
                mail.outcome = _DELIVERED
        elif word in {b"deferred", b"SOFTBOUNCE"}:
            mail.outcome = _DEFERRED
        elif word in {b"bounced", b"expired"}:
            mail.outcome = _REJECTED
        else:
            return False
        mail.by, mail.text = relay, text[1:-1]
        return True

    def _goes_on(self, mail: _Mail, relay: bytes, text: bytes) -> bool:
        """Whether a mail that a filter took, or that an alias forwards, goes on under another queue id."""
        if text.find(b"ed as ") < 0:
            return False
        named = _QUEUED_AS.search(text)
        if named is None:
            return False
        queue_id = named[1]
        if queue_id in mail.children or (_NEAR_RELAY.search(relay) is not None and self._host.claim(queue_id, mail)):
            return True
        if not text.startswith(b"(forwarded as ") or queue_id in self.mails:
            return False
        forwarded = _Mail(mail.time, mail.client_address, mail.names, mail.name_status)
        self._add_mail(queue_id, forwarded)
        self._host.join(forwarded, mail)
        return True

    def _finish(self, queue_id: bytes) -> None:
        mail = self.mails.pop(queue_id)
        self._open_mails.count -= 1
        self._end(mail)

    def _end(self, mail: _Mail) -> None:
        if mail.earlier is not None:
            self._settle(mail)
        self._host.end(mail)

    def _settle(self, mail: _Mail) -> None:
        """Decides by the sender whether the refusals before the queue id are of the same mail."""
        earlier, mail.earlier = mail.earlier, None
        assert earlier is not None
        if mail.sender is not None and mail.sender != earlier.sender:
            self._observations.append(earlier)
            return
        mail.sender = earlier.sender
        mail.helo_name = mail.helo_name or earlier.helo_name
        for recipient in earlier.recipients:
            self._add(mail.refused, recipient)

    def _add(self, recipients: list[bytes], recipient: bytes) -> None:
        if recipient not in recipients:
            if len(recipients) < MAX_RECIPIENTS:
                recipients.append(recipient)
            else:
                self._open_mails.left_out.recipients += 1


_DELIVERY_AGENTS = frozenset(
    {b"smtp", b"lmtp", b"local", b"virtual", b"pipe", b"error", b"retry", b"discard", b"relay"}
)
_DAEMONS = _DELIVERY_AGENTS | {b"smtpd", b"postscreen", b"qmgr", b"nqmgr", b"oqmgr", b"cleanup"}


def _identity(session: _Session | None, name: bytes, address: bytes) -> tuple[tuple[bytes, ...], NameStatus]:
    """Returns the client's names and their status, from the name in a line and the warning before it."""
    if name and name != b"unknown":
        return (name.lower(),), _VERIFIED
    if session is not None and session.claimed_address == address:
        return (session.claimed,), NameStatus.ERROR if session.lookup_failed else NameStatus.CLAIMED
    return _NO_NAMES, _UNKNOWN_NAME


def _client_key(message: bytes) -> bytes:
    """Returns the key of the session of `connect from name[address]`, in a log without process ids."""
    return b"@" + message[message.rfind(b"[") + 1 :].partition(b"]")[0]


def _read_refusal(
    rest: bytes,
) -> tuple[bytes, bytes, bytes, bytes, bytes, bytes | None, bytes | None, bytes, bytes] | None:
    """Returns kind, state, name, address, text, sender, recipient, HELO and user; None if it is not a refusal."""
    if usual := _USUAL_REFUSAL.fullmatch(rest):
        return usual.groups()  # type: ignore[return-value] # nine groups, which mypy does not count
    refusal = _REFUSAL.match(rest)
    if refusal is None:
        return None
    how, state, name, address = refusal.groups()
    text, sender, recipient, helo_name, sasl_username, _ = _read_envelope(rest, refusal.end())
    return how, state, name, address, text, sender, recipient, helo_name, sasl_username


def _read_envelope(rest: bytes, start: int) -> tuple[bytes, bytes | None, bytes | None, bytes, bytes, bytes]:
    """Returns text, sender, recipient, HELO, user and end of `text; from=<a> to=<b> proto=ESMTP helo=<c>: end`.

    Anything but the text may be missing.
    """
    # The last match, because the text may quote a client.
    at = max(rest.rfind(b"; from=<", start), rest.rfind(b"; to=<", start))
    if at < 0:
        at = rest.rfind(b"; proto=", start)
    envelope = _ENVELOPE.match(rest, at) if at >= 0 else None
    if envelope is None:
        return rest[start:], None, None, b"", b"", b""
    sender, recipient, helo_name, sasl_username, end = envelope.groups()
    return rest[start:at], sender, recipient, helo_name or b"", sasl_username or b"", end or b""


def _with_recipient(
    pending: Observation, recipient: bytes, outcome: MailOutcome, by: bytes, text: bytes
) -> Observation:
    """Returns the mail with another refused recipient. A deferral takes precedence, because the mail may come again."""
    if len(pending.recipients) < MAX_RECIPIENTS:
        pending = pending._replace(recipients=(*pending.recipients, recipient))
    if outcome is _DEFERRED and pending.outcome is _REJECTED:
        pending = pending._replace(outcome=outcome, by=by, text=text)
    return pending
