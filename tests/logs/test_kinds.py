# ruff: noqa: E501 - log lines as programs write them
"""The kinds of logs that were once misread, each in several forms, with the expected mails."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from policyd.logs import maillog, postfix
from policyd.logs.maillog import MailLog
from policyd.logs.transaction import MailOutcome, NameStatus, Observation

if TYPE_CHECKING:
    from policyd.logs.counts import LineCounts

D, P, R, F, U = (
    MailOutcome.DELIVERED,
    MailOutcome.PASSED,
    MailOutcome.REJECTED,
    MailOutcome.DEFERRED,
    MailOutcome.UNKNOWN,
)


def read(text: str) -> tuple[LineCounts, list[Observation]]:
    """Returns the counts of a log's lines, and its mails in the order in which they end."""
    log = MailLog()
    log.start_file(1_798_761_600.0)
    found = log.feed([line.strip().encode() for line in text.strip().split("\n")]) + log.finish()
    return log.counts, found


def mails(text: str) -> list[Observation]:
    """Returns the mails of a log, sorted by client address and outcome."""
    _, found = read(text)
    return sorted(found, key=lambda mail: (mail.client_address, mail.outcome))


class Case(NamedTuple):
    """A log, and its mails: client address and outcome of each."""

    name: str
    text: str
    found: list[tuple[str, MailOutcome]]


# A filter after the queue takes mail AAA and returns it as mail BBB. `early` and `late` are the lines of BBB's delivery,
# before or after the filter's answer.
ROUND_TRIP = """
    Jan  5 10:00:00 mx postfix/smtpd[1]: AAA1111111: client=mail.example.org[198.51.100.7]
    Jan  5 10:00:00 mx postfix/qmgr[9]: AAA1111111: from=<a@example.org>, size=900, nrcpt=1 (queue active)
    Jan  5 10:00:01 mx postfix/smtpd[2]: BBB2222222: client=localhost[127.0.0.1]{xforward}
    Jan  5 10:00:01 mx postfix/qmgr[9]: BBB2222222: from=<a@example.org>, size=1200, nrcpt=1 (queue active)
    {early}Jan  5 10:00:01 mx postfix/smtp[4]: AAA1111111: to=<b@example.net>, relay=127.0.0.1[127.0.0.1]:10024, delay=1, delays=0/0/0/1, dsn=2.0.0, status=sent (250 2.0.0 from MTA(smtp:[127.0.0.1]:10025): 250 2.0.0 Ok: queued as BBB2222222)
    Jan  5 10:00:01 mx postfix/qmgr[9]: AAA1111111: removed
    {late}"""
END = """Jan  5 10:00:02 mx postfix/{agent}[5]: BBB2222222: to=<b@example.net>, relay={relay}, delay=1, dsn={dsn}, status={status}
    Jan  5 10:00:02 mx postfix/qmgr[9]: BBB2222222: removed
    """
DELIVERED = END.format(agent="local", relay="local", dsn="2.0.0", status="sent (delivered to mailbox)")
BOUNCED = END.format(agent="local", relay="local", dsn="5.1.1", status='bounced (unknown user: "b")')
DEFERRED = END.format(agent="lmtp", relay="none", dsn="4.4.1", status="deferred (connect to dovecot: refused)")

# The same, but the filter's answer is logged before the mail that it returns.
ANSWER_FIRST = """
    Jan  5 10:00:00 mx postfix/smtpd[1]: AAA1111111: client=mail.example.org[198.51.100.7]
    Jan  5 10:00:01 mx postfix/lmtp[4]: AAA1111111: to=<b@example.net>, relay=127.0.0.1[127.0.0.1], delay=1, status=sent (250 2.6.0 Ok, id=04682-01-3, from MTA: 250 Ok: queued as BBB2222222)
    {removed}Jan  5 10:00:01 mx postfix/smtpd[2]: BBB2222222: client=localhost[127.0.0.1]
    """
REMOVED = "Jan  5 10:00:01 mx postfix/qmgr[9]: AAA1111111: removed\n    "

# smtpd gives a mail to a filter before the queue (smtpd_proxy_filter), which may hand it back as mail BBB.
PROXIED = """
    Jan  5 10:00:01 mx postfix/smtpd[101]: NOQUEUE: client=out1.provider.example[192.0.2.1]
    {handed_back}Jan  5 10:00:02 mx postfix/smtpd[101]: {answer}; from=<a@example.com> to=<b@example.net> proto=ESMTP helo=<out1.provider.example>
    {late}"""
