"""Fixtures of the fault tests: a world with scripted DNS, daemons, and the table of results.

The short form is part of `make test`; `make faults` sets FAULTS=long, which makes each fault last longer and adds
faults that take minutes. The table is printed at the end, and written to the file that FAULTS_TABLE names.
"""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.flow import HEAD, NORMAL_SECONDS, Flow
from tests.faults.world import World, rules_file, ruleset_hash
from tests.field.conftest import open_folder, postfix  # noqa: F401 - fixtures that the fault tests use as well
from tests.field.policyd import Policyd
from tests.field.waiting import PATIENCE_SECONDS, until
from tests.name_server import ScriptedServer
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.faults.flow import Row

LONG = os.environ.get("FAULTS") == "long"

# Seconds that a fault lasts.
SECONDS = 4.0 if LONG else 0.7

# Seconds to wait for events that are promised within a second; more in the short form, which runs on busy machines.
SOON_SECONDS = 2 if LONG else PATIENCE_SECONDS

long_only = pytest.mark.skipif(not LONG, reason="takes minutes; run it with make faults")


def cases_to_try(cases: Iterable[str], *in_short: str) -> list[str]:
    """Returns the cases to try: all of them, or `in_short` in the short form."""
    known = [*cases]
    assert set(in_short) <= set(known)
    return known if LONG else [*in_short]


_rows: list[Row] = []
_texts: list[str] = []


def add_row(row: Row) -> Row:
    """Adds a row to the table, whatever its result."""
    _rows.append(row)
    return row


def add_text(text: str) -> None:
    """Adds a text below the table."""
    _texts.append(text)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints the table, and writes it to the file that FAULTS_TABLE names."""
    if not _rows:
        return
    table = "\n\n".join(["\n".join([HEAD, *map(str, _rows)]), *_texts])
    terminalreporter.section("faults")
    terminalreporter.write_line(table)
    if path := os.environ.get("FAULTS_TABLE"):
        Path(path).write_text(table + "\n")


class Setting:
    """All that a flow needs: a world, its name server, and a daemon that asks this server."""

    def __init__(self, folder: Path, *, tcp: bool = True) -> None:
        self.world = World()
        self.dns = ScriptedServer(self.world.zone, tcp=tcp)
        self.port = free_port()
        self.metrics = free_port()
        self.folder = folder

    def daemon(self, **arguments: Any) -> Policyd:
        """A daemon for a `with` block. Edition 0 is in force. A flow asks the daemon that was started last."""
        usual = {
            "listen": [f"inet:127.0.0.1:{self.port}"],
            "metrics": f"127.0.0.1:{self.metrics}",
            "dns": {"servers": [self.dns.address], "timeout": "5s"},
        }
        self._daemon = Policyd(self.folder, rules_file(0), **{**usual, **arguments})
        return self._daemon

    def flow(self, fault: str, **arguments: Any) -> Flow:
        """A flow for a `with` block. Its row is part of the table, whatever its result."""
        if not LONG:  # the short form runs on any machine, so it detects hangs, not slowness
            arguments = {"tail": NORMAL_SECONDS / 2, "normal": 5.0, "longest": 5.0, **arguments}
        arguments = {"pid": self._daemon.pid, **arguments}
        flow = Flow(fault, self.world, arguments.pop("place", self.port), **arguments)
        add_row(flow.row)
        return flow

    def metric(self, name: str) -> float:
        """Returns a metric of the running daemon; the name includes the labels, as on the metrics page."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))

    def use_edition(self, policyd: Policyd, edition: int) -> str:
        """Puts another edition in force. Returns what the daemon logged during the reload."""
        with self.world.edition.changing(edition):
            self.write_edition(policyd, edition)
            return policyd.reload()

    def write_edition(self, policyd: Policyd, edition: int) -> None:
        """Replaces the rules file with that of this edition, in one step."""
        new = self.folder / "rules.new"
        new.write_text(rules_file(edition))
        new.replace(policyd.rules)


def wait_for_edition(policyd: Policyd, edition: int) -> None:
    """Waits until the log has a line that this edition was loaded, whatever other reloads run meanwhile."""
    words = f": reloaded: ruleset {ruleset_hash(edition)}: "
    until(words, lambda: words in policyd.operational_log.read_text() or None)


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    """A setting with its name server running, for one test."""
    made = Setting(tmp_path)
    with made.dns:
        yield made
