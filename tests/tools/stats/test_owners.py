"""`policyd stats` by system and by country: from the log, or from the databases of a ruleset."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from policyd.tools.stats import collect as stats_module
from policyd.tools.stats.html import page
from policyd.tools.stats.output import stats_as_json
from tests.tools.decision_lines import line
from tests.tools.stats.test_stats import printed, stats_of

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from policyd.tools.stats.collect import Stats


def owner_line(action: str, owner: str = "", client: str = "192.0.2.1") -> str:
    return line(action, client=f"unknown[{client}]{owner}")


def json_line(action: str, asn: int, asn_name: str, country: str) -> str:
    fields = {"time": "2026-11-21T17:16:00.123+09:00", "action": action, "client_address": "192.0.2.1"}
    return json.dumps({**fields, "asn": asn, "asn_name": asn_name, "country": country}) + "\n"


def stats_with_systems(folder: Path, systems: str, *lines: str) -> Stats:
    """The statistics with a ruleset that has a database of these systems."""
    (folder / "asn.csv").write_text(systems)
    rules = "databases: {asn: asn.csv}\nrules:\n  - {name: own, match: {cidr: 10.0.0.0/8}, action: DUNNO}\n"
    return stats_of(folder, *lines, rules=rules)


def test_decisions_are_counted_by_system_and_country_and_sorted_by_refusals(tmp_path: Path) -> None:
    stats = stats_of(
        tmp_path,
        *[owner_line("DUNNO", " asn=64496 country=JP")] * 5,
        owner_line("REJECT", " asn=64496 country=JP"),
        *[owner_line("REJECT", " asn=64497 country=DE")] * 3,
        owner_line("DEFER", " country=DE"),
        owner_line("REJECT"),
    )
    found = stats_as_json(stats)
    assert [*found["systems"].items()] == [
        ("AS64497", {"name": "", "decisions": 3, "refused": 3}),
        ("AS64496", {"name": "", "decisions": 6, "refused": 1}),
    ]
    assert [*found["countries"].items()] == [
        ("DE", {"decisions": 4, "refused": 4}),
        ("JP", {"decisions": 6, "refused": 1}),
    ]
    text = [text.split() for text in printed(stats).splitlines()]
    assert ["system", "decisions", "refused", "share"] in text
    assert ["AS64496", "6", "1", "17%"] in text
    assert ["DE", "4", "4", "100%"] in text


def test_the_name_of_a_system_comes_from_a_json_line_or_from_the_database(tmp_path: Path) -> None:
    stats = stats_of(
        tmp_path, owner_line("REJECT", " asn=64496"), json_line("REJECT", 64496, "Example Internet Inc.", "JP")
    )
    assert stats.systems[64496].name == "Example Internet Inc."
    stats = stats_with_systems(
        tmp_path,
        "192.0.2.0,192.0.2.255,64496,Present Name\n",
        owner_line("REJECT", " asn=64496"),
        owner_line("REJECT", " asn=64511", client="192.0.2.2"),
    )
    # A line has the client's system at that time; the database has only the present system and its name.
    assert [(asn, system.name) for asn, system in stats.systems.items()] == [(64496, "Present Name"), (64511, "")]


def test_lines_without_an_owner_are_looked_up_in_the_database(tmp_path: Path) -> None:
    stats = stats_with_systems(
        tmp_path,
        "192.0.2.0,192.0.2.255,64496,Net\n",
        owner_line("REJECT"),
        owner_line("REJECT", client="203.0.113.1"),
    )
    assert [(asn, system.decisions) for asn, system in stats.systems.items()] == [(64496, 1)]


def test_a_log_without_owners_has_no_tables_of_owners(tmp_path: Path) -> None:
    stats = stats_of(tmp_path, owner_line("REJECT"))
    assert (stats_as_json(stats)["systems"], stats_as_json(stats)["countries"]) == ({}, {})
    assert "system" not in printed(stats)
    assert "Systems" not in page(stats)


def test_the_page_has_both_tables_and_names_of_systems_are_escaped(tmp_path: Path) -> None:
    html = page(stats_of(tmp_path, json_line("REJECT", 64496, "<script>\x1b[31m\u202e", "<b>")))
    assert "<h2>Systems</h2>" in html
    assert "<h2>Countries</h2>" in html
    assert "AS64496 &lt;script&gt;\\x1b[31m" in html
    assert "<script>" not in html
    assert "<td>&lt;b&gt;</td>" in html
    assert html.isascii()


def test_the_number_of_distinct_systems_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats_module, "_MAX_SYSTEMS", 3)
    monkeypatch.setattr(stats_module, "_MAX_COUNTRIES", 2)
    stats = stats_of(tmp_path, *[owner_line("REJECT", f" asn={n} country=A{n}") for n in range(1, 10)] * 2)
    assert [(asn, system.decisions) for asn, system in stats.systems.items()] == [(1, 2), (2, 2), (3, 2)]
    assert [*stats.countries] == ["A1", "A2"]
