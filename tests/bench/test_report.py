"""The table, the JSON and the plot of the results."""

from __future__ import annotations

import itertools
import json
from xml.etree import ElementTree as ET

import pytest

from tests.bench import plot, report
from tests.bench.bench import Reading, Row

ROWS = [
    Row(
        "decision",
        "a request",
        (
            Reading("ratio to the floor", 4.4, "x", 5.5, 4),
            Reading("policyd", 14.12, "us"),
            Reading("floor", 3.21, "us"),
        ),
    ),
    Row("mail", "", left_out="there is no Postfix on this machine"),
    Row("growth", "CPU by entries", series={"policyd": {10: 14.0, 1_000_000: 15.25}, "cidr": {10: 0.05}}),
]

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("reading", "verdict"),
    [
        (Reading("at most", 4, bar=5.5, goal=4), "goal"),
        (Reading("at most", 5.5, bar=5.5, goal=4), "bar"),
        (Reading("at most", 5.6, bar=5.5, goal=4), "missed"),
        (Reading("at least", 8000, bar=5000, goal=8000, more_is_better=True), "goal"),
        (Reading("at least", 4999, bar=5000, goal=8000, more_is_better=True), "missed"),
        (Reading("no goal", 1.2, bar=1.3), "bar"),
        (Reading("for context", 1.2), ""),
    ],
)
def test_a_reading_is_judged_by_its_bar_and_goal(reading: Reading, verdict: str) -> None:
    assert reading.verdict == verdict


def test_a_row_has_the_verdict_of_its_worst_reading() -> None:
    readings = (Reading("p99", 4, "ms", 10, 5), Reading("longest", 30, "ms", 50, 20), Reading("context", 1))
    assert report.verdict(Row("reload", "", readings)) == "bar"


def test_the_table_shows_figures_or_a_reason_for_every_row() -> None:
    lines = report.as_markdown({"cores": "2", "load before": "0.1"}, ROWS).splitlines()
    assert lines[0] == "cores 2, load before 0.1."
    figures = "ratio to the floor 4.40 x; policyd 14.1 µs; floor 3.21 µs"
    assert f"| `decision` | a request | {figures} | ≤ 5.50 x | ≤ 4 x | met |" in lines
    assert "| `mail` |  | left out: there is no Postfix on this machine |  |  |  |" in lines
    assert "| 1,000,000 | 15.2 |  |" in lines


@pytest.mark.parametrize(("load", "busy"), [("0.1", False), ("5.4", True)])
def test_a_run_on_a_busy_machine_is_marked(load: str, busy: bool) -> None:
    assert ("had other work" in report.as_markdown({"load before": load}, ROWS)) == busy


def test_json_has_the_figures_of_the_table() -> None:
    rows = json.loads(json.dumps(report.as_json({}, ROWS)))["rows"]
    assert rows["decision"]["readings"][0] == {
        "label": "ratio to the floor",
        "value": 4.4,
        "unit": "x",
        "bar": 5.5,
        "goal": 4,
        "verdict": "bar",
    }
    assert rows["mail"]["left_out"] == "there is no Postfix on this machine"
    assert rows["growth"]["series"]["policyd"] == {"10": 14.0, "1000000": 15.25}


def test_the_machine_is_described() -> None:
    assert {"date", "processor", "cores", "Python", "policyd"} <= report.machine().keys()


def test_the_plot_is_drawn_to_a_logarithmic_scale() -> None:
    points = {10: 1.0, 100: 10.0, 1000: 100.0, 10_000: 1000.0}
    drawn = ET.fromstring(plot.draw({"policyd": points, "floor": dict.fromkeys(points, 3.0)}))
    (steep, flat) = [
        [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        for line in drawn.iter(f"{SVG}polyline")
    ]
    # Ten times the cost at ten times the entries is a straight line.
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(steep)]
    assert all(step == pytest.approx(steps[0], abs=0.2) for step in steps)
    assert len({height for _, height in flat}) == 1


def test_the_names_of_lines_that_end_together_do_not_overlap() -> None:
    drawn = ET.fromstring(plot.draw({name: {10: 1.0, 100: 2.0} for name in ("cidr", "postfwd", "policyd", "floor")}))
    names = {"Postfix cidr: table", "postfwd", "policyd", "floor: a C server"}
    heights = sorted(float(text.attrib["y"]) for text in drawn.iter(f"{SVG}text") if text.text in names)
    assert len(heights) == 4
    assert all(b - a >= 30 for a, b in itertools.pairwise(heights))
