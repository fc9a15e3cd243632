"""A milter that refuses mail by a table, so that Postfix logs a milter's refusals.

The protocol is Postfix's, version 6 (https://www.postfix.org/MILTER_README.html). A packet is its length in four
bytes, a letter, and arguments; most packets are answered by a packet.
"""

from __future__ import annotations

import socketserver
import struct
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = 6

# The answers at RCPT by recipient, and at the end of a message by sender.
REPLIES = {
    b"<virus@field.example>": b"550 5.7.1 no viruses here",
    b"<busy@field.example>": b"451 4.7.1 try again later",
    b"<spammer@sender.example>": b"554 5.7.1 Spam message rejected",
    b"<greylisted@sender.example>": b"451 4.7.1 Greylisted",
}

NOT_ANSWERED = {b"D", b"A", b"Q", b"K"}  # macros, abort, quit, quit before a new connection


class _Session(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        sender = b""
        for letter, argument in self._packets():
            first_word = argument.split(b"\0")[0]
            if letter == b"O":  # negotiation: wants to see every step, and to change nothing
                self._answer(b"O" + struct.pack("!LLL", VERSION, 0, 0))
            elif letter == b"R":
                self._judge(first_word)
            elif letter == b"E":
                self._judge(sender)
            elif letter not in NOT_ANSWERED:
                sender = first_word if letter == b"M" else sender
                self._answer(b"c")

    def _judge(self, mail_address: bytes) -> None:
        refusal = REPLIES.get(mail_address)
        self._answer(b"c" if refusal is None else b"y" + refusal + b"\0")

    def _packets(self) -> Iterator[tuple[bytes, bytes]]:
        while len(head := self.rfile.read(4)) == 4:
            packet = self.rfile.read(struct.unpack("!L", head)[0])
            yield packet[:1], packet[1:]

    def _answer(self, packet: bytes) -> None:
        self.wfile.write(struct.pack("!L", len(packet)) + packet)


@contextmanager
def milter(port: int) -> Iterator[None]:
    """Listens on a port of 127.0.0.1 during a `with` block."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", port), _Session) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
