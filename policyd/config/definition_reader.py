"""The base class of the readers of definitions in the rules file (such as counters), and what they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyd.config.problems import Problem, unknown_key
from policyd.config.yaml_tree import Mapping, Scalar, describe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policyd.config.problems import Report
    from policyd.config.yaml_tree import Item, Node

# The form of every name: of a rule, a list, a DNS list, a counter.
NAME_PATTERN = r"[A-Za-z0-9_.-]+"

# The values of a boolean key, such as `allow_empty`.
TRUTHS = {"true": True, "yes": True, "false": False, "no": False}


def definitions(node: Node, section: str, path: str, report: Report) -> Iterator[Item]:
    """Yields each name with its definition; reports a section that is not a mapping. `path` is the rules file's."""
    if isinstance(node, Mapping):
        yield from node
    else:
        message = f"{section}: expected names with their definitions, not {describe(node)}"
        report.add(Problem(path, node.line, node.column, message))


class DefinitionReader:
    """Reads the fields of one definition and reports its problems.

    `definition` begins each message, for instance `counter 'tries'`; `path` is the rules file's.
    """

    def __init__(self, definition: str, path: str, report: Report) -> None:
        self.path = path
        self.is_wrong = False
        self._definition = definition
        self._report = report

    def add(self, node: Node, message: str) -> None:
        """Reports a problem at a node."""
        self.is_wrong = True
        self._report.add(Problem(self.path, node.line, node.column, f"{self._definition}: {message}"))

    def check_keys(self, node: Mapping, known: tuple[str, ...]) -> None:
        """Reports unknown keys."""
        for item in node:
            if item.key.text not in known:
                self.add(item.key, unknown_key(item.key.text, known))

    def text(self, item: Item, meaning: str) -> str:
        """Returns the text of a field. Reports a field without a text, and returns an empty text for it."""
        value = item.value
        if isinstance(value, Scalar) and value.text:
            return value.text
        self.add(value, f"{item.key.text}: expected {meaning}, not {describe(value)}")
        return ""
