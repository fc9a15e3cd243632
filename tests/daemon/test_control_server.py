"""The server of the control socket without a daemon, over pairs of sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from policyd.control.words import Command, ControlRequest
from policyd.daemon import control
from policyd.daemon.control import MAX_PEERS, ControlServer, LongText

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from policyd.daemon.control import ControlAnswer

LONG = b"x" * (4 << 20)  # bytes, far more than a socket holds


async def tell_rules(_request: ControlRequest) -> ControlAnswer:
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


async def test_many_new_peers_do_not_cut_off_an_answer_that_is_being_read() -> None:
    server = ControlServer({Command.RULES: tell_rules})
    async with AsyncExitStack() as crowd, peer(server) as (reader, writer), asyncio.timeout(30):
        writer.write(ControlRequest(Command.RULES).encode())
        start = await reader.readexactly(1)
        for _ in range(2 * MAX_PEERS):
            await crowd.enter_async_context(peer(server))
        answer = json.loads(start + await reader.readline())
    await server.close()
    assert len(answer["rules"]) == len(LONG)


async def test_a_request_is_answered_before_the_end_and_a_silent_peer_does_not_delay_it() -> None:
    began, may_end = asyncio.Event(), asyncio.Event()

    async def take_long(_request: ControlRequest) -> ControlAnswer:
        began.set()
        await may_end.wait()
        return {"ok": True}

    server = ControlServer({Command.STATUS: take_long})
    async with peer(server) as (reader, writer), peer(server) as (silent, _), asyncio.timeout(30):
        writer.write(ControlRequest(Command.STATUS).encode() * 2)
        await began.wait()
        closing = asyncio.create_task(server.close())
        assert await silent.read() == b""
        may_end.set()
        assert await reader.read() == b'{"ok":true}\n'
        await closing


async def test_the_end_does_not_wait_for_a_peer_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "END_SECONDS", 0.01)
    server = ControlServer({Command.RULES: tell_rules})
    async with peer(server) as (reader, writer), asyncio.timeout(30):
        writer.write(ControlRequest(Command.RULES).encode())
        await reader.readexactly(1)
        writer.transport.pause_reading()  # type: ignore[attr-defined] # a socket's transport has it
        await server.close()
