"""Connections while accept(2) fails for reasons that a test must not cause for real."""

from __future__ import annotations

import asyncio
import errno
import os
import socket

import pytest

from policyd.daemon.listeners import Listener

# The system has no descriptors, no memory for sockets, or no memory. These errors are simulated, because real ones
# would affect every other program on the machine.
ERRORS = (errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Exhausted(socket.socket):
    """A listening socket whose accept fails while `error` is set."""

    error: int | None = None

    def accept(self) -> tuple[socket.socket, object]:
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        return super().accept()


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.__getitem__)
async def test_clients_wait_while_accept_fails_and_are_served_afterwards(error: int) -> None:
    listening = Exhausted(socket.AF_INET, socket.SOCK_STREAM)
    listening.bind(("127.0.0.1", 0))
    listening.listen(8)
    listening.error = error
    complaints: list[str] = []
    complained, accepted = asyncio.Event(), asyncio.Event()
    taken: list[socket.socket] = []

    def complain(_kind: str, message: str) -> None:
        complaints.append(message)
        complained.set()

    def take(connection: socket.socket, _peer: str) -> None:
        taken.append(connection)
        accepted.set()

    listener = Listener(listening, "inet:127.0.0.1:0")
    listener.start(asyncio.get_running_loop(), take, complain)
    with socket.create_connection(listening.getsockname()):
        await asyncio.wait_for(complained.wait(), 10)
        assert complaints[0] == f"inet:127.0.0.1:0: cannot accept: {os.strerror(error)}; clients wait"
        assert not taken
        listening.error = None
        await asyncio.wait_for(accepted.wait(), 10)
    taken[0].close()
    listener.close()
