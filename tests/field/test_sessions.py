"""SMTP sessions with a real Postfix: several recipients, delivered mail, and hostile text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.field.postfix import Client
from tests.field.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.field.conftest import StartPolicyd
    from tests.field.policyd import Policyd
    from tests.field.postfix import Postfix

RULES = Path(__file__).with_name("rules.yaml").read_text()


@pytest.fixture(scope="module")
def policyd(start_policyd: StartPolicyd) -> Iterator[Policyd]:
    with start_policyd(RULES) as running:
        yield running


def test_each_recipient_of_a_message_is_a_request_with_the_same_answer(postfix: Postfix, policyd: Policyd) -> None:
    recipients = [f"several{number}@field.example" for number in range(5)]
    with Client(postfix.port["inet"], "160.16.140.78") as client:
        replies = client.offer("several@sender.example", *recipients)
    decisions = policyd.decisions(len(recipients), sender="several@sender.example")
    assert {reply.code for reply in replies} == {250}
    assert [each["recipient"] for each in decisions] == recipients
    assert len({each["instance"] for each in decisions}) == 1
    assert {(each["action"], each["rule"], each["reverse_dns"]) for each in decisions} == {
        ("DUNNO", "known-vps-customer", "verified")
    }
    assert len({each["id"] for each in decisions}) == len(recipients)


def test_a_dead_zone_delays_a_message_once_and_not_for_each_recipient(postfix: Postfix, policyd: Policyd) -> None:
    recipients = [f"waiting{number}@field.example" for number in range(4)]
    with Client(postfix.port["inet"], "192.0.2.69") as client:
        replies = client.offer("waiting@sender.example", *recipients)
    decisions = policyd.decisions(len(recipients), sender="waiting@sender.example")
    assert {reply.code for reply in replies} == {450}
    assert {each["dns_error"] for each in decisions} == {"timeout"}
    assert ["dns_ms" in each for each in decisions] == [True, False, False, False]


def test_the_decision_on_a_delivered_mail_has_the_queue_id_of_the_mail_log(postfix: Postfix, policyd: Policyd) -> None:
    with Client(postfix.port["states"], "192.0.2.25", "mail.sender.example", helo_name="mail.there.example") as client:
        client.offer("delivered@there.example", "delivered@field.example")
    (line,) = postfix.log_lines("to=<delivered@field.example>")
    queue_id = line.split(": ")[1]
    assert "status=sent" in line
    (end,) = policyd.decisions(sender="delivered@there.example", protocol_state="END-OF-MESSAGE")
    assert end["queue_id"] == queue_id


HOSTILE = {
    "a blank": '"a b"',
    "a quote": '"a\\"b"',
    "an at sign": '"a@b"',
    "an equals sign": "a=b",
    "placeholders": "%s%n{id}",
    "a control character": '"\x1b[31m"',
    "a long text": "x" * 900,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_sender_reaches_the_log_in_one_printable_line(text: str, postfix: Postfix, policyd: Policyd) -> None:
    assert_one_printable_line(policyd, postfix, helo_name="client.example", sender=f"{text}@odd.example")


@pytest.mark.parametrize("text", [*HOSTILE.values(), "\xff\xfe"], ids=[*HOSTILE.keys(), "invalid UTF-8"])
def test_a_helo_name_reaches_the_log_in_one_printable_line(text: str, postfix: Postfix, policyd: Policyd) -> None:
    assert_one_printable_line(policyd, postfix, helo_name=text, sender="a@odd.example")


def assert_one_printable_line(policyd: Policyd, postfix: Postfix, helo_name: str, sender: str) -> None:
    before = len(policyd.decision_log.read_bytes())
    with Client(postfix.port["unix"], "192.0.2.25", "mail.sender.example") as client:
        replies = [
            client.command("HELO", helo_name),
            client.command("MAIL", f"FROM:<{sender}>"),
            client.command("RCPT", "TO:<odd@field.example>"),
        ]
    assert [reply.code for reply in replies] == [250, 250, 250]
    until("a whole line", lambda: policyd.decision_log.read_bytes()[before:].endswith(b"\n") or None)
    logged = policyd.decision_log.read_bytes()[before:]
    assert all(0x20 <= byte < 0x7F for byte in logged[:-1])
