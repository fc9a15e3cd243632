"""The rows about requests, loading, memory, reloads, expiring entries, connections, DNS and `replay`."""

from __future__ import annotations

import json
import resource
import signal
import socket
import statistics
import subprocess
import sys
import time
from array import array
from contextlib import ExitStack
from typing import TYPE_CHECKING

from policyd.config.dates import format_end
from tests.bench import corpus, servers
from tests.bench.bench import EXPRESSIONS, SHIPPED_RULES, LeftOut, Reading, Row, median_ratio, medians
from tests.bench.processes import cpu_seconds, memory_mb, peak_memory, run_and_account, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.bench.bench import Bench
    from tests.bench.servers import Server
    from tests.field.policyd import Policyd

# Seconds after which a replaced ruleset has been freed: policyd waits dns.timeout (5 s) and another second, because
# until then a request may still wait for DNS under the old ruleset.
RETIREMENT_SECONDS = 7

# File descriptors of a process besides those of its connections.
_OTHER_DESCRIPTORS = 128


def decision(bench: Bench) -> Row:
    """A request that needs no DNS, under the shipped rules and large lists, compared with the floor."""
    entries = bench.scale.entries
    load = bench.load_of_lists(entries)
    with ExitStack() as running:
        _, daemon = running.enter_context(servers.policyd(bench.rules_with_lists(entries)))
        floor = running.enter_context(servers.floor(bench.tools["floor"]))
        costs = bench.costs_in_turn(policyd=(daemon, load), floor=(floor, load))
    return Row(
        "decision",
        f"CPU of a request decided without DNS, logged: shipped rules, {entries:,} networks, {entries:,} suffixes",
        (Reading("ratio to the floor", median_ratio(costs, "policyd", "floor"), "x", 5.5, 4), *medians(costs)),
    )


def entries(bench: Bench) -> Row:
    """Whether the cost grows with the entries of lists."""
    many = bench.scale.entries
    with ExitStack() as running:
        measured = {
            f"{count:,} entries": (
                running.enter_context(servers.policyd(bench.rules_with_lists(count)))[1],
                bench.load_of_lists(count),
            )
            for count in (10, many)
        }
        costs = bench.costs_in_turn(**measured)
    with_few, with_many = measured
    return Row(
        "entries",
        f"CPU of a request with {many:,} networks and suffixes, compared with 10",
        (Reading("ratio to 10 entries", median_ratio(costs, with_many, with_few), "x", 1.3, 1.15), *medians(costs)),
    )


def rules(bench: Bench) -> Row:
    """Whether the cost grows with the number of rules."""
    many = bench.scale.rules
    with ExitStack() as running:
        measured = {
            f"{count:,} rules": (
                running.enter_context(servers.policyd(corpus.with_many_rules(bench.shipped, count)))[1],
                bench.load(f"rules-{count}", corpus.clients_of_rules(bench.scale.requests, count)),
            )
            for count in (10, many)
        }
        costs = bench.costs_in_turn(**measured)
    with_few, with_many = measured
    return Row(
        "rules",
        f"CPU of a request with {many:,} rules, each with its own suffix, network and `except`, compared with 10",
        (Reading("ratio to 10 rules", median_ratio(costs, with_many, with_few), "x", 1.3, 1.15), *medians(costs)),
    )


def expressions(bench: Bench) -> Row:
    """The cost of a long list of expressions for names that match, compared with no list, and with suffixes that give
    the same answers. The second comparison isolates the cost of the expressions.
    """
    count = bench.scale.requests
    deferred = bench.load("generic-deferred", corpus.clients_of_expressions(count, EXPRESSIONS, "DEFER"))
    passed = bench.load("generic-passed", corpus.clients_of_expressions(count, EXPRESSIONS, "DUNNO"))
    measured = {
        "none": (bench.shipped, passed),
        "suffixes": (corpus.with_generic_names(bench.shipped, "hostname_suffix", bench.domains(EXPRESSIONS)), deferred),
        "expressions": (corpus.with_generic_names(bench.shipped, "hostname_regex", bench.expressions()), deferred),
    }
    with ExitStack() as running:
        costs = bench.costs_in_turn(
            **{
                name: (running.enter_context(servers.policyd(rules))[1], load)
                for name, (rules, load) in measured.items()
            }
        )
    return Row(
        "expressions",
        f"CPU of a request with {EXPRESSIONS:,} host name expressions, one of which matches, compared with none",
        (
            Reading("ratio to none", median_ratio(costs, "expressions", "none"), "x", 1.5, 1.2),
            Reading("ratio to suffixes with the same answers", median_ratio(costs, "expressions", "suffixes"), "x"),
            *medians(costs),
        ),
    )


