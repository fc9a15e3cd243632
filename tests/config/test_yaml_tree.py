"""YAML text -> nodes: positions, scalars that stay text, and refused constructs."""

from __future__ import annotations

import time
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from policyd.config.problems import Report
from policyd.config.yaml_tree import Mapping, Node, Scalar, Sequence, parse_yaml


def parse(content: str | bytes) -> tuple[Node | None, list[str]]:
    report = Report()
    root = parse_yaml(content if isinstance(content, bytes) else content.encode(), "f.yaml", report)
    return root, [*report.lines()]


def plain(node: Node | None) -> Any:
    match node:
        case Scalar():
            return node.text
        case Sequence():
            return [plain(item) for item in node.items]
        case Mapping():
            return {item.key.text: plain(item.value) for item in node}
        case None:
            return None


@pytest.mark.parametrize(
    "text", ["no", "on", "1.10", "12:30", "0660", "~", "null", "2027-03-31", "1e3", "0x10", "=", ".inf"]
)
def test_every_scalar_stays_text(text: str) -> None:
    assert plain(parse(f"key: {text}\n")[0]) == {"key": text}


def test_lines_and_columns_count_from_one_and_in_characters() -> None:
    root, problems = parse("# comment\nüä: [é, 'x']\nrules:\n  - name: a\n")
    assert not problems
    assert isinstance(root, Mapping)
    listed = root.get("üä")
    assert isinstance(listed, Sequence)
    assert [(item.line, item.column) for item in listed.items] == [(2, 6), (2, 9)]
    rules = root.items["rules"]
    assert (rules.key.line, rules.key.column) == (3, 1)
    assert isinstance(rules.value, Sequence)
    assert (rules.value.items[0].line, rules.value.items[0].column) == (4, 5)


def test_a_quoted_empty_text_is_not_missing() -> None:
    root, _ = parse("nothing:\nempty: ''\n")
    assert isinstance(root, Mapping)
    assert [item.value.missing for item in root if isinstance(item.value, Scalar)] == [True, False]


def test_a_byte_order_mark_and_windows_line_ends_are_accepted() -> None:
    assert plain(parse(b"\xef\xbb\xbfa: b\r\nc: d\r\n")[0]) == {"a": "b", "c": "d"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "f.yaml:1:1: the file is empty"),
        (b"\n\n# nothing\n", "f.yaml:1:1: the file is empty"),
        (b"a: x\0\n", "f.yaml:1:5: a NUL byte is not allowed in YAML"),
        (b"a: b\nc: \x85d\n", "f.yaml:2:4: byte 0x85 is not UTF-8; save the file as UTF-8"),
        ("a: b\nc: \x85d\n".encode(), "f.yaml:2:4: the control character U+0085 is not allowed in YAML"),
        ("a: b\u2028c\n".encode(), "f.yaml:1:5: the control character U+2028 is not allowed in YAML"),
        (b"a: b\nc: \xff\n", "f.yaml:2:4: byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"\xff\xfea\0:\0", "f.yaml:1:1: byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"a: \xed\xa0\x80\n", "f.yaml:1:4: byte 0xed is not UTF-8; save the file as UTF-8"),
        (b"caf\xc3\xa9: \xff\n", "f.yaml:1:7: byte 0xff is not UTF-8; save the file as UTF-8"),
    ],
)
def test_content_that_is_empty_or_not_text_is_refused(content: bytes, problem: str) -> None:
    assert parse(content) == (None, [problem])


def test_an_empty_document_is_accepted() -> None:
    root, problems = parse(b"---\n...\n")
    assert plain(root) == ""
    assert problems == []


def test_text_after_a_second_document_does_not_belong_to_the_first() -> None:
    root, problems = parse("a: b\n---\na: c\n---\na: d\n")
    assert plain(root) == {"a": "b"}
    assert problems == ["f.yaml:2:1: a second document ('---') is not allowed; keep one document in a file"]


def test_the_second_of_two_equal_keys_is_reported() -> None:
    root, problems = parse("a: b\na: c\n'a': d\n")
    assert plain(root) == {"a": "b"}
    assert problems == [
        "f.yaml:2:1: duplicate key 'a' (first at line 1)",
        "f.yaml:3:1: duplicate key 'a' (first at line 1)",
    ]


def test_a_quoted_merge_key_is_an_ordinary_key() -> None:
    assert plain(parse("'<<': x\n")[0]) == {"<<": "x"}


def test_sixteen_levels_are_allowed_and_seventeen_are_not() -> None:
    assert parse("[" * 16 + "]" * 16)[1] == []
    assert parse("[" * 17 + "]" * 17)[1] == ["f.yaml:1:17: nesting deeper than 16 levels is not allowed"]


def test_a_value_that_is_too_deep_does_not_shift_the_keys_after_it() -> None:
    depth_16 = "".join(f"{'  ' * level}k{level}:\n" for level in range(15))
    deepest = f"{'  ' * 15}deep: [x, {{y: z}}]\n{'  ' * 15}after: w\n"
    root, problems = parse(depth_16 + deepest)
    assert problems == ["f.yaml:16:37: nesting deeper than 16 levels is not allowed"]
    for level in range(15):
        assert isinstance(root, Mapping)
        root = root.get(f"k{level}")
    assert plain(root) == {"after": "w"}


# 900 levels: libyaml 0.2.6 has a limit of its own at 1,000, and a test input must not crash other parsers.
@pytest.mark.parametrize("deep", ["[" * 900, "{a: " * 900, "- " * 900, "? " * 900])
def test_nine_hundred_levels_are_refused_by_our_own_limit_at_once(deep: str) -> None:
    started = time.process_time()
    root, problems = parse(deep)
    assert root is None
    assert any("nesting deeper than 16" in problem for problem in problems)
    assert time.process_time() - started < 2


def test_an_alias_bomb_gives_only_a_problem_for_each_anchor_and_alias() -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))]
    root, problems = parse("\n".join(lines))
    assert isinstance(root, Mapping)
    assert len(problems) == 9 + 8 * 9


values = st.recursive(
    st.text(
        st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="\ufffe\uffff")
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcdefg", min_size=1), inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_yaml_written_by_pyyaml_is_read_back(value: Any) -> None:
    written = yaml.safe_dump(value, allow_unicode=True)
    root, problems = parse(written.encode())
    assert problems == []
    assert plain(root) == value


@given(st.binary(max_size=200) | st.text("ab:-[]{}'\"#&*!|>%@` \n\t?,", max_size=80).map(str.encode))
def test_any_bytes_give_nodes_or_problems(content: bytes) -> None:
    root, problems = parse(content)
    assert root is not None or problems
