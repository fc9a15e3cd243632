"""Sends a request to a daemon over its control socket, and waits for the answer for a limited time."""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any

from policyd.control.words import MAX_ANSWER_BYTES, Command, ControlRequest

# Seconds within which the daemon must answer. A reload gets more: it reads every file, and ten million entries take a
# minute.
_SECONDS = 10.0
_RELOAD_SECONDS = 900.0

# Seconds before the next attempt if the control socket has too many connections.
_PAUSE = 0.05


class ControlError(Exception):
    """The daemon cannot be asked, or its answer cannot be understood. The message says why, and what to do."""


def ask(path: str, request: ControlRequest) -> dict[str, Any]:
    """Returns the daemon's answer. Raises ControlError."""
    try:
        line = _exchange(path, request)
    except FileNotFoundError:
        raise ControlError(
            f"cannot ask the daemon: {path} does not exist; is policyd running, with this path as 'control' in its "
            "settings?"
        ) from None
    except ConnectionRefusedError:
        raise ControlError(f"cannot ask the daemon: nothing listens at {path}; is policyd running?") from None
    except PermissionError:
        raise ControlError(
            f"cannot ask the daemon: no permission to use {path}; ask as root or as a member of the socket's group"
        ) from None
    except (TimeoutError, BlockingIOError):
        raise ControlError(f"the daemon at {path} does not answer") from None
    except OSError as error:
        raise ControlError(f"cannot ask the daemon at {path}: {error.strerror or error}") from None
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("ok"), bool):
        raise ControlError(f"{path}: the answer is incomplete or does not come from policyd")
    return answer


def _exchange(path: str, request: ControlRequest) -> bytes:
    """Sends the request and reads the answer. Raises OSError."""
    began = time.monotonic()
    seconds = _RELOAD_SECONDS if request.command is Command.RELOAD else _SECONDS
    while True:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                # With this option, connect(2) waits while the daemon's queue of connections is full. With Python's own
                # timeout it would fail at once (unix(7)).
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(_SECONDS), 0))
                connection.connect(path)
                connection.settimeout(_SECONDS)
                connection.sendall(request.encode())
                return _read_line(connection, began + seconds)
        except (ConnectionResetError, BrokenPipeError):
            # Too many connections: the daemon closed this one before it read the request.
            if time.monotonic() - began > _SECONDS:
                raise
            time.sleep(_PAUSE)


def _read_line(connection: socket.socket, deadline: float) -> bytes:
    """Returns the line; without a newline if it is too long or the daemon closed the connection too early."""
    read = bytearray()
    while not read.endswith(b"\n") and len(read) <= MAX_ANSWER_BYTES:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        piece = connection.recv(1 << 16)
        if not piece:
            break
        read += piece
    return bytes(read)
