"""The command `policyd` itself: its help, unknown commands, and a closed pipe."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from policyd.cli import COMMANDS

if TYPE_CHECKING:
    from tests.cli.conftest import Run


def test_help_has_a_whole_sentence_for_every_command(run: Run) -> None:
    text = run("--help").out
    listed = " ".join(text.partition("Commands:")[2].split())
    for name in COMMANDS:
        assert f" {name} " in f" {listed} "
    assert "..." not in listed
    assert listed.count(". ") + 1 >= len(COMMANDS)


def test_the_list_of_commands_has_no_gaps_in_its_sentences(run: Run) -> None:
    _, _, commands = run("--help").out.partition("Commands:\n")
    assert "the client of a decision." in " ".join(line.strip() for line in commands.splitlines())


def test_help_shows_each_example_on_its_own_line(run: Run) -> None:
    assert "\n  policyd serve -c policyd.yaml          answer Postfix\n" in run("--help").out


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("chek", "; did you mean 'check'?"),
        ("expalin", "; did you mean 'explain'?"),
        ("stat", "; did you mean 'status'?"),
        ("re-load", "; did you mean 'reload'?"),
        ("xyzzy", ""),
        ("\x1b[2J", ""),
    ],
)
def test_an_unknown_command_gets_a_suggestion_if_its_name_is_similar(run: Run, name: str, hint: str) -> None:
    shown = name.replace("\x1b", r"\x1b")
    assert run(name) == (2, "", f"policyd: there is no command '{shown}'{hint} (see policyd --help)\n")


@pytest.mark.slow
def test_a_closed_pipe_is_not_an_error() -> None:
    command = f"{sys.executable} -m policyd schema | head -c 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (b"{", b"")
