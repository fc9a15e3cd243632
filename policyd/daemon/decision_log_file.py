"""Writes the decision log: one line for each decision, as text or JSON.

Promises that a line is written at the end of the turn of the event loop in which it was made. If the log cannot be
written, nothing but its lines is lost, and lost lines are counted and reported. `policyd.decision_log.writer` makes the
lines.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from policyd.core.printable import printable
from policyd.daemon.sinks import FileSink, StreamSink, sink_for

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

# Minimum seconds between two reports of lost lines.
REPORT_SECONDS = 60.0


class DecisionLogFile:
    """Writes the decision log. `lost` counts lines that could not be written.

    `path` is a file or FIFO, or `-` for standard output. Call `check` once a second or so.
    """

    def __init__(self, path: str, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self.path = path
        self.lost = 0
        self._call_soon = call_soon
        self._lines: list[bytes] = []
        self._sink: FileSink | StreamSink | None = None
        self._opened: os.stat_result | None = None
        self._error = ""
        self._unreported = 0
        self._reported = -REPORT_SECONDS
        self._open()

    def append(self, line: bytes) -> None:
        """Takes a line, to be written at the end of this turn of the event loop."""
        if not self._lines:
            self._call_soon(self.flush)
        self._lines.append(line)

    def flush(self) -> None:
        """Writes the lines taken so far."""
        if not self._lines:
            return
        if self._sink is None:
            lost = len(self._lines)
        else:
            lost = self._sink.write(self._lines)
            self._error = self._sink.error or self._error
        self._lines.clear()
        if lost:
            self.lost += lost
            self._unreported += lost

    def check(self, now: float) -> None:
        """Opens the file again if it was moved or removed, and reports lost lines; `now` is on the monotonic clock."""
        if self.path != "-" and self._is_elsewhere():
            self.reopen()
        if now - self._reported >= REPORT_SECONDS and self._report_lost():
            self._reported = now

    def reopen(self) -> None:
        """Reopens the file; while that fails, the old file stays in use."""
        if self.path != "-":
            self.flush()
            self._open()

    def use(self, path: str) -> None:
        """Writes to another path from now on."""
        self.flush()
        self.path = path
        self._open()

    def close(self) -> None:
        """Writes remaining lines, and reports lines lost since the last report. No line may be appended after this."""
        self.flush()
        self._report_lost()
        if self._sink is not None:
            self._sink.close()
            self._sink = None

    def _report_lost(self) -> bool:
        """Logs the number of lines lost since the last report; returns whether there were any."""
        lost, self._unreported = self._unreported, 0
        if lost:
            _log.error("decision log %s: %d lines lost: %s", printable(self.path), lost, self._error)
        return lost > 0

    def _is_elsewhere(self) -> bool:
        """Whether the path no longer leads to the open file."""
        try:
            return self._opened is None or not os.path.samestat(Path(self.path).stat(), self._opened)
        except OSError:
            return True

    def _open(self) -> None:
        try:
            if self.path == "-":
                sink = sink_for(1)
            else:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                descriptor = os.open(self.path, flags, 0o640)  # mail addresses are private
                try:
                    sink = sink_for(descriptor)
                    self._opened = os.fstat(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as error:
            problem = os.strerror(error.errno or errno.EIO)
            if problem != self._error:
                _log.error("decision log %s: cannot open it: %s; mail goes on", printable(self.path), problem)
            self._error = problem
            return
        if self._sink is not None:
            self._sink.close()
        self._sink = sink
