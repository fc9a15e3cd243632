import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from policyd.daemon.systemd import Notifier


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield listening


def test_a_socket_path_gets_notifications(systemd: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": systemd.getsockname()})
    notifier.ready("ruleset 3f9c2a1b")
    notifier.status("much mail")
    notifier.close()
    assert systemd.recv(100) == b"READY=1\nSTATUS=ruleset 3f9c2a1b"
    assert systemd.recv(100) == b"STATUS=much mail"


def test_without_a_socket_nothing_is_sent_and_nothing_fails() -> None:
    notifier = Notifier({})
    notifier.ready("x")
    notifier.close()
    notifier.stopping()


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("/nowhere/at/all", "cannot notify systemd (No such file or directory); not trying again"),
        ("vsock:2:1", "neither a path nor an abstract socket"),
    ],
)
def test_an_unusable_socket_is_logged_once(address: str, complaint: str, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready("x")
    notifier.ready("x")
    notifier.close()
    assert len(caplog.records) == 1
    assert complaint in caplog.text


def test_the_daemon_does_not_wait_if_systemd_does_not_read(
    systemd: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": systemd.getsockname()})
    for _ in range(2000):
        notifier.status("x" * 1000)
    notifier.close()
    assert "does not read its notifications; lost: STATUS=" in caplog.text


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "junk"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_the_watchdog_is_notified_at_half_its_interval(environment: dict[str, str], seconds: float | None) -> None:
    assert Notifier(environment).watchdog_seconds == seconds
