"""The shared server or the state file fails while real mail goes through a real Postfix: no mail is rejected because of
that, and no answer waits for it.

They are policyd's memory: the state of its counters and of greylisting.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import pytest

from tests.faults.conftest import LONG, SECONDS, add_row, cases_to_try
from tests.faults.flow import LONGEST_SECONDS, Row
from tests.faults.test_files import small_disk
from tests.field.policyd import Policyd
from tests.field.postfix import Client
from tests.field.waiting import until
from tests.requirements import require
from tests.state.servers import PROGRAMS, StateServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.field.postfix import Postfix

# Maximum seconds of an answer; more in the short form, which runs beside other tests.
LONGEST = LONGEST_SECONDS if LONG else 2.0
# Seconds after the end of a fault until the shared server is used again.
BACK_SECONDS = 2.0 if LONG else 10.0

RULES = """
counters:
  mails: {count: requests, per: sender, within: 1h}
  doors: {count: distinct client_address, per: [client_network/20, recipient], within: 2h}
rules:
  - {name: listed, match: {cidr: 198.18.0.0/16}, action: REJECT 5.7.1 listed}
  - {name: often, match: {counter: [mails > 100000000, doors > 255]}, action: REJECT 5.7.1 often}
  - {name: grey, match: {helo_name: grey.example}, action: GREYLIST 4.7.1 come again}
"""


class Sender(NamedTuple):
    """Clients of a network (its first two octets). `code` is the right code of a reply; while memory fails,
    `failing_code` is right as well.
    """

    network: str
    name: str | None
    helo_name: str
    code: int
    failing_code: int


# Each client of NEW is new, and in a separate network, so the daemon's own memory does not know it.
LISTED = Sender("198.18", None, "client.example", 554, 554)
HONEST = Sender("198.19", "mail.honest.example", "client.example", 250, 250)
NEW = Sender("10.9", "mail.new.example", "grey.example", 450, 250)


class Mail:
    """Sends messages from all senders at the same time, one after the other from each, between `__enter__` and
    `__exit__`.
    """

    def __init__(self, fault: str, port: int) -> None:
        self.row = add_row(Row(f"memory: {fault} (Postfix)"))
        self.may_fail = False
        self.codes: Counter[tuple[str, int]] = Counter()  # by network and code
        self.wrong: list[str] = []
        self._over: float | None = None
        self._port = port
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._send, args=(sender,)) for sender in (LISTED, HONEST, NEW)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.wait_for(2)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, messages: int) -> None:
        """Waits until each sender has got this many more answers."""
        wanted = {sender: self._answers(sender) + messages for sender in (LISTED, HONEST, NEW)}
        until(f"{messages} more messages", lambda: all(self._answers(s) >= n for s, n in wanted.items()) or None, 60)

    def fault_begins(self) -> None:
        self.may_fail = True

    def fault_is_over(self) -> None:
        """Marks the end of the fault: replies must be normal soon. Waits until a new client is deferred again."""
        self._over = time.monotonic()
        until("memory in use again", lambda: self.row.normal_within, BACK_SECONDS + 1)
        self.may_fail = False
        self.wait_for(3)

    def _answers(self, sender: Sender) -> int:
        return sum(count for (network, _), count in self.codes.items() if network == sender.network)

    def _send(self, sender: Sender) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            address = f"{sender.network}.{number % 250}.{number // 250 + 1}"
            began, may_fail = time.monotonic(), self.may_fail
            with Client(self._port, address, sender.name, helo_name=sender.helo_name) as client:
                (reply,) = client.offer(f"user{number}@sender.example", f"{address}@field.example")
            ended = time.monotonic()
            may_fail = may_fail or self.may_fail
            with self._lock:
                self.row.sent += 1
                self.row.answered += 1
                self.codes[sender.network, reply.code] += 1
                if reply.code != sender.code and not (may_fail and reply.code == sender.failing_code):
                    self.row.wrong += 1
                    self.wrong.append(f"{sender} {address}: {reply}")
                is_normal = sender is NEW and reply.code == sender.code
                if is_normal and self._over is not None and self.row.normal_within is None and began > self._over:
                    self.row.normal_within = ended - self._over


@contextmanager
def mail_with(postfix: Postfix, folder: Path, fault: str, **settings: Any) -> Iterator[tuple[Mail, Policyd]]:
    """Sends mail under a daemon with these settings; checks at the end that every answer was right and none waited for
    memory.
    """
    listen = [f"inet:127.0.0.1:{postfix.port['policy']}"]
    with (
        Policyd(folder, RULES, listen=listen, dns={"servers": ["127.0.0.1:9"]}, **settings) as policyd,
        Mail(fault, postfix.port["inet"]) as mail,
    ):
        yield mail, policyd
    logged = policyd.decisions(mail.row.answered)
    mail.row.longest = max(decision["ms"] for decision in logged) / 1000
    assert mail.wrong == []
    assert mail.row.longest < LONGEST, mail.row
    assert {decision["action"] for decision in logged if decision.get("memory") == "local"} <= {
        "DUNNO",
        "REJECT",
        "DEFER_IF_PERMIT",
    }
    assert {decision["rule"] for decision in logged if decision["action"] == "REJECT"} == {"listed"}


# --- The shared server ------------------------------------------------------------------------------------------------


class Impostor:
    """Another program at the server's socket, which answers every question with a line of another protocol."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen(64)
        self._listening.settimeout(0.1)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                peer, _ = self._listening.accept()
            except TimeoutError:
                continue
            with peer:
                peer.settimeout(0.2)
                try:
                    peer.recv(65536)
                    peer.sendall(b"220 smtp.example ESMTP\r\n")
                except OSError:
                    continue

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._listening.close()


