from __future__ import annotations

import pytest

from tests.tools.console_blocks import ROOT, as_pattern, outputs, sessions

pytestmark = pytest.mark.slow  # starts programs

PAGES = ("README.md", "docs/ruleset.md", "docs/tools.md", "docs/systemd.md")
SESSIONS = [session for page in PAGES for session in sessions((ROOT / page).read_text())]


@pytest.mark.parametrize("session", SESSIONS, ids=[session[0][0][:60] for session in SESSIONS])
def test_pages_show_the_output_of_their_commands(session: list[tuple[str, str]]) -> None:
    printed = outputs([command for command, _ in session])
    for (command, shown), text in zip(session, printed, strict=True):
        assert as_pattern(shown).fullmatch(text), (
            f"not what the page shows; see tests/tools/console_blocks.py\n$ {command}\n{text}"
        )


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("one\n", "one\n", True),
        ("one\n", "two\n", False),
        ("one\n...\nlast\n", "one\n2\n3\nlast\n", True),
        ("one\n...\nlast\n", "one\nlast\n", True),
        ("one\n...\nlast\n", "one\nother\n", False),
        ("in ... ms\n", "in 3.5 ms\n", True),
        ("in ... ms\n", "in\n3 ms\n", False),
        ("ruleset 3f9c2a1b\n", "ruleset 00000000\n", True),
    ],
)
def test_a_page_matches_output_except_for_its_varying_parts(shown: str, printed: str, same: bool) -> None:
    assert bool(as_pattern(shown).fullmatch(printed)) is same
