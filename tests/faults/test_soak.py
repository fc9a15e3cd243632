"""Millions of requests with reloads and rotations of the log do not change memory, descriptors and latency.

    make faults SOAK=10000000

Most requests come from tests/bench/load.c, which checks the verb of each answer; a slower flow beside it checks
complete answers, and includes clients that need DNS. Every answer must be in the decision log.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import native
from tests.faults.asker import encode_request
from tests.faults.conftest import Setting, add_text, long_only
from tests.faults.world import NAMED, attributes_of, right_answer, rules_file, verified_by_postfix
from tests.field.policyd import Policyd
from tests.field.waiting import until
from tests.ports import free_port
from tests.requirements import require

# Total number of requests, and number of equal parts; the last part is compared with the first.
REQUESTS = int(os.environ.get("SOAK") or 300_000)
PARTS = 10

# Number of rounds in each part (in a round, the daemon gets load, and then a new daemon), and seconds of load for the
# new daemon.
ROUNDS = 10
NEW_SECONDS = 0.5

# Number of lookups before the first measurement, which fill all caches, including that of c-ares.
CLIENTS_AT_FIRST = 15_000

# Seconds between two reloads.
RELOAD_SECONDS = 2.0

# Growth that is allowed: descriptors, because channels to name servers come and go, and megabytes.
SPARE_DESCRIPTORS = 16
SPARE_MB = 10.0


@dataclass(frozen=True)
class Part:
    """One part of the soak: the load generator's reports for each round, of the daemon and of a new daemon beside it,
    and the daemon's resources.
    """

    old: list[dict[str, Any]]
    new: list[dict[str, Any]]
    cpu_us: float  # of the daemon's process, for each answer
    resident_mb: float
    descriptors: int

    @property
    def answered(self) -> int:
        return sum(each["answered"] for each in self.old)

    @property
    def latency_to_new(self) -> float:
        """The median over the rounds of the daemon's median latency, relative to that of a new daemon."""
        ratios: list[float] = [
            old["latency_us"]["p50"] / new["latency_us"]["p50"] for old, new in zip(self.old, self.new, strict=True)
        ]
        return statistics.median(ratios)

    def __str__(self) -> str:
        def latency(name: str) -> list[float]:
            return [each["latency_us"][name] / 1000 for each in self.old]

        a_second = statistics.mean(each["per_second"] for each in self.old)
        p50, p99, longest = statistics.median(latency("p50")), statistics.median(latency("p99")), max(latency("max"))
        cells = [f"{self.answered:,}", f"{a_second:,.0f}", f"{p50:.2f}", f"{p99:.2f}", f"{longest:.2f}"]
        cells += [f"{self.latency_to_new:.3f}", f"{self.cpu_us:.1f}", f"{self.resident_mb:.1f}", str(self.descriptors)]
        return f"| {' | '.join(cells)} |"


