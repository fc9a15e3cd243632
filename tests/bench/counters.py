"""The rows with counters and greylisting for each request: their state is in the daemon or in a shared server."""

from __future__ import annotations

import time
from contextlib import ExitStack

from tests.bench import corpus, servers
from tests.bench.bench import PAIRS, Bench, LeftOut, Reading, Row, median_ratio, medians
from tests.bench.processes import memory_mb, settle
from tests.state.servers import PROGRAMS, StateServer

# Number of clients, each in a separate network; few enough that no key is evicted while the cost is measured.
_CLIENTS = 4_000

# Maximum number of keys in the daemon: the default of `limits.state_keys`.
_KEYS = 200_000

# Maximum number of runs until every client has passed greylisting. Two are enough if each run is long enough for all
# clients.
_WARMING_RUNS = 10

# Seconds for which greylisting delays a first attempt.
_WAIT_SECONDS = 1


def counters(bench: Bench) -> Row:
    """Two counters and a greylist rule that apply to every request, compared with the same ruleset without them."""
    load = bench.load("counters", corpus.strangers(_CLIENTS))
    remembering = corpus.with_memory(bench.shipped, wait=f"{_WAIT_SECONDS}s")
    with ExitStack() as running:
        _, plain = running.enter_context(servers.policyd(bench.shipped))
        _, counted = running.enter_context(servers.policyd(remembering))
        _let_in(load, counted)
        costs = bench.costs_in_turn(PAIRS, without=(plain, load), with_counters=(counted, load))
    return Row(
        "counters",
        "CPU of a request to which two counters and a greylist rule apply, compared with the same rules without them",
        (
            Reading("ratio to none", median_ratio(costs, "with_counters", "without"), "x", 1.30, 1.25),
            *medians(costs),
            Reading(f"memory of {_KEYS:,} keys", _memory_of_keys(bench), "MB", 120),
        ),
    )


def counters_shared(bench: Bench) -> Row:
    """The same rules with their state in a Redis or Valkey server beside the daemon, on the same cores."""
    if not PROGRAMS:
        raise LeftOut("there is neither redis-server nor valkey-server")
    load = bench.load("counters", corpus.strangers(_CLIENTS), pinned=False)
    remembering = corpus.with_memory(bench.shipped, wait=f"{_WAIT_SECONDS}s")
    folder = bench.folder / "state"
    folder.mkdir(exist_ok=True)
    server = StateServer(folder, PROGRAMS[-1])
    reports = []
    try:
        state = f"unix:{server.socket}"
        with servers.policyd(remembering, pinned=False, state=state) as (_, counted):
            _let_in(load, counted)
            for _ in range(bench.scale.rounds):
                settle(counted.pid)
                report = load.put_on(counted)
                servers.require_valid(report)
                reports.append(report)
    finally:
        server.stop()
    middle = sorted(reports, key=lambda report: float(report["per_second"]))[len(reports) // 2]
    return Row(
        "counters_shared",
        f"the same with memory in {PROGRAMS[-1]} beside the daemon on the same cores, 50 connections",
        (
            Reading("requests", middle["per_second"], "/s", 12_000, more_is_better=True),
            Reading("latency p99", middle["latency_us"]["p99"] / 1000, "ms", 8),
        ),
    )


def _let_in(load: servers.Load, server: servers.Server) -> None:
    """Sends requests until every client has passed greylisting. Raises BenchError if that takes too many runs."""
    for _ in range(_WARMING_RUNS):
        report = load.put_on(server)
        if report["passes"] > 1 and not report["wrong"]:  # each client has sent a request, and none was deferred
            return
        time.sleep(_WAIT_SECONDS)
    raise servers.BenchError(f"after {_WARMING_RUNS} runs some clients are still greylisted")


def _memory_of_keys(bench: Bench) -> float:
    """The additional memory of a daemon with the maximum number of keys. Each client adds at least three keys."""
    rules = corpus.with_memory(bench.shipped, wait="5m")
    clients = bench.load("counters-keys", corpus.strangers(_KEYS + _KEYS // 4))
    load = servers.Load(clients.program, clients.requests, 50, 15)
    with servers.policyd(rules) as (_, server):
        settle(server.pid)
        before = memory_mb(server.pid)
        report = load.put_on(server)
        if 3 * report["answered"] < _KEYS:
            raise servers.BenchError(f"{report['answered']} requests do not make {_KEYS} keys")
        settle(server.pid)
        return memory_mb(server.pid) - before
