"""Reads decision logs: the decisions of several files, and how many lines were read for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from policyd.decision_log.reader import LoggedDecision, parse_anywhere
from policyd.logs.files import LogError, read_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


@dataclass(slots=True)
class DecisionCounts:
    """What became of the lines."""

    lines: int = 0
    decisions: int = 0


def decisions(
    paths: Iterable[str], counts: DecisionCounts, advance: Callable[[int], None] | None = None
) -> Iterator[list[LoggedDecision]]:
    """The decisions in all of these files, in lists; `counts` says how it went.

    Raises `LogError` for a file that cannot be read, and for one with lines and without any decision.
    """
    name, lines, found = "", 0, 0
    for block in read_blocks(paths, advance):
        if block.first:
            _refuse_foreign(name, counts.lines - lines, counts.decisions - found)
            name, lines, found = block.name, counts.lines, counts.decisions
        batch = [decision for line in block.lines if (decision := parse_anywhere(line)) is not None]
        counts.lines += len(block.lines)
        counts.decisions += len(batch)
        yield batch
    _refuse_foreign(name, counts.lines - lines, counts.decisions - found)


def _refuse_foreign(name: str, lines: int, found: int) -> None:
    if lines and not found:
        raise LogError(f"{name}: no decision log: none of its {lines:,} lines is a decision of policyd's")
