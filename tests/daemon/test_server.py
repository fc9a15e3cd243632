"""A server in this process: the effect of bugs, which no real client can cause, and probes of `policyd doctor`."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop

from policyd import __version__
from policyd.config.settings import Dns, Settings
from policyd.core.address import Address
from policyd.core.engine import Decision, Inquiry
from policyd.core.facts import Needs
from policyd.core.identity import Identity, Status
from policyd.core.protocol import parse_probe_reply
from policyd.daemon import server as server_module
from policyd.daemon.counters import Counters
from policyd.daemon.decision_log_file import DecisionLogFile
from policyd.daemon.listeners import Listener
from policyd.daemon.server import Server
from policyd.dns.facts import FactFinder
from policyd.dns.lists import DnsLists
from policyd.dns.resolver import Resolver
from policyd.state.memory import Memory
from policyd.state.process import ProcessMemory
from tests.core.build import build
from tests.daemon.client import unnamed
from tests.daemon.conftest import BULK

pytestmark = pytest.mark.filterwarnings("ignore:.*event_loop_policy:DeprecationWarning")


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    policy: asyncio.AbstractEventLoopPolicy = uvloop.EventLoopPolicy()
    return policy


class SlowResolver(Resolver):
    """A resolver without a cache: for every client it waits 10 ms, and then finds no name."""

    def cached(self, address: Address | None) -> None:
        return None

    def look_up(self, address: Address | None) -> asyncio.Future[Identity]:
        return asyncio.ensure_future(self._find())

    async def _find(self) -> Identity:
        await asyncio.sleep(0.01)
        return Identity(Status.MISSING)


RULES = [
    {"name": "bulk", "match": {"cidr": ["203.0.113.0/24"]}, "action": "DEFER 4.7.1 later"},
    {"name": "unnamed", "match": {"reverse_dns": ["missing"]}, "action": "REJECT"},
]


class Served:
    """A server in this process, and connections to it."""

    def __init__(self, tmp_path: Path) -> None:
        loop = asyncio.get_running_loop()
        self.log = tmp_path / "log"
        self.decision_log = DecisionLogFile(str(self.log), loop.call_soon)
        self.counters = Counters()
        self.server = Server(
            build(RULES),
            Settings(),
            FactFinder(SlowResolver(Dns()), DnsLists(), 5.0),
            Memory(ProcessMemory(1000), None, lambda _: None),
            self.decision_log,
            counters=self.counters,
            max_connections=100,
        )
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self.listener = Listener(listening, "inet:127.0.0.1:0")
        self.listener.start(loop, self.server.accept, self.server.complain)

    async def ask(self, content: bytes) -> bytes:
        """The bytes received up to the end of the answer or of the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(content)
        try:
            async with asyncio.timeout(10):
                return await reader.readuntil(b"\n\n")
        except asyncio.IncompleteReadError as end:
            return end.partial
        except ConnectionResetError:
            return b""
        finally:
            writer.close()

    async def close(self) -> None:
        self.listener.close()
        async with asyncio.timeout(10):
            await self.server.drain()
        self.server.ids.close()
        self.decision_log.close()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    served = Served(tmp_path)
    yield served
    await served.close()


def bugs(caplog: pytest.LogCaptureFixture) -> list[type[BaseException] | None]:
    """Returns the type of each exception that was logged as a bug; nothing else may be in the log."""
    kinds = []
    for record in caplog.records:
        assert "a bug in policyd, please report it" in record.message
        assert record.exc_info
        kinds.append(record.exc_info[0])
    return kinds


@pytest.mark.parametrize("content", [BULK, unnamed("192.0.2.99")], ids=["the fast path", "the slow path"])
async def test_a_bug_closes_its_connection_without_an_answer_and_leaves_a_traceback(
    served: Served, content: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decide = Inquiry.decide

    def decide_or_fail(inquiry: Inquiry) -> Decision | Needs:
        if isinstance(decision := decide(inquiry), Needs):
            return decision
        raise ZeroDivisionError("the bug")

    monkeypatch.setattr(Inquiry, "decide", decide_or_fail)
    assert await served.ask(content) == b""
    assert served.counters.bugs == 1
    assert bugs(caplog) == [ZeroDivisionError]
    monkeypatch.undo()
    assert await served.ask(BULK) == b"action=DEFER 4.7.1 later\n\n"


async def test_a_bug_while_accepting_closes_the_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "UNREAD_ANSWERS", "many")
    assert await served.ask(BULK) == b""
    assert served.counters.bugs == 1
    assert bugs(caplog) == [TypeError]
    monkeypatch.undo()
    assert await served.ask(BULK) == b"action=DEFER 4.7.1 later\n\n"


async def test_many_bugs_cause_one_traceback_a_second(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Inquiry, "decide", lambda _: 1 / 0)
    for _ in range(20):
        assert await served.ask(BULK) == b""
    assert served.counters.bugs == 20
    assert bugs(caplog) == [ZeroDivisionError]


PROBE = b"request=smtpd_access_policy\nprotocol_state=CONNECT\npolicyd_probe=1\n\n"


async def test_a_probe_is_answered_in_order_and_neither_logged_nor_counted(served: Served) -> None:
    reply = parse_probe_reply((await served.ask(PROBE)).removesuffix(b"\n\n"))
    assert reply == (__version__, served.server.ruleset.hash, False)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(BULK + 500 * PROBE + BULK + PROBE)
    async with asyncio.timeout(10):
        answers = [await reader.readuntil(b"\n\n") for _ in range(503)]
    writer.close()
    bulk = b"action=DEFER 4.7.1 later\n\n"
    assert [answer == bulk for answer in answers] == [True, *500 * [False], True, False]
    await asyncio.sleep(0)
    assert served.log.read_bytes().count(b"\n") == 2
    assert sum(served.counters.decisions.values()) == 2


async def test_a_probe_waits_behind_a_client_that_is_looked_up(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(unnamed("192.0.2.98") + PROBE)
    async with asyncio.timeout(10):
        answers = [await reader.readuntil(b"\n\n") for _ in range(2)]
    writer.close()
    assert answers[0].startswith(b"action=REJECT")
    assert parse_probe_reply(answers[1].removesuffix(b"\n\n")) is not None


async def test_a_decision_is_in_the_log_as_soon_as_its_answer_has_arrived(served: Served) -> None:
    assert await served.ask(BULK) == b"action=DEFER 4.7.1 later\n\n"
    await asyncio.sleep(0)
    assert served.log.read_bytes().count(b"\n") == 1
