"""The row with databases of autonomous systems and countries: CPU of a request, time of a start or reload, memory."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tests.bench import servers
from tests.bench.bench import PAIRS, Bench, LeftOut, Reading, Row, median_ratio, medians
from tests.bench.processes import memory_mb, settle
from tests.public_databases import UnreachableError, public_databases

if TYPE_CHECKING:
    from tests.bench.servers import Server
    from tests.field.policyd import Policyd

# Megabytes that the databases may take beyond the size of their files.
_MORE_MEMORY = 5


def owners(bench: Bench) -> Row:
    """The shipped ruleset with two real databases, declared and logged, compared with the same ruleset without them."""
    try:
        folder = public_databases()
    except UnreachableError as reason:
        raise LeftOut(str(reason)) from None
    files = [folder / "asn.csv", folder / "country.mmdb"]
    load = bench.load_of_lists(10)
    plain = bench.rules_with_lists(10)
    with_databases = f"databases: {{asn: {files[0]}, country: {files[1]}}}\n{plain}"
    with ExitStack() as running:
        started = {
            name: running.enter_context(servers.policyd(rules))
            for name, rules in (("without", plain), ("with", with_databases))
        }
        measured = {name: (server, load) for name, (_, server) in started.items()}
        costs = bench.costs_in_turn(PAIRS, **measured)
        memory = {name: _memory(server) for name, (_, server) in started.items()}
    seconds: dict[str, list[float]] = {f"{what} {name}": [] for what in ("start", "reload") for name in started}
    for _ in range(min(bench.scale.rounds, 3)):
        for name, rules in (("without", plain), ("with", with_databases)):
            began = time.monotonic()
            with servers.policyd(rules, pinned=False) as (daemon, server):
                seconds[f"start {name}"].append(time.monotonic() - began)
                seconds[f"reload {name}"].append(_reload(daemon, server))
    size = sum(file.stat().st_size for file in files) / 1e6
    return Row(
        "owners",
        f"CPU of a request with databases of systems and countries ({size:.0f} MB), logged, compared with none",
        (
            Reading("ratio to none", median_ratio(costs, "with", "without"), "x", 1.12, 1.08),
            Reading("additional memory", memory["with"] - memory["without"], "MB", size + _MORE_MEMORY),
            Reading("additional time of a start", _additional_seconds(seconds, "start"), "s", 0.5),
            Reading("additional time of a reload", _additional_seconds(seconds, "reload"), "s", 0.5),
            *medians(costs),
        ),
    )


def _memory(server: Server) -> float:
    settle(server.pid)
    return memory_mb(server.pid)


def _reload(daemon: Policyd, server: Server) -> float:
    """Seconds of a reload of an idle daemon whose files have not changed."""
    settle(server.pid)
    began = time.monotonic()
    daemon.reload()
    return time.monotonic() - began


def _additional_seconds(seconds: dict[str, list[float]], what: str) -> float:
    """Seconds that databases add to a start or a reload: the difference of the medians."""
    return statistics.median(seconds[f"{what} with"]) - statistics.median(seconds[f"{what} without"])
