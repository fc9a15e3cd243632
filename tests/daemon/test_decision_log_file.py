"""The file of the decision log: when lines are written, rotation, and lost lines."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from policyd.daemon.decision_log_file import DecisionLogFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Loop:
    """An event loop whose turns the test runs."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], object]] = []

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.soon.append(callback)

    def run_turn(self) -> None:
        for callback in self.soon:
            callback()
        self.soon.clear()


@pytest.fixture
def loop() -> Loop:
    return Loop()


def open_log(path: object, loop: Loop) -> DecisionLogFile:
    return DecisionLogFile(str(path), loop.call_soon)


def test_the_lines_of_a_turn_are_written_at_its_end_in_one_append(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(tmp_path / "log", loop)
    written: list[bytes] = []
    write = os.write

    def record(descriptor: int, block: bytes) -> int:
        written.append(block)
        return write(descriptor, block)

    monkeypatch.setattr(os, "write", record)
    log.append(b"one\n")
    log.append(b"two\n")
    assert not written
    loop.run_turn()
    log.append(b"three\n")
    loop.run_turn()
    assert written == [b"one\ntwo\n", b"three\n"]
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\nthree\n"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o640
    log.close()


@pytest.mark.parametrize("move", [lambda path: path.rename(path.with_suffix(".1")), lambda path: path.unlink()])
def test_a_file_that_was_moved_or_removed_is_opened_again(
    loop: Loop, tmp_path: Path, move: Callable[[Path], object]
) -> None:
    path = tmp_path / "log"
    log = open_log(path, loop)
    log.append(b"before\n")
    loop.run_turn()
    move(path)
    log.check(100.0)
    log.append(b"after\n")
    loop.run_turn()
    assert path.read_bytes() == b"after\n"
    assert log.lost == 0
    log.close()


def test_if_a_new_file_cannot_be_made_the_moved_file_stays_in_use(
    loop: Loop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = open_log(folder / "log", loop)
    folder.rename(tmp_path / "moved")
    log.check(100.0)
    log.check(101.0)
    log.append(b"kept\n")
    loop.run_turn()
    assert (tmp_path / "moved" / "log").read_bytes() == b"kept\n"
    assert [record.getMessage() for record in caplog.records] == [
        f"decision log {folder}/log: cannot open it: No such file or directory; mail goes on"
    ]
    log.close()


def test_lines_lost_on_a_full_disk_are_counted_and_reported_once_a_minute(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log("/dev/full", loop)
    for now in (100.0, 101.0, 159.0, 160.0):
        log.append(b"one\n")
        log.append(b"two\n")
        loop.run_turn()
        log.check(now)
    assert log.lost == 8
    assert [record.getMessage() for record in caplog.records] == [
        "decision log /dev/full: 2 lines lost: No space left on device",
        "decision log /dev/full: 6 lines lost: No space left on device",
    ]
    log.close()


def test_lines_lost_since_the_last_report_are_reported_at_the_end(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    log = open_log("/dev/full", loop)
    for now in (100.0, 101.0):
        log.append(b"one\n")
        loop.run_turn()
        log.check(now)
    log.append(b"last\n")
    log.close()
    assert log.lost == 3
    assert [record.getMessage() for record in caplog.records] == [
        "decision log /dev/full: 1 lines lost: No space left on device",
        "decision log /dev/full: 2 lines lost: No space left on device",
    ]


def test_lines_are_lost_until_the_path_can_be_opened(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "not-yet" / "log"
    log = open_log(path, loop)
    log.append(b"lost\n")
    loop.run_turn()
    path.parent.mkdir()
    log.check(100.0)
    log.append(b"kept\n")
    loop.run_turn()
    assert log.lost == 1
    assert path.read_bytes() == b"kept\n"
    log.close()


def test_a_fifo_loses_lines_only_while_it_has_no_reader(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    log = open_log(path, loop)
    log.append(b"lost\n")
    loop.run_turn()
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log.check(100.0)
    log.append(b"kept\n")
    loop.run_turn()
    assert os.read(reader, 100) == b"kept\n"
    assert log.lost == 1
    os.close(reader)
    log.close()
