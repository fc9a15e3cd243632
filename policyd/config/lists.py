"""Reads lists: written in the ruleset, or in files with one entry a line.

A file is read once in a load, even if several lists name it. A list is parsed once for each form of its entries: once
for two `cidr` conditions. So a million entries take memory once for each form, as flat bytes. An invalid entry is
reported with its own file and line, and with the rule that uses it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from policyd.config.conditions import Form
from policyd.config.dates import parse_end
from policyd.config.entries import parse_entries
from policyd.config.entry_messages import explain_entry
from policyd.config.files import (
    BYTE_ORDER_MARK,
    MAX_LIST_BYTES,
    ListChangedError,
    OversizedError,
    UnreadableError,
    read_file,
)
from policyd.config.in_force import HASH_DIGITS
from policyd.config.problems import Problem, quoted
from policyd.core.tables import LongList, Networks

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping

    from policyd.config.list_sources import Source
    from policyd.config.problems import Report
    from policyd.config.yaml_tree import Scalar
    from policyd.core.tables import Entries

# A comment begins with # or ; at the start of a line or after a blank, and goes to the line's end.
_COMMENT_MARKS = (b" #", b" ;", b"\t#", b"\t;")
_ANY_ENTRY = re.compile(rb"(?m)^[ \t\r\f\v]*[^\s#;]")
# The last word of an entry, before the comment, may say when the entry ends.
_END_MARK = b"expires="
_WITH_END = re.compile(rb"(.*?\S)[ \t]+expires=(\S*)", re.DOTALL)

# Bytes of a file that are split into lines at the same time; a line takes 60 bytes more than its text.
BLOCK_BYTES = 1 << 18

# Minimum number of entries of a list whose table is kept beyond the ruleset. A shorter list is parsed and indexed again
# at each reload, in less than 2 ms.
LONG_LIST = 1000


@dataclass(frozen=True, slots=True)
class WrittenEntry:
    """One entry as written, with its position."""

    text: str
    path: str
    line: int
    column: int


class ListFile:
    """A list file's bytes, and the entries parsed from them. `modified` is as in `LoadedFile`.

    Entries whose end (`expires=`) is not after `now` (Unix seconds) are left out. `next_end` is the next end of an
    entry, None if no entry will end; `wrong_ends` has line and column (from 1) and text of each end that is neither a
    date nor a time.
    """

    def __init__(
        self,
        path: str,
        content: bytes,
        modified: float = 0.0,
        known: Mapping[Hashable, int] | None = None,
        now: float = 0.0,
    ) -> None:
        self.path = path
        self.modified = modified
        self._content: bytes | None = content
        self._digest = hashlib.sha256(content).digest()
        self._known = known or {}  # the number of entries of each list whose table is kept, by its key
        self._parsed: dict[Form, Entries] = {}
        self._now = now
        self._ended = 0
        self.next_end: float | None = None
        self.wrong_ends: list[tuple[int, int, str]] = []
        self._has_ends = _END_MARK in content
        if self._has_ends:
            self._read_ends()

    def _read_ends(self) -> None:
        for first, raw_lines in self._blocks():
            for number, line in enumerate(_stripped(raw_lines), first):
                if _END_MARK not in line or (found := _WITH_END.fullmatch(line)) is None:
                    continue
                end = _end(found[2])
                if end is None:
                    column = raw_lines[number - first].find(line) + found.start(2) + 1
                    self.wrong_ends.append((number, column, found[2].decode("utf-8", "replace")))
                elif end <= self._now:
                    self._ended += 1
                elif self.next_end is None or end < self.next_end:
                    self.next_end = end

    def _lines(self, raw_lines: list[bytes]) -> list[bytes]:
        """Returns the entry on each line, without `expires=`; empty for a line without an entry that is in force."""
        lines = _stripped(raw_lines)
        if not self._has_ends:
            return lines
        return [self._without_end(line) if _END_MARK in line else line for line in lines]

    def _without_end(self, line: bytes) -> bytes:
        found = _WITH_END.fullmatch(line)
        if found is None:
            return line
        end = _end(found[2])
        return b"" if end is not None and end <= self._now else found[1]

    @property
    def version(self) -> bytes:
        """Identifies the entries: the file's hash, and the number of ended entries."""
        return f"{self.hash}-{self._ended}".encode() if self._ended else self.hash.encode()

    def _key(self, form: Form) -> tuple[bytes, str]:
        return self._digest, f"{form.value}-{self._ended}" if self._ended else form.value

    def forget_content(self) -> None:
        """Frees the bytes. If they are needed again, the file is read again; ListChangedError if it has changed."""
        self._content = self._content and None  # not freed if empty: the file may not exist

    @property
    def hash(self) -> str:
        """As in `LoadedFile`."""
        return self._digest.hex()[:HASH_DIGITS]

    def has_entries(self) -> bool:
        """Whether there is any line with an entry, even an entry that has ended."""
        return self._is_known() or _ANY_ENTRY.search(self._text()) is not None

    def _is_known(self) -> bool:
        return any(self._key(form) in self._known for form in Form)

    @property
    def count(self) -> int:
        """The number of entries that have not ended; counted line by line only if no rule uses the file."""
        for parsed in self._parsed.values():
            return len(parsed)
        return sum(map(bool, (line for _, lines in self._blocks() for line in self._lines(lines))))

    def entries(self) -> Iterator[WrittenEntry]:
        """The entries as they are written. Raises ListChangedError."""
        for first, raw_lines in self._blocks():
            for number, (line, raw) in enumerate(zip(self._lines(raw_lines), raw_lines, strict=True), first):
                if line:
                    yield WrittenEntry(line.decode("utf-8", "replace"), self.path, number, raw.find(line) + 1)

    def parse(self, form: Form, rule: str, using: str, report: Report) -> Entries:
        """The entries, in the form in which they are compared; parsed at the first call for this form.

        `rule` and `using` (the condition, the list) are for messages. A list of LONG_LIST entries or more comes as a
        `LongList` if its form has a table.
        """
        known = self._parsed.get(form)
        if known is None:
            known = self._parsed[form] = self._parse(form, rule, using, report)
        return known

    def _parse(self, form: Form, rule: str, using: str, report: Report) -> Entries:
        key = self._key(form)
        if key in self._known:
            return LongList(key, self._known[key], lambda: self._read_known(form), self.path)
        networks = Networks()
        blocks: list[bytes] = []  # a block's names, one per line: a tenth of their size as objects
        texts: list[Any] = []
        length = 0
        for first, raw_lines in self._blocks():
            lines = self._lines(raw_lines)
            more, bad = parse_entries(form, [line for line in lines if line])
            length += len(more)
            if isinstance(more, Networks):
                networks.extend(more)
            elif not form.has_table:
                texts += more
            elif more:
                blocks.append(b"\n".join(cast("list[bytes]", more)))
            if bad:
                self._report_bad(form, first, raw_lines, bad, rule=rule, using=using, report=report)
        if not form.has_table:
            return texts
        if form is Form.NETWORK:
            return networks if length < LONG_LIST else LongList(key, length, lambda: (networks,), self.path)
        if length < LONG_LIST:
            return [name for block in blocks for name in block.split(b"\n")]
        return LongList(key, length, lambda: (block.split(b"\n") for block in blocks), self.path)

    def _read_known(self, form: Form) -> Iterator[Any]:
        """The entries of a list that an earlier load parsed in this form without an error."""
        for _, raw_lines in self._blocks():
            yield parse_entries(form, [line for line in self._lines(raw_lines) if line])[0]

    def _report_bad(
        self,
        form: Form,
        first: int,
        raw_lines: list[bytes],
        bad: list[int],
        *,
        rule: str,
        using: str,
        report: Report,
    ) -> None:
        """Reports the wrong lines of a block; `bad` has their places among the lines with an entry."""
        lines = self._lines(raw_lines)
        numbers = [number for number, line in enumerate(lines) if line]
        for count, place in enumerate(bad):
            if not report.room(self.path):
                report.count_more(self.path, len(bad) - count)
                break
            number = numbers[place]
            column = raw_lines[number].find(lines[number]) + 1
            message = f"{using}: {explain_entry(form, lines[number])}"
            report.add(Problem(self.path, first + number, column, message, rule))

    def forget_known_content(self) -> None:
        """Frees the bytes if the list need not be parsed, because its table is kept."""
        if self._is_known():
            self._content = None

    @property
    def content(self) -> bytes:
        """The bytes. Raises ListChangedError."""
        content = self._content
        if content is None:
            try:
                content = read_file(self.path, MAX_LIST_BYTES)
            except (UnreadableError, OversizedError) as error:
                raise ListChangedError(self.path, str(error)) from error
            if hashlib.sha256(content).digest() != self._digest:
                raise ListChangedError(self.path, "has changed while it was loaded; try again")
        return content

    def _text(self) -> bytes:
        return self.content.removeprefix(BYTE_ORDER_MARK)

    def _blocks(self) -> Iterator[tuple[int, list[bytes]]]:
        """The lines in blocks, with the number of the first; a million lines at once would take 60 MB."""
        content = self._text()
        number, start = 1, 0
        while start <= len(content):
            end = content.find(b"\n", start + BLOCK_BYTES)
            end = len(content) if end < 0 else end
            lines = content[start:end].split(b"\n")
            yield number, lines
            number += len(lines)
            start = end + 1


