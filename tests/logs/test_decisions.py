"""Decisions from files of the decision log."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest

from policyd.logs.decisions import DecisionCounts, decisions
from policyd.logs.files import LogError
from tests.decision_log.test_reader import JSON, TEXT

if TYPE_CHECKING:
    from pathlib import Path


def test_the_decisions_of_a_rotated_set_come_in_order(tmp_path: Path) -> None:
    older, newer = tmp_path / "decisions.log.1.gz", tmp_path / "decisions.log"
    older.write_bytes(gzip.compress(TEXT + b"\n" + TEXT[:60] + b"\n"))
    newer.write_bytes(json.dumps(JSON | {"id": "NEWER000"}).encode() + b"\n")
    counts = DecisionCounts()
    found = [decision.id for batch in decisions([str(older), str(newer)], counts) for decision in batch]
    assert found == [b"7Q4K2M9X", b"NEWER000"]
    assert (counts.lines, counts.decisions) == (3, 2)


def test_a_log_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mail.log").write_text("Nov 21 17:16:00 mx postfix/smtpd[12]: connect from unknown[192.0.2.1]\n")
    with pytest.raises(LogError, match=r"mail.log: not a decision log: none of its 1 lines"):
        list(decisions([str(tmp_path / "mail.log")], DecisionCounts()))
