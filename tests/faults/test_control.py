"""Misbehaving peers of the control socket: Postfix and the next `policyd status` are still answered."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from policyd.control.client import ask
from policyd.control.words import Command, ControlRequest
from tests.faults.conftest import LONG, SECONDS, Setting, cases_to_try, long_only
from tests.faults.test_clients import running

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from tests.field.policyd import Policyd

# Number of peers at the same time. The daemon keeps 16 of them.
CROWD = 1000 if LONG else 200


def connect(place: str) -> socket.socket:
    """Connects a peer; waits if the queue is full."""
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(place)
    peer.settimeout(30)
    return peer


def junk(place: str, over: threading.Event) -> None:
    """Peers connect one after the other and send junk."""
    kinds = (b"GET / HTTP/1.1\r\n\r\n", b"\0\xff" * 500 + b"\n", b"[" * 4000 + b"\n", b'{"command": "stop"}\n', b"\n")
    while not over.is_set():
        for kind in kinds:
            with connect(place) as peer:
                peer.sendall(kind)
                assert b'"ok":false' in peer.makefile("rb").read()


def a_megabyte(place: str, over: threading.Event) -> None:
    """Peers connect one after the other and send a megabyte without a line break."""
    while not over.is_set():
        with connect(place) as peer, suppress(OSError):
            peer.sendall(os.urandom(1 << 20).replace(b"\n", b""))
            peer.shutdown(socket.SHUT_WR)
            assert b"at most 4096 bytes" in peer.makefile("rb").read()


def half_a_line(place: str, over: threading.Event) -> None:
    """Many peers connect, send half a line, and then nothing."""
    with ExitStack() as crowd:
        for _ in range(CROWD):
            peer = crowd.enter_context(connect(place))
            with suppress(OSError):  # the daemon has disconnected it for a later peer
                peer.sendall(b'{"command": "sta')
        over.wait()


def storm(place: str, over: threading.Event) -> None:
    """Many peers connect at once and disconnect, again and again."""
    while not over.is_set():
        with ExitStack() as crowd:
            for _ in range(CROWD):
                crowd.enter_context(connect(place))


def never_reading(place: str, over: threading.Event) -> None:
    """Peers ask for the rules again and again, and never read an answer."""
    with ExitStack() as crowd:
        peers = [crowd.enter_context(connect(place)) for _ in range(12)]
        for peer in peers:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.settimeout(0.05)
        while not over.is_set():
            for peer in peers:
                with suppress(OSError):
                    peer.sendall(ControlRequest(Command.RULES).encode() * 20)
            over.wait(0.05)


def reloads_without_waiting(place: str, over: threading.Event) -> None:
    """Peers ask for a reload, and close the connection before the reload has ended."""
    while not over.is_set():
        with connect(place) as peer:
            peer.sendall(ControlRequest(Command.RELOAD, data=True).encode())
        over.wait(0.02)


NUISANCES: dict[str, Callable[[str, threading.Event], None]] = {
    "junk": junk,
    "a megabyte without an end": a_megabyte,
    f"half a line and silence, {CROWD:,} connections": half_a_line,
    f"storms of {CROWD:,} connections": storm,
    "answers that are never read": never_reading,
    "reloads without waiting": reloads_without_waiting,
}
IN_SHORT = "junk", "a megabyte without an end", f"half a line and silence, {CROWD:,} connections"


@pytest.fixture(scope="module")
def controlled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Setting, Policyd, str]]:
    """One daemon with a control socket, for all nuisances."""
    setting = Setting(tmp_path_factory.mktemp("control"))
    place = str(setting.folder / "c.sock")
    with setting.dns, setting.daemon(control=place) as policyd:
        yield setting, policyd, place


@pytest.mark.parametrize("name", cases_to_try(NUISANCES, *IN_SHORT))
def test_peers_of_the_control_socket_do_not_affect_postfix(name: str, controlled: tuple[Setting, Policyd, str]) -> None:
    setting, policyd, place = controlled
    with setting.flow(f"control: {name}") as flow:
        with running(NUISANCES[name], place):
            flow.go_on(SECONDS)
            assert ask(place, ControlRequest(Command.STATUS))["ok"]
        flow.fault_is_over()
    flow.compare(policyd.decisions(flow.row.answered))
    assert ask(place, ControlRequest(Command.ALIVE))["ok"]
    assert "bug" not in policyd.operational_log.read_text()


@long_only
def test_a_rules_file_of_many_megabytes_is_sent_to_a_peer_without_delaying_requests(setting: Setting) -> None:
    place = str(setting.folder / "c.sock")
    with setting.daemon(control=place) as policyd:
        text = policyd.rules.read_text() + "".join(f"# {n:060}\n" for n in range(500_000))
        policyd.rules.write_text(text)
        policyd.reload()
        with setting.flow("control: 32 MB of rules sent again and again") as flow:
            for _ in range(3):
                assert ask(place, ControlRequest(Command.RULES))["rules"] == text
            flow.fault_is_over()
