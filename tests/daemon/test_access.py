"""Access to the daemon: default addresses, permissions of sockets, and warnings about unsafe settings."""

from __future__ import annotations

import socket
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from policyd.config.settings import Settings
from tests.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from tests.daemon.conftest import StartPolicyd
    from tests.field.policyd import Policyd


def warnings(policyd: Policyd) -> list[str]:
    lines = policyd.operational_log.read_text().splitlines()
    return [line.partition(": warning: ")[2] for line in lines if ": warning: " in line]


def test_by_default_only_this_host_can_connect_and_there_are_no_metrics() -> None:
    settings = Settings()
    assert [str(address) for address in settings.listen] == ["inet:127.0.0.1:10040"]
    assert settings.metrics is None
    assert settings.socket_mode & stat.S_IRWXO == 0


@pytest.mark.parametrize(("host", "is_warned_of"), [("127.0.0.1", False), ("[::1]", False), ("0.0.0.0", True)])
def test_only_metrics_that_others_can_read_cause_a_warning(
    start_policyd: StartPolicyd, host: str, *, is_warned_of: bool
) -> None:
    place = f"{host}:{free_port()}"
    with start_policyd(metrics=place) as policyd:
        found = [line for line in warnings(policyd) if "metrics" in line]
    assert [f"metrics at {place} can be read from other hosts" in line for line in found] == [True] * is_warned_of


def test_a_unix_socket_has_its_mode_before_a_client_can_connect(start_policyd: StartPolicyd, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    modes: list[int] = []
    ready = threading.Event()

    def connect_as_soon_as_possible() -> None:
        while not (modes or ready.is_set()):
            with socket.socket(socket.AF_UNIX) as client:
                try:
                    client.connect(str(path))
                except OSError:
                    continue
            modes.append(stat.S_IMODE(path.stat().st_mode))

    connecting = threading.Thread(target=connect_as_soon_as_possible)
    connecting.start()
    try:
        with start_policyd(listen=[f"unix:{path}"], socket_mode="0604"):
            connecting.join(10)
    finally:
        ready.set()
        connecting.join()
    assert modes == [0o604]


def test_world_writable_rules_cause_a_warning_at_the_start_and_at_each_reload(
    start_policyd: StartPolicyd,
) -> None:
    with start_policyd() as policyd:
        message = (
            f"{policyd.rules}: every user of this host may write to it, and so decide whose mail arrives; chmod o-w"
        )
        assert message not in warnings(policyd)
        policyd.rules.chmod(0o666)
        assert message in policyd.reload()
        policyd.stop()
        policyd.start()
        assert warnings(policyd).count(message) == 2
        policyd.rules.chmod(0o644)
        assert message not in policyd.reload()
