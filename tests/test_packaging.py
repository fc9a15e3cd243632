"""The files in packaging/ fit the program: the installed configuration loads, only observes, and is where the units
look for it. `.ci/deb` builds and installs the package itself.
"""

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


def test_the_installed_rules_are_the_shipped_ones_below_mode_observe(installed: Path) -> None:
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
    """The launcher ignores PYTHONPATH, the working directory and the host's packages."""
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


# --- The maintainer scripts: whether the daemon is started, restarted, or left alone ----------------------------------

STUB = """\
#!/bin/sh
echo "$(basename "$0") $*" >>{log}
case "$(basename "$0") $*" in
    "systemctl is-active"*) exit {active} ;;
    "runuser"*) echo "rules.yaml:3:1: unknown key"; exit {check} ;;
esac
"""


class Host:
    """The folders that the scripts look at, and programs that only record their calls."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._log = root / "calls"
        for folder in ("run/systemd/system", "etc/policyd", "bin"):
            (root / folder).mkdir(parents=True)
        (root / "etc/policyd/rules.yaml").write_text("mode: observe\n")

    def run(self, script: str, *arguments: str, active: bool, check: bool) -> tuple[str, list[str]]:
        """Runs a script as dpkg does. Returns its output and the calls of deb-systemd-invoke."""
        stub = STUB.format(log=self._log, active=0 if active else 3, check=0 if check else 1)
        for name in ("systemctl", "deb-systemd-invoke", "runuser", "py3compile", "py3clean", "postfix", "postconf"):
            path = self._root / "bin" / name
            path.write_text(stub)
            path.chmod(0o755)
        text = re.sub(r"/(?=run/|etc/)", f"{self._root}/", (DEBIAN / f"policyd.{script}").read_text())
        self._log.write_text("")
        ended = subprocess.run(
            ["sh", "-c", text, script, *arguments],
            env={"PATH": f"{self._root}/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        calls = self._log.read_text().splitlines()
        return ended.stdout, [call.split()[1] for call in calls if call.startswith("deb-systemd-invoke")]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize(
    ("active", "check", "done"),
    [(True, True, ["restart"]), (True, False, []), (False, True, []), (False, False, [])],
    ids=["good rules", "broken rules", "stopped by hand", "stopped, with broken rules"],
)
def test_an_upgrade_restarts_a_running_daemon_only_if_the_new_version_accepts_its_files(
    host: Host, *, active: bool, check: bool, done: list[str]
) -> None:
    host.run("preinst", "upgrade", "0.1.0", active=active, check=check)
    output, calls = host.run("postinst", "configure", "0.1.0", active=active, check=check)
    assert calls == done
    refused = active and not check
    assert ("NOT RESTARTED" in output) == refused
    assert ("rules.yaml:3:1: unknown key" in output) == refused


@pytest.mark.parametrize("before", [(), ("0.1.0",)], ids=["first installation", "removed before"])
def test_an_installation_starts_the_daemon(host: Host, before: tuple[str, ...]) -> None:
    host.run("preinst", "install", *before, active=False, check=True)
    output, calls = host.run("postinst", "configure", *before, active=False, check=True)
    assert calls == ["start"]
    assert ("only observe" in output) == (not before)
    _, calls = host.run("postinst", "configure", "0.1.0", active=True, check=True)
    assert calls == ["restart"]


def test_only_a_removal_stops_the_daemon(host: Host) -> None:
    assert host.run("prerm", "upgrade", "0.3.0", active=True, check=True)[1] == []
    assert host.run("prerm", "remove", active=True, check=True)[1] == ["stop"]


@pytest.mark.parametrize("script", sorted(SCRIPTS), ids=lambda path: path.name)
def test_every_script_is_valid_for_its_shell(script: Path) -> None:
    first = script.read_text().splitlines()[0]
    shell = "sh" if first == "#!/bin/sh" else "bash"
    require(shell)
    subprocess.run([shell, "-n", script], check=True)
