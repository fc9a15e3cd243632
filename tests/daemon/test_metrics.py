"""The metrics of a running daemon, as Prometheus reads them."""

import asyncio
import contextlib
import http.client
import os
import re
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast
from urllib.error import HTTPError
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from policyd import __version__
from policyd.config.list_sources import state_path
from policyd.config.settings import InetAddress
from policyd.core.engine import Decision
from policyd.core.ruleset import Action, Rule, Verb
from policyd.daemon.counters import Counters
from policyd.daemon.metrics import MAX_SCRAPERS, SLICE, Page, PageServer
from policyd.state.memory import Memory
from policyd.state.process import ProcessMemory
from tests.core.build import build
from tests.daemon.client import Client, request, unnamed
from tests.daemon.conftest import StartPolicyd
from tests.daemon.turns import Turns
from tests.name_server import NXDOMAIN, Reply, ScriptedServer
from tests.ports import free_port

if TYPE_CHECKING:
    from policyd.daemon.status import Running

ROOT = Path(__file__).parents[2]

RULES = """
rules:
  - {name: bulk, match: {cidr: 203.0.113.0/24}, action: DEFER 4.7.1 later}
  - {name: watched, match: {helo_name: x.example}, action: REJECT, mode: observe}
  - {name: unnamed, match: {reverse_dns: missing}, action: REJECT}
"""


@pytest.fixture
def metrics_port() -> int:
    return free_port()


def scrape(port: int) -> dict[tuple[str, ...], float]:
    """Returns the samples: name and labels -> value."""
    with urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_metrics_count_events(start_policyd: StartPolicyd, port: int, metrics_port: int) -> None:
    with (
        ScriptedServer({}, otherwise=Reply(rcode=NXDOMAIN)) as dns,
        start_policyd(
            RULES, metrics=f"127.0.0.1:{metrics_port}", dns={"servers": [dns.address]}, limits={"connections": 2}
        ) as policyd,
        Client(port) as client,
    ):
        assert scrape(metrics_port)["policyd_connections",] == 1
        for content in (
            request(client_address="203.0.113.1"),
            request(client_address="203.0.113.2"),
            request(helo_name="x.example"),
            unnamed("192.0.2.99"),
            unnamed("192.0.2.99"),
        ):
            client.ask(content)
        with Client(port) as garbage, Client(port) as refused:
            garbage.send(b"\n\n")
            assert garbage.is_closed()
            assert refused.is_closed()
        policyd.reload()
        policyd.rules.write_text("rules: 7")
        policyd.reload()
        (decision, *_) = policyd.decisions()
        samples = scrape(metrics_port)
    expected = {
        ("policyd_decisions_total", "DEFER", "bulk"): 2,
        ("policyd_decisions_total", "DUNNO", "default"): 1,
        ("policyd_decisions_total", "REJECT", "unnamed"): 2,
        ("policyd_observed_total", "watched"): 1,
        ("policyd_decision_seconds_count",): 5,
        ("policyd_decision_seconds_bucket", "+Inf"): 5,
        ("policyd_loads_total", "success"): 1,
        ("policyd_loads_total", "failure"): 1,
        ("policyd_last_reload_successful",): 0,
        ("policyd_ruleset", decision["ruleset"]): 1,
        ("policyd_ruleset_rules",): 3,
        ("policyd_connections_accepted_total",): 2,
        ("policyd_connections_refused_total",): 1,
        ("policyd_protocol_errors_total",): 1,
        ("policyd_bugs_total",): 0,
        ("policyd_dns_lookups_total", "", "missing"): 1,
        ("policyd_dns_cache_hits_total",): 1,
        ("policyd_dns_cache_misses_total",): 1,
        ("policyd_dns_cached",): 1,
        ("policyd_log_lines_lost_total", "decision"): 0,
        ("policyd_log_lines_lost_total", "operational"): 0,
    }
    assert {name: samples.get(name) for name in expected} == expected
    assert abs(samples["policyd_ruleset_loaded_timestamp_seconds",] - time.time()) < 60
    assert samples["policyd_ruleset_load_seconds",] > 0


def test_counts_of_removed_rules_do_not_accumulate(start_policyd: StartPolicyd, port: int, metrics_port: int) -> None:
    with start_policyd(RULES, metrics=f"127.0.0.1:{metrics_port}") as policyd, Client(port) as client:
        client.ask(request(client_address="203.0.113.1"))
        client.ask(request(helo_name="x.example"))
        policyd.rules.write_text(RULES.replace("bulk", "other").replace("watched", "seen"))
        policyd.reload()
        rules = {
            name[-1]
            for name in scrape(metrics_port)
            if name[0] in {"policyd_decisions_total", "policyd_observed_total"}
        }
    assert rules == {"default"}


