"""What the fault tests stand on: a world whose DNS does as it is told, daemons, and the table of how it went.

The short form is part of `make test`; `make faults` sets FAULTS=long, which makes each fault last longer and adds
those that take minutes. The table is printed at the end, and written to the file that FAULTS_TABLE names.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.bench import native
from tests.dns import ScriptedServer, free_port
from tests.faults.flow import HEAD, Flow
from tests.faults.world import World, rules_file
from tests.field.policyd import Policyd
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.flow import Row

LONG = os.environ.get("FAULTS") == "long"

# How long a fault lasts, in seconds.
SECONDS = 4.0 if LONG else 0.7

long_only = pytest.mark.skipif(not LONG, reason="takes minutes; run it with make faults")

_rows: list[Row] = []


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table, and write it where the environment says."""
    if not _rows:
        return
    table = "\n".join([HEAD, *map(str, _rows)])
    terminalreporter.section("faults")
    terminalreporter.write_line(table)
    if path := os.environ.get("FAULTS_TABLE"):
        Path(path).write_text(table + "\n")


class Setting:
    """A world, the name server that knows it, and a daemon that asks that server: what a flow needs."""

    def __init__(self, folder: Path, floor: int, *, tcp: bool = True) -> None:
        self.world = World()
        self.dns = ScriptedServer(self.world.zone, tcp=tcp)
        self.port = free_port()
        self.folder = folder
        self._floor = floor

    def daemon(self, **arguments: Any) -> Policyd:
        """A daemon for a `with` block. Edition 0 is in force."""
        usual = {
            "listen": [f"inet:127.0.0.1:{self.port}"],
            "metrics": f"127.0.0.1:{free_port()}",
            "dns": {"servers": [self.dns.address], "timeout": "2s"},
        }
        return Policyd(self.folder, rules_file(0), **{**usual, **arguments})

    def flow(self, fault: str, **arguments: Any) -> Flow:
        """A flow for a `with` block. Its row is part of the table, whatever becomes of it."""
        flow = Flow(fault, self.world, arguments.pop("place", self.port), floor=self._floor, **arguments)
        _rows.append(flow.row)
        return flow

    def use_edition(self, policyd: Policyd, edition: int) -> str:
        """Put another edition in force. Gives what the daemon logged meanwhile."""
        with self.world.edition.changing(edition):
            policyd.rules.write_text(rules_file(edition))
            return policyd.reload()


@pytest.fixture(scope="session")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of the server that does nothing (tests/bench/floor.c)."""
    require(os.environ.get("CC", "cc"))
    program = native.build(tmp_path_factory.mktemp("floor"))["floor"]
    port = free_port()
    process = subprocess.Popen([program, f"inet:127.0.0.1:{port}"], stdin=subprocess.DEVNULL)
    yield port
    process.terminate()
    process.wait(timeout=10)


@pytest.fixture
def setting(tmp_path: Path, floor: int) -> Iterator[Setting]:
    """A setting with its name server running, for one test."""
    made = Setting(tmp_path, floor)
    with made.dns:
        yield made
