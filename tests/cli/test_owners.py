"""The commands that know the systems and countries of clients: suggest, stats, report, replay."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Ended

    Run = Callable[..., Ended]

DATA = Path(__file__).parents[1] / "data"
INCIDENTS = (DATA / "maillog.sendmail", DATA / "maillog.postfix")


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """A ruleset whose database knows the network of the second incident."""
    (tmp_path / "asn.csv").write_text("180.222.32.0,180.222.63.255,64496,Example Bulk\n")
    path = tmp_path / "rules.yaml"
    path.write_text("databases: {asn: asn.csv}\nrules:\n  - {name: own, match: {cidr: 10.0.0.0/8}, action: DUNNO}\n")
    return path


def test_suggest_by_asn_writes_the_database_that_its_rules_need(run: Run, rules: Path) -> None:
    ended = run("suggest", "--by", "asn", "--rules", rules, *INCIDENTS)
    assert ended.status == 0
    assert f"databases: {{asn: '{rules.parent}/asn.csv'}}\nrules:\n" in ended.out
    assert "match: {asn: AS64496}" in ended.out
    candidates = rules.with_name("candidates.yaml")
    candidates.write_text(ended.out)
    assert run("check", "--rules", candidates).status == 0


def test_suggest_by_asn_without_any_system_says_what_it_needs(run: Run) -> None:
    ended = run("suggest", "--by", "asn", *INCIDENTS)
    assert (ended.status, ended.out) == (1, "")
    assert "the system of no client is known; name a ruleset that declares databases: asn with --rules" in ended.err
