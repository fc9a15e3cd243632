"""The stages of a mail, from HELO to the end of the message, at which a real Postfix asks, each with a rule for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.field.postfix import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.field.conftest import StartPolicyd
    from tests.field.policyd import Policyd
    from tests.field.postfix import Postfix

RULES = """\
rules:
  - name: turned-away-at-once
    match: {cidr: 198.51.100.1, protocol_state: [CONNECT, XCLIENT]}
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
    with start_policyd(RULES) as running:
        yield running


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
            ["MAIL FROM:<end@elsewhere.example>", "RCPT TO:<a@field.example>", "DATA", "."],
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
    assert decision["protocol_state"] == "XCLIENT"  # a client without XCLIENT would be rejected at CONNECT
