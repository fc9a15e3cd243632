"""Runs `policyd fetch` repeatedly, each time in a child that kills itself (SIGKILL) at a given step.

Reads the number of a step from each line of standard input, and answers with a line: the name of the step at which the
child died, or `ended` if it had no such step. Steps are: opening a file for writing, a link, a rename, a removal, a
change of times, a write or fsync (the file then has only its first half), and a connection to the web server or the
daemon.
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
    """Counts steps, and kills the process at the step with the number `last`."""

    def __init__(self, last: int, report: int) -> None:
        self._left = last
        self._report = report  # the descriptor to which the name of the last step is written

    def watch(self) -> None:
        """Starts counting."""
        sys.addaudithook(self._audit)
        # If the process is killed during a write, the file has only its first half.
        write_bytes, fsync = Path.write_bytes, os.fsync

        def write_half(path: Path, content: bytes) -> int:
            self._step("write", lambda: write_bytes(path, content[: len(content) // 2]))
            return write_bytes(path, content)

        def synchronise(descriptor: int) -> None:
            self._step("fsync", lambda: _halve(descriptor))
            fsync(descriptor)

        setattr(Path, "write_bytes", write_half)  # noqa: B010 - mypy rejects an assignment to a method
        os.fsync = synchronise  # type: ignore[assignment] # the real one also takes objects with fileno()

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS and not (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            self._step(event)

    def _step(self, what: str, first: Callable[[], object] | None = None) -> None:
        self._left -= 1
        if self._left == 0:
            os.write(self._report, what.encode())
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


def _run(settings: str, step: int, report: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    Steps(step, report).watch()
    fetch.main(["-c", settings, "--force"], standalone_mode=False)


def main() -> None:
    """Runs `policyd fetch` once for each line of standard input."""
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                _run(sys.argv[1], int(line), writer)
            finally:
                os._exit(0)
        os.close(writer)
        _, status = os.waitpid(child, 0)
        what = os.read(reader, 100).decode()
        os.close(reader)
        is_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(what if is_killed else "ended", flush=True)


if __name__ == "__main__":
    main()
