"""`policyd doctor` runs the self-tests of DNS lists."""

from __future__ import annotations

from policyd.config.settings import Dns, parse_dns_server
from policyd.tools.doctor.dns_lists import check_dns_lists
from tests.dns.lists import dns_list
from tests.name_server import NXDOMAIN, Reply, ScriptedServer


def test_a_list_that_fails_its_self_test_is_a_finding() -> None:
    script = {
        "2.0.0.127.good.test": Reply(["@ 60 A 127.0.0.2"]),
        "2.0.0.127.bad.test": Reply(["@ 60 A 127.255.255.255"]),
    }
    with ScriptedServer(script, otherwise=Reply(rcode=NXDOMAIN)) as server:
        dns = Dns(servers=(parse_dns_server(server.address),))
        lists = [dns_list("good"), dns_list("bad"), dns_list("untested", self_test="")]
        findings, right = check_dns_lists(lists, dns)
    assert right == ("DNS list good (good.test) passes its self-test",)
    (finding,) = findings
    assert finding.where == "DNS list bad (bad.test)"
    assert "127.255.255.255: too many questions" in finding.what


def test_nothing_is_asked_without_lists() -> None:
    assert check_dns_lists([], Dns()) == ((), ())
