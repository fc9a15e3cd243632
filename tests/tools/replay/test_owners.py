"""`policyd replay` of rules on systems and countries, with the owners from databases or from the log."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

import pytest

from policyd.config.load import load
from policyd.config.problems import ConfigErrors
from policyd.tools.replay.output import replay_as_json
from policyd.tools.replay.replay import compare, replay
from tests.tools.replay.test_replay import log_of, mail

if TYPE_CHECKING:
    from pathlib import Path

    from policyd.core.index import Ruleset
    from policyd.tools.replay.replay import Replay

TODAY = datetime.date(2026, 11, 21)
RULES = """
databases: {asn: %s, country: %s}
rules:
  - {name: hoster, match: {asn: 64496, country: JP}, action: REJECT}
  - {name: named, match: {asn_name_regex: '(?i)hosting'}, action: REJECT}
"""
SYSTEMS = "192.0.2.0,192.0.2.255,64496,Example Internet Inc.\n198.51.100.0,198.51.100.255,64497,Other Hosting\n"
COUNTRIES = "192.0.2.0,192.0.2.255,JP\n"


def ruleset_of(
    folder: Path, name: str, systems: str = SYSTEMS, countries: str = COUNTRIES, *, databases: bool = True
) -> Ruleset:
    """Returns the rules with databases whose file names begin with `name`."""
    if databases:
        (folder / f"{name}-asn.csv").write_text(systems)
        (folder / f"{name}-country.csv").write_text(countries)
    path = folder / f"{name}.yaml"
    path.write_text(RULES % (f"{name}-asn.csv", f"{name}-country.csv"))
    return load(rules_path=path, databases=databases).ruleset


def hits(result: Replay) -> dict[str, int]:
    return {answer.rule: tally.transactions for answer, tally in result.rules}


MAILS = [mail(n, f"unknown[{address}]") for n, address in enumerate(("192.0.2.1", "198.51.100.1", "203.0.113.1"))]


def test_a_mail_log_is_judged_by_the_database_of_the_ruleset(tmp_path: Path) -> None:
    found = replay(ruleset_of(tmp_path, "new"), log_of(tmp_path, *MAILS), TODAY)
    assert hits(found) == {"hoster": 1, "named": 1, "default": 1}
    assert found.facts.refused_delivered == 2
    assert found.facts.unlogged == ()
    notes = replay_as_json(found)["notes"]
    assert (
        "1 mail: the client's address has no record, so no rule on asn, asn_name_regex or country could match" in notes
    )


def test_each_of_two_rulesets_uses_its_own_database(tmp_path: Path) -> None:
    old = ruleset_of(tmp_path, "old", "203.0.113.0,203.0.113.255,64500,Somebody\n")
    found = compare(ruleset_of(tmp_path, "new"), old, log_of(tmp_path, *MAILS), TODAY)
    assert [(before.rule, after.rule, tally.transactions) for before, after, tally in found.changes] == [
        ("default", "hoster", 1),
        ("default", "named", 1),
    ]


def decision(address: str, owner: str) -> str:
    return (
        f"2026-11-21T17:16:00.123+09:00 DUNNO id=7Q4K2M9X client=unknown[{address}]{owner} rdns=missing state=RCPT"
        " from=<a@b.example> to=<c@d.example> ruleset=3f9c2a1b ms=1.0\n"
    )


def test_a_decision_log_is_judged_by_the_database_or_by_its_own_owners(tmp_path: Path) -> None:
    log = tmp_path / "decisions.log"
    log.write_text(decision("203.0.113.1", " asn=64496 country=JP") + decision("192.0.2.1", " asn=64499 country=US"))
    with_database = replay(ruleset_of(tmp_path, "new"), [str(log)], TODAY)
    assert hits(with_database) == {"hoster": 1, "default": 1}
    assert with_database.rules[0][1].clients == {b"192.0.2.1"}
    assert with_database.facts.no_owner == 1
    of_log = replay(ruleset_of(tmp_path, "other", databases=False), [str(log)], TODAY)
    assert hits(of_log) == {"hoster": 1, "default": 1}
    assert of_log.rules[0][1].clients == {b"203.0.113.1"}
    assert of_log.facts.no_owner == 0


def test_a_missing_database_is_an_error_unless_owners_come_from_the_log(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES % ("missing.csv", "missing.csv"))
    with pytest.raises(ConfigErrors, match=r"missing\.csv cannot be read"):
        load(rules_path=path)
    found = replay(load(rules_path=path, databases=False).ruleset, log_of(tmp_path, *MAILS), TODAY)
    assert (hits(found), found.facts.no_owner) == ({"default": 3}, 3)


def test_without_rules_on_owners_there_is_no_note_about_them(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("rules:\n  - {name: own, match: {cidr: 10.0.0.0/8}, action: DUNNO}\n")
    assert replay(load(rules_path=path).ruleset, log_of(tmp_path, *MAILS), TODAY).facts.no_owner == 0
