"""Data that passes between another system's format and a ruleset.

An import gives `Row`s (a table's lines, each with a verdict) or `ListEntry`s (a list's entries, without a verdict).
Imports and exports report everything that they cannot convert, with its line, in a `ConversionReport`. Nothing here
depends on a format, reads a file or writes YAML.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from policyd.config.actions import ActionError, parse_action
from policyd.config.problems import quoted
from policyd.core.printable import printable
from policyd.core.ruleset import DEFAULT_TEXT, MAX_TEXT, Verb

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Iterable, Mapping

    from policyd.config.dns_list import Ask
    from policyd.core.ruleset import Action

# Maximum characters of a line in a message: enough to recognise it.
_MAX_SHOWN = 100

# Maximum characters of a reason in a message: some reasons quote a word, which can have any length.
_MAX_REASON = 400

# Maximum number of expressions in a table that are too large for RE2; no line below them is read. RE2 takes 5 ms to
# refuse each, and no real table has as many.
MAX_TOO_LARGE = 100

# Maximum number of lines that a note names; the rest are counted.
_NAMED_LINES = 3


class Line(NamedTuple):
    """A line of a file: its place (`number` counts from 1) and its text without the line's end.

    A logical line that spans several lines has the number of the first. `ended` is false if the file ends in the middle
    of the line.
    """

    path: str
    number: int
    text: str
    ended: bool = True


class Term(NamedTuple):
    """One value of one condition, both as in rules.yaml: `cidr` and `192.0.2.0/24`."""

    condition: str
    value: str


class ListEntry(NamedTuple):
    """One entry of a list, and its line."""

    term: Term
    line: Line


@dataclass(frozen=True, slots=True)
class Verdict:
    """The action of a row.

    `text` is a template as in rules.yaml: `{client_address}` is a placeholder, `{{` a brace. `passing` marks an action
    that does something else with the mail and lets it pass (for example HOLD): the row becomes a rule with DUNNO only
    if a row below would block.
    """

    verb: Verb
    code: str = ""
    text: str = ""
    passing: bool = False

    @classmethod
    def of(cls, action: Action) -> Verdict:
        """The verdict of a ruleset's action."""
        text = "".join(f"{{{piece}}}" if place % 2 else escaped(piece) for place, piece in enumerate(action.text))
        return cls(action.verb, action.code, text)

    @property
    def action(self) -> str:
        """The value of `action` in rules.yaml."""
        return " ".join(part for part in (self.verb, self.code, self.text) if part)


DUNNO = Verdict(Verb.DUNNO)
REJECT = Verdict(Verb.REJECT)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table, or one rule.

    A row matches if at least one term of each condition in `match` holds, and no exception. `name` is the name of the
    rule, or of the line if its format has names. `observe` and `expires` are those of a rule (`mode: observe`).
    """

    line: Line
    match: tuple[Term, ...]
    verdict: Verdict
    exceptions: tuple[Term, ...] = ()
    name: str = ""
    observe: bool = False
    expires: datetime.date | None = None
    at_least: int = 1  # the number of its `listed` terms that must hold


@dataclass(frozen=True, slots=True)
class NewDnsList:
    """The definition of a DNS list to write; `zone` has `{key}` in place of a key."""

    name: str
    zone: str
    codes: str
    ask: Ask
    key_file: str = ""


@dataclass(slots=True)
class Imported:
    """The content of a file: rows in the order in which they are tried, or the entries of a list.

    `dns_lists` are the DNS lists that the rows name.
    """

    rows: list[Row] = field(default_factory=list)
    entries: list[ListEntry] = field(default_factory=list)
    dns_lists: list[NewDnsList] = field(default_factory=list)


class UnsupportedError(Exception):
    """A line, or a rule of an export, that cannot be converted. The message says why, and may suggest an alternative.

    `exempts` marks a line that lets clients through: without the line, other lines may block these clients.
    """

    def __init__(self, message: str, *, exempts: bool = False) -> None:
        super().__init__(message)
        self.exempts = exempts


class SkippedError(UnsupportedError):
    """A line that the other system skips as well, or that never matches there."""


class IncompleteError(Exception):
    """The file is visibly truncated. `line` is the line to name in the message, such as the beginning of a block."""

    def __init__(self, line: Line, message: str) -> None:
        super().__init__(message)
        self.line = line


class TooLargeError(UnsupportedError):
    """The line's expression is too large for RE2."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A line (in an export, a rule) that was not converted. `exempts` is as in `UnsupportedError`."""

    line: Line
    reason: str
    exempts: bool = False

    def __str__(self) -> str:
        return printable(f"{location(self.line)}: lost: {shown(self.line.text)}: {cut(self.reason)}")


