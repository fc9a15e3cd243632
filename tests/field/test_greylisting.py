"""Greylisting with real mail: a Postfix that queues and retries deferred mail, and a Postfix that receives."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.field.postfix import Client
from tests.field.sender import Sender
from tests.name_server import SERVFAIL, Reply, ScriptedServer, reverse
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.field.conftest import StartPolicyd
    from tests.field.policyd import Policyd
    from tests.field.postfix import Postfix

WAIT = 10.0  # seconds; long enough for a try from every address of the pool

RULES = f"""
greylist: {{wait: {WAIT:.0f}s, retry_within: 1h, remember: 1d}}
rules:
  - {{name: grey, match: {{protocol_state: RCPT}}, action: 'GREYLIST 4.7.1 come again ({{id}})'}}
"""

POOL = [f"127.10.{number}.25" for number in range(1, 6)]
FLAKY = {"127.30.0.1": "mail.flaky.example", "127.30.0.2": "mail2.flaky.example"}


def zone() -> dict[str, Reply]:
    """PTR and A records of the addresses in POOL and FLAKY."""
    names = {address: f"mail{number}.pool.example" for number, address in enumerate(POOL)} | FLAKY
    records = {f"{reverse(address)} PTR": Reply([f"@ 60 PTR {name}"]) for address, name in names.items()}
    return records | {f"{name} A": Reply([f"@ 60 A {address}"]) for address, name in names.items()}


@pytest.fixture(scope="module")
def name_server() -> Iterator[ScriptedServer]:
    with ScriptedServer(zone(), otherwise=Reply(rcode=3)) as running:
        yield running


@pytest.fixture(scope="module")
def policyd(start_policyd: StartPolicyd, name_server: ScriptedServer) -> Iterator[Policyd]:
    dns = {"servers": [name_server.address], "timeout": "2s", "trust_postfix": False}
    with start_policyd(RULES, dns=dns) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def sender(open_folder: Path, postfix: Postfix) -> Iterator[Sender]:
    require("postqueue", root=True)
    root = open_folder / "sender"
    root.mkdir()
    with Sender(root, postfix.port["inet"]) as running:
        yield running


def tries(policyd: Policyd, recipient: str) -> list[dict[str, Any]]:
    return [decision for decision in policyd.decisions(0) if decision.get("recipient") == recipient]


def wait_for_try(sender: Sender, policyd: Policyd, recipient: str, address: str) -> None:
    deadline = time.monotonic() + 30
    while not any(decision["client_address"] == address for decision in tries(policyd, recipient)):
        assert time.monotonic() < deadline, f"no try from {address}"
        time.sleep(0.3)
        sender.flush()


def wait_for_delivery(sender: Sender, policyd: Policyd, recipient: str) -> list[dict[str, Any]]:
    """Waits until the mail has arrived; returns all tries."""
    deadline = time.monotonic() + 60
    while f"to=<{recipient}>" not in sent_lines(sender):
        assert time.monotonic() < deadline, sender.maillog.read_text()
        time.sleep(1)
        sender.flush()  # a queue manager that finds a mail "still being delivered" may retry only after minutes
    return tries(policyd, recipient)


def sent_lines(sender: Sender) -> str:
    return "\n".join(line for line in sender.maillog.read_text().splitlines() if "status=sent" in line)


def seconds_waited(found: list[dict[str, Any]]) -> float:
    """Seconds from the first try to the last."""
    first, last = (datetime.datetime.fromisoformat(decision["time"]).timestamp() for decision in (found[0], found[-1]))
    return last - first


def greylist_words(found: list[dict[str, Any]]) -> list[str]:
    return [decision["greylist"] for decision in found]


def check_one_wait(found: list[dict[str, Any]]) -> None:
    """The first try is new; tries before the end of the wait are early; the first try after the wait passes."""
    assert greylist_words(found) == ["new", *["early"] * (len(found) - 2), "passed"]
    assert [decision["action"] for decision in found[:-1]] == ["DEFER_IF_PERMIT"] * (len(found) - 1)
    assert found[-1]["action"] == "DUNNO"
    # The sender tries once a second; a busy machine may take much longer.
    assert WAIT - 0.1 < seconds_waited(found) < WAIT + 20


def test_a_pool_of_five_addresses_under_one_domain_waits_once_for_one_mail(sender: Sender, policyd: Policyd) -> None:
    recipient = "pool@field.example"
    sender.send_from(POOL[0])
    sender.submit("anna@pool.example", recipient)
    for address in POOL:
        if address != POOL[0]:
            sender.send_from(address)
        wait_for_try(sender, policyd, recipient, address)
    found = wait_for_delivery(sender, policyd, recipient)
    assert {decision["client_address"] for decision in found} == set(POOL)
    assert {decision["reverse_dns"] for decision in found} == {"verified"}
    check_one_wait(found)


def test_a_nameless_client_waits_and_its_network_does_not_wait_again(sender: Sender, policyd: Policyd) -> None:
    sender.send_from("127.20.0.9")
    sender.submit("bert@nameless.example", "first@field.example")
    found = wait_for_delivery(sender, policyd, "first@field.example")
    assert {decision["reverse_dns"] for decision in found} == {"missing"}
    check_one_wait(found)
    sender.send_from("127.20.0.77")
    sender.submit("other@nameless.example", "second@field.example")
    (known,) = wait_for_delivery(sender, policyd, "second@field.example")
    assert (known["greylist"], known["action"]) == ("known", "DUNNO")


def test_a_dns_failure_between_two_tries_adds_no_wait(
    sender: Sender, policyd: Policyd, name_server: ScriptedServer
) -> None:
    recipient = "flaky@field.example"
    first, second = FLAKY
    sender.send_from(first)
    sender.submit("carl@flaky.example", recipient)
    wait_for_try(sender, policyd, recipient, first)
    name_server.script[f"{reverse(second)} PTR"] = Reply(rcode=SERVFAIL)
    sender.send_from(second)
    found = wait_for_delivery(sender, policyd, recipient)
    assert {decision["client_address"]: decision["reverse_dns"] for decision in found} == {
        first: "verified",
        second: "error",
    }
    check_one_wait(found)


def test_replay_counts_mails_that_are_never_retried(postfix: Postfix, policyd: Policyd) -> None:
    with Client(postfix.port["inet"], "198.51.100.99", helo_name="spam.example") as client:
        (reply,) = client.offer("spam@never.example", "victim@field.example")
    assert reply.code == 450
    time.sleep(0.5)  # postlogd(8) lags
    lines = [line for line in postfix.maillog.read_text().splitlines() if "never.example" in line]
    log = policyd.rules.with_name("never.log")
    log.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "policyd", "replay", "--rules", str(policyd.rules), str(log)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert "greylisting: 0 delivered mails would have waited; 1 mail never came back" in output
    found = json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True, timeout=60).stdout)
    assert found["greylisting"]["never_came_back"] == 1
