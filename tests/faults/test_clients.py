"""Misbehaving clients: good clients still get the right answers in time."""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import pytest

from tests.daemon.client import Client, request
from tests.faults.conftest import LONG, SECONDS, Setting, cases_to_try, long_only, wait_for_edition
from tests.faults.world import CLIENTS, NAMED, attributes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.field.policyd import Policyd

_Place = TypeVar("_Place", int, str)

# Number of connections that misbehave at the same time.
CROWD = 200

# The most expensive request for its size: its answer has about a hundred bytes.
LISTED = request(client_address="203.0.113.9")


def garbage(port: int, over: threading.Event) -> None:
    """Opens connections one after the other, and sends junk."""
    kinds = (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n\n\n", b"\x16\x03\x01\x02\0" * 50 + b"\n\n", b"\n\n\n", b"=\n\n")
    while not over.is_set():
        for kind in kinds:
            with Client(port) as client:
                client.send(kind)
                assert client.is_closed()


def binary(port: int, over: threading.Event) -> None:
    """Opens connections one after the other, and sends random bytes."""
    while not over.is_set():
        with Client(port) as client, suppress(OSError):
            client.send(os.urandom(70_000))
            client.socket.shutdown(socket.SHUT_WR)
            assert client.is_closed()


def half_a_request(port: int, over: threading.Event) -> None:
    """Opens many connections, sends half a request on each, and then nothing."""
    with crowd(port) as clients:
        for client in clients:
            client.send(LISTED[:60])
        over.wait()


def a_byte_now_and_then(port: int, over: threading.Event) -> None:
    """Opens many connections, and sends a request on each, one byte a second."""
    with crowd(port) as clients:
        for place in range(len(LISTED)):
            for client in clients:
                client.send(LISTED[place : place + 1])
            if over.wait(1):
                return


def never_reading(port: int, over: threading.Event) -> None:
    """Opens connections one after the other, sends requests, and never reads."""
    while not over.is_set():
        with Client(port) as client, suppress(OSError):
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.socket.settimeout(0.1)
            while not over.is_set():
                client.send(LISTED * 20)
                over.wait(0.005)  # otherwise the CPU would be the limit


def reset_in_the_middle(port: int, over: threading.Event) -> None:
    """Opens connections one after the other, and resets each between requests and answers."""
    while not over.is_set():
        with Client(port) as client:
            client.send(LISTED * 3 + LISTED[:50])
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        over.wait(0.002)


def storm(port: int, over: threading.Event) -> None:
    """Opens many connections at once and closes them, again and again."""
    while not over.is_set():
        with crowd(port):
            pass
        over.wait(0.05)


@contextmanager
def crowd(port: int, count: int = CROWD) -> Iterator[list[Client]]:
    """Opens this number of connections."""
    clients: list[Client] = []
    try:
        clients.extend(Client(port) for _ in range(count))
        yield clients
    finally:
        for client in clients:
            client.socket.close()


NUISANCES: dict[str, Callable[[int, threading.Event], None]] = {
    "garbage": garbage,
    "random bytes": binary,
    f"half a request and silence, {CROWD} connections": half_a_request,
    f"one byte a second, {CROWD} connections": a_byte_now_and_then,
    "answers that are never read": never_reading,
    "resets in the middle": reset_in_the_middle,
    f"storms of {CROWD} connections": storm,
}


@pytest.fixture(scope="module")
def one_setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Setting, Policyd]]:
    """One daemon for all nuisances."""
    setting = Setting(tmp_path_factory.mktemp("clients"))
    with setting.dns, setting.daemon() as policyd:
        yield setting, policyd


@contextmanager
def running(nuisance: Callable[[_Place, threading.Event], None], place: _Place) -> Iterator[None]:
    """Runs the nuisance during the block. Its failures fail the test."""
    over = threading.Event()
    problems: list[BaseException] = []

    def run() -> None:
        try:
            nuisance(place, over)
        except BaseException as problem:  # noqa: BLE001 - the test's own thread reports it
            problems.append(problem)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)
    assert problems == []


