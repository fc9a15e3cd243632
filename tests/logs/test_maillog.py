# ruff: noqa: E501, ISC004 - log lines as programs write them

from __future__ import annotations

import datetime
import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd.logs import maillog
from policyd.logs import postfix as postfix_reader
from policyd.logs import sendmail as sendmail_reader
from policyd.logs.files import LogError
from policyd.logs.maillog import MailLog, observations
from policyd.logs.transaction import MAX_RECIPIENTS, MailOutcome, NameStatus, Observation
from tests.examples import examples

DATA = Path(__file__).parents[1] / "data"
WRITTEN = datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC).timestamp()


def read(*lines: str | bytes) -> list[Observation]:
    """Returns the observations of lines. Every line must be used, except each that ends in `#`."""
    log = MailLog()
    log.start_file(WRITTEN)
    unused = 0
    found = []
    for line in lines:
        text = line if isinstance(line, bytes) else line.encode()
        unused += text.endswith(b"#")
        found += log.feed([text.removesuffix(b"#")])
    assert log.counts.lines - log.counts.used == unused, log.counts
    return found + log.finish()


def only_mail(*lines: str | bytes) -> Observation:
    found = read(*lines)
    assert len(found) == 1, found
    return found[0]


def postfix(
    daemon: str, message: str, *, pid: int = 9105, instance: str = "postfix", stamp: str = "Aug  3 12:15:23"
) -> str:
    return f"{stamp} ulysses {instance}/{daemon}[{pid}]: {message}"


# --- Postfix --------------------------------------------------------------------------------------------------------

REFUSED = postfix(
    "smtpd",
    "NOQUEUE: reject: RCPT from unknown[180.222.51.40]: 450 4.7.1 Client host rejected: cannot find your hostname,"
    " [180.222.51.40]; from=<rainbow+errnnn0@gbc001.mag-r.net> to=<x@y.jp> proto=ESMTP helo=<r001-gbc001.mail-b.net>",
)


def accepted_mail(
    queue_id: str, client: str, *deliveries: str, sender: str = "a@b.example", **options: Any
) -> list[str]:
    """The lines of a mail that was accepted. A delivery is `to=<...>, ...`."""
    return [
        postfix("smtpd", f"connect from {client}", **options),
        postfix("smtpd", f"{queue_id}: client={client}", **options),
        postfix("cleanup", f"{queue_id}: message-id=<m@b.example>#", **options),
        postfix("qmgr", f"{queue_id}: from=<{sender}>, size=332, nrcpt=1 (queue active)", **options),
        *(postfix("smtp", f"{queue_id}: {delivery}", **options) for delivery in deliveries),
        postfix("qmgr", f"{queue_id}: removed", **options),
        postfix("smtpd", f"disconnect from {client} ehlo=1 mail=1 rcpt=1 data=1 quit=1 commands=5", **options),
    ]


SENT = (
    "to=<c@d.example>, relay=mx.d.example[192.0.2.25]:25, delay=0.1, delays=0/0/0/0.1, dsn=2.0.0, status=sent (250 ok)"
)
DEFERRED = "to=<c@d.example>, relay=none, delay=1, delays=1/0/0/0, dsn=4.4.1, status=deferred (connect to d: timed out)"
BOUNCED = "to=<c@d.example>, relay=mx[192.0.2.25]:25, delay=1, delays=1/0/0/0, dsn=5.1.1, status=bounced (no such user)"


def test_a_refused_recipient() -> None:
    seen = only_mail(REFUSED)
    assert seen == Observation(
        datetime.datetime(2026, 8, 3, 12, 15, 23).timestamp(),  # noqa: DTZ001 - syslog writes local time
        b"180.222.51.40",
        (),
        NameStatus.UNKNOWN,
        b"r001-gbc001.mail-b.net",
        b"rainbow+errnnn0@gbc001.mag-r.net",
        (b"x@y.jp",),
        b"",
        MailOutcome.DEFERRED,
        b"smtpd",
        b"450 4.7.1 Client host rejected: cannot find your hostname, [180.222.51.40]",
        "postfix",
    )


@pytest.mark.parametrize("queue_id", ["B25692109E3", "4jX2YG3z6mzJJKM"], ids=["short", "long"])
@pytest.mark.parametrize("instance", ["postfix", "postfix-in", "mail_2"])
@pytest.mark.parametrize("stamp", ["Aug  3 12:15:23", "2026-08-03T12:15:23.123456+09:00"])
def test_a_mail_that_was_delivered(queue_id: str, instance: str, stamp: str) -> None:
    seen = only_mail(*accepted_mail(queue_id, "Mail.B.example[2001:db8::25]", SENT, instance=instance, stamp=stamp))
    assert (seen.client_address, seen.names, seen.name_status) == (
        b"2001:db8::25",
        (b"mail.b.example",),
        NameStatus.VERIFIED,
    )
    assert (seen.sender, seen.recipients, seen.outcome) == (b"a@b.example", (b"c@d.example",), MailOutcome.DELIVERED)
    assert (seen.by, seen.text) == (b"mx.d.example[192.0.2.25]:25", b"250 ok")


