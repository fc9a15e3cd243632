from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from policyd.cli import options

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Run

RULES = "rules:\n  - {name: installed, match: {cidr: 192.0.2.0/24}, action: REJECT}\n"
LINE = (
    "2026-11-21T20:11:43.932+00:00 REJECT id=R1ZBZY01 rule=installed client=unknown[192.0.2.1] state=RCPT"
    ' from=<a@b.example> to=<c@d.example> ruleset=2b3f1dae ms=0.4 reply="5.7.1 Access denied"\n'
)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings, rules and a log at the installed paths; the working directory has another ruleset."""
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "policyd.yaml").write_text("decision_log: {path: decisions.log}\n")
    (folder / "rules.yaml").write_text(RULES)
    (folder / "decisions.log").write_text(LINE)
    monkeypatch.setattr(options, "DEFAULT_CONFIG", str(folder / "policyd.yaml"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "rules.yaml").write_text(RULES.replace("installed", "elsewhere"))
    monkeypatch.chdir(elsewhere)
    return folder


# Commands, each with a part of its output.
COMMANDS = {
    ("check",): "1 rule, 1 network",
    ("explain", "client_address=192.0.2.1"): "installed",
    ("stats",): "installed",
    ("tail", "--no-follow"): "R1ZBZY01",
    ("lookup", "R1ZBZY01"): "etc/rules.yaml:2",
    ("report", "--network", "192.0.2.0/24", "--from", "postmaster@example.com"): "R1ZBZY01",
    ("export", "csv"): "192.0.2.0/24",
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command[0]))
@pytest.mark.usefixtures("installed")
def test_commands_use_the_installed_settings_by_default(run: Run, command: tuple[str, ...]) -> None:
    ended = run(*command)
    assert ended.status == 0, ended.err
    assert COMMANDS[command] in ended.out


def test_a_command_that_uses_the_installed_rules_says_so(run: Run, installed: Path) -> None:
    note = f"policyd: using {installed / 'policyd.yaml'}\n"
    assert run("check").err == note
    assert run("explain", "client_address=192.0.2.1").err == note
    assert run("tail", "--no-follow").err == ""


@pytest.mark.usefixtures("installed")
def test_rules_on_the_command_line_replace_the_installed_settings(run: Run) -> None:
    ended = run("explain", "--rules", "rules.yaml", "client_address=192.0.2.1")
    assert (ended.status, ended.err) == (0, "")
    assert "elsewhere" in ended.out
    # The order of options does not matter.
    assert "elsewhere" in run("explain", "client_address=192.0.2.1", "--rules", "rules.yaml").out


def test_without_installed_settings_the_rules_in_the_working_directory_are_used(run: Run, installed: Path) -> None:
    (installed / "policyd.yaml").unlink()
    assert "elsewhere" in run("explain", "client_address=192.0.2.1").out
    ended = run("tail", "--no-follow")
    assert (ended.status, ended.out) == (2, "")
    assert "name the LOG" in ended.err


def test_the_daemon_starts_with_the_installed_settings(
    run: Run, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr("policyd.cli.daemon.run", lambda *arguments: started.append(arguments))
    assert run("serve").status == 0
    assert run("serve", "--rules", "rules.yaml").status == 0
    assert started == [
        (str(installed / "policyd.yaml"), None, [], os.environ),
        (None, "rules.yaml", [], os.environ),
    ]


def test_a_log_can_be_read_by_users_who_may_not_read_the_settings(
    run: Run, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "etc" not in str(path) and real(path, mode))
    log = installed.parent / "decisions.log"
    log.write_text(LINE)
    ended = run("stats", log)
    assert (ended.status, "R1ZBZY01" in ended.out or "installed" in ended.out) == (0, True)
    assert ended.err == f"policyd: continuing without {installed / 'policyd.yaml'}, which this user may not read\n"
