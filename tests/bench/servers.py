"""The measured servers, as processes on loopback, and their load.

A server is pinned to one core and its load to another unless a row says otherwise, so that neither takes the
other's time.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import select
import signal
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.bench.processes import cores, cpu_seconds, pinned_to, settle
from tests.field.policyd import Policyd
from tests.field.waiting import until
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# Timeout in seconds for a start or a reload with the largest lists on a busy machine.
PATIENCE_SECONDS = 120

POSTFWD = "/usr/sbin/postfwd2"

# Settings (`dns`) for daemons that need no DNS: no server listens on this port.
NO_RESOLVER = {"servers": ["127.0.0.1:9"], "timeout": "100ms"}


class Server(NamedTuple):
    """A policy server: the address on which it listens, in load.c's form, and its process."""

    address: str
    pid: int


class BenchError(Exception):
    """A measurement failed, so its figure is useless."""


def _wrapper(*, pinned: bool) -> Sequence[str]:
    """The first words of a server's command: with `pinned`, they pin the server to a core."""
    return pinned_to(cores()[0]) if pinned else ()


# --- Servers ----------------------------------------------------------------------------------------------------------


@contextmanager
def floor(program: Path, *, pinned: bool = True) -> Iterator[Server]:
    """The floor: a minimal policy server in C."""
    address = f"inet:127.0.0.1:{free_port()}"
    with _process(*_wrapper(pinned=pinned), program, address) as pid:
        _wait_until_listening(address)
        yield Server(address, pid)


@contextmanager
def policyd(rules: str, *, pinned: bool = True, **settings: Any) -> Iterator[tuple[Policyd, Server]]:
    """`policyd serve` with these rules, writing a decision log."""
    address = f"inet:127.0.0.1:{free_port()}"
    usual: dict[str, Any] = {"listen": [address], "log_level": "warning"}
    with tempfile.TemporaryDirectory(prefix="policyd-bench-") as name:
        folder = Path(name)
        usual["decision_log"] = {"path": str(folder / "decisions.log"), "format": "text"}
        wrapper = _wrapper(pinned=pinned)
        daemon = Policyd(folder, rules, wrapper=wrapper, patience=PATIENCE_SECONDS, **{**usual, **settings})
        with daemon:
            yield daemon, Server(address, daemon.pid)


@contextmanager
def postfwd(rules: str, *, pinned: bool = True) -> Iterator[Server]:
    """Debian's postfwd2 (preforked), without a cache of answers, without DNS, and without log lines for each rule."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="policyd-bench-") as name:
        folder = Path(name)
        (folder / "rules.cf").write_text(rules)
        options: dict[str, object] = {
            "file": folder / "rules.cf",
            "interface": "127.0.0.1",
            "port": port,
            "max_servers": 100,
            "cache": 0,
            "cache_proto": "unix",
            "cache_port": folder / "cache",
            "user": pwd.getpwuid(os.geteuid()).pw_name,
            "group": grp.getgrgid(os.getegid()).gr_name,
            "pidfile": folder / "pid",
            "config_timeout": PATIENCE_SECONDS,
        }
        command = [*_wrapper(pinned=pinned), POSTFWD, "--nodns", "--norulelog"]
        command += [text for option, value in options.items() for text in (f"--{option}", str(value))]
        # postfwd goes into the background by itself.
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        pid_file = folder / "pid"
        pid = until("postfwd", lambda: int(pid_file.read_text() or 0) or None if pid_file.exists() else None)
        try:
            address = f"inet:127.0.0.1:{port}"
            _wait_until_listening(address)
            yield Server(address, pid)
        finally:
            ended = os.pidfd_open(pid)  # because postfwd is not a child process
            os.kill(pid, signal.SIGTERM)
            if not select.select([ended], [], [], 10)[0]:
                raise TimeoutError("postfwd does not end")
            os.close(ended)


@contextmanager
def resolver(program: Path, milliseconds: int) -> Iterator[str]:
    """A resolver that answers with a delay, on the load's core; yields `address:port`."""
    port = free_port()
    with _process(*pinned_to(cores()[1]), program, str(port), str(milliseconds)):
        yield f"127.0.0.1:{port}"


@contextmanager
def _process(*command: str | Path) -> Iterator[int]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(timeout=10)


def _wait_until_listening(address: str) -> None:
    _, host, port = address.split(":")

    def is_listening() -> bool | None:
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0 or None

    until(address, is_listening, PATIENCE_SECONDS)


# --- Load -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """A load on a server: its requests, connections and duration."""

    program: Path
    requests: Path
    connections: int = 50
    seconds: float = 3
    pinned: bool = True

    def command(self, server: Server, *more: str) -> list[str]:
        """The command of the load generator."""
        command = [*pinned_to(cores()[1])] if self.pinned else []
        command += [str(self.program), "-a", server.address, "-f", str(self.requests)]
        return [*command, "-c", str(self.connections), "-d", str(self.seconds), *more]

    def put_on(self, server: Server) -> dict[str, Any]:
        """Runs the load; returns its report."""
        return dict(json.loads(subprocess.run(self.command(server), check=True, capture_output=True).stdout))


def failures(report: Mapping[str, Any]) -> dict[str, int]:
    """The number of failures in a report, by kind."""
    return {kind: int(report[kind]) for kind in ("wrong", "closed", "refused", "unanswered")}


def require_valid(report: Mapping[str, Any], *, passes: int | None = None) -> None:
    """Raises BenchError if an answer was wrong or missing, or if the requests were sent more than `passes` times."""
    if any(failures(report).values()) or not report["measured"]:
        raise BenchError(f"the load generator says: {json.dumps(report)}")
    if passes is not None and report["passes"] > passes:
        raise BenchError(f"the load ran out of requests after {report['answered']} answers; make more of them")


def cost_us(server: Server, load: Load) -> tuple[float, dict[str, Any]]:
    """The CPU time that a server uses for one request, in microseconds; and the load generator's report."""
    settle(server.pid)
    used = cpu_seconds(server.pid)
    report = load.put_on(server)
    settle(server.pid)
    return (cpu_seconds(server.pid) - used) * 1e6 / report["answered"], report


def report_of(load_process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Waits for the end of a load generator; returns its report.

    Raises BenchError if the load generator failed.
    """
    output, _ = load_process.communicate()
    if load_process.returncode:
        raise BenchError(f"the load generator ended with status {load_process.returncode}")
    return dict(json.loads(output))
