"""A server that is not Valkey: malformed answers of any kind never delay a request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from policyd.state.operations import Operation
from policyd.state.valkey import MAX_FAILURES, SharedMemory, connection_of

if TYPE_CHECKING:
    from pathlib import Path

ANSWERS = {
    "a number that is not a number": b":x\r\n",
    "a length that is not a number": b"$x\r\n",
    "a line without an end": b"a" * 200_000,
    "lists in lists": b"*1\r\n" * 5000,
    "a list of another length": b"*0\r\n",
    "text": b"+OK\r\n",
    "a page": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_a_malformed_answer_is_a_failure_and_the_next_request_is_answered_too(
    tmp_path: Path, answer: bytes
) -> None:
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