async def test_a_page_with_many_rules_is_made_in_slices_and_is_one_page() -> None:
    counters = Counters()
    decision = Decision(Verb.REJECT, None, "", ())
    for number in range(3 * SLICE):
        rule = Rule(f"r{number}", number, (), (), Action(Verb.REJECT))
        counters.decided(Verb.REJECT, decision._replace(rule=rule, observed=(f"o{number}",)), 0.0)
    server = SimpleNamespace(
        counters=counters,
        ruleset=build([]),
        connections=(),
        facts=SimpleNamespace(
            resolver=SimpleNamespace(in_flight=0, cached_clients=0),
            lists=SimpleNamespace(states={}, in_flight=0, cached_subjects=0, bugs=0),
        ),
        memory=Memory(ProcessMemory(1), None, lambda _inquiry: None),
    )
    running = SimpleNamespace(
        server=server,
        loaded=SimpleNamespace(files=(), seconds=0.0, databases=()),
        loaded_at=0.0,
        failed=None,
        data_failed=None,
        state_file=None,
        lines_lost=lambda: {"decision": 0},
    )
    with Turns() as turns:
        page = await Page(cast("Running", running)).render()
    assert turns.count > 10
    families = {family.name: family for family in text_string_to_metric_families(page.decode())}
    assert len(families["policyd_decisions"].samples) == 3 * SLICE
    assert len(families["policyd_observed"].samples) == 3 * SLICE
    assert page.count(b"# TYPE policyd_decisions") == 1


async def test_the_end_of_the_daemon_during_a_scrape_is_not_a_bug(metrics_port: int) -> None:
    is_scraped = asyncio.Event()

    async def render() -> bytes:
        is_scraped.set()
        await asyncio.Event().wait()
        return b""

    bugs: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
    server = PageServer(cast("Page", SimpleNamespace(render=render)))
    await server.start(InetAddress("127.0.0.1", metrics_port))
    reader, writer = await asyncio.open_connection("127.0.0.1", metrics_port)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    await is_scraped.wait()
    server.close()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()  # as at the end of the event loop
    await asyncio.gather(*tasks, return_exceptions=True)
    with contextlib.suppress(ConnectionResetError):
        await reader.read()
    writer.close()
    assert bugs == []


def test_version_mode_and_the_age_of_lists_are_metrics(
    start_policyd: StartPolicyd, metrics_port: int, tmp_path: Path
) -> None:
    drop = tmp_path / "drop.txt"
    drop.write_text("192.0.2.0/24\n198.51.100.0/24\n")
    hour_ago = time.time() - 3600
    os.utime(drop, (hour_ago, hour_ago))
    lists = "mode: observe\nlists: {drop: {file: drop.txt}, same: {file: drop.txt}}\n"
    rules = lists + RULES + "  - {name: listed, match: {cidr: [$drop, $same]}, action: REJECT}\n"
    with start_policyd(rules, metrics=f"127.0.0.1:{metrics_port}") as policyd:
        samples = scrape(metrics_port)
        (ruleset,) = (name[1] for name in samples if name[0] == "policyd_ruleset")
        policyd.rules.write_text(RULES)
        policyd.reload()
        later = scrape(metrics_port)
    assert samples["policyd_build_info", ruleset, __version__] == 1
    assert samples["policyd_ruleset_observes",] == 1
    assert {name[1] for name in samples if name[0] == "policyd_list_age_seconds"} == {"drop", "same"}
    assert 3600 <= samples["policyd_list_age_seconds", "drop"] < 3900
    assert samples["policyd_list_entries", "same"] == 2
    assert later["policyd_ruleset_observes",] == 0
    assert not any(name[0] == "policyd_list_age_seconds" for name in later)


