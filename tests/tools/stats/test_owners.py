"""`policyd stats` by system and by country: from the log, or from the databases of a ruleset."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

from rich.console import Console

from policyd.config.load import load
from policyd.tools.stats import collect as stats_module
from policyd.tools.stats.collect import Stats, collect
from policyd.tools.stats.html import page
from policyd.tools.stats.output import print_stats, stats_as_json

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def line(action: str, owner: str = "", client: str = "192.0.2.1") -> str:
    return (
        f"2026-11-21T17:16:00.123+09:00 {action} id=7Q4K2M9X client=unknown[{client}]{owner} rdns=missing state=RCPT"
        " from=<a@b.example> to=<c@d.example> ruleset=3f9c2a1b ms=12.1\n"
    )


def json_line(action: str, asn: int, asn_name: str, country: str) -> str:
    fields = {"time": "2026-11-21T17:16:00.123+09:00", "action": action, "client_address": "192.0.2.1"}
    return json.dumps({**fields, "asn": asn, "asn_name": asn_name, "country": country}) + "\n"


def stats_of(folder: Path, *lines: str, systems: str | None = None) -> Stats:
    log = folder / "decisions.log"
    log.write_text("".join(lines))
    if systems is None:
        return collect([str(log)])
    (folder / "asn.csv").write_text(systems)
    rules = "databases: {asn: asn.csv}\nrules:\n  - {name: own, match: {cidr: 10.0.0.0/8}, action: DUNNO}\n"
    (folder / "rules.yaml").write_text(rules)
    return collect([str(log)], ruleset=load(rules_path=folder / "rules.yaml").ruleset)


def printed(stats: Stats) -> str:
    screen = io.StringIO()
    print_stats(Console(file=screen, width=200), stats)
    return screen.getvalue()


def test_decisions_are_counted_by_system_and_country_and_sorted_by_refusals(tmp_path: Path) -> None:
    stats = stats_of(
        tmp_path,
        *[line("DUNNO", " asn=64496 country=JP")] * 5,
        line("REJECT", " asn=64496 country=JP"),
        *[line("REJECT", " asn=64497 country=DE")] * 3,
        line("DEFER", " country=DE"),
        line("REJECT"),
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
    stats = stats_of(tmp_path, line("REJECT", " asn=64496"), json_line("REJECT", 64496, "Example Internet Inc.", "JP"))
    assert stats.systems[64496].name == "Example Internet Inc."
    stats = stats_of(
        tmp_path,
        line("REJECT", " asn=64496"),
        line("REJECT", " asn=64511", client="192.0.2.2"),
        systems="192.0.2.0,192.0.2.255,64496,Now Called So\n",
    )
    # A line has the client's system at that time; the database has only the present system and its name.
    assert [(asn, system.name) for asn, system in stats.systems.items()] == [(64496, "Now Called So"), (64511, "")]


def test_lines_without_an_owner_are_looked_up_in_the_database(tmp_path: Path) -> None:
    stats = stats_of(
        tmp_path, line("REJECT"), line("REJECT", client="203.0.113.1"), systems="192.0.2.0,192.0.2.255,64496,Net\n"
    )
    assert [(asn, system.decisions) for asn, system in stats.systems.items()] == [(64496, 1)]


def test_a_log_without_owners_has_no_tables_of_owners(tmp_path: Path) -> None:
    stats = stats_of(tmp_path, line("REJECT"))
    assert (stats_as_json(stats)["systems"], stats_as_json(stats)["countries"]) == ({}, {})
    assert "system" not in printed(stats)
    assert "Systems" not in page(stats)


def test_the_page_has_both_tables_and_names_of_systems_are_escaped(tmp_path: Path) -> None:
    made = page(stats_of(tmp_path, json_line("REJECT", 64496, "<script>\x1b[31m\u202e", "<b>")))
    assert "<h2>Systems</h2>" in made
    assert "<h2>Countries</h2>" in made
    assert "AS64496 &lt;script&gt;\\x1b[31m" in made
    assert "<script>" not in made
    assert "<td>&lt;b&gt;</td>" in made
    assert made.isascii()


def test_the_number_of_distinct_systems_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats_module, "_MAX_SYSTEMS", 3)
    monkeypatch.setattr(stats_module, "_MAX_COUNTRIES", 2)
    stats = stats_of(tmp_path, *[line("REJECT", f" asn={n} country=A{n}") for n in range(1, 10)] * 2)
    assert [(asn, system.decisions) for asn, system in stats.systems.items()] == [(1, 2), (2, 2), (3, 2)]
    assert [*stats.countries] == ["A1", "A2"]
