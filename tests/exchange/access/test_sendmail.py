from __future__ import annotations

import pytest

from tests.exchange.answers import Mail, answer, import_text, rules_of

TABLE = """\
# a comment
Connect:192.0.2	REJECT
Connect:192.0.2.5	OK
Connect:IPv6:2001:db8	ERROR:5.7.1:"550 no v6"
Connect:b.example	ERROR:4.7.1:450 later
Connect:mail.b.example	SKIP
From:spam@c.example	REJECT
From:c.example	ERROR:"550 no spam"
From:good@c.example	OK
From:junk@	550 We do not take junk
To:nobody@	REJECT
To:friend.example	OK
cyber.example	REJECT
10	REJECT
"""


@pytest.mark.parametrize(
    ("mail", "wanted"),
    [
        (Mail("192.0.2.9"), "REJECT"),
        (Mail("192.0.2.5"), "DUNNO"),
        (Mail("2001:db8::1"), "REJECT 5.7.1 no v6"),
        (Mail(name="x.b.example"), "DEFER 4.7.1 later"),
        (Mail(name="mail.b.example"), "DUNNO"),
        (Mail(sender="spam@c.example"), "REJECT"),
        (Mail(sender="other@sub.c.example"), "REJECT no spam"),
        (Mail(sender="good@c.example"), "DUNNO"),
        (Mail(sender="junk@d.example"), "REJECT We do not take junk"),
        (Mail(recipient="nobody@here.example"), "REJECT"),
        (Mail(recipient="nobody@friend.example"), "DUNNO"),
        (Mail(sender="a@cyber.example"), "REJECT"),
        (Mail(name="a.cyber.example"), "REJECT"),
        (Mail("10.1.2.3"), "REJECT"),
        (Mail("198.51.100.1", sender="<>"), "DUNNO"),
        # Every lookup is made, even if another has let the client through.
        (Mail("192.0.2.5", sender="spam@c.example"), "REJECT"),
        (Mail("192.0.2.9", sender="good@c.example"), "REJECT"),
        (Mail("192.0.2.9", recipient="nobody@friend.example"), "REJECT"),
    ],
)
def test_each_lookup_is_a_separate_table(mail: Mail, wanted: str) -> None:
    assert answer(rules_of("sendmail-access", TABLE), mail) == wanted


def test_a_key_with_a_tag_takes_precedence_over_the_same_key_without_a_tag() -> None:
    rules = rules_of("sendmail-access", "cyber.example REJECT\nConnect:cyber.example OK\n192.0.2 REJECT\n")
    assert answer(rules, Mail(name="a.cyber.example")) == "DUNNO"
    assert answer(rules, Mail(sender="a@cyber.example")) == "REJECT"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Connect:192.0.2.1 DISCARD", "DISCARD is not supported"),
        ("TLS_Clt:mail.example.com ENCR:112", "is not supported"),
        ("GreetPause:192.0.2.1 5000", "is not supported"),
        ("Spam:user@ FRIEND", "is not supported"),
        ("ClientRate:192.0.2.1 REJECT", "it does not decide who may send mail"),
        ("Connect:192.0.2.0/24 REJECT", "network with a prefix length never matches"),
        ("Connect:a@b.example REJECT", "never uses a mail address"),
        ("From:ok@elsewhere.example OK", "there is nothing to exempt from"),
        ("justakey", "not a line of an access_db"),
    ],
)
def test_an_unsupported_line_is_reported_and_the_others_are_kept(line: str, reason: str) -> None:
    result = import_text("sendmail-access", f"Connect:192.0.3 REJECT\n{line}\n")
    assert [(loss.line.number, reason in loss.reason) for loss in result.report.losses] == [(2, True)]
    assert [rule.match for rule in result.rules] == [{"cidr": ("192.0.3.0/24",)}]


def test_relay_and_ok_become_dunno_with_a_note() -> None:
    result = import_text("sendmail-access", "Connect:192.0.2 RELAY\nConnect:192.0.3 OK\nConnect:192.0 REJECT\n")
    assert [note.reason.split()[0] for note in result.report.notes] == ["RELAY", "OK"]
    assert [rule.verdict.action for rule in result.rules] == ["DUNNO", "REJECT"]


def test_an_ipv6_key_without_a_tag_is_an_address() -> None:
    rules = rules_of("sendmail-access", "IPv6:2001:db8:1 REJECT\n2001:db8:2 REJECT\n")
    assert [answer(rules, Mail(f"2001:db8:{net}::1")) for net in (1, 2, 3)] == ["REJECT", "REJECT", "DUNNO"]


@pytest.mark.parametrize(
    ("action", "wanted"),
    [
        ("ERROR:550:no blank", "REJECT 5.7.1 550:no blank"),
        ("ERROR:450:later", "REJECT 5.7.1 450:later"),
        ('ERROR:4.7.1:"450 later"', "DEFER 4.7.1 later"),
        ("ERROR:550 no", "REJECT no"),
        ("450 later", "DEFER later"),
    ],
)
def test_three_digits_are_a_reply_code_if_a_blank_follows_them(action: str, wanted: str) -> None:
    rules = rules_of("sendmail-access", f"Connect:192.0.2 {action}\n")
    assert answer(rules, Mail("192.0.2.1")) == wanted


def test_skip_becomes_dunno_with_a_note_about_the_feature_that_it_needs() -> None:
    result = import_text("sendmail-access", "Connect:mail.b.example SKIP\nConnect:b.example REJECT\n")
    assert [rule.verdict.action for rule in result.rules] == ["DUNNO", "REJECT"]
    assert "unless FEATURE(`access_db') has `skip'" in result.report.notes[0].reason
