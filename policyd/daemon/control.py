"""The server of the control socket: requests in, answers out, one JSON object a line (policyd.control.words).

Promises that peers do not delay Postfix: a request has a maximum length and a deadline, and the number of peers is
limited. Beyond the limit the oldest peer without a request is disconnected or, if every peer has a request, the new
peer. The functions passed to `ControlServer` carry out the requests. The socket's mode and group decide who may
connect.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any, TypeAlias

from policyd.control.words import (
    MAX_REQUEST_BYTES,
    Command,
    ControlRequest,
    RequestError,
    encode,
    encode_with_text,
    failure,
    parse_request,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

_log = logging.getLogger(__name__)

# Maximum number of peers: a few administrators and timers. Each takes one of the descriptors that
# listeners.SPARE_DESCRIPTORS keeps free.
MAX_PEERS = 16

# Seconds for a request to arrive, and for a peer to read an answer.
REQUEST_SECONDS = 5.0
ANSWER_SECONDS = 30.0

# Seconds for the answers to the last requests when the daemon ends.
END_SECONDS = 1.0

# Bytes of an unread answer above which writing pauses.
UNREAD_BYTES = 1 << 18


class LongText:
    """An answer with a text that is too long to encode at once; `name` is the key of the text."""

    def __init__(self, fields: dict[str, Any], name: str, text: memoryview) -> None:
        self.fields = fields
        self.name = name
        self.text = text


ControlAnswer: TypeAlias = "dict[str, Any] | LongText"
Commands: TypeAlias = "Mapping[Command, Callable[[ControlRequest], Awaitable[ControlAnswer]]]"


class ControlServer:
    """Answers the peers that a listener accepts."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._is_closing = False
        # The task of each peer, the oldest first, and whether the peer has a request that has not been answered.
        self._peers: dict[asyncio.Task[None], bool] = {}

    def accept(self, accepted: socket.socket, _peer: str) -> None:
        """Serves a connection that a listener has accepted, or closes it if MAX_PEERS peers have a request."""
        if len(self._peers) >= MAX_PEERS:
            waiting = next((task for task, is_busy in self._peers.items() if not is_busy), None)
            if waiting is None:
                accepted.close()
                return
            waiting.cancel()
            del self._peers[waiting]
        task = asyncio.get_running_loop().create_task(self._serve(accepted))
        self._peers[task] = _has_request(accepted)
        task.add_done_callback(lambda done: self._peers.pop(done, None))

    async def close(self) -> None:
        """Ends idle connections at once, and the others when their request is answered, or after END_SECONDS."""
        self._is_closing = True
        for task, is_busy in list(self._peers.items()):
            if not is_busy:
                task.cancel()
        if self._peers:
            await asyncio.wait(self._peers, timeout=END_SECONDS)
        for task in list(self._peers):
            task.cancel()

    async def _serve(self, accepted: socket.socket) -> None:
        """Serves one peer, request by request, until it closes or sends an invalid request."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=MAX_REQUEST_BYTES, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, accepted)
        except Exception:  # noqa: BLE001 - the boundary of the accept
            accepted.close()
            _log.exception("control: a bug in policyd, please report it")
            return
        transport.set_write_buffer_limits(high=UNREAD_BYTES)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            while await self._answer_one(reader, writer) and not self._is_closing:
                pass
            async with asyncio.timeout(ANSWER_SECONDS):
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError) as error:
            _log.debug("control: a connection has ended: %s", type(error).__name__)
        except Exception:  # noqa: BLE001 - the boundary of a peer
            _log.exception("control: a bug in policyd, please report it")
        finally:
            transport.abort()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Reads a request and answers it. Returns whether the peer may send another request."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                line = await reader.readline()
        except ValueError:  # the line is longer than the limit
            await self._write(writer, failure(f"a request has at most {MAX_REQUEST_BYTES} bytes"))
            return False
        if not line.endswith(b"\n"):
            return False
        try:
            request = parse_request(line)
        except RequestError as error:
            await self._write(writer, failure(str(error)))
            return False
        task = asyncio.current_task()
        assert task is not None
        if task in self._peers:
            self._peers[task] = True
        try:
            await self._write(writer, await self._commands[request.command](request))
        finally:
            if task in self._peers:
                self._peers[task] = False
        return True

    async def _write(self, writer: asyncio.StreamWriter, answer: ControlAnswer) -> None:
        async with asyncio.timeout(ANSWER_SECONDS):
            for piece in _pieces(answer):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)


def _has_request(accepted: socket.socket) -> bool:
    """Whether a complete request has already arrived; every policyd command sends its request at once."""
    try:
        return b"\n" in accepted.recv(MAX_REQUEST_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return False


def _pieces(answer: ControlAnswer) -> Iterator[bytes]:
    if isinstance(answer, LongText):
        yield from encode_with_text(answer.fields, answer.name, answer.text)
    else:
        yield encode(answer)
