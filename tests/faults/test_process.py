"""Signals, the clock and resource limits: every request is answered, if necessary at a second try."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.conftest import LONG, SECONDS, Setting, long_only, wait_for_edition
from tests.faults.test_files import with_list
from tests.faults.world import DnsState, distorted, ruleset_hash, truth
from tests.field.policyd import serve_in_vain
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.field.policyd import Policyd

# Connections of a flow, each with at most one request in flight.
CONNECTIONS = 12

# The failure of a request on a connection that is being closed; Postfix and the flow send it again on a new connection.
CLOSED = "the connection was closed"

# Options of a flow while the daemon ends and starts.
RESTARTED: dict[str, Any] = {"may_fail": [CLOSED], "may_close": True, "exhausts": True}


# --- Signals ----------------------------------------------------------------------------------------------------------


def test_a_thousand_sighups_disturb_no_client(setting: Setting) -> None:
    rounds = 50 if LONG else 3
    with setting.daemon() as policyd, setting.flow(f"process: SIGHUP {rounds * 20:,} times") as flow:
        for edition in range(1, rounds + 1):
            with setting.world.edition.changing(edition):
                setting.write_edition(policyd, edition)
                for _ in range(20):
                    os.kill(policyd.pid, signal.SIGHUP)
                    time.sleep(0.005)
                wait_for_edition(policyd, edition)
        flow.fault_is_over()
    assert "failed" not in policyd.operational_log.read_text()


@contextmanager
def kept_socket(port: int) -> Iterator[socket.socket]:
    """A listening socket that outlives the daemon, as a socket of systemd does."""
    with socket.create_server(("127.0.0.1", port), backlog=4096) as listening:
        yield listening


def test_sigterm_under_load_loses_no_request_in_flight(setting: Setting) -> None:
    late = DnsState(distorted(delay=0.3), truth)  # so that there are lookups in flight
    times = 5 if LONG else 1
    with kept_socket(setting.port) as listener, setting.daemon(listener=listener) as policyd:
        with setting.flow(
            f"process: SIGTERM and a new start, the socket kept, {times} x",
            **RESTARTED,
        ) as flow:
            for _ in range(times):
                with setting.world.dns_being(late):
                    flow.go_on(SECONDS)
                    policyd.stop()
                policyd.start()
            flow.fault_is_over()
        assert flow.compare(policyd.decisions(flow.row.answered))
    assert flow.row.failed.total() <= times * CONNECTIONS


def test_sigkill_loses_requests_in_flight_and_at_most_the_last_line(setting: Setting) -> None:
    times = 20 if LONG else 2
    with kept_socket(setting.port) as listener, setting.daemon(listener=listener) as policyd:
        with setting.flow(
            f"process: SIGKILL and a new start, the socket kept, {times} x",
            **RESTARTED,
        ) as flow:
            for _ in range(times):
                flow.wait_for(100)
                policyd.kill()
                policyd.start()
            flow.fault_is_over()
        assert flow.compare(policyd.decisions(flow.row.answered - times), at_most=times)
    assert flow.row.failed.total() <= times * CONNECTIONS


def test_a_second_daemon_on_the_same_sockets_ends_and_disturbs_no_client(setting: Setting) -> None:
    unix = f"unix:{setting.folder}/socket"
    addresses = [f"inet:127.0.0.1:{setting.port}", unix]
    with setting.daemon(listen=addresses) as policyd:
        with setting.flow("process: a second daemon on the same sockets", place=unix) as flow:
            for address in addresses:
                second = serve_in_vain("--rules", policyd.rules, "--listen", address, cwd=setting.folder)
                assert second.returncode == 2
                assert "is policyd running already?" in second.stderr
            flow.fault_is_over()
        flow.compare(policyd.decisions(flow.row.answered))


# --- The clock --------------------------------------------------------------------------------------------------------


@long_only
def test_a_clock_set_back_an_hour_changes_no_answer_and_repeats_no_id(setting: Setting) -> None:
    """Only the daemon's clock is set back, with libfaketime, because a time namespace does not cover the time of day.
    libfaketime slows down every read of the clock, so answers may be slow.
    """
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        require("faketime")
    clock = setting.folder / "clock"
    clock.write_text("+0")
    environment = {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": clock,
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_RESET": "1",
    }
    wrapper = ["env", *(f"{name}={value}" for name, value in environment.items())]
    with setting.daemon(wrapper=wrapper) as policyd:
        with setting.flow("process: the clock set back an hour", exhausts=True) as flow:
            flow.go_on(1)
            (setting.folder / "new-clock").write_text("-3600")
            (setting.folder / "new-clock").rename(clock)
            flow.go_on(SECONDS)
            setting.use_edition(policyd, 1)
            flow.fault_is_over()
        logged = flow.compare(policyd.decisions(flow.row.answered))
    assert len({line["id"] for line in logged}) == len(logged)
    hours = {line["time"][:13] for line in logged}
    assert len(hours) >= 2, hours  # the clock was set back


# --- Memory and descriptors -------------------------------------------------------------------------------------------


def write_list(setting: Setting, names: int) -> None:
    """Writes a list that takes some memory to load."""
    (setting.folder / "long").write_text("".join(f"host{n}.dynamic.example\n" for n in range(names)))


def test_a_ruleset_that_does_not_fit_into_memory_leaves_the_old_one_in_force(setting: Setting) -> None:
    write_list(setting, 1_000_000 if LONG else 400_000)
    with setting.daemon() as policyd, setting.flow("process: a ruleset that RLIMIT_AS has no room for") as flow:
        limit_memory_of_loads(policyd, 15 << 20)
        policyd.rules.write_text(with_list(1, "long"))
        logged = policyd.reload()
        assert "the new ruleset does not fit into memory" in logged
        assert f"reload failed: ruleset {ruleset_hash(0)} stays in force" in logged
        setting.use_edition(policyd, 2)
        flow.fault_is_over()


def limit_memory_of_loads(policyd: Policyd, more: int) -> None:
    """Limits the loader and its workers to this number of bytes above the memory that the loader has now."""
    (loader,) = Path(f"/proc/{policyd.pid}/task/{policyd.pid}/children").read_text().split()
    pages = int(Path(f"/proc/{loader}/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + more
    subprocess.run(["prlimit", f"--pid={loader}", f"--as={limit}"], check=True)


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group for this test only, with a memory limit of 260 MiB."""
    for parent, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(parent) / f"policyd-fault-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / limit).exists():
            (group / limit).write_text(str(260 << 20))
            yield group
            group.rmdir()
            return
        group.rmdir()
    pytest.skip("no memory control group can be made here: that needs root and a writable cgroup file system")


@long_only
def test_out_of_memory_during_a_load_kills_the_worker_and_not_the_daemon(setting: Setting, memory_group: Path) -> None:
    write_list(setting, 3_000_000)
    wrapper = ["bash", "-c", f'echo $$ > {memory_group}/cgroup.procs; exec "$@"', "bash"]
    with (
        setting.daemon(wrapper=wrapper, patience=60) as policyd,
        setting.flow("process: out of memory during a load (cgroup)", exhausts=True) as flow,
    ):
        policyd.rules.write_text(with_list(1, "long"))
        logged = policyd.reload()
        assert "killed by SIGKILL; out of memory?" in logged
        setting.use_edition(policyd, 2)
        flow.fault_is_over()
