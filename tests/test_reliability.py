"""The tests that docs/reliability.md names for its promises exist, and the page names every fault test."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text()


def test_every_test_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    defined = {
        name
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    assert named
    assert named - defined == set()


def test_the_page_names_every_fault_test() -> None:
    tried = {
        name
        for path in (TESTS / "faults").glob("test_*.py")
        if path.name != "test_flow.py"
        for name in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    assert [name for name in sorted(tried) if f"`{name}`" not in PAGE] == []