@pytest.mark.parametrize("daemon", ["smtp", "lmtp", "local", "virtual", "pipe", "error", "retry", "discard", "relay"])
def test_lines_of_every_delivery_agent_are_read(daemon: str) -> None:
    lines = accepted_mail("B25692109E3", "mail.b.example[192.0.2.1]", SENT)
    assert only_mail(*(line.replace("/smtp[", f"/{daemon}[") for line in lines)).outcome is MailOutcome.DELIVERED


@pytest.mark.parametrize(
    ("deliveries", "outcome"),
    [
        ([SENT], MailOutcome.DELIVERED),
        ([DEFERRED], MailOutcome.DEFERRED),
        ([BOUNCED], MailOutcome.REJECTED),
        ([DEFERRED, SENT], MailOutcome.DELIVERED),
        ([DEFERRED, DEFERRED, BOUNCED], MailOutcome.REJECTED),
        ([SENT, BOUNCED.replace("c@d", "e@d")], MailOutcome.DELIVERED),
        ([], MailOutcome.UNKNOWN),
    ],
)
def test_a_mail_has_the_best_outcome_of_its_recipients(deliveries: list[str], outcome: MailOutcome) -> None:
    assert only_mail(*accepted_mail("B25692109E3", "mail.b.example[192.0.2.1]", *deliveries)).outcome is outcome


def test_the_recipient_is_the_address_that_the_client_gave() -> None:
    delivery = SENT.replace("to=<c@d.example>", "to=<joe@local.example>, orig_to=<postmaster@d.example>")
    assert only_mail(*accepted_mail("B25692109E3", "mail.b.example[192.0.2.1]", delivery)).recipients == (
        b"postmaster@d.example",
    )


def test_recipients_of_one_mail_are_one_observation() -> None:
    deliveries = [SENT.replace("c@d", f"c{number}@d") for number in range(3)]
    seen = only_mail(*accepted_mail("B25692109E3", "mail.b.example[192.0.2.1]", *deliveries))
    assert seen.recipients == (b"c0@d.example", b"c1@d.example", b"c2@d.example")


def test_refused_recipients_of_one_mail_are_one_observation() -> None:
    seen = only_mail(REFUSED, REFUSED.replace("x@y.jp", "z@y.jp").replace("450 4.7.1", "554 5.7.1"))
    assert (seen.recipients, seen.outcome) == ((b"x@y.jp", b"z@y.jp"), MailOutcome.DEFERRED)


@pytest.mark.parametrize(
    "change",
    [
        ("180.222.51", "180.222.52"),
        ("errnnn0", "errnnn1"),
        ("smtpd[9105]", "smtpd[9106]"),
        ("helo=<r001", "helo=<r002"),
    ],
)
def test_refusals_of_different_mails_are_different_observations(change: tuple[str, str]) -> None:
    assert len(read(REFUSED, REFUSED.replace("x@y.jp", "z@y.jp").replace(*change))) == 2


def test_a_retry_is_another_mail() -> None:
    assert len(read(REFUSED, REFUSED)) == 2
    connect = postfix("smtpd", "connect from unknown[180.222.51.40]")
    assert len(read(REFUSED, connect, REFUSED.replace("x@y.jp", "z@y.jp"))) == 2


@pytest.mark.parametrize(
    ("warning", "name_status"),
    [
        ("hostname host.b.example does not resolve to address 192.0.2.1", NameStatus.CLAIMED),
        (
            "hostname host.b.example does not resolve to address 192.0.2.1: Name or service not known",
            NameStatus.CLAIMED,
        ),
        (
            "hostname host.b.example does not resolve to address 192.0.2.1: Temporary failure in name resolution",
            NameStatus.ERROR,
        ),
        ("192.0.2.1: address not listed for hostname host.b.example", NameStatus.CLAIMED),
        ("192.0.2.1: hostname host.b.example verification failed: Name or service not known", NameStatus.CLAIMED),
    ],
)
def test_a_name_that_does_not_verify_is_claimed(warning: str, name_status: NameStatus) -> None:
    seen = only_mail(postfix("smtpd", f"warning: {warning}"), *accepted_mail("B25692109E3", "unknown[192.0.2.1]", SENT))
    assert (seen.names, seen.name_status) == ((b"host.b.example",), name_status)


