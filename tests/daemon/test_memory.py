"""Counters and greylisting in a running daemon: reloads, status, metrics, state file, shared memory, explain and
forget.
"""

from __future__ import annotations

import json
import sqlite3
import time
from typing import TYPE_CHECKING

import pytest

from policyd.memory.definitions import CounterDefinition, KeyPart
from policyd.state.process import ProcessMemory
from tests.daemon.client import Client, request
from tests.daemon.test_control import run
from tests.daemon.test_metrics import scrape
from tests.field.waiting import until
from tests.mmdb import write_systems
from tests.ports import free_port
from tests.state.servers import PROGRAMS, StateServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.daemon.conftest import StartPolicyd

RULES = """
counters:
  often: {count: requests, per: client_address, within: 1h}
  senders: {count: distinct sender, per: client_address, within: 1h}
rules:
  - {name: often, match: {counter: often > 2}, action: 'DEFER 4.7.1 {count}'}
  - {name: senders, match: {counter: senders > 2}, action: 'DEFER 4.7.1 senders {count}'}
"""
MAIL = request(client_address="192.0.2.1")


def test_a_reload_keeps_unchanged_counters_and_uses_changed_ones(start_policyd: StartPolicyd, port: int) -> None:
    with start_policyd("rules: []") as policyd, Client(port) as client:
        assert client.ask(MAIL) == "DUNNO"
        policyd.rules.write_text(RULES)
        policyd.reload()
        assert [client.ask(MAIL) for _ in range(3)] == ["DUNNO", "DUNNO", "DEFER 4.7.1 3"]
        policyd.rules.write_text(RULES.replace("often > 2", "often > 3"))
        policyd.reload()
        assert client.ask(MAIL) == "DEFER 4.7.1 4"
        policyd.rules.write_text(
            RULES.replace("per: client_address, within: 1h}", "per: client_address, within: 2h}", 1)
        )
        policyd.reload()
        assert client.ask(MAIL) == "DUNNO"
        policyd.rules.write_text("rules: []")
        policyd.reload()
        assert [client.ask(MAIL) for _ in range(3)] == ["DUNNO"] * 3


def test_counts_of_a_removed_counter_are_dropped_at_a_reload(
    start_policyd: StartPolicyd, port: int, tmp_path: Path
) -> None:
    settings = {"control": str(tmp_path / "c.sock"), "dns": {"timeout": "100ms"}}
    with start_policyd(RULES, **settings) as policyd, Client(port) as client:

        def keys() -> int:
            return int(json.loads(run(policyd, "status", "--json").stdout)["memory"]["keys"])

        client.ask(MAIL)
        before = keys()
        policyd.rules.write_text("\n".join(line for line in RULES.splitlines() if "senders" not in line))
        policyd.reload()
        until("the counts to be dropped", lambda: keys() < before or None)
        left = keys()
        assert [client.ask(MAIL) for _ in range(2)] == ["DUNNO", "DEFER 4.7.1 3"]
    assert (before, left) == (3, 1)


def test_a_counter_per_asn_counts_the_requests_of_each_system(
    start_policyd: StartPolicyd, port: int, tmp_path: Path
) -> None:
    write_systems(tmp_path / "asn.mmdb", "maxmind_asn")
    rules = """
databases: {asn: asn.mmdb}
counters: {system: {count: requests, per: asn, within: 1h}}
rules:
  - {name: system, match: {counter: system > 1}, action: 'DEFER 4.7.1 {count}'}
"""
    clients = ("198.51.100.1", "198.51.100.2", "203.0.113.200", "203.0.113.200")  # the last address has no owner
    with start_policyd(rules), Client(port) as client:
        assert [client.ask(request(client_address=address)) for address in clients] == [
            *("DUNNO", "DEFER 4.7.1 2", "DUNNO", "DUNNO")
        ]


def test_status_and_metrics_show_keys_and_evictions(start_policyd: StartPolicyd, port: int, tmp_path: Path) -> None:
    metrics_port = free_port()
    settings = {
        "control": str(tmp_path / "c.sock"),
        "metrics": f"127.0.0.1:{metrics_port}",
        "limits": {"state_keys": 100},
    }
    with start_policyd(RULES, **settings) as policyd, Client(port) as client:
        client.ask(MAIL)
        before = json.loads(run(policyd, "status", "--json").stdout)["memory"]
        for number in range(2, 60):
            client.ask(request(client_address=f"192.0.2.{number}"))
        status = run(policyd, "status")
        samples = scrape(metrics_port)
    # A key of each counter, and a value of the counter of distinct senders.
    assert before == {"keys": 3, "limit": 100, "evicted": 0, "state_file": None, "shared": None}
    assert status.returncode == 0
    assert samples["policyd_state_keys",] <= 100
    evicted = samples["policyd_state_evictions_total",]
    assert evicted > 0
    assert f"keys of 100; evicted {evicted:.0f}" in status.stdout
    assert ("policyd_state_up",) not in samples


