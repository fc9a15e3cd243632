"""The two incidents, client by client, against the shipped rules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.field.incidents import bulk_attempts, sakura_attempts
from tests.field.postfix import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.field.conftest import StartPolicyd
    from tests.field.incidents import Attempt
    from tests.field.policyd import Policyd
    from tests.field.postfix import Postfix

SHIPPED_RULES = Path(__file__).parents[2] / "config" / "rules.yaml"

CUSTOMER = "tk2-406-44074.vs.sakura.ne.jp"


@pytest.fixture(scope="module")
def policyd(start_policyd: StartPolicyd, resolver: str) -> Iterator[Policyd]:
    # Every server answers here, so only a stalled machine could exceed this timeout.
    with start_policyd(SHIPPED_RULES.read_text(), dns={"servers": [resolver], "timeout": "8s"}) as running:
        yield running


def expected_code(attempt: Attempt) -> int:
    """The reply code that the facts of the incidents require. Clients without a name (the bulk mailer), and clients
    under the suffix except one customer, are rejected; all others are accepted.
    """
    name = attempt.client_name
    return 250 if name == CUSTOMER or (name is not None and not name.endswith(".vs.sakura.ne.jp")) else 554


@pytest.mark.parametrize("verified_by", ["policyd", "Postfix"])
@pytest.mark.parametrize("attempts", [sakura_attempts(), bulk_attempts()], ids=["sakura", "bulk"])
def test_every_client_of_the_incident_gets_its_answer(
    attempts: list[Attempt], service: str, verified_by: str, postfix: Postfix, policyd: Policyd
) -> None:
    wrong = []
    for number, attempt in enumerate(attempts):
        name = attempt.client_name if verified_by == "Postfix" else None
        recipient = f"{number}.{service}.{verified_by}.{attempt.client_address}@field.example"
        with Client(postfix.port[service], attempt.client_address, name, helo_name=attempt.helo_name) as client:
            (reply,) = client.offer(attempt.sender, recipient)
        (decision,) = policyd.decisions(recipient=recipient)
        expected = expected_code(attempt)
        got = (reply.code, decision["action"], decision["client_address"])
        if got != (expected, "DUNNO" if expected == 250 else "REJECT", attempt.client_address):
            wrong.append((attempt, reply, decision))
    assert not wrong, "\n".join(map(str, wrong))


def test_the_logs_of_the_incidents_have_all_their_clients() -> None:
    codes = [expected_code(attempt) for attempt in sakura_attempts() + bulk_attempts()]
    assert (codes.count(250), codes.count(554)) == (2, 33)
