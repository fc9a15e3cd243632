"""Daemons for tests: `policyd serve` as processes, with real sockets, files and signals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.field.conftest import open_folder  # noqa: F401 - a fixture of the tests here too
from tests.field.policyd import Policyd
from tests.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path

RULES = """
rules:
  - {name: vps, match: {hostname_suffix: vs.sakura.ne.jp}, action: 'REJECT 5.7.1 no virtual servers ({rule} {id})'}
  - {name: bulk, match: {cidr: 203.0.113.0/24}, action: 'DEFER 4.7.1 later'}
  - {name: first-try, match: {helo_name_suffix: dynamic.example}, action: REJECT, mode: observe}
"""

# Every client that these rules do not list needs a lookup.
DNS_RULES = """
rules:
  - {name: known, match: {cidr: 192.0.2.25}, action: DUNNO}
  - {name: unnamed, match: {reverse_dns: missing}, action: 'DEFER 4.7.25 no name'}
  - {name: broken, match: {reverse_dns: error}, action: 'DEFER 4.4.3 DNS is broken'}
"""


class StartPolicyd(Protocol):
    """The signature of `start_policyd`: a daemon for a `with` block, on its own port."""

    def __call__(self, rules: str = RULES, **arguments: Any) -> Policyd: ...


@pytest.fixture
def port() -> int:
    """A port that the test's daemon may listen on."""
    return free_port()


@pytest.fixture
def start_policyd(tmp_path: Path, port: int) -> StartPolicyd:
    """Daemons in the test's folder, which listen on `port` unless told otherwise."""

    def start(rules: str = RULES, **arguments: Any) -> Policyd:
        return Policyd(tmp_path, rules, **{"listen": [f"inet:127.0.0.1:{port}"], **arguments})

    return start
