"""`policyd stats` about DNS lists: whether a list is useful."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyd.tools.stats.output import stats_as_json
from tests.tools.decision_lines import line
from tests.tools.stats.test_stats import stats_of

if TYPE_CHECKING:
    from pathlib import Path


def list_line(action: str, sender: str, lists: str) -> str:
    return line(action, sender=sender).replace("rdns=verified", f"rdns=verified lists={lists}")


def test_each_list_has_its_answers_and_listed_mails_that_were_delivered(tmp_path: Path) -> None:
    stats = stats_of(
        tmp_path,
        list_line("REJECT", "a@x.example", "zen:127.0.0.2,psbl:-"),
        list_line("REJECT", "b@x.example", "zen:127.0.0.2,psbl:127.0.0.2"),
        list_line("DUNNO", "b@x.example", "zen:-,psbl:-"),
        list_line("DUNNO", "c@x.example", "psbl:127.0.0.2"),
        list_line("DUNNO", "d@x.example", "zen:?timeout,psbl:?out_of_use"),
    )
    assert stats_as_json(stats)["lists"] == {
        "psbl": {"asked": 5, "listed": 2, "listed_alone": 1, "unknown": 1, "also_delivered": 2},
        "zen": {"asked": 4, "listed": 2, "listed_alone": 1, "unknown": 1, "also_delivered": 1},
    }