def test_a_claimed_name_does_not_pass_to_the_next_client() -> None:
    warning = postfix("smtpd", "warning: hostname host.b.example does not resolve to address 192.0.2.1")
    seen = only_mail(warning, *accepted_mail("B25692109E3", "unknown[192.0.2.2]", SENT))
    assert (seen.names, seen.name_status) == ((), NameStatus.UNKNOWN)


def test_authenticated_users_are_known() -> None:
    line = postfix("smtpd", "B25692109E3: client=unknown[192.0.2.2], sasl_method=PLAIN, sasl_username=joe")
    assert only_mail(line).sasl_username == b"joe"


def test_a_mail_that_a_content_filter_returns_is_counted_once() -> None:
    first = accepted_mail("B25692109E3", "mail.b.example[192.0.2.1]", SENT)
    again = postfix(
        "smtpd",
        "4jX2YG3z6mzJJKM: client=localhost[127.0.0.1], orig_queue_id=B25692109E3, orig_client=mail.b.example[192.0.2.1]",
        pid=7,
    )
    assert [seen.client_address for seen in read(*first[:4], again, *first[4:])] == [b"192.0.2.1"]
    # The mail came through another host: the original client counts.
    assert only_mail(again).client_address == b"192.0.2.1"


@pytest.mark.parametrize(
    ("message", "outcome", "by"),
    [
        (
            "milter-reject: END-OF-MESSAGE from m[192.0.2.1]: 5.7.1 Spam; from=<s@b> to=<t@d> proto=ESMTP helo=<h>",
            MailOutcome.REJECTED,
            b"milter",
        ),
        (
            "milter-reject: END-OF-MESSAGE from m[192.0.2.1]: 4.7.1 Greylisted; from=<s@b> to=<t@d> proto=ESMTP helo=<h>",
            MailOutcome.DEFERRED,
            b"milter",
        ),
        (
            "reject: header Subject: buy from us; now from m[192.0.2.1]; from=<s@b> to=<t@d> proto=ESMTP helo=<h>: 5.7.1 No",
            MailOutcome.REJECTED,
            b"header_checks",
        ),
        (
            "discard: body viagra from m[192.0.2.1]; from=<s@b> to=<t@d> proto=ESMTP helo=<h>: gone",
            MailOutcome.REJECTED,
            b"body_checks",
        ),
    ],
)
def test_mails_that_cleanup_refuses(message: str, outcome: MailOutcome, by: bytes) -> None:
    seen = only_mail(
        postfix("smtpd", "B25692109E3: client=m[192.0.2.1]"), postfix("cleanup", f"B25692109E3: {message}", pid=4)
    )
    assert (seen.outcome, seen.by, seen.sender, seen.helo_name) == (outcome, by, b"s@b", b"h")
    assert seen.recipients == (b"t@d",)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "NOQUEUE: reject: CONNECT from unknown[192.0.2.1]: 554 5.7.1 <unknown[192.0.2.1]>: Client host rejected:"
            " Access denied; proto=SMTP",
            (None, (), b"", MailOutcome.REJECTED),
        ),
        (
            "NOQUEUE: reject: HELO from unknown[192.0.2.1]: 504 5.5.2 <h>: Helo command rejected; proto=SMTP helo=<h>",
            (None, (), b"h", MailOutcome.REJECTED),
        ),
        (
            "NOQUEUE: reject: MAIL from unknown[192.0.2.1]: 550 no; from=<> proto=ESMTP helo=<h>",
            (b"", (), b"h", MailOutcome.REJECTED),
        ),
        (
            "NOQUEUE: milter-reject: RCPT from unknown[192.0.2.1]: 451 4.7.1 later; from=<s@b> to=<t@d> proto=SMTP helo=<h>",
            (b"s@b", (b"t@d",), b"h", MailOutcome.DEFERRED),
        ),
        (
            "NOQUEUE: reject: RCPT from [192.0.2.1]:4321: 550 5.7.1 Service unavailable; client [192.0.2.1] blocked using"
            " dnsbl; from=<s@b>, to=<t@d>, proto=ESMTP, helo=<h>",
            (b"s@b", (b"t@d",), b"h", MailOutcome.REJECTED),
        ),
        (
            "NOQUEUE: discard: RCPT from unknown[192.0.2.1]: <t@d>: Recipient address triggers DISCARD action;"
            " from=<s@b> to=<t@d> proto=ESMTP helo=<h>",
            (b"s@b", (b"t@d",), b"h", MailOutcome.REJECTED),
        ),
        (
            'NOQUEUE: reject: RCPT from unknown[192.0.2.1]: 550 <"; from=<x> to=<y> proto=z"@b>: Sender address rejected;'
            ' from=<"; from=<x> to=<y> proto=z"@b> to=<t@d> proto=ESMTP helo=<h>',
            (None, (), b"", MailOutcome.REJECTED),
        ),
    ],
    ids=["connect", "helo", "null sender", "milter", "postscreen", "discard", "a sender that looks like a log line"],
)
def test_refusals_in_every_form(
    message: str, expected: tuple[bytes | None, tuple[bytes, ...], bytes, MailOutcome]
) -> None:
    seen = only_mail(postfix("smtpd", message))
    assert seen.client_address == b"192.0.2.1"
    if "proto=z" not in message:  # a damaged line may be misread, but must not affect others
        assert (seen.sender, seen.recipients, seen.helo_name, seen.outcome) == expected


