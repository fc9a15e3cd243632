"""Two daemons that share a Redis or Valkey server count together, over many connections."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.daemon.client import request
from tests.faults.conftest import long_only
from tests.field.policyd import Policyd
from tests.ports import free_port
from tests.requirements import require
from tests.state.servers import PROGRAMS, StateServer

if TYPE_CHECKING:
    from pathlib import Path

CONNECTIONS = 50
REQUESTS = 10_000

RULES = f"""
counters:
  mails: {{count: requests, per: sender, within: 1h}}
rules:
  - {{name: last, match: {{counter: mails >= {REQUESTS}}}, action: 'DEFER 4.7.1 number {{count}}'}}
"""


async def ask(port: int, count: int) -> Counter[str]:
    """Sends the same request `count` times over one connection; returns how often each answer came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answers: Counter[str] = Counter()
    for _ in range(count):
        writer.write(request())
        answers[(await reader.readuntil(b"\n\n")).decode().removeprefix("action=").strip()] += 1
    writer.close()
    await writer.wait_closed()
    return answers


@pytest.mark.slow
@long_only
@pytest.mark.parametrize("program", PROGRAMS or ["redis-server"])
async def test_ten_thousand_requests_to_two_daemons_are_counted_exactly(tmp_path: Path, program: str) -> None:
    require(program)
    with ExitStack() as running:
        server = StateServer(tmp_path, program)
        running.callback(server.stop)
        ports = [free_port(), free_port()]
        for port in ports:
            folder = tmp_path / f"daemon-{port}"
            folder.mkdir()
            settings: dict[str, Any] = {
                "listen": [f"inet:127.0.0.1:{port}"],
                "state": f"unix:{server.socket}",
                "state_timeout": "100ms",
            }
            running.enter_context(Policyd(folder, RULES, **settings))
        share = REQUESTS // CONNECTIONS
        answers = await asyncio.gather(*(ask(ports[number % 2], share) for number in range(CONNECTIONS)))
        one_more = await ask(ports[0], 1)
    assert sum(answers, Counter()) == {"DUNNO": REQUESTS - 1, f"DEFER 4.7.1 number {REQUESTS}": 1}
    assert one_more == {f"DEFER 4.7.1 number {REQUESTS + 1}": 1}
