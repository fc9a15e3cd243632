"""Parses YAML text into a tree of nodes, each with its line and column, from the events of PyYAML's C parser.

Every scalar is text, even if YAML would convert it. Anchors, aliases, merge keys, tags, a second document, deep nesting
and duplicate keys are problems, and all of them are reported; a syntax error ends the file's checking. PyYAML's
composer is not used, because it has no limit on nesting and keeps only the last of two equal keys. The meaning of keys
and values is left to the callers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import yaml

from policyd.config.files import BYTE_ORDER_MARK
from policyd.config.problems import Problem, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policyd.config.problems import Report

# Maximum levels of nesting. A ruleset needs six: the file -> rules -> rule -> match -> `listed` -> `of`.
MAX_DEPTH = 16

# Levels up to which a tree that is too deep is parsed further, to report other problems. Parsing deeper ones is slow.
MAX_DEPTH_SCANNED = 200

# Characters that YAML 1.1 does not allow (section 5.1), and line breaks of YAML 1.1 that editors do not count as such.
_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# A `#` that begins a comment and is directly followed by a word: `# why` is meant as a comment, `#4711` may not be.
_CUT = re.compile(r"[ \t]+(#[^\s#][^\s]{0,39})")


@dataclass(frozen=True, slots=True)
class Scalar:
    """Text. `plain` if it has no quotes, so that `key:` and `key: ''` differ.

    `cut` is the `#word` that ends a plain scalar, such as `#4711`.
    """

    text: str
    line: int
    column: int
    plain: bool = True
    cut: str = ""

    @property
    def missing(self) -> bool:
        """Whether the value is absent, as in `key:`."""
        return self.plain and not self.text


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list. `flow` if it is written in brackets."""

    line: int
    column: int
    items: list[Node] = field(default_factory=list)
    flow: bool = False


class Item(NamedTuple):
    """A key with its value."""

    key: Scalar
    value: Node


@dataclass(frozen=True, slots=True)
class Mapping:
    """Keys and values, in the order of the file."""

    line: int
    column: int
    items: dict[str, Item] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items.values())

    def get(self, key: str) -> Node | None:
        """Returns the value of a key; None if the key is absent."""
        item = self.items.get(key)
        return None if item is None else item.value


Node: TypeAlias = Scalar | Sequence | Mapping


def describe(node: Node) -> str:
    """Names the type of a node, or an empty text, for `expected a list, not ...`."""
    match node:
        case Scalar():
            return "nothing" if node.missing else "text" if node.text else "''"
        case Sequence():
            return "a list"
        case Mapping():
            return "a mapping (key: value)"


def parse_yaml(content: bytes, path: str, report: Report) -> Node | None:
    """Parses one YAML document. Reports the problem and returns None if the document is not valid.

    An empty file is a problem, because a failed copy can leave an empty file.
    """
    text = _decode(content, path, report)
    if text is None:
        return None
    builder = _Builder(text, path, report)
    try:
        for event in yaml.parse(text, Loader=yaml.CLoader):
            builder.take(event)
            if builder.too_deep:
                return None
    except yaml.MarkedYAMLError as error:
        report.add(_syntax_problem(error, text, path))
        return None
    if builder.root is None:
        report.add(Problem(path, 1, 1, "the file is empty"))
    return builder.root


def _decode(content: bytes, path: str, report: Report) -> str | None:
    content = content.removeprefix(BYTE_ORDER_MARK)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line, column = _position(content[: error.start].decode("utf-8"))
        byte = content[error.start]
        report.add(Problem(path, line, column, f"byte 0x{byte:02x} is not UTF-8; save the file as UTF-8"))
        return None
    unprintable = _UNPRINTABLE.search(text)
    if unprintable:
        line, column = _position(text[: unprintable.start()])
        code = ord(unprintable.group())
        what = "a NUL byte" if code == 0 else f"the control character U+{code:04X}"
        report.add(Problem(path, line, column, f"{what} is not allowed in YAML"))
        return None
    return text


def _position(before: str) -> tuple[int, int]:
    """Returns the line and column after this text."""
    lines = re.split("\r\n|\r|\n", before)
    return len(lines), len(lines[-1]) + 1


