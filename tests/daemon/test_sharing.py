"""Several daemons with one socket that is passed to all: a free daemon takes each connection."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.daemon.conftest import RULES
from tests.field.policyd import Policyd

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow  # starts programs

REQUEST = b"request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=203.0.113.9\nclient_name=a.example\n\n"


def ask(listener: socket.socket) -> bytes:
    with socket.socket(listener.family) as client:
        client.settimeout(20)
        client.connect(listener.getsockname())
        client.sendall(REQUEST)
        return client.recv(4096)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_free_daemon_takes_a_connection_while_the_other_is_busy(family: socket.AddressFamily, tmp_path: Path) -> None:
    with ExitStack() as running:
        listener = running.enter_context(socket.socket(family))
        listener.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "socket"))
        listener.listen()
        daemons = []
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            daemons.append(running.enter_context(Policyd(tmp_path / name, RULES, listener=listener)))
        for busy, free in (daemons, daemons[::-1]):
            os.kill(busy.pid, signal.SIGSTOP)
            try:
                assert ask(listener) == b"action=DEFER 4.7.1 later\n\n"
                assert len(free.decisions(client_address="203.0.113.9")) == 1
            finally:
                os.kill(busy.pid, signal.SIGCONT)
        ids = {decision["id"] for daemon in daemons for decision in daemon.decisions()}
        assert len(ids) == 2
