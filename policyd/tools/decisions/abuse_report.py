"""An abuse report for a network, a host name suffix, a system or a country, from decision logs or mail logs.

The report is an ARF message (RFC 5965). It is written, never sent. One message covers all mails: its text has a
summary and log lines, its machine-readable part has the number of mails (`Incidents`) and the most frequent client.
Recipients are hidden unless the user asks for them, also if a sender contains one (VERP).
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
from policyd.config.problems import counted
from policyd.decision_log.reader import LoggedDecision
from policyd.tools.decisions.find import Search, as_line, every, is_refused, time_of
from policyd.tools.display import shown
from policyd.tools.owners import owner_of, system_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import netaddr

    from policyd.core.index import Ruleset
    from policyd.tools.decisions.find import Found, SearchedLine

# Maximum number of log lines quoted; an abuse desk's mailbox has limits.
MAX_QUOTED = 200

# Maximum number of different clients, of host names and of senders that are counted for the summary; about 20 MB.
_MAX_COUNTED = 100_000

# The text in place of a recipient.
HIDDEN = b"hidden"


@dataclass(slots=True)
class Incident:
    """The reported mails of one network, suffix, system or country.

    From a decision log, these are the refused mails; from a mail log, also those that were not refused.
    """

    subject: str  # the network, suffix or country as given; the system with its name, if known
    recipients_shown: bool
    count: int = 0
    refused: int = 0
    clients: Counter[bytes] = field(default_factory=Counter)
    names: Counter[bytes] = field(default_factory=Counter)
    senders: Counter[bytes] = field(default_factory=Counter)
    first: str = ""  # the time of the first mail
    quoted: list[Found] = field(default_factory=list)  # the last mails

    def add(self, found: Found) -> None:
        self.count += 1
        self.refused += is_refused(found.source)
        self.first = self.first or time_of(found.source)
        for counter, values in (
            (self.clients, (found.client_address,)),
            (self.names, found.names[:1]),
            (self.senders, (found.sender,) if found.sender else ()),
        ):
            for value in values:
                if value in counter or len(counter) < _MAX_COUNTED:
                    counter[value] += 1
        self.quoted.append(found)
        if len(self.quoted) > 2 * MAX_QUOTED:
            del self.quoted[:MAX_QUOTED]


def collect(
    paths: Sequence[str],
    *,
    network: netaddr.IPNetwork | None = None,
    suffix: str | None = None,
    asn: int = 0,
    country: str = "",
    ruleset: Ruleset | None = None,
    since: float | None = None,
    show_recipients: bool = False,
    advance: Callable[[int], None] | None = None,
) -> Incident:
    """Collects the mails of a network, of names under a suffix (`hostname_suffix`), of a system or of a country.

    A decision log gives the refused mails and, under `mode: observe`, those that would have been refused. A mail log
    gives every mail; the databases of `ruleset` then give the systems and countries of its clients. Raises `LogError`.
    """
    networks = (network,) if network is not None else ()
    search = Search(networks, suffix or "", since=since, asn=asn, country=country, ruleset=ruleset)
    wanted = f"AS{asn}" if asn else country or suffix or str(network)
    incident = Incident(wanted, show_recipients)
    for found in every(paths, search, advance):
        if incident.subject == wanted and asn:
            known = owner_of(ruleset, found.client_address, found.source.owner)
            incident.subject = system_name(asn, known.asn_name if known.asn == asn else "")
        if not isinstance(found.source, LoggedDecision) or is_refused(found.source):
            source = found.source if show_recipients else without_recipient(found.source)
            incident.add(found._replace(source=source, sender=source.sender))
    return incident


def as_message(incident: Incident, sender: str, recipient: str | None, now: datetime.datetime) -> Message:
    """Returns the report as a message from `sender`; `now` must have a time zone, and the incident at least one mail.

    The message has the three parts of RFC 5965 section 2: a text, the machine-readable report, and as much of the last
    mail's header as the log shows.
    """
    message = MIMEMultipart("report", report_type="feedback-report", policy=email.policy.default)
    message["From"] = sender
    if recipient is not None:
        message["To"] = recipient
    what = "refused mail" if incident.refused == incident.count else "mail"
    message["Subject"] = f"Abuse report: {counted(incident.count, what)} from {incident.subject}"
    message["Date"] = format_datetime(now)
    message["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2])
    message["Auto-Submitted"] = "auto-generated"
    message.attach(_part("plain", _summary(incident)))
    message.attach(_feedback(incident, sender))
    message.attach(_part("rfc822-headers", _header(incident.quoted[-1], sender.rpartition("@")[2])))
    return message


def _summary(incident: Incident) -> str:
    first, last = incident.first, time_of(incident.quoted[-1].source)
    is_all = incident.refused == incident.count
    did = "refused" if is_all else "saw"
    lines = [
        f"This is an abuse report (RFC 5965) about {incident.subject}.",
        "",
        f"Between {first} and {last} our mail server {did} {counted(incident.count, 'mail')}",
        f"from {counted(len(incident.clients), 'address', 'addresses')} there"
        + ("." if is_all else f", and refused {incident.refused:,} of them."),
        "",
        "Most frequent addresses:",
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
    lines += ["", f"{which}, as logged here{hidden}:", ""]
    lines += [as_line(found.source) for found in quoted]
    return "\n".join(lines) + "\n"


def _feedback(incident: Incident, sender: str) -> Message:
    """Returns the machine-readable report (RFC 5965 section 3): the required fields, then optional fields, if known."""
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
    """Returns a part with a text, in quoted-printable if its lines are too long for a mail."""
    part = EmailMessage()
    part.set_content(text, subtype=subtype, charset="us-ascii")
    del part["MIME-Version"]
    return part


def _header(last: Found, host: str) -> str:
    """Returns trace lines (RFC 5321 section 4.4) for the last mail, whose own header the log does not have."""
    name = shown(last.names[0]) if last.verified else "unknown"
    source = last.source
    by = f"by {host} (policyd) id {shown(source.id)}" if isinstance(source, LoggedDecision) else f"by {host}"
    lines = [
        f"Return-Path: <{shown(source.sender or b'')}>",
        f"Received: from {shown(source.helo_name) or 'unknown'} ({name} [{shown(last.client_address)}])",
        f"\t{by}; {_date(last)}".rstrip("; "),
    ]
    return "\n".join(lines) + "\n"


def _date(found: Found) -> str:
    """Returns the time of a decision or mail as in a mail header (RFC 5322 section 3.3), in UTC; empty if unknown."""
    seconds = found.time
    return "" if seconds is None else format_datetime(datetime.datetime.fromtimestamp(seconds, datetime.UTC))


# --- Recipients -----------------------------------------------------------------------------------------------------


def without_recipient(source: SearchedLine) -> SearchedLine:
    """Returns the decision or mail with `hidden` in place of each recipient, also in sender, HELO and reply.

    The sender may be a bounce address, which contains the recipient as `joe=here.example` or `joe#here.example` (VERP).
    """
    recipients: tuple[bytes, ...]
    if isinstance(source, LoggedDecision):
        recipients, text = (source.recipient,) if source.recipient else (), source.reply
    else:
        recipients, text = source.recipients, source.text
    sender, helo_name = source.sender, source.helo_name
    for recipient in recipients:
        local, at, domain = recipient.rpartition(b"@")
        if at and local and domain:
            written = re.compile(re.escape(local) + b"[@=#]" + re.escape(domain), re.IGNORECASE)
            sender = written.sub(HIDDEN, sender) if sender is not None else None
            helo_name, text = written.sub(HIDDEN, helo_name), written.sub(HIDDEN, text)
    if isinstance(source, LoggedDecision):
        hidden = HIDDEN if recipients else b""
        return source._replace(recipient=hidden, sender=sender, helo_name=helo_name, reply=text)
    return source._replace(recipients=tuple(HIDDEN for _ in recipients), sender=sender, helo_name=helo_name, text=text)
