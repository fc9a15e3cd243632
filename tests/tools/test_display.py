from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from policyd.logs.files import LogError
from policyd.tools.display import reading, results, shown, table

if TYPE_CHECKING:
    from pathlib import Path


@given(st.binary())
def test_shown_text_is_printable_and_can_be_converted_back(value: bytes) -> None:
    text = shown(value)
    assert text.isascii()
    assert text == "" or text.isprintable()
    assert text.encode().decode("unicode_escape").encode("latin-1") == value


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    log = tmp_path / "mail.log"
    log.write_bytes(b"x" * 2000)
    errors = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setenv("TERM", "xterm")
    with reading([str(log)]) as advance:
        advance(2000)
    assert ("2.0/2.0 kB" in errors.getvalue()) is terminal


def test_an_unreadable_log_is_reported_before_any_output(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no such file"), reading([str(tmp_path / "nowhere")]):
        pytest.fail("the block must not run")


def test_results_in_a_pipe_are_neither_coloured_nor_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    results().print("x" * 500 + "[red]not markup[/red]", style="bold")
    assert out.getvalue() == "x" * 500 + "[red]not markup[/red]\n"


def test_rule_names_and_figures_are_not_folded_on_a_narrow_terminal() -> None:
    screen = io.StringIO()
    columns = table("rule", "client", "mails", numbers=("mails",))
    columns.add_row("a-long-name-of-a-rule", "x" * 100, "1,234,567")
    Console(file=screen, width=50).print(columns)
    assert "a-long-name-of-a-rule" in screen.getvalue()
    assert "1,234,567" in screen.getvalue()
    assert screen.getvalue().count("x") == 100