class _Builder:
    """Builds the tree, event by event."""

    def __init__(self, text: str, path: str, report: Report) -> None:
        self._text = text
        self.root: Node | None = None
        self.too_deep = False  # deeper than MAX_DEPTH_SCANNED
        self._path = path
        self._report = report
        self._open: list[Mapping | Sequence] = []
        self._keys: list[Scalar | None] = []  # for each open mapping, the key whose value comes next
        self._depth = 0  # open collections, including those too deep to be kept
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents == 2:
                    self._add(event, "a second document ('---') is not allowed; keep one document in a file")
            case yaml.AliasEvent():
                self._add(
                    event, f"aliases are not supported; a value that begins with '*' needs quotes: '*{event.anchor}'"
                )
                self._take_scalar(Scalar("", *_start(event), plain=False), keep=False)
            case yaml.ScalarEvent():
                self._check_properties(event)
                plain = event.style == ""
                self._take_scalar(Scalar(event.value, *_start(event), plain, self._cut_from(event) if plain else ""))
            case yaml.MappingStartEvent():
                self._check_properties(event)
                self._begin(Mapping(*_start(event)))
            case yaml.SequenceStartEvent():
                self._check_properties(event)
                self._begin(Sequence(*_start(event), flow=bool(event.flow_style)))
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._end()

    def _cut_from(self, event: yaml.ScalarEvent) -> str:
        """The `#word` that ends a plain scalar and makes a comment of the rest of its line."""
        assert event.end_mark is not None  # the C parser marks every event
        match = _CUT.match(self._text, event.end_mark.index)
        return match[1] if match else ""

    def _take_scalar(self, scalar: Scalar, *, keep: bool = True) -> None:
        if self._depth <= MAX_DEPTH:
            self._place(scalar, keep=keep)

    def _add(self, event: yaml.Event, message: str) -> None:
        self._report.add(Problem(self._path, *_start(event), message))

    def _check_properties(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        if event.anchor is not None:
            self._add(event, f"anchors are not supported; a value that begins with '&' needs quotes: '&{event.anchor}'")
        if event.tag is not None:
            self._add(event, "tags are not supported (every value is text); a value that begins with '!' needs quotes")

    def _begin(self, node: Mapping | Sequence) -> None:
        self._depth += 1
        if self._depth <= MAX_DEPTH:
            self._place(node)
            self._open.append(node)
            self._keys.append(None)
        elif self._depth == MAX_DEPTH + 1:
            message = f"nesting deeper than {MAX_DEPTH} levels is not allowed"
            self._report.add(Problem(self._path, node.line, node.column, message))
            self._place(node, keep=False)
        elif self._depth > MAX_DEPTH_SCANNED:
            self.too_deep = True

    def _end(self) -> None:
        if self._depth <= MAX_DEPTH:
            self._open.pop()
            self._keys.pop()
        self._depth -= 1

    def _place(self, node: Node, *, keep: bool = True) -> None:
        """Puts a node under its key, into the open list, or at the root."""
        if not self._open:
            if self._documents == 1:
                self.root = node
            return
        parent = self._open[-1]
        if isinstance(parent, Sequence):
            if keep:
                parent.items.append(node)
            return
        key = self._keys[-1]
        if key is None:
            self._keys[-1] = self._as_key(node)
            return
        self._keys[-1] = None
        if key.text == "<<" and key.plain:
            self._report.add(Problem(self._path, key.line, key.column, "merge keys ('<<') are not supported"))
        elif key.text in parent.items:
            first = parent.items[key.text].key
            message = f"duplicate key {quoted(key.text)} (first at line {first.line})"
            self._report.add(Problem(self._path, key.line, key.column, message))
        elif keep and key is not _NO_KEY:
            parent.items[key.text] = Item(key, node)

    def _as_key(self, node: Node) -> Scalar:
        if isinstance(node, Scalar):
            return node
        self._report.add(Problem(self._path, node.line, node.column, f"a key must be text, not {describe(node)}"))
        return _NO_KEY


# Replaces a key that is not text, so that the value after it is not read as a key.
_NO_KEY = Scalar("", 0, 0, plain=False)


def _start(event: yaml.Event) -> tuple[int, int]:
    assert event.start_mark is not None  # the C parser marks every event
    return event.start_mark.line + 1, event.start_mark.column + 1


def _syntax_problem(error: yaml.MarkedYAMLError, text: str, path: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    lines = re.split("\r\n|\r|\n", text)
    written = lines[line] if line < len(lines) else ""
    start = error.context_mark.line if error.context_mark else line
    hint = _hint(error.problem or "", written, column, lines[start : line + 1])
    if hint.endswith("is not closed") and start < line:
        hint += f" (line {start + 1})"
    return Problem(path, line + 1, column + 1, f"not valid YAML: {error.problem}{hint}")


def _hint(problem: str, written: str, column: int, construct: list[str]) -> str:  # noqa: PLR0911, PLR0912 - one for each mistake
    """Suggests the likely cause of a syntax error, from the parser's message and the text at which it stopped."""
    here = written[column : column + 1]
    before = written[column - 1 : column] if column else ""
    if "mapping values are not allowed" in problem:
        return "; a value with ': ' in it needs quotes"
    if here == "\t" or (not written[:column].strip() and "\t" in written[: column + 1]):
        return "; indent with spaces, not with tabs"
    if "cannot start any token" in problem:
        return f"; a value that begins with '{here}' needs quotes"
    if "alphabetic or numeric" in problem and before:
        return f"; a value that begins with '{before}' needs quotes"
    if "node content" in problem:
        if not here:
            return "; a bracket is not closed"
        return f"; a value that begins with '{here}' needs quotes"
    if problem.startswith("did not find expected ',' or"):
        if here in {"[", "{"}:
            return f"; a value with '{here}' in it needs quotes"
        if here == ":" or before == ":":
            return "; a value with ':' in it needs quotes"
        if any(" #" in line for line in construct):
            return "; ' #' begins a comment, so a value with it needs quotes"
        return "; a value needs quotes, or a bracket is not closed"
    if "'-' indicator" in problem:
        return "; look at the indentation of this line and the one before"
    if "expected key" in problem:
        value = written.partition(": ")[2].lstrip() if ": " in written else written.lstrip(" -")
        if value[:1] in {"[", "{", "'", '"'}:
            return f"; a value that begins with {value[0]} needs quotes around all of it"
        return "; look at the indentation of this line and the one before"
    if "simple key" in problem:
        return "; this line, or the one before it, lacks a ':'"
    if "end of stream" in problem:
        return "; a quote is not closed"
    if "block sequence entries" in problem:
        return "; a list begins on a line of its own, and a value that begins with '-' needs quotes"
    return ""
