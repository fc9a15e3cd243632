"""CPU time and memory of a server: those of all its processes, and of memory files that are not mapped."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.bench.processes import cpu_seconds, memory_mb, peak_memory, pinned_to, run_and_account, tree

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMORY_FILE = """\
import os, sys
file = os.memfd_create("test")
os.write(file, bytes(32 << 20))  # written, but not mapped
print("ready", flush=True)
sys.stdin.read()
"""

BUSY_CHILD = """\
import subprocess, sys
spin = "import time\\nwhile time.process_time() < 0.2: pass"
subprocess.run([sys.executable, "-c", spin], check=True)  # ends, and is waited for
print("ready", flush=True)
sys.stdin.read()
"""

CHILD = """\
import subprocess, sys
with subprocess.Popen([sys.executable, "-c", "print('ready', flush=True); input()"], stdin=subprocess.PIPE) as child:
    sys.stdin.read()
    child.communicate(b"end\\n")
"""


@contextmanager
def running(program: str) -> Iterator[int]:
    """Runs a Python program that prints `ready` and ends when its standard input is closed; yields its process id."""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.communicate()


def test_a_memory_file_that_is_not_mapped_counts() -> None:
    with running("import sys\nprint('ready', flush=True)\nsys.stdin.read()") as plain:
        without = memory_mb(plain)
    with running(MEMORY_FILE) as pid:
        assert memory_mb(pid) - without == pytest.approx(33.5, abs=5)


def test_the_peak_is_at_least_the_used_memory() -> None:
    with running(MEMORY_FILE) as pid:
        with peak_memory(pid) as seen:
            time.sleep(0.05)
        assert max(seen) > 33


def test_children_that_have_ended_are_counted() -> None:
    with running(BUSY_CHILD) as pid:
        assert cpu_seconds(pid) >= 0.2


def test_children_belong_to_the_tree() -> None:
    with running(CHILD) as pid:
        assert tree(pid)[0] == pid
        assert len(tree(pid)) == 2
        assert memory_mb(pid) > memory_mb(tree(pid)[1])


def test_a_command_is_pinned_and_its_cpu_time_is_measured() -> None:
    core = min(os.sched_getaffinity(0))
    program = "import os, time\nprint(os.sched_getaffinity(0))\nwhile time.process_time() < 0.1: pass"
    account = run_and_account((*pinned_to(core), sys.executable, "-c", program), "")
    assert account.output == f"{{{core}}}\n"
    assert account.cpu_seconds >= 0.1
