"""SMTP sessions with a real Postfix: several recipients, every stage, and text that is not meant well."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.field.postfix import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.field.conftest import StartPolicyd
    from tests.field.policyd import Policyd
    from tests.field.postfix import Postfix

RULES = Path(__file__).with_name("rules.yaml").read_text()

ON_EVERY_STAGE = """
  - name: turned-away-at-once
    match: {cidr: 198.51.100.1, protocol_state: CONNECT}
    action: REJECT 5.7.1 Not you
  - name: helo
    match: {helo_name_suffix: helo.example, protocol_state: [HELO, EHLO]}
    action: REJECT 5.7.1 Not under this name
  - name: sender
    match: {sender_domain: sender.example, protocol_state: MAIL}
    action: REJECT 5.7.1 Not from there
  - name: recipient
    match: {recipient: refused@field.example}
    action: DEFER 4.2.1 Not to there
  - name: too-many
    match: {protocol_state: DATA, recipient_count: '2'}
    action: REJECT 5.5.3 One at a time
  - name: contents
    match: {protocol_state: END-OF-MESSAGE, sender: end@elsewhere.example}
    action: DEFER_IF_PERMIT 4.3.0 Not at the end
"""


@pytest.fixture(scope="module")
def policyd(start_policyd: StartPolicyd) -> Iterator[Policyd]:
    with start_policyd(RULES + ON_EVERY_STAGE) as running:
        yield running


def test_recipients_of_one_message_are_asked_for_one_by_one_and_answered_alike(
    postfix: Postfix, policyd: Policyd
) -> None:
    recipients = [f"several{number}@field.example" for number in range(5)]
    with Client(postfix.port["inet"], "160.16.140.78") as client:
        replies = client.offer("several@sender.example", *recipients)
    decisions = policyd.decisions(sender="several@sender.example")
    assert {reply.code for reply in replies} == {250}
    assert [each["recipient"] for each in decisions] == recipients
    assert len({each["instance"] for each in decisions}) == 1
    assert {(each["action"], each["rule"], each["reverse_dns"]) for each in decisions} == {
        ("DUNNO", "known-vps-customer", "verified")
    }
    assert len({each["id"] for each in decisions}) == len(recipients)


def test_a_dead_zone_costs_a_message_one_wait_and_not_one_for_each_recipient(
    postfix: Postfix, policyd: Policyd
) -> None:
    recipients = [f"waiting{number}@field.example" for number in range(4)]
    began = time.monotonic()
    with Client(postfix.port["inet"], "192.0.2.69") as client:
        replies = client.offer("waiting@sender.example", *recipients)
    took = time.monotonic() - began
    decisions = policyd.decisions(sender="waiting@sender.example")
    assert {reply.code for reply in replies} == {450}
    assert {each["dns_error"] for each in decisions} == {"timeout"}
    assert took < 2 * 2.0, "each recipient would wait for dns.timeout, 2 s"


def test_delivered_mail_has_its_decision_under_the_queue_id_of_the_mail_log(postfix: Postfix, policyd: Policyd) -> None:
    with Client(postfix.port["states"], "192.0.2.25", "mail.sender.example", helo_name="mail.there.example") as client:
        client.offer("delivered@there.example", "delivered@field.example")
    (line,) = postfix.log_lines("to=<delivered@field.example>")
    queue_id = line.split(": ")[1]
    assert "status=sent" in line
    (end,) = policyd.decisions(sender="delivered@there.example", protocol_state="END-OF-MESSAGE")
    assert end["queue_id"] == queue_id


@pytest.mark.parametrize(
    ("commands", "code", "text", "rule"),
    [
        (["EHLO mail.helo.example"], 554, "5.7.1", "helo"),
        (["HELO mail.helo.example"], 554, "5.7.1", "helo"),
        (["MAIL FROM:<a@sender.example>"], 554, "5.7.1", "sender"),
        (["MAIL FROM:<a@elsewhere.example>", "RCPT TO:<refused@field.example>"], 450, "4.2.1", "recipient"),
        (
            [
                "MAIL FROM:<a@elsewhere.example>",
                "RCPT TO:<a@field.example>",
                "RCPT TO:<b@field.example>",
                "DATA",
            ],
            554,
            "5.5.3",
            "too-many",
        ),
        (
            ["MAIL FROM:<end@elsewhere.example>", "RCPT TO:<a@field.example>", "DATA", "One line.\r\n."],
            450,
            "4.3.0",
            "contents",
        ),
    ],
)
def test_each_stage_of_a_session_has_its_answer(
    commands: list[str], code: int, text: str, rule: str, postfix: Postfix, policyd: Policyd
) -> None:
    with Client(postfix.port["states"], "192.0.2.25", "mail.sender.example") as client:
        replies = [client.command(*command.split(" ", 1)) for command in commands]
    assert (replies[-1].code, replies[-1].text[: len(text)]) == (code, text)
    assert all(reply.code in {250, 354} for reply in replies[:-1])
    assert policyd.decisions(rule=rule)


def test_a_client_can_be_turned_away_before_its_first_command(postfix: Postfix, policyd: Policyd) -> None:
    with Client(postfix.port["states"], "198.51.100.1") as client:
        assert (client.greeting.code, client.greeting.text[:5]) == (554, "5.7.1")
    (decision,) = policyd.decisions(rule="turned-away-at-once")
    assert decision["protocol_state"] == "CONNECT"


@pytest.mark.parametrize(
    "local_part",
    [
        pytest.param('"a b"', id="a blank"),
        pytest.param('"a\\"b"', id="a quote"),
        pytest.param('"a@b"', id="an at sign"),
        pytest.param("a=b", id="an equals sign"),
        pytest.param("%s%n{id}", id="placeholders"),
        pytest.param('"\x1b[31m"', id="a control character"),
        pytest.param("\xff\xfe", id="no UTF-8"),
        pytest.param("x" * 900, id="long"),
    ],
)
@pytest.mark.parametrize("where", ["sender", "helo_name"])
def test_what_a_client_says_reaches_the_log_in_one_printable_line(
    local_part: str, where: str, postfix: Postfix, policyd: Policyd
) -> None:
    before = len(policyd.decision_log.read_bytes())
    helo_name = local_part if where == "helo_name" else "client.example"
    with Client(postfix.port["inet"], "192.0.2.25", "mail.sender.example", helo_name="first.example") as client:
        client.command("HELO", helo_name)
        began = client.command("MAIL", f"FROM:<{local_part if where == 'sender' else 'a'}@odd.example>")
        reply = client.command("RCPT", "TO:<odd@field.example>")
    if began.code != 250:
        return  # Postfix itself would not have it
    assert reply.code == 250
    logged = policyd.decision_log.read_bytes()[before:]
    assert logged.count(b"\n") == 1
    assert logged.endswith(b"\n")
    assert all(0x20 <= byte < 0x7F for byte in logged[:-1])