def killed(server: StateServer) -> None:
    server.stop()
    time.sleep(SECONDS)
    server.start()


def stopped_by_signal(server: StateServer) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(30 if LONG else SECONDS)
    server.process.send_signal(signal.SIGCONT)


def restarted_empty(server: StateServer) -> None:
    server.stop()
    server.start()


def full(server: StateServer) -> None:
    server.command("config", "set", "maxmemory", "1")
    time.sleep(SECONDS)
    server.command("config", "set", "maxmemory", "0")


def with_a_wrong_password(server: StateServer) -> None:
    server.command("config", "set", "requirepass", "another")
    server.command("-a", "another", "client", "kill", "type", "normal")
    time.sleep(SECONDS)
    server.command("-a", "another", "config", "set", "requirepass", "")


def replaced_by_something_else(server: StateServer) -> None:
    server.stop()
    impostor = Impostor(server.socket)
    time.sleep(SECONDS)
    impostor.close()
    server.start()


def answering_2_s_late(server: StateServer) -> None:
    assert server.process is not None
    for _ in range(3 if LONG else 1):
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(2)
        server.process.send_signal(signal.SIGCONT)
        time.sleep(0.05)


SHARED: dict[str, Callable[[StateServer], None]] = {
    "the server killed": killed,
    "the server frozen by SIGSTOP": stopped_by_signal,
    "the server restarted empty": restarted_empty,
    "the server full": full,
    "a wrong password": with_a_wrong_password,
    "the server replaced by something else": replaced_by_something_else,
    "the server answering 2 s late": answering_2_s_late,
}


@pytest.mark.parametrize("program", PROGRAMS or ["redis-server"])
@pytest.mark.parametrize("name", cases_to_try(SHARED, "the server killed", "the server full"))
def test_a_shared_server_that_fails_costs_no_mail(postfix: Postfix, tmp_path: Path, name: str, program: str) -> None:
    require(program)
    server = StateServer(tmp_path, program)
    try:
        with mail_with(postfix, tmp_path, f"{name}, {program}", state=f"unix:{server.socket}") as (mail, policyd):
            mail.fault_begins()
            SHARED[name](server)
            mail.fault_is_over()
            log = policyd.operational_log.read_text()
            if name != "the server restarted empty":
                assert "answers meanwhile" in log
                assert "answers again" in log
    finally:
        server.stop()
    if name != "the server restarted empty":
        assert mail.codes[NEW.network, 250]  # without the server, the daemon lets unknown clients through
    assert mail.row.normal_within is not None
    assert mail.row.normal_within < BACK_SECONDS, mail.row


# --- The state file ---------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def filled_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def made_by_a_newer_version(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


STATE_FILES: dict[str, Callable[[Path], None]] = {
    "cut": cut,
    "filled with zeros": filled_with_zeros,
    "made by a newer version": made_by_a_newer_version,
}


@pytest.mark.parametrize("name", cases_to_try(STATE_FILES, "cut"))
def test_a_damaged_state_file_is_moved_aside_and_mail_goes_on(postfix: Postfix, tmp_path: Path, name: str) -> None:
    path = tmp_path / "state.db"
    with mail_with(postfix, tmp_path, "no fault; a state file is written", state_file=str(path)) as (mail, _):
        mail.wait_for(5)
    STATE_FILES[name](path)
    again = tmp_path / "again"
    again.mkdir()
    with mail_with(postfix, again, f"a state file {name}", state_file=str(path)) as (mail, policyd):
        mail.wait_for(5)
        assert "it was moved to" in policyd.operational_log.read_text()
    assert len(list(tmp_path.glob("state.db.damaged-*"))) == 1


def test_a_locked_state_file_is_not_used_and_mail_goes_on(postfix: Postfix, tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    connection = sqlite3.connect(path)
    connection.executescript("PRAGMA locking_mode = EXCLUSIVE; CREATE TABLE held (key); BEGIN EXCLUSIVE")
    try:
        with mail_with(postfix, tmp_path, "a state file that is locked", state_file=str(path)) as (mail, policyd):
            mail.wait_for(5)
            assert "is locked by another process" in policyd.operational_log.read_text()
    finally:
        connection.close()


def fill(filler: Path) -> None:
    """Writes until the disk is full."""
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


def test_a_state_file_on_a_full_disk_delays_no_mail_and_is_written_again(postfix: Postfix, tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        path, filler = disk / "state.db", disk / "filler"
        with mail_with(postfix, tmp_path, "a state file on a full disk", state_file=str(path)) as (mail, policyd):
            fill(filler)
            until("a complaint", lambda: "tried again" in policyd.operational_log.read_text() or None, 60)
            mail.wait_for(5)
            filler.unlink()
            mail.wait_for(5)
        connection = sqlite3.connect(path)
        written = connection.execute("SELECT count(*) FROM waiting").fetchone()[0]
        connection.close()
    assert written >= mail.codes[NEW.network, 450]
