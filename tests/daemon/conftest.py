"""Daemons for tests: `policyd serve` as processes, with real sockets, files and signals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.daemon.client import request
from tests.field.conftest import open_folder  # noqa: F401 - a fixture of the tests here too
from tests.field.policyd import Policyd
from tests.field.waiting import until
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

RULES = """
rules:
  - {name: vps, match: {hostname_suffix: vs.sakura.ne.jp}, action: 'REJECT 5.7.1 no virtual servers ({rule} {id})'}
  - {name: bulk, match: {cidr: 203.0.113.0/24}, action: 'DEFER 4.7.1 later'}
  - {name: first-try, match: {helo_name_suffix: dynamic.example}, action: REJECT, mode: observe}
"""

# A request that the rule `bulk` matches, and its answer.
BULK = request(client_address="203.0.113.9")
LATER = "DEFER 4.7.1 later"

# Every client but 192.0.2.25 needs a lookup under these rules.
DNS_RULES = """
rules:
  - {name: known, match: {cidr: 192.0.2.25}, action: DUNNO}
  - {name: unnamed, match: {reverse_dns: missing}, action: 'DEFER 4.7.25 no name'}
  - {name: broken, match: {reverse_dns: error}, action: 'DEFER 4.4.3 DNS is broken'}
"""


class StartPolicyd(Protocol):
    """The signature of `start_policyd`, which makes a daemon for a `with` block."""

    def __call__(self, rules: str = RULES, **arguments: Any) -> Policyd: ...


@pytest.fixture
def port() -> int:
    """A port that the test's daemon may listen on."""
    return free_port()


@pytest.fixture
def start_policyd(tmp_path: Path, port: int) -> StartPolicyd:
    """Makes daemons in the test's folder; without `listen`, they listen on `port`."""

    def start(rules: str = RULES, **arguments: Any) -> Policyd:
        return Policyd(tmp_path, rules, **{"listen": [f"inet:127.0.0.1:{port}"], **arguments})

    return start


@pytest.fixture
def run_before_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Runs some code in every Python process of the test, before the process's program (Python's module `site`)."""

    def install(code: str) -> None:
        folder = tmp_path / "site"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return install


def children(pid: int) -> list[int]:
    """Returns the ids of the processes that the first thread of a process has forked."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def log_lines(policyd: Policyd, words: str) -> list[str]:
    """Returns the lines of the operational log with these words; waits for the first."""

    def found() -> list[str] | None:
        return [line for line in policyd.operational_log.read_text().splitlines() if words in line] or None

    return until(f"a line with {words!r}", found)
