"""Escaping of text from clients and files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.core.printable import printable


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("plain é \\ '", "plain é \\ '"),
        ("two\r\nlines\u2028three", "two\\r\\nlines\\u2028three"),
        ("\x1b[2J\x7f\x9b1m", "\\x1b[2J\\x7f\\x9b1m"),
        ("invoice\u202efdp.exe", "invoice\\u202efdp.exe"),
        ("\udcff", "\\udcff"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_terminal_control_characters_are_escaped(text: str, want: str) -> None:
    assert printable(text) == want


@given(st.text(st.characters()))
def test_any_text_becomes_one_printable_line_and_is_escaped_only_once(text: str) -> None:
    once = printable(text)
    assert once.isprintable()
    assert once.encode("utf-8").decode("utf-8") == once
    assert printable(once) == once
