"""A port that a test gets stays free until the test's server listens on it."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.ports import free_port

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).parents[1]
GIVE = "from tests.ports import free_port; print(*(free_port() for _ in range(20)))"


def test_no_port_is_given_twice() -> None:
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == len(ports)


def test_ports_for_tests_are_outside_the_range_of_outgoing_connections() -> None:
    port = free_port()
    for _ in range(50):
        with socket.create_server(("127.0.0.1", 0)) as any_port:
            first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
            assert first <= any_port.getsockname()[1] <= last
    assert not first <= port <= last


def test_a_port_that_is_in_use_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_port()
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as taken:
            taken.bind(("127.0.0.1", free_port()))
            order = iter([taken.getsockname()[1], free])
            monkeypatch.setattr("tests.ports._candidates", lambda order=order: order)
            assert free_port() == free
        monkeypatch.undo()


def test_two_runs_at_the_same_time_get_different_ports() -> None:
    given = [
        subprocess.run([sys.executable, "-c", GIVE], cwd=ROOT, check=True, capture_output=True).stdout.split()
        for _ in range(2)
    ]
    assert given[0] != given[1]