HANDED_BACK = """Jan  5 10:00:01 mx postfix/smtpd[120]: BBB2222222: client=localhost[127.0.0.1]{xforward}
    Jan  5 10:00:01 mx postfix/qmgr[9]: BBB2222222: from=<a@example.com>, size=1200, nrcpt=1 (queue active)
    """
ACCEPT = "proxy-accept: END-OF-MESSAGE: 250 2.0.0 Ok"
ACCEPT_AS = f"{ACCEPT}: queued as BBB2222222"


def proxied(answer: str, handed_back: str = "", late: str = "") -> str:
    return PROXIED.format(answer=answer, handed_back=handed_back, late=late)


PROXIED_AND_REFUSED = "".join(
    f"""
    Jan  5 10:00:01 mx postfix/smtpd[10{n}]: NOQUEUE: client=out{n}.provider.example[192.0.2.{n}]
    Jan  5 10:00:02 mx postfix/smtpd[10{n}]: proxy-accept: END-OF-MESSAGE: 250 2.0.0 Ok; from=<a@example.com> to=<b@example.net> proto=ESMTP helo=<out{n}.provider.example>
    Jan  5 10:00:30 mx postfix/smtpd[11{n}]: NOQUEUE: reject: EHLO from bad.example.org[203.0.113.8]: 504 5.5.2 <User>: Helo command rejected: need fully-qualified hostname; proto=SMTP helo=<User>"""
    for n in (1, 2, 3)
)

SCREENED = "Jan  5 10:00:0{n} mx postfix/postscreen[11]: NOQUEUE: reject: {state} from [198.51.100.{client}]:{port}: {text}; from=<a@example.com>, to=<{to}@example.net>, proto=ESMTP, helo=<h1.example.org>"

# REJECT: a recipient refused before the mail has a queue id. GOOD: an accepted mail of the same client. REJECT_IN_MAIL: a
# refused recipient of the mail in GOOD.
REJECT = "Jan  5 10:00:01 mx postfix/smtpd[11]: NOQUEUE: reject: RCPT from mail.example.com[192.0.2.1]: 550 5.1.1 <typo@example.net>: Recipient address rejected: User unknown; from=<{sender}> to=<typo@example.net> proto=ESMTP helo=<mail.example.com>"
GOOD = """
    Jan  5 10:00:01 mx postfix/smtpd[11]: AAA1111111: client=mail.example.com[192.0.2.1]
    Jan  5 10:00:01 mx postfix/qmgr[9]: AAA1111111: from=<a@example.com>, size=900, nrcpt=1 (queue active)
    Jan  5 10:00:02 mx postfix/local[6]: AAA1111111: to=<joe@example.net>, relay=local, delay=1, dsn=2.0.0, status=sent (ok)"""
REJECT_IN_MAIL = REJECT.format(sender="a@example.com").replace("NOQUEUE", "AAA1111111").replace("typo@", "more@")

# A mail with one delivery.
SENT = "Jan  5 10:00:00 mx postfix/smtpd[1]: AAA1111111: client=bad.example.org[198.51.100.7]\n    Jan  5 10:00:01 mx postfix/{agent}[4]: AAA1111111: to=<b@example.net>, relay={relay}, delay=1, delays=0/0/0/1, dsn=2.7.0, status=sent ({text})"

