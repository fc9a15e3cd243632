"""A match that can never hold: what is refused holds for no request."""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from policyd.config import ruleset as loader
from policyd.core.engine import Outcome, trace
from tests.config.generated import identities, load_tree, requests, rulesets

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from policyd.core.identity import Identity
    from policyd.core.protocol import Request

TODAY = datetime.date(2026, 11, 21)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=rulesets(), asked=st.lists(st.tuples(requests(), identities()), min_size=20, max_size=20))
def test_a_match_that_is_refused_holds_for_no_request(
    tree: dict[str, Any], asked: list[tuple[Request, Identity]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, report = load_tree(tree, tmp_path)
    refused = {problem.rule for problem in report.problems if re.match("match can never hold", problem.message)}
    event("some refused" if refused else "none refused")
    if not refused:
        return
    with monkeypatch.context() as patch:
        patch.setattr(loader, "why_impossible", lambda verb, match: None)  # so that the ruleset can be asked
        rules_file, report = load_tree(tree, tmp_path)
    assert not report, [*report.lines()]
    assert rules_file.ruleset is not None
    for request, identity in asked:
        for looked in trace(rules_file.ruleset, request, identity, TODAY):
            if looked.rule.name in refused:
                assert looked.outcome in {Outcome.NO, Outcome.UNKNOWN}
