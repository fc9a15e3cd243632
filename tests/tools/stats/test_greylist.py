"""`policyd stats` and greylisting: how often each of its words was said."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console

from policyd.tools.stats.collect import collect
from policyd.tools.stats.output import print_stats, stats_as_json

if TYPE_CHECKING:
    from pathlib import Path


def line(action: str, word: str) -> str:
    return (
        f"2026-11-21T17:16:00.123+09:00 {action} id=7Q4K2M9X client=unknown[192.0.2.1] rdns=missing greylist={word}"
        f" state=RCPT from=<a@b.example> to=<c@d.example> ruleset=3f9c2a1b ms=12.1\n"
    )


def test_the_words_of_greylisting_are_counted_and_no_others(tmp_path: Path) -> None:
    log = tmp_path / "decisions.log"
    words = [("DEFER_IF_PERMIT", "new"), ("DEFER_IF_PERMIT", "new"), ("DUNNO", "passed"), ("DUNNO", "nonsense")]
    log.write_text("".join(line(*each) for each in words))
    stats = collect([str(log)])
    assert stats_as_json(stats)["greylist"] == {"new": 2, "passed": 1}
    text = io.StringIO()
    print_stats(Console(file=text, width=100), stats)
    assert "greylisting: new 2, passed 1\n" in text.getvalue()