def test_status_says_why_a_state_file_is_not_used(start_policyd: StartPolicyd, tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    connection = sqlite3.connect(path)
    connection.executescript("PRAGMA locking_mode = EXCLUSIVE; CREATE TABLE held (key); BEGIN EXCLUSIVE")
    port = free_port()
    settings = {"control": str(tmp_path / "c.sock"), "metrics": f"127.0.0.1:{port}", "state_file": str(path)}
    with start_policyd(RULES, **settings) as policyd:
        locked, locked_samples = run(policyd, "status"), scrape(port)
        policyd.stop()
        connection.close()
        policyd.start()
        used, used_samples = run(policyd, "status"), scrape(port)
    assert locked.returncode == 1
    assert locked_samples["policyd_state_file_usable",] == 0
    assert used_samples["policyd_state_file_usable",] == 1
    assert f"attention: state_file {path} not in use: locked by another process" in locked.stdout
    assert used.returncode == 0
    assert f"{path}: in use" in used.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_status_and_metrics_show_an_unavailable_shared_memory(
    start_policyd: StartPolicyd, port: int, tmp_path: Path, program: str
) -> None:
    metrics_port = free_port()
    server = StateServer(tmp_path, program)
    settings = {
        "control": str(tmp_path / "c.sock"),
        "metrics": f"127.0.0.1:{metrics_port}",
        "state": f"unix:{server.socket}",
    }
    try:
        with start_policyd(RULES, **settings) as policyd, Client(port) as client:
            client.ask(MAIL)
            up, counted = run(policyd, "status"), scrape(metrics_port)
            server.stop()
            for _ in range(4):
                client.ask(MAIL)
            away, failed = run(policyd, "status"), scrape(metrics_port)
    finally:
        server.stop()
    assert up.returncode == 0
    assert f"unix:{server.socket}: up" in up.stdout
    assert counted["policyd_state_up",] == 1
    assert counted["policyd_state_calls_total",] >= 2
    assert counted["policyd_state_failures_total",] == 0
    assert counted["policyd_state_seconds_total",] > 0
    assert away.returncode == 1
    assert f"attention: the shared memory unix:{server.socket} does not answer: " in away.stdout
    assert failed["policyd_state_up",] == 0
    assert failed["policyd_state_failures_total",] >= 3


KEYED_RULES = """
greylist: {wait: 1s}
counters:
  often: {count: requests, per: [client_network/20, sender], within: 1h}
  senders: {count: distinct sender, per: client_network, within: 1h}
rules:
  - {name: often, match: {counter: [often > 1000, senders > 200]}, action: DEFER}
  - {name: grey, match: {sender_domain: grey.example}, action: GREYLIST}
"""


@pytest.fixture(params=[None, *PROGRAMS])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateServer | None]:
    """The shared memory of the daemon: none, or a server of each kind."""
    if request.param is None:
        yield None
        return
    server = StateServer(tmp_path, request.param)
    try:
        yield server
    finally:
        server.stop()


def settings_with(shared: StateServer | None, folder: Path) -> dict[str, str]:
    """The settings of a daemon with a control socket and this shared memory."""
    control = {"control": str(folder / "c.sock")}
    return control if shared is None else {**control, "state": f"unix:{shared.socket}"}


