"""The tools in C answer and count correctly."""

from __future__ import annotations

import itertools
import json
import socket
import struct
import subprocess
import threading
import time
from array import array
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.bench import corpus, native, servers
from tests.bench.corpus import Client
from tests.bench.servers import Load, Server
from tests.ports import free_port
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

ANSWER = b"action=DUNNO\n\n"


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    require("cc")
    return native.build(tmp_path_factory.mktemp("tools"))


@contextmanager
def serving(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A listener that runs a function in a thread for each connection; yields its address."""
    with ExitStack() as threads, socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                client, _ = listener.accept()
                if client.getpeername() == stopper.getsockname():  # at the end of the block
                    client.close()
                    return
                thread = threading.Thread(target=run, args=(client,))
                thread.start()
                threads.callback(thread.join)

        def run(client: socket.socket) -> None:
            with client:
                serve(client)

        stopper = socket.socket()
        stopper.bind(("127.0.0.1", 0))
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"inet:127.0.0.1:{listener.getsockname()[1]}"
        finally:
            with stopper:
                stopper.connect(listener.getsockname())
                accepting.join()


def run_load(tools: dict[str, Path], address: str, requests: Path, *more: str) -> dict[str, Any]:
    command: list[str | Path] = [tools["load"], "-a", address, "-f", requests, "-c", "4", "-d", "0.2", "-w", "0", *more]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    return corpus.write_requests(tmp_path / "requests", corpus.strangers(50))


@pytest.mark.parametrize("kind", ["inet", "unix"])
def test_the_floor_answers_every_request(kind: str, tools: dict[str, Path], requests: Path, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/floor" if kind == "unix" else f"inet:127.0.0.1:{free_port()}"
    with subprocess.Popen([tools["floor"], address]) as floor:
        try:
            family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
            where = f"{tmp_path}/floor" if kind == "unix" else ("127.0.0.1", int(address.rpartition(":")[2]))
            wait_for(family, where)
            report = run_load(tools, address, requests)
        finally:
            floor.terminate()
    assert report["answered"] == report["actions"]["DUNNO"] == report["measured"] > 50
    assert report["wrong"] == report["closed"] == report["refused"] == report["unanswered"] == 0
    assert report["passes"] > 1
    assert 0 < report["latency_us"]["p50"] <= report["latency_us"]["p99"] <= report["latency_us"]["max"]


def test_the_floor_finds_the_end_of_a_request_however_it_is_split(tools: dict[str, Path]) -> None:
    request = b"request=smtpd_access_policy\nsender=\n\n"
    with servers.floor(tools["floor"]) as floor:
        port = int(floor.address.rpartition(":")[2])
        for split in range(1, len(request)):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client.sendall(request[:split])
                time.sleep(0.001)  # usually the two parts arrive separately; the answer is the same if not
                client.sendall(request[split:] + request)
                client.shutdown(socket.SHUT_WR)
                assert b"".join(iter(lambda: client.recv(100), b"")) == 2 * ANSWER


def wait_for(family: socket.AddressFamily, where: Any) -> None:
    deadline = time.monotonic() + 10
    while True:
        with socket.socket(family) as probe:
            if probe.connect_ex(where) == 0:
                return
        assert time.monotonic() < deadline
        time.sleep(0.01)


def answer_each(client: socket.socket, answers: Iterable[bytes]) -> None:
    """Answers one request after another, and closes after the last answer."""
    for answer in answers:
        received = b""
        while not received.endswith(b"\n\n"):
            received += (more := client.recv(65536))
            if not more:
                return
        client.sendall(answer)


def test_answers_are_counted_by_verb(tools: dict[str, Path], tmp_path: Path) -> None:
    verbs = ["DUNNO", "REJECT", "DEFER", "DEFER_IF_PERMIT"]
    clients = [Client("192.0.2.1", "a.example", verb) for verb in [*verbs, "DUNNO", "DUNNO"]]
    requests = corpus.write_requests(tmp_path / "requests", clients)
    words = [b"DUNNO", b"REJECT 5.7.1 no", b"DEFER 4.7.1 later", b"DEFER_IF_PERMIT 4.7.1 later", b"REJECT", b"550"]
    with serving(
        lambda client: answer_each(client, itertools.cycle(b"action=%b\n\n" % each for each in words))
    ) as address:
        report = run_load(tools, address, requests, "-c", "1")
    rounds, rest = divmod(report["answered"], 6)
    assert rounds > 0
    assert report["actions"]["DEFER_IF_PERMIT"] in {rounds, rounds + 1}
    assert report["actions"]["other"] == rounds
    assert report["wrong"] == 2 * rounds + (rest == 5)  # REJECT and 550 where DUNNO was right


def test_requests_lost_with_their_connection_are_counted(tools: dict[str, Path], requests: Path) -> None:
    with serving(lambda client: answer_each(client, [ANSWER] * 3)) as address:
        report = run_load(tools, address, requests)
    assert report["closed"] > 0
    assert report["answered"] > report["closed"]
    assert report["unanswered"] == report["refused"] == 0


def test_connections_that_are_refused_are_counted(tools: dict[str, Path], requests: Path) -> None:
    report = run_load(tools, f"inet:127.0.0.1:{free_port()}", requests)
    assert report["refused"] == 4
    assert report["answered"] == 0


def test_the_trace_has_each_answer_with_its_time(tools: dict[str, Path], requests: Path, tmp_path: Path) -> None:
    with servers.floor(tools["floor"]) as floor:
        began = time.monotonic_ns()
        report = run_load(tools, floor.address, requests, "-t", str(tmp_path / "trace"))
        ended = time.monotonic_ns()
    records = array("Q", (tmp_path / "trace").read_bytes())
    times, waits = list(records[0::2]), list(records[1::2])
    assert len(times) == report["measured"]
    assert times == sorted(times)
    assert began < times[0] <= times[-1] < ended
    assert max(waits) / 1000 == pytest.approx(report["latency_us"]["max"], abs=0.1)


@pytest.mark.parametrize("address", ["inet:192.0.2.1:25", "inet:0.0.0.0:25", "inet:localhost:25", "unix:here", "x"])
def test_an_address_outside_loopback_is_refused(address: str, tools: dict[str, Path], requests: Path) -> None:
    ended = subprocess.run(
        (tools["load"], "-a", address, "-f", requests), check=False, capture_output=True, text=True, timeout=10
    )
    assert ended.returncode == 2
    assert "not inet:127.0.0.1:PORT or unix:/PATH" in ended.stderr


def test_a_wrong_answer_fails_the_measurement(tools: dict[str, Path], tmp_path: Path) -> None:
    rejected = [Client("192.0.2.1", "a.example", "REJECT")]
    load = Load(tools["load"], corpus.write_requests(tmp_path / "requests", rejected), connections=2, seconds=0.2)
    with servers.floor(tools["floor"]) as floor:
        report = load.put_on(Server(floor.address, floor.pid))
    with pytest.raises(servers.BenchError, match='"wrong"'):
        servers.require_valid(report)


# --- The resolver -----------------------------------------------------------------------------------------------------


def query(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return b"\x12\x34\x01\x00\x00\x01" + bytes(6) + labels + b"\x00" + struct.pack(">HH", kind, 1)


@pytest.mark.parametrize(
    ("name", "kind", "code", "end"),
    [
        ("4.3.2.1.in-addr.arpa", 12, 0, b"\x09h-1-2-3-4\x07clients\x07example\x00"),
        ("h-1-2-3-4.clients.example", 1, 0, bytes([1, 2, 3, 4])),
        ("elsewhere.example", 1, 3, b""),
        ("h-1-2-3-4.clients.example", 28, 3, b""),
    ],
)
def test_the_resolver_knows_the_names_of_all_addresses_and_nothing_else(
    name: str, kind: int, code: int, end: bytes, tools: dict[str, Path]
) -> None:
    question = query(name, kind)
    with servers.resolver(tools["resolver"], 20) as address, socket.socket(type=socket.SOCK_DGRAM) as client:
        host, _, port = address.rpartition(":")
        client.connect((host, int(port)))
        answer = ask_until_answered(client, question)
    record = b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 300, len(end)) + end if end else b""
    flags = struct.pack(">HHHHH", 0x8180 | code, 1, bool(end), 0, 0)
    assert answer == question[:2] + flags + question[12:] + record


def ask_until_answered(client: socket.socket, question: bytes) -> bytes:
    """Returns the delayed answer; asks again while the server has not started."""
    client.settimeout(10)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            began = time.monotonic()
            client.send(question)
            answer = client.recv(4096)
        except ConnectionRefusedError:
            time.sleep(0.01)
            continue
        assert time.monotonic() - began >= 0.02
        return answer
    raise TimeoutError("no answer")


# --- The SMTP client --------------------------------------------------------------------------------------------------


def take_mail(client: socket.socket, *, recipient_reply: bytes, seen: list[bytes]) -> None:
    """An SMTP server that can accept one message."""
    replies = {
        b"EHLO": b"250-mx.example\r\n250 XCLIENT NAME ADDR\r\n",
        b"XCLI": b"220 mx.example\r\n",
        b"MAIL": b"250 2.1.0 Ok\r\n",
        b"RCPT": recipient_reply,
        b"DATA": b"354 go on\r\n",
        b"QUIT": b"221 2.0.0 Bye\r\n",
    }
    client.sendall(b"220 mx.example\r\n")
    with client.makefile("rb") as lines:
        for line in lines:
            if line[:4] == b"DATA":
                client.sendall(replies[b"DATA"])
                while lines.readline() != b".\r\n":
                    pass
                client.sendall(b"250 2.0.0 Ok: queued\r\n")
                continue
            if line[:4] == b"XCLI":
                seen.append(line)
            client.sendall(replies[line[:4]])


@pytest.mark.parametrize(("reply", "taken"), [(b"250 2.1.5 Ok\r\n", 7), (b"450 4.7.1 later\r\n", 0)])
def test_messages_are_counted_as_taken_or_failed(
    reply: bytes, taken: int, tools: dict[str, Path], tmp_path: Path
) -> None:
    clients = corpus.write_clients(tmp_path / "clients", corpus.strangers(3))
    seen: list[bytes] = []
    with serving(lambda client: take_mail(client, recipient_reply=reply, seen=seen)) as address:
        command = (tools["mail"], "-a", address, "-f", clients, "-n", "7", "-s", "2")
        report = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    assert (report["taken"], report["failed"]) == (taken, 7 - taken)
    assert len(seen) == 7
    address_, name = clients.read_text().split()[:2]
    assert f"XCLIENT ADDR={address_} NAME={name} REVERSE_NAME={name}\r\n".encode() in seen