KINDS = [
    # smtpd_proxy_filter
    Case(
        "proxied mails and refusals",
        PROXIED_AND_REFUSED,
        [(f"192.0.2.{n}", P) for n in (1, 2, 3)] + [("203.0.113.8", R)] * 3,
    ),
    Case(
        "a filter before the queue refuses",
        proxied("proxy-reject: END-OF-MESSAGE: 554 5.7.0 Reject, id=1-02 - spam"),
        [("192.0.2.1", R)],
    ),
    Case(
        "a filter before the queue defers",
        proxied("NOQUEUE: proxy-reject: END-OF-MESSAGE: 451 4.3.0 Error: queue file write error"),
        [("192.0.2.1", F)],
    ),
    Case(
        "a filter before the queue refuses and does not say why",
        proxied("proxy-reject: END-OF-MESSAGE: "),
        [("192.0.2.1", R)],
    ),
    Case(
        "a filter before the queue discards the mail",
        proxied(f"{ACCEPT}, discarded, id=1-02 - spam"),
        [("192.0.2.1", R)],
    ),
    Case(
        "the reply names a mail that is handed back",
        proxied(ACCEPT_AS, HANDED_BACK.format(xforward=""), DELIVERED),
        [("192.0.2.1", D)],
    ),
    Case(
        "the reply names a mail that is handed back with its client, and bounces",
        proxied(ACCEPT_AS, HANDED_BACK.format(xforward=", orig_client=out1.provider.example[192.0.2.1]"), BOUNCED),
        [("192.0.2.1", R)],
    ),
    Case(
        "a mail that is handed back is recognized by its client",
        proxied(ACCEPT, HANDED_BACK.format(xforward=", orig_client=out1.provider.example[192.0.2.1]"), DELIVERED),
        [("192.0.2.1", D)],
    ),
    Case(
        "a mail that is handed back is recognized by its sender",
        proxied(ACCEPT, HANDED_BACK.format(xforward=""), DELIVERED),
        [("192.0.2.1", D)],
    ),
    Case(
        "a mail that is handed back has ended before the answer",
        proxied(ACCEPT, HANDED_BACK.format(xforward="") + DELIVERED),
        [("192.0.2.1", D)],
    ),
    Case(
        "the client leaves before its data",
        "Jan  5 10:00:01 mx postfix/smtpd[101]: NOQUEUE: client=out1.provider.example[192.0.2.1]\nJan  5 10:00:09 mx postfix/smtpd[101]: disconnect from out1.provider.example[192.0.2.1]",
        [("192.0.2.1", U)],
    ),
    # Logs of other MTAs; the wrappings of Postfix's log are in test_wrappings.py.
    Case(
        "Solaris, sendmail refuses",
        "Jan  5 10:01:00 mx sendmail[203]: [ID 801593 mail.notice] 605A10bb000203: ruleset=check_rcpt, arg1=<b@example.net>, relay=bad.example.org [198.51.100.7], reject=550 5.7.1 <b@example.net>... Relaying denied",
        [("198.51.100.7", R)],
    ),
    Case(
        "Solaris, sendmail delivers",
        """Jan  5 10:01:00 mx sendmail[203]: [ID 801593 mail.info] 605A10bb000203: from=<a@b>, size=9, class=0, nrcpts=1, msgid=<1@b>, proto=ESMTP, daemon=MTA-v4, relay=m.example.org [198.51.100.7]
        Jan  5 10:01:01 mx sendmail[204]: [ID 801593 mail.info] 605A10bb000203: to=<c@d>, delay=00:00:01, xdelay=00:00:01, mailer=local, pri=1, relay=local, dsn=2.0.0, stat=Sent""",
        [("198.51.100.7", D)],
    ),
    # Sent, but not delivered
    Case(
        "a filter discards the mail",
        SENT.format(agent="smtp", relay="127.0.0.1[127.0.0.1]:10024", text="250 2.7.0 Ok, discarded, id=1-02 - spam"),
        [("198.51.100.7", R)],
    ),
    Case(
        "a filter answers that it has bounced the mail",
        SENT.format(agent="smtp", relay="127.0.0.1[127.0.0.1]:10024", text="250 2.5.0 Ok, id=1-02, BOUNCE"),
        [("198.51.100.7", R)],
    ),
    Case("discard(8)", SENT.format(agent="discard", relay="none", text="bad.example.org"), [("198.51.100.7", R)]),
    Case(
        "delivery to /dev/null",
        SENT.format(agent="local", relay="local", text="delivered to file: /dev/null"),
        [("198.51.100.7", R)],
    ),
    Case(
        "a relay that does not discard",
        SENT.format(agent="smtp", relay="127.0.0.1[127.0.0.1]:10024", text="250 2.0.0 Ok: queued as CCC3333333"),
        [("198.51.100.7", D)],
    ),
    Case(
        "a filter hands the mail back", ROUND_TRIP.format(xforward="", early="", late=DELIVERED), [("198.51.100.7", D)]
    ),
    Case(
        "a filter hands the mail back, and it bounces",
        ROUND_TRIP.format(xforward="", early="", late=BOUNCED),
        [("198.51.100.7", R)],
    ),
    Case(
        "a filter hands the mail back, and it is deferred",
        ROUND_TRIP.format(xforward="", early="", late=DEFERRED),
        [("198.51.100.7", F)],
    ),
    Case(
        "a filter answers after the delivery",
        ROUND_TRIP.format(xforward="", early=DELIVERED, late=""),
        [("198.51.100.7", D)],
    ),
    Case(
        "a filter answers after the bounce",
        ROUND_TRIP.format(xforward="", early=BOUNCED, late=""),
        [("198.51.100.7", R)],
    ),
    Case(
        "a filter's answer is logged before the mail that it hands back",
        ANSWER_FIRST.format(removed="") + BOUNCED,
        [("198.51.100.7", R)],
    ),
    # The removal counts the first mail as delivered, so its bounce comes too late. The second is not a separate mail either.
    Case(
        "a filter's answer and the removal are logged before the mail that it hands back",
        ANSWER_FIRST.format(removed=REMOVED) + BOUNCED,
        [("198.51.100.7", D)],
    ),
    Case(
        "a forwarded mail of this host",
        "Jan  5 10:00:01 mx postfix/smtpd[2]: BBB2222222: client=localhost[127.0.0.1]\n    Jan  5 10:00:03 mx postfix/local[5]: BBB2222222: to=<c@d>, relay=local, delay=0, status=sent (forwarded as DEF4444444)\n    Jan  5 10:00:03 mx postfix/qmgr[9]: BBB2222222: removed",
        [("127.0.0.1", D)],
    ),
    Case(
        "a filter that speaks XFORWARD",
        ROUND_TRIP.format(
            xforward=", orig_queue_id=AAA1111111, orig_client=mail.example.org[198.51.100.7]", early="", late=BOUNCED
        ),
        [("198.51.100.7", R)],
    ),
    Case(
        "a filter of another instance",
        ROUND_TRIP.format(xforward="", early="", late=BOUNCED)
        .replace("postfix/smtpd[1]", "postfix-in/smtpd[1]")
        .replace("postfix/qmgr[9]: AAA", "postfix-in/qmgr[7]: AAA")
        .replace("postfix/smtp[4]", "postfix-in/smtp[4]"),
        [("198.51.100.7", R)],
    ),
    Case(
        "a filter in another container",
        ROUND_TRIP.format(xforward="", early="", late=BOUNCED)
        .replace("localhost[127.0.0.1]", "amavis[172.18.0.5]")
        .replace("relay=127.0.0.1[127.0.0.1]", "relay=amavis[172.18.0.5]"),
        [("198.51.100.7", R)],
    ),
    Case(
        "the log ends before the second mail does",
        ROUND_TRIP.format(xforward="", early="", late=""),
        [("198.51.100.7", D)],
    ),
    Case(
        "a mail from this host itself is counted",
        "Jan  5 10:00:01 mx postfix/smtpd[2]: BBB2222222: client=localhost[127.0.0.1]\n" + DELIVERED,
        [("127.0.0.1", D)],
    ),
    Case(
        "an alias forwards, and the other server refuses",
        SENT.format(agent="local", relay="local", text="forwarded as DEF4444444")
        + "\n    Jan  5 10:00:03 mx postfix/smtp[5]: DEF4444444: to=<c@elsewhere.example>, orig_to=<b@example.net>, relay=mx[203.0.113.1]:25, delay=1, dsn=5.7.1, status=bounced (host mx[203.0.113.1] said: 554 5.7.1 spam)\n    Jan  5 10:00:03 mx postfix/qmgr[9]: DEF4444444: removed",
        [("198.51.100.7", R)],
    ),
    Case(
        "soft_bounce",
        SENT.format(agent="smtp", relay="mx[203.0.113.1]:25", text="x").replace("status=sent", "status=SOFTBOUNCE"),
        [("198.51.100.7", F)],
    ),
    Case(
        "sendmail before and behind a filter",
        """Jan  5 10:00:00 mx sm-mta[11]: 605A00aa000201: from=<a@example.org>, size=900, class=0, nrcpts=1, msgid=<1@b>, proto=ESMTP, daemon=MTA, relay=mail.example.org [198.51.100.7]
        Jan  5 10:00:01 mx sm-mta[13]: 605A00bb000202: from=<a@example.org>, size=900, class=0, nrcpts=1, msgid=<1@b>, proto=ESMTP, daemon=MTA, relay=localhost [127.0.0.1]
        Jan  5 10:00:01 mx sm-mta[12]: 605A00aa000201: to=<b@example.net>, delay=00:00:01, xdelay=00:00:01, mailer=esmtp, pri=1, relay=[127.0.0.1] [127.0.0.1], dsn=2.0.0, stat=Sent (605A00bb000202 Message accepted for delivery)
        Jan  5 10:00:02 mx sm-mta[14]: 605A00bb000202: to=<b@example.net>, delay=00:00:01, xdelay=00:00:01, mailer=local, pri=1, relay=local, dsn=5.1.1, stat=User unknown""",
        [("198.51.100.7", R)],
    ),
    Case(
        "sendmail submits to itself",
        """Mar  3 13:27:58 desk sendmail[4693]: o23BRwlA004693: from=doron, size=84, class=0, nrcpts=1, msgid=<1@desk>, relay=doron@localhost
        Mar  3 13:27:58 desk sm-mta[4694]: o23BRwtQ004694: from=<doron@desk>, size=84, class=0, nrcpts=1, proto=ESMTP, daemon=MTA-v4, relay=localhost [127.0.0.1]
        Mar  3 13:27:58 desk sendmail[4693]: o23BRwlA004693: to=<doron@desk>, ctladdr=doron (1000/1000), delay=00:00:00, xdelay=00:00:00, mailer=relay, pri=30084, relay=[127.0.0.1] [127.0.0.1], dsn=2.0.0, stat=Sent (o23BRwtQ004694 Message accepted for delivery)
        Mar  3 13:27:59 desk sm-mta[4695]: o23BRwtQ004694: to=<doron@desk>, delay=00:00:01, xdelay=00:00:01, mailer=local, pri=1, relay=local, dsn=2.0.0, stat=Sent""",
        [("127.0.0.1", D)],
    ),
    Case(
        "aligned blanks from a copied log",
        "Jan  5 10:00:01 mx postfix/smtpd[1]:  AAA1111111: client=a[192.0.2.1]\n Jan  5 10:00:01 mx postfix/local[22]:   AAA1111111: to=<b@c>, relay=local, delay=1, status=sent (ok)",
        [("192.0.2.1", D)],
    ),
    # sendmail under another tag
    *(
        Case(
            f"sendmail as {tag}",
            f"Jan  5 10:01:00 mx {tag}: starting daemon\n Jan  5 10:01:00 mx {tag}[203]: 605A10bb000203: ruleset=check_rcpt, arg1=<b@example.net>, relay=bad.example.org [198.51.100.7], reject=550 5.7.1 <b@example.net>... Relaying denied",
            [("198.51.100.7", R)],
        )
        for tag in ("sm-acceptingconnections", "mx1.inbound", "sendmail-rx", "sm/in")
    ),
    Case(
        "Postfix under a unit's name",
        "Jan  5 10:00:00 mx postfix.service[104]: started\n Jan  5 10:00:01 mx postfix.service[104]: NOQUEUE: reject: RCPT from a[198.51.100.7]: 554 5.7.1 no; from=<a@b> to=<c@d> proto=ESMTP helo=<e>",
        [("198.51.100.7", R)],
    ),
    # Refusals without their client= line
    Case(
        "a milter refuses, and the log begins in the middle of the mail",
        "Jan  5 10:00:00 mx postfix/cleanup[301]: 5BC2DE3FA4: milter-reject: END-OF-MESSAGE from bad.example.org[198.51.100.7]: 5.7.1 Spam message rejected; from=<s@example.org> to=<b@example.net> proto=ESMTP helo=<bad.example.org>",
        [("198.51.100.7", R)],
    ),
    Case(
        "header_checks, in a log filtered by grep",
        "Jan  5 10:00:00 mx postfix/cleanup[301]: 5BC2DE3FA4: reject: header Subject: from b[ob] to you from bad.example.org[198.51.100.7]; from=<s@example.org> to=<b@example.net> proto=ESMTP helo=<h>: 5.7.1 no",
        [("198.51.100.7", R)],
    ),
    Case(
        "body_checks, a client without a name",
        "Jan  5 10:00:00 mx postfix/cleanup[301]: 5BC2DE3FA4: discard: body pills from unknown[198.51.100.7]; from=<s@example.org> to=<b@example.net> proto=ESMTP helo=<h>: gone",
        [("198.51.100.7", R)],
    ),
    Case(
        "a refused recipient of an accepted mail, in a log filtered by grep",
        REJECT_IN_MAIL,
        [("192.0.2.1", R)],
    ),
    Case(
        "a mail of this host has no client",
        "Jan  5 10:00:00 mx postfix/cleanup[301]: 5BC2DE3FA4: reject: header Subject: x from local; from=<s@example.org> to=<b@example.net>: 5.7.1 no",
        [],
    ),
    # postscreen
    Case(
        "one client of postscreen",
        SCREENED.format(
            n=1,
            state="RCPT",
            client=7,
            port=1111,
            text="550 5.7.1 Service unavailable; client [198.51.100.7] blocked using bl.example",
            to="x",
        ),
        [("198.51.100.7", R)],
    ),
    Case(
        "clients of one postscreen process, mixed",
        "\n".join(
            SCREENED.format(n=n, state="RCPT", client=client, port=1111, text="550 5.7.1 no", to=to)
            for n, client, to in ((1, 7, "x"), (2, 8, "x"), (3, 7, "y"), (4, 8, "y"))
        ),
        [("198.51.100.7", R), ("198.51.100.8", R)],
    ),
    Case(
        "one client of postscreen, two connections",
        "\n".join(
            SCREENED.format(
                n=n, state="RCPT", client=7, port=1110 + n, text="450 4.3.2 Service currently unavailable", to=f"x{n}"
            )
            for n in (1, 2)
        ),
        [("198.51.100.7", F)] * 2,
    ),
    Case(
        "a port of postscreen's client that is used again",
        "\n".join(
            (
                SCREENED.format(
                    n=1, state="RCPT", client=7, port=1111, text="450 4.3.2 Service currently unavailable", to="x"
                ),
                "Jan  5 10:00:01 mx postfix/postscreen[11]: DISCONNECT [198.51.100.7]:1111",
                SCREENED.format(
                    n=2, state="RCPT", client=7, port=1111, text="450 4.3.2 Service currently unavailable", to="y"
                ),
            )
        ),
        [("198.51.100.7", F)] * 2,
    ),
    Case(
        "postscreen turns connections away",
        "Jan  5 10:00:01 mx postfix/postscreen[11]: NOQUEUE: reject: CONNECT from [198.51.100.7]:1111: too many connections\n Jan  5 10:00:01 mx postfix/postscreen[11]: NOQUEUE: reject: CONNECT from [198.51.100.7]:1112: all server ports busy",
        [],
    ),
    # Several recipients of one mail
    Case("a bad recipient before the good one", REJECT.format(sender="a@example.com") + GOOD, [("192.0.2.1", D)]),
    Case(
        "bad recipients before and after the good one",
        REJECT.format(sender="a@example.com")
        + "\n"
        + REJECT.format(sender="a@example.com").replace("typo@", "two@")
        + GOOD
        + "\n"
        + REJECT_IN_MAIL,
        [("192.0.2.1", D)],
    ),
    Case("a bad recipient after the good one", GOOD + "\n" + REJECT_IN_MAIL, [("192.0.2.1", D)]),
    Case(
        "a bad recipient of another sender before the good one",
        REJECT.format(sender="other@example.com") + GOOD,
        [("192.0.2.1", D), ("192.0.2.1", R)],
    ),
    Case(
        "a bad recipient, and then data refused",
        REJECT.format(sender="a@example.com")
        + GOOD.partition("Jan  5 10:00:02")[0]
        + "\n Jan  5 10:00:02 mx postfix/cleanup[6]: AAA1111111: milter-reject: END-OF-MESSAGE from mail.example.com[192.0.2.1]: 5.7.1 spam; from=<a@example.com> to=<joe@example.net> proto=ESMTP helo=<mail.example.com>",
        [("192.0.2.1", R)],
    ),
    Case(
        "a bad recipient before one that a filter takes",
        REJECT.format(sender="a@example.com")
        + "\n Jan  5 10:00:01 mx postfix/smtpd[11]: NOQUEUE: client=mail.example.com[192.0.2.1]\n Jan  5 10:00:02 mx postfix/smtpd[11]: "
        + ACCEPT
        + "; from=<a@example.com> to=<joe@example.net> proto=ESMTP helo=<mail.example.com>",
        [("192.0.2.1", P)],
    ),
    # Repetitions
    Case(
        "rsyslog repeats",
        REJECT.format(sender="a@b")
        + "\n Jan  5 10:00:09 mx postfix/smtpd[11]: message repeated 3 times: [ "
        + REJECT.format(sender="a@b").partition("]: ")[2]
        + "]",
        [("192.0.2.1", R)] * 4,
    ),
    Case(
        "syslogd repeats",
        REJECT.format(sender="a@b") + "\n Jan  5 10:00:09 mx last message repeated 3 times",
        [("192.0.2.1", R)] * 4,
    ),
    Case(
        "syslog-ng repeats",
        REJECT.format(sender="a@b")
        + "\n Jan  5 10:00:09 mx Last message 'NOQUEUE: reject: RCPT' repeated 2 times, suppressed by syslog-ng on mx",
        [("192.0.2.1", R)] * 3,
    ),
    Case(
        "a repeated connection without a mail",
        "Jan  5 10:00:01 mx postfix/smtpd[11]: connect from a[192.0.2.1]\n Jan  5 10:00:09 mx postfix/smtpd[11]: message repeated 3 times: [ connect from a[192.0.2.1]]",
        [],
    ),
]