IN_SHORT = "garbage", "answers that are never read", "resets in the middle"


@pytest.mark.parametrize("name", cases_to_try(NUISANCES, *IN_SHORT))
def test_bad_clients_do_not_affect_good_clients(name: str, one_setting: tuple[Setting, Policyd]) -> None:
    setting, policyd = one_setting
    with setting.flow(f"clients: {name}") as flow:
        with running(NUISANCES[name], setting.port):
            flow.go_on(SECONDS)
        flow.fault_is_over()
    flow.compare(policyd.decisions(flow.row.answered))
    assert "bug" not in policyd.operational_log.read_text()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Raises this process's limit of file descriptors to the maximum."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 6000:
        pytest.skip("RLIMIT_NOFILE is too low for 5,000 connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@long_only
@pytest.mark.usefixtures("many_descriptors")
def test_five_thousand_connections_do_not_disturb_served_clients(
    one_setting: tuple[Setting, Policyd],
) -> None:
    setting, policyd = one_setting
    with setting.flow("clients: 5,000 connections, of which 4,096 are admitted") as flow:
        with crowd(setting.port, 5000):
            flow.go_on(SECONDS)
        flow.fault_is_over()
    flow.compare(policyd.decisions(flow.row.answered))
    assert "refused: 4096 connections are open (limits.connections)" in policyd.operational_log.read_text()


@pytest.mark.usefixtures("many_descriptors")
def test_a_request_on_every_connection_at_the_moment_of_a_reload_is_answered_rightly(
    setting: Setting,
) -> None:
    world = setting.world
    name = f"clients: a request on each of {1000 if LONG else 200:,} connections at the moment of a reload"
    numbers = [place % len(NAMED) for place in range(1000 if LONG else 200)]
    contents = [
        "".join(f"{name}={value}\n" for name, value in attributes_of(client, 0).items()).encode() + b"\n"
        for client in numbers
    ]
    with (
        setting.daemon() as policyd,
        crowd(setting.port, len(numbers)) as clients,
        setting.flow(name, named=2) as flow,
    ):
        for edition in range(1, 20 if LONG else 3):
            with world.edition.changing(edition):
                setting.write_edition(policyd, edition)
                os.kill(policyd.pid, signal.SIGHUP)
                sent = time.monotonic()
                for client, content in zip(clients, contents, strict=True):
                    client.send(content)
                answers = [client.answer() for client in clients]
                answered = time.monotonic()
                wait_for_edition(policyd, edition)
            for number, answer in zip(numbers, answers, strict=True):
                assert answer in world.right_answers(number, 0, sent, sent, answered), CLIENTS[number]
        flow.fault_is_over()


def test_without_descriptors_new_clients_wait_and_connected_clients_are_served(setting: Setting) -> None:
    with setting.daemon() as policyd:
        _, hard = resource.prlimit(policyd.pid, resource.RLIMIT_NOFILE)
        with setting.flow("clients: no descriptor left (ulimit -n)", exhausts=True) as flow:
            flow.go_on(0.3)
            with setting.world.dns_may_fail():
                resource.prlimit(policyd.pid, resource.RLIMIT_NOFILE, (3, hard))
                late = Client(setting.port)
                late.send(LISTED)
                refused = policyd.reload()
                flow.go_on(SECONDS)
                resource.prlimit(policyd.pid, resource.RLIMIT_NOFILE, (hard, hard))
            setting.use_edition(policyd, 1)
            flow.fault_is_over()
            assert late.answer().startswith("REJECT 5.7.1 edition ")
            late.socket.close()
        flow.compare(policyd.decisions(flow.row.answered))
        logged = policyd.operational_log.read_text()
    assert "cannot accept: Too many open files; clients wait" in logged
    assert "no descriptor is free to receive the new ruleset" in refused
    assert "bug" not in logged
