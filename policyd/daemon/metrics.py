"""Serves the daemon's counters to Prometheus.

Every request is counted, so the counters are plain integers in `Counters` (`labels().inc()` of prometheus_client takes
longer), and become metrics at a scrape. Label values are policyd's own words, or come from the ruleset: a client cannot
choose them, so the ruleset bounds their number.

The page is served by a few lines on the daemon's own event loop. The server of prometheus_client is a thread: it would
contend with the requests for the interpreter's lock, and would start another thread for each scraper, even a slow one.
Here the page is made in slices with requests between them, there are at most MAX_SCRAPERS scrapers, and each has
SCRAPE_SECONDS.
"""

from __future__ import annotations

import asyncio
import logging
import time
from itertools import accumulate
from operator import attrgetter
from typing import TYPE_CHECKING

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, SummaryMetricFamily

from policyd import __version__
from policyd.config.list_sources import checked_at
from policyd.daemon.counters import LATENCY_BOUNDS
from policyd.daemon.listeners import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from policyd.config.settings import InetAddress
    from policyd.daemon.status import Running

_log = logging.getLogger(__name__)

# Maximum number of simultaneous scrapes; a few collectors scrape every few seconds.
MAX_SCRAPERS = 8

# Seconds before a scrape is ended.
SCRAPE_SECONDS = 10.0

# Maximum bytes of a request head; a scraper sends a few hundred.
MAX_HEAD = 8192

# Number of samples formatted at a time: some 5 us each.
SLICE = 250

_CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class Page:
    """The metrics of one daemon, as the page that Prometheus reads."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._server = running.server

    async def render(self) -> bytes:
        """Returns the page, made in slices with a turn of the event loop between them."""
        page = []
        name = ""
        for family in self._families():
            text = generate_latest(_FamilyCollector(family))
            if family.name == name:  # a further slice of a family: the page already has its HELP and TYPE
                text = text.split(b"\n", 2)[2]
            name = family.name
            page.append(text)
            await asyncio.sleep(0)
        return b"".join(page)

    def _families(self) -> Iterator[Metric]:
        server, counters = self._server, self._server.counters
        bugs = counters.bugs + counters.dns.bugs + server.facts.lists.bugs
        yield from _by_labels(
            "policyd_decisions",
            "Decisions, by the action sent to Postfix and by rule.",
            ("action", "rule"),
            {(str(verb), rule): count for (verb, rule), count in counters.decisions.items()},
        )
        yield from _by_labels(
            "policyd_observed",
            "Requests that an observed rule matched.",
            ("rule",),
            {(rule,): count for rule, count in counters.observed.items()},
        )
        latency = HistogramMetricFamily("policyd_decision_seconds", "Seconds from a request's arrival to its answer.")
        bounds = [*map(str, LATENCY_BOUNDS), "+Inf"]
        latency.add_metric([], list(zip(bounds, accumulate(counters.latency), strict=True)), counters.latency_seconds)
        yield latency
        yield from _by_labels(
            "policyd_loads",
            "Loads of settings and ruleset after the start.",
            ("result",),
            {(result,): count for result, count in counters.loads.items()},
        )
        yield GaugeMetricFamily(
            "policyd_last_reload_successful",
            "0 if the last reload was refused, so that the old ruleset stays in force; otherwise 1.",
            value=int(self._running.failed is None and self._running.data_failed is None),
        )
        ruleset = GaugeMetricFamily("policyd_ruleset", "The ruleset in force, by its hash.", labels=("hash",))
        ruleset.add_metric([server.ruleset.hash], 1)
        yield ruleset
        build = GaugeMetricFamily(
            "policyd_build_info", "The running version and the ruleset in force.", labels=("version", "ruleset")
        )
        build.add_metric([__version__, server.ruleset.hash], 1)
        yield build
        for name, help_text, value in (
            (
                "policyd_ruleset_observes",
                "1 under a top-level mode: observe, which answers DUNNO to every request; otherwise 0.",
                int(server.ruleset.observe),
            ),
            (
                "policyd_ruleset_loaded_timestamp_seconds",
                "Unix time at which the ruleset in force was loaded.",
                self._running.loaded_at,
            ),
            (
                "policyd_ruleset_load_seconds",
                "Seconds that loading the ruleset in force took.",
                self._running.loaded.seconds,
            ),
            ("policyd_ruleset_rules", "Rules in force.", len(server.ruleset.rules)),
            ("policyd_connections", "Connections that are open.", len(server.connections)),
        ):
            yield GaugeMetricFamily(name, help_text, value=value)
        for name, help_text, value in (
            ("policyd_connections_accepted", "Connections taken.", counters.accepted),
            ("policyd_connections_refused", "Connections refused because of limits.connections.", counters.refused),
            ("policyd_request_timeouts", "Connections closed at limits.request_timeout.", counters.timeouts),
            (
                "policyd_protocol_errors",
                "Connections closed because the client violated the protocol.",
                counters.protocol_errors,
            ),
            ("policyd_bugs", "Bugs in policyd that requests, DNS or reloads ran into; the log has each.", bugs),
        ):
            yield CounterMetricFamily(name, help_text, value=value)
        yield from self._list_families()
        yield from self._dns_families()
        yield from self._dns_list_families()
        yield from self._database_families()
        yield from self._memory_families()
        yield from _by_labels(
            "policyd_log_lines_lost",
            "Log lines that could not be written.",
            ("log",),
            {(log,): count for log, count in self._running.lines_lost().items()},
        )

    def _list_families(self) -> Iterator[Metric]:
        now = time.time()
        ages: dict[tuple[str, ...], float] = {}
        entries: dict[tuple[str, ...], float] = {}
        intervals: dict[tuple[str, ...], float] = {}
        checked: dict[tuple[str, ...], float] = {}
        for file in self._running.loaded.files:
            for name in file.lists:
                if not file.missing:
                    ages[name,] = max(0.0, now - file.modified)
                entries[name,] = file.entries or 0
                if file.every is not None:
                    intervals[name,] = file.every
                    checked[name,] = checked_at(file.path) or (0.0 if file.missing else file.modified)
        for name, help_text, values in (
            ("policyd_list_age_seconds", "Seconds since the file of a list was written.", ages),
            ("policyd_list_entries", "Entries in the file of a list.", entries),
            ("policyd_list_interval_seconds", "Interval at which a list is fetched.", intervals),
            (
                "policyd_list_checked_timestamp_seconds",
                "Unix time at which a list was last fetched or found unchanged; 0 if it never was.",
                checked,
            ),
        ):
            yield from _by_labels(name, help_text, ("list",), values, GaugeMetricFamily)

    def _dns_families(self) -> Iterator[Metric]:
        dns, resolver = self._server.counters.dns, self._server.facts.resolver
        yield from _by_labels(
            "policyd_dns_lookups",
            "Lookups of clients, by reverse DNS status and the reason of an error.",
            ("status", "reason"),
            {(str(status), str(reason or "")): count for (status, reason), count in dns.outcomes.items()},
        )
        for name, help_text, count in (
            ("policyd_dns_cache_hits", "Requests answered from the cache.", dns.hits),
            ("policyd_dns_cache_misses", "Requests that the cache could not answer.", dns.misses),
            ("policyd_dns_joined", "Misses that waited for a lookup in flight.", dns.joined),
            ("policyd_dns_refused", "Misses that were not looked up because of dns.lookups.", dns.refused),
        ):
            yield CounterMetricFamily(name, help_text, value=count)
        yield GaugeMetricFamily("policyd_dns_in_flight", "Clients being looked up.", value=resolver.in_flight)
        yield GaugeMetricFamily("policyd_dns_cached", "Clients in the cache.", value=resolver.cached_clients)

    def _dns_list_families(self) -> Iterator[Metric]:
        lists = self._server.facts.lists
        usable = GaugeMetricFamily(
            "policyd_dns_list_usable", "Whether a DNS list is in use: 0 if its self-test failed.", labels=("list",)
        )
        for name, state in lists.states.items():
            usable.add_metric([name], state.health.usable)
        yield usable
        counters = {name: state.counters for name, state in lists.states.items()}
        for key, help_text, count in (
            ("asked", "Questions that a DNS list was asked.", attrgetter("asked")),
            ("hits", "Answers of a DNS list from the cache.", attrgetter("hits")),
            (
                "refused",
                "Questions not sent to a DNS list because too many were in flight (dns.lookups).",
                attrgetter("refused"),
            ),
        ):
            counts: dict[tuple[str, ...], int] = {(name,): count(counter) for name, counter in counters.items()}
            yield from _by_labels(f"policyd_dns_list_{key}", help_text, ("list",), counts)
        yield from _by_labels(
            "policyd_dns_list_answers",
            "Answers of a DNS list, by their meaning and the reason of an unknown answer.",
            ("list", "answer", "reason"),
            {
                (name, status.value.replace(" ", "_"), reason): count
                for name, counter in counters.items()
                for (status, reason), count in counter.answers.items()
            },
        )
        seconds = SummaryMetricFamily(
            "policyd_dns_list_seconds", "Time until a DNS list answered, or the lookup timed out.", labels=("list",)
        )
        for name, counter in counters.items():
            seconds.add_metric([name], counter.answers.total(), counter.seconds)
        yield seconds
        yield GaugeMetricFamily("policyd_dns_list_in_flight", "Questions in flight.", value=lists.in_flight)
        yield GaugeMetricFamily(
            "policyd_dns_list_cached", "Addresses and names in the cache.", value=lists.cached_subjects
        )

    def _database_families(self) -> Iterator[Metric]:
        """Metrics of the databases of networks, if any are declared."""
        databases = self._running.loaded.databases
        if not databases:
            return
        built = GaugeMetricFamily(
            "policyd_database_build_timestamp_seconds",
            "When the data of a database of networks were built.",
            labels=("database",),
        )
        max_age = GaugeMetricFamily(
            "policyd_database_max_age_seconds", "Age above which the data of a database are old.", labels=("database",)
        )
        for database in databases:
            max_age.add_metric([database.kind], database.max_age)
            if not database.missing:
                built.add_metric([database.kind], database.built)
        yield built
        yield max_age

    def _memory_families(self) -> Iterator[Metric]:
        """Metrics of counters and greylisting, and of the shared server, if there is one."""
        memory = self._server.memory
        yield GaugeMetricFamily("policyd_state_keys", "Keys in the memory of the process.", value=len(memory.local))
        yield CounterMetricFamily(
            "policyd_state_evictions",
            "Keys dropped because of limits.state_keys.",
            value=memory.local.evicted,
        )
        if (file := self._running.state_file) is not None:
            yield GaugeMetricFamily(
                "policyd_state_file_usable",
                "1 if the state file is in use and can be written; otherwise 0.",
                value=int(file.is_used and not file.why),
            )
        if memory.shared is None:
            return
        counters = memory.shared.counters
        for name, help_text, value in (
            ("policyd_state_calls", "Calls to the shared memory.", counters.calls),
            ("policyd_state_failures", "Calls to the shared memory that failed.", counters.failures),
            ("policyd_state_seconds", "Seconds that calls to the shared memory took.", counters.seconds),
        ):
            yield CounterMetricFamily(name, help_text, value=value)
        yield GaugeMetricFamily(
            "policyd_state_up", "1 if the shared memory answers; otherwise 0.", value=int(memory.shared.is_up)
        )


class PageServer:
    """Serves the page at `/metrics` over minimal HTTP (RFC 9112): one request a connection."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._server: asyncio.Server | None = None
        self._scrapes: set[asyncio.Task[None]] = set()

    async def start(self, address: InetAddress) -> None:
        """Listens. Raises OSError."""
        self._server = await asyncio.start_server(self._accept, address.host, address.port, limit=MAX_HEAD)

    @property
    def is_reachable_from_elsewhere(self) -> bool:
        """Whether other hosts may read the page."""
        listening = self._server.sockets if self._server is not None else ()
        return not all(is_loopback(each.getsockname()[0]) for each in listening)

    def close(self) -> None:
        """Stops listening; scrapes in progress go on."""
        if self._server is not None:
            self._server.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Starts a task for a scrape, unless MAX_SCRAPERS are connected. A task started by asyncio would be reported as
        a bug if it were cancelled at the daemon's end.
        """
        if len(self._scrapes) >= MAX_SCRAPERS:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._scrapes.add(task)
        task.add_done_callback(self._scrapes.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(SCRAPE_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._answer(head))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            _log.debug("metrics: a scrape failed: %s", type(error).__name__)
        except Exception:  # noqa: BLE001 - the boundary of a scrape
            _log.exception("metrics: a bug in policyd, please report it")
        finally:
            writer.transport.abort()

    async def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if path != b"/metrics":
            return _response(b"404 Not Found", b"text/plain", b"metrics are at /metrics\n")
        if method not in {b"GET", b"HEAD"}:
            return _response(b"405 Method Not Allowed", b"text/plain", b"only GET is served\n")
        page = await self._page.render()
        response = _response(b"200 OK", _CONTENT_TYPE, page)
        return response if method == b"GET" else response[: -len(page)]


class _FamilyCollector:
    """A collector of one family, for `generate_latest`."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        """The family."""
        return [self._family]


def _by_labels(
    name: str,
    help_text: str,
    labels: tuple[str, ...],
    values: Mapping[tuple[str, ...], float],
    kind: type[CounterMetricFamily | GaugeMetricFamily] = CounterMetricFamily,
) -> Iterator[Metric]:
    """Yields a metric with labels, in slices small enough not to delay requests."""
    samples = list(values.items())
    for start in range(0, len(samples) or 1, SLICE):
        family = kind(name, help_text, labels=labels)
        for label_values, value in samples[start : start + SLICE]:
            family.add_metric(label_values, value)
        yield family


def _response(status: bytes, content_type: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (
        status,
        content_type,
        len(body),
        body,
    )