def test_fetch_times_and_maximum_ages_are_metrics(
    start_policyd: StartPolicyd, metrics_port: int, tmp_path: Path
) -> None:
    source = "from: {url: 'http://127.0.0.1:9/list', every: 12h}"
    lists = f"ours: {{file: ours.txt, {source}}}, none: {{file: none.txt, {source}}}, by-hand: {{file: hand.txt}}"
    rules = (
        f"lists: {{{lists}}}\n"
        "databases: {asn: {file: asn.csv, max_age: 30d}}\n"
        f"{RULES}  - {{name: listed, match: {{cidr: [$ours, $none, $by-hand]}}, action: REJECT}}\n"
        "  - {name: owned, match: {asn: AS64496}, action: REJECT}\n"
    )
    asn = "192.0.2.0,192.0.2.255,64496,Example\n"
    for name, content in {"ours.txt": "192.0.2.0/24\n", "hand.txt": "198.51.100.0/24\n", "asn.csv": asn}.items():
        (tmp_path / name).write_text(content)
    state_path(str(tmp_path / "ours.txt")).write_text("{}")
    yesterday = int(time.time()) - 86400
    os.utime(state_path(str(tmp_path / "ours.txt")), (yesterday, yesterday))
    with start_policyd(rules, metrics=f"127.0.0.1:{metrics_port}"):
        samples = scrape(metrics_port)
    assert samples["policyd_last_reload_successful",] == 1
    assert samples["policyd_list_interval_seconds", "ours"] == 12 * 3600
    assert samples["policyd_list_checked_timestamp_seconds", "ours"] == yesterday
    assert samples["policyd_list_checked_timestamp_seconds", "none"] == 0
    assert ("policyd_list_interval_seconds", "by-hand") not in samples
    assert samples["policyd_database_max_age_seconds", "asn"] == 30 * 86400


def test_the_documentation_names_every_metric(start_policyd: StartPolicyd, metrics_port: int, tmp_path: Path) -> None:
    rules = RULES + "  - {name: owned, match: {asn: AS64496}, action: REJECT}\n"
    (tmp_path / "asn.csv").write_text("192.0.2.0,192.0.2.255,64496,Example\n")
    with (
        start_policyd(
            f"databases: {{asn: asn.csv}}\n{rules}",
            metrics=f"127.0.0.1:{metrics_port}",
            state_file=str(tmp_path / "state.db"),
            state="valkey://127.0.0.1:9/0",
        ),
        urlopen(f"http://127.0.0.1:{metrics_port}/metrics") as page,
    ):
        served = set(re.findall(r"^# TYPE (policyd_\w+) ", page.read().decode(), re.MULTILINE))
    documented = set(re.findall(r"`(policyd_\w+)[`{]", (ROOT / "docs" / "settings.md").read_text()))
    assert len(served) > 40
    assert documented == served


def test_only_the_page_is_served(start_policyd: StartPolicyd, metrics_port: int) -> None:
    place = f"127.0.0.1:{metrics_port}"
    with start_policyd(metrics=place):
        for path, method, status in (("/", "GET", 404), ("/metrics", "POST", 405)):
            with pytest.raises(HTTPError) as refused:
                urlopen(HttpRequest(f"http://{place}{path}", method=method))
            assert refused.value.code == status
            refused.value.close()
        connection = http.client.HTTPConnection(place)
        connection.request("HEAD", "/metrics?x=1")
        answer = connection.getresponse()
        assert answer.status == 200
        assert int(answer.headers["Content-Length"]) > 1000
        assert answer.read() == b""
        connection.close()


def test_slow_and_misbehaving_scrapers_delay_no_request(
    start_policyd: StartPolicyd, port: int, metrics_port: int
) -> None:
    with start_policyd(metrics=f"127.0.0.1:{metrics_port}") as policyd, Client(port) as client:
        slow = [socket.create_connection(("127.0.0.1", metrics_port), timeout=10) for _ in range(MAX_SCRAPERS)]
        for connection in slow:
            connection.sendall(b"GET /metr")
        with socket.create_connection(("127.0.0.1", metrics_port), timeout=10) as one_too_many:
            one_too_many.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert not receive(one_too_many)
        for connection in slow:
            connection.close()
        with socket.create_connection(("127.0.0.1", metrics_port), timeout=10) as rude:
            rude.sendall(b"x" * 20000)
            assert not receive(rude)
        assert client.ask(request(client_address="203.0.113.1")) == "DEFER 4.7.1 later"
        assert scrape(metrics_port)["policyd_connections",] == 1
    assert "bug" not in policyd.operational_log.read_text()


def receive(scraper: socket.socket) -> bytes:
    try:
        return scraper.recv(100)
    except ConnectionResetError:
        return b""


def test_the_page_moves_with_its_setting_or_keeps_its_address_after_an_error(
    start_policyd: StartPolicyd, port: int, metrics_port: int
) -> None:
    with start_policyd(metrics=f"127.0.0.1:{metrics_port}") as policyd:
        settings = policyd.settings.read_text()
        policyd.settings.write_text(settings.replace(str(metrics_port), str(port)))
        assert f"cannot listen on inet:127.0.0.1:{port}" in policyd.reload()
        assert scrape(metrics_port)
        new_port = free_port()
        policyd.settings.write_text(settings.replace(str(metrics_port), str(new_port)))
        policyd.reload()
        assert scrape(new_port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", metrics_port))
