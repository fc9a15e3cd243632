"""List files: comments, lines and columns, sharing, and reading them back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from policyd.config.conditions import Form
from policyd.config.files import UnreadableError
from policyd.config.lists import LONG_LIST, ListFile
from policyd.config.load import load
from policyd.config.problems import ConfigErrors, Report
from policyd.core.tables import LongList, Networks
from policyd.tables.build import plain_entries

if TYPE_CHECKING:
    from pathlib import Path

    from policyd.core.index import Ruleset

CONTENT = (
    b"\xef\xbb\xbf# comment\n"
    b"one.example\n"
    b"  two.example\t; comment\r\n"
    b"\n"
    b";three.example\n"
    b"four.example # comment ; more\n"
    b"five.example#not-a-comment.example\n"
    b"\t# indented comment\n"
    b"six.example"
)


def texts(content: bytes) -> list[tuple[str, int, int]]:
    return [(entry.text, entry.line, entry.column) for entry in ListFile("f", content).entries()]


def test_a_list_file_has_one_entry_a_line_and_comments() -> None:
    assert texts(CONTENT) == [
        ("one.example", 2, 1),
        ("two.example", 3, 3),
        ("four.example", 6, 1),
        ("five.example#not-a-comment.example", 7, 1),
        ("six.example", 9, 1),
    ]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"# only\n  ; comments\n\t#\n", b"\xef\xbb\xbf", b" \t\r\n"])
def test_a_file_of_blanks_and_comments_has_no_entries(content: bytes) -> None:
    file = ListFile("f", content)
    assert not file.has_entries()
    assert [*file.entries()] == []


@pytest.mark.parametrize("content", [b"x", b"# c\nx\n", b"  x", b"\xef\xbb\xbfx", b";\n;\n\n\tx ; y"])
def test_a_file_with_one_entry_has_entries(content: bytes) -> None:
    assert ListFile("f", content).has_entries()
    assert [text for text, _, _ in texts(content)] == ["x"]


def test_a_list_is_parsed_once_for_each_form() -> None:
    file, report = ListFile("f", b"a.example\nb.example\n"), Report()
    first = file.parse(Form.DOMAIN, "r", "hostname_suffix", report)
    assert file.parse(Form.DOMAIN, "s", "sender_domain", report) is first
    assert file.parse(Form.HOST_NAME, "r", "hostname", report) is not first


@pytest.mark.parametrize("form", [Form.NETWORK, Form.DOMAIN, Form.TEXT])
def test_a_long_list_comes_in_blocks_with_a_key_for_its_content_and_form(form: Form) -> None:
    lines = [f"10.{n >> 8}.{n & 255}.0/24" if form is Form.NETWORK else f"h{n}.example" for n in range(50_000)]
    report = Report()
    content = "\n".join(lines).encode()
    parsed = ListFile("f", content).parse(form, "r", "x", report)
    assert not report
    assert isinstance(parsed, LongList)
    assert len(parsed) == 50_000
    plain = plain_entries(parsed)
    if isinstance(plain, Networks):
        assert [*plain.v4][:2] == [0x0A000000 << 6 | 24, 0x0A000100 << 6 | 24]
    else:
        assert [*plain] == [line.encode() for line in lines]
    keys = {
        listed.key
        for file in (ListFile("f", content), ListFile("g", content), ListFile("f", content + b"\n#"))
        for other in (form, Form.SENDER if form is Form.TEXT else form)
        if isinstance(listed := file.parse(other, "r", "x", report), LongList)
    }
    assert len(keys) == 2 if form is not Form.TEXT else 4


def test_a_short_list_is_not_kept_as_a_table() -> None:
    file = ListFile("f", b"\n".join(b"%d.example" % n for n in range(LONG_LIST - 1)))
    assert isinstance(file.parse(Form.DOMAIN, "r", "x", Report()), list)


def test_freed_content_is_read_again_unless_the_file_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "l.txt"
    path.write_bytes(CONTENT)
    file = ListFile(str(path), CONTENT)
    before = [*file.entries()]
    file.forget_content()
    assert [*file.entries()] == before
    path.write_bytes(CONTENT + b"\nseven.example")
    with pytest.raises(UnreadableError, match=r"^has changed while it was loaded; try again$"):
        next(file.entries())
    path.unlink()
    with pytest.raises(UnreadableError, match=r"^cannot be read: No such file or directory$"):
        next(file.entries())


def test_a_bad_line_of_a_shared_list_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("a.example\n\n   not a name\n")
    rules = "".join(f"  - {{name: r{number}, match: {{hostname_suffix: $l}}, action: REJECT}}\n" for number in range(5))
    (tmp_path / "r.yaml").write_text(f"lists: {{l: {{file: l.txt}}, m: {{file: l.txt}}}}\nrules:\n{rules}")
    with pytest.raises(ConfigErrors) as caught:
        load(rules_path=tmp_path / "r.yaml")
    assert [(problem.path, problem.line, problem.column) for problem in caught.value.problems] == [
        (str(tmp_path / "l.txt"), 3, 4)
    ]


def test_two_lists_over_one_file_share_it(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("192.0.2.0/24\n198.51.100.0/24\n")
    (tmp_path / "r.yaml").write_text(
        "lists: {a: {file: l.txt}, b: {file: l.txt}}\n"
        "rules:\n"
        "  - {name: x, match: {cidr: $a}, action: REJECT}\n"
        "  - {name: y, match: {cidr: $b}, except: {cidr: $a}, action: REJECT}\n"
    )
    loaded = load(rules_path=tmp_path / "r.yaml")
    used = [
        condition.collections[0] for rule in loaded.rules_file.rules for condition in (*rule.match, *rule.exceptions)
    ]
    assert len({id(collection) for collection in used}) == 1
    assert loaded.ruleset.counts.networks == 2


@pytest.mark.slow
def test_a_problem_in_line_873211_names_that_line(tmp_path: Path) -> None:
    lines = [f"h{number}.example.com" for number in range(900_000)]
    lines[873_210] = "h 873211.example.com"
    (tmp_path / "l.txt").write_text("\n".join(lines))
    (tmp_path / "r.yaml").write_text(
        "lists: {l: {file: l.txt}}\nrules: [{name: a, match: {hostname_suffix: $l}, action: REJECT}]\n"
    )
    with pytest.raises(ConfigErrors) as caught:
        load(rules_path=tmp_path / "r.yaml")
    (line,) = caught.value.lines
    assert line.startswith(f"{tmp_path}/l.txt:873211:1: rule 'a': hostname_suffix: list 'l': 'h 873211.example.com' is")


@pytest.mark.slow
def test_many_bad_lines_give_a_hundred_messages_and_a_count(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("not a name\n" * 300_000)
    (tmp_path / "r.yaml").write_text(
        "lists: {l: {file: l.txt}}\nrules: [{name: a, match: {hostname_suffix: $l}, action: REJECT}]\n"
    )
    with pytest.raises(ConfigErrors) as caught:
        load(rules_path=tmp_path / "r.yaml")
    assert len(caught.value.lines) == 101
    assert caught.value.lines[-1] == f"{tmp_path}/l.txt: and 299,900 more problems"


def test_an_allowed_empty_list_disables_only_its_own_rule(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("# to be filled\n")
    (tmp_path / "r.yaml").write_text(
        "lists: {l: {file: l.txt, allow_empty: true}}\n"
        "rules:\n"
        "  - {name: a, match: {cidr: $l}, action: REJECT}\n"
        "  - {name: b, match: {cidr: [$l, 192.0.2.1]}, action: DEFER}\n"
        "tests:\n"
        "  - {given: {client_address: 192.0.2.1}, expect: DEFER, rule: b}\n"
        "  - {given: {client_address: 192.0.2.2}, expect: DUNNO, rule: default}\n"
    )
    assert load(rules_path=tmp_path / "r.yaml").ruleset.counts.networks == 1


@pytest.mark.parametrize(
    "content",
    [
        b"\n" * 1_000_000,
        b" \n# x\n" * 200_000,
        b"x" * 2_000_000,
        b"x " * 1_000_000,
        "ü".encode() * 1_000_000,
        b"(" * 2_000_000,
        b"a@" * 1_000_000,
        b"1." * 1_000_000,
        b"[" * 2_000_000,
    ],
    ids=["blank", "comments", "word", "words", "non-ASCII", "parentheses", "addresses", "dots", "brackets"],
)
def test_unusual_content_does_not_take_long(content: bytes, tmp_path: Path) -> None:
    """Two megabytes, read in six forms, take linear time; the limit is a hundred times the usual time."""
    (tmp_path / "l.txt").write_bytes(content)
    uses = ", ".join(
        f"{name}: $l" for name in ("cidr", "hostname", "helo_name", "sender", "sender_regex", "reverse_dns")
    )
    (tmp_path / "r.yaml").write_text(
        f"lists: {{l: {{file: l.txt}}}}\nrules: [{{name: a, match: {{{uses}}}, action: REJECT}}]\n"
    )
    started = time.process_time()
    with pytest.raises(ConfigErrors) as caught:
        load(rules_path=tmp_path / "r.yaml")
    assert max(map(len, caught.value.lines)) < 1000
    assert time.process_time() - started < 10


def local_rules(folder: Path, *, local: str = "true", text: str | None = None) -> Ruleset:
    (folder / "kept.txt").write_text("192.0.2.0/24\n")
    if text is not None:
        (folder / "own.txt").write_text(text)
    (folder / "r.yaml").write_text(
        f"lists: {{kept: {{file: kept.txt}}, own: {{file: own.txt, local: {local}}}}}\n"
        "rules:\n"
        "  - {name: a, match: {cidr: [$kept, $own]}, action: REJECT}\n"
    )
    return load(rules_path=folder / "r.yaml", keep_lists=False).ruleset


def test_a_local_list_is_not_hashed_and_may_be_missing(tmp_path: Path) -> None:
    missing = local_rules(tmp_path)
    first = local_rules(tmp_path, text="198.51.100.0/24\n")
    second = local_rules(tmp_path, text="203.0.113.0/24\n203.0.113.7\n")
    assert (missing.counts.networks, first.counts.networks, second.counts.networks) == (1, 2, 3)
    assert missing.hash == first.hash == second.hash
    assert local_rules(tmp_path, local="false").hash != first.hash


def test_only_a_local_file_may_be_missing_and_it_may_not_be_empty(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match=r"own\.txt cannot be read: No such file or directory"):
        local_rules(tmp_path, local="false")
    with pytest.raises(ConfigErrors, match="has no entries, so the list would have no effect"):
        local_rules(tmp_path, text="# nothing\n")


def test_names_of_dns_lists_and_comparisons_of_counters_may_be_in_files(tmp_path: Path) -> None:
    (tmp_path / "zones.txt").write_text("a.example\nb.example\n")
    (tmp_path / "limits.txt").write_text("tries > 5\n")
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "dns_lists:\n"
        "  a.example: {zone: a.example, codes: 127.0.0.2}\n"
        "  b.example: {zone: b.example, codes: 127.0.0.2}\n"
        "counters: {tries: {count: requests, per: client_address, within: 1h}}\n"
        "lists: {zones: {file: zones.txt}, limits: {file: limits.txt}}\n"
        "rules:\n"
        "- {name: zones, match: {listed: $zones}, action: DEFER}\n"
        "- {name: limits, match: {counter: $limits}, action: DEFER}\n"
    )
    assert len(load(rules_path=str(rules)).ruleset.rules) == 2
    (tmp_path / "zones.txt").write_text("a.example\nc.example\n")
    with pytest.raises(ConfigErrors, match=r"DNS list 'c\.example' is not defined"):
        load(rules_path=str(rules))
