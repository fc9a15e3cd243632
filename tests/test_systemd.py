"""The files in systemd/ are valid for the programs that read them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from policyd.config.control_path import DEFAULT_CONTROL
from policyd.daemon.listeners import CONTROL_NAME
from tests.field.policyd import Policyd
from tests.field.waiting import until
from tests.requirements import require

SYSTEMD = Path(__file__).parents[1] / "systemd"

UNITS = ("policyd.service", "policyd.socket", "policyd-control.socket", "policyd-fetch.service", "policyd-fetch.timer")

# Maximum exposure that the project allows. `systemd-analyze security` rates from 0 (fully sandboxed) to 10.
MAX_EXPOSURE = 1.5


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Copies of the units, with a program that exists here instead of the installed one."""
    for name in UNITS:
        text = (SYSTEMD / name).read_text()
        (tmp_path / name).write_text(text.replace("/usr/bin/policyd", "/bin/true"))
    return tmp_path


def verify(units: Path) -> str:
    """The complaints of `systemd-analyze verify`; empty if there are none."""
    require("systemd-analyze")
    ended = run("systemd-analyze", "verify", "--man=no", *(units / name for name in UNITS))
    return ended.stdout + ended.stderr


def test_the_units_verify_without_complaints(units: Path) -> None:
    assert verify(units) == ""


def test_verify_detects_a_misspelt_setting(units: Path) -> None:
    service = units / "policyd.service"
    service.write_text(service.read_text().replace("NoNewPrivileges=", "NoNewPrivilege="))
    assert "NoNewPrivilege" in verify(units)


@pytest.mark.parametrize("service", ["policyd.service", "policyd-fetch.service"])
def test_the_exposure_of_a_service_is_within_the_limit(service: str, units: Path) -> None:
    require("systemd-analyze")
    ended = run("systemd-analyze", "security", "--offline=yes", "--no-pager", units / service)
    found = re.search(rf"Overall exposure level for {re.escape(service)}: ([0-9.]+)", ended.stdout)
    assert found is not None, ended.stderr
    assert float(found[1]) <= MAX_EXPOSURE


def setting(unit: str, name: str) -> list[str]:
    """The values of a setting in a unit file, in order."""
    return re.findall(rf"^{name}=((?:.*\\\n)*.*)$", (SYSTEMD / unit).read_text(), re.MULTILINE)


def reload_command(policyd: Policyd) -> list[str]:
    """The unit's ExecReload= with this program and these settings, split into words as systemd does
    (systemd.service(5)).
    """
    (command,) = setting("policyd.service", "ExecReload")
    command = (
        command.replace("\\\n", " ").replace("$$", "$").replace("/etc/policyd/policyd.yaml", str(policyd.settings))
    )
    return shlex.split(command.replace("/usr/bin/policyd", f"{sys.executable} -m policyd"))


@pytest.mark.parametrize("with_control", [True, False])
@pytest.mark.slow
def test_systemctl_reload_reports_every_error_with_and_without_a_control_socket(
    tmp_path: Path, *, with_control: bool
) -> None:
    good = "rules:\n  - {name: a, match: {cidr: 192.0.2.0/24}, action: REJECT}\n"
    control: dict[str, Any] = {"control": str(tmp_path / "c.sock")} if with_control else {}
    with Policyd(tmp_path, good, listen=[f"unix:{tmp_path}/s"], **control) as policyd:
        environment = {**os.environ, "MAINPID": str(policyd.pid)}

        def reload() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                reload_command(policyd), env=environment, capture_output=True, text=True, timeout=60, check=False
            )

        policyd.rules.write_text(good.replace("cidr", "cidre").replace("REJECT", "REJCT"))
        failed = reload()
        policyd.rules.write_text(good.replace("name: a", "name: b"))
        done = reload()
        until("the reload", lambda: "reloaded: " in policyd.operational_log.read_text() or None)
    assert failed.returncode == 1
    assert "unknown condition 'cidre'" in failed.stderr
    assert "unknown action 'REJCT'" in failed.stderr
    assert done.returncode == 0, done.stderr
    assert ("rule b added" in done.stdout) == with_control


