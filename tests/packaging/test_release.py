"""The version is the same in every file."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

from policyd import __version__

ROOT = Path(__file__).parents[2]
RELEASED = re.findall(r"^## \[([0-9.]+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def test_the_program_the_changelog_and_the_debian_package_agree() -> None:
    debian = re.match(r"policyd \((\S+)\)", (ROOT / "packaging/debian/changelog").read_text())
    assert debian is not None
    assert debian[1] == __version__.replace(".dev", "~dev")
    newest = RELEASED[0][0]
    if ".dev" in __version__:
        assert numbers(newest) < numbers(__version__.partition(".dev")[0])
    else:
        assert newest == __version__


def test_the_changelog_is_in_order_and_has_a_section_for_unreleased_changes() -> None:
    versions = [numbers(version) for version, _ in RELEASED]
    dates = [datetime.date.fromisoformat(date) for _, date in RELEASED]
    assert versions == sorted(versions, reverse=True)
    assert dates == sorted(dates, reverse=True)
    assert (ROOT / "CHANGELOG.md").read_text().count("\n## [Unreleased]\n") == 1