@pytest.mark.parametrize("case", KINDS, ids=[case.name for case in KINDS])
def test_a_log_gives_the_expected_mails(case: Case) -> None:
    assert [(mail.client_address.decode(), mail.outcome) for mail in mails(case.text)] == sorted(case.found)


def test_a_mail_that_a_filter_handed_back_keeps_its_client_and_envelope() -> None:
    (mail,) = mails(ROUND_TRIP.format(xforward="", early="", late=BOUNCED))
    assert (mail.names, mail.name_status, mail.sender) == (
        (b"mail.example.org",),
        NameStatus.VERIFIED,
        b"a@example.org",
    )
    assert (mail.recipients, mail.by, mail.text) == ((b"b@example.net",), b"local", b'unknown user: "b"')


def test_a_mail_refused_by_a_filter_before_the_queue_has_its_client_and_envelope() -> None:
    (mail,) = mails(proxied("proxy-reject: END-OF-MESSAGE: 554 5.7.0 Reject"))
    assert (mail.names, mail.sender, mail.recipients) == (
        (b"out1.provider.example",),
        b"a@example.com",
        (b"b@example.net",),
    )
    assert (mail.helo_name, mail.by, mail.text) == (b"out1.provider.example", b"proxy", b"554 5.7.0 Reject")


