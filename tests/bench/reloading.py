"""The rows of loading: reloads after an edit, a first load, and `policyd check`; also a request under two builds.

With BENCH_FORMER=/path/to/policyd in the environment, another build does the same work, and most rows compare the two
builds. The bars and goals of these ratios are for the build of commit df1664a.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tests.bench import corpus, servers
from tests.bench.bench import PAIRS, Reading, Row, median_ratio, medians
from tests.bench.processes import Account, memory_mb, peak_memory, run_and_account, settle
from tests.bench.rows import RETIREMENT_SECONDS, reloads_under_load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.bench.bench import Bench
    from tests.bench.servers import Server
    from tests.field.policyd import Policyd

# Number of list files of networks; there are as many of names.
_FILES = 20

# One in this many entries of a list changes: in a full run, 1,000 of 50,000.
_CHANGED_SHARE = 50

# New entries in a list before a reload of `reload_list_load` or `reload_memory`.
_ADDED = 1000

# Number of lists in `dense_lists`.
_DENSE = 200

_OURS = (sys.executable, "-m", "policyd")


def reload_rule(bench: Bench) -> Row:
    """A reload after an edit of one rule. No list has changed."""

    def edit(folder: Path, daemon: Policyd, number: int) -> None:
        del folder
        rules = daemon.rules.read_text()
        old, new = ("REJECT", "DEFER") if number % 2 == 0 else ("DEFER", "REJECT")
        daemon.rules.write_text(
            rules.replace(f"cidr: $networks-3}}, action: {old}", f"cidr: $networks-3}}, action: {new}")
        )

    return _reload_row(bench, "reload_rule", "a reload after an edit of one rule", edit, (0.10, 0.04))


def reload_list(bench: Bench) -> Row:
    """A reload after one entry in fifty of one list has changed."""

    def edit(folder: Path, daemon: Policyd, number: int) -> None:
        del daemon
        path = folder / "networks-3"
        lines = path.read_text().splitlines()
        for place in range(number % _CHANGED_SHARE, len(lines), _CHANGED_SHARE):
            lines[place] = f"192.{number}.{place >> 8 & 255}.{place & 255}"
        path.write_text("\n".join(lines) + "\n")

    return _reload_row(bench, "reload_list", "a reload after a change of 2 % of one list", edit, (0.20, 0.10))


def reload_list_load(bench: Bench) -> Row:
    """The latency of clients that ask as fast as they can, during reloads that follow a change of one list."""
    with _daemon(bench, _OURS) as (folder, daemon, server):
        path = folder / "networks-3"
        entries = path.read_text()

        def edit(number: int) -> None:
            added = (f"192.{number}.{place >> 8}.{place & 255}\n" for place in range(_ADDED))
            path.write_text(entries + "".join(added))

        readings = reloads_under_load(bench, daemon, server, edit)
    return Row("reload_list_load", _what(bench, f"reloads under load after {_ADDED:,} new entries in a list"), readings)


def reload_memory(bench: Bench) -> Row:
    """Memory after two reloads and after many, each with different entries in one list."""
    after: dict[int, float] = {}
    few, many = 2, bench.scale.many_reloads
    with _daemon(bench, _OURS) as (folder, daemon, server):
        path = folder / "networks-3"
        entries = path.read_text()
        for number in range(1, many + 1):
            added = (f"192.{number & 255}.{place >> 8}.{place & 255}\n" for place in range(_ADDED))
            path.write_text(entries + "".join(added))
            daemon.reload()
            if number in {few, many}:
                time.sleep(RETIREMENT_SECONDS)
                settle(server.pid)
                after[number] = memory_mb(server.pid)
    return Row(
        "reload_memory",
        _what(bench, f"memory after {many} reloads, compared with {few}, each with other entries in a list"),
        (
            Reading(f"ratio of {many} reloads to {few}", after[many] / after[few], "x", 1.05),
            *(Reading(f"after {number} reloads", value, "MB") for number, value in after.items()),
        ),
    )


def dense_lists(bench: Bench) -> Row:
    """Two hundred lists, each with a random half of the same addresses, so that neighbouring addresses are almost never
    on the same lists. They are measured in one condition, and with one rule for each list.
    """
    folder = bench.folder / "dense"
    folder.mkdir(exist_ok=True)
    each = bench.scale.entries // _DENSE
    rng = random.Random(1)
    for number in range(_DENSE):
        drawn = rng.sample(range(2 * each), each)
        (folder / f"list-{number}").write_text(
            "".join(f"11.{number >> 16}.{number >> 8 & 255}.{number & 255}\n" for number in drawn)
        )
    names = [f"list-{number}" for number in range(_DENSE)]
    lists = "".join(f"  {name}: {{file: {folder / name}}}\n" for name in names)
    together = f"  - {{name: any, match: {{cidr: [{', '.join('$' + name for name in names)}]}}, action: REJECT}}\n"
    alone = "".join(f"  - {{name: {name}, match: {{cidr: ${name}}}, action: REJECT}}\n" for name in names)
    readings = []
    for label, rules in (("in one condition", together), ("each in a rule", alone)):
        for build, program in _programs():
            path = folder / "rules.yaml"
            path.write_text(f"lists:\n{lists}rules:\n{rules}")
            account = _check(program, path)
            readings += [
                Reading(f"{label}, {build}: check", account.cpu_seconds, "s"),
                Reading(f"{label}, {build}: peak", account.peak_mb, "MB"),
            ]
    return Row("dense_lists", f"{_DENSE} lists of {each:,} of the same {2 * each:,} addresses", tuple(readings))


def request_former(bench: Bench) -> Row:
    """A request that needs no DNS, compared with another build."""
    entries = bench.scale.entries
    load = bench.load_of_lists(entries)
    rules = corpus.with_lists(corpus.PLAIN_RULES, bench.networks(entries), bench.domains(entries))
    listed = corpus.with_dns_lists(rules, only_in="DATA")
    with ExitStack() as running:
        measured = {
            build: (running.enter_context(servers.policyd(rules, program=program))[1], load)
            for build, program in _programs()
        }
        measured["with lists"] = (running.enter_context(servers.policyd(listed, dns=servers.NO_RESOLVER))[1], load)
        costs = bench.costs_in_turn(PAIRS, **measured)
    ratios: tuple[Reading, ...] = ()
    if "the former build" in costs:
        ratios = (
            Reading("ratio to the former build", median_ratio(costs, "this build", "the former build"), "x", 1.05),
            Reading(
                "ratio to the former build, with four DNS lists",
                median_ratio(costs, "with lists", "the former build"),
                "x",
                1.05,
            ),
        )
    return Row(
        "request_former",
        f"CPU of a request decided without DNS, {entries:,} networks and suffixes, compared with the former build",
        (*ratios, *medians(costs)),
    )


def first_load(bench: Bench) -> Row:
    """The seconds from the start of the process until it is ready."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    rules = _rules(_write_lists(bench))
    for _ in range(min(bench.scale.rounds, 3)):
        for name, program in _programs():
            began = time.monotonic()
            with servers.policyd(rules, pinned=False, program=program) as (_, server):
                found[name]["seconds"].append(time.monotonic() - began)
                settle(server.pid)
    return Row("first_load", _what(bench, "a first load"), (*_readings(found, "seconds", "s", (1.0, 0.8)),))


