"""Each exception from a check of ruff or mypy gives its reason in the same line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("policyd", "tests") for path in (ROOT / folder).rglob("*.py"))

SILENCED = re.compile(r"# (?:noqa|ruff: noqa|type: ignore)(?![a-z])")
WITH_REASON = re.compile(r"# (?:(?:ruff: )?noqa: [A-Z0-9, ]+ - |type: ignore\[[a-z, -]+\] # )\S")


def without_reason(text: str) -> list[str]:
    return [line for line in text.splitlines() if SILENCED.search(line) and not WITH_REASON.search(line)]


def test_every_exception_from_the_checks_has_its_reason() -> None:
    assert len(FILES) > 200
    found = {str(path.relative_to(ROOT)): without_reason(path.read_text()) for path in FILES if path != Path(__file__)}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line", ["x  # noqa", "x  # noqa: S301", "x  # type: ignore", "x  # type: ignore[arg-type]", "# ruff: noqa: E501"]
)
def test_an_exception_without_a_reason_is_found(line: str) -> None:
    assert without_reason(line) == [line]
