"""A real rbldnsd on loopback, for the zones of DNS lists.

    with start_rbldnsd(folder, {"zen.test": Zone("ip4set", "127.0.0.2 ...")}) as rbldnsd:
        ...  # it answers at 127.0.0.1:PORT (rbldnsd.port); unbound asks it with zones={"zen.test": rbldnsd.port}

rbldnsd reads a changed zone again at SIGHUP: `Rbldnsd.change`.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tests.field.waiting import PATIENCE_SECONDS, until
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

RBLDNSD = "/usr/sbin/rbldnsd"

# The head of a zone. An entry, or its absence, has a TTL of a second, so a resolver soon sees a change.
_HEAD = """\
$SOA 1 ns.rbl.test. hostmaster.rbl.test. 0 600 300 86400 1
$NS 60 ns.rbl.test.
$TTL 1
"""


class Zone(NamedTuple):
    """A zone: rbldnsd's type of data set, and its entries."""

    type: str
    entries: str


@dataclass
class Rbldnsd:
    """A running rbldnsd."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    zones: Mapping[str, Zone] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return self.folder / "rbldnsd.log"

    def change(self, zone: str, entries: str) -> None:
        """Gives a zone other entries, and waits until they are in force."""
        loads = self.log.read_text().count("zones reloaded")
        write_zone(self.folder, zone, entries)
        # rbldnsd compares the file's size, and its modification time in whole seconds.
        later = (self.folder / zone).stat().st_mtime + 2
        os.utime(self.folder / zone, (later, later))
        self.process.send_signal(signal.SIGHUP)
        until("the zone's new entries", lambda: self.log.read_text().count("zones reloaded") > loads or None)


def write_zone(folder: Path, zone: str, entries: str) -> None:
    (folder / zone).write_text(_HEAD + entries)


@contextmanager
def start_rbldnsd(folder: Path, zones: Mapping[str, Zone], *, port: int = 0) -> Iterator[Rbldnsd]:
    """Runs rbldnsd with these zones. The zone files and its log are in the folder.

    Raises AssertionError with the log if rbldnsd ends, TimeoutError if it hangs.
    """
    port = port or free_port()
    for name, zone in zones.items():
        write_zone(folder, name, zone.entries)
    log = folder / "rbldnsd.log"
    command = [RBLDNSD, "-n", "-b", f"127.0.0.1/{port}"]
    command += [f"{name}:{zone.type}:{name}" for name, zone in zones.items()]
    # rbldnsd refuses to run as root. Its files are relative to its folder, so the folders above need not be readable.
    folder.chmod(0o755)
    user = "nobody" if os.geteuid() == 0 else None
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, user=user, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        until("rbldnsd, or its end", lambda: process.poll() is not None or " started (" in log.read_text() or None)
        assert process.poll() is None, log.read_text()
        yield Rbldnsd(folder, port, process, zones)
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_SECONDS)
