"""A real unbound with the world that the field tests live in, and servers behind it that refuse or say nothing."""

from __future__ import annotations

import ipaddress
import socket
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.field.postfix import free_ports
from tests.field.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

CONFIGURATION = """\
server:
  interface: 127.0.0.1@{port}
  access-control: 127.0.0.0/8 allow
  do-daemonize: no
  do-not-query-localhost: no
  use-syslog: no
  logfile: {folder}/unbound.log
  pidfile: ""
  chroot: ""
  username: ""
  directory: {folder}
  module-config: "iterator"
  num-threads: 1
  # All the names there are, and a definite no for every other one, save in the zones of the servers below.
  local-zone: "." static
{records}
{zones}
remote-control:
  control-enable: no
"""

# A zone that other servers answer for. `nodefault` lifts unbound's built-in zones for documentation addresses.
ZONE = """\
server:
  local-zone: "{zone}" nodefault
  local-zone: "{zone}" transparent
stub-zone:
  name: "{zone}"
  stub-addr: 127.0.0.1@{port}
"""

REFUSED = 5


@contextmanager
def _server(*, refuses: bool) -> Iterator[int]:
    """A DNS server that answers REFUSED (RFC 1035 section 4.1.1), or not at all; gives its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                query, resolver = server.recvfrom(4096)
                if not query:
                    return
                if refuses:
                    server.sendto(query[:2] + bytes([0x80, REFUSED]) + query[4:], resolver)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ender:
            ender.sendto(b"", server.getsockname())
        thread.join()


def host(name: str, address: str) -> list[str]:
    """A host with a name that verifies: forward and reverse."""
    kind = "AAAA" if ipaddress.ip_address(address).version == 6 else "A"
    return [f"local-data: '{name}. 300 IN {kind} {address}'", *claim(name, address)]


def claim(name: str, address: str) -> list[str]:
    """An address whose PTR record gives a name; whether the name resolves back is another matter."""
    return [f'local-data-ptr: "{address} 300 {name}"']


@contextmanager
def unbound(folder: Path, records: Iterable[str], *, silent: Iterable[str], refused: Iterable[str]) -> Iterator[str]:
    """unbound with these records, and zones whose servers are silent or refuse; gives `address:port`."""
    port = free_ports("dns")["dns"]
    with _server(refuses=False) as silent_port, _server(refuses=True) as refusing_port:
        zones = [ZONE.format(zone=zone, port=silent_port) for zone in silent]
        zones += [ZONE.format(zone=zone, port=refusing_port) for zone in refused]
        configuration = folder / "unbound.conf"
        configuration.write_text(
            CONFIGURATION.format(
                folder=folder, port=port, records="\n".join(f"  {each}" for each in records), zones="\n".join(zones)
            )
        )
        process = subprocess.Popen(["/usr/sbin/unbound", "-d", "-c", configuration], stdin=subprocess.DEVNULL)
        log = folder / "unbound.log"
        until("unbound", lambda: (log.exists() and "start of service" in log.read_text()) or None)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=10)
