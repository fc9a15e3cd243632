"""The alerts for Prometheus: promtool shows that each alert fires when it should, and only then."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml

from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.slow

RULES = Path(__file__).parents[2] / "packaging/prometheus/policyd.rules.yml"
ALERTS = {alert["alert"]: alert for group in yaml.safe_load(RULES.read_text())["groups"] for alert in group["rules"]}

HOST = {"job": "policyd", "instance": "mx1"}


class Case(NamedTuple):
    """One case: series in promtool's notation, and the times at which the alert fires or is silent.

    `labels` are the labels that the alert takes from the series, besides those of HOST. `value` is the number as the
    alert's texts show it.
    """

    name: str
    alert: str
    series: Mapping[str, str]
    fires: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}
    value: str = ""


def series(name: str, numbers: str, **labels: str) -> dict[str, str]:
    """The samples of one series, by its name and labels, which include those of HOST."""
    written = ",".join(f'{label}="{value}"' for label, value in {**HOST, **labels}.items())
    return {f"{name}{{{written}}}": numbers}


def decisions(numbers: str, action: str = "REJECT") -> dict[str, str]:
    return series("policyd_decisions_total", numbers, action=action, rule="vps")


def list_age(interval: int, checked: str) -> dict[str, str]:
    return series("policyd_list_interval_seconds", f"{interval}+0x600", list="drop") | series(
        "policyd_list_checked_timestamp_seconds", checked, list="drop"
    )


def database_age(numbers: str) -> dict[str, str]:
    return series("policyd_database_build_timestamp_seconds", numbers, database="asn") | series(
        "policyd_database_max_age_seconds", "7200+0x300", database="asn"
    )


def dns_list_usable(numbers: str) -> dict[str, str]:
    return series("policyd_dns_list_usable", numbers, list="zen")


def lines_lost(numbers: str) -> dict[str, str]:
    return series("policyd_log_lines_lost_total", numbers, log="decision")


def state_file_usable(numbers: str) -> dict[str, str]:
    return series("policyd_state_file_usable", numbers)


def ruleset_observes(numbers: str) -> dict[str, str]:
    return series("policyd_ruleset_observes", numbers)


CASES = (
    Case("stops answering", "PolicydDown", series("up", "1+0x5 0+0x20"), ("12m",), ("5m", "9m")),
    Case("does not answer for three minutes", "PolicydDown", series("up", "1+0x5 0+0x3 1+0x9"), (), ("9m", "15m")),
    Case("another job does not answer", "PolicydDown", series("up", "0+0x30", job="node"), (), ("20m",)),
    Case(
        "fetched at the start, then not again",
        "PolicydListOld",
        list_age(3600, "0+0x600"),
        ("2h20m",),
        ("1h50m", "2h10m"),
        {"list": "drop"},
    ),
    Case(
        "found unchanged after an hour", "PolicydListOld", list_age(3600, "0+0x60 3600+0x600"), (), ("2h20m", "2h50m")
    ),
    Case(
        "fetched again after three hours",
        "PolicydListOld",
        list_age(3600, "0+0x180 10800+0x60"),
        ("2h59m",),
        ("3h10m",),
        {"list": "drop"},
    ),
    Case("never fetched", "PolicydListOld", list_age(60, "0+0x600"), ("30m",), ("10m",), {"list": "drop"}),
    Case(
        "older than max_age",
        "PolicydDatabaseOld",
        database_age("0+0x300"),
        ("3h2m",),
        ("2h", "2h50m"),
        {"database": "asn"},
        "3h 2m 0s",
    ),
    Case("replaced before max_age", "PolicydDatabaseOld", database_age("0+0x100 6000+0x200"), (), ("3h2m",)),
    Case(
        "goes out of use",
        "PolicydDnsListUnusable",
        dns_list_usable("1+0x5 0+0x30"),
        ("17m",),
        ("5m", "14m"),
        {"list": "zen"},
    ),
    Case(
        "out of use for five minutes",
        "PolicydDnsListUnusable",
        dns_list_usable("1+0x5 0+0x5 1+0x20"),
        (),
        ("10m", "20m"),
    ),
    Case(
        "a refused reload",
        "PolicydReloadRefused",
        series("policyd_last_reload_successful", "1+0x5 0+0x20"),
        ("9m",),
        ("5m",),
    ),
    Case(
        "a refused reload, then a successful one",
        "PolicydReloadRefused",
        series("policyd_last_reload_successful", "0+0x9 1+0x9"),
        ("9m",),
        ("11m",),
    ),
    Case(
        "five lines lost after 20 minutes",
        "PolicydLogLinesLost",
        lines_lost("0+0x20 5+0x60"),
        ("22m", "30m"),
        ("20m", "45m"),
        {"log": "decision"},
    ),
    Case("lines lost before the first sample", "PolicydLogLinesLost", lines_lost("7+0x60"), (), ("50m",)),
    Case("stops answering", "PolicydMemoryAway", series("policyd_state_up", "1+0x5 0+0x20"), ("12m",), ("5m", "9m")),
    Case(
        "does not answer for three minutes",
        "PolicydMemoryAway",
        series("policyd_state_up", "0+0x3 1+0x20"),
        (),
        ("3m", "10m"),
    ),
    Case("goes out of use", "PolicydStateFileUnusable", state_file_usable("1+0x5 0+0x9"), ("12m",), ("5m", "9m")),
    Case(
        "out of use for three minutes",
        "PolicydStateFileUnusable",
        state_file_usable("0+0x3 1+0x20"),
        (),
        ("3m", "9m"),
    ),
    Case(
        "a bug after 20 minutes",
        "PolicydBug",
        series("policyd_bugs_total", "0+0x20 1+0x120"),
        ("22m", "1h15m"),
        ("20m", "1h30m"),
    ),
    Case("no bug", "PolicydBug", series("policyd_bugs_total", "0+0x120"), (), ("1h",)),
)

# Cases with a sample every ten minutes: a day has 144 samples, and 26 hours have 156.
CASES_OF_DAYS = (
    Case(
        "sixty times as many rejections as the day before",
        "PolicydRuleRefusesMore",
        decisions("0+10x156 1560+600x6"),
        ("26h30m",),
        ("26h",),
        {"rule": "vps"},
        "1",
    ),
    Case(
        "many deferrals after none",
        "PolicydRuleRefusesMore",
        decisions("0+0x156 0+600x6", "DEFER"),
        ("26h30m",),
        (),
        {"rule": "vps"},
        "1",
    ),
    Case("twice as many rejections", "PolicydRuleRefusesMore", decisions("0+600x156 93600+1200x6"), (), ("26h30m",)),
    Case("three rejections a minute", "PolicydRuleRefusesMore", decisions("0+0x156 0+30x6"), (), ("26h30m",)),
    Case(
        "many rejections by a new rule", "PolicydRuleRefusesMore", decisions("_x150 0+600x12"), (), ("25h30m", "26h30m")
    ),
    Case(
        "sixty times as many DUNNO",
        "PolicydRuleRefusesMore",
        decisions("0+10x156 1560+600x6", "DUNNO"),
        (),
        ("26h30m",),
    ),
    Case("observes for eight days", "PolicydObserves", ruleset_observes("1+0x1152"), ("7d10m", "8d"), ("1d", "6d23h")),
    Case(
        "observes for eight days, with a gap in the samples",
        "PolicydObserves",
        ruleset_observes("1+0x500 _x9 1+0x600"),
        ("7d10m",),
    ),
    Case(
        "enforced for a while within the week",
        "PolicydObserves",
        ruleset_observes("1+0x500 0+0x9 1+0x600"),
        (),
        ("7d10m",),
    ),
    Case("enforced for eight days", "PolicydObserves", ruleset_observes("0+0x1152"), (), ("7d10m",)),
)


def expected(case: Case) -> dict[str, Any]:
    """The alert that must fire in a case, in the form of promtool's tests."""
    alert, labels = ALERTS[case.alert], {**HOST, **case.labels}

    def shown(text: str) -> str:
        text = re.sub(r"\{\{ \$labels\.(\w+) }}", lambda name: labels[name[1]], text)
        return re.sub(r"\{\{ \$value[^}]*}}", case.value, text)

    return {
        "exp_labels": {**alert["labels"], **labels},
        "exp_annotations": {name: shown(text) for name, text in alert["annotations"].items()},
    }


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    require("promtool")
    return subprocess.run(["promtool", *arguments], check=False, capture_output=True, text=True, timeout=120)


