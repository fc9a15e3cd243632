"""Warnings. Their messages are in tests/bad/warn-*.expected."""

from __future__ import annotations

import datetime
import time
from typing import TYPE_CHECKING

import pytest

from policyd.config.checks.warnings import expiry_notice
from policyd.config.load import load
from policyd.core.ruleset import Action, Rule, Verb

if TYPE_CHECKING:
    from pathlib import Path

TODAY = datetime.date(2026, 11, 21)


def test_warnings_are_collected_only_on_request(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("lists: {l: [x]}\nrules: []\n")
    assert load(rules_path=tmp_path / "rules.yaml").warnings == ()
    (warning,) = load(rules_path=tmp_path / "rules.yaml", warnings_on=TODAY).warnings
    assert str(warning) == f"{tmp_path}/rules.yaml:1:9: warning: list 'l' is not used by any rule"


@pytest.mark.parametrize(
    ("expires", "notice"),
    [
        (None, ""),
        ("2026-12-06", ""),
        ("2026-12-05", "expires on 2026-12-05, in 14 days"),
        ("2026-11-22", "expires on 2026-11-22, in 1 day"),
        ("2026-11-21", "expired on 2026-11-21, so it is skipped; remove it or set another date"),
        ("2020-01-01", "expired on 2020-01-01, so it is skipped; remove it or set another date"),
    ],
)
def test_a_notice_begins_two_weeks_before_a_rule_expires(expires: str | None, notice: str) -> None:
    date = datetime.date.fromisoformat(expires) if expires else None
    rule = Rule("a", 0, (), (), Action(Verb.REJECT), expires=date)
    assert expiry_notice(rule, TODAY) == notice
    assert rule.expired(TODAY) is notice.startswith("expired")


def test_the_last_possible_date_of_expiry_causes_no_overflow() -> None:
    rule = Rule("a", 0, (), (), Action(Verb.REJECT), expires=datetime.date.max)
    assert expiry_notice(rule, TODAY) == ""
    assert expiry_notice(rule, datetime.date.max - datetime.timedelta(days=1)) == "expires on 9999-12-31, in 1 day"


@pytest.mark.parametrize(
    ("condition", "entry"), [("cidr", "{0}.{1}.{2}.0/24"), ("hostname_suffix", "h{0}-{1}-{2}.example")]
)
@pytest.mark.slow
def test_a_long_list_with_duplicates_is_checked_quickly(condition: str, entry: str, tmp_path: Path) -> None:
    entries = [entry.format(n >> 16, (n >> 8) & 255, n & 255) for n in range(100_000)]
    entries[90_000] = entries[100]
    (tmp_path / "l.txt").write_text("\n".join(entries))
    (tmp_path / "rules.yaml").write_text(
        f"lists: {{l: {{file: l.txt}}}}\nrules: [{{name: a, match: {{{condition}: $l}}, action: REJECT}}]\n"
    )
    started = time.process_time()
    (line,) = load(rules_path=tmp_path / "rules.yaml", warnings_on=TODAY).warning_lines
    assert (
        f"l.txt:90001:1: warning: rule 'a': {condition}: list 'l': '{entries[100]}' is a duplicate (first at line 101)"
        in line
    )
    assert time.process_time() - started < 5


def test_more_than_a_hundred_warnings_of_a_file_are_counted(tmp_path: Path) -> None:
    rules = "".join(f"  - {{name: r{n}, match: {{sender: a{n}@b.example}}, action: DUNNO}}\n" for n in range(150))
    (tmp_path / "rules.yaml").write_text(f"rules:\n{rules}")
    lines = load(rules_path=tmp_path / "rules.yaml", warnings_on=TODAY).warning_lines
    assert len(lines) == 101
    assert lines[-1] == f"{tmp_path}/rules.yaml: and 50 more problems"
