"""The rows with programs that policyd may replace: postfwd, and Postfix's own `cidr:` table.

postfwd asks no DNS, and does not log which rule decides. For Postfix's table only the lookup is measured, without a
socket, a protocol or a log.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import corpus, servers
from tests.bench.bench import LeftOut, Reading, Row, medians
from tests.bench.processes import memory_mb, run_and_account, settle

if TYPE_CHECKING:
    from tests.bench.bench import Bench

# Five rules like those of the shipped ruleset; postfwd needs no DNS for them.
POSTFWD_RULES = r"""
id=OWN;         client_address==127.0.0.0/8, 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16; action=DUNNO
id=AUTH;        sasl_username=~/./; action=DUNNO
id=POSTMASTER;  recipient=~/^(postmaster|abuse)@/i; action=DUNNO
id=SAKURA;      client_name=~/(^|\.)vs\.sakura\.ne\.jp$/i; action=REJECT 5.7.1 Access denied
id=BULK;        client_address==27.100.28.0/22, 119.82.8.0/21, 119.82.152.0/21, 180.222.32.0/19; \
                action=REJECT 5.7.1 Access denied
"""

# Connections to postfwd when its requests are slow: few, because a run waits for all requests in flight at its end.
_FEW = 4


def require_postfwd() -> None:
    """Raises LeftOut if postfwd is not installed."""
    if not Path(servers.POSTFWD).exists():
        raise LeftOut("there is no postfwd on this machine (Debian's package postfwd)")


def postfwd(bench: Bench) -> Row:
    """CPU of a request of postfwd with five rules."""
    require_postfwd()
    load = bench.load("strangers", corpus.strangers(bench.scale.requests))
    with servers.postfwd(POSTFWD_RULES) as server:
        costs = bench.costs_in_turn(postfwd=(server, load))
    return Row("postfwd", "CPU of a request: postfwd, five rules, no list", medians(costs))


def growth(bench: Bench) -> Row:
    """The growth of the cost with the entries of a list: policyd, Postfix's table, postfwd."""
    series: dict[str, dict[int, float]] = {"floor": {}, "policyd": {}, "cidr": {}, "postfwd": {}}
    rounds = min(bench.scale.rounds, 3)
    few, many = bench.scale.growth[0], bench.scale.growth[-1]
    for entries in bench.scale.growth:
        load = bench.load(f"growth-{entries}", corpus.clients_of_networks(bench.scale.requests, entries))
        with ExitStack() as running:
            _, daemon = running.enter_context(servers.policyd(bench.rules_with_lists(entries, ipv6=False)))
            measured = {"policyd": (daemon, load)}
            if entries in {few, many}:  # the floor has no lists, so two points are enough
                measured["floor"] = (running.enter_context(servers.floor(bench.tools["floor"])), load)
            costs = bench.costs_in_turn(rounds, **measured)
        for name, values in costs.items():
            series[name][entries] = statistics.median(values)
    readings = []
    if (postmap := find_postfix("postmap")) is None:
        del series["cidr"]
    else:
        for entries in bench.scale.growth:
            series["cidr"][entries], megabytes = _cidr_lookup_us(bench, postmap, entries, rounds)
        readings.append(Reading(f"memory of Postfix's table with {entries:,}", megabytes, "MB"))
    if not Path(servers.POSTFWD).exists():
        del series["postfwd"]
    else:
        for entries in bench.scale.postfwd_growth:
            listed = (
                f"id=LISTED; client_address=file:{bench.networks(entries, ipv6=False)}; action=REJECT 5.7.1 Denied\n"
            )
            load = bench.load(
                f"growth-{entries}",
                corpus.clients_of_networks(bench.scale.requests, entries),
                connections=50 if entries < 1000 else _FEW,
            )
            with servers.postfwd(listed) as server:
                costs = bench.costs_in_turn(1, postfwd=(server, load))
            series["postfwd"][entries] = costs["postfwd"][0]
    return Row(
        "growth",
        "CPU by entries of a list: a request to policyd or postfwd, a lookup in Postfix's `cidr:` table",
        tuple(readings),
        series=series,
    )


def _cidr_lookup_us(bench: Bench, postmap: str, entries: int, rounds: int) -> tuple[float, float]:
    """CPU microseconds of a lookup in a `cidr:` table, without reading the table; and megabytes of the table."""
    table = bench.folder / f"table-{entries}.cidr"
    with table.open("w") as file:
        file.writelines(f"{corpus.network(number, ipv6=False)} REJECT\n" for number in range(entries))
    (bench.folder / "main.cf").write_text("compatibility_level = 3.6\n")
    # Enough lookups for about a second: in this time Postfix compares about a hundred million networks.
    count = min(max(100_000_000 // entries, 100), 200_000)
    keys = [client.address for client in corpus.clients_of_networks(count, entries)]
    command = (postmap, "-c", str(bench.folder), "-q", "-", f"cidr:{table}")
    costs = []
    for _ in range(rounds):
        one_lookup = run_and_account(command, f"{keys[0]}\n")
        all_lookups = run_and_account(command, "".join(f"{key}\n" for key in keys))
        found = all_lookups.output.count("REJECT")
        if found != sum(number % 10 == 3 for number in range(count)):
            raise servers.BenchError(f"postmap found {found} of {count} clients")
        costs.append((all_lookups.cpu_seconds - one_lookup.cpu_seconds) * 1e6 / (count - 1))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as waiting:
        assert waiting.stdin is not None
        waiting.stdin.write(f"{keys[0]}\n".encode())  # postmap reads the table when the first key arrives
        waiting.stdin.flush()
        settle(waiting.pid)
        megabytes = memory_mb(waiting.pid)
        waiting.communicate()
    return statistics.median(costs), megabytes


def find_postfix(program: str) -> str | None:
    """The path of a Postfix program; None if it is not installed."""
    return shutil.which(program, path="/usr/sbin:/usr/local/sbin:/usr/bin")