# Runs systemd as process 1 in a root folder with the host's folders except /etc, /proc and /run. The namespaces of
# unshare end with systemd.
BOOT = """\
mkdir root && mount -t tmpfs tmpfs root && cd root
for entry in /*; do
    name=${entry#/}
    if [ -L $entry ]; then cp -a $entry .
    elif [ -d $entry ]; then mkdir -p $name; case $name in proc | run | etc) ;; *) mount --rbind $entry $name ;; esac
    fi
done
mount -t proc proc proc && mount -t tmpfs tmpfs run && mount -t tmpfs tmpfs sys/fs/cgroup
mkdir sys/fs/cgroup/systemd && mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd || exit
cp -a /etc/passwd /etc/group /etc/ld.so.* etc/
mkdir -p etc/systemd && cp -a ../units etc/systemd/system
echo 0123456789abcdef0123456789abcdef > etc/machine-id
(sleep 1; exec chroot . /bin/sh -c "cd $OLDPWD && . ./steps") &
exec chroot . env -i container=other /lib/systemd/systemd --system --unit=empty.target --log-level=err --show-status=no
"""
STEPS = """\
until systemctl is-system-running 2> /dev/null | grep -q -e running -e degraded; do sleep 0.1; done
reload() { output=$(systemctl reload policyd 2>&1); echo "$1: $?"; echo "$output" | head -n 1; }
systemctl start policyd; echo "start: $?"
reload good
echo nonsense: 1 >> rules.yaml
reload broken
rm control.sock
reload 'broken, without a control socket'
sed -i /nonsense/d rules.yaml
reload 'good, without a control socket'
until systemctl is-active policyd | grep -v reloading; do sleep 0.1; done
echo over
"""


@pytest.mark.slow
def test_systemctl_reports_that_a_reload_has_failed(tmp_path: Path) -> None:
    require("systemctl", "unshare", root=True)
    (tmp_path / "rules.yaml").write_text("rules:\n  - {name: a, match: {cidr: 192.0.2.0/24}, action: REJECT}\n")
    (tmp_path / "policyd.yaml").write_text("control: control.sock\ndecision_log: {path: decisions.log}\n")
    (tmp_path / "steps").write_text(STEPS)
    units = tmp_path / "units"
    units.mkdir()
    (units / "empty.target").write_text("[Unit]\nDefaultDependencies=no\n")
    for unit, path in (("policyd.socket", "s"), ("policyd-control.socket", "control.sock")):
        name = "".join(f"FileDescriptorName={each}\n" for each in setting(unit, "FileDescriptorName"))
        text = (
            f"[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream={tmp_path}/{path}\n{name}Service=policyd.service\n"
        )
        (units / unit).write_text(text)
    service = f"[Unit]\nDefaultDependencies=no\n[Service]\nStandardError=append:{tmp_path}/errors\n"
    for key in ("Type", "ExecStart", "ExecReload", "Sockets"):
        service += "".join(f"{key}={each}\n" for each in setting("policyd.service", key))
    service = service.replace("/usr/bin/policyd", f"{sys.executable} -m policyd")
    (units / "policyd.service").write_text(service.replace("/etc/policyd", str(tmp_path)))
    command = ("unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "sh", "-c", BOOT)
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as booted:
        killer = threading.Timer(60, booted.kill)
        killer.start()
        assert booted.stdout is not None
        output = []
        for line in booted.stdout:
            if line == "over\n":
                break
            output += [line.strip()] * (line != "\n")
        booted.kill()
        killer.cancel()
    if not any(line.startswith("start: ") for line in output):
        pytest.skip(f"systemd cannot be process 1 here: {output}")
    failed = "Job for policyd.service failed."
    assert output == [
        "start: 0",
        "good: 0",
        "broken: 1",
        failed,
        "broken, without a control socket: 1",
        failed,
        "good, without a control socket: 0",
        "active",
    ]
    assert f"{tmp_path}/rules.yaml:3:1: unknown key 'nonsense'" in (tmp_path / "errors").read_text()


def test_the_control_socket_is_found_by_its_name_and_has_the_path_in_the_settings() -> None:
    (path,) = setting("policyd-control.socket", "ListenStream")
    assert path == DEFAULT_CONTROL
    assert setting("policyd-control.socket", "FileDescriptorName") == [CONTROL_NAME]
    assert setting("policyd-control.socket", "Service") == ["policyd.service"]
    assert setting("policyd-control.socket", "SocketMode") == ["0660"]
    assert "policyd-control.socket" in setting("policyd.service", "Sockets")[0]
    assert "policyd-control.socket" in setting("policyd.service", "Also")[0]


def test_a_chrooted_smtpd_can_reach_the_socket() -> None:
    (path,) = setting("policyd.socket", "ListenStream")
    assert path == "/var/spool/postfix/private/policyd"
    assert setting("policyd.socket", "SocketUser") == ["postfix"]
    assert setting("policyd.socket", "SocketMode") == ["0660"]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A root folder in which systemd has made policyd's user and folders, as on a host."""
    require("systemd-sysusers", "systemd-tmpfiles", root=True)
    for kind in ("sysusers", "tmpfiles"):
        folder = tmp_path / "usr" / "lib" / f"{kind}.d"
        folder.mkdir(parents=True)
        shutil.copy(SYSTEMD / f"policyd.{kind}", folder / "policyd.conf")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "group").write_text("adm:x:4:\n")
    for command in ("systemd-sysusers", "systemd-tmpfiles --create"):
        ended = run(*command.split(), f"--root={tmp_path}", "policyd.conf")
        assert (ended.returncode, "policyd.conf:" in ended.stderr) == (0, False), ended.stderr
    return tmp_path


