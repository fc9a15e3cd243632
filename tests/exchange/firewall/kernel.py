"""Sends packets through the real kernel's filter, in two temporary network namespaces.

One namespace has the filter, the listeners and the network interface `eth0`; the other has clients with any addresses.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Seconds after which a connection counts as dropped; both ends are on this machine.
_TIMEOUT = 1.0

_LISTEN = """
import socket, sys
listeners = []
for port in map(int, sys.argv[1].split(",")):
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=200)
    listeners.append(listener)
print("ready", flush=True)
sys.stdin.read()
"""

_CONNECT = """
import json, select, socket, sys, time
port, clients = int(sys.argv[1]), sys.argv[2].split(",")
waiting, known = {}, {}
for client in clients:
    family = socket.AF_INET6 if ":" in client else socket.AF_INET
    connecting = socket.socket(family)
    connecting.setblocking(False)
    connecting.bind((client, 0))
    connecting.connect_ex(("fd00:53::1" if ":" in client else "10.255.53.1", port))
    waiting[connecting] = client
end = time.monotonic() + float(sys.argv[3])
while waiting and time.monotonic() < end:
    _, ready, _ = select.select([], list(waiting), [], 0.05)
    for connecting in ready:
        known[waiting.pop(connecting)] = connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
print(json.dumps({client: known.get(client, False) for client in clients}))
"""


class Host:
    """The namespace with the filter, and the namespace with the clients."""

    def __init__(self, name: str, clients: Sequence[str]) -> None:
        self._name = name
        self._clients = clients

    def run(self, *command: str, given: str = "") -> str:
        """Runs a command in the namespace with the filter."""
        return _run("ip", "netns", "exec", f"{self._name}-a", *command, given=given)

    def lets_in(self, port: int = 25) -> dict[str, bool]:
        """Whether a new connection to the port succeeds, for each client."""
        listening = subprocess.Popen(
            ["ip", "netns", "exec", f"{self._name}-a", sys.executable, "-c", _LISTEN, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with listening:
            assert listening.stdin is not None
            assert listening.stdout is not None
            assert listening.stdout.readline() == "ready\n"
            arguments = [str(port), ",".join(self._clients), str(_TIMEOUT)]
            output = _run("ip", "netns", "exec", f"{self._name}-b", sys.executable, "-c", _CONNECT, *arguments)
            listening.stdin.close()
        found: dict[str, bool] = json.loads(output)
        return found


def _run(*command: str, given: str = "") -> str:
    ran = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, (command, given, ran.stderr)
    return ran.stdout


@contextlib.contextmanager
def host(clients: Sequence[str]) -> Iterator[Host]:
    """A host, and clients with these addresses. Skips the test if a namespace cannot be made."""
    require("ip", root=True)
    name = f"policyd-{secrets.token_hex(3)}"
    probe = subprocess.run(["ip", "netns", "add", f"{name}-a"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"no network namespaces here: {probe.stderr.strip()[:200]}")
    try:
        _run("ip", "netns", "add", f"{name}-b")
        _run(
            "ip", "-n", f"{name}-a", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", f"{name}-b"
        )
        for end, own, other in (("a", 1, 2), ("b", 2, 1)):
            # Neighbour entries are static, so that a filter cannot drop neighbour discovery.
            commands = f"""
                link set lo up
                link set eth0 address 02:00:00:00:53:0{own} up
                addr add 10.255.53.{own}/24 dev eth0
                addr add fd00:53::{own}/64 dev eth0 nodad
                neigh add fd00:53::{other} lladdr 02:00:00:00:53:0{other} dev eth0 nud permanent
                neigh add 10.255.53.{other} lladdr 02:00:00:00:53:0{other} dev eth0 nud permanent
            """
            for command in textwrap.dedent(commands).strip().splitlines():
                _run("ip", "-n", f"{name}-{end}", *command.split())
        for client in clients:
            _run("ip", "-n", f"{name}-b", "addr", "add", client, "dev", "lo", *(("nodad",) if ":" in client else ()))
        _run("ip", "-n", f"{name}-a", "route", "add", "default", "via", "10.255.53.2")
        _run("ip", "-n", f"{name}-a", "-6", "route", "add", "default", "via", "fd00:53::2")
        yield Host(name, clients)
    finally:
        for end in "ab":
            subprocess.run(["ip", "netns", "delete", f"{name}-{end}"], capture_output=True, check=False)