@lru_cache(maxsize=1024)  # entries often end together
def _end(word: bytes) -> float | None:
    return parse_end(word.decode("utf-8", "replace"))


def _stripped(lines: list[bytes]) -> list[bytes]:
    """Returns lines without their comments and surrounding blanks; empty for a line without an entry."""
    joined = b"\n".join(lines)
    for mark in _COMMENT_MARKS:
        if mark in joined:
            lines = [line.partition(mark)[0] for line in lines]
    if b"#" in joined or b";" in joined:
        lines = [b"" if line.startswith((b"#", b";")) else line for line in lines]
    return [*map(bytes.strip, lines)]


@dataclass(slots=True)
class ListDefinition:
    """One list: `values` as written in the ruleset, or a `file`. Neither if the definition is wrong."""

    name: str
    path: str
    line: int
    column: int
    values: list[Scalar] = field(default_factory=list)
    file: ListFile | None = None
    file_path: str = ""  # set even if the file cannot be read
    local: bool = False  # written by this host, and not part of the ruleset's hash
    source: Source | None = None  # its source for `policyd fetch`; a fetched list is not part of the hash either
    used: bool = False
    _parsed: dict[Form, Entries] = field(default_factory=dict)

    def entries(self) -> Iterator[WrittenEntry]:
        """The entries as written, with their positions."""
        if self.file is not None:
            yield from self.file.entries()
        for value in self.values:
            yield WrittenEntry(value.text, self.path, value.line, value.column)

    def parse(self, form: Form, rule: str, condition: str, report: Report) -> Entries:
        """The entries in the form in which they are compared, the same object for each condition of that form."""
        using = f"{condition}: list {quoted(self.name)}"
        if self.file is not None:
            return self.file.parse(form, rule, using, report)
        parsed = self._parsed.get(form)
        if parsed is None:
            parsed = self._parsed[form] = parse_values(
                form, self.values, path=self.path, rule=rule, using=using, report=report
            )
        return parsed


def parse_values(form: Form, values: list[Scalar], *, path: str, rule: str, using: str, report: Report) -> Entries:
    """Returns values written in the rules file, in the form in which they are compared; reports invalid values."""
    lines = [value.text.encode() for value in values]
    parsed, bad = parse_entries(form, lines)
    for count, place in enumerate(bad):
        if not report.room(path):
            report.count_more(path, len(bad) - count)
            break
        value = values[place]
        report.add(Problem(path, value.line, value.column, f"{using}: {explain_entry(form, lines[place])}", rule))
    return parsed