def test_a_refused_recipient_of_an_accepted_mail_does_not_change_its_outcome() -> None:
    lines = accepted_mail("B25692109E3", "unknown[180.222.51.40]", SENT)
    refusal = REFUSED.replace("NOQUEUE", "B25692109E3")
    seen = only_mail(*lines[:2], refusal, *lines[2:])
    assert (seen.outcome, seen.recipients) == (MailOutcome.DELIVERED, (b"c@d.example",))
    assert seen.helo_name == b"r001-gbc001.mail-b.net"


def test_a_mail_refused_at_its_end_is_refused() -> None:
    seen = only_mail(
        postfix("smtpd", "B25692109E3: client=unknown[180.222.51.40]"),
        REFUSED.replace("NOQUEUE", "B25692109E3").replace("RCPT", "END-OF-MESSAGE").replace("450 4", "550 5"),
    )
    assert seen.outcome is MailOutcome.REJECTED


def test_each_instance_and_host_has_its_own_queue_ids() -> None:
    default = accepted_mail("B25692109E3", "a[192.0.2.1]", SENT)
    instance = accepted_mail("B25692109E3", "b[192.0.2.2]", DEFERRED, instance="postfix-out")
    host = [line.replace(" ulysses ", " penelope ") for line in accepted_mail("B25692109E3", "c[192.0.2.3]", BOUNCED)]
    mixed = [line for lines in zip(default, instance, host, strict=True) for line in lines]
    assert {seen.client_address: seen.outcome for seen in read(*mixed)} == {
        b"192.0.2.1": MailOutcome.DELIVERED,
        b"192.0.2.2": MailOutcome.DEFERRED,
        b"192.0.2.3": MailOutcome.REJECTED,
    }


def test_a_service_of_an_instance_shares_its_queue() -> None:
    lines = accepted_mail("B25692109E3", "a[192.0.2.1]", SENT)
    assert (
        only_mail(*(line.replace("postfix/smtpd", "postfix/submission/smtpd") for line in lines)).outcome
        is MailOutcome.DELIVERED
    )


def test_a_repeated_short_queue_id_is_another_mail() -> None:
    lines = accepted_mail("B25692109E3", "a[192.0.2.1]", DEFERRED)
    again = accepted_mail("B25692109E3", "b[192.0.2.2]", SENT)
    assert [seen.outcome for seen in read(*lines[:5], *again)] == [MailOutcome.DEFERRED, MailOutcome.DELIVERED]


@pytest.mark.parametrize(
    "line",
    [
        postfix("anvil", "statistics: max connection rate 1/60s for (smtp:192.0.2.1) at Aug  3 12:15:23"),
        postfix("smtpd", "NOQUEUE: hold: RCPT from a[192.0.2.3]: x; from=<a@b> to=<c@d> proto=ESMTP helo=<e>"),
        postfix(
            "smtpd", "NOQUEUE: reject_warning: RCPT from a[192.0.2.3]: 504 x; from=<a@b> to=<c@d> proto=ESMTP helo=<e>"
        ),
        postfix("pickup", "B25692109E3: uid=0 from=<root>"),
        postfix("qmgr", "B25692109E3: removed"),
        postfix("smtp", "B25692109E3: " + SENT),
        "Aug  3 12:15:23 ulysses kernel: nothing of mail",
        "Aug  3 12:15:23 ulysses sshd[4]: Invalid user postfix/smtpd[9]: NOQUEUE: reject: RCPT from a[192.0.2.3]: 504 x",
        "Aug  3 12:15:23 ulysses dovecot: imap(postfix/smtpd[9]: NOQUEUE: reject: RCPT from a[192.0.2.3]: 504 x",
    ],
)
def test_lines_that_are_not_about_mail_from_outside(line: str) -> None:
    assert read(line + "#") == []


# --- sendmail -------------------------------------------------------------------------------------------------------


def sendmail(message: str, program: str = "sm-mta") -> str:
    return f"Feb  5 12:57:24 ulysses {program}[96927]: {message}"


FROM = (
    "2153vN23096927: from=<a@b.example>, size=36820, class=0, nrcpts={}, msgid=<m@b>, proto=ESMTP, daemon=MTA, relay={}"
)
TO = "2153vN23096927: to=<c@d.example>, delay=00:00:01, xdelay=00:00:01, mailer=local, pri=1, relay=local, dsn={}, stat={}"


