"""`policyd stats` about greylisting and counters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyd.tools.stats.html import page
from policyd.tools.stats.output import stats_as_json
from tests.tools.decision_lines import line
from tests.tools.stats.test_stats import printed, stats_of

if TYPE_CHECKING:
    from pathlib import Path


def greylist_line(action: str, word: str, recipient: str = "c@d.example") -> str:
    return line(action, rule="", recipient=recipient, more=f"greylist={word}")


def test_only_the_words_of_greylisting_are_counted(tmp_path: Path) -> None:
    words = [("DEFER_IF_PERMIT", "new"), ("DEFER_IF_PERMIT", "new"), ("DUNNO", "passed"), ("DUNNO", "nonsense")]
    stats = stats_of(tmp_path, *(greylist_line(action, word) for action, word in words))
    assert stats_as_json(stats)["greylist"] == {"new": 2, "passed": 1}
    assert "greylisting: new 2, passed 1; 1 mail deferred, 1 passed later, 0 never came back\n" in printed(stats)


def test_mails_that_never_came_back_are_counted_once_each(tmp_path: Path) -> None:
    tries = [
        ("DEFER_IF_PERMIT", "new", "back@d.example"),
        ("DEFER_IF_PERMIT", "early", "back@d.example"),
        ("DUNNO", "passed", "back@d.example"),
        ("DEFER_IF_PERMIT", "new", "gone@d.example"),
        ("DEFER_IF_PERMIT", "early", "gone@d.example"),
        ("DUNNO", "known", "another@d.example"),
    ]
    stats = stats_of(tmp_path, *(greylist_line(action, word, recipient) for action, word, recipient in tries))
    assert stats_as_json(stats)["greylisted_mails"] == {"deferred": 2, "passed": 1, "never_came_back": 1}
    assert "2 mails deferred, 1 passed later, 1 never came back" in page(stats)


def test_each_counter_has_the_decisions_of_the_rules_that_compare_it(tmp_path: Path) -> None:
    rules = (
        "counters: {tries: {count: requests, per: client_address, within: 1h}}\n"
        "rules:\n"
        "  - {name: many, match: {counter: tries > 9}, action: REJECT}\n"
        "  - {name: some, match: {counter: tries >= 5}, action: DEFER, mode: observe}\n"
    )
    stats = stats_of(tmp_path, line("REJECT", rule="many"), line("DUNNO", rule="", more="observed=some"), rules=rules)
    assert stats_as_json(stats)["counters"] == {"tries": {"rules": ["many", "some"], "decisions": 1, "observed": 1}}
    assert "counter tries: 1 decision, 1 observed (rules: many, some)\n" in printed(stats)
