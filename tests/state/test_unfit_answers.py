"""Malformed answers of a server that is not Valkey, and a connection that loses a cancellation."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from policyd.state.operations import Operation
from policyd.state.valkey import MAX_FAILURES, SharedMemory, connection_of

if TYPE_CHECKING:
    from pathlib import Path

    from valkey.asyncio.connection import AbstractConnection

ANSWERS = {
    "an integer without digits": b":x\r\n",
    "a length that is not a number": b"$x\r\n",
    "a line without an end": b"a" * 200_000,
    "lists in lists": b"*1\r\n" * 5000,
    "an empty list": b"*0\r\n",
    "text": b"+OK\r\n",
    "an HTTP response": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_malformed_answers_are_failures_until_the_server_counts_as_away(tmp_path: Path, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(answer)
        writer.close()

    path = str(tmp_path / "state.sock")
    server = await asyncio.start_unix_server(serve, path)
    state = SharedMemory(connection_of(path=path, timeout=5), "valkey", 5)
    try:
        async with asyncio.timeout(30):
            found = [await state.ask([Operation("get", b"policyd:a")]) for _ in range(MAX_FAILURES)]
    finally:
        await state.close()
        server.close()
    assert found == [None] * MAX_FAILURES
    assert not state.is_up
    assert state.why


class SwallowsCancellation:
    """A connection that reports a cancellation as an error of its own."""

    is_connected = False

    def __init__(self) -> None:
        self.is_asked = asyncio.Event()

    async def send_packed_command(self, *_: object, **__: object) -> None:
        self.is_asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionError from None

    async def disconnect(self) -> None:
        """Does nothing."""


async def test_closing_ends_even_if_a_cancellation_is_lost() -> None:
    connection = SwallowsCancellation()
    state = SharedMemory(cast("AbstractConnection", connection), "valkey", 20)
    waiting = state.ask([Operation("get", b"policyd:a")])
    await connection.is_asked.wait()
    state._operations = 0  # so that `close` does not wait for the answer
    async with asyncio.timeout(10):
        await state.close()
    assert waiting.result() is None
    assert state._task.done()
