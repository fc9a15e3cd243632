"""Millions of requests with reloads, the log rotated now and then: memory, descriptors and cost stay as they are.

    make faults SOAK=10000000

The volume comes from tests/bench/load.c, which checks the word of each answer; a slower flow beside it checks all of
each, and asks for clients that DNS must be asked for. Every answer is looked for in the decision log.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench import native
from tests.faults.asker import encoded
from tests.faults.conftest import Setting, add_text, long_only
from tests.faults.world import NAMED, attributes_of, right_answer, verified_by_postfix
from tests.field.waiting import until
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.field.policyd import Policyd

# Requests in all, and the number of equal parts, of which the last is compared with the first.
REQUESTS = int(os.environ.get("SOAK") or 300_000)
PARTS = 10

# Between two reloads, in seconds.
RELOAD_SECONDS = 2.0

# What may come and go with the channels to name servers, of which there are a few at a time.
SPARE_DESCRIPTORS = 16
SPARE_MB = 10.0


@dataclass(frozen=True)
class Part:
    """One part of the soak: what the load generator says, and what the daemon took for it and holds at its end."""

    load: dict[str, Any]
    cpu_us: float  # of the daemon's process, for each answer
    resident_mb: float
    descriptors: int

    def __str__(self) -> str:
        latency = self.load["latency_us"]
        cells = [f"{self.load['answered']:,}", f"{self.load['per_second']:,.0f}"]
        cells += [f"{latency[each] / 1000:.2f}" for each in ("p50", "p99", "max")]
        cells += [f"{self.cpu_us:.1f}", f"{self.resident_mb:.1f}", str(self.descriptors)]
        return f"| {' | '.join(cells)} |"


HEAD = (
    "| answers | a second | p50, ms | p99, ms | longest, ms | CPU an answer, us | resident, MB | descriptors |\n"
    "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def volume(path: Path) -> None:
    """The requests for the load generator: whose answer is the same word in every edition."""
    content = b""
    for client in range(len(NAMED)):
        attributes = attributes_of(client, 0)
        answers = [right_answer(edition, attributes, verified_by_postfix(attributes)) for edition in (0, 1)]
        words = {answer.partition(" ")[0] for answer in answers}
        if len(words) == 1:
            content += b"expect=%b\n%binstance=volume\n\n" % (words.pop().encode(), encoded(client, 0))
    path.write_bytes(content)


class Reloads:
    """One edition after the other is put in force, between `__enter__` and `__exit__`."""

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
            except BaseException as problem:  # noqa: BLE001 - told in the thread that the test is
                self._problems.append(problem)
                return


def cpu_seconds(pid: int) -> float:
    """Of this process alone, without those that read files for a reload (proc(5), /proc/PID/stat)."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """In 10**6 bytes (proc(5), /proc/PID/statm)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@long_only
def test_millions_of_requests_with_reloads_leave_everything_as_it_was(setting: Setting) -> None:
    require(os.environ.get("CC", "cc"))
    load = native.build(setting.folder)["load"]
    requests = setting.folder / "requests"
    volume(requests)
    parts: list[Part] = []
    lines, own = 0, []
    # The cache is full early on; what a full cache holds is no growth.
    dns = {"servers": [setting.dns.address], "timeout": "2s", "cache_size": 500}
    with setting.daemon(dns=dns) as policyd:

        def ask(seconds: float) -> dict[str, Any]:
            command = [load, "-a", f"inet:127.0.0.1:{setting.port}", "-f", requests, "-w", "0", "-d", f"{seconds:.2f}"]
            return dict(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))

        def part(seconds: float) -> Part:
            used = cpu_seconds(policyd.pid)
            report = ask(seconds)
            used = cpu_seconds(policyd.pid) - used
            descriptors = len(list(Path(f"/proc/{policyd.pid}/fd").iterdir()))
            return Part(report, used * 1e6 / report["answered"], resident_mb(policyd.pid), descriptors)

        with (
            setting.flow("soak: the flow beside it", named=4, nameless=4, pause=0.05, exhausts=True) as flow,
            Reloads(setting, policyd),
        ):
            flow.wait_for_clients(600, 120)
            warm = ask(3)
            seconds = REQUESTS / PARTS / warm["per_second"]
            while sum(each.load["answered"] for each in parts) < REQUESTS:
                parts.append(part(seconds))
                for logged in rotated(policyd):
                    lines += 1
                    if b'"instance":"volume"' not in logged:
                        own.append(json.loads(logged))
            flow.fault_is_over()
        for logged in policyd.decision_log.read_bytes().splitlines():
            lines += 1
            if b'"instance":"volume"' not in logged:
                own.append(json.loads(logged))
    add_text("\n".join([HEAD, *map(str, parts)]))
    for report in [warm, *(each.load for each in parts)]:
        assert (report["wrong"], report["closed"], report["refused"], report["unanswered"]) == (0, 0, 0, 0)
    assert len(flow.compare(own)) == len(own)
    assert lines == warm["answered"] + sum(each.load["answered"] for each in parts) + len(own)
    first, last = parts[0], parts[-1]
    assert last.resident_mb < first.resident_mb + SPARE_MB
    assert last.descriptors < first.descriptors + SPARE_DESCRIPTORS
    # The latency itself is in the table: with one core for all of this it is the machine's, not the daemon's.
    assert last.cpu_us < first.cpu_us * 1.1


def rotated(policyd: Policyd) -> Iterator[bytes]:
    """The lines of the decision log so far, which is moved away; they would fill the disk."""
    old = policyd.decision_log.with_suffix(".old")
    policyd.decision_log.rename(old)
    until("a new log", lambda: policyd.decision_log.exists() or None, 5)
    with old.open("rb") as file:
        yield from file
    old.unlink()