@dataclass(frozen=True, slots=True)
class Note:
    """A difference of some converted lines from the original: the first of these lines, and their total number."""

    reason: str
    lines: tuple[Line, ...]
    count: int

    def __str__(self) -> str:
        numbers = ", ".join(str(line.number) for line in self.lines)
        more = self.count - len(self.lines)
        if not self.lines[0].number:
            return printable(f"{self.lines[0].path}: note: {cut(self.reason)}")
        where = f"{self.lines[0].path}:{numbers}" + (f" and {more:,} more" if more else "")
        return printable(f"{where}: note: {cut(self.reason)}")


class ConversionReport:
    """Collects the losses and differences of an import or export."""

    def __init__(self) -> None:
        self.losses: list[Loss] = []
        self.taken = 0  # converted lines (or rules)
        self._notes: dict[tuple[str, str], dict[int, Line]] = {}
        self._notes_of_line: list[tuple[Line, str]] | None = None  # dropped if the line is lost

    def lose(self, line: Line, reason: str, *, exempts: bool = False) -> None:
        """Records a line that was not converted; `exempts` is as in `UnsupportedError`."""
        self.losses.append(Loss(line, reason, exempts))

    def note(self, line: Line, reason: str) -> None:
        """Records a difference. The same difference at many lines becomes one note."""
        if self._notes_of_line is not None:
            self._notes_of_line.append((line, reason))
            return
        self._notes.setdefault((line.path, reason), {})[line.number] = line

    def on_host_bits(self, line: Line) -> Callable[[], None]:
        """Returns the argument `on_host_bits` of `values.network`: a function that notes that bits were cleared."""
        return lambda: self.note(line, "the address had bits set beyond the prefix; they were cleared")

    def take_each(self, lines: Iterable[Line], take: Callable[[Line], bool]) -> None:
        """Passes each line to `take`, which returns whether the line was imported.

        Records each line for which `take` raises `UnsupportedError` as lost. If too many lines have expressions that
        are too large for RE2, all further lines are lost.
        """
        too_large = 0
        for line in lines:
            if too_large == MAX_TOO_LARGE:
                self.lose(line, f"not read: {too_large} expressions above it are too large for RE2")
                continue
            notes: list[tuple[Line, str]] = []
            self._notes_of_line = notes
            try:
                self.taken += take(line)
            except UnsupportedError as error:
                too_large += isinstance(error, TooLargeError)
                self.lose(line, str(error), exempts=error.exempts)
                notes = []
            finally:
                self._notes_of_line = None
            for noted_line, reason in notes:
                self.note(noted_line, reason)

    @property
    def notes(self) -> list[Note]:
        """The differences, each once, in order of appearance."""
        return [
            Note(reason, tuple(lines.values())[:_NAMED_LINES], len(lines)) for (_, reason), lines in self._notes.items()
        ]

    def in_order(self) -> list[Loss]:
        """The losses of each file from top to bottom."""
        files = {path: place for place, path in enumerate(dict.fromkeys(loss.line.path for loss in self.losses))}
        return sorted(self.losses, key=lambda loss: (files[loss.line.path], loss.line.number))

    def as_json_object(self) -> dict[str, Any]:
        """The report for programs."""
        return {
            "taken": self.taken,
            "lost": [
                {"file": loss.line.path, "line": loss.line.number, "text": loss.line.text, "reason": loss.reason}
                for loss in self.in_order()
            ],
            "notes": [
                {
                    "file": note.lines[0].path,
                    "lines": [line.number for line in note.lines],
                    "count": note.count,
                    "reason": note.reason,
                }
                for note in self.notes
            ],
        }

    def messages(self) -> Iterable[str]:
        """Yields a line for each loss, each file from top to bottom, and then a line for each kind of difference."""
        yield from (str(loss) for loss in self.in_order())
        yield from (str(note) for note in self.notes)


