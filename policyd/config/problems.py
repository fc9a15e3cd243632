"""Errors, warnings and notices about settings, rules and lists, each with its file, line and column.

A reader collects `Problem`s in a `Report` and goes on, so that one run shows all of them. `ConfigErrors` carries
them out of `policyd.config.load.load`. Nothing here reads a file.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from policyd.core.printable import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

# Maximum number of problems kept and printed for a file, followed by a count, so that a list file of a million bad
# lines fills neither the terminal nor the memory.
MAX_PROBLEMS = 100

# Maximum characters of a message. Each quotation is cut, but a message may contain many, such as every rule that
# matched.
MAX_MESSAGE = 1_500

# Maximum characters of a word that gets a suggestion; comparing a word of a megabyte takes seconds.
MAX_GUESSED = 100

# Maximum number of known words compared for a suggestion, at 15 us each. More names than this come from a
# generator, which makes no typing errors.
MAX_KNOWN = 300


class Severity(Enum):
    """The severity of a problem. Warnings and notices do not stop the load."""

    NOTICE = "notice"  # for information
    WARNING = "warning"
    WRONG = "wrong"  # the content is wrong: exit status 1
    UNREADABLE = "unreadable"  # a settings or rules file cannot be read: exit status 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem. `line` and `column` count from 1; 0 means the whole file.

    `path` is the file as the user named it. `rule` is the rule that has the problem, empty if no rule has it.
    """

    path: str
    line: int
    column: int
    message: str
    rule: str = ""
    severity: Severity = Severity.WRONG

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}:{self.column}" if self.line else self.path
        kind = f"{self.severity.value}: " if self.severity in {Severity.NOTICE, Severity.WARNING} else ""
        rule = f"rule {quoted(self.rule)}: " if self.rule else ""
        message = self.message if len(self.message) <= MAX_MESSAGE else self.message[: MAX_MESSAGE - 3] + "..."
        return printable(f"{place}: {kind}{rule}{message}")


class Report:
    """Collects the problems of one load, at most MAX_PROBLEMS of a file, and counts the rest."""

    def __init__(self) -> None:
        self._by_path: dict[str, list[Problem]] = {}
        self._uncollected: dict[str, int] = {}

    def add(self, problem: Problem) -> None:
        """Adds a problem; a repeated problem is added once."""
        problems = self._by_path.setdefault(problem.path, [])
        if len(problems) >= MAX_PROBLEMS:
            self.count_more(problem.path, 1)
        elif problem not in problems:
            problems.append(problem)

    def room(self, path: str) -> int:
        """Returns how many more problems of this file will be kept."""
        return MAX_PROBLEMS - len(self._by_path.get(path, ()))

    def count_more(self, path: str, count: int) -> None:
        """Counts problems of a file beyond those that are kept."""
        self._uncollected[path] = self._uncollected.get(path, 0) + count

    def extend(self, other: Report) -> None:
        """Adds the problems of another report."""
        for problem in other.problems:
            self.add(problem)
        for path, count in other._uncollected.items():
            self.count_more(path, count)

    def __bool__(self) -> bool:
        return bool(self._by_path)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All problems kept: files in the order in which they were first reported, each from top to bottom."""
        return tuple(
            problem
            for problems in self._by_path.values()
            for problem in sorted(problems, key=lambda each: (each.line, each.column))
        )

    def lines(self) -> Iterator[str]:
        """One line for each problem; for a file with more problems, also a line with their number."""
        last_of = {problem.path: problem for problem in self.problems}
        for problem in self.problems:
            yield str(problem)
            more = self._uncollected.get(problem.path, 0)
            if more and problem is last_of[problem.path]:
                yield printable(f"{problem.path}: and {counted(more, 'more problem')}")


class ConfigErrors(Exception):  # noqa: N818 - it carries several errors
    """Settings or ruleset cannot be used. `str()` and `lines` have one line for each problem."""

    def __init__(self, report: Report) -> None:
        self.problems = report.problems
        self.lines = tuple(report.lines())
        super().__init__("\n".join(self.lines))

    @property
    def exit_status(self) -> int:
        """The command's exit status: 2 if a settings or rules file cannot be read, else 1."""
        return 2 if any(problem.severity is Severity.UNREADABLE for problem in self.problems) else 1

    def __reduce__(self) -> tuple[object, ...]:
        return _unpickle_errors, (self.problems, self.lines)


def _unpickle_errors(problems: tuple[Problem, ...], lines: tuple[str, ...]) -> ConfigErrors:
    errors = ConfigErrors.__new__(ConfigErrors)
    errors.problems, errors.lines = problems, lines
    errors.args = ("\n".join(lines),)
    return errors


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'hostname_suffix'?` if a known word begins with `word` or resembles it, else ''."""
    if len(word) > MAX_GUESSED:
        return ""
    by_lower = {name.lower(): name for name in known}
    completions = [name for name in by_lower if len(word) > 2 and name.startswith(word.lower())]
    close = completions or difflib.get_close_matches(word.lower(), [*by_lower][:MAX_KNOWN], n=1)
    return f"; did you mean '{by_lower[close[0]]}'?" if close else ""


def unknown_key(key: str, known: Collection[str]) -> str:
    """Returns the message about an unknown key, with the similar key or else all known keys."""
    hint = did_you_mean(key, known) or f"; there are {', '.join(known)}"
    return f"unknown key {quoted(key)}{hint}"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Formats a number with its noun: `1 mail`, `2,000 mails`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def quoted(text: str, limit: int = 80) -> str:
    """Returns a piece of a file for a message: in quotes, and cut to `limit` characters."""
    return f"'{text if len(text) <= limit else text[: limit - 3] + '...'}'"
