"""Notifies systemd with the protocol of sd_notify(3).

Each notification is one datagram to the socket that NOTIFY_SOCKET names.

Promises to do nothing without such a socket, and never to block or fail: a notification that cannot be sent is logged.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger(__name__)


class Notifier:
    """Sends the notifications of this process, as the environment requires."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._socket: socket.socket | None = None
        self.watchdog_seconds = _watchdog_seconds(environment)
        address = environment.get("NOTIFY_SOCKET", "")
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            self._address = "\0" + address[1:] if address[0] == "@" else address  # `@`: unix(7), abstract
        elif address:
            _log.warning("NOTIFY_SOCKET=%r is neither a path nor an abstract socket; systemd is not notified", address)

    def ready(self, status: str) -> None:
        """Notifies that the daemon serves; `status` is one line about it."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Notifies that a reload has begun; `ready` ends it. Type=notify-reload requires the time."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def status(self, status: str) -> None:
        """Sends a new status line only."""
        self._send(f"STATUS={status}")

    def stopping(self) -> None:
        """Notifies that the daemon is about to end."""
        self._send("STOPPING=1", "STATUS=answering requests in flight")

    def watchdog(self) -> None:
        """Notifies that the daemon is alive; due at least every `watchdog_seconds`."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Closes the socket; nothing is sent after this."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *assignments: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto("\n".join(assignments).encode(), self._address)
        except BlockingIOError:
            _log.warning("systemd does not read its notifications; lost: %s", assignments[0])
        except OSError as error:
            _log.warning("cannot notify systemd (%s); not trying again", error.strerror)
            self.close()


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """Returns half of the time allowed between two notifications (sd_watchdog_enabled(3)); None without a watchdog."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 2e6 or None
