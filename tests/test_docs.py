"""What the documentation promises: its rulesets load, its links lead somewhere, and nothing that exists goes unsaid."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from policyd.config import load
from policyd.config.actions import PLACEHOLDERS
from policyd.config.conditions import CONDITIONS
from policyd.config.ruleset import LIST_KEYS, RULE_KEYS, TOP_KEYS
from policyd.config.selftest import TEST_KEYS
from policyd.config.settings import Settings
from policyd.core.identity import Reason, Status
from policyd.core.ruleset import Verb
from policyd.daemon import decisionlog

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), *ROOT.glob("README.md")]

_BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<content>.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE_NAME = re.compile(r"# (?P<name>[\w./-]+)\n")
_LINK = re.compile(r"\[[^]]*\]\((?P<target>[^)\s]+)\)")
_INDENTED_OR_FENCED = re.compile(r"^```.*?^```$|^ {4,}.*$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    """A file that a page shows whole: its first line is a comment with its name."""

    page: Path
    line: int
    name: str
    content: str


def examples(page: Path) -> Iterator[Example]:
    text = page.read_text()
    for block in _BLOCK.finditer(text):
        named = _FILE_NAME.match(block["content"])
        if named is not None:
            line = text.count("\n", 0, block.start()) + 2
            yield Example(page, line, named["name"], block["content"])


def name_of(example: Example) -> str:
    return f"{example.page.name}:{example.line}"


EXAMPLES = [example for page in PAGES for example in examples(page)]
RULESETS = [example for example in EXAMPLES if example.name == "rules.yaml"]
SETTINGS = [example for example in EXAMPLES if example.name == "policyd.yaml"]


def write_examples(page: Path, folder: Path) -> None:
    """Writes the list files that a page shows: its rulesets name them."""
    for example in EXAMPLES:
        if example.page == page and example.name not in {"rules.yaml", "policyd.yaml"}:
            (folder / example.name).parent.mkdir(parents=True, exist_ok=True)
            (folder / example.name).write_text(example.content)


@pytest.mark.parametrize("example", RULESETS, ids=name_of)
def test_a_ruleset_in_the_docs_loads_and_passes_its_own_tests(example: Example, tmp_path: Path) -> None:
    write_examples(example.page, tmp_path)
    rules = tmp_path / "rules.yaml"
    rules.write_text("\n" * (example.line - 1) + example.content)  # so that an error names the page's own line
    load(None, rules)


@pytest.mark.parametrize("example", SETTINGS, ids=name_of)
def test_settings_in_the_docs_load(example: Example, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("rules: []\n")
    (tmp_path / "policyd.yaml").write_text("\n" * (example.line - 1) + example.content)
    load(tmp_path / "policyd.yaml", tmp_path / "rules.yaml")


def test_there_are_examples_to_try() -> None:
    assert {example.page.name for example in RULESETS} >= {"ruleset.md"}
    assert {example.page.name for example in SETTINGS} >= {"settings.md"}


# --- Completeness -----------------------------------------------------------------------------------------------------


def unsaid(words: Iterable[str], page: str) -> list[str]:
    """Those of the words that stand nowhere on the page as code."""
    code = set(re.findall(r"[A-Za-z_.-]+", " ".join(re.findall(r"`([^`\n]+)`", (DOCS / page).read_text()))))
    return [word for word in words if word not in code]


def test_every_condition_is_documented() -> None:
    # `NAME_regex` of an attribute is documented as a form, not one by one.
    own = [
        name
        for name in CONDITIONS
        if not name.endswith("_regex")
        or name.removesuffix("_regex") not in CONDITIONS
        or CONDITIONS[name].summary != f"The expression is found in Postfix's attribute {CONDITIONS[name].subject}."
    ]
    assert len(own) > 40
    assert unsaid(own, "ruleset.md") == []


@pytest.mark.parametrize(
    "words",
    [TOP_KEYS, RULE_KEYS, LIST_KEYS, TEST_KEYS, PLACEHOLDERS, Status, Reason, Verb],
    ids=["top level", "rule", "list", "test", "placeholder", "status", "reason", "action"],
)
def test_every_word_of_the_language_is_documented(words: Iterable[str]) -> None:
    assert unsaid(words, "ruleset.md") == []


def keys(settings: object, prefix: str = "") -> Iterator[str]:
    """Every key of the settings, with dots."""
    assert dataclasses.is_dataclass(settings)
    for one in dataclasses.fields(settings):
        value = getattr(settings, one.name)
        if dataclasses.is_dataclass(value):
            yield from keys(value, f"{prefix}{one.name}.")
        else:
            yield f"{prefix}{one.name}"


def test_every_setting_is_documented() -> None:
    assert "dns.timeout" in keys(Settings())
    assert unsaid(keys(Settings()), "settings.md") == []


def decision_log_keys() -> list[str]:
    """The keys of the dict from which both formats are made."""
    tree = ast.parse(Path(decisionlog.__file__).read_text())
    tables = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    table = max(tables, key=lambda node: len(node.keys))
    return [key.value for key in table.keys if isinstance(key, ast.Constant)]


def test_every_key_of_the_decision_log_is_documented() -> None:
    named = decision_log_keys()
    assert {"time", "action", "reply"} <= set(named)
    assert unsaid(named, "decision-log.md") == []


# --- Links ------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What `#...` can point at in a page: its headings, as GitHub and others derive them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    text = _INDENTED_OR_FENCED.sub("", page.read_text())
    broken = []
    for link in _LINK.finditer(text):
        target, _, anchor = link["target"].partition("#")
        if "://" in target:
            continue
        to = page.parent / target if target else page
        if not to.exists() or (anchor and anchor not in anchors(to)):
            broken.append(link["target"])
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A page\n\n## Its part\n")
    page = tmp_path / "page.md"
    page.write_text("[a](there.md) [b](there.md#its-part) [c](gone.md) [d](there.md#gone) [e](#gone) `[f](gone.md)`\n")
    assert broken_links(page) == ["gone.md", "there.md#gone", "#gone"]


def test_the_index_names_every_page() -> None:
    linked = set(_LINK.findall((DOCS / "README.md").read_text()))
    assert {page.name for page in DOCS.glob("*.md")} - {"README.md"} <= linked
