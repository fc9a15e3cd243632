"""docs/import-export.md shows what the commands really print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from policyd.exchange import exporting, importing

if TYPE_CHECKING:
    from tests.cli.conftest import Run

PAGE = (Path(__file__).parents[2] / "docs" / "import-export.md").read_text()

FILES = dict(re.findall(r"`([\w./-]+)`:\n\n```(?:text|yaml)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


class Example(NamedTuple):
    """A command and its output in the page: standard error, then standard output."""

    command: str
    printed: str


def examples() -> list[Example]:
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        for command in block.split("$ policyd ")[1:]:
            line, _, printed = command.partition("\n")
            found.append(Example(line, printed))
    return found


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.command)
def test_the_page_shows_what_the_command_prints(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: Example
) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    ended = run(*shlex.split(example.command))
    assert ended.err + ended.out == example.printed


def test_every_format_has_an_example() -> None:
    commands = [example.command.split() for example in examples()]
    assert {words[1] for words in commands if words[0] == "import"} >= set(importing.IMPORT_FORMATS) - {
        "postfix-regexp"
    }
    assert {words[1] for words in commands if words[0] == "export"} == set(exporting.EXPORT_FORMATS) - {"json"}
