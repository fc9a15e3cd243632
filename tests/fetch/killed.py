"""Runs `policyd fetch` repeatedly, each time in a child that kills itself (SIGKILL) at a given step.

Reads the number of a step from each line of standard input, and answers with a line: the step at which the child died,
or `ended` if it had no such step. A step is each opening of a file for writing, each link, rename, change of times or
removal, each half of a write, and each connection: to the web server, and to the daemon.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policyd.cli.fetch import fetch

if TYPE_CHECKING:
    from collections.abc import Callable

_EVENTS = {"os.rename", "os.link", "os.remove", "os.utime", "socket.connect", "open"}


class Steps:
    """Counts steps, and ends the process at one of them."""

    def __init__(self, last: int, told: int) -> None:
        self._left = last
        self._told = told

    def watch(self) -> None:
        """Starts counting."""
        sys.addaudithook(self._audit)
        # A file whose second half has not reached the disk.
        write_bytes, fsync = Path.write_bytes, os.fsync

        def write_half(path: Path, content: bytes) -> int:
            self._step("write", lambda: write_bytes(path, content[: len(content) // 2]))
            return write_bytes(path, content)

        def synchronise(descriptor: int) -> None:
            self._step("fsync", lambda: _halve(descriptor))
            fsync(descriptor)

        setattr(Path, "write_bytes", write_half)  # noqa: B010 - mypy takes no assignment to a method
        os.fsync = synchronise  # type: ignore[assignment] # any number that has fileno() is taken by the real one

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS and not (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            self._step(event)

    def _step(self, what: str, first: Callable[[], object] | None = None) -> None:
        self._left -= 1
        if self._left == 0:
            os.write(self._told, what.encode())
            if first is not None:
                first()
            os.kill(os.getpid(), signal.SIGKILL)


def _halve(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    if size > 1:  # a folder cannot be truncated
        try:
            os.ftruncate(descriptor, size // 2)
        except OSError:
            return


def _run(settings: str, step: int, told: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    Steps(step, told).watch()
    fetch.main(["-c", settings, "--force"], standalone_mode=False)


def main() -> None:
    """Runs the steps that the standard input names."""
    for line in sys.stdin:
        here, there = os.pipe()
        child = os.fork()
        if not child:
            try:
                _run(sys.argv[1], int(line), there)
            finally:
                os._exit(0)
        os.close(there)
        _, status = os.waitpid(child, 0)
        what = os.read(here, 100).decode()
        os.close(here)
        is_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(what if is_killed else "ended", flush=True)


if __name__ == "__main__":
    main()
