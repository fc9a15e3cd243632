"""Two hosts with one memory: two Postfix instances, each with its own policyd, and one Redis or Valkey for both."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.field.policyd import Policyd
from tests.field.postfix import Client, Postfix, Reply
from tests.field.waiting import until
from tests.requirements import require
from tests.state.servers import PROGRAMS, StateServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LIMIT = 300
WAIT = 2.0

# Maximum seconds of an answer (more while other tests run), and seconds until a server that is back is used again.
LONGEST = 0.1 if os.environ.get("FAULTS") == "long" else 1.0
BACK = 2.0

RULES = f"""
greylist: {{wait: {WAIT:.0f}s}}
counters:
  mails: {{count: requests, per: sender, within: 1h}}
rules:
  - {{name: often, match: {{counter: mails > {LIMIT}}}, action: 'DEFER 4.7.1 too much, {{count}}'}}
  - {{name: grey, match: {{helo_name: grey.example}}, action: GREYLIST 4.7.1 come again}}
"""


class Host(NamedTuple):
    """A mail host: its Postfix, and the policyd that it asks."""

    postfix: Postfix
    policyd: Policyd

    def offer(self, sender: str, *recipients: str, helo_name: str = "client.example") -> list[Reply]:
        with Client(self.postfix.port["inet"], "192.0.2.77", helo_name=helo_name) as client:
            return client.offer(sender, *recipients)

    @property
    def log(self) -> str:
        return self.policyd.operational_log.read_text()


@pytest.fixture(scope="module", params=PROGRAMS or ["redis-server"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StateServer]:
    require(request.param)
    started = StateServer(tmp_path_factory.mktemp("state"), request.param)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def hosts(
    server: StateServer, postfix: Postfix, open_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Host, Host]]:
    with ExitStack() as running:
        second = open_folder / f"second-{server.program}"
        second.mkdir()
        made = []
        for instance in (postfix, running.enter_context(Postfix(second))):
            settings: dict[str, Any] = {
                "listen": [f"inet:127.0.0.1:{instance.port['policy']}"],
                "state": f"unix:{server.socket}",
                "dns": {"servers": ["127.0.0.1:9"], "timeout": "200ms"},
            }
            policyd = running.enter_context(Policyd(tmp_path_factory.mktemp("policyd"), RULES, **settings))
            made.append(Host(instance, policyd))
        yield made[0], made[1]


def test_a_client_deferred_by_one_daemon_passes_the_other(hosts: tuple[Host, Host]) -> None:
    mail = ("anna@sender.example", "bob@field.example")
    first = hosts[0].offer(*mail, helo_name="grey.example")
    early = hosts[1].offer(*mail, helo_name="grey.example")
    time.sleep(WAIT + 0.1)
    passed = hosts[1].offer(*mail, helo_name="grey.example")
    known = hosts[0].offer("other@sender.example", "carl@field.example", helo_name="grey.example")
    assert [reply.code for replies in (first, early, passed, known) for reply in replies] == [450, 450, 250, 250]
    words = [
        [decision["greylist"] for decision in host.policyd.decisions(count, helo_name="grey.example")]
        for host, count in zip(hosts, (2, 2), strict=True)
    ]
    assert words == [["new", "known"], ["early", "passed"]]


def test_two_daemons_share_one_limit(hosts: tuple[Host, Host]) -> None:
    replies = []
    for turn in range(8):  # 320 recipients, 40 at a time to each daemon in turn
        recipients = [f"user{turn}-{number}@field.example" for number in range(LIMIT // 8 + 3)]
        replies += hosts[turn % 2].offer("bulk@sender.example", *recipients)
    codes = [reply.code for reply in replies]
    assert codes == [250] * LIMIT + [450] * (len(codes) - LIMIT)
    assert f"too much, {LIMIT + 1}" in replies[LIMIT].text


def test_without_the_server_each_daemon_works_alone_and_both_use_it_again_soon(
    hosts: tuple[Host, Host], server: StateServer, record_property: Callable[[str, object], None]
) -> None:
    for number, host in enumerate(hosts):
        host.offer(f"alone{number}@sender.example", "before@field.example")
    server.stop()
    for number, host in enumerate(hosts):
        for mail in range(5):
            (reply,) = host.offer(f"alone{number}@sender.example", f"away{mail}@field.example")
            assert reply.code == 250
        (unknown,) = host.offer("new@sender.example", "away@field.example", helo_name="grey.example")
        assert unknown.code == 250
    longest = 0.0
    for host in hosts:
        host.policyd.decisions(recipient="away@field.example")  # waits until the last decision is in the log
        away = [decision for decision in host.policyd.decisions(7) if decision["recipient"].startswith("away")]
        assert len(away) == 6
        assert {decision.get("memory") for decision in away} == {"local"}
        assert away[-1]["greylist"] in {"known", "unknown"}
        longest = max(longest, *(decision["ms"] / 1000 for decision in away))
        assert "answers meanwhile" in host.log
    assert longest < LONGEST
    server.start()
    began = time.monotonic()
    until("the server's return", lambda: all("answers again" in host.log for host in hosts) or None, BACK + LONGEST)
    back = time.monotonic() - began
    for number, host in enumerate(hosts):
        recipient = f"back{number}@field.example"
        host.offer("both@sender.example", recipient)
        (decision,) = host.policyd.decisions(recipient=recipient)
        assert "memory" not in decision
    record_property("longest_ms", longest * 1000)
    record_property("back_s", back)
    print(f"longest answer while it was away: {longest * 1000:.1f} ms; back after {back:.2f} s")
