"""Clients of many kinds through a real Postfix: their replies, and their lines in the decision log."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.field.postfix import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.field.conftest import StartPolicyd
    from tests.field.policyd import Policyd
    from tests.field.postfix import Postfix

RULES = Path(__file__).with_name("rules.yaml").read_text()

# dns.timeout of the tests in seconds, and the seconds that a busy machine may add.
DNS_TIMEOUT = 3.0
MARGIN = 10.0

CUSTOMER = "tk2-406-44074.vs.sakura.ne.jp"


class Case(NamedTuple):
    """A client as Postfix knows it, the reply to its recipient, and what the decision log must say."""

    client_address: str
    code: int
    text: str
    logged: dict[str, Any]
    client_name: str | None = None
    reverse_client_name: str | None = None
    sender: str = "someone@sender.example"


CASES = {
    "a verified name exempts": Case(
        "160.16.140.78",
        250,
        "Ok",
        {"action": "DUNNO", "rule": "known-vps-customer", "hostname": CUSTOMER, "reverse_dns": "verified"},
    ),
    "a name that Postfix verified exempts": Case(
        "192.0.2.1",
        250,
        "Ok",
        {"action": "DUNNO", "rule": "known-vps-customer", "hostname": CUSTOMER, "reverse_dns": "verified"},
        client_name=CUSTOMER,
        reverse_client_name=CUSTOMER,
    ),
    "a client that only claims the same name is rejected by that name": Case(
        "192.0.2.66",
        554,
        "5.7.1 .* Access denied",
        {"action": "REJECT", "rule": "sakura-vps", "claimed": [CUSTOMER], "reverse_dns": "mismatch"},
        reverse_client_name=CUSTOMER,
    ),
    "a client that claims the same name over IPv6 is rejected": Case(
        "2001:db8::66",
        554,
        "5.7.1 .* Access denied",
        {"action": "REJECT", "rule": "sakura-vps", "claimed": [CUSTOMER], "reverse_dns": "mismatch"},
        reverse_client_name=CUSTOMER,
    ),
    "a name that only Postfix gives is not a claimed name": Case(
        "192.0.2.25",
        250,
        "Ok",
        {"action": "DUNNO", "hostname": "mail.sender.example", "reverse_dns": "verified"},
        reverse_client_name="made-up.vs.sakura.ne.jp",
    ),
    "a name that verifies over IPv6": Case(
        "2001:db8::25",
        250,
        "Ok",
        {"action": "DUNNO", "hostname": "mail6.sender.example", "reverse_dns": "verified"},
    ),
    "a silent forward zone defers what a claimed name would reject": Case(
        "192.0.2.68",
        450,
        "4.7.1 .* No mail from dynamic addresses",
        {
            "action": "DEFER",
            "rule": "dynamic",
            "downgraded": True,
            "claimed": ["host.dynamic.silent.example"],
            "reverse_dns": "error",
            "dns_error": "timeout",
        },
        reverse_client_name="host.dynamic.silent.example",
    ),
    "a forward zone with SERVFAIL defers what a claimed name would reject": Case(
        "192.0.2.70",
        450,
        "4.7.1 .* No mail from dynamic addresses",
        {"action": "DEFER", "rule": "dynamic", "downgraded": True, "dns_error": "servfail"},
        reverse_client_name="host.dynamic.refused.example",
    ),
    "a silent zone of a name that might exempt defers what the address would reject": Case(
        "180.222.51.99",
        450,
        r"4.7.1 .* Mail from 180\.222\.51\.99 is not accepted here \(bulk-networks {id}\)",
        {"action": "DEFER", "rule": "bulk-networks", "downgraded": True, "dns_error": "timeout"},
    ),
    "a silent reverse zone is an error, not a missing name": Case(
        "203.0.113.7",
        450,
        "4.4.3 .* cannot look up your address",
        {"action": "DEFER", "rule": "dns-trouble", "reverse_dns": "error", "dns_error": "timeout"},
    ),
    "a reverse zone with SERVFAIL is an error, not a missing name": Case(
        "198.51.100.7",
        450,
        "4.4.3 .* cannot look up your address",
        {"action": "DEFER", "rule": "dns-trouble", "reverse_dns": "error", "dns_error": "servfail"},
    ),
    "a name that Postfix gives is a claimed name if policyd's own lookup failed": Case(
        "198.51.100.8",
        450,
        "4.7.1 .* Access denied",
        {"action": "DEFER", "rule": "sakura-vps", "downgraded": True, "dns_error": "servfail"},
        reverse_client_name="made-up.vs.sakura.ne.jp",
    ),
    "no reverse DNS": Case(
        "192.0.2.99",
        450,
        r"4.7.25 .* cannot find your hostname, \[192\.0\.2\.99\]",
        {"action": "DEFER", "rule": "no-reverse-dns", "reverse_dns": "missing"},
    ),
    "no reverse DNS of an IPv6 address": Case(
        "2001:db8::99",
        450,
        r"4.7.25 .* cannot find your hostname, \[2001:db8::99\]",
        {"action": "DEFER", "rule": "no-reverse-dns", "reverse_dns": "missing"},
    ),
    "a name that does not resolve back": Case(
        "192.0.2.67",
        250,
        "Ok",
        {"action": "DUNNO", "claimed": ["lost.sender.example"], "reverse_dns": "mismatch"},
        reverse_client_name="lost.sender.example",
    ),
    "an address in a listed network": Case(
        "27.100.31.255",
        554,
        r"5.7.1 .* Mail from 27\.100\.31\.255 is not accepted here \(bulk-networks {id}\)",
        {"action": "REJECT", "rule": "bulk-networks"},
    ),
    "an IPv6 address in a listed network": Case(
        "2001:db8:bad::7",
        554,
        r"5.7.1 .* Mail from 2001:db8:bad::7 is not accepted here \(bulk-networks {id}\)",
        {"action": "REJECT", "rule": "bulk-networks"},
    ),
    "an address excepted from a listed network": Case(
        "180.222.51.25",
        450,
        "4.7.25 .* cannot find your hostname",
        {"action": "DEFER", "rule": "no-reverse-dns"},
    ),
    "an observed rule is logged but decides nothing": Case(
        "192.0.2.25",
        250,
        "Ok",
        {"action": "DUNNO", "observed": ["numbered-bounces"], "sender": "rainbow+err0a7@sender.example"},
        sender="rainbow+err0a7@sender.example",
    ),
    "the null sender": Case("192.0.2.25", 250, "Ok", {"action": "DUNNO", "sender": ""}, sender=""),
}


@pytest.fixture(scope="module")
def policyd(start_policyd: StartPolicyd) -> Iterator[Policyd]:
    with start_policyd(RULES) as running:
        yield running


# Each client is tried over TCP, and then over the unix socket with its DNS answers in the cache.
@pytest.mark.parametrize("service", ["inet", "unix"], indirect=True)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_client_gets_the_right_answer_and_log_line(
    case: Case, service: str, postfix: Postfix, policyd: Policyd
) -> None:
    recipient = f"{list(CASES.values()).index(case)}.{service}@field.example"
    began = time.monotonic()
    with Client(postfix.port[service], case.client_address, case.client_name, case.reverse_client_name) as client:
        (reply,) = client.offer(case.sender, recipient)
    took = time.monotonic() - began
    (decision,) = policyd.decisions(recipient=recipient)
    assert reply.code == case.code
    assert re.search(case.text.replace("{id}", decision["id"]), reply.text)
    assert case.logged.items() <= decision.items()
    assert took < DNS_TIMEOUT + MARGIN