def test_a_refusal_without_its_client_line_still_has_client_and_envelope() -> None:
    case = next(case for case in KINDS if case.name == "header_checks, in a log filtered by grep")
    (mail,) = mails(case.text)
    assert (mail.names, mail.name_status) == ((b"bad.example.org",), NameStatus.VERIFIED)
    assert (mail.sender, mail.recipients, mail.helo_name) == (b"s@example.org", (b"b@example.net",), b"h")
    assert mail.text == b"5.7.1 no"


def test_a_recipient_refused_before_the_first_accepted_recipient_belongs_to_the_same_mail() -> None:
    (mail,) = mails(REJECT.format(sender="a@example.com") + GOOD)
    assert (mail.recipients, mail.helo_name, mail.sender) == (
        (b"joe@example.net",),
        b"mail.example.com",
        b"a@example.com",
    )


def test_sendmail_logs_refusals_of_recipients_before_its_from_line() -> None:
    (mail,) = mails(
        """Jan  5 10:00:01 mx sm-mta[2]: 55HIbcGI002794: <bad@example.net>... User unknown
        Jan  5 10:00:02 mx sm-mta[2]: 55HIbcGI002794: from=<a@b.example>, size=0, class=0, nrcpts=0, proto=ESMTP, daemon=MTA, relay=m.b.example [192.0.2.1]"""
    )
    assert (mail.outcome, mail.recipients, mail.by) == (R, (b"bad@example.net",), b"sendmail")
    assert mail.text == b"550 5.1.1 <bad@example.net>... User unknown"


