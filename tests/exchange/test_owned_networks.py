"""Autonomous systems and countries are exported as their networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from policyd.config.load import load
from policyd.exchange.exporting import export
from policyd.exchange.model import ExportOptions
from tests.exchange.answers import TODAY

if TYPE_CHECKING:
    from pathlib import Path

SYSTEMS = """192.0.2.0,192.0.2.127,64500,Example
192.0.2.128,192.0.2.255,64500,Example
198.51.100.5,198.51.100.6,AS64501,Other
203.0.113.0,203.0.113.255,64502,Third
2001:db8::,2001:db8::ffff,64500,Example
"""
COUNTRIES = "192.0.2.0,192.0.2.255,JP,Japan\n203.0.113.0,203.0.113.127,DE,Germany\n"


def export_cidr_table(folder: Path, rules: str) -> tuple[list[str], list[str]]:
    """Exports the rules as a table for Postfix. Returns the lines of the table, and the losses."""
    (folder / "asn.csv").write_text(SYSTEMS)
    (folder / "country.csv").write_text(COUNTRIES)
    (folder / "rules.yaml").write_text("databases: {asn: asn.csv, country: country.csv}\n" + rules)
    loaded = load(None, str(folder / "rules.yaml"))
    text, report = export("postfix-cidr", loaded, ExportOptions(), TODAY)
    return [line for line in text.splitlines() if not line.startswith("#")], [str(line) for line in report.losses]


@pytest.mark.parametrize(
    ("match", "want"),
    [
        ("{asn: 64500}", ["192.0.2.0/24", "2001:db8::/112"]),
        ("{asn: [AS64501, 64502]}", ["198.51.100.5", "198.51.100.6", "203.0.113.0/24"]),
        ("{asn: [$more]}", ["203.0.113.0/24"]),
        ("{country: [jp, DE]}", ["192.0.2.0/24", "203.0.113.0/25"]),
    ],
)
def test_an_owner_is_exported_as_its_merged_networks(tmp_path: Path, match: str, want: list[str]) -> None:
    rules = f"lists: {{more: [64502]}}\nrules:\n  - {{name: r, match: {match}, action: REJECT}}\n"
    lines, lost = export_cidr_table(tmp_path, rules)
    assert [line.split()[0] for line in lines if "REJECT" in line] == want
    assert lost == []
