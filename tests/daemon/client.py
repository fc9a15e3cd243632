"""A plain client of the protocol: sends requests as Postfix does, and reads the answers."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

# Timeout in seconds, far longer than any answer takes here.
SECONDS = 30


def request(**attributes: str) -> bytes:
    """A request at RCPT from a client whose name Postfix has verified, with these attributes changed."""
    usual = {
        "request": "smtpd_access_policy",
        "protocol_state": "RCPT",
        "client_address": "192.0.2.25",
        "client_name": "mail.sender.example",
        "reverse_client_name": "mail.sender.example",
        "helo_name": "mail.sender.example",
        "sender": "anna@sender.example",
        "recipient": "bob@recipient.example",
        "instance": "1.2.3",
    }
    return "".join(f"{name}={value}\n" for name, value in (usual | attributes).items()).encode() + b"\n"


def unnamed(address: str, **attributes: str) -> bytes:
    """A request from a client for which Postfix has found no name: policyd asks DNS if a rule needs the name."""
    names = {"client_name": "unknown", "reverse_client_name": "unknown"}
    return request(client_address=address, **names, **attributes)


class Client:
    """A connection, to a port of 127.0.0.1 (or `host`) or to a unix socket."""

    def __init__(self, place: int | Path, host: str = "127.0.0.1") -> None:
        if isinstance(place, int):
            self.socket = socket.create_connection((host, place), timeout=SECONDS)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(SECONDS)
            try:
                self.socket.connect(str(place))
            except OSError:
                self.socket.close()
                raise
        self._read = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, content: bytes) -> None:
        self.socket.sendall(content)

    def answer(self) -> str:
        """The next answer, without `action=`; EOFError if the server closes the connection instead."""
        while b"\n\n" not in self._read:
            try:
                read = self.socket.recv(65536)
            except ConnectionResetError:
                read = b""
            if not read:
                raise EOFError(self._read)
            self._read += read
        answer, _, self._read = self._read.partition(b"\n\n")
        assert answer.startswith(b"action=")
        return answer.removeprefix(b"action=").decode("ascii")

    def ask(self, content: bytes) -> str:
        self.send(content)
        return self.answer()

    def is_closed(self) -> bool:
        """Returns whether the server closes the connection without sending anything; fails if the server answers."""
        try:
            answer = self.answer()
        except EOFError as end:
            return bool(end.args[0] == b"")
        raise AssertionError(f"answered: {answer}")
