"""The lines of `policyd explain` about a rule's conditions."""

from __future__ import annotations

import datetime
import io
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from policyd.config.load import load
from policyd.core.engine import Decision, decide
from policyd.core.facts import Facts
from policyd.core.identity import Status, given_identity
from policyd.core.protocol import Request
from policyd.tools.explain import as_tables, explain

if TYPE_CHECKING:
    from pathlib import Path

TODAY = datetime.date(2026, 11, 21)
RULES = """
counters: {tries: {count: requests, per: client_address, within: 1h}}
rules:
  - {name: generic, match: {hostname_generic: yes}, action: DEFER, mode: observe}
  - {name: many, match: {counter: tries > 99}, action: DEFER}
  - {name: some, match: {counter: tries > 9}, action: DEFER}
"""


@pytest.mark.parametrize(
    ("hostname", "line"),
    [
        ("mail.example.com", "hostname_generic: mail.example.com does not contain the client's address"),
        ("192-0-2-1.example.com", "hostname_generic: 192-0-2-1.example.com contains the client's address"),
        ("mail.example.com", "counter: tries = 10 does not reach tries > 99"),
        ("mail.example.com", "counter: tries = 10 reaches tries > 9"),
    ],
)
def test_conditions_without_a_list_of_entries_are_explained(tmp_path: Path, hostname: str, line: str) -> None:
    (tmp_path / "rules.yaml").write_text(RULES)
    loaded = load(rules_path=tmp_path / "rules.yaml")
    request = Request.of({"client_address": b"192.0.2.1"})
    facts = Facts(given_identity(Status.VERIFIED, verified=[hostname.encode()]), counters={"tries": 10})
    decision = decide(loaded.ruleset, request, facts, TODAY)
    assert isinstance(decision, Decision)
    screen = io.StringIO()
    Console(file=screen, width=240).print(*as_tables(explain(loaded, request, decision, facts, TODAY, source="given")))
    assert line in screen.getvalue()
    assert "DNS failed" not in screen.getvalue()