HEAD = (
    "| answers | a second | p50, ms | p99, ms | longest, ms | p50, relative to a new daemon | CPU an answer, us "
    "| resident, MB | descriptors |\n"
    "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def write_requests(path: Path) -> None:
    """Writes the requests for the load generator: those of named clients to which all editions give the same verb."""
    content = b""
    for client in range(len(NAMED)):
        attributes = attributes_of(client, 0)
        answers = [right_answer(edition, attributes, verified_by_postfix(attributes)) for edition in (0, 1)]
        verbs = {answer.partition(" ")[0] for answer in answers}
        if len(verbs) == 1:
            content += b"expect=%b\n%binstance=volume\n\n" % (verbs.pop().encode(), encode_request(client, 0))
    path.write_bytes(content)


class Reloads:
    """Puts one edition after the other in force, between `__enter__` and `__exit__`."""

    def __init__(self, setting: Setting, policyd: Policyd) -> None:
        self._setting = setting
        self._policyd = policyd
        self._over = threading.Event()
        self._problems: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        assert self._problems == []

    def _run(self) -> None:
        while not self._over.wait(RELOAD_SECONDS):
            try:
                self._setting.use_edition(self._policyd, self._setting.world.edition.now + 1)
            except BaseException as problem:  # noqa: BLE001 - the test's own thread reports it
                self._problems.append(problem)
                return


def cpu_seconds(pid: int) -> float:
    """CPU seconds of the daemon's process only, without the processes that read files for a reload (proc(5),
    /proc/PID/stat).
    """
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Resident memory, in 10**6 bytes (proc(5), /proc/PID/statm)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Log:
    """The decision log, which is moved away from time to time because it would fill the disk. `volume` is the number of
    lines from the load generator; `own` are the lines from the flows.
    """

    def __init__(self, policyd: Policyd) -> None:
        self.volume = 0
        self.own: list[dict[str, Any]] = []
        self._policyd = policyd

    def move_away(self) -> None:
        """Moves the current file away; the daemon continues in a new file."""
        path = self._policyd.decision_log
        old = path.with_suffix(".old")
        path.rename(old)
        until("a new log", lambda: path.exists() or None)
        self.take(old)
        old.unlink()

    def take(self, path: Path) -> None:
        """Takes the lines of a file that is no longer written to."""
        with path.open("rb") as file:
            for line in file:
                if b'"instance":"volume"' in line:
                    self.volume += 1
                else:
                    self.own.append(json.loads(line))


@long_only
def test_millions_of_requests_with_reloads_leave_memory_and_latency_unchanged(setting: Setting) -> None:
    require(os.environ.get("CC", "cc"))
    load = native.build(setting.folder)["load"]
    requests = setting.folder / "requests"
    write_requests(requests)
    parts: list[Part] = []
    dns = {"servers": [setting.dns.address], "timeout": "2s", "cache_size": 1000}
    with setting.daemon(dns=dns) as policyd:
        log = Log(policyd)

        def ask(port: int, seconds: float) -> dict[str, Any]:
            where = f"inet:127.0.0.1:{port}"
            command: list[str | Path] = [load, "-a", where, "-f", requests, "-w", "0", "-d", f"{seconds:.2f}"]
            report: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            assert [report[kind] for kind in ("wrong", "closed", "refused", "unanswered")] == [0, 0, 0, 0], report
            return report

        def part(seconds: float) -> Part:
            old, new = [], []
            folder, port = setting.folder / f"new-{len(parts)}", free_port()
            folder.mkdir()
            with Policyd(folder, rules_file(0), listen=[f"inet:127.0.0.1:{port}"], dns=dns):
                ask(port, 2 * NEW_SECONDS)  # so that the new daemon has warmed up
                used = 0.0
                for _ in range(ROUNDS):
                    before = cpu_seconds(policyd.pid)
                    old.append(ask(setting.port, max(seconds / ROUNDS, NEW_SECONDS)))
                    used += cpu_seconds(policyd.pid) - before
                    new.append(ask(port, NEW_SECONDS))
            shutil.rmtree(folder)
            descriptors = len(list(Path(f"/proc/{policyd.pid}/fd").iterdir()))
            log.move_away()
            cpu_us = used * 1e6 / sum(each["answered"] for each in old)
            return Part(old, new, cpu_us, resident_mb(policyd.pid), descriptors)

        with setting.flow("soak: its beginning", nameless=20, pause=0.001, repeats=1, exhausts=True) as beginning:
            beginning.wait_for_clients(CLIENTS_AT_FIRST, 300)
        with (
            setting.flow("soak: the flow beside it", named=4, nameless=4, pause=0.05, exhausts=True) as flow,
            Reloads(setting, policyd),
        ):
            warm = ask(setting.port, 3)
            seconds = REQUESTS / PARTS / warm["per_second"]
            while sum(each.answered for each in parts) < REQUESTS:
                parts.append(part(seconds))
            flow.fault_is_over()
    log.take(policyd.decision_log)
    add_text("\n".join([HEAD, *map(str, parts)]))
    assert log.volume == warm["answered"] + sum(each.answered for each in parts)
    assert len(beginning.compare(log.own)) + len(flow.compare(log.own)) == len(log.own)
    first, last = parts[0], parts[-1]
    assert last.resident_mb < first.resident_mb + SPARE_MB
    assert last.descriptors < first.descriptors + SPARE_DESCRIPTORS
    assert last.latency_to_new < first.latency_to_new * 1.1
