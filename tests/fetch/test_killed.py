"""`policyd fetch` is killed at each step: the list is the old one or the new one, and the next run recovers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from policyd.cli.fetch import fetch
from policyd.config.list_sources import checked_at
from tests.daemon.client import Client, request
from tests.daemon.conftest import port, start_policyd  # noqa: F401 - fixtures
from tests.fetch.web import answer, serve

if TYPE_CHECKING:
    from pathlib import Path

    from tests.daemon.conftest import StartPolicyd

RULES = """\
lists: {{drop: {{file: drop.txt, from: {{url: '{url}', max_change: 500%}}}}}}
rules:
  - {{name: drop, match: {{cidr: $drop}}, action: REJECT}}
"""

# Minimum number of steps of a run with one list and a daemon, so that the test really observes the run.
MIN_STEPS = 20


def networks(version: int) -> bytes:
    return f"8.8.{version}.0/24\n".encode() + b"".join(b"9.%d.%d.0/24\n" % (version, n) for n in range(200))


@pytest.mark.slow
def test_a_run_killed_at_any_step_leaves_a_complete_list_and_the_next_run_recovers(
    tmp_path: Path,
    start_policyd: StartPolicyd,  # noqa: F811 - the fixture above
    port: int,  # noqa: F811 - the fixture above
) -> None:
    drop = tmp_path / "drop.txt"
    killed: Counter[str] = Counter()
    with serve() as web:
        web.pages["/drop"] = answer(networks(0))
        text = RULES.format(url=web.url("/drop"))
        with start_policyd(text, control=str(tmp_path / "control.sock")) as policyd, Client(port) as client:
            settings = ["-c", str(policyd.settings)]
            assert CliRunner().invoke(fetch, settings).exit_code == 0
            command = [sys.executable, "-m", "tests.fetch.killed", str(policyd.settings)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as runs:
                assert runs.stdin is not None
                assert runs.stdout is not None
                step, what = 0, ""
                while what != "ended" and step < 100:
                    step += 1
                    old = drop.read_bytes()
                    web.pages["/drop"] = answer(networks(step))
                    print(step, file=runs.stdin)
                    what = runs.stdout.readline().strip()
                    killed[what] += 1
                    left = drop.read_bytes()
                    assert left == old or left.endswith(networks(step)), (step, what)
                    if left != old:
                        assert (tmp_path / "drop.txt.previous").read_bytes() == old, (step, what)
                    age_leftovers(tmp_path)
                    recovered = CliRunner().invoke(fetch, settings if left != old else [*settings, "--force"])
                    assert recovered.exit_code == 0, (step, what, recovered.output)
                    assert drop.read_bytes().endswith(networks(step)), (step, what)
                    assert client.ask(request(client_address=f"8.8.{step}.1")).startswith("REJECT"), (
                        step,
                        what,
                        recovered.output,
                    )
                    assert client.ask(request(client_address=f"8.8.{step - 1}.1")) == "DUNNO", (step, what)
                    assert checked_at(str(drop)) is not None
                runs.stdin.close()
    assert what == "ended"
    assert step > MIN_STEPS, killed
    assert {"socket.connect", "open", "write", "fsync", "os.rename", "os.link"} <= set(killed)
    temporary = {path.name for path in tmp_path.iterdir() if path.name.startswith((".drop.txt.", "..drop.txt."))}
    assert temporary == {".drop.txt.fetched"}


def age_leftovers(folder: Path) -> None:
    """Sets the time of a killed run's leftovers two hours back."""
    for path in (*folder.glob(".drop.txt.*.*"), *folder.glob("..drop.txt.*.*")):
        os.utime(path, (time.time() - 7200, time.time() - 7200))
