"""The logs of a running daemon: their destinations, and failures to write them."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.request import urlopen

import pytest

from tests.daemon.client import Client, request
from tests.daemon.conftest import BULK, LATER, RULES, StartPolicyd, log_lines
from tests.field.waiting import until
from tests.ports import free_port

pytestmark = pytest.mark.slow  # starts programs


@contextmanager
def serving(
    folder: Path, wrapper: tuple[str, ...] = (), stdout: int | IO[bytes] = subprocess.PIPE
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A daemon that writes its decisions to standard output, as text, and its port."""
    (folder / "rules.yaml").write_text(RULES)
    port = free_port()
    process = subprocess.Popen(
        [
            *wrapper,
            sys.executable,
            "-m",
            "policyd",
            "serve",
            "--rules",
            "rules.yaml",
            "--listen",
            f"inet:127.0.0.1:{port}",
        ],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if b"listening on" in line:
                break
        yield process, port
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def test_decisions_go_to_standard_output_line_by_line(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, port), Client(port) as client:
        assert client.ask(BULK) == LATER
        assert process.stdout is not None
        assert re.fullmatch(rb"[^ ]+ DEFER id=[0-9A-Z]{8} rule=bulk client=[^\n]+\n", process.stdout.readline())


def test_a_reader_that_stops_reading_causes_only_lost_lines(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, port), Client(port) as client:
        for _ in range(20):
            client.send(BULK * 100)
            assert {client.answer() for _ in range(100)} == {LATER}
        assert process.stderr is not None
        assert any(b"lines lost: its reader is too slow" in line for line in process.stderr)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        while process.stdout.read(65536):
            pass
        os.set_blocking(process.stdout.fileno(), True)
        assert client.ask(request(client_name="a.vs.sakura.ne.jp")).startswith("REJECT")
        assert b" REJECT id=" in process.stdout.readline()


def test_a_reader_that_has_ended_causes_only_lost_lines(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, port), Client(port) as client:
        assert process.stdout is not None
        process.stdout.close()
        assert client.ask(BULK) == LATER
        assert process.stderr is not None
        assert any(b"decision log -: 1 lines lost: Broken pipe" in line for line in process.stderr)


def test_a_closed_standard_output_causes_only_lost_lines(tmp_path: Path) -> None:
    closed = ("bash", "-c", 'exec "$@" >&-', "bash")
    with serving(tmp_path, closed, subprocess.DEVNULL) as (process, port), Client(port) as client:
        assert client.ask(BULK) == LATER
        assert process.stderr is not None
        assert any(b"decision log -: 1 lines lost: Broken pipe" in line for line in process.stderr)


def test_standard_output_may_be_a_file_that_others_append_to(tmp_path: Path) -> None:
    path = tmp_path / "out"

    def lines(count: int) -> list[bytes]:
        def enough() -> list[bytes] | None:
            written = path.read_bytes().splitlines()
            return written if len(written) >= count else None

        return until(f"{count} lines", enough)

    with path.open("wb") as out, serving(tmp_path, stdout=out) as (_, port), Client(port) as client:
        assert client.ask(BULK) == LATER
        lines(1)
        with path.open("ab") as other:
            other.write(b"another's line\n")
        assert client.ask(BULK) == LATER
        assert lines(3)[1] == b"another's line"


def test_no_line_is_lost_when_the_file_is_moved_during_a_burst(
    start_policyd: StartPolicyd, port: int, tmp_path: Path
) -> None:
    asked = 0
    with start_policyd() as policyd, Client(port) as client:
        moved = tmp_path / "decisions.log.1"
        policyd.decision_log.rename(moved)  # logrotate, without a signal to the daemon
        while not policyd.decision_log.exists():
            assert client.ask(BULK) == LATER
            asked += 1
        for number in range(2, 5):  # with `postrotate kill -HUP`
            policyd.decision_log.rename(tmp_path / f"decisions.log.{number}")
            os.kill(policyd.pid, signal.SIGHUP)
            until("a new file", lambda: policyd.decision_log.exists() or None)
            for _ in range(50):
                assert client.ask(BULK) == LATER
                asked += 1
        policyd.stop()
    logged = b"".join(path.read_bytes() for path in tmp_path.glob("decisions.log*"))
    ids = [json.loads(line)["id"] for line in logged.splitlines()]
    assert len(ids) == len(set(ids)) == asked
    assert moved.read_bytes()
    assert policyd.decision_log.read_bytes()


def test_ids_do_not_repeat_over_restarts_and_several_processes(
    start_policyd: StartPolicyd, port: int, tmp_path: Path
) -> None:
    def ask(client: Client, count: int) -> None:
        for _ in range(count // 100):
            client.send(BULK * 100)
            for _ in range(100):
                client.answer()

    (tmp_path / "other").mkdir()
    lines = tmp_path / "other" / "lines"
    with start_policyd() as policyd:
        with (
            lines.open("wb") as file,
            serving(tmp_path / "other", stdout=file) as (_, other_port),
            Client(port) as one,
            Client(other_port) as two,
        ):
            asking = threading.Thread(target=ask, args=(two, 2000))
            asking.start()
            ask(one, 2000)
            asking.join()
        policyd.stop()
        policyd.start()
        with Client(port) as one:
            ask(one, 2000)
        policyd.stop()
    ids = [json.loads(line)["id"] for line in policyd.decision_log.read_bytes().splitlines()]
    ids += re.findall(" id=([^ ]+)", lines.read_text())
    assert len(ids) == 6000
    assert len(set(ids)) == 6000


def test_lines_lost_on_a_full_disk_are_counted(start_policyd: StartPolicyd, port: int) -> None:
    metrics = free_port()
    log = {"path": "/dev/full", "format": "text"}
    with start_policyd(decision_log=log, metrics=f"127.0.0.1:{metrics}") as policyd, Client(port) as client:
        for _ in range(3):
            assert client.ask(BULK) == LATER
        log_lines(policyd, "decision log /dev/full: 3 lines lost: No space left on device")
        with urlopen(f"http://127.0.0.1:{metrics}/metrics") as page:
            assert b'policyd_log_lines_lost_total{log="decision"} 3.0' in page.read()


def test_the_last_lost_lines_are_reported_at_the_end(start_policyd: StartPolicyd, port: int) -> None:
    with start_policyd(decision_log={"path": "/dev/full", "format": "text"}) as policyd, Client(port) as client:
        client.ask(request())
    assert "decision log /dev/full: 1 lines lost: No space left on device" in policyd.operational_log.read_text()
