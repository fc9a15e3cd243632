"""Reading rules.yaml into a ruleset. Messages are in tests/bad, answers in tests/cases."""

from __future__ import annotations

import datetime
import time
from typing import TYPE_CHECKING

import pytest

from policyd.config import rules_reader
from policyd.config.load import load
from policyd.config.problems import ConfigErrors
from policyd.core.ruleset import Action, Kind, Verb

if TYPE_CHECKING:
    from pathlib import Path

    from policyd.core.index import Ruleset


def load_text(text: str, folder: Path) -> Ruleset:
    (folder / "rules.yaml").write_text(text)
    return load(rules_path=folder / "rules.yaml").ruleset


def test_a_rule_is_read_as_written(tmp_path: Path) -> None:
    ruleset = load_text(
        """
lists: {l: [192.0.2.1]}
rules:
  - {name: first, match: {helo_name: x}, action: DUNNO}

  - name: A-b_c.1
    match: {cidr: [$l, 198.51.100.0/24], sasl_username: $$x}
    except: {hostname_suffix: .example.com}
    action: reject 5.7.1 no {id}
    mode: observe
    expires: 2027-03-31
    note: >-
      two
      lines
default: DEFER
mode: observe
""",
        tmp_path,
    )
    first, rule = ruleset.rules
    assert (first.observe, first.expires, first.note) == (False, None, "")
    assert (rule.name, rule.number, rule.line, rule.observe) == ("A-b_c.1", 1, 6, True)
    assert rule.action == Action(Verb.REJECT, "5.7.1", ("no ", "id", ""))
    assert (rule.expires, rule.note) == (datetime.date(2027, 3, 31), "two lines")
    assert [
        (condition.name, condition.subject, condition.kind, condition.values)
        for condition in (*rule.match, *rule.exceptions)
    ] == [
        ("cidr", "client_address", Kind.NETWORK, ("$l", "198.51.100.0/24")),
        ("sasl_username", "sasl_username", Kind.VALUE, ("$$x",)),
        ("hostname_suffix", "hostname", Kind.DOMAIN, (".example.com",)),
    ]
    numbers = [condition.number for each in ruleset.rules for condition in (*each.match, *each.exceptions)]
    assert numbers == [0, 1, 2, 3]
    assert (ruleset.default, ruleset.observe) == (Action(Verb.DEFER), True)


def test_a_missing_key_has_its_default(tmp_path: Path) -> None:
    ruleset = load_text("rules: []\n", tmp_path)
    assert (ruleset.rules, ruleset.default, ruleset.observe) == ((), Action(Verb.DUNNO), False)


def test_a_list_may_be_one_value(tmp_path: Path) -> None:
    ruleset = load_text(
        "lists: {l: 192.0.2.0/24}\nrules: [{name: a, match: {cidr: $l}, action: REJECT}]\n"
        "tests: [{given: {client_address: 192.0.2.1}, expect: REJECT}]\n",
        tmp_path,
    )
    assert ruleset.counts.networks == 1


def test_expressions_that_are_too_large_together_are_reported(tmp_path: Path) -> None:
    """Each expression compiles by itself; the set of all of them does not fit RE2's memory."""
    expressions = "\n".join(f"x{number}(a[bc]{{1000}})z" for number in range(300))
    (tmp_path / "l.txt").write_text(expressions)
    with pytest.raises(ConfigErrors) as caught:
        load_text(
            "lists: {l: {file: l.txt}}\nrules: [{name: a, match: {helo_name_regex: $l}, action: REJECT}]\n", tmp_path
        )
    assert caught.value.exit_status == 1
    (line,) = caught.value.lines
    assert line.startswith(f"{tmp_path}/rules.yaml: all expressions on one attribute together are too large for RE2")


def test_thousands_of_unknown_conditions_are_counted_quickly(tmp_path: Path) -> None:
    names = "".join(f"    reverse_clien_nam{number}: x\n" for number in range(20_000))
    began = time.process_time()
    with pytest.raises(ConfigErrors) as caught:
        load_text(f"rules:\n- name: a\n  action: REJECT\n  match:\n{names}", tmp_path)
    assert time.process_time() - began < 3  # 0.5 s; finding a suggestion for each takes 6 s
    assert caught.value.lines[0].endswith("unknown condition 'reverse_clien_nam0'; did you mean 'reverse_client_name'?")
    assert caught.value.lines[-1].endswith("and 19,900 more problems")


def test_too_many_entries_for_the_index_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replacement of `build_index` raises the error, because the real limit is 4 GiB of names."""

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("more than 4 GiB of names")

    monkeypatch.setattr(rules_reader, "build_index", refuse)
    with pytest.raises(ConfigErrors, match=r"rules\.yaml: is too large to be indexed: more than 4 GiB of names"):
        load_text("rules: []\n", tmp_path)


def test_a_second_load_reads_a_changed_list_again(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("192.0.2.1\n")
    text = "lists: {l: {file: l.txt}}\nrules: [{name: a, match: {cidr: $l}, action: REJECT}]\n"
    before = load_text(text, tmp_path)
    (tmp_path / "l.txt").write_text("192.0.2.1\n192.0.2.2\n")
    after = load_text(text, tmp_path)
    assert (before.counts.networks, after.counts.networks) == (1, 2)
    assert before.hash != after.hash
