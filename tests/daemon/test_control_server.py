"""The daemon's end of the control socket by itself, over pairs of sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from policyd.control.words import Command, Request
from policyd.daemon.control import MAX_PEERS, ControlServer, LongText

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from policyd.daemon.control import Answer

LONG = b"x" * (4 << 20)  # bytes, far more than a socket holds


async def tell_rules(_request: Request) -> Answer:
    return LongText({"ok": True}, "rules", memoryview(LONG))


@asynccontextmanager
async def peer(server: ControlServer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the server."""
    here, there = socket.socketpair()
    server.accept(there, "peer")
    reader, writer = await asyncio.open_connection(sock=here, limit=2 * len(LONG))
    try:
        yield reader, writer
    finally:
        writer.close()


async def test_a_crowd_does_not_cut_off_an_answer_that_is_being_read() -> None:
    server = ControlServer({Command.RULES: tell_rules})
    async with AsyncExitStack() as crowd, peer(server) as (reader, writer), asyncio.timeout(30):
        writer.write(Request(Command.RULES).encode())
        start = await reader.readexactly(1)
        for _ in range(2 * MAX_PEERS):
            await crowd.enter_async_context(peer(server))
        answer = json.loads(start + await reader.readline())
    server.close()
    assert len(answer["rules"]) == len(LONG)
