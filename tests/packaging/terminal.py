"""Runs a program, such as a shell, in a pseudo-terminal: tests press keys, and read the screen."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# Control sequences: cursor movements, colours, titles. A terminal does not show them as text.
_CONTROLS = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])|[\x07\x08\r\x0e\x0f]")


class Terminal:
    """The screen of one program."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def keys(self, keys: str) -> None:
        """Presses keys."""
        os.write(self._descriptor, keys.encode())

    def shows(self, text: str, seconds: float = 30.0) -> str:
        """Waits until the screen shows a text, and then until the output stops; returns the output since the last call.
        Fails with that output if the text does not appear.
        """
        shown = ""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            quiet = 0.05 if text in shown else ends - time.monotonic()
            if not select.select([self._descriptor], [], [], max(quiet, 0))[0]:
                break
            try:
                shown += _CONTROLS.sub("", os.read(self._descriptor, 65536).decode(errors="replace"))
            except OSError:  # the program has ended
                break
        assert text in shown, f"{text!r} is not in {shown!r}"
        return shown


@contextlib.contextmanager
def terminal(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Terminal]:
    """Starts a program in its own terminal, and ends it."""
    process, descriptor = pty.fork()
    if process == 0:
        os.execvpe(command[0], list(command), environment)
    try:
        yield Terminal(descriptor)
    finally:
        os.close(descriptor)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
