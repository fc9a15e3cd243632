"""Asks a policy daemon one question, as Postfix does, and returns the answer.

`ask` blocks, so it is for commands, not for the daemon. The total time and the size of the answer are limited. The
answer is returned as raw bytes.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policyd.config.settings import InetAddress, UnixAddress

if TYPE_CHECKING:
    from collections.abc import Mapping

# Maximum bytes of an answer. An answer is one line, so a longer answer is not from a policy daemon.
MAX_ANSWER_BYTES = 16 * 1024


class AskError(Exception):
    """There is no complete answer. The message is the reason, in one line."""


@dataclass(frozen=True, slots=True)
class PolicyAnswer:
    """The reply up to the empty line, without that line, and the seconds that it took."""

    content: bytes
    seconds: float


def ask(address: InetAddress | UnixAddress, attributes: Mapping[str, str], timeout: float) -> PolicyAnswer:
    """Connects, sends the request, and waits for the answer, for at most `timeout` seconds in all. Raises AskError.

    https://www.postfix.org/SMTPD_POLICY_README.html
    """
    request = "".join(f"{name}={value}\n" for name, value in attributes.items()).encode() + b"\n"
    started = time.monotonic()
    try:
        with _connected(address, timeout) as connection:
            connection.sendall(request)
            content = _read_answer(connection, started + timeout)
    except TimeoutError:
        raise AskError(f"no answer within {timeout:g} s") from None
    except OSError as error:
        raise AskError((error.strerror or str(error)).lower()) from None
    return PolicyAnswer(content, time.monotonic() - started)


def _connected(address: InetAddress | UnixAddress, timeout: float) -> socket.socket:
    if isinstance(address, UnixAddress):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout)
        try:
            connection.connect(address.path)
        except OSError:
            connection.close()
            raise
        return connection
    return socket.create_connection((address.host, address.port), timeout)


def _read_answer(connection: socket.socket, deadline: float) -> bytes:
    content = b""
    while b"\n\n" not in content:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        part = connection.recv(4096)
        if not part:
            raise AskError("the connection was closed without an answer" if not content else "the answer is cut off")
        content += part
        if len(content) > MAX_ANSWER_BYTES:
            raise AskError(f"more than {MAX_ANSWER_BYTES // 1024} KiB of answer; that is not a policy daemon")
    return content.partition(b"\n\n")[0]
