"""A match that can never hold: a refused match holds for no generated request."""

from __future__ import annotations

import datetime
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from policyd.config import rules_reader
from policyd.config.load import load
from policyd.config.problems import ConfigErrors
from policyd.core.engine import Outcome, trace
from policyd.core.facts import Facts
from tests.config.generated import identities, load_tree, requests, rulesets

if TYPE_CHECKING:
    from pathlib import Path

    from policyd.core.identity import Identity
    from policyd.core.protocol import Request

TODAY = datetime.date(2026, 11, 21)


@pytest.mark.parametrize(("values", "others"), [("client_address", "cidr"), ("helo_name", "helo_name_suffix")])
def test_values_beside_a_long_list_are_looked_up_in_it(values: str, others: str, tmp_path: Path) -> None:
    suffix = ".example" if others == "helo_name_suffix" else ""
    lines = (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}{suffix}\n" for number in range(300_000))
    (tmp_path / "list.txt").write_text("".join(lines))
    addresses = ", ".join(f"192.0.2.{number}" for number in range(100))
    match = f"{{{values}: [{addresses}], {others}: $l}}"
    (tmp_path / "rules.yaml").write_text(
        f"lists: {{l: {{file: list.txt}}}}\nrules: [{{name: a, match: {match}, action: DEFER}}]\n"
    )
    began = time.process_time()
    with pytest.raises(ConfigErrors, match="match can never hold"):
        load(None, tmp_path / "rules.yaml")
    assert time.process_time() - began < 2  # 0.4 s; searching the list for each value takes 5 s


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=rulesets(), cases=st.lists(st.tuples(requests(), identities()), min_size=20, max_size=20))
def test_a_refused_match_holds_for_no_request(
    tree: dict[str, Any], cases: list[tuple[Request, Identity]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, report = load_tree(tree, tmp_path)
    refused = {problem.rule for problem in report.problems if re.match("match can never hold", problem.message)}
    event("some refused" if refused else "none refused")
    if not refused:
        return
    with monkeypatch.context() as patch:
        # Without the check, the ruleset loads and decides requests.
        patch.setattr(rules_reader, "why_impossible", lambda verb, match: None)
        rules_file, report = load_tree(tree, tmp_path)
    assert not report, [*report.lines()]
    assert rules_file.ruleset is not None
    for request, identity in cases:
        for rule_trace in trace(rules_file.ruleset, request, Facts(identity), TODAY):
            if rule_trace.rule.name in refused:
                assert rule_trace.outcome in {Outcome.NO, Outcome.UNKNOWN}
