"""Runs policyd-fetch.service under a systemd in separate namespaces: it can write to the folder of the lists only."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.requirements import require

SYSTEMD = Path("/lib/systemd/systemd")
UNIT = Path(__file__).parents[2] / "systemd" / "policyd-fetch.service"

# Targets that the unit wants or that every unit needs; all other units of this machine stay unknown.
TARGETS = ("sysinit", "basic", "shutdown", "umount", "final", "network-online", "nss-lookup")

# Runs PROBE instead of the unit's program.
DROP_IN = """\
[Unit]
SuccessAction=exit-force
FailureAction=exit-force
[Service]
User=nobody
Group=nogroup
ExecStart=
ExecStart=/bin/sh /mnt/probe
StandardOutput=append:/mnt/out
StandardError=append:/mnt/err
"""

# Prints each folder and file that the program may write to, and then tries to write to some folders.
PROBE = r"""
echo list > /var/lib/policyd/lists/drop.txt && cat /var/lib/policyd/lists/drop.txt
while read -r _ _ _ _ place options _; do
  case ",$options," in *,rw,*) ;; *) continue ;; esac
  case "$place" in /proc|/proc/*|/sys|/sys/*) continue ;; esac
  find "$place" -xdev \( -type d -o -type f \) -writable
done < /proc/self/mountinfo
for folder in / /etc /run /run/lock /tmp /var/tmp /dev/shm /var/lib/policyd /usr /mnt; do
  (: > "$folder/probe") 2>/dev/null && echo "can write to $folder"
done
echo end
"""

# The host cannot be changed from here: its file system is read-only, except for the test's own folder.
START = """\
mount --make-rprivate /
mount --bind "$1" /mnt
mount -t tmpfs -o mode=755 none /run
mount -t tmpfs -o mode=1777 none /tmp
mount -t tmpfs -o mode=1777 none /var/tmp
mount -t tmpfs -o mode=755 none /var/lib
mkdir -p /var/lib/policyd/lists
chown -R nobody /var/lib/policyd
mount -o remount,bind,ro /
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
export container=other SYSTEMD_UNIT_PATH=/mnt/units
exec /lib/systemd/systemd --system --unit=policyd-fetch.service --log-target=console --show-status=no
"""


def cgroup() -> Path:
    """Makes a control group for the test's systemd; skips the test if that is impossible."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    roots = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]
    folder = roots[0] / f"policyd-test-{os.getpid()}" if roots else None
    try:
        assert folder is not None
        folder.mkdir()
    except (AssertionError, OSError):
        pytest.skip("control groups (version 2) cannot be made here")
    return folder


@pytest.mark.slow
def test_the_fetch_unit_can_only_write_to_the_folder_of_lists(tmp_path: Path) -> None:
    require("unshare", root=True)
    if not SYSTEMD.exists():
        pytest.skip("systemd is not installed")
    if subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces, for PrivateUsers=, cannot be made here; in a chroot this is never possible")
    units = tmp_path / "units"
    (units / "policyd-fetch.service.d").mkdir(parents=True)
    shutil.copy(UNIT, units)
    (units / "policyd-fetch.service.d" / "test.conf").write_text(DROP_IN)
    for name in TARGETS:
        (units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    (tmp_path / "probe").write_text(PROBE)
    (tmp_path / "start").write_text(START)
    tmp_path.chmod(0o755)
    group = cgroup()
    namespaces = ("--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--cgroup", "--mount-proc")
    script = f"echo $$ > {group}/cgroup.procs && exec unshare {' '.join(namespaces)} sh -e {tmp_path}/start {tmp_path}"
    try:
        ended = subprocess.run(
            ["sh", "-c", script], capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
        )
    finally:
        for folder in sorted(group.rglob("*/"), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        group.rmdir()
    out = (tmp_path / "out").read_text() if (tmp_path / "out").exists() else ""
    assert out.splitlines() == [
        "list",
        "/var/lib/policyd/lists",
        "/var/lib/policyd/lists/drop.txt",
        "end",
    ], ended.stdout + ended.stderr
