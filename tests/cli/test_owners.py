"""The commands that use the systems and countries of clients: suggest, find, report, replay, explain and check."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Run

DATA = Path(__file__).parents[1] / "data"
INCIDENTS = (DATA / "maillog.sendmail", DATA / "maillog.postfix")


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """A ruleset whose database knows the network of the bulk mailer in `maillog.postfix`."""
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


def test_find_by_asn_looks_up_the_clients_of_a_mail_log_in_the_databases(run: Run, rules: Path) -> None:
    ended = run("find", "--by", "asn", "--json", "--rules", rules, *INCIDENTS)
    counts = {each["value"]: each["count"] for each in json.loads(ended.out)["values"]}
    without = json.loads(run("find", "--by", "asn", "--json", *INCIDENTS).out)["values"]
    assert [each["value"] for each in without] == ["-"]
    assert counts == {"64496": 7, "-": without[0]["count"] - 7}


def test_suggest_by_asn_without_any_system_explains_that_it_needs_databases(run: Run) -> None:
    ended = run("suggest", "--by", "asn", *INCIDENTS)
    assert (ended.status, ended.out) == (1, "")
    assert "no client's system is known; name a ruleset that declares databases: asn with --rules" in ended.err


DECISION = (
    "2026-11-21T17:16:00.123+09:00 REJECT id=7Q4K2M9X rule=x client=unknown[{}]{} rdns=missing state=RCPT"
    " from=<a@b.example> to=<joe@d.example> ruleset=3f9c2a1b ms=1.0\n"
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A decision log: a line without an owner, a line with system and country, a line with a country only."""
    path = tmp_path / "decisions.log"
    lines = (("180.222.51.1", ""), ("192.0.2.1", " asn=64497 country=JP"), ("192.0.2.2", " country=DE"))
    path.write_text("".join(DECISION.format(*line) for line in lines))
    return path


@pytest.mark.parametrize("number", ["64497", "AS64497", "as64497"])
def test_report_writes_the_mails_of_a_system(run: Run, log: Path, number: str) -> None:
    ended = run("report", "--asn", number, "--from", "postmaster@here.example", log)
    assert ended.status == 0
    assert "Subject: Abuse report: 1 refused mail from AS64497\n" in ended.out
    assert "Source-IP: 192.0.2.1\n" in ended.out
    assert "joe@d.example" not in ended.out


def test_report_of_a_country(run: Run, log: Path) -> None:
    ended = run("report", "--country", "de", "--from", "postmaster@here.example", log)
    assert ended.status == 0
    assert "This is an abuse report (RFC 5965) about DE." in ended.out
    assert "Source-IP: 192.0.2.2\n" in ended.out


def test_report_uses_the_database_for_lines_without_owner_and_for_mail_logs(run: Run, log: Path, rules: Path) -> None:
    wanted = ("report", "--asn", "64496", "--from", "postmaster@here.example")
    ended = run(*wanted, "--rules", rules, log)
    assert "Subject: Abuse report: 1 refused mail from AS64496 Example Bulk\n" in ended.out
    ended = run(*wanted, "--rules", rules, DATA / "maillog.postfix")
    assert "Subject: Abuse report: 7 refused mails from AS64496 Example Bulk\n" in ended.out
    ended = run(*wanted, DATA / "maillog.postfix")
    assert (ended.status, ended.out) == (1, "")
    assert "nothing from AS64496 was refused (a mail log has no systems and countries: name a ruleset" in ended.err


def test_replay_reads_no_database_if_owners_come_from_the_log(run: Run, log: Path, tmp_path: Path) -> None:
    rules = tmp_path / "replayed.yaml"
    rules.write_text(
        "databases: {asn: not-here.mmdb}\nrules:\n  - {name: hoster, match: {asn: 64497}, action: REJECT}\n"
    )
    ended = run("replay", "--rules", rules, log)
    assert ended.status == 1
    assert "not-here.mmdb cannot be read" in ended.err
    ended = run("replay", "--owners", "log", "--rules", rules, log)
    assert ended.status == 0
    assert re.search(r"^hoster +REJECT +0 +1 ", ended.out, re.MULTILINE)
    assert "1 mail: the client's address has no record" in ended.out


def test_the_shipped_rule_for_a_whole_hoster_can_be_switched_on(run: Run, tmp_path: Path) -> None:
    shipped = (Path(__file__).parents[2] / "config" / "rules.yaml").read_text()
    rule = re.search(r"  # - name: sakura\n(?:  #   .*\n)+", shipped)
    assert rule is not None
    switched_on = shipped.replace(rule[0], rule[0].replace("  # ", "  ")).replace(
        "\nlists:\n", "\ndatabases: {asn: asn.csv}\n\nlists:\n", 1
    )
    (tmp_path / "rules.yaml").write_text(switched_on)
    (tmp_path / "asn.csv").write_text(
        "49.212.0.0,49.212.255.255,9371,SAKURA Internet Inc.\n133.167.0.0,133.167.255.255,7684,SAKURA Internet Inc.\n"
        "160.16.0.0,160.16.255.255,9370,SAKURA Internet Inc.\n"
    )
    for address in ("49.212.217.64", "133.167.1.1", "160.16.1.1"):
        ended = run(
            "explain", "--rules", tmp_path / "rules.yaml", f"client_address={address}", "--reverse-dns", "missing"
        )
        assert ended.out.splitlines()[1].startswith("rule         sakura ")
    ended = run("check", "--rules", tmp_path / "rules.yaml")
    assert ended.status == 0
    assert "asn AS9371 SAKURA Internet Inc.: 1 IPv4 network (65,536 addresses)" in ended.out
