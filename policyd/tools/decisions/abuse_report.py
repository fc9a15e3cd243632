"""An abuse report for a network or a host name suffix, from the decision log: an ARF message (RFC 5965).

It is written, never sent. One message speaks for all refused mails: the text sums up and quotes log lines, the
machine's part counts them (`Incidents`) and names the client that came most. Log lines tell whom the mail was for, so
recipients are hidden unless asked, also where a sender has one written into it (VERP).
"""

from __future__ import annotations

import datetime
import email.policy
import re
from collections import Counter
from dataclasses import dataclass, field
from email.message import EmailMessage, Message
from email.mime.multipart import MIMEMultipart
from email.utils import format_datetime, make_msgid
from typing import TYPE_CHECKING

from policyd import __version__
from policyd.core.normalize import fold_name
from policyd.decision_log.reader import LoggedDecision, as_text
from policyd.logs.decisions import DecisionCounts, decisions
from policyd.logs.timestamps import LogClock
from policyd.tools.decisions.tail import Wanted
from policyd.tools.display import counted, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import netaddr

# Log lines quoted. More prove nothing more, and an abuse desk's mailbox has its limits.
MAX_QUOTED = 200

# Clients and senders told apart, for the summary's figures; about 20 MB.
_MAX_COUNTED = 100_000

HIDDEN = b"hidden"


@dataclass(slots=True)
class Incident:
    """What is reported: the refused mails of one network or suffix."""

    subject: str  # the network or suffix, as it was asked for
    recipients_shown: bool
    count: int = 0
    clients: Counter[bytes] = field(default_factory=Counter)
    names: Counter[bytes] = field(default_factory=Counter)
    senders: Counter[bytes] = field(default_factory=Counter)
    first: bytes = b""  # the stamp of the first
    quoted: list[LoggedDecision] = field(default_factory=list)  # the last ones

    def add(self, decision: LoggedDecision) -> None:
        self.count += 1
        self.first = self.first or decision.time
        for counter, values in (
            (self.clients, (decision.client_address,)),
            (self.names, (decision.hostname,) if decision.hostname else decision.claimed[:1]),
            (self.senders, (decision.sender,) if decision.sender else ()),
        ):
            for value in values:
                if value in counter or len(counter) < _MAX_COUNTED:
                    counter[value] += 1
        self.quoted.append(decision)
        if len(self.quoted) > 2 * MAX_QUOTED:
            del self.quoted[:MAX_QUOTED]


def collect(
    paths: Sequence[str],
    *,
    network: netaddr.IPNetwork | None = None,
    suffix: str | None = None,
    since: float | None = None,
    show_recipients: bool = False,
    advance: Callable[[int], None] | None = None,
) -> Incident:
    """What these decision logs say of a network or, as in `hostname_suffix`, of names under a suffix.

    Only what was refused, or would have been under `mode: observe`. Raises `LogError`.
    """
    wanted = Wanted(networks=(network,)) if network is not None else Wanted()
    folded = fold_name(suffix.encode()) if suffix is not None else b""
    incident = Incident(str(network) if network is not None else str(suffix), show_recipients)
    clock = LogClock()
    for batch in decisions(paths, DecisionCounts(), advance):
        for decision in batch:
            if decision.decided == b"DUNNO" or decision.is_probe or not wanted.has(decision):
                continue
            if folded and not _is_under(decision, folded):
                continue
            if since is not None and (clock.seconds(decision.time) or 0) < since:
                continue
            incident.add(decision if show_recipients else without_recipient(decision))
    return incident


def _is_under(decision: LoggedDecision, suffix: bytes) -> bool:
    """Whether the client has, or claims, a name that is the suffix or lies under it; a leading dot means only under."""
    bare = suffix.lstrip(b".")
    names = (decision.hostname, *decision.claimed)
    return any(name.endswith(b"." + bare) or (name == bare and bare == suffix) for name in map(fold_name, names))