def latency(bench: Bench) -> Row:
    """The latency of a single client."""
    entries = bench.scale.entries
    load = bench.load_of_lists(entries, connections=1)
    waits: dict[str, list[float]] = {"policyd": [], "floor": []}
    with ExitStack() as running:
        _, daemon = running.enter_context(servers.policyd(bench.rules_with_lists(entries)))
        measured = {"policyd": daemon, "floor": running.enter_context(servers.floor(bench.tools["floor"]))}
        for _ in range(bench.scale.rounds):
            for name, server in measured.items():
                settle(server.pid)
                report = load.put_on(server)
                servers.require_valid({**report, "wrong": 0} if name == "floor" else report)
                waits[name].append(report["latency_us"]["p50"])
    return Row(
        "latency",
        "latency with one connection, p50",
        (Reading("ratio to the floor", median_ratio(waits, "policyd", "floor"), "x", 1.3), *medians(waits)),
    )


def load_time(bench: Bench) -> Row:
    """The load time of the largest lists, at the start and at a reload, without requests."""
    entries = bench.scale.entries
    rules = bench.rules_with_lists(entries)
    starts, reloads = [], []
    for _ in range(min(bench.scale.rounds, 3)):
        began = time.monotonic()
        with servers.policyd(rules, pinned=False) as (daemon, server):
            starts.append(time.monotonic() - began)
            settle(server.pid)
            began = time.monotonic()
            daemon.reload()
            reloads.append(time.monotonic() - began)
    return Row(
        "load",
        f"loading {entries:,} networks and {entries:,} names",
        (
            Reading("from the start to the first answer", statistics.median(starts), "s", 6, 3),
            Reading("reload", statistics.median(reloads), "s", 6, 3),
        ),
    )


def memory(bench: Bench) -> Row:
    """Memory of all processes with the largest lists: at the start, after many reloads, at the peak during a reload."""
    entries, reloads = bench.scale.entries, bench.scale.memory_reloads
    load = bench.load_of_lists(entries)
    with servers.policyd(bench.rules_with_lists(entries), pinned=False) as (daemon, server):
        settle(server.pid)
        at_start = memory_mb(server.pid)
        with peak_memory(server.pid) as consecutive_reloads:
            for _ in range(reloads):
                daemon.reload()
        time.sleep(RETIREMENT_SECONDS)
        servers.require_valid(load.put_on(server))
        settle(server.pid)
        after = memory_mb(server.pid)
        with peak_memory(server.pid) as single_reload:
            daemon.reload()
    return Row(
        "memory",
        f"memory of all processes with {entries:,} networks and {entries:,} names",
        (
            Reading(f"after {reloads} reloads", after, "MB", 300, 170),
            Reading("peak during one reload", max(single_reload), "MB", 450, 300),
            Reading("peak during reloads without a pause", max(consecutive_reloads), "MB"),
            Reading("at the start", at_start, "MB"),
        ),
    )


def reload(bench: Bench) -> Row:
    """The latency of clients at full load during reloads of the largest lists."""
    entries = bench.scale.entries
    with servers.policyd(bench.rules_with_lists(entries), pinned=False) as (daemon, server):
        readings = reloads_under_load(bench, daemon, server)
    return Row(
        "reload",
        f"reloads of {entries:,} networks and {entries:,} names under load, 50 connections, server not pinned",
        readings,
    )


