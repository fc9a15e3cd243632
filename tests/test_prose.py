"""Plain English, as far as it can be tested: docstrings, comments, messages and pages.

A sentence begins with its subject or a verb of the field, names its subject, and says "is not a", "if" and "because".
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import TypeGuard

import pytest

# `make unit` leaves these tests out; `make check` runs them.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("policyd", "tests") for path in (ROOT / folder).rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# A docstring or comment that begins with one of these makes its reader look for the subject.
OPENINGS = re.compile(
    r"(What|Who|Whoever|Whose|How|Everybody|Somebody|Nobody|To be told|The same from|As `\w+`,"
    r"|Which of|So (many|much)|The present;)(?!\w)"
)

# Coined words, vague actors, and constructions with a plain equivalent.
WORDS = re.compile(
    r"(?<!`)\b(whoever|nobody|somebody|anew|for want of|the most that|has no equal|got in elsewhere|things? to mend"
    r"|(to be|be) had\b(?! to)|comes? to know|came upon|comes upon|have their say|has its say|with a bad day"
    r"|says? nothing of|tells? nothing of|but for (a|the) failure|is to be asked|must not be had"
    r"|(that|which) (is|are) none|(?<!there )(is|are) no (?!longer|more\b)[a-z]+)\b(?!`)",
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
    texts = [(line, text, text) for line, text in docstrings(source)]
    texts += [(line, text, text.lstrip("#: ")) for line, text in comments(source)]
    assert [
        f"{line}: {text}"
        for line, text, begin in texts
        if OPENINGS.match(begin) or WORDS.search(" ".join(text.split()))
    ] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_are_plain(path: Path) -> None:
    lines = enumerate(path.read_text().splitlines(), 1)
    assert [f"{number}: {line}" for number, line in lines if WORDS.search(line)] == []


# The name of a loop variable is a noun for its value, not `one`. In the program, this holds for every variable and
# parameter.
@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_no_loop_variable_is_named_one(path: Path) -> None:
    loops = (ast.For, ast.AsyncFor, ast.comprehension)
    targets = [node.target for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, loops)]
    names = [node for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    assert [node.lineno for node in names if node.id == "one"] == []


@pytest.mark.parametrize("path", [path for path in SOURCES if "policyd" in path.relative_to(ROOT).parts[0]], ids=str)
def test_no_variable_is_named_one(path: Path) -> None:
    nodes = ast.walk(ast.parse(path.read_text()))
    names = [(node.lineno, node.id if isinstance(node, ast.Name) else node.arg) for node in nodes if is_bound(node)]
    assert [line for line, name in names if name == "one"] == []


def is_bound(node: ast.AST) -> TypeGuard[ast.Name | ast.arg]:
    """Whether a node binds a name."""
    return isinstance(node, ast.arg) or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))


@pytest.mark.parametrize("text", ["What a client says.", "How a test ends.", "As `find`, for names.", "Nobody asks."])
def test_an_opening_without_a_subject_is_found(text: str) -> None:
    assert OPENINGS.match(text)


@pytest.mark.parametrize(
    "text",
    [
        "given to whoever asks",
        "a name that nobody has",
        "what is no UTF-8",
        "requests that are none",
        "it can be had again",
        "a message that says nothing of the name",
    ],
)
def test_a_vague_word_is_found(text: str) -> None:
    assert WORDS.search(text)


@pytest.mark.parametrize("text", ["Whether it holds.", "However long it is.", "Debian's `nobody` cannot read it."])
def test_plain_text_is_not_found(text: str) -> None:
    assert not OPENINGS.match(text)
    assert not WORDS.search(text)


@pytest.mark.parametrize("text", ["there is no such file", "it is no longer used", "the file has had to wait"])
def test_negations_of_plain_english_are_allowed(text: str) -> None:
    assert not WORDS.search(text)
