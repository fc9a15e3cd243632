"""The rows with DNS lists: the cost of a request that needs no list, four cached answers, or four lookups."""

from __future__ import annotations

from contextlib import ExitStack

from tests.bench import corpus, servers
from tests.bench.bench import PAIRS, Bench, Reading, Row, median_ratio, medians
from tests.bench.processes import cpu_seconds

# Number of clients in the runs with cached answers; the caches know all of them after the first pass.
_CACHED_CLIENTS = 2000


def lists_unneeded(bench: Bench) -> Row:
    """A request that needs no list: the rule with the lists has another condition, which does not hold."""
    load = bench.load_of_lists(10)  # lists of networks and names with ten entries each, not DNS lists
    with ExitStack() as running:
        _, plain = running.enter_context(servers.policyd(bench.rules_with_lists(10)))
        with_lists = corpus.with_dns_lists(bench.rules_with_lists(10), only_in="DATA")
        _, listed = running.enter_context(servers.policyd(with_lists, dns=servers.NO_RESOLVER))
        costs = bench.costs_in_turn(PAIRS, without=(plain, load), with_lists=(listed, load))
    return Row(
        "lists_unneeded",
        "CPU of a request that needs no DNS list, under rules with four, compared with the same rules without them",
        (Reading("ratio to no DNS lists", median_ratio(costs, "with_lists", "without"), "x", 1.05), *medians(costs)),
    )


def lists_cached(bench: Bench) -> Row:
    """Reverse DNS and four lists, all cached."""
    load = bench.load("lists-cached", corpus.clients_without_names(_CACHED_CLIENTS))
    with ExitStack() as running:
        address = running.enter_context(servers.resolver(bench.tools["resolver"], milliseconds=1))
        dns = {"servers": [address]}
        _, plain = running.enter_context(servers.policyd(bench.shipped, dns=dns))
        _, listed = running.enter_context(servers.policyd(corpus.with_dns_lists(bench.shipped), dns=dns))
        for server in (plain, listed):
            servers.require_valid(load.put_on(server))  # fills the caches
        costs = bench.costs_in_turn(PAIRS, reverse_dns=(plain, load), and_lists=(listed, load))
    return Row(
        "lists_cached",
        "CPU of a request that needs reverse DNS and four DNS lists, all cached, compared with reverse DNS only",
        (
            Reading("ratio to reverse DNS only", median_ratio(costs, "and_lists", "reverse_dns"), "x", 1.3),
            *medians(costs),
        ),
    )


def lists_asked(bench: Bench) -> Row:
    """Unknown clients: each needs its name and four lists from a slow resolver."""
    seconds = bench.scale.dns_seconds
    load = bench.load("lists", corpus.clients_without_names(int(seconds * 10_000)), connections=500)
    with ExitStack() as running:
        address = running.enter_context(servers.resolver(bench.tools["resolver"], milliseconds=20))
        rules = corpus.with_dns_lists(bench.shipped)
        _, server = running.enter_context(servers.policyd(rules, dns={"servers": [address], "cache_size": "5000"}))
        used = cpu_seconds(server.pid)
        report = servers.Load(load.program, load.requests, 500, seconds).put_on(server)
        used = cpu_seconds(server.pid) - used
    servers.require_valid(report, passes=1)
    return Row(
        "lists_asked",
        "500 connections, each request from another client that needs DNS and four DNS lists; answers after 20 ms",
        (
            Reading("requests", report["per_second"], "/s", 1500, more_is_better=True),
            Reading("CPU", used * 1e6 / report["answered"], "us"),
            Reading("latency p99", report["latency_us"]["p99"] / 1000, "ms"),
        ),
    )
