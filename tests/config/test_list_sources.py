"""`from:` of a list: its fields, every mistake with its place, and a file that does not exist yet."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

import pytest

from policyd.config.list_sources import SOURCE_FORMATS, state_path
from policyd.config.load import load
from policyd.config.problems import ConfigErrors
from policyd.exchange.importing import IMPORT_FORMATS

if TYPE_CHECKING:
    from pathlib import Path

RULES = """\
lists:
  own: 192.0.2.0/24
  drop:
    file: drop.txt
    from: {FROM}
rules:
  - {name: drop, match: {cidr: $drop}, action: REJECT}
"""


def write(folder: Path, source: str) -> Path:
    path = folder / "rules.yaml"
    path.write_text(RULES.replace("FROM", source))
    return path


def test_the_formats_are_those_of_the_importers() -> None:
    assert set(SOURCE_FORMATS) == set(IMPORT_FORMATS)


def test_all_fields_are_read(tmp_path: Path) -> None:
    fields = (
        "url: 'https://lists.example/{key}/drop', key_file: key, format: spamhaus-drop, every: 12h, min_entries: 500"
    )
    path = write(tmp_path, f"{fields}, max_change: 30%, never: [own], allow_reserved: yes")
    source = load(rules_path=path).lists["drop"].source
    assert source is not None
    assert (source.url, source.key_file) == ("https://lists.example/{key}/drop", str(tmp_path / "key"))
    assert (source.format, source.every, source.min_entries, source.max_change) == ("spamhaus-drop", 43200, 500, 0.3)
    assert [name.text for name in source.never] == ["own"]
    assert source.allow_reserved


@pytest.mark.parametrize(
    ("source", "column", "message"),
    [
        ("format: plain", 11, "'url' is missing: the address to fetch from, as in url: https://lists.example/drop.txt"),
        ("url: 'file:///etc/passwd'", 17, "url: 'file:///etc/passwd' does not begin with https:// or http://"),
        ("url: 'https:///x'", 17, "url: 'https:///x' names no host"),
        ("url: 'https://u:@h'", 17, "url: 'https://u:@h' has a user name or password in it; write {key} and key_file"),
        ("url: 'h t'", 17, "url: 'h t' is not a URL (printable ASCII without blanks, at most 2,000 characters)"),
        ("url: 'https://h/{key}'", 17, "url: {key} needs `key_file`, the file whose first line replaces it"),
        ("url: 'https://h/', key_file: k", 31, "key_file: the url has no {key} in it, so the key would not be used"),
        ("url: 'https://h/', evry: 1d", 31, "unknown key 'evry'; did you mean 'every'?"),
        ("url: 'https://h/', every: 5", 38,
         "every: '5' is not an interval from 1m to 366d; write it as 30m, 12h, 1d or 1w"),
        ("url: 'https://h/', min_entries: few", 44, "min_entries: 'few' is not a number"),
        ("url: 'https://h/', max_change: 0.3", 43, "max_change: '0.3' is not a percentage; write it as 30%"),
        ("url: 'https://h/', format: spamhaus", 39, "format: unknown format 'spamhaus'; did you mean 'spamhaus-drop'?"),
        ("url: 'https://h/', never: [onw]", 39, "never: list 'onw' is not defined; did you mean 'own'?"),
        ("url: 'https://h/', allow_reserved: maybe", 47, "allow_reserved: 'maybe' is neither true nor false"),
    ],
)  # fmt: skip
def test_each_mistake_is_reported_at_its_column(tmp_path: Path, source: str, column: int, message: str) -> None:
    path = write(tmp_path, source)
    with pytest.raises(ConfigErrors) as caught:
        load(rules_path=path)
    assert str(caught.value) == f"{path}:5:{column}: list 'drop': from: {message}"


def test_a_list_cannot_be_both_fetched_and_local(tmp_path: Path) -> None:
    path = write(tmp_path, "url: 'https://h/'")
    path.write_text(path.read_text().replace("file: drop.txt", "file: drop.txt\n    local: yes"))
    with pytest.raises(ConfigErrors, match="either fetched"):
        load(rules_path=path)


def test_an_unfetched_list_is_empty_with_a_warning_and_a_fetched_list_must_exist(tmp_path: Path) -> None:
    path = write(tmp_path, "url: 'https://h/', never: own")
    loaded = load(rules_path=path)
    assert loaded.ruleset.counts.networks == 0
    drop = tmp_path / "drop.txt"
    assert [str(warning) for warning in loaded.warnings] == [
        f"{drop}: warning: list 'drop': has not been fetched yet, so the list is empty; run policyd fetch"
    ]
    state_path(str(drop)).write_text("{}")
    with pytest.raises(ConfigErrors, match="No such file"):
        load(rules_path=path)


def test_a_fetched_list_is_not_hashed_and_a_list_named_in_never_counts_as_used(tmp_path: Path) -> None:
    path = write(tmp_path, "url: 'https://h/', never: own")
    (tmp_path / "drop.txt").write_text("198.51.100.0/24\n")
    first = load(rules_path=path, warnings_on=datetime.date(2026, 11, 29))
    assert first.warnings == ()
    (tmp_path / "drop.txt").write_text("203.0.113.0/24\n")
    second = load(rules_path=path)
    assert second.ruleset.hash == first.ruleset.hash
    (drop,) = [file for file in second.files if file.kind == "list"]
    assert (drop.hashed, drop.every, drop.missing) == (False, 86400.0, False)