@pytest.mark.parametrize(
    ("relay", "address", "names", "name_status"),
    [
        ("host.b.example [192.0.2.1]", b"192.0.2.1", (b"host.b.example",), NameStatus.VERIFIED),
        ("host.b.example [192.0.2.1] (may be forged)", b"192.0.2.1", (b"host.b.example",), NameStatus.CLAIMED),
        ("joe@host.b.example [192.0.2.1]", b"192.0.2.1", (b"host.b.example",), NameStatus.VERIFIED),
        ("[192.0.2.1]", b"192.0.2.1", (), NameStatus.UNKNOWN),
        ("host.b.example [IPv6:2001:db8::1]", b"2001:db8::1", (b"host.b.example",), NameStatus.VERIFIED),
        ("[IPv6:2001:db8::1] (may be forged)", b"2001:db8::1", (), NameStatus.UNKNOWN),
    ],
)
def test_the_client_of_a_mail_in_sendmails_log(
    relay: str, address: bytes, names: tuple[bytes, ...], name_status: NameStatus
) -> None:
    seen = only_mail(sendmail(FROM.format(1, relay)))
    assert (seen.client_address, seen.names, seen.name_status) == (address, names, name_status)


@pytest.mark.parametrize(
    ("dsn", "status", "outcome"),
    [
        ("2.0.0", "Sent", MailOutcome.DELIVERED),
        ("2.0.0", "Sent (ok, queued as B25692109E3)", MailOutcome.DELIVERED),
        ("4.0.0", "Deferred: Connection refused by mx.d.example., mx2.d.example.", MailOutcome.DEFERRED),
        ("4.2.2", "Mailbox full, try later", MailOutcome.DEFERRED),
        ("5.1.1", "User unknown", MailOutcome.REJECTED),
    ],
)
def test_outcomes_of_sendmails_mails(dsn: str, status: str, outcome: MailOutcome) -> None:
    seen = only_mail(sendmail(FROM.format(1, "host.b.example [192.0.2.1]")), sendmail(TO.format(dsn, status)))
    assert (seen.outcome, seen.sender, seen.recipients) == (outcome, b"a@b.example", (b"c@d.example",))
    assert seen.text == status.encode()


def test_several_recipients_in_one_line_of_sendmail() -> None:
    seen = only_mail(
        sendmail(FROM.format(2, "host.b.example [192.0.2.1]")),
        sendmail(TO.format("2.0.0", "Sent").replace("<c@d.example>", "<c@d.example>,<e@d.example>")),
    )
    assert seen.recipients == (b"c@d.example", b"e@d.example")


def test_sendmail_refuses_a_client_at_once() -> None:
    seen = only_mail(
        "Mar 9 23:12:23 sm-mta[34814]: ruleset=check_relay, arg1=os3-305-42423.vs.sakura.ne.jp, arg2=49.212.201.177,"
        " relay=os3-305-42423.vs.sakura.ne.jp [49.212.201.177], reject=550 5.7.1 Access denied"
    )
    assert (seen.names, seen.sender, seen.outcome) == ((b"os3-305-42423.vs.sakura.ne.jp",), None, MailOutcome.REJECTED)
    assert (seen.by, seen.text) == (b"check_relay", b"550 5.7.1 Access denied")


def test_the_sender_of_a_refusal_is_in_a_later_line_of_sendmail() -> None:
    seen = only_mail(
        sendmail(
            "2153vN23096927: ruleset=check_rcpt, arg1=<c@d.example>, relay=host.b.example [192.0.2.1],"
            " reject=450 4.7.1 <c@d.example>... Relaying temporarily denied"
        ),
        sendmail(FROM.format(0, "host.b.example [192.0.2.1]")),
    )
    assert (seen.sender, seen.recipients, seen.outcome) == (b"a@b.example", (b"c@d.example",), MailOutcome.DEFERRED)
    assert seen.by == b"check_rcpt"


def test_a_milter_of_sendmail_refuses_the_mail() -> None:
    seen = only_mail(
        sendmail(FROM.format(1, "host.b.example [192.0.2.1]")),
        sendmail("2153vN23096927: Milter: data, reject=550 5.7.1 Spam"),
        sendmail(TO.format("5.7.1", "Spam")),
    )
    assert seen.outcome is MailOutcome.REJECTED


@pytest.mark.parametrize(
    "message",
    [
        "2153vN23096927: from=root, size=3, class=0, nrcpts=1, msgid=<m@b>, relay=root@localhost",
        "2153vN23096927: to=<c@d.example>, stat=Sent",
        "STARTTLS=server, relay=host.b.example [192.0.2.1], version=TLSv1.3, verify=NO",
        "2153vN23096927: host.b.example [192.0.2.1] did not issue MAIL/EXPN/VRFY/ETRN during connection to IPv4",
        "ruleset=check_relay, reject=550",
    ],
)
def test_lines_of_sendmail_that_are_not_about_mail_from_outside(message: str) -> None:
    assert read(sendmail(message) + "#") == []