def unit_test(folder: Path, cases: tuple[Case, ...], interval: str = "1m") -> subprocess.CompletedProcess[str]:
    """Runs the cases, with a sample and an evaluation of the rules every `interval`."""
    tests = [
        {
            "name": f"{case.alert}: {case.name}",
            "interval": interval,
            "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
            "alert_rule_test": [
                {"alertname": case.alert, "eval_time": time, "exp_alerts": [expected(case)] if fires else []}
                for fires, times in ((True, case.fires), (False, case.silent))
                for time in times
            ],
        }
        for case in cases
    ]
    file = folder / "tests.yml"  # JSON is YAML
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": interval, "tests": tests}))
    return promtool("test", "rules", file)


def test_promtool_accepts_the_rules() -> None:
    ended = promtool("check", "rules", RULES)
    assert ended.returncode == 0, ended.stderr
    assert f"SUCCESS: {len(ALERTS)} rules found" in ended.stdout


def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    for cases, interval in ((CASES, "1m"), (CASES_OF_DAYS, "10m")):
        ended = unit_test(tmp_path, cases, interval)
        assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=lambda case: case.name)
def test_promtool_fails_if_a_case_is_wrong(tmp_path: Path, case: Case) -> None:
    assert unit_test(tmp_path, (case,)).returncode == 0
    assert unit_test(tmp_path, (case._replace(fires=case.silent, silent=()),)).returncode != 0
    assert unit_test(tmp_path, (case._replace(fires=(), silent=case.fires),)).returncode != 0


def test_each_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    cases = CASES + CASES_OF_DAYS
    assert {case.alert for case in cases if case.fires} == set(ALERTS)
    assert {case.alert for case in cases if case.silent} == set(ALERTS)
    # A refused reload always causes an alert, so each case of that alert fires at some time.
    assert {case.alert for case in cases if not case.fires} >= set(ALERTS) - {"PolicydReloadRefused"}
