"""Faulty files: new rules come into force completely or not at all. A log that cannot be written only loses lines, and
the lost lines are counted.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.conftest import LONG, SECONDS, SOON_SECONDS, Setting, cases_to_try, long_only, wait_for_edition
from tests.faults.world import rules_file
from tests.field.waiting import PATIENCE_SECONDS, until
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.field.policyd import Policyd

LOST = 'policyd_log_lines_lost_total{log="decision"}'

# --- Rules and lists --------------------------------------------------------------------------------------------------


def with_list(edition: int, file: str) -> str:
    """An edition with an additional list from a file, which lists no client of the flow."""
    rule = "- {name: long, match: {hostname: $long}, action: REJECT}\n"
    return f"lists: {{long: {{file: {file}}}}}\n{rules_file(edition)}{rule}"


def missing(rules: Path) -> None:
    rules.unlink()


def unreadable(rules: Path) -> None:
    rules.chmod(0)


def half_written(rules: Path) -> None:
    whole = rules_file(1)
    rules.write_text(whole[: len(whole) // 2])


def empty(rules: Path) -> None:
    rules.write_text("")


def a_folder(rules: Path) -> None:
    rules.unlink()
    rules.mkdir()


def a_fifo(rules: Path) -> None:
    rules.unlink()
    os.mkfifo(rules)


def a_link_to_itself(rules: Path) -> None:
    rules.unlink()
    rules.symlink_to(rules.name)


def a_list_that_is_a_fifo(rules: Path) -> None:
    os.mkfifo(rules.parent / "fifo")
    rules.write_text(with_list(1, "fifo"))


def a_list_of_300_mb(rules: Path) -> None:
    with (rules.parent / "huge").open("wb") as file:
        file.truncate(300_000_000)  # a sparse file, which takes no space
    rules.write_text(with_list(1, "huge"))


# Ways to spoil a rules file, and a part of the message that each must give.
SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (missing, "rules.yaml: cannot be read: No such file or directory"),
    "unreadable": (unreadable, "rules.yaml: cannot be read: Permission denied"),
    "half-written": (half_written, "rules.yaml:"),
    "empty": (empty, "rules.yaml:1:1: "),
    "a folder": (a_folder, "rules.yaml: cannot be read: it is a folder"),
    "a FIFO": (a_fifo, "rules.yaml: cannot be read: it is a FIFO"),
    "a symbolic link to itself": (a_link_to_itself, "rules.yaml: cannot be read: Too many levels of symbolic links"),
    "a list that is a FIFO": (a_list_that_is_a_fifo, "cannot be read: it is a FIFO"),
    "a list of 300 MB": (a_list_of_300_mb, "is longer than 256 MiB"),
}


@pytest.fixture(scope="module")
def one_setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Setting, Policyd]]:
    """One daemon for all spoilt files. If it runs as root, it lacks root's right to read every file."""
    setting = Setting(tmp_path_factory.mktemp("files"))
    capabilities = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    with setting.dns, setting.daemon(wrapper=capabilities if os.geteuid() == 0 else []) as policyd:
        yield setting, policyd


@pytest.mark.parametrize("name", cases_to_try(SPOILT, "missing", "unreadable", "a list that is a FIFO"))
def test_a_rules_file_that_cannot_be_used_changes_nothing(name: str, one_setting: tuple[Setting, Policyd]) -> None:
    setting, policyd = one_setting
    spoil, complaint = SPOILT[name]
    with setting.flow(f"rules: {name}") as flow:
        spoil(policyd.rules)
        logged = policyd.reload()
        assert complaint in logged
        assert "reload failed: ruleset" in logged
        if policyd.rules.is_dir():
            policyd.rules.rmdir()
        assert "reloaded: ruleset" in setting.use_edition(policyd, setting.world.edition.now + 1)
        flow.fault_is_over()
    flow.compare(policyd.decisions(flow.row.answered))


def test_a_rules_file_replaced_during_the_read_gives_the_old_or_the_new_rules(setting: Setting) -> None:
    with setting.daemon() as policyd:
        with setting.flow("rules: replaced while they are read") as flow:
            for edition in range(1, 60 if LONG else 5):
                with setting.world.edition.changing(edition):
                    os.kill(policyd.pid, signal.SIGHUP)
                    time.sleep(edition % 8 * 0.005)  # at a different moment of the load each time
                    setting.write_edition(policyd, edition)
                    os.kill(policyd.pid, signal.SIGHUP)
                    wait_for_edition(policyd, edition)
            flow.fault_is_over()
        flow.compare(policyd.decisions(flow.row.answered))
        assert "reload failed" not in policyd.operational_log.read_text()


@long_only
def test_a_list_that_is_written_to_while_it_is_read_is_refused(setting: Setting) -> None:
    growing = setting.folder / "growing"
    growing.write_bytes(b"host.example\n" * 2_000_000)
    over = threading.Event()

    def write() -> None:
        with growing.open("ab", buffering=0) as file:
            while not over.wait(0.0005):
                file.write(b"host.example\n")

    with setting.daemon() as policyd, setting.flow("rules: a list that is written to while it is read") as flow:
        policyd.rules.write_text(with_list(0, "growing"))
        writer = threading.Thread(target=write)
        writer.start()
        try:
            logged = policyd.reload()
        finally:
            over.set()
            writer.join()
        assert "was written to while it was read; write a new file and rename it over the old one" in logged
        setting.use_edition(policyd, 1)
        flow.fault_is_over()