def reloads_under_load(
    bench: Bench, daemon: Policyd, server: Server, edit: Callable[[int], None] = lambda number: None
) -> tuple[Reading, ...]:
    """Reloads while clients send requests as fast as they can. Before each reload, calls `edit` with its number."""
    load = bench.load_of_lists(bench.scale.entries, pinned=False)
    reloads = bench.scale.load_reloads
    trace = bench.folder / "trace"
    longest = reloads * servers.PATIENCE_SECONDS
    command = servers.Load(load.program, load.requests, load.connections, min(longest, 500), pinned=False).command(
        server, "-t", str(trace)
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE) as load_process:
        try:
            spans = list(_reload_repeatedly(daemon, reloads, edit))
        finally:
            load_process.send_signal(signal.SIGTERM)
        report = servers.report_of(load_process)
    during = _latencies(trace, spans)
    seconds = statistics.median((end - begin) / 1e9 for begin, end in spans)
    failures = sum(servers.failures(report).values())
    return (
        Reading("p99", during[int(0.99 * (len(during) - 1))] / 1e6, "ms", 5),
        Reading("longest", during[-1] / 1e6, "ms", 25, 20),
        Reading("refused, closed, wrong or unanswered", failures, "", 0, 0),
        Reading("requests during reloads", len(during)),
        Reading("duration of a reload", seconds, "s"),
    )


def _latencies(trace: Path, spans: Sequence[tuple[int, int]]) -> list[int]:
    """The latencies in load.c's trace, sorted, of answers in these spans (CLOCK_MONOTONIC); all in nanoseconds."""
    records = array("Q", trace.read_bytes())
    return sorted(
        latency
        for at, latency in zip(records[0::2], records[1::2], strict=True)
        if any(begin <= at <= end for begin, end in spans)
    )


def _reload_repeatedly(daemon: Policyd, count: int, edit: Callable[[int], None]) -> Iterator[tuple[int, int]]:
    """Reloads once a second; yields the begin and the end of each reload (CLOCK_MONOTONIC, nanoseconds)."""
    for number in range(count):
        time.sleep(1)
        edit(number)
        began = time.monotonic_ns()
        daemon.reload()
        yield began, time.monotonic_ns()
    time.sleep(1)


def expiry(bench: Bench) -> Row:
    """The latency of clients at full load when a tenth of the entries of a large list expires in the same second."""
    total = bench.scale.entries
    ending = total // 10
    end = int(time.time()) + (30 if total >= 1_000_000 else 12)
    networks = bench.folder / "networks-ending"
    with networks.open("w") as file:
        for number in range(total):
            until_then = f"  expires={format_end(end)}" if number >= total - ending else ""
            file.write(f"{corpus.network(number, ipv6=False)}{until_then}\n")
    clients = corpus.clients_of_networks(bench.scale.requests, total - ending)
    load = bench.load(f"ending-{total}", clients, pinned=False)
    trace = bench.folder / "trace"
    rules = corpus.with_lists(bench.shipped, networks, bench.domains(10))
    listed = corpus.inside(corpus.network(total - 1, ipv6=False), 1)
    request = f"request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address={listed}\nclient_name=a.example\n\n"
    with servers.policyd(rules, pinned=False) as (_, server):
        if time.time() > end - 2:
            raise servers.BenchError("the entries ended before the daemon was up; this machine is too slow or too busy")
        command = servers.Load(load.program, load.requests, load.connections, 120, pinned=False).command(
            server, "-t", str(trace)
        )
        with subprocess.Popen(command, stdout=subprocess.PIPE) as load_process:
            try:
                while time.time() < end:
                    time.sleep(0.01)
                began = time.monotonic_ns()
                with socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2])), 10) as connection:
                    let_through = _until_let_through(connection, request.encode())
                time.sleep(RETIREMENT_SECONDS)  # so that the old tables are freed under load, too
                ended = time.monotonic_ns()
            finally:
                load_process.send_signal(signal.SIGTERM)
            report = servers.report_of(load_process)
    during = _latencies(trace, [(began, ended)])
    failures = sum(servers.failures(report).values())
    return Row(
        "expiry",
        f"{ending:,} of {total:,} networks end in the same second under load, 50 connections, server not pinned",
        (
            Reading("p99", during[int(0.99 * (len(during) - 1))] / 1e6, "ms", 10, 5),
            Reading("longest", during[-1] / 1e6, "ms", 50, 20),
            Reading("refused, closed, wrong or unanswered", failures, "", 0, 0),
            Reading("first client let through after", (let_through - began) / 1e9, "s"),
        ),
    )


def _until_let_through(connection: socket.socket, request: bytes) -> int:
    """Sends a request until its answer is no longer REJECT; returns the time (CLOCK_MONOTONIC, nanoseconds)."""
    for _ in range(servers.PATIENCE_SECONDS * 20):
        connection.sendall(request)
        answer = b""
        while not answer.endswith(b"\n\n"):
            answer += connection.recv(4096)
        if b"REJECT" not in answer:
            return time.monotonic_ns()
        time.sleep(0.05)
    raise servers.BenchError("entries that have ended are still in force")


