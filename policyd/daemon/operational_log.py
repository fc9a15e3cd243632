"""The operational log: events of the daemon, on standard error, one line each.

Under systemd a line begins with its priority (sd-daemon(3)) and has no time, because the journal adds one; elsewhere it
begins with the local time. Only a traceback, which only a bug produces, has more than one line.

Promises never to block the daemon: a line that standard error does not take at once is lost and counted. Control
characters are always escaped; client text must also be cut (`excerpt`).
"""

from __future__ import annotations

import datetime
import logging
import os
from typing import TYPE_CHECKING

from policyd.core.printable import printable
from policyd.daemon.sinks import sink_for

if TYPE_CHECKING:
    from collections.abc import Mapping

# sd-daemon(3): the syslog priorities.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class OperationalLog(logging.Handler):
    """Writes log records to standard error. `lost` counts lines that it did not take."""

    def __init__(self, environment: Mapping[str, str], descriptor: int = 2) -> None:
        super().__init__()
        self._sink = sink_for(descriptor)
        self._journal = _is_journal(environment, descriptor)
        self.lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record."""
        try:
            self.lost += self._sink.write(self._lines(record))
        except Exception:  # noqa: BLE001 - a bad log call must not raise in its caller (logging.Handler)
            self.handleError(record)

    def _lines(self, record: logging.LogRecord) -> list[bytes]:
        lines = [record.getMessage()]
        if record.exc_info:
            lines += logging.Formatter().formatException(record.exc_info).splitlines()
        priority = _PRIORITIES.get(record.levelno, 6)
        if self._journal:
            start = f"<{priority}>"
        else:
            start = f"{_local_time(record.created)} policyd[{record.process}]: {record.levelname.lower()}: "
        return [f"{start}{printable(line)}\n".encode("utf-8", "backslashreplace") for line in lines]


def excerpt(value: bytes, limit: int = 80) -> str:
    """Returns a client's bytes as a message may show them: printable ASCII, cut after the first `limit` bytes."""
    text = printable(value[:limit].decode("ascii", "backslashreplace"))
    return text if len(value) <= limit else text + "..."


def _is_journal(environment: Mapping[str, str], descriptor: int) -> bool:
    """Whether the descriptor leads to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _local_time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).astimezone().isoformat(timespec="milliseconds")
