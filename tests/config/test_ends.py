"""`expires=` in list files: when entries end, invalid ends, and lists with ended entries."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from policyd.config.dates import format_end, parse_end
from policyd.config.lists import ListFile
from policyd.config.load import load
from policyd.config.problems import ConfigErrors

if TYPE_CHECKING:
    from pathlib import Path

RULES = "lists: {l: {file: l.txt}}\nrules:\n  - {name: l, match: {CONDITION: $l}, action: REJECT}\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-02", 86400.0),
        ("1970-01-02T00:01Z", 86460.0),
        ("1970-01-02T00:01:01Z", 86461.0),
        ("1970-02-30", None),
        ("1970-01-02T24:01Z", None),
        ("1970-01-02T00:01", None),
        ("1970-01-02T00:01+01:00", None),
        ("19700102", None),
        ("tomorrow", None),
        ("", None),
    ],
)
def test_an_end_is_a_date_or_a_time_in_utc(text: str, seconds: float | None) -> None:
    assert parse_end(text) == seconds


def test_an_end_is_written_with_seconds() -> None:
    assert format_end(86461.7) == "1970-01-02T00:01:01Z"


def test_ended_entries_are_left_out_and_the_next_end_is_known() -> None:
    content = (
        b"192.0.2.1 expires=1970-01-02 # gone\n"
        b"192.0.2.2\texpires=1970-01-03T00:00Z\n"
        b"192.0.2.3 expires=1970-01-04 ; why\n"
        b"192.0.2.4 # expires=1970-01-02\n"
    )
    file = ListFile("f", content, now=86400.0)
    assert [entry.text for entry in file.entries()] == ["192.0.2.2", "192.0.2.3", "192.0.2.4"]
    assert (file.next_end, file.count) == (2 * 86400.0, 3)
    assert file.version != ListFile("f", content, now=0.0).version
    assert file.hash == ListFile("f", content, now=0.0).hash


@pytest.mark.parametrize(
    ("condition", "entry"),
    [("cidr", "192.0.2.0/24"), ("hostname_suffix", "bad.example"), ("sender_regex", "^a b@")],
)
def test_lists_of_networks_names_and_expressions_support_ends(tmp_path: Path, condition: str, entry: str) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES.replace("CONDITION", condition))
    (tmp_path / "l.txt").write_text(
        f"{entry}  expires={format_end(time.time() + 3600)}  # why\n{entry}x expires=2020-01-01\n"
    )
    loaded = load(rules_path=rules)
    assert [written.text for written in loaded.lists["l"].entries()] == [entry]
    assert loaded.next_end is not None
    assert loaded.texts.data is not None


def test_a_list_whose_only_entry_has_ended_is_accepted(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES.replace("CONDITION", "cidr"))
    (tmp_path / "l.txt").write_text("192.0.2.0/24 expires=2020-01-01\n")
    loaded = load(rules_path=rules)
    assert (loaded.ruleset.counts.networks, loaded.next_end, loaded.texts.data) == (0, None, None)


def test_an_invalid_end_is_an_error_with_its_place(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES.replace("CONDITION", "cidr"))
    (tmp_path / "l.txt").write_text("192.0.2.1\n 192.0.2.0/24 expires=2026-13-01 # why\n")
    with pytest.raises(ConfigErrors) as caught:
        load(rules_path=rules)
    assert str(caught.value) == (
        f"{tmp_path / 'l.txt'}:2:23: list 'l': expires: '2026-13-01' is not an end; write it as 2026-12-06 or "
        "2026-12-06T18:30Z (UTC)"
    )


@pytest.mark.slow
def test_ended_entries_are_dropped_without_reading_files_or_running_tests(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    test = "tests:\n  - {given: {client_address: 192.0.2.9}, expect: REJECT}\n"
    rules.write_text(RULES.replace("CONDITION", "cidr") + test)
    (tmp_path / "l.txt").write_text(f"192.0.2.9 expires={format_end(time.time() + 2)}\n198.51.100.0/24\n")
    first = load(rules_path=rules, keep_lists=False)
    rules.unlink()
    (tmp_path / "l.txt").unlink()
    assert first.next_end is not None
    time.sleep(max(0.0, first.next_end - time.time()))
    second = load(rules_path=rules, texts=first.texts, keep_lists=False)
    assert (first.ruleset.counts.networks, second.ruleset.counts.networks) == (2, 1)
    assert second.ruleset.hash == first.ruleset.hash
    assert (second.next_end, second.left_alone) == (None, ())