def idle(bench: Bench) -> Row:
    """The memory of idle connections after one request on each, as Postfix keeps them open."""
    count = bench.scale.idle
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = count + _OTHER_DESCRIPTORS
    if hard < needed:
        raise LeftOut(f"{count} connections need {needed} file descriptors; the limit is {hard} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # The first line of the file is not part of the request.
    _, _, request = bench.load("one", corpus.clients_of_lists(1, 10)).requests.read_bytes().partition(b"\n")
    with servers.policyd(bench.shipped) as (_, server), ExitStack() as connections:
        _ask_once(connections, server, request)
        settle(server.pid)
        before = memory_mb(server.pid)
        for _ in range(count):
            _ask_once(connections, server, request)
        settle(server.pid)
        more = memory_mb(server.pid) - before
    return Row("idle", f"memory of {count:,} idle connections", (Reading("additional memory", more, "MB", 15),))


def _ask_once(connections: ExitStack, server: Server, request: bytes) -> None:
    _, host, port = server.address.split(":")
    connection = connections.enter_context(socket.create_connection((host, int(port)), timeout=30))
    connection.sendall(request)
    answer = connection.recv(4096)
    assert answer.startswith(b"action="), answer


def dns(bench: Bench) -> Row:
    """Unknown clients: each needs a name from a slow resolver."""
    # Small, so that the cache is soon full and memory must stop growing.
    cache_size = 5000
    load = bench.load("dns", corpus.clients_without_names(int(bench.scale.dns_seconds * 15_000)), connections=500)
    with ExitStack() as running:
        address = running.enter_context(servers.resolver(bench.tools["resolver"], milliseconds=20))
        settings = {"servers": [address], "cache_size": str(cache_size)}
        _, server = running.enter_context(servers.policyd(bench.shipped, dns=settings))
        used = cpu_seconds(server.pid)
        seen = []
        command = servers.Load(load.program, load.requests, 500, bench.scale.dns_seconds).command(server)
        with subprocess.Popen(command, stdout=subprocess.PIPE) as load_process:
            while load_process.poll() is None:
                seen.append(memory_mb(server.pid))
                time.sleep(0.2)
            report = servers.report_of(load_process)
        used = cpu_seconds(server.pid) - used
    servers.require_valid(report, passes=1)
    if report["answered"] < 2 * cache_size:
        raise servers.BenchError(f"{report['answered']} clients do not fill the cache")
    # The first measurement with a cache that is surely full: 1.5 times as many clients as it holds have sent a request.
    filled = len(seen) * 3 * cache_size // (2 * report["answered"])
    return Row(
        "dns",
        "500 connections, each request from another client that needs DNS; the resolver answers after 20 ms",
        (
            Reading("requests", report["per_second"], "/s", 5000, 8000, more_is_better=True),
            Reading("CPU", used * 1e6 / report["answered"], "us"),
            Reading("latency p99", report["latency_us"]["p99"] / 1000, "ms"),
            Reading(f"memory with the cache of {cache_size:,} full", seen[filled], "MB"),
            Reading(f"memory after {report['answered']:,} clients", max(seen[filled:]), "MB"),
        ),
    )


def replay(bench: Bench) -> Row:
    """The speed of `policyd replay` on a mail log."""
    mails = bench.scale.mails
    log = corpus.write_mail_log(bench.folder / "mail.log", corpus.strangers(mails))
    lines = mails * corpus.MAIL_LOG_LINES
    command = (sys.executable, "-m", "policyd", "replay", "--rules", str(SHIPPED_RULES), "--json", str(log))
    rates = []
    for _ in range(min(bench.scale.rounds, 3)):
        account = run_and_account(command, "")
        if account.status:
            raise servers.BenchError(f"policyd replay ended with status {account.status}")
        found = json.loads(account.output)
        if (found["lines"], found["delivered"]) != (lines, mails):
            raise servers.BenchError(f"replay found {found['delivered']} of {mails} mails in {found['lines']} lines")
        rates.append(lines / account.cpu_seconds)
    return Row(
        "replay",
        f"`policyd replay` of {lines:,} lines of a Postfix log, {mails:,} mails, under the shipped rules",
        (Reading("lines a second of CPU, start included", statistics.median(rates)),),
    )