# --- policyd's own log ----------------------------------------------------------------------------------------------

DECISION = (
    "2026-08-03T12:15:23.123+09:00 {} id=7Q4K2M9X rule=r client={}[192.0.2.1] {}state=RCPT from=<a@b.example> to=<{}>"
    " helo=<h.example> {}ruleset=3f9c2a1b"
)


def decision(
    action: str = "DUNNO", client: str = "unknown", rdns: str = "", to: str = "c@d", instance: str = ""
) -> str:
    return DECISION.format(action, client, f"{rdns} " if rdns else "", to, f"instance={instance} " if instance else "")


@pytest.mark.parametrize(
    ("action", "outcome"),
    [
        ("DUNNO", MailOutcome.PASSED),
        ("REJECT", MailOutcome.REJECTED),
        ("DEFER", MailOutcome.DEFERRED),
        ("DEFER_IF_PERMIT", MailOutcome.DEFERRED),
        ("DUNNO would=REJECT", MailOutcome.PASSED),
    ],
)
def test_a_decision_is_an_observation(action: str, outcome: MailOutcome) -> None:
    seen = only_mail(decision(action))
    assert (seen.outcome, seen.sender, seen.helo_name) == (outcome, b"a@b.example", b"h.example")
    assert (seen.by, seen.log) == (b"policyd", "policyd")


@pytest.mark.parametrize(
    ("client", "rdns", "names", "name_status"),
    [
        ("h.b.example", "rdns=verified", (b"h.b.example",), NameStatus.VERIFIED),
        ("h.b.example", "", (b"h.b.example",), NameStatus.VERIFIED),
        ("unknown", "claimed=x,y rdns=mismatch", (b"x", b"y"), NameStatus.CLAIMED),
        ("unknown", "rdns=missing", (), NameStatus.NONE),
        ("unknown", "claimed=x rdns=error dns_error=timeout", (b"x",), NameStatus.ERROR),
        ("unknown", "", (), NameStatus.UNKNOWN),
    ],
)
def test_a_decision_has_the_clients_name(
    client: str, rdns: str, names: tuple[bytes, ...], name_status: NameStatus
) -> None:
    seen = only_mail(decision(client=client, rdns=rdns))
    assert (seen.names, seen.name_status) == (names, name_status)


def test_decisions_of_one_mail_are_one_observation() -> None:
    seen = only_mail(
        decision("REJECT", to="c@d", instance="2839.1"),
        decision("DUNNO", to="e@d", instance="2839.1"),
        decision("REJECT", to="c@d", instance="2839.1"),
    )
    assert (seen.recipients, seen.outcome) == ((b"c@d", b"e@d"), MailOutcome.PASSED)
    assert len(read(decision(instance="2839.1"), decision(instance="2839.2"))) == 2
    assert len(read(decision(), decision())) == 2


# --- The journal ----------------------------------------------------------------------------------------------------


def journal(line: str, **fields: object) -> str:
    """The same line in the format of `journalctl -o json`."""
    _, _, rest = line.partition("ulysses ")
    program, _, message = rest.partition("]: ")
    name, _, pid = program.partition("[")
    return json.dumps(
        {
            "__CURSOR": "s=1",
            "__REALTIME_TIMESTAMP": "1785726923000000",
            "_HOSTNAME": "ulysses",
            "SYSLOG_IDENTIFIER": name,
            "SYSLOG_PID": pid,
            "MESSAGE": message,
            "PRIORITY": "6",
        }
        | fields
    )


def test_a_log_in_the_journal_gives_the_same_mails() -> None:
    lines = [
        *accepted_mail("B25692109E3", "mail.b.example[192.0.2.1]", SENT, stamp="2026-08-03T12:15:23+09:00"),
        REFUSED,
    ]
    short = [line.replace("2026-08-03T12:15:23+09:00", "Aug 03 12:15:23") for line in lines]
    marks = ["#" * line.endswith("#") for line in lines]
    as_json = [journal(line.removesuffix("#")) + mark for line, mark in zip(lines, marks, strict=True)]

    def without_time(found: list[Observation]) -> list[Observation]:
        return [seen._replace(time=None) for seen in found]

    assert without_time(read(*short)) == without_time(read(*as_json)) == without_time(read(*lines))
    assert read(*as_json)[0].time == 1785726923.0


