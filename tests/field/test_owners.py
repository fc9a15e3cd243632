"""Owners of addresses and generic names, with a real Postfix: the replies to clients, and their lines in the log."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.field.policyd import Policyd
from tests.field.postfix import Client
from tests.mmdb import write_systems
from tests.name_server import claim, host, start_unbound
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.field.conftest import StartPolicyd
    from tests.field.postfix import Postfix

# The database has 203.0.113.0/25 of the clients' network; the addresses above it have no record.
RULES = """
databases: {asn: asn.mmdb, country: asn.mmdb}
rules:
  - {name: the-tests-before-xclient, match: {cidr: 127.0.0.1}, action: DUNNO}
  - {name: hoster, match: {asn: 64497}, except: {cidr: 198.51.100.5}, action: 'REJECT 5.7.1 {asn} in {country} ({id})'}
  - {name: nation, match: {country: US, reverse_dns: missing}, action: 'DEFER 4.7.1 {country}'}
  - {name: generic, match: {hostname_generic: yes}, action: 'REJECT 5.7.1 {hostname}'}
"""
RECORDS = [
    *host("host-203-0-113-209.dyn.example", "203.0.113.209"),
    *claim("host-203-0-113-210.dyn.example", "203.0.113.210"),
    *host("mail.honest.example", "203.0.113.211"),
    *claim("host-203-0-113-209.dyn.example", "203.0.113.212"),
    *host("00000000000000d1.dyn.example", "2001:db8::d1"),
]


class Case(NamedTuple):
    """A client, the reply to its recipient, and what the decision log must say."""

    client_address: str
    code: int
    text: str
    logged: dict[str, Any]
    client_name: str | None = None


OTHER = {"asn": 64497, "asn_name": "Other Hosting", "country": "DE"}
CASES = {
    "blocked by its system": Case("198.51.100.1", 554, "5.7.1 .*AS64497 in DE", {"rule": "hoster", **OTHER}),
    "blocked by its system, IPv6": Case("2001:db9::25", 554, "5.7.1 .*AS64497 in DE", {"rule": "hoster", **OTHER}),
    "exempted by its network": Case("198.51.100.5", 250, "Ok", {"action": "DUNNO", **OTHER}),
    "deferred by its country and missing reverse DNS": Case(
        "203.0.113.5", 450, "4.7.1 .*US", {"rule": "nation", "country": "US"}
    ),
    "an address without a record": Case("203.0.113.213", 250, "Ok", {"action": "DUNNO"}),
    "a generic name, verified": Case(
        "203.0.113.209",
        554,
        "5.7.1 .*host-203-0-113-209.dyn.example",
        {"rule": "generic", "hostname": "host-203-0-113-209.dyn.example", "reverse_dns": "verified"},
    ),
    "a generic name that Postfix verified": Case(
        "203.0.113.214",
        554,
        "5.7.1",
        {"rule": "generic", "hostname": "214.113.0.203.pool.dyn.example", "reverse_dns": "verified"},
        client_name="214.113.0.203.pool.dyn.example",
    ),
    "a generic name, only claimed": Case(
        "203.0.113.210",
        554,
        "5.7.1",
        {"rule": "generic", "claimed": ["host-203-0-113-210.dyn.example"], "reverse_dns": "mismatch"},
    ),
    "a generic name in IPv6": Case("2001:db8::d1", 554, "5.7.1", {"rule": "generic", "asn": 64496, "country": "JP"}),
    "a name that is not generic": Case(
        "203.0.113.211", 250, "Ok", {"action": "DUNNO", "hostname": "mail.honest.example"}
    ),
    "the generic name of another client": Case(
        "203.0.113.212", 250, "Ok", {"action": "DUNNO", "claimed": ["host-203-0-113-209.dyn.example"]}
    ),
}


@pytest.fixture(scope="module")
def policyd(start_policyd: StartPolicyd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policyd]:
    require("unbound")
    with start_unbound(tmp_path_factory.mktemp("owners-unbound"), RECORDS, {}) as resolver:
        started = start_policyd(RULES, dns={"servers": [resolver], "timeout": "3s"})
        assert isinstance(started, Policyd)
        write_systems(started.rules.with_name("asn.mmdb"), "ipinfo_lite")
        with started as daemon:
            yield daemon


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_client_gets_the_answer_for_its_owner_and_name(
    case: Case, service: str, postfix: Postfix, policyd: Policyd
) -> None:
    recipient = f"{case.client_address.replace(':', '-')}.{service}@field.example"
    with Client(postfix.port[service], case.client_address, case.client_name) as client:
        (reply,) = client.offer("someone@sender.example", recipient)
    assert reply.code == case.code, reply
    assert re.search(case.text, reply.text), reply
    (logged,) = policyd.decisions(recipient=recipient)
    assert logged | case.logged == logged
    if case.logged == {"action": "DUNNO"}:
        assert not logged.keys() & {"asn", "asn_name", "country"}
