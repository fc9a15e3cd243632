"""The probe that `policyd doctor` sends to the daemon is not a mail, and no tool treats it as a mail."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.tools.decision_lines import line

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Run

# The probe as policyd 0.1 logged it, in both formats.
PROBE = line("DEFER", id="PR0BE001", rule="no-reverse-dns", client="unknown[192.0.2.1]", more="instance=policyd-doctor")
AS_JSON = (
    '{"time": "2026-11-21T20:11:43.932+00:00", "action": "DEFER", "id": "PR0BE002", "rule": "no-reverse-dns", '
    '"client_address": "192.0.2.1", "protocol_state": "RCPT", "sender": "policyd-doctor@sender.invalid", '
    '"recipient": "policyd-doctor@recipient.invalid", "instance": "policyd-doctor", "ruleset": "2b3f1dae"}\n'
)
RULES = "rules:\n  - {name: all, match: {cidr: 192.0.2.0/24}, action: REJECT}\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "decisions.log"
    path.write_text(3 * PROBE + line(id="0A1B2C3D") + 2 * AS_JSON)
    return path


def test_stats_do_not_count_the_probe(run: Run, log: Path) -> None:
    found = json.loads(run("stats", "--json", log).out)
    assert found["decisions"] == 1
    assert "192.0.2" not in json.dumps(found)


def test_replay_does_not_count_the_probe_as_a_delivered_mail(run: Run, log: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(RULES)
    log.write_text(log.read_text().replace("DEFER", "DUNNO"))
    ended = run("replay", "--rules", tmp_path / "rules.yaml", "--fail-if-delivered", "0", "--json", log)
    assert ended.status == 0, ended.err
    assert json.loads(ended.out)["transactions"] == 1


def test_suggest_does_not_propose_the_probe(run: Run, log: Path) -> None:
    assert "192.0.2" not in run("suggest", "--min-clients", "1", log).out


def test_tail_and_report_leave_out_the_probe(run: Run, log: Path) -> None:
    assert [line.split()[2] for line in run("tail", "--no-follow", log).out.splitlines()] == ["id=0A1B2C3D"]
    ended = run("report", "--network", "192.0.2.0/24", "--from", "postmaster@example.com", log)
    assert (ended.status, ended.out) == (1, "")