def test_sysusers_makes_a_user_without_login(installed: Path) -> None:
    (line,) = (installed / "etc" / "passwd").read_text().splitlines()
    name, _, uid, _, _, home, shell = line.split(":")
    assert (name, home, shell) == ("policyd", "/", "/usr/sbin/nologin")
    assert 0 < int(uid) < 1000


def test_tmpfiles_makes_the_folders_that_the_unit_needs(installed: Path) -> None:
    uid = int((installed / "etc" / "passwd").read_text().split(":")[2])
    (log,) = setting("policyd.service", "ReadWritePaths")
    (lists,) = setting("policyd-fetch.service", "ReadWritePaths")
    wanted = {
        "/etc/policyd": (0, 0o750),
        "/etc/policyd/lists": (0, 0o750),
        log: (uid, 0o2750),
        lists: (uid, 0o750),
    }
    made = {name: (installed / name[1:]).stat() for name in wanted}
    assert {name: (each.st_uid, stat.S_IMODE(each.st_mode)) for name, each in made.items()} == wanted


def test_logrotate_moves_the_log_and_lets_the_daemon_create_the_new_one(tmp_path: Path) -> None:
    require("logrotate", root=True)
    log = tmp_path / "log" / "decisions.log"
    log.parent.mkdir(mode=0o755)
    log.write_text("a decision\n")
    configuration = tmp_path / "logrotate.conf"
    configuration.write_text(
        (SYSTEMD / "policyd.logrotate")
        .read_text()
        .replace("/var/log/policyd", str(log.parent))
        .replace("su policyd adm", "su root root")
    )
    configuration.chmod(0o644)
    ended = run("logrotate", "--force", "--state", tmp_path / "state", configuration)
    assert (ended.returncode, ended.stderr) == (0, "")
    (rotated,) = log.parent.iterdir()
    assert rotated.name.startswith("decisions.log-")
    assert rotated.read_text() == "a decision\n"
