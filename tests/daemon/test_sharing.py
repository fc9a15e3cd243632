"""Several daemons with one socket that is passed to all: a free daemon takes each connection."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.daemon.client import Client
from tests.daemon.conftest import BULK, LATER, RULES
from tests.field.policyd import Policyd

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow  # starts programs


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_free_daemon_takes_a_connection_while_the_other_is_busy(family: socket.AddressFamily, tmp_path: Path) -> None:
    with ExitStack() as running:
        listener = running.enter_context(socket.socket(family))
        listener.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "socket"))
        listener.listen()
        place = listener.getsockname()[1] if family == socket.AF_INET else tmp_path / "socket"
        daemons = []
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            daemons.append(running.enter_context(Policyd(tmp_path / name, RULES, listener=listener)))
        for busy, free in (daemons, daemons[::-1]):
            os.kill(busy.pid, signal.SIGSTOP)
            try:
                with Client(place) as client:
                    assert client.ask(BULK) == LATER
                assert len(free.decisions(client_address="203.0.113.9")) == 1
            finally:
                os.kill(busy.pid, signal.SIGCONT)
        ids = {decision["id"] for daemon in daemons for decision in daemon.decisions()}
        assert len(ids) == 2
