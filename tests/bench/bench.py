"""Common parts of the measurements: the scale of a run, its files, and the rows of the table."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import corpus, servers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.bench.corpus import Client
    from tests.bench.servers import Load, Server

SHIPPED_RULES = Path(__file__).parents[2] / "config" / "rules.yaml"

# Number of expressions, as in well-known lists of generic reverse DNS.
EXPRESSIONS = 1671

# Number of pairs of runs for a ratio that must be precise: the median of the pairs' ratios.
PAIRS = 10


@dataclass(frozen=True)
class Scale:
    """The sizes of a run. The defaults are those of a full run; quote only the figures of a full run."""

    entries: int = 1_000_000  # of networks, and of names
    rules: int = 10_000
    requests: int = 200_000  # of a load, all different
    rounds: int = 5  # runs of each server in turn; the figure is their median
    seconds: float = 3  # of one run
    memory_reloads: int = 20  # in the row `memory`
    many_reloads: int = 200  # in the row `reload_memory`
    load_reloads: int = 5  # in each row that times reloads
    idle: int = 4000  # connections
    mail_pairs: int = 10  # pairs of runs in the row `mail`
    messages: int = 2000  # of one run
    dns_seconds: float = 15  # of one run with a slow resolver
    mails: int = 100_000  # in the mail log of the row `replay`
    log_lines: int = 5_000_000  # in the longest logs
    growth: tuple[int, ...] = (10, 100, 1000, 10_000, 100_000, 1_000_000)  # entries of the list in the row `growth`
    postfwd_growth: tuple[int, ...] = (10, 100, 1000, 10_000)  # with more, a request takes a second or longer


QUICK = Scale(
    entries=100_000,
    rules=1000,
    requests=50_000,
    rounds=1,
    seconds=1,
    memory_reloads=3,
    many_reloads=20,
    load_reloads=2,
    idle=1000,
    mail_pairs=1,
    messages=300,
    dns_seconds=4,
    mails=10_000,
    growth=(10, 1000, 100_000),
    postfwd_growth=(10, 1000),
    log_lines=100_000,
)


@dataclass(frozen=True)
class Reading:
    """One figure; its bar, a limit that it must keep; and its goal, a stricter limit."""

    label: str
    value: float
    unit: str = ""
    bar: float | None = None
    goal: float | None = None
    more_is_better: bool = False

    @property
    def verdict(self) -> str:
        """The strictest limit that the value keeps (`goal` or `bar`), or `missed` for a missed bar; otherwise empty."""
        for name, limit in (("goal", self.goal), ("bar", self.bar)):
            if limit is not None and (self.value >= limit if self.more_is_better else self.value <= limit):
                return name
        return "" if self.bar is None else "missed"


@dataclass(frozen=True)
class Row:
    """One row of the table. `left_out` is the reason if the row was not measured."""

    name: str
    what: str
    readings: tuple[Reading, ...] = ()
    left_out: str = ""
    series: Mapping[str, Mapping[int, float]] = field(default_factory=dict)  # by server: microseconds by entries


class LeftOut(Exception):  # noqa: N818 - not an error: it says why a row is left out
    """A row cannot be measured here; the message names what is missing."""


class Bench:
    """A run: its scale, its tools in C, and files made once for all rows that need them."""

    def __init__(self, scale: Scale, folder: Path, tools: Mapping[str, Path]) -> None:
        self.scale = scale
        self.folder = folder
        self.tools = tools
        self.shipped = SHIPPED_RULES.read_text()

    def rules_with_lists(self, entries: int, *, ipv6: bool = True) -> str:
        """The shipped ruleset with this number of networks and names."""
        return corpus.with_lists(self.shipped, self.networks(entries, ipv6=ipv6), self.domains(entries))

    def networks(self, entries: int, *, ipv6: bool = True) -> Path:
        """A list with this number of networks."""
        path = self.folder / f"networks-{entries}{'' if ipv6 else '-ipv4'}"
        return path if path.exists() else corpus.write_networks(path, entries, ipv6=ipv6)

    def domains(self, entries: int) -> Path:
        """A list with this number of domains."""
        path = self.folder / f"domains-{entries}"
        return path if path.exists() else corpus.write_domains(path, entries)

    def expressions(self) -> Path:
        """The list of expressions for generic names."""
        path = self.folder / "expressions"
        path.write_text("".join(f"{corpus.expression(number)}\n" for number in range(EXPRESSIONS)))
        return path

    def load(self, name: str, clients: Iterable[Client], *, connections: int = 50, pinned: bool = True) -> Load:
        """A load of requests from these clients; the file is made once for each name."""
        path = self.folder / f"requests-{name}"
        if not path.exists():
            corpus.write_requests(path, clients)
        return servers.Load(self.tools["load"], path, connections, self.scale.seconds, pinned)

    def load_of_lists(self, entries: int, *, connections: int = 50, pinned: bool = True, ipv6: bool = True) -> Load:
        """The load for `rules_with_lists`."""
        clients = corpus.clients_of_lists(self.scale.requests, entries, ipv6=ipv6)
        return self.load(f"lists-{entries}-{ipv6}", clients, connections=connections, pinned=pinned)

    def costs_in_turn(self, rounds: int | None = None, /, **measured: tuple[Server, Load]) -> dict[str, list[float]]:
        """CPU microseconds for each request, by server. Each round measures every server once, in turn.

        Raises BenchError for a wrong or missing answer. The floor's answers may be wrong: it always answers DUNNO.
        """
        costs: dict[str, list[float]] = {name: [] for name in measured}
        for _ in range(rounds or self.scale.rounds):
            for name, (server, load) in measured.items():
                cost, report = servers.cost_us(server, load)
                servers.require_valid({**report, "wrong": 0} if name == "floor" else report)
                costs[name].append(cost)
        return costs


def median_ratio(costs: Mapping[str, list[float]], one: str, other: str) -> float:
    """The median over the rounds of the ratio of the two servers' costs."""
    return statistics.median(a / b for a, b in zip(costs[one], costs[other], strict=True))


def medians(costs: Mapping[str, list[float]], unit: str = "us") -> tuple[Reading, ...]:
    """A reading for each server: the median of its costs."""
    return tuple(Reading(name, statistics.median(values), unit) for name, values in costs.items())