@long_only
def test_a_list_of_200_mb_is_loaded_without_delaying_requests(setting: Setting) -> None:
    names = count()
    with (setting.folder / "big").open("wb") as file:
        while file.tell() < 200_000_000:
            file.write(b"".join(b"host%d.dynamic.example\n" % next(names) for _ in range(100_000)))
    with setting.daemon(patience=300) as policyd, setting.flow("rules: a list of 200 MB", named=3, nameless=3) as flow:
        with setting.world.edition.changing(1):
            policyd.rules.write_text(with_list(1, "big"))
            assert f"{next(names) + 4:,} names" in policyd.reload()
        flow.go_on(1)
        setting.use_edition(policyd, 2)
        flow.fault_is_over()


# --- The decision log -------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, *options: str) -> Iterator[Path]:
    """A small disk. It has room for some 40,000 log lines, so that lines after a fault do not fill it again."""
    require("mount", "umount", root=True)
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(["size=16m", *options]), "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def lines(*contents: bytes) -> list[dict[str, Any]]:
    """Parses the complete lines of logs. A line that did not fit on the disk is left out; the next line is complete."""
    whole = [line for content in contents for line in content.splitlines() if line.endswith(b"}")]
    return [json.loads(line) for line in whole]


def log_to(path: Path | str) -> dict[str, Any]:
    return {"decision_log": {"path": str(path), "format": "json"}}


def test_on_a_full_disk_mail_goes_on_and_every_lost_line_is_counted(setting: Setting) -> None:
    with small_disk(setting.folder) as disk:
        log, filler = disk / "decisions.log", disk / "filler"
        with setting.daemon(**log_to(log)) as policyd:
            with setting.flow("log: disk full") as flow:
                flow.go_on(0.2)
                filler.write_bytes(bytes(shutil.disk_usage(disk).free - 65536))
                until("lost lines", lambda: setting.metric(LOST) or None)
                flow.go_on(SECONDS)
                filler.unlink()
                flow.fault_is_over()
            lost = int(setting.metric(LOST))
        logged = flow.compare(lines(log.read_bytes()), lost=lost)
    assert any(each.instance == logged[-1]["instance"] for each in flow.attempts[-100:])  # the log is written again
    assert "lines lost: No space left on device" in policyd.operational_log.read_text()


@long_only
def test_a_log_on_a_read_only_disk_is_written_as_soon_as_it_can_be(setting: Setting) -> None:
    with small_disk(setting.folder, "ro") as disk:
        log = disk / "decisions.log"
        with setting.daemon(**log_to(log)) as policyd:
            with setting.flow("log: read-only disk") as flow:
                flow.go_on(SECONDS)
                subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
                flow.fault_is_over()
                until("a decision log", lambda: log.exists() or None, SOON_SECONDS)
            lost = int(setting.metric(LOST))
        assert flow.compare(lines(log.read_bytes()), lost=lost)
    assert "cannot open it: Read-only file system; mail goes on" in policyd.operational_log.read_text()


def test_a_removed_log_is_created_again_within_about_a_second(setting: Setting) -> None:
    with setting.daemon() as policyd:
        with policyd.decision_log.open("rb") as removed:
            with setting.flow("log: removed") as flow:
                flow.go_on(0.2)
                policyd.decision_log.unlink()
                until("a new log", lambda: policyd.decision_log.exists() or None, SOON_SECONDS)
                flow.fault_is_over()
            # Before the new file existed, lines were written to the removed file.
            assert flow.compare(lines(removed.read(), policyd.decision_log.read_bytes()))
        assert setting.metric(LOST) == 0


@long_only
def test_rotation_in_the_middle_of_a_burst_loses_no_line(setting: Setting) -> None:
    with setting.daemon() as policyd:
        with setting.flow("log: rotated in the middle of a burst", pause=0, repeats=4) as flow:
            for number in range(10):
                policyd.decision_log.rename(setting.folder / f"rotated.{number}")
                until("a new log", lambda: policyd.decision_log.exists() or None, SOON_SECONDS)
            flow.fault_is_over()
        contents = [each.read_bytes() for each in [*setting.folder.glob("rotated.*"), policyd.decision_log]]
        assert flow.compare(lines(*contents))
        assert setting.metric(LOST) == 0


def test_a_fifo_without_a_reader_delays_nothing(setting: Setting) -> None:
    fifo = setting.folder / "fifo"
    os.mkfifo(fifo)
    opened = threading.Event()
    read: list[bytes] = []

    def read_all() -> None:
        with fifo.open("rb") as file:  # waits for a writer
            opened.set()
            read.append(file.read())

    with setting.daemon(**log_to(fifo)) as policyd:
        with setting.flow("log: a FIFO without a reader") as flow:
            flow.go_on(SECONDS)
            reader = threading.Thread(target=read_all, daemon=True)  # does not delay the end of a failing test
            reader.start()
            flow.fault_is_over()
            assert opened.wait(SOON_SECONDS)
        lost = int(setting.metric(LOST))
    reader.join(PATIENCE_SECONDS)
    assert flow.compare(lines(*read), lost=lost)
    assert "cannot open it: No such device or address; mail goes on" in policyd.operational_log.read_text()


CLOSED = ["bash", "-c", 'exec "$@" >&-', "bash"]
UNREAD_PIPE = ["bash", "-c", 'exec 3<> <(:); exec "$@" >&3', "bash"]  # a pipe without a reader


OUTPUTS = {"closed": CLOSED, "a pipe without a reader": UNREAD_PIPE}


@pytest.mark.parametrize("name", cases_to_try(OUTPUTS, "closed"))
def test_standard_output_without_a_reader_delays_nothing(setting: Setting, name: str) -> None:
    with setting.daemon(**log_to("-"), wrapper=OUTPUTS[name]) as policyd:
        with setting.flow(f"log: standard output {name}") as flow:
            flow.go_on(SECONDS)
            flow.fault_is_over()
        lost = int(setting.metric(LOST))
    assert 0 < lost <= flow.row.answered
    assert "lines lost: " in policyd.operational_log.read_text()
