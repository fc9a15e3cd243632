"""The manual pages are complete, and the programs that show them give no warnings."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from policyd.cli import COMMANDS, policyd
from policyd.config.schema import rules_schema, settings_schema
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGES = ("policyd.8", "policyd.yaml.5", "policyd-rules.5")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def man(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the pages."""
    require("pandoc")
    folder = tmp_path_factory.mktemp("man")
    subprocess.run([ROOT / "packaging/man/build", folder, sys.executable], check=True, timeout=60)
    return folder


def complaints(*command: str | Path) -> str:
    """The warnings of a program that shows a page. mandoc writes them to standard output."""
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    return ended.stderr if command[0] != "mandoc" else ended.stdout + ended.stderr


CHECKERS = {
    "mandoc": ["mandoc", "-T", "lint"],
    "groff": ["groff", "-ww", "-man", "-T", "utf8", "-r", "LL=80n"],
    "man": ["env", "LC_ALL=C.UTF-8", "man", "--warnings", "--encoding=UTF-8", "--local-file"],
}


@pytest.mark.parametrize("checker", CHECKERS)
@pytest.mark.parametrize("page", PAGES)
def test_no_program_warns_of_a_manual_page(man: Path, page: str, checker: str) -> None:
    require(checker)
    assert complaints(*CHECKERS[checker], man / page) == ""


@pytest.mark.parametrize("checker", CHECKERS)
def test_each_program_warns_of_a_wrong_page(man: Path, tmp_path: Path, checker: str) -> None:
    require(checker)
    page = tmp_path / "policyd.8"
    page.write_text((man / "policyd.8").read_text() + ".NOSUCHMACRO\n.BR \\[nosuchglyph]\n")
    assert complaints(*CHECKERS[checker], page) != ""


def test_no_word_is_broken(man: Path) -> None:
    # A hyphen at the end of a line would be copied together with a name.
    require("groff")
    for page in PAGES:
        shown = subprocess.run(
            ["groff", "-man", "-T", "utf8", "-r", "LL=60n", man / page], check=True, capture_output=True, text=True
        ).stdout
        assert [line for line in shown.splitlines() if re.search("\\w\N{HYPHEN}$", line)] == []


def options_of_each_section(page: str) -> dict[str, set[str]]:
    """The options in each section, by the section's heading. Each option is in the first line of a paragraph."""
    text = page.replace(r"\-", "-")
    sections = re.split(r'^\.S[HS] "?([^"\n]+)"?\n', text, flags=re.MULTILINE)
    return {
        heading: set(re.findall(r"\\fB(-[^\\]+)\\fR", "\n".join(re.findall(r"^\.TP\n(.*)$", body, re.MULTILINE))))
        for heading, body in zip(sections[1::2], sections[2::2], strict=True)
    }


def test_every_command_and_option_is_in_policyd_8(man: Path) -> None:
    sections = options_of_each_section((man / "policyd.8").read_text())
    context = policyd.make_context("policyd", [], resilient_parsing=True)
    for name in COMMANDS:
        command = policyd.get_command(context, name)
        assert command is not None
        options = {
            name
            for option in command.params
            if isinstance(option, click.Option)
            for name in (*option.opts, *option.secondary_opts)
        }
        assert sections[f"policyd {name}"] == options | {"-h", "--help"}
    assert sections["OPTIONS"] == {"--version", "-h", "--help"}
    assert {heading for heading in sections if heading.startswith("policyd ")} == {
        f"policyd {name}" for name in COMMANDS
    }


def keys(schema: Any) -> Iterator[str]:
    """Every key that a JSON Schema allows, at any depth."""
    if isinstance(schema, dict):
        for name, part in schema.items():
            if name == "properties":
                yield from part
            yield from keys(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from keys(part)


def test_every_key_is_in_its_page(man: Path) -> None:
    for page, schema, known in (
        ("policyd.yaml.5", settings_schema(), {"state_credentials", "trust_postfix"}),
        ("policyd-rules.5", rules_schema(), {"hostname_suffix", "self_test", "max_change", "answered", "retry_within"}),
    ):
        bold = re.findall(r"\\f\[B\](.*?)\\f\[R\]", (man / page).read_text(), re.DOTALL)
        shown = {word for text in bold for word in re.findall(r"[A-Za-z_]+", text)}
        wanted = {key.removesuffix("_regex") for key in keys(schema)}  # NAME_regex is documented as a form
        assert known <= wanted
        assert wanted - shown == set()


def test_each_page_names_the_version_of_the_program(man: Path) -> None:
    version = subprocess.run(
        [sys.executable, "-m", "policyd", "--version"], check=True, capture_output=True, text=True
    ).stdout.strip()
    for page in PAGES:
        assert version in (man / page).read_text()
