"""With socket activation the daemon may end, even by SIGKILL, and start again, and no message gets 451."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Self

import pytest

from tests.field.postfix import Client

if TYPE_CHECKING:
    import socket

    from tests.field.conftest import StartPolicyd
    from tests.field.postfix import Postfix, Reply

RULES = """\
rules:
  - {name: listed, match: {cidr: 198.51.100.0/24}, action: REJECT 5.7.1 Access denied}
"""

SENDERS = 4


class Flow:
    """Mail from several clients at once, one message after the other, between `__enter__` and `__exit__`.

    `replies` counts the replies by whether the client is listed, and by code.
    """

    def __init__(self, port: int) -> None:
        self.replies: Counter[tuple[bool, int]] = Counter()
        self._answers: Counter[int] = Counter()  # by sender
        self._port = port
        self._stop = threading.Event()
        self._wake = threading.Condition()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(SENDERS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, messages: int) -> None:
        """Waits until each of the clients has got this many more answers."""
        with self._wake:
            wanted = Counter({number: self._answers[number] + messages for number in range(SENDERS)})
            assert self._wake.wait_for(lambda: self._answers >= wanted, timeout=60), self.replies

    def _send(self, number: int) -> None:
        sent = 0
        while not self._stop.is_set():
            listed = (sent + number) % 2 == 0
            address = f"198.51.100.{number}" if listed else f"192.0.2.{number}"
            with Client(self._port, address, f"host{number}.sender.example") as client:
                for recipient in range(3):
                    (reply,) = client.offer("someone@sender.example", f"{number}.{sent}.{recipient}@field.example")
                    self._count(number, listed, reply)
            sent += 1

    def _count(self, number: int, listed: bool, reply: Reply) -> None:
        with self._wake:
            self._answers[number] += 1
            self.replies[listed, reply.code] += 1
            self._wake.notify_all()


def test_killing_and_restarting_the_daemon_costs_no_message(
    service: str, listener: socket.socket, postfix: Postfix, start_policyd: StartPolicyd
) -> None:
    with start_policyd(RULES, listener=listener) as policyd, Flow(postfix.port[service]) as flow:
        for end in (policyd.kill, policyd.stop, policyd.kill):
            # Postfix asks at most twice for a message. After this wait, every message in flight is at its first try.
            flow.wait_for(messages=10)
            end()
            policyd.start()
        flow.wait_for(messages=10)
    assert set(flow.replies) == {(True, 554), (False, 250)}, flow.replies


@pytest.mark.parametrize(("service", "code"), [("inet", 451), ("unix", 451), ("lenient", 250)], indirect=["service"])
def test_without_the_daemon_postfix_does_what_default_action_says(service: str, code: int, postfix: Postfix) -> None:
    with Client(postfix.port[service], "192.0.2.25") as client:
        (reply,) = client.offer("someone@sender.example", "nobody-answers@field.example")
    assert reply.code == code
