"""`policyd stats` about greylisting and counters."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console

from policyd.config.load import load
from policyd.tools.stats.collect import collect
from policyd.tools.stats.html import page
from policyd.tools.stats.output import print_stats, stats_as_json

if TYPE_CHECKING:
    from pathlib import Path


def line(action: str, word: str) -> str:
    return (
        f"2026-11-21T17:16:00.123+09:00 {action} id=7Q4K2M9X client=unknown[192.0.2.1] rdns=missing greylist={word}"
        f" state=RCPT from=<a@b.example> to=<c@d.example> ruleset=3f9c2a1b ms=12.1\n"
    )


def test_only_the_words_of_greylisting_are_counted(tmp_path: Path) -> None:
    log = tmp_path / "decisions.log"
    words = [("DEFER_IF_PERMIT", "new"), ("DEFER_IF_PERMIT", "new"), ("DUNNO", "passed"), ("DUNNO", "nonsense")]
    log.write_text("".join(line(action, word) for action, word in words))
    stats = collect([str(log)])
    assert stats_as_json(stats)["greylist"] == {"new": 2, "passed": 1}
    text = io.StringIO()
    print_stats(Console(file=text, width=100), stats)
    assert "greylisting: new 2, passed 1; 1 mail deferred, 1 passed later, 0 never came back\n" in text.getvalue()


def test_mails_that_never_came_back_are_counted_once_each(tmp_path: Path) -> None:
    log = tmp_path / "decisions.log"
    tries = [
        ("DEFER_IF_PERMIT", "new", "back"),
        ("DEFER_IF_PERMIT", "early", "back"),
        ("DUNNO", "passed", "back"),
        ("DEFER_IF_PERMIT", "new", "gone"),
        ("DEFER_IF_PERMIT", "early", "gone"),
        ("DUNNO", "known", "another"),
    ]
    log.write_text("".join(line(action, word).replace("c@d", f"{recipient}@d") for action, word, recipient in tries))
    stats = collect([str(log)])
    assert stats_as_json(stats)["greylisted_mails"] == {"deferred": 2, "passed": 1, "never_came_back": 1}
    assert "2 mails deferred, 1 passed later, 1 never came back" in page(stats)


def test_each_counter_has_the_decisions_of_the_rules_that_compare_it(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "counters: {tries: {count: requests, per: client_address, within: 1h}}\n"
        "rules:\n"
        "  - {name: many, match: {counter: tries > 9}, action: REJECT}\n"
        "  - {name: some, match: {counter: tries >= 5}, action: DEFER, mode: observe}\n"
    )
    log = tmp_path / "decisions.log"
    log.write_text(
        line("REJECT", "-").replace(" greylist=-", "").replace("id=7Q4K2M9X", "id=7Q4K2M9X rule=many")
        + line("DUNNO", "-").replace(" greylist=-", " observed=some")
    )
    stats = collect([str(log)], ruleset=load(None, rules).ruleset)
    assert stats_as_json(stats)["counters"] == {"tries": {"rules": ["many", "some"], "decisions": 1, "observed": 1}}
    text = io.StringIO()
    print_stats(Console(file=text, width=100), stats)
    assert "counter tries: 1 decision, 1 observed (rules: many, some)\n" in text.getvalue()
