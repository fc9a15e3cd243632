"""`policyd suggest` with the autonomous systems of clients: from a database, or from the decision log."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from policyd.config.load import load
from policyd.tools.suggest.candidates import suggest
from policyd.tools.suggest.output import as_json, as_yaml
from tests.tools.replay.test_replay import log_of, mail

if TYPE_CHECKING:
    from policyd.core.index import Ruleset
    from policyd.tools.suggest.candidates import Suggestions

DATA = Path(__file__).parents[2] / "data"
INCIDENTS = [str(DATA / "maillog.sendmail"), str(DATA / "maillog.postfix")]
TODAY = datetime.date(2026, 11, 21)
REFUSED = "554 5.7.1 no"

# The networks of the first incident's hoster, and the network of the second incident.
SAKURA = """\
49.212.0.0,49.212.255.255,9371,SAKURA Internet Inc.
133.167.0.0,133.167.255.255,7684,SAKURA Internet Inc.
133.242.0.0,133.242.255.255,9370,SAKURA Internet Inc.
153.126.0.0,153.127.255.255,7684,SAKURA Internet Inc.
160.16.0.0,160.16.255.255,9370,SAKURA Internet Inc.
180.222.32.0,180.222.63.255,64496,Example Bulk
219.94.128.0,219.94.255.255,9371,SAKURA Internet Inc.
"""
TWO = "192.0.2.0,192.0.2.255,64496,Example Internet Inc.\n198.18.0.0,198.255.255.255,64497,Example Hosting\n"


def ruleset_of(folder: Path, systems: str) -> Ruleset:
    (folder / "asn.csv").write_text(systems)
    (folder / "rules.yaml").write_text(
        "databases: {asn: asn.csv}\nrules:\n  - {name: own, match: {cidr: 10.0.0.0/8}, action: DUNNO}\n"
    )
    return load(rules_path=folder / "rules.yaml").ruleset


def matches(found: Suggestions) -> list[tuple[str, str]]:
    return [(candidate.condition, candidate.value) for candidate in found.candidates]


def test_the_systems_of_the_incidents_are_named_and_no_hoster_is_proposed(tmp_path: Path) -> None:
    found = suggest(INCIDENTS, ruleset=ruleset_of(tmp_path, SAKURA), today=TODAY)
    assert matches(found) == [
        ("hostname_suffix", "vs.sakura.ne.jp"),
        ("cidr", "180.222.51.0/24"),
        ("sender_regex", r"^rainbow\+err[a-z0-9]+@"),
    ]
    suffix, network, senders = found.candidates
    assert [(system.asn, system.clients) for system in suffix.systems] == [(9370, 13), (9371, 8), (7684, 5)]
    assert suffix.remarks[0] == (
        "clients by system: AS9370 SAKURA Internet Inc. (13), AS9371 SAKURA Internet Inc. (8), "
        "AS7684 SAKURA Internet Inc. (5)"
    )
    assert network.remarks[0] == "clients by system: AS64496 Example Bulk (6)"
    assert senders.systems == []


def test_by_asn_proposes_the_systems_as_rules_that_check_accepts(tmp_path: Path) -> None:
    found = suggest(INCIDENTS, by_asn=True, ruleset=ruleset_of(tmp_path, SAKURA), today=TODAY)
    assert [match for match in matches(found) if match[0] != "sender_regex"] == [
        ("asn", "AS9370"),
        ("asn", "AS9371"),
        ("asn", "AS64496"),
        ("asn", "AS7684"),
    ]
    path = tmp_path / "candidates.yaml"
    path.write_text(as_yaml(found, 20, (), str(tmp_path / "asn.csv")))
    rules = load(rules_path=path).ruleset.rules
    assert [rule.name for rule in rules if rule.match[0].name == "asn"] == [
        "system-as9370",
        "system-as9371",
        "system-as64496",
        "system-as7684",
    ]
    first = as_json(found, 20)["candidates"][0]
    assert first["match"] == {"asn": "AS9370"}
    assert first["systems"] == [{"asn": 9370, "asn_name": "SAKURA Internet Inc.", "clients": 13}]


def refused(pattern: str, numbers: range) -> list[str]:
    return [mail(n, f"{pattern.format(n)}[198.{n}.100.7]", status=REFUSED) for n in numbers]


def test_a_system_is_proposed_if_several_suffixes_lie_in_it(tmp_path: Path) -> None:
    ruleset = ruleset_of(tmp_path, TWO)
    one = refused("h{}.dyn.one.example", range(20, 25))
    assert ("asn", "AS64497") not in matches(suggest(log_of(tmp_path, *one), ruleset=ruleset, today=TODAY))
    two = refused("x{}.pool.two.example", range(30, 35))
    wanted = mail(90, "mail.customer.example[198.90.100.7]", sender="a@customer.example")
    found = suggest(log_of(tmp_path, *one, *two, wanted), ruleset=ruleset, today=TODAY)
    (system,) = (candidate for candidate in found.candidates if candidate.condition == "asn")
    assert system.value == "AS64497"
    assert (system.evidence.refused, system.evidence.clients, system.evidence.delivered) == (10, 10, 1)
    assert system.exceptions == {"hostname": ["mail.customer.example"]}
    # The comments about the system begin with delivered mails.
    text = as_yaml(found, 20)
    before, _, _ = text.partition("- name: system-as64497")
    comments = before.rsplit("\n\n", 1)[1].splitlines()
    assert comments[0] == (
        "  # 1 mail delivered from this system, for example from "
        "mail.customer.example[198.90.100.7] <a@customer.example>"
    )


def test_suffixes_in_different_systems_do_not_propose_a_system(tmp_path: Path) -> None:
    mails = refused("h{}.dyn.one.example", range(20, 25))
    mails += [mail(60 + n, f"x{n}.pool.two.example[192.0.2.{n}]", status=REFUSED) for n in range(5)]
    found = suggest(log_of(tmp_path, *mails), ruleset=ruleset_of(tmp_path, TWO), today=TODAY)
    assert "asn" not in {condition for condition, _ in matches(found)}


def decision(number: int, asn: str) -> str:
    return (
        f"2026-11-21T17:16:{number:02}.123+09:00 REJECT id=7Q4K2M9X rule=x client=h{number}.dyn.example.net"
        f"[198.51.{number}.7]{asn} rdns=verified state=RCPT from=<a@b.example> to=<c@d.example> ruleset=3f9c2a1b ms=1.0"
        ' reply="5.7.1 no"\n'
    )


def test_without_a_database_the_systems_come_from_the_decision_log(tmp_path: Path) -> None:
    log = tmp_path / "decisions.log"
    log.write_text("".join(decision(n, " asn=64501 country=DE") for n in range(4)))
    (suffix,) = suggest([str(log)]).candidates
    assert (suffix.value, suffix.remarks) == ("dyn.example.net", ["clients by system: AS64501 (4)"])
    assert matches(suggest([str(log)], by_asn=True)) == [("asn", "AS64501")]
    # A database with a record takes precedence, and a database without a record changes nothing.
    ruleset = ruleset_of(tmp_path, "198.51.0.0,198.51.1.255,64502,Bought\n")
    found = suggest([str(log)], ruleset=ruleset, today=TODAY, min_clients=2, by_asn=True)
    assert sorted(matches(found)) == [("asn", "AS64501"), ("asn", "AS64502")]


def test_a_name_in_a_database_cannot_leave_its_comment(tmp_path: Path) -> None:
    ruleset = ruleset_of(tmp_path, '180.222.32.0,180.222.63.255,64496,"Evil\x85rules: \x1b[31m"\n')
    found = suggest(INCIDENTS, by_asn=True, ruleset=ruleset, today=TODAY)
    text = as_yaml(found, 20, (), str(tmp_path / "asn.csv"))
    assert text.isascii()
    assert "\x1b" not in text
