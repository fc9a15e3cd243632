"""Checks the documentation: its rulesets load, its links are valid, and it is complete."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from policyd.config.actions import PLACEHOLDERS
from policyd.config.checks.ruleset_tests import TEST_KEYS
from policyd.config.conditions import CONDITIONS
from policyd.config.load import load
from policyd.config.problems import ConfigErrors
from policyd.config.rules_reader import LIST_KEYS, RULE_KEYS, TOP_KEYS
from policyd.config.settings import Settings
from policyd.core.dns_lists import NOT_LISTED
from policyd.core.engine import Decision
from policyd.core.facts import Greylisted
from policyd.core.identity import Identity, Reason, Status
from policyd.core.owners import Owner
from policyd.core.protocol import ATTRIBUTES, Request
from policyd.core.ruleset import Action, Rule, Verb
from policyd.decision_log.writer import DecisionEntry, json_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), *ROOT.glob("README.md")]

_BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<content>.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE_NAME = re.compile(r"# (?P<name>[\w./-]+)\n")
_LINK = re.compile(r"\[[^]]*\]\((?P<target>[^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```$|^ {4}[^\n]*$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    """A complete file in a page; its first line is a comment with its name."""

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
# Files with errors or warnings: the page shows the output of `policyd check`.
COMPLAINTS = [example for example in EXAMPLES if example.name.endswith(".yaml") and example not in RULESETS + SETTINGS]
TODAY = datetime.date(2026, 11, 21)  # the date of these outputs


def write_examples(page: Path, folder: Path) -> None:
    """Writes the list files and databases that a page shows: its rulesets name them."""
    for example in EXAMPLES:
        if example.page == page and example.name.endswith((".txt", ".csv")):
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


@pytest.mark.parametrize("example", COMPLAINTS, ids=name_of)
def test_a_wrong_file_in_the_docs_gets_the_messages_shown_beside_it(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(example.name).write_text(example.content)
    Path("rules.yaml").write_text("rules: []\n")
    settings = example.name.endswith("policyd.yaml")
    try:
        lines = load(*((example.name, None) if settings else (None, example.name)), warnings_on=TODAY).warning_lines
    except ConfigErrors as errors:
        lines = errors.lines
    shown = re.findall(rf"^    ({re.escape(example.name)}:.*)$", example.page.read_text(), re.MULTILINE)
    assert list(lines) == shown


def test_there_are_examples_to_try() -> None:
    assert {example.page.name for example in RULESETS} >= {"ruleset.md"}
    assert {example.page.name for example in SETTINGS} >= {"settings.md"}
    assert {example.page.name for example in COMPLAINTS} >= {"ruleset.md", "settings.md"}


# --- Completeness -----------------------------------------------------------------------------------------------------


def undocumented(words: Iterable[str], page: str) -> list[str]:
    """The words that the page does not contain as code."""
    code = set(re.findall(r"[A-Za-z_.-]+", " ".join(re.findall(r"`([^`\n]+)`", (DOCS / page).read_text()))))
    return [word for word in words if word not in code]


def test_every_condition_is_documented() -> None:
    # The page documents `NAME_regex` conditions without examples as one form, not one by one.
    named = [row.name for row in CONDITIONS.values() if row.examples or not row.name.endswith("_regex")]
    assert {"hostname_suffix", "sender_regex", "policy_context"} <= set(named)
    assert undocumented(named, "ruleset.md") == []


@pytest.mark.parametrize(
    "words",
    [TOP_KEYS, RULE_KEYS, LIST_KEYS, TEST_KEYS, PLACEHOLDERS, Status, Reason, Verb],
    ids=["top level", "rule", "list", "test", "placeholder", "status", "reason", "action"],
)
def test_every_word_of_the_language_is_documented(words: Iterable[str]) -> None:
    assert undocumented(words, "ruleset.md") == []


def keys(settings: object, prefix: str = "") -> Iterator[str]:
    """Every key of the settings, with dots."""
    assert dataclasses.is_dataclass(settings)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from keys(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def test_every_setting_is_documented() -> None:
    assert "dns.timeout" in keys(Settings())
    assert undocumented(keys(Settings()), "settings.md") == []


def test_the_defaults_in_the_table_of_settings_are_the_defaults(tmp_path: Path) -> None:
    table = dict(re.findall(r"^\| `([\w.]+)` \| `([^`]+)` \|", (DOCS / "settings.md").read_text(), re.MULTILINE))
    assert list(table) == list(keys(Settings()))
    lines = []
    for section in dict.fromkeys(key.partition(".")[0] for key in table):
        if section in table:
            lines.append(f"{section}: {table[section]}\n")
        else:
            lines.append(f"{section}:\n")
            lines += [f"  {key.partition('.')[2]}: {table[key]}\n" for key in table if key.startswith(f"{section}.")]
    (tmp_path / "rules.yaml").write_text("rules: []\n")
    (tmp_path / "documented.yaml").write_text("".join(lines))
    (tmp_path / "empty.yaml").write_text("{}\n")
    assert load(tmp_path / "documented.yaml").settings == load(tmp_path / "empty.yaml").settings


def decision_log_keys() -> list[str]:
    """The keys of a line in which every field has a value."""
    rule = Rule("numbered", 0, (), (), Action(Verb.REJECT))
    identity = Identity(Status.ERROR, claimed=(b"claimed.example",), reason=Reason.TIMEOUT)
    decision = Decision(
        Verb.DEFER,
        rule,
        "4.7.1",
        ("Later",),
        ("observed",),
        downgraded=True,
        identity=identity,
        observing=True,
        owner=Owner(64496, "Example Internet Inc.", "JP"),
    )
    decision = decision._replace(lists={"zen": NOT_LISTED}, greylist=Greylisted.UNKNOWN)
    request = Request.of(dict.fromkeys(ATTRIBUTES, b"RCPT"))
    entry = DecisionEntry(
        b"now", b"7Q4K2M9X", request, decision, b"", b"4.7.1 Later", "3f9c2a1b", 0.01, 0.02, memory_is_local=True
    )
    return list(json.loads(json_line(entry)))


def test_every_key_of_the_decision_log_is_documented() -> None:
    named = decision_log_keys()
    assert len(named) == 29
    assert undocumented(named, "decision-log.md") == []


# --- Links ------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The targets of `#...` links in a page: its headings, in GitHub's form."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    text = _CODE.sub("", page.read_text())
    broken = []
    for link in _LINK.finditer(text):
        target, _, anchor = link["target"].partition("#")
        if "://" in target:
            continue
        to = page.parent / target if target else page
        if not to.exists() or (anchor and anchor not in anchors(to)):
            broken.append(link["target"])
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_are_valid(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A page\n\n## Its part\n")
    page = tmp_path / "page.md"
    page.write_text(
        "    [a](code.md)\n\n```yaml\n[b](code.md)\n```\n\n`[c](code.md)`\n"
        "[d](there.md) [e](there.md#its-part) [f](gone.md) [g](there.md#gone) [h](#gone)\n"
    )
    assert broken_links(page) == ["gone.md", "there.md#gone", "#gone"]


def test_the_index_names_every_page() -> None:
    linked = set(_LINK.findall((DOCS / "README.md").read_text()))
    assert {page.name for page in DOCS.glob("*.md")} - {"README.md"} <= linked
