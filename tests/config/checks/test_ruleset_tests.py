"""The tests inside a ruleset. Rulesets whose tests fail are in tests/bad/tests-*.yaml, and the
messages for them in tests-*.expected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from policyd.config.load import load
from policyd.config.problems import ConfigErrors

if TYPE_CHECKING:
    from pathlib import Path

RULES = """
rules:
  - {name: observer, match: {helo_name: seen.example}, action: REJECT, mode: observe}
  - {name: bounce, match: {sender: '<>', recipient: list@example.com}, action: REJECT 5.7.1 no bounces}
  - {name: customer, match: {hostname: good.example.com}, action: DUNNO}
  - {name: suffix, match: {hostname_suffix: example.com}, action: 'REJECT 5.7.1 {hostname} {reverse_dns} {id}'}
  - {name: old, match: {cidr: 192.0.2.0/24}, action: REJECT, expires: 2026-01-01}
  - {name: missing, match: {reverse_dns: missing, cidr: 198.51.100.0/24}, action: DEFER 4.7.25 who are you}
  - {name: state, match: {protocol_state: DATA, request: smtpd_access_policy}, action: DEFER}
  - {name: broken, match: {reverse_dns: error, cidr: 203.0.113.0/24}, action: DEFER 4.4.3 later}
"""


@pytest.mark.parametrize(
    "test",
    [
        "given: {hostname: good.example.com}, expect: DUNNO, rule: customer",
        "given: {hostname: Good.Example.COM.}, expect: dunno, rule: customer",
        "given: {hostname: [a.other.example, good.example.com]}, expect: DUNNO, rule: customer",
        "given: {claimed: good.example.com}, expect: REJECT, rule: suffix, text: unknown mismatch",
        "given: {claimed: [x.other.example, good.example.com]}, expect: REJECT, rule: suffix",
        "given: {hostname: a.example.com}, expect: Reject, text: a.example.com verified",
        "given: {hostname: a.example.com, claimed: b.other.example}, expect: REJECT",
        "given: {hostname: a.example.com, reverse_dns: verified}, expect: REJECT",
        "given: {claimed: a.example.com, reverse_dns: error}, expect: DEFER, rule: suffix, text: 4.7.1 unknown error",
        "given: {reverse_dns: error}, expect: DUNNO, rule: default",
        "given: {reverse_dns: verified}, expect: DUNNO, rule: default",
        "given: {reverse_dns: error, reverse_client_name: a.example.com}, expect: DEFER, rule: suffix",
        "given: {client_address: 198.51.100.1}, expect: DEFER, rule: missing",
        "given: {client_address: 198.51.100.1, client_name: mail.example.net}, expect: DEFER, rule: missing",
        "given: {client_address: 198.51.100.1, hostname: a.example.net}, expect: DUNNO",
        "given: {client_address: unknown}, expect: DUNNO",
        "given: {client_address: 203.0.113.1, reverse_dns: error}, expect: DEFER, rule: broken, text: '4.4.3'",
        "given: {client_address: 192.0.2.1, hostname: a.example.net}, expect: REJECT, rule: old",
        "given: {client_address: 192.0.2.1, hostname: a.example.net, date: 2025-12-31}, expect: REJECT, rule: old",
        "given: {client_address: 192.0.2.1, hostname: a.example.net, date: 2026-01-01}, expect: DUNNO, rule: default",
        "given: {sender: '', recipient: list@example.com}, expect: REJECT, rule: bounce, text: no bounces",
        "given: {sender: '<>', recipient: list@example.com}, expect: REJECT, rule: bounce, text: 5.7.1 no bounces",
        "given: {sender: '<>', recipient: list@example.com, protocol_state: CONNECT}, expect: DUNNO",
        "given: {recipient: list@example.com}, expect: REJECT, rule: bounce",
        "given: {protocol_state: DATA, hostname: x.example.net}, expect: DEFER, rule: state",
        "given: {helo_name: seen.example, hostname: x.example.net}, expect: DUNNO, observed: observer",
        "given: {helo_name: seen.example, hostname: x.example.net}, expect: DUNNO, observed: [observer]",
        "given: {helo_name: other.example, hostname: x.example.net}, expect: DUNNO, observed: []",
        "given: {}, expect: DUNNO, rule: default, observed: []",
    ],
)
@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_a_ruleset_with_passing_tests_loads(test: str, mode: str, tmp_path: Path) -> None:
    """Tests decide as if the top-level mode were `enforce`, whatever it is."""
    path = tmp_path / "rules.yaml"
    path.write_text(f"mode: {mode}\n{RULES}tests:\n  - {{{test}}}\n")
    loaded = load(rules_path=path)
    assert loaded.ruleset.observe is (mode == "observe")


def test_every_failing_test_is_reported_at_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        "rules: []\ntests:\n"
        "  - {given: {}, expect: DUNNO}\n"
        "  - {given: {}, expect: REJECT}\n"
        "\n"
        "  - {given: {}, expect: DEFER}\n"
    )
    with pytest.raises(ConfigErrors) as caught:
        load(rules_path=path)
    assert [(problem.line, problem.column) for problem in caught.value.problems] == [(4, 5), (6, 5)]


def test_tests_are_not_run_if_the_rules_are_wrong(tmp_path: Path) -> None:
    """The tests would fail because of the wrong rules, and hide that cause."""
    path = tmp_path / "rules.yaml"
    path.write_text(
        "rules: [{name: a, match: {cidr: x}, action: REJECT}]\n"
        "tests: [{given: {client_address: 192.0.2.1}, expect: REJECT}, {given: {}, expct: x}]\n"
    )
    with pytest.raises(ConfigErrors) as caught:
        load(rules_path=path)
    assert [problem.message.partition(":")[0] for problem in caught.value.problems] == ["cidr", "test 2", "test 2"]


def test_a_test_that_cannot_be_read_does_not_hide_a_test_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("rules: []\ntests:\n  - {given: {}, expct: DUNNO}\n  - {given: {}, expect: REJECT}\n")
    with pytest.raises(ConfigErrors) as caught:
        load(rules_path=path)
    assert [problem.line for problem in caught.value.problems] == [3, 3, 4]
