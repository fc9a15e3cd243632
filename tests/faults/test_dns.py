"""DNS failures: clients that need no DNS are not affected; others get a right answer within `dns.timeout`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from tests import naive
from tests.bench.processes import memory_mb
from tests.faults.conftest import LONG, SECONDS, Setting, cases_to_try, long_only
from tests.faults.world import HEALTHY, NAMELESS, DnsState, distorted, nothing_known, place_of, ptr_name, truth
from tests.name_server import MANY_NAMES, REFUSED, SERVFAIL, Reply, start_unbound
from tests.ports import free_port
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.field.policyd import Policyd

# `dns.timeout` in these tests, and the delay of a late answer that still arrives in time.
TIMEOUT, LATE = (5.0, 4.0) if LONG else (3.0, 1.5)


def in_ptr(distort: Callable[[Reply, str], Reply]) -> Callable[[Reply, str], Reply]:
    """Applies a distortion only to answers to questions for PTR records."""
    return lambda reply, question: distort(reply, question) if question.endswith(" PTR") else reply


def names_for(wrong_names: Callable[[str], list[str]], *, domain: str = "") -> DnsState:
    """PTR records with wrong names that have no address, for clients of one domain or for all."""

    def is_meant(name: str) -> bool:
        return name.endswith(domain)

    def distort(reply: Reply, question: str) -> Reply:
        if not question.endswith(" PTR") or not any(is_meant(each) for each in reply.records):
            return reply
        return Reply([f"@ 300 PTR {name}" for each in reply.records for name in wrong_names(each.split()[-1])])

    def known(address: str) -> naive.Dns:
        if not NAMELESS[place_of(address)].domain or not is_meant(ptr_name(address)):
            return truth(address)
        claimed = [name.lower() for name in wrong_names(ptr_name(address))]
        return naive.Dns("mismatch", claimed=tuple(claimed))

    return DnsState(distort, known)


def cname_loop(_: Reply, question: str) -> Reply:
    name = question.split(maxsplit=1)[0]
    return Reply([f"{name} 300 CNAME loop.{name}", f"loop.{name} 300 CNAME {name}"])


def record_of_another_name(_: Reply, question: str) -> Reply:
    return Reply([f"other.example 300 PTR {question.split(maxsplit=1)[0]}"])


@dataclass(frozen=True)
class Fault:
    """The distortion of answers, the expected reasons of errors in the decision log, and whether lookups may also time
    out.
    """

    state: DnsState
    reasons: frozenset[str] = frozenset()
    may_be_late: bool = False


def failing(reason: str, distort: Callable[[Reply, str], Reply]) -> Fault:
    """A fault under which every lookup fails for this reason."""
    return Fault(DnsState(distort, nothing_known), frozenset({reason}))


FAULTS = {
    "resolver silent": failing("timeout", distorted(silent=True)),
    f"answers after {LATE} s, timeout {TIMEOUT} s": Fault(DnsState(in_ptr(distorted(delay=LATE)), truth)),
    f"answers after {TIMEOUT + 1} s, timeout {TIMEOUT} s": failing("timeout", distorted(delay=TIMEOUT + 1)),
    "SERVFAIL": failing("servfail", distorted(rcode=SERVFAIL, records=())),
    "REFUSED": failing("refused", distorted(rcode=REFUSED, records=())),
    "wrong ids": failing("timeout", distorted(wrong_id=True)),
    "answers to another question": failing("timeout", distorted(other_question="other.example")),
    "records of another name": failing("malformed", record_of_another_name),
    "messages without their last bytes": failing("malformed", distorted(cut=3)),
    "junk": failing("malformed", distorted(junk=b"\0\1\2\3")),
    "a CNAME loop": failing("malformed", cname_loop),
    "control characters in PTR names": Fault(names_for(lambda name: [rf"\027[2J\010x.{name}"])),
    # One such answer occupies c-ares and its bindings for 50 ms, or for 100 ms while other programs use the same core.
    # policyd spends at most a fifth of its time on such answers, so some lookups time out.
    "3,800 PTR records": Fault(names_for(lambda _: MANY_NAMES, domain="customers.vps.example"), may_be_late=True),
    "a TTL of 0": Fault(
        DnsState(lambda r, _: replace(r, records=[each.replace(" 300 ", " 0 ") for each in r.records]), truth)
    ),
}


@pytest.fixture(scope="module")
def one_setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Setting, Policyd]]:
    """One daemon for all faults."""
    setting = Setting(tmp_path_factory.mktemp("dns"))
    with setting.dns, setting.daemon(dns=dns_settings(setting)) as policyd:
        yield setting, policyd


TRIED_IN_SHORT_RUNS = "resolver silent", "SERVFAIL", "junk", "a CNAME loop", "control characters in PTR names"


@pytest.mark.parametrize("name", cases_to_try(FAULTS, *TRIED_IN_SHORT_RUNS))
def test_a_dns_fault_never_causes_a_wrong_decision(name: str, one_setting: tuple[Setting, Policyd]) -> None:
    setting, policyd = one_setting
    fault = FAULTS[name]
    with setting.flow(f"DNS: {name}", patience=TIMEOUT) as flow:
        with setting.world.dns_being(fault.state, may_fail=fault.may_be_late):
            flow.go_on(SECONDS)
        flow.fault_is_over()
    lines = flow.compare(policyd.decisions(flow.row.answered))
    reasons = {line["dns_error"] for line in lines if "dns_error" in line}
    assert reasons == fault.reasons or (fault.may_be_late and reasons == {"timeout"})
    assert "bug" not in policyd.operational_log.read_text()


# No server answers.
DOWN = DnsState(distorted(), nothing_known)


def test_a_resolver_that_is_down_at_the_start_is_used_as_soon_as_it_runs(setting_without_dns: Setting) -> None:
    setting = setting_without_dns
    world = setting.world
    with ExitStack() as alive, setting.daemon(dns=dns_settings(setting)) as policyd:
        with world.dns.changing(DOWN):
            pass
        with setting.flow("DNS: resolver down at the start", patience=TIMEOUT) as flow:
            flow.go_on(TIMEOUT + SECONDS)
            with world.dns.changing(HEALTHY):
                alive.enter_context(setting.dns)
            flow.fault_is_over()
        lines = flow.compare(policyd.decisions(flow.row.answered))
    assert {line["dns_error"] for line in lines if "dns_error" in line} == {"timeout"}


def dns_settings(setting: Setting) -> dict[str, object]:
    """Settings (`dns`) of the daemon: the name server of this test, and the timeout."""
    return {"servers": [setting.dns.address], "timeout": f"{TIMEOUT}s"}


@pytest.fixture
def setting_without_dns(tmp_path: Path) -> Setting:
    """A setting whose name server is not running, but has a port."""
    setting = Setting(tmp_path)
    setting.dns.port = free_port()
    return setting


@long_only
def test_truncated_answers_of_a_server_without_tcp_are_errors(tmp_path: Path) -> None:
    setting = Setting(tmp_path, tcp=False)
    with setting.dns, setting.daemon(dns=dns_settings(setting)) as policyd:
        with setting.flow("DNS: truncated answers without TCP", patience=TIMEOUT) as flow:
            with setting.world.dns_being(DnsState(distorted(truncated=True), nothing_known)):
                flow.go_on(TIMEOUT + SECONDS)
            flow.fault_is_over()
        lines = flow.compare(policyd.decisions(flow.row.answered))
    assert {line["dns_error"] for line in lines if "dns_error" in line} == {"timeout"}


@long_only
def test_a_resolver_that_dies_and_returns_is_used_at_once(setting: Setting) -> None:
    require("unbound")
    port = free_port()
    zones = dict.fromkeys(["10.in-addr.arpa", "8.b.d.0.1.0.0.2.ip6.arpa", "example"], setting.dns.port)
    world = setting.world
    with ExitStack() as alive:
        alive.enter_context(start_unbound(setting.folder, [], zones, port=port))
        with setting.daemon(dns={"servers": [f"127.0.0.1:{port}"], "timeout": f"{TIMEOUT}s"}) as policyd:
            with setting.flow("DNS: unbound dies and returns", patience=TIMEOUT) as flow:
                flow.go_on(0.3)
                with world.dns.changing(DOWN):
                    alive.close()
                flow.go_on(TIMEOUT + SECONDS)
                with world.dns.changing(HEALTHY):
                    alive.enter_context(start_unbound(setting.folder, [], zones, port=port))
                flow.fault_is_over()
            lines = flow.compare(policyd.decisions(flow.row.answered))
    assert {line["dns_error"] for line in lines if "dns_error" in line} == {"timeout"}


@long_only
def test_a_hundred_thousand_clients_fill_the_cache_and_no_more(setting: Setting) -> None:
    clients, room = 100_000, 20_000
    dns = {"servers": [setting.dns.address], "timeout": "5s", "cache_size": room}
    with setting.daemon(dns=dns) as policyd:
        crowd = {"named": 1, "nameless": 40, "pause": 0, "repeats": 1, "exhausts": True}  # as fast as the CPU allows
        with setting.flow(f"DNS: {clients:,} clients, one after the other", **crowd) as flow:
            flow.wait_for_clients(clients // 2, 300)
            half = memory_mb(policyd.pid)
            flow.wait_for_clients(clients // 2, 300)
            whole = memory_mb(policyd.pid)
            assert setting.metric("policyd_dns_cached") <= room
            flow.fault_is_over()
    assert whole < half + 5