def test_the_journals_byte_numbers_are_read() -> None:
    message = list(REFUSED.partition("]: ")[2].replace("rainbow", "\x00").encode().replace(b"\x00", b"\xff"))
    assert only_mail(journal(REFUSED, MESSAGE=message)).sender == b"\xff+errnnn0@gbc001.mag-r.net"


@pytest.mark.parametrize(
    "form", [decision(), json.dumps({"action": "DUNNO", "time": "2026-08-03T12:15:23Z", "client_address": "192.0.2.1"})]
)
def test_policyds_lines_are_found_in_a_journal(form: str) -> None:
    line = f"Aug 03 12:15:23 ulysses policyd[12]: {form}"
    assert (
        only_mail(line).client_address
        == only_mail(journal(line)).client_address
        == only_mail(form).client_address
        == b"192.0.2.1"
    )


@pytest.mark.parametrize(
    "line",
    [
        json.dumps({"MESSAGE": "x", "__REALTIME_TIMESTAMP": "1", "SYSLOG_IDENTIFIER": "sshd"}),
        json.dumps({"MESSAGE": "x", "__REALTIME_TIMESTAMP": "1"}),
        json.dumps({"MESSAGE": "x", "__REALTIME_TIMESTAMP": "one", "SYSLOG_IDENTIFIER": "postfix/smtpd"}),
    ],
)
def test_a_journals_lines_of_other_programs_are_not_mails(line: str) -> None:
    assert read(line + "#") == []


# --- Whole files ----------------------------------------------------------------------------------------------------


def test_the_incident_of_the_phishing_hosts() -> None:
    log = MailLog()
    found = [seen for batch in observations([str(DATA / "maillog.sendmail")], log) for seen in batch]
    assert (log.counts.lines, log.counts.used) == (28, 28)
    assert len(found) == 28
    assert all(seen.name_status is NameStatus.VERIFIED and seen.outcome is MailOutcome.REJECTED for seen in found)
    assert sum(seen.names[0].endswith(b".vs.sakura.ne.jp") for seen in found) == 27


def test_the_incident_of_the_bulk_mailer() -> None:
    log = MailLog()
    found = [seen for batch in observations([str(DATA / "maillog.postfix")], log) for seen in batch]
    lines = (DATA / "maillog.postfix").read_bytes().splitlines()
    assert sorted(seen.client_address for seen in found) == sorted(
        line.partition(b"unknown[")[2].partition(b"]")[0] for line in lines
    )
    assert {seen.outcome for seen in found} == {MailOutcome.DEFERRED}


def test_a_log_that_a_real_postfix_wrote() -> None:
    log = MailLog()
    found = [seen for batch in observations([str(DATA / "maillog.shapes")], log) for seen in batch]
    text = (DATA / "maillog.shapes").read_text()
    assert log.counts.unknown == 0
    # Each mail with a queue id once, and each mail that was refused before it had a queue id.
    queue_ids = set(re.findall(r"smtpd\[\d+\]: (\w+): client=", text))
    refused = [seen for seen in found if b"rejected" in seen.text or seen.by == b"milter"]
    assert len(queue_ids) < len(found) <= len(queue_ids) + len(refused)
    assert Counter(seen.outcome for seen in found)[MailOutcome.DELIVERED] >= 2
    to_all = next(seen for seen in found if len(seen.recipients) == 8)
    assert to_all.outcome is MailOutcome.DELIVERED
    spam = next(
        seen for seen in found if seen.sender == b"spammer@sender.example" and seen.outcome is MailOutcome.REJECTED
    )
    assert (spam.by, spam.text) == (b"milter", b"5.7.1 Spam message rejected")


def test_a_rotated_set_is_one_log(tmp_path: Path) -> None:
    lines = [line.removesuffix("#") for line in accepted_mail("B25692109E3", "mail.b.example[192.0.2.1]", SENT)]
    older, newer = tmp_path / "mail.log.1.gz", tmp_path / "mail.log"
    older.write_bytes(gzip.compress("\n".join(lines[:4]).encode() + b"\n"))
    newer.write_text("\n".join(lines[4:]) + "\n")
    found = [seen for batch in observations([str(older), str(newer)], MailLog()) for seen in batch]
    assert [(seen.client_address, seen.outcome) for seen in found] == [(b"192.0.2.1", MailOutcome.DELIVERED)]


@pytest.mark.parametrize("text", ["Dear Sir,\nthis is no log.\n", "a,b,c\n1,2,3\n", '{"x": 1}\n', "rules: []\n"])
def test_a_file_that_is_not_a_mail_log_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    good, bad = tmp_path / "maillog", tmp_path / "letter"
    good.write_text(REFUSED + "\n")
    bad.write_text(text)
    with pytest.raises(LogError, match=r"letter: not a mail log: none of its \d lines") as caught:
        list(observations([str(good), str(bad)], MailLog()))
    assert "\n" not in str(caught.value)