def check(bench: Bench) -> Row:
    """CPU and peak memory of `policyd check`, which also looks for warnings."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    folder = _write_lists(bench)
    rules = folder / "rules.yaml"
    rules.write_text(_rules(folder))
    for _ in range(min(bench.scale.rounds, 3)):
        for name, program in _programs():
            account = _check(program, rules)
            found[name]["CPU"].append(account.cpu_seconds)
            found[name]["peak"].append(account.peak_mb)
    readings = (*_readings(found, "CPU", "s", (0.6, 0.4)), *_readings(found, "peak", "MB", (0.35, 0.25)))
    return Row("check", _what(bench, "policyd check"), readings)


def _check(program: Sequence[str], rules: Path) -> Account:
    account = run_and_account([*program, "check", "--rules", str(rules)], "")
    if account.status:
        raise servers.BenchError(f"policyd check ended with status {account.status}")
    return account


def _reload_row(
    bench: Bench,
    name: str,
    what: str,
    edit: Callable[[Path, Policyd, int], None],
    bar_and_goal: tuple[float, float],
) -> Row:
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for build, program in _programs():
        with _daemon(bench, program) as (folder, daemon, server):
            for number in range(bench.scale.load_reloads):
                time.sleep(RETIREMENT_SECONDS if number else 1)
                settle(server.pid)
                at_rest = memory_mb(server.pid)
                edit(folder, daemon, number)
                with peak_memory(server.pid) as seen:
                    began = time.monotonic()
                    daemon.reload()
                    found[build]["seconds"].append(time.monotonic() - began)
                found[build]["additional memory at the peak"].append(max(seen) - at_rest)
    readings = (
        *_readings(found, "seconds", "s", bar_and_goal),
        *_readings(found, "additional memory at the peak", "MB", (0.4, 0.25)),
    )
    return Row(name, _what(bench, what), readings)


def _readings(
    found: dict[str, dict[str, list[float]]], figure: str, unit: str, bar_and_goal: tuple[float, float]
) -> Iterator[Reading]:
    """The median of this build; if a former build was measured, also its median and the ratio."""
    middle = {build: statistics.median(figures[figure]) for build, figures in found.items()}
    yield Reading(figure, middle["this build"], unit)
    if "the former build" in middle:
        yield Reading(f"{figure}, the former build", middle["the former build"], unit)
        yield Reading(
            f"{figure}, ratio to the former build",
            middle["this build"] / middle["the former build"],
            "x",
            *bar_and_goal,
        )


def _programs() -> Iterator[tuple[str, Sequence[str]]]:
    if former := os.environ.get("BENCH_FORMER"):
        yield "the former build", (former,)
    yield "this build", _OURS


def _what(bench: Bench, what: str) -> str:
    entries = bench.scale.entries
    return f"{what}: {entries:,} networks and {entries:,} names in {_FILES} files each"


def _write_lists(bench: Bench) -> Path:
    """Writes the list files into a folder, again for each row, because some rows change them; returns the folder."""
    folder = bench.folder / "lists"
    folder.mkdir(exist_ok=True)
    each = bench.scale.entries // _FILES
    for number in range(_FILES):
        span = range(number * each, (number + 1) * each)
        (folder / f"networks-{number}").write_text("".join(f"{corpus.network(number)}\n" for number in span))
        (folder / f"names-{number}").write_text("".join(f"{corpus.domain(number)}\n" for number in span))
    return folder


def _rules(folder: Path) -> str:
    names = [f"{kind}-{number}" for kind in ("networks", "names") for number in range(_FILES)]
    lists = "".join(f"  {name}: {{file: {folder / name}}}\n" for name in names)
    rules = "".join(
        f"  - {{name: {name}, match: {{{condition}: ${name}}}, action: REJECT}}\n"
        for name in names
        for condition in ("cidr" if name.startswith("networks") else "hostname_suffix",)
    )
    return f"lists:\n{lists}rules:\n{rules}"


@contextmanager
def _daemon(bench: Bench, program: Sequence[str]) -> Iterator[tuple[Path, Policyd, Server]]:
    folder = _write_lists(bench)
    with servers.policyd(_rules(folder), pinned=False, program=program) as (daemon, server):
        yield folder, daemon, server