def test_postscreen_does_not_look_up_names() -> None:
    (mail,) = mails(SCREENED.format(n=1, state="RCPT", client=7, port=1111, text="550 5.7.1 no", to="x"))
    assert (mail.names, mail.name_status, mail.by) == ((), NameStatus.NOT_LOOKED_UP, b"postscreen")


# --- Users of sendmail ------------------------------------------------------------------------------------------------

FROM = "Jan  5 10:00:02 mx sm-mta[{pid}]: 605A00aa000201: from=<joe@example.net>, size=900, class=0, nrcpts=1, msgid=<1@example.net>, proto={proto}, daemon=MSA, relay={relay}"


@pytest.mark.parametrize(
    ("logged_in", "sent", "user"),
    [
        (
            "sm-mta[201]: AUTH=server, relay=[198.51.100.7], authid=joe, mech=PLAIN, bits=0",
            ("201", "ESMTPSA", "[198.51.100.7]"),
            b"joe",
        ),
        (
            "sm-mta[201]: AUTH=server, relay=dyn.example.org [198.51.100.7] (may be forged), authid=joe@example.net, mech=LOGIN, bits=0",
            ("201", "ESMTPA", "dyn.example.org [198.51.100.7] (may be forged)"),
            b"joe@example.net",
        ),
        (
            "sm-mta[201]: NOQUEUE: AUTH=server, relay=[IPv6:2001:db8::7], authid=joe, mech=PLAIN, bits=0",
            ("201", "ESMTPSA", "[IPv6:2001:db8::7]"),
            b"joe",
        ),
        (
            "sm-mta: AUTH=server, relay=[198.51.100.7], authid=joe, mech=PLAIN, bits=0",
            ("201", "ESMTPSA", "[198.51.100.7]"),
            b"unknown",
        ),
        (
            "sm-mta[201]: STARTTLS=server, relay=[198.51.100.7], version=TLSv1.3",
            ("201", "ESMTPSA", "[198.51.100.7]"),
            b"unknown",
        ),
        (
            "sm-mta[201]: AUTH=server, relay=[198.51.100.7], authid=joe, mech=PLAIN, bits=0",
            ("201", "ESMTP", "[198.51.100.9]"),
            b"",
        ),
        (
            "sm-mta[201]: AUTH=server, relay=[198.51.100.7], authid=joe, mech=PLAIN, bits=0",
            ("202", "ESMTPS", "[198.51.100.7]"),
            b"",
        ),
    ],
    ids=[
        "a user",
        "a user with a claimed name",
        "a user over IPv6",
        "process ids in some lines",
        "no line of the login",
        "another client",
        "another process",
    ],
)
def test_users_of_sendmail_are_known(logged_in: str, sent: tuple[str, str, str], user: bytes) -> None:
    pid, proto, relay = sent
    (mail,) = mails(f"Jan  5 10:00:01 mx {logged_in}\n" + FROM.format(pid=pid, proto=proto, relay=relay))
    assert mail.sasl_username == user


