"""Counters and greylisting in a running daemon: reload, status, metrics, and the state file."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING

import pytest

from tests.daemon.client import Client, request
from tests.daemon.test_control import run
from tests.daemon.test_metrics import scrape
from tests.mmdb import write_systems
from tests.ports import free_port
from tests.state.servers import PROGRAMS, StateServer

if TYPE_CHECKING:
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


def test_a_reload_keeps_counters_that_did_not_change_and_uses_those_that_did(
    start_policyd: StartPolicyd, port: int
) -> None:
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


def test_a_counter_of_systems_counts_the_owner_of_the_client(
    start_policyd: StartPolicyd, port: int, tmp_path: Path
) -> None:
    write_systems(tmp_path / "asn.mmdb", "maxmind_asn")
    rules = """
databases: {asn: asn.mmdb}
counters: {system: {count: requests, per: asn, within: 1h}}
rules:
  - {name: system, match: {counter: system > 1}, action: 'DEFER 4.7.1 {count}'}
"""
    clients = ("198.51.100.1", "198.51.100.2", "203.0.113.200", "203.0.113.200")  # the last has no owner
    with start_policyd(rules) as policyd, Client(port) as client:
        assert [client.ask(request(client_address=address)) for address in clients] == [
            *("DUNNO", "DEFER 4.7.1 2", "DUNNO", "DUNNO")
        ]
        del policyd


def test_status_and_metrics_tell_keys_and_evictions(start_policyd: StartPolicyd, port: int, tmp_path: Path) -> None:
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
    # A key of each counter, and a value of the one that tells senders apart.
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
    with start_policyd(RULES, control=str(tmp_path / "c.sock"), state_file=str(path)) as policyd:
        locked = run(policyd, "status")
        policyd.stop()
        connection.close()
        policyd.start()
        used = run(policyd, "status")
    assert locked.returncode == 1
    assert f"attention: state_file {path} not in use: locked by another process" in locked.stdout
    assert used.returncode == 0
    assert f"{path}: in use" in used.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_status_and_metrics_say_when_the_shared_memory_is_away(
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
    assert f"attention: the shared memory unix:{server.socket} is away: " in away.stdout
    assert failed["policyd_state_up",] == 0
    assert failed["policyd_state_failures_total",] >= 3
