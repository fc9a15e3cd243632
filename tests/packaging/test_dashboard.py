"""The dashboard for Grafana, and the alerts, in a real Prometheus that scrapes a daemon under load."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from policyd.config.list_sources import state_path
from tests.daemon.client import Client, unnamed
from tests.field.policyd import Policyd
from tests.field.waiting import until
from tests.name_server import NXDOMAIN, SERVFAIL, Reply, ScriptedServer, reverse
from tests.ports import free_port
from tests.requirements import require
from tests.state.servers import StateServer

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

PACKAGING = Path(__file__).parents[2] / "packaging"
DASHBOARD = json.loads((PACKAGING / "grafana/policyd.json").read_text())

RULES = """
databases: {asn: asn.csv}
lists: {drop: {file: drop.txt, from: {url: 'http://127.0.0.1:9/', every: 1d}}}
dns_lists: {zen: {zone: zen.example, codes: 127.0.0.2}}
counters: {mails: {count: requests, per: client_address, within: 1h}}
rules:
  - {name: drop, match: {cidr: $drop}, action: REJECT}
  - {name: owner, match: {asn: AS64496}, action: REJECT}
  - {name: watched, match: {helo_name: mail.sender.example}, action: REJECT, mode: observe}
  - {name: too-many, match: {counter: mails > 100000}, action: DEFER 4.7.1 later}
  - {name: listed, match: {listed: zen}, action: REJECT}
  - {name: no-reverse-dns, match: {reverse_dns: missing, sender_domain: odd.example}, action: DEFER 4.7.1 later}
"""

# Values for Grafana's variables.
VARIABLES = {"$instance": ".+", "$__rate_interval": "10s"}


def queries() -> dict[str, str]:
    """Every query of the dashboard, by its panel's title and its letter, or by its annotation."""
    found = {f"annotation {annotation['name']}": annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            found[f"{panel['title']}, {target['refId']}"] = target["expr"]
    for name, query in found.items():
        for variable, value in VARIABLES.items():
            query = query.replace(variable, value)  # noqa: PLW2901 - a query with one variable fewer
        found[name] = query
    return found


class Prometheus:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **parameters: str) -> Any:
        with urlopen(f"{self._url}{path}?{urlencode(parameters)}", timeout=30) as answer:
            return json.load(answer)["data"]

    def is_ready(self) -> bool | None:
        try:
            with urlopen(f"{self._url}/-/ready", timeout=5):
                return True
        except OSError:
            return None

    def numbers(self, query: str) -> list[float]:
        """The numbers that a query gives now; NaN is left out."""
        result = self.get("/api/v1/query", query=query)["result"]
        return [number for sample in result if not math.isnan(number := float(sample["value"][1]))]


@contextmanager
def prometheus(folder: Path, target: int) -> Iterator[Prometheus]:
    """A Prometheus that scrapes a port of 127.0.0.1 every second, and evaluates the alerts."""
    folder.mkdir()
    port = free_port()
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(PACKAGING / "prometheus/policyd.rules.yml")],
        "scrape_configs": [{"job_name": "policyd", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=warn"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], cwd=folder, stdout=log, stderr=log
        )
    try:
        running = Prometheus(port)
        until("Prometheus", running.is_ready)
        yield running
    finally:
        server.terminate()
        server.wait()


@contextmanager
def load(port: int) -> Iterator[None]:
    """Sends up to 300 requests a second. A third of them come from a new client each, the others from two clients."""
    ended = threading.Event()

    def ask() -> None:
        with Client(port) as client:
            for number in itertools.count():
                if ended.is_set():
                    return
                address = f"198.{18 + number % 2}.{number // 200 % 200}.{number % 200}"
                for client_address in (address, "192.0.2.1", "203.0.113.1"):
                    client.ask(unnamed(client_address, sender=f"a@{('odd', 'even')[number % 2]}.example"))
                time.sleep(0.01)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def running_prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped a daemon with all features, under load."""
    require("prometheus", "redis-server")
    folder = tmp_path_factory.mktemp("scraped")
    (folder / "asn.csv").write_text("203.0.113.0,203.0.113.255,64496,Example\n")
    (folder / "drop.txt").write_text("192.0.2.0/24\n")
    state_path(str(folder / "drop.txt")).write_text("{}")
    os.utime(state_path(str(folder / "drop.txt")))
    script = {"2.0.0.127.zen.example": Reply(["2.0.0.127.zen.example 300 A 127.0.0.2"])}
    script |= {reverse(f"198.18.{net}.{host}"): Reply(rcode=SERVFAIL) for net in range(9) for host in range(0, 200, 8)}
    state = StateServer(folder)
    metrics, port = free_port(), free_port()
    try:
        with (
            ScriptedServer(script, otherwise=Reply(rcode=NXDOMAIN)) as dns,
            Policyd(
                folder,
                RULES,
                listen=[f"inet:127.0.0.1:{port}"],
                metrics=f"127.0.0.1:{metrics}",
                dns={"servers": [dns.address]},
                state=f"unix:{state.socket}",
                state_file=str(folder / "state.db"),
            ) as policyd,
            prometheus(folder / "prometheus", metrics) as running,
            load(port),
        ):
            until("a scrape", lambda: running.numbers("policyd_build_info") or None)
            policyd.reload()
            yield running
    finally:
        state.stop()


def test_every_query_of_the_dashboard_gives_data(running_prometheus: Prometheus) -> None:
    wanted = queries()
    missing = dict(wanted)

    def all_have_data() -> bool | None:
        for name in [name for name, query in missing.items() if running_prometheus.numbers(query)]:
            del missing[name]
        return not missing or None

    try:
        until("the queries", all_have_data)
    except TimeoutError:
        pytest.fail(f"no data: {missing}")
    assert len(wanted) > 35


def test_the_hosts_to_choose_from_are_found(running_prometheus: Prometheus) -> None:
    (variable,) = (template for template in DASHBOARD["templating"]["list"] if template["name"] == "instance")
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr] # the query has this form
    assert running_prometheus.get(f"/api/v1/label/{label}/values", **{"match[]": metric})


def test_every_metric_of_an_alert_exists(running_prometheus: Prometheus) -> None:
    rules = [rule for group in running_prometheus.get("/api/v1/rules")["groups"] for rule in group["rules"]]
    metrics = {name for rule in rules for name in re.findall(r"\bpolicyd_\w+", rule["query"])}
    assert len(metrics) >= 10
    assert [metric for metric in metrics if not running_prometheus.numbers(metric)] == []


def test_no_alert_fires_for_a_healthy_daemon(running_prometheus: Prometheus) -> None:
    rules = [rule for group in running_prometheus.get("/api/v1/rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} >= {"PolicydRuleRefusesMore", "PolicydMemoryAway"}
    assert [rule["name"] for rule in rules if rule["health"] == "err"] == []
    assert running_prometheus.get("/api/v1/alerts")["alerts"] == []


def test_a_query_without_data_is_detected(running_prometheus: Prometheus) -> None:
    assert running_prometheus.numbers('policyd_decisions_total{action="NONE"}') == []
    assert running_prometheus.numbers("policyd_connections * 0 / 0") == []


def test_panels_have_unique_places_and_numbers() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert all(panel["type"] == "row" or panel["targets"] for panel in panels)


def test_every_metric_of_the_dashboard_is_limited_to_the_chosen_hosts() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            assert len(re.findall(r"\b(?:policyd_\w+|up)\b", target["expr"].replace('job="policyd"', ""))) == target[
                "expr"
            ].count('instance=~"$instance"')