def as_message(incident: Incident, sender: str, recipient: str | None, now: datetime.datetime) -> Message:
    """The report as a message from `sender`; `now` is aware. The incident has at least one mail.

    Its three parts are those of RFC 5965 section 2: a text, the machine-readable report, and what is known of a mail's
    header.
    """
    message = MIMEMultipart("report", report_type="feedback-report", policy=email.policy.default)
    message["From"] = sender
    if recipient is not None:
        message["To"] = recipient
    message["Subject"] = f"Abuse report: {counted(incident.count, 'refused mail')} from {incident.subject}"
    message["Date"] = format_datetime(now)
    message["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2])
    message["Auto-Submitted"] = "auto-generated"
    message.attach(_part("plain", _summary(incident)))
    message.attach(_feedback(incident, sender))
    message.attach(_part("rfc822-headers", _header(incident.quoted[-1], sender.rpartition("@")[2])))
    return message


def _summary(incident: Incident) -> str:
    first, last = incident.first, shown(incident.quoted[-1].time)
    lines = [
        f"This is an abuse report (RFC 5965) about {incident.subject}.",
        "",
        f"Between {shown(first)} and {last} our mail server refused {counted(incident.count, 'mail')}",
        f"from {counted(len(incident.clients), 'address', 'addresses')} there.",
        "",
        "Addresses that came most often:",
        *(f"  {count:>7,}  {shown(client)}" for client, count in incident.clients.most_common(10)),
    ]
    if incident.names:
        lines += ["", "Their host names:"]
        lines += [f"  {count:>7,}  {shown(name)}" for name, count in incident.names.most_common(10)]
    if incident.senders:
        lines += ["", "Envelope senders:"]
        lines += [f"  {count:>7,}  <{shown(sender)}>" for sender, count in incident.senders.most_common(10)]
    quoted = incident.quoted[-MAX_QUOTED:]
    which = f"The last {len(quoted)} of them" if len(quoted) < incident.count else "All of them"
    hidden = "" if incident.recipients_shown else "; recipients are hidden"
    lines += ["", f"{which}, as our policy server logged them{hidden}:", ""]
    lines += [as_text(decision) for decision in quoted]
    return "\n".join(lines) + "\n"


def _feedback(incident: Incident, sender: str) -> Message:
    """RFC 5965 section 3: the required fields first, then what is known."""
    client, _ = incident.clients.most_common(1)[0]
    fields = [
        ("Feedback-Type", "abuse"),
        ("User-Agent", f"policyd/{__version__}"),
        ("Version", "1"),
        ("Source-IP", shown(client)),
        ("Incidents", str(incident.count)),
        ("Reporting-MTA", f"dns; {sender.rpartition('@')[2]}"),
    ]
    arrival = _date(incident.quoted[-1])
    if arrival:
        fields.append(("Arrival-Date", arrival))
    if incident.names:
        fields.append(("Reported-Domain", shown(incident.names.most_common(1)[0][0])))
    part = EmailMessage()
    part["Content-Type"] = "message/feedback-report"
    part.set_payload("".join(f"{name}: {value}\n" for name, value in fields))
    return part


def _part(subtype: str, text: str) -> Message:
    """A part of text; quoted-printable where its lines are longer than a mail's may be."""
    part = EmailMessage()
    part.set_content(text, subtype=subtype, charset="us-ascii")
    del part["MIME-Version"]
    return part


def _header(last: LoggedDecision, host: str) -> str:
    """What would stand on top of the last mail's header (RFC 5321 section 4.4); it was refused before it had one."""
    name = shown(last.hostname) if last.hostname else "unknown"
    lines = [
        f"Return-Path: <{shown(last.sender or b'')}>",
        f"Received: from {shown(last.helo_name) or 'unknown'} ({name} [{shown(last.client_address)}])",
        f"\tby {host} (policyd) id {shown(last.id)}; {_date(last)}".rstrip("; "),
    ]
    return "\n".join(lines) + "\n"


def _date(decision: LoggedDecision) -> str:
    """When it was decided, as mails write it (RFC 5322 section 3.3), in UTC; empty if that is not known."""
    seconds = LogClock().seconds(decision.time)
    return "" if seconds is None else format_datetime(datetime.datetime.fromtimestamp(seconds, datetime.UTC))


# --- Recipients -----------------------------------------------------------------------------------------------------


def without_recipient(decision: LoggedDecision) -> LoggedDecision:
    """The same decision with `hidden` for its recipient, wherever it stands.

    Bounce addresses have it as `joe=here.example` or `joe#here.example` (VERP), a reply may quote it.
    """
    local, at, domain = decision.recipient.rpartition(b"@")
    if not (at and local and domain):
        return decision._replace(recipient=HIDDEN) if decision.recipient else decision
    written = re.compile(re.escape(local) + b"[@=#]" + re.escape(domain), re.IGNORECASE)
    return decision._replace(
        recipient=HIDDEN,
        sender=written.sub(HIDDEN, decision.sender) if decision.sender is not None else None,
        helo_name=written.sub(HIDDEN, decision.helo_name),
        reply=written.sub(HIDDEN, decision.reply),
    )
