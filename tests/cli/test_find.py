"""`policyd find`: decisions in a decision log, mails in a mail log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.tools.decision_lines import line

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Run

VERIFIED = line(id="0A1B2C3D", client="x.example[192.0.2.1]")
CLAIMED = line("DUNNO", id="0A1B2C3E", rule="", client="unknown[192.0.2.2]").replace(
    "rdns=verified", "claimed=x.example"
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "decisions.log"
    path.write_text(VERIFIED + CLAIMED + VERIFIED)
    return path


def test_find_prints_decisions_as_logged(run: Run, log: Path) -> None:
    assert run("find", "--client", "192.0.2.2", log) == (0, CLAIMED, "")
    assert run("find", "--client", "192.0.2.1", "--client", "192.0.2.0/31", log) == (0, VERIFIED + VERIFIED, "")
    objects = [json.loads(text) for text in run("find", "--suffix", "x.example", "--json", log).out.splitlines()]
    assert [each["id"] for each in objects] == ["0A1B2C3D", "0A1B2C3E", "0A1B2C3D"]


def test_find_reads_the_log_that_the_settings_name(run: Run, log: Path, tmp_path: Path) -> None:
    (tmp_path / "policyd.yaml").write_text(f"decision_log: {{path: {log.name}}}\n")
    (tmp_path / "decisions.log.1").write_text(CLAIMED)
    assert run("find", "-c", tmp_path / "policyd.yaml", "--client", "192.0.2.2") == (0, CLAIMED + CLAIMED, "")


def test_find_by_prints_count_first_last_and_value(run: Run, log: Path) -> None:
    first = "2026-11-21T17:16:00Z"
    assert run("find", "--by", "hostname", log).out.splitlines() == [
        f"2  {first}  {first}  x.example",
        f"1  {first}  {first}  x.example (unverified)",
    ]
    found = json.loads(run("find", "--by", "hostname", "--json", log).out)
    assert (found["by"], found["found"], found["not_counted"]) == ("hostname", 3, 0)
    assert [(each["value"], each["count"], each.get("verified", True)) for each in found["values"]] == [
        ("x.example", 2, True),
        ("x.example", 1, False),
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_find_shows_a_progress_bar_on_a_terminal_and_nowhere_else(log: Path, *, terminal: bool) -> None:
    reader, writer = os.openpty() if terminal else os.pipe()
    command = (sys.executable, "-m", "policyd", "find", "--by", "client", str(log))
    environment = {**os.environ, "TERM": "xterm"}
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=writer, timeout=60, check=True)
    os.write(writer, b"end")
    shown = os.read(reader, 1 << 16)
    os.close(reader)
    os.close(writer)
    assert (b"reading" in shown) == terminal
    assert ended.stdout.decode().splitlines()[0].endswith("  192.0.2.1")


def test_find_without_a_result_fails(run: Run, log: Path) -> None:
    message = f"policyd: no decision and no mail in {log}\n"
    assert run("find", "--client", "203.0.113.1", log) == (1, "", message)
    assert run("find", "--client", "203.0.113.1", "--by", "sender", log) == (1, "", message)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--client", "nothing"], "'nothing' is not a network"),
        (["--since", "yesterday"], "'yesterday' is not a time"),
        (["--until", "soon"], "'soon' is not a time"),
        (["--by", "color"], "'color' is not one of"),
    ],
)
def test_find_reports_wrong_options(run: Run, log: Path, arguments: list[str], complaint: str) -> None:
    ended = run("find", *arguments, log)
    assert (ended.status, ended.out) == (2, "")
    assert complaint in ended.err