def test_the_highest_keys_are_listed_and_a_key_can_be_forgotten(
    start_policyd: StartPolicyd, port: int, tmp_path: Path, shared: StateServer | None
) -> None:
    with start_policyd(KEYED_RULES, **settings_with(shared, tmp_path)) as policyd, Client(port) as client:
        for number in range(12):
            for _ in range(number + 1):
                client.ask(request(client_address="192.0.2.1", sender=f"A{number}@x.example"))
        highest = run(policyd, "status", "--counter", "often")
        distinct = json.loads(run(policyd, "status", "--counter", "senders", "--json").stdout)
        forgot = run(policyd, "forget", "--counter", "often", "192.0.2.77", "a11@X.example")
        again = run(policyd, "forget", "--counter", "often", "192.0.2.77", "a11@x.example")
        incomplete = run(policyd, "forget", "--counter", "often", "192.0.2.77")
        after = run(policyd, "status", "--counter", "often")
        unknown = run(policyd, "status", "--counter", "oftn")
    assert highest.stdout.splitlines() == [
        "    count  client_network/20/64 sender",
        *(f"{number + 1:>9}  192.0.0.0/20 a{number}@x.example" for number in range(11, 1, -1)),
    ]
    assert distinct["keys"] == [{"key": ["192.0.2.0/24"], "count": 12}]
    assert (forgot.returncode, forgot.stdout) == (0, "forgot counter often of 192.0.0.0/20 a11@x.example\n")
    assert again.stdout == "nothing to forget: counter often of 192.0.0.0/20 a11@x.example\n"
    assert incomplete.returncode == 2
    assert "a key of counter often is: client_network/20/64, sender" in incomplete.stderr
    assert after.stdout.splitlines()[1] == "       11  192.0.0.0/20 a10@x.example"
    assert unknown.returncode == 2
    assert "there is no counter 'oftn'; the counters are often, senders" in unknown.stderr


def test_explain_asks_the_daemon_for_the_values_of_counters(
    start_policyd: StartPolicyd, port: int, tmp_path: Path, shared: StateServer | None
) -> None:
    explain = ("explain", "client_address=192.0.2.1", "client_name=a.example", "sender=new@x.example")
    with start_policyd(KEYED_RULES, **settings_with(shared, tmp_path)) as policyd, Client(port) as client:
        for number in range(4):
            client.ask(request(client_address="192.0.2.1", sender=f"A{number}@x.example"))
        live = json.loads(run(policyd, *explain, "--json").stdout)["counters"]
        text = run(policyd, *explain).stdout
        given = json.loads(run(policyd, *explain, "--counter", "senders=9", "--json").stdout)["counters"]
        policyd.rules.write_text(
            KEYED_RULES.replace("per: client_network, within: 1h", "per: client_network, within: 2h")
        )
        edited = json.loads(run(policyd, *explain, "--json").stdout)["counters"]
        policyd.stop()
        away = json.loads(run(policyd, *explain, "--json").stdout)["counters"]
    daemon = "the running daemon"
    assert live == {"often": {"value": 1, "source": daemon}, "senders": {"value": 5, "source": daemon}}
    assert "senders = 5  [the running daemon]" in text
    assert given["senders"] == {"value": 9, "source": "as given"}
    assert edited["senders"] == {
        "value": 1,
        "source": "assumed to be 1: counter senders is defined differently in the ruleset in force",
    }
    assert away["senders"]["value"] == 1
    assert "assumed to be 1: cannot ask the daemon: " in away["senders"]["source"]


def test_a_network_that_has_passed_greylisting_can_be_forgotten(
    start_policyd: StartPolicyd, port: int, tmp_path: Path, shared: StateServer | None
) -> None:
    mail = request(sender="a@grey.example")
    with start_policyd(KEYED_RULES, **settings_with(shared, tmp_path)) as policyd, Client(port) as client:
        first = client.ask(mail)
        time.sleep(1.2)
        passed = client.ask(mail)
        forgot = run(policyd, "forget", "--greylist", "192.0.2.77")
        later = client.ask(mail)
        if shared is not None:
            shared.stop()
            away = run(policyd, "forget", "--greylist", "192.0.2.77")
            assert away.returncode == 2
            assert "forgotten by this daemon only: the shared memory unix:" in away.stderr
    assert first.startswith("DEFER_IF_PERMIT ")
    assert passed == "DUNNO"
    assert (forgot.returncode, forgot.stdout) == (0, "forgot greylisting of 192.0.2.0/24\n")
    assert later.startswith("DEFER_IF_PERMIT ")


def test_keys_with_unexpired_values_are_found_in_slices() -> None:
    memory = ProcessMemory(100_000)
    counter = CounterDefinition("c", KeyPart("sender"), (KeyPart("client_address"),), 60)
    for number in range(3000):
        memory.add(counter, b"%d" % number, b"x", 1000.0)
    found = list(memory.counts_by_key(counter, 1000.0))
    assert found.count(None) == 3
    assert len(found) == 3003
    assert list(memory.counts_by_key(counter, 2000.0)) == [None] * 3
    assert len(memory) == 3000  # the keys themselves; their values have expired
