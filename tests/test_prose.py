"""Plain English, as far as it can be tested: docstrings, comments, messages and pages.

A sentence begins with its subject or a verb of the field, names its subject, and says "is not a", "if" and "because".
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "policyd").rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# A docstring that begins with one of these makes its reader look for the subject.
OPENINGS = re.compile(r"(What|Who|Whoever|Whose|So many|So much|To be told|The present)\b")

# Words that are nobody's, or that stand for a plain one.
WORDS = re.compile(
    r"\b(whoever|anew|for want of|the most that|has no equal|got in elsewhere|things? to mend"
    r"|(is|are) no [a-z]+ (of|for))\b",
    re.IGNORECASE,
)


def docstrings(source: str) -> list[tuple[int, str]]:
    """Line and text of each docstring."""
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [(node, ast.get_docstring(node)) for node in ast.walk(ast.parse(source)) if isinstance(node, nodes)]
    return [(getattr(node, "lineno", 1), text) for node, text in found if text]


def comments(source: str) -> list[tuple[int, str]]:
    """Line and text of each comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_and_comments_are_plain(path: Path) -> None:
    source = path.read_text()
    wrong = [f"{line}: {text.splitlines()[0]}" for line, text in docstrings(source) if OPENINGS.match(text)]
    wrong += [f"{line}: {text}" for line, text in (*docstrings(source), *comments(source)) if WORDS.search(text)]
    assert wrong == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_are_plain(path: Path) -> None:
    lines = enumerate(path.read_text().splitlines(), 1)
    assert [f"{number}: {line}" for number, line in lines if WORDS.search(line)] == []


def test_the_patterns_see_what_they_are_for() -> None:
    assert OPENINGS.match("What a client says.")
    assert WORDS.search("given to whoever asks")
    assert not OPENINGS.match("Whether it holds.")
