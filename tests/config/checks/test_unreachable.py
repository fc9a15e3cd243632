"""Unreachable rules: a reported rule makes no difference to any request, and obvious cases are reported."""

from __future__ import annotations

import datetime
import random
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from policyd.config.checks.coverage import Coverage
from policyd.config.checks.unreachable import unreachable
from policyd.config.load import load
from policyd.core.engine import Decision, decide
from policyd.core.facts import Facts
from tests.config.generated import identities, load_tree, requests, rulesets

if TYPE_CHECKING:
    from pathlib import Path

    from policyd.config.written import RulesFile, WrittenRule
    from policyd.core.identity import Identity
    from policyd.core.protocol import Request


def found_in(rules_file: RulesFile) -> list[tuple[WrittenRule, WrittenRule]]:
    assert rules_file.ruleset is not None
    return [*unreachable(rules_file.rules, Coverage(rules_file.rules, rules_file.ruleset.index))]


TODAY = datetime.date(2026, 11, 21)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=rulesets(), cases=st.lists(st.tuples(requests(), identities()), min_size=20, max_size=20))
def test_removing_an_unreachable_rule_changes_nothing(
    tree: dict[str, Any], cases: list[tuple[Request, Identity]], tmp_path: Path
) -> None:
    """The answer, the effect of a DNS failure, and the observed rules stay the same for every request."""
    rules_file, report = load_tree(tree, tmp_path)
    dead = set() if report else {written.rule.name for written, _ in found_in(rules_file)}
    event("some unreachable" if dead else "none unreachable")
    if not dead:
        return
    left = {**tree, "rules": [rule for rule in tree["rules"] if rule["name"] not in dead]}
    without, report = load_tree(left, tmp_path)
    assert not report
    assert rules_file.ruleset is not None
    assert without.ruleset is not None
    for request, identity in cases:
        before = decide(rules_file.ruleset, request, Facts(identity), TODAY)
        after = decide(without.ruleset, request, Facts(identity), TODAY)
        assert isinstance(before, Decision)
        assert isinstance(after, Decision)
        assert (before.verb, before.rule_name, before.downgraded, before.observed) == (
            after.verb,
            after.rule_name,
            after.downgraded,
            after.observed,
        )


@pytest.mark.slow
def test_ten_thousand_rules_are_checked_quickly(tmp_path: Path) -> None:
    """Each rule except the last has values of its own; the cost must not grow quadratically."""
    rng = random.Random(1)
    rules = "".join(
        f"  - name: r{n}\n"
        f"    match: {{hostname_suffix: d{n}.example, cidr: {rng.randrange(224)}.{n >> 8}.{n & 255}.0/24}}\n"
        f"    except: {{helo_name: h{n}.example}}\n"
        "    action: REJECT\n"
        f"  - {{name: s{n}, match: {{sender_domain: d{n}.example}}, action: REJECT}}\n"
        for n in range(5_000)
    )
    path = tmp_path / "rules.yaml"
    path.write_text(f"rules:\n{rules}  - {{name: last, match: {{sender: x@d4999.example}}, action: REJECT}}\n")
    rules_file = load(rules_path=path).rules_file
    started = time.process_time()
    found = [(written.rule.name, cover.rule.name) for written, cover in found_in(rules_file)]
    assert found == [("last", "s4999")]
    assert time.process_time() - started < 2  # 0.1 s; comparing all pairs takes 60 s


@pytest.mark.slow
def test_rules_that_share_a_condition_are_not_compared_in_pairs(tmp_path: Path) -> None:
    rules = "".join(
        f"  - {{name: r{n}, match: {{protocol_state: RCPT, sender_domain: d{n}.example}}, action: REJECT}}\n"
        for n in range(2_000)
    )
    last = "  - {name: last, match: {sender: x@d1999.example, protocol_state: RCPT}, action: REJECT}\n"
    (tmp_path / "rules.yaml").write_text(f"rules:\n{rules}{last}")
    rules_file = load(rules_path=tmp_path / "rules.yaml").rules_file
    started = time.process_time()
    found = [(written.rule.name, cover.rule.name) for written, cover in found_in(rules_file)]
    assert found == [("last", "r1999")]
    assert time.process_time() - started < 2  # 0.1 s; comparing each rule with all above it takes 10 s


@pytest.mark.slow
def test_a_covered_rule_covers_no_other_rule(tmp_path: Path) -> None:
    rules = "".join(f"  - {{name: r{number}, match: {{helo_name: x}}, action: DEFER}}\n" for number in range(5_000))
    (tmp_path / "rules.yaml").write_text(f"rules:\n{rules}")
    rules_file = load(rules_path=tmp_path / "rules.yaml").rules_file
    started = time.process_time()
    found = [(written.rule.name, cover.rule.name) for written, cover in found_in(rules_file)]
    assert found == [(f"r{number}", "r0") for number in range(1, 5_000)]
    assert time.process_time() - started < 2  # 0.03 s; comparing each rule with all above it takes 10 s


def test_a_long_list_covers_its_entries(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("".join(f"h{number}.example\n" for number in range(150_000)))
    (tmp_path / "rules.yaml").write_text(
        "lists: {l: {file: l.txt}}\n"
        "rules:\n"
        "  - {name: a, match: {hostname_suffix: $l}, action: REJECT}\n"
        "  - {name: b, match: {hostname_suffix: $l, helo_name: x.example}, action: DEFER}\n"
        "  - {name: c, match: {hostname_suffix: h1.example}, action: DEFER}\n"
    )
    rules_file = load(rules_path=tmp_path / "rules.yaml").rules_file
    found = [(written.rule.name, cover.rule.name) for written, cover in found_in(rules_file)]
    assert found == [("b", "a"), ("c", "a")]


def test_networks_that_a_long_list_covers_together_are_covered(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("".join(f"10.{n >> 8}.{n & 255}.0/24\n" for n in range(10_000)) + "2001:db8::/32\n")
    (tmp_path / "rules.yaml").write_text(
        "lists: {l: {file: l.txt}}\n"
        "rules:\n"
        "  - {name: a, match: {cidr: [$l, 192.0.2.0/25]}, action: REJECT}\n"
        "  - {name: b, match: {cidr: [10.1.0.0/16, 192.0.2.7, '2001:db8:1::/48']}, action: DEFER}\n"
        "  - {name: c, match: {cidr: 10.0.0.0/8}, action: DEFER}\n"
        "  - {name: d, match: {cidr: 192.0.2.0/24}, action: DEFER}\n"
        "  - {name: e, match: {cidr: [10.1.0.0/16, 'fe80::/16']}, action: DEFER}\n"
    )
    assert [
        (written.rule.name, cover.rule.name)
        for written, cover in found_in(load(rules_path=tmp_path / "rules.yaml").rules_file)
    ] == [("b", "a")]
