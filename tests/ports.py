"""Ports of 127.0.0.1 for the servers of tests.

No other program should take a port between the check that it is free and the start of the server that uses it. So a
port is outside the kernel's range for outgoing connections, was not returned before in this run, is not shared with
other processes of this run (pytest-xdist), and is random, because another run may be active on the same machine.
"""

from __future__ import annotations

import functools
import os
import random
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@functools.cache
def _candidates() -> Iterator[int]:
    """Each port once, in a random order that does not depend on the seeds that hypothesis sets."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    # "gw0" is the first of the processes of pytest-xdist; without it there is one process, and no name.
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports = [port for port in range(10_100, 65_536) if not first <= port <= last and port % processes == process]
    return iter(random.SystemRandom().sample(ports, len(ports)))


def free_port() -> int:
    """A port that is free on every IPv4 address, for UDP and TCP. Each port is returned at most once.

    Raises RuntimeError if no port is left.
    """
    for port in _candidates():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp, suppress(OSError):
            udp.bind(("0.0.0.0", port))
            tcp.bind(("0.0.0.0", port))
            return port
    raise RuntimeError("no port outside the kernel's range for outgoing connections is free")