def location(line: Line) -> str:
    """`FILE:LINE`, or `FILE` without a line."""
    return f"{line.path}:{line.number}" if line.number else line.path


def shown(text: str) -> str:
    """A piece of a file for a message: in quotes, cut, and without control characters."""
    return printable(quoted(text, _MAX_SHOWN))


def cut(reason: str) -> str:
    """A reason, cut to a readable length."""
    return reason if len(reason) <= _MAX_REASON else reason[: _MAX_REASON - 3] + "..."


def by_condition(terms: Iterable[Term]) -> dict[str, tuple[str, ...]]:
    """The values of each condition, in order, without repetitions."""
    values: dict[str, dict[str, None]] = {}
    for condition, value in terms:
        values.setdefault(condition, {})[value] = None
    return {condition: tuple(unique) for condition, unique in values.items()}


# --- Texts of answers -------------------------------------------------------------------------------------------------

_ENHANCED = re.compile(r"[245](\.(?:0|[1-9]\d{0,2})\.(?:0|[1-9]\d{0,2}))(?:\s+|$)", re.ASCII)
_REPLY_CODE = re.compile(r"[245]\d\d(?:[\s-]+|$)", re.ASCII)
_UNSAFE = re.compile(r"[^ -~]")


@functools.lru_cache(maxsize=1024)  # most lines of a table have one of a few verdicts
def blocking(verb: Verb, text: str) -> Verdict:
    """A blocking verdict with the code and text of another system's answer, adapted to rules.yaml.

    The code begins with 5 for REJECT, otherwise with 4. The text is printable ASCII without a reply code in front, and
    is cut to the maximum length of an answer.
    """
    words = " ".join(text.split())
    while match := _REPLY_CODE.match(words):
        words = words[match.end() :]
    code = ""
    if enhanced := _ENHANCED.match(words):
        code = ("5" if verb is Verb.REJECT else "4") + enhanced[1]
        words = words[enhanced.end() :]
    while match := _REPLY_CODE.match(words):
        words = words[match.end() :]
    room = MAX_TEXT - len(code) - 1
    made = Verdict(verb, code, escaped(_UNSAFE.sub("?", words)[:room].rstrip()))
    try:
        parse_action(made.action)
    except ActionError:  # the text begins with a number that Postfix would parse as a code
        made = replace(made, text=f"{DEFAULT_TEXT}: {made.text}")
    return made


def escaped(text: str) -> str:
    """A text with its braces doubled, so that none begins a placeholder."""
    return text.replace("{", "{{").replace("}", "}}")


def without_placeholders(template: str, values: Mapping[str, str]) -> str:
    """A template's text with `{{` and `}}` as braces, and placeholders replaced by `values`, or `...`."""

    def fill(match: re.Match[str]) -> str:
        piece = match[0]
        return piece[0] if piece in {"{{", "}}"} else values.get(piece[1:-1], "...")

    return re.sub(r"\{\{|\}\}|\{\w+\}", fill, template)


# --- Export -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Options of an export.

    `name` is the name of the set, chain or table in the other system; `verdict` is for the entries of a list.
    `condition` chooses the entries for a list in the other system. `attribute` and `dotted` are as in `ImportOptions`.
    With `deferred`, formats with a single verdict treat DEFER as a rejection. `version` is the IP version of formats
    that support only one version. `heading` describes the export in one line.
    """

    name: str = "policyd"
    verdict: Verdict = REJECT
    condition: str | None = None
    attribute: str = "client"
    dotted: bool = False
    deferred: bool = False
    version: int = 4
    heading: str = ""


def static_text(row: Row, report: ConversionReport) -> str:
    """The code and text of a rule's answer for a table, with `...` for every value that depends on the request."""
    template = row.verdict.text
    if re.search(r"\{(?!\{|rule\})", template.replace("{{", "")):
        report.note(row.line, "placeholders are not supported there: the text has `...` in their place")
    text = _UNSAFE.sub("?", without_placeholders(template, {"rule": row.name}))
    return " ".join(part for part in (row.verdict.code, text) if part)
