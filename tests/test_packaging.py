"""The files in packaging/ fit the program: what the Debian package installs loads, only observes, and lies where the
units look for it. `.ci/deb` builds and installs the package itself."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from policyd.config.load import load
from tests.requirements import require

ROOT = Path(__file__).parents[1]
PACKAGING = ROOT / "packaging"
DEBIAN = PACKAGING / "debian"
SCRIPTS = [
    *(ROOT / ".ci" / name for name in ("deb", "deb-inside", "roots", "matrix")),
    PACKAGING / "deb",
    PACKAGING / "copyright",
    PACKAGING / "installed-settings",
    *DEBIAN.glob("policyd.p*"),
]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The folder /etc/policyd of the package."""
    subprocess.run([PACKAGING / "installed-settings", tmp_path], check=True)
    return tmp_path


def test_the_installed_rules_load_without_a_warning_and_only_observe(installed: Path) -> None:
    loaded = load(installed / "policyd.yaml")
    assert not loaded.warning_lines
    assert loaded.ruleset.observe


def test_the_installed_rules_are_the_shipped_ones_below_the_mode(installed: Path) -> None:
    head, mode, rest = (installed / "rules.yaml").read_text().partition("mode: observe\n\n")
    assert mode
    assert all(line.startswith("#") for line in head.splitlines())
    assert rest == (ROOT / "config" / "rules.yaml").read_text()


def test_decisions_go_to_the_file_that_logrotate_and_the_sandbox_know(installed: Path) -> None:
    log = Path(load(installed / "policyd.yaml").settings.decision_log.path)
    assert log.match("*.log")
    assert f"{log.parent}/*.log {{" in (ROOT / "systemd" / "policyd.logrotate").read_text()
    assert f"ReadWritePaths={log.parent}\n" in (ROOT / "systemd" / "policyd.service").read_text()


def test_the_units_run_the_installed_launcher() -> None:
    commands = [path.read_text() for path in (ROOT / "systemd").glob("*.service")]
    assert {path for text in commands for path in re.findall(r"/\S*bin/policyd\b", text)} == {"/usr/bin/policyd"}
    assert "launcher $(ROOT)/usr/bin/policyd" in (DEBIAN / "rules").read_text()


def test_every_unit_and_its_files_are_installed() -> None:
    rules = (DEBIAN / "rules").read_text()
    assert [path.name for path in (ROOT / "systemd").iterdir() if f"systemd/{path.name}" not in rules] == []


def test_the_launcher_takes_nothing_from_the_environment(tmp_path: Path) -> None:
    """Neither PYTHONPATH nor the working directory nor packages of the host."""
    for name in ("click", "uvloop"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('from the wrong place')")
    launcher = (DEBIAN / "launcher").read_text()
    assert launcher.startswith("#!/usr/bin/python3 -IS\n")
    ended = subprocess.run(
        ["python3", "-IS", "-c", launcher.partition("from policyd")[0] + "print(*sys.path, sep='\\n')"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    *library, last = ended.stdout.splitlines()
    assert last == "/usr/lib/policyd"
    assert all("-packages" not in path for path in library)
    assert str(tmp_path) not in library


@pytest.mark.parametrize("script", sorted(SCRIPTS), ids=lambda path: path.name)
def test_a_script_is_one_for_its_shell(script: Path) -> None:
    first = script.read_text().splitlines()[0]
    shell = "sh" if first == "#!/bin/sh" else "bash"
    require(shell)
    subprocess.run([shell, "-n", script], check=True)