# --- Many hosts, and limits -----------------------------------------------------------------------------------------


def test_a_central_log_of_hundreds_of_hosts_is_counted_in_full() -> None:
    counts, found = read(
        "\n".join(
            f"Jan  5 10:00:01 host{n} postfix/smtpd[1]: AAA1111111: client=m[192.0.2.1]\n"
            f"Jan  5 10:00:01 host{n} postfix/local[1]: AAA1111111: to=<b@c>, relay=local, dsn=2.0.0, status=sent (ok)"
            for n in range(800)
        )
    )
    assert [mail.outcome for mail in found] == [D] * 800
    assert counts.left_out.notes() == []


@pytest.mark.parametrize(
    ("limit", "text", "note"),
    [
        (
            (maillog, "_MAX_HOSTS"),
            "\n".join(f"Jan  5 10:00:01 h{n} postfix/smtpd[1]: AAA: client=m[192.0.2.1]" for n in range(5)),
            "2 lines were left out: the log has more hosts",
        ),
        (
            (maillog, "_MAX_HOSTS"),
            "\n".join(
                f"Jan  5 10:00:01 h{n} sendmail[1]: ruleset=check_relay, arg1=a, arg2=192.0.2.1, relay=a [192.0.2.1], reject=550 no"
                for n in range(5)
            ),
            "2 lines were left out: the log has more hosts",
        ),
        (
            (postfix, "MAX_OPEN"),
            "\n".join(f"Jan  5 10:00:01 h{n % 2} postfix/smtpd[1]: AAA{n}: client=m[192.0.2.1]" for n in range(6)),
            "3 mails were given up before their end was found in the log",
        ),
        (
            (postfix, "MAX_SESSIONS"),
            "\n".join(REJECT.format(sender="a@b").replace("smtpd[11]", f"smtpd[{n}]") for n in range(5)),
            "2 sessions were given up",
        ),
        (
            (postfix, "MAX_RETURNED"),
            "\n".join(f"Jan  5 10:00:01 h postfix/smtpd[1]: AAA{n}: client=localhost[127.0.0.1]" for n in range(5)),
            "2 mails from this host itself may be counted twice",
        ),
        (
            (maillog, "_MAX_REPEATS"),
            REJECT.format(sender="a@b") + "\nJan  5 10:00:09 mx last message repeated 5 times",
            "2 repetitions of one line were left out",
        ),
        ((maillog, "_MAX_LINE"), "{" + "x" * 70_000 + "}", "1 lines longer than any mail server writes"),
    ],
    ids=["hosts", "hosts with sendmail", "open mails", "sessions", "returns", "repetitions", "long lines"],
)
def test_a_reached_limit_is_reported(
    monkeypatch: pytest.MonkeyPatch, limit: tuple[object, str], text: str, note: str
) -> None:
    monkeypatch.setattr(*limit, 3)
    counts, _ = read(text)
    (reported,) = counts.left_out.notes()
    assert reported.startswith(note)


def test_a_limit_that_is_not_reached_is_not_mentioned() -> None:
    for case in KINDS:
        counts, _ = read(case.text)
        assert counts.left_out.notes() == []


def test_lines_without_text_from_journalctl_are_counted() -> None:
    counts, _ = read(
        '{"__REALTIME_TIMESTAMP": "1785726923000000", "SYSLOG_IDENTIFIER": "postfix/smtpd", "MESSAGE": null}\n'
        "Jan  5 10:00:01 mx postfix/smtpd[11]: [88B blob data]"
    )
    assert (counts.hidden, counts.unknown) == (2, 0)


def test_a_program_is_ignored_after_many_messages_in_no_known_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maillog._UnknownWriter.__init__, "__defaults__", (3, None))
    sendmail = "Jan  5 10:01:00 mx other[203]: 605A10bb000203: ruleset=check_rcpt, arg1=<b@c>, relay=a [198.51.100.7], reject=550 no"
    noise = "\nJan  5 10:01:00 mx other[203]: hello"
    assert len(mails(noise * 2 + "\n" + sendmail)) == 1
    assert len(mails(noise * 3 + "\n" + sendmail)) == 0
