"""CPU time and memory of a server with all its processes, from /proc (proc(5)), and pinning to cores.

An ordinary user may read these files for their own processes.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PROC = Path("/proc")
_TICK = 1 / os.sysconf("SC_CLK_TCK")
_BLOCK = 512  # bytes in a block of st_blocks (stat(2))

# Seconds between two measurements for a peak. With hundreds of megabytes, a measurement takes some milliseconds.
_LOOK_SECONDS = 0.02


def cores() -> tuple[int, int]:
    """One core for the server and another for the load; the same core if the machine has only one core."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def pinned_to(core: int) -> Sequence[str]:
    """Words before a command that make it and its child processes run on one core."""
    return "taskset", "--cpu-list", str(core)


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from `state` on; an empty list for a process that has ended."""
    try:
        return (_PROC / str(pid) / "stat").read_bytes().rpartition(b") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def tree(root: int) -> list[int]:
    """The ids of a process and of all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    """CPU seconds of a process and its descendants, including descendants that have ended and were waited for."""
    return sum(sum(map(int, fields[11:15])) for pid in tree(root) if (fields := _stat(pid))) * _TICK


def memory_mb(root: int) -> float:
    """Memory of a process and its descendants, in 10**6 bytes.

    This is the sum of their PSS, in which a page that they share counts once. Memory files (memfd_create(2)) count at
    their full size, because PSS leaves out pages that are not mapped or not yet touched.
    """
    pss = files_pss = 0
    files: dict[str, int] = {}
    for pid in tree(root):
        try:
            rollup = (_PROC / str(pid) / "smaps_rollup").read_text()
            pss += _bytes("Pss", rollup)
            files_pss += _bytes("Pss_Shmem", rollup)
            for inode, size in _memory_files(pid):
                files[inode] = max(size, files.get(inode, 0))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    return (pss + max(sum(files.values()) - files_pss, 0)) / 1e6


def _bytes(name: str, rollup: str) -> int:
    """A field of /proc/PID/smaps_rollup, in bytes."""
    match = re.search(rf"^{name}: +([0-9]+) kB$", rollup, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _memory_files(pid: int) -> Iterator[tuple[str, int]]:
    """The memory files that a process has open or mapped: inode, bytes. A file may come more than once."""
    mapped: dict[str, int] = {}
    for line in (_PROC / str(pid) / "maps").read_text().splitlines():
        if "/memfd:" in line:
            span, _, _, _, inode, _ = line.split(maxsplit=5)
            first, _, end = span.partition("-")
            mapped[inode] = mapped.get(inode, 0) + int(end, 16) - int(first, 16)
    yield from mapped.items()
    for descriptor in (_PROC / str(pid) / "fd").iterdir():
        try:
            if descriptor.readlink().name.startswith("memfd:"):
                status = descriptor.stat()
                yield str(status.st_ino), status.st_blocks * _BLOCK
        except FileNotFoundError:
            continue  # it has just been closed


@contextmanager
def peak_memory(root: int) -> Iterator[list[float]]:
    """Measures `memory_mb` repeatedly during the block; yields the list of figures."""
    seen: list[float] = [memory_mb(root)]
    done = threading.Event()

    def look() -> None:
        while not done.wait(_LOOK_SECONDS):
            seen.append(memory_mb(root))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        done.set()
        looking.join()


def settle(root: int, seconds: float = 0.3) -> None:
    """Waits until a server has been idle for a while, so that earlier work does not count in the next measurement.

    Raises TimeoutError if it is still busy after a minute.
    """
    deadline = time.monotonic() + 60
    used = cpu_seconds(root)
    while True:
        time.sleep(seconds)
        before, used = used, cpu_seconds(root)
        if used - before <= 2 * _TICK:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {root} does not become idle")


class Account(NamedTuple):
    """The exit status and the output of a command, and the resources that it used."""

    status: int
    output: str
    cpu_seconds: float
    peak_mb: float  # of resident memory, in 10**6 bytes


def run_and_account(command: Sequence[str], given: str) -> Account:
    """Runs a command to its end, with `given` on standard input."""
    with tempfile.TemporaryFile("w+") as standard_input:
        standard_input.write(given)
        standard_input.seek(0)
        process = subprocess.Popen(command, stdin=standard_input, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        output = process.stdout.read()
        process.stdout.close()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # or Popen would wait for it again
    return Account(process.returncode, output, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6)
