"""`policyd stats` about DNS lists: whether a list is useful."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyd.tools.stats.collect import collect
from policyd.tools.stats.output import stats_as_json

if TYPE_CHECKING:
    from pathlib import Path


def line(action: str, sender: str, lists: str) -> str:
    return (
        f"2026-11-21T17:16:00.123+09:00 {action} id=7Q4K2M9X client=unknown[192.0.2.1] rdns=missing lists={lists}"
        f" state=RCPT from=<{sender}> to=<c@d.example> ruleset=3f9c2a1b ms=12.1\n"
    )


def test_each_list_has_its_answers_and_listed_mails_that_were_delivered(tmp_path: Path) -> None:
    log = tmp_path / "decisions.log"
    log.write_text(
        line("REJECT", "a@x.example", "zen:127.0.0.2,psbl:-")
        + line("REJECT", "b@x.example", "zen:127.0.0.2,psbl:127.0.0.2")
        + line("DUNNO", "b@x.example", "zen:-,psbl:-")
        + line("DUNNO", "c@x.example", "psbl:127.0.0.2")
        + line("DUNNO", "d@x.example", "zen:?timeout,psbl:?out_of_use")
    )
    lists = stats_as_json(collect([str(log)]))["lists"]
    assert lists == {
        "psbl": {"asked": 5, "listed": 2, "listed_alone": 1, "unknown": 1, "also_delivered": 2},
        "zen": {"asked": 4, "listed": 2, "listed_alone": 1, "unknown": 1, "also_delivered": 1},
    }