def test_an_empty_file_has_no_mail(tmp_path: Path) -> None:
    (tmp_path / "maillog").touch()
    assert [seen for batch in observations([str(tmp_path / "maillog")], MailLog()) for seen in batch] == []


# --- Bounds ---------------------------------------------------------------------------------------------------------


def test_open_mails_are_bounded_and_the_oldest_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postfix_reader, "MAX_OPEN", 3)
    lines = [postfix("smtpd", f"B2569210{number}: client=a[192.0.2.{number}]") for number in range(5)]
    log = MailLog()
    log.start_file(WRITTEN)
    assert [seen.client_address for seen in log.feed([line.encode() for line in lines])] == [b"192.0.2.0", b"192.0.2.1"]
    assert len(log.finish()) == 3


def test_open_mails_of_sendmail_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sendmail_reader, "MAX_OPEN", 3)
    lines = [sendmail(FROM.format(1, f"[192.0.2.{number}]").replace("2153vN", f"{number}153vN")) for number in range(5)]
    assert len(read(*lines)) == 5


def test_remembered_sessions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postfix_reader, "MAX_SESSIONS", 3)
    log = MailLog()
    log.start_file(WRITTEN)
    lines = [REFUSED.replace("[9105]", f"[{pid}]").encode() for pid in range(5)]
    assert len(log.feed(lines)) == 2
    assert len(log.finish()) == 3


def test_mails_that_may_get_more_decisions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maillog, "_MAX_PENDING", 3)
    log = MailLog()
    log.start_file(WRITTEN)
    assert len(log.feed([decision(instance=str(number)).encode() for number in range(5)])) == 2
    assert len(log.finish()) == 3


def test_recipients_of_one_mail_are_bounded() -> None:
    deliveries = [SENT.replace("c@d", f"c{number}@d") for number in range(MAX_RECIPIENTS + 5)]
    seen = only_mail(*accepted_mail("B25692109E3", "mail.b.example[192.0.2.1]", *deliveries))
    assert len(seen.recipients) == MAX_RECIPIENTS


@pytest.mark.slow
def test_junk_that_looks_like_writers_does_not_fill_memory() -> None:
    log = MailLog()
    log.start_file(WRITTEN)
    for number in range(20_000):
        log.feed([f"Aug  3 12:15:23 host{number} postfix{number}/smtpd[1]: connect from a[192.0.2.1]".encode()])
    assert len(log._readers) <= maillog._MAX_WRITERS
    assert len(log._writers) <= maillog._MAX_WRITERS
    assert len(log._postfix) == maillog._MAX_HOSTS
    assert log.counts.left_out.hosts == 20_000 - maillog._MAX_HOSTS
    assert log.counts.left_out.is_incomplete


def test_a_line_beyond_the_maximum_length_is_not_searched() -> None:
    log = MailLog()
    log.start_file(WRITTEN)
    log.feed([REFUSED.encode(), REFUSED.encode() + b"; from=<x> to=<y> proto=z helo=<" * 10_000])
    assert (log.counts.used, log.counts.unknown) == (1, 1)


# --- Any bytes ------------------------------------------------------------------------------------------------------

KNOWN_LINES = [
    line.encode()
    for line in (
        *accepted_mail("B25692109E3", "mail.b.example[192.0.2.1]", SENT, DEFERRED),
        REFUSED,
        REFUSED.replace("NOQUEUE", "B25692109E3"),
        sendmail(FROM.format(1, "host.b.example [192.0.2.1]")),
        sendmail(TO.format("2.0.0", "Sent")),
        decision(instance="1.2"),
        journal(REFUSED),
    )
]


@st.composite
def damaged_lines(draw: st.DrawFn) -> bytes:
    """A known line of which a part is missing, doubled or replaced."""
    line = draw(st.sampled_from(KNOWN_LINES))
    start = draw(st.integers(0, len(line)))
    end = draw(st.integers(start, len(line)))
    middle = draw(st.sampled_from([b"", line[start:end] * 2, draw(st.binary(max_size=20))]))
    return line[:start] + middle + line[end:]


@settings(max_examples=examples(300))
@given(st.lists(st.one_of(st.binary(max_size=200), damaged_lines(), st.sampled_from(KNOWN_LINES)), max_size=30))
def test_no_line_raises_and_every_line_is_counted(lines: list[bytes]) -> None:
    log = MailLog()
    log.start_file(WRITTEN)
    found = log.feed(lines) + log.finish()
    counts = log.counts
    assert counts.lines == counts.used + counts.other + counts.unknown == len(lines)
    assert len(found) <= counts.used + counts.repeated
    for seen in found:
        assert isinstance(seen.outcome, MailOutcome)
        assert (seen.name_status is NameStatus.VERIFIED) <= bool(seen.names)
