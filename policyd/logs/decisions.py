"""Reads the decisions in several decision logs, and counts their lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from policyd.decision_log.reader import LoggedDecision, parse_anywhere
from policyd.logs.files import LogError, read_blocks
from policyd.logs.maillog import MailLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# Maximum lines that are checked to distinguish a mail log from other files.
_SAMPLE_LINES = 1000


@dataclass(slots=True)
class DecisionCounts:
    """Counts lines, and the decisions in them."""

    lines: int = 0
    decisions: int = 0


def decisions(
    paths: Iterable[str], counts: DecisionCounts, advance: Callable[[int], None] | None = None
) -> Iterator[list[LoggedDecision]]:
    """Yields the decisions in all of these files, in lists, and keeps `counts` up to date.

    Raises `LogError` for a file that cannot be read, or that has lines but no decision.
    """
    name, lines, found = "", 0, 0
    sample: list[bytes] = []
    for block in read_blocks(paths, advance):
        if block.first:
            _refuse_foreign(name, counts.lines - lines, counts.decisions - found, sample)
            name, lines, found = block.name, counts.lines, counts.decisions
            sample = block.lines[:_SAMPLE_LINES]
        block_lines = block.lines
        batch = [decision for line in block_lines if (decision := parse_anywhere(line)) is not None]
        counts.lines += len(block_lines)
        counts.decisions += len(batch)
        yield batch
    _refuse_foreign(name, counts.lines - lines, counts.decisions - found, sample)


def _refuse_foreign(name: str, lines: int, found: int, sample: list[bytes]) -> None:
    if lines and not found:
        raise LogError(
            f"{name}: not a decision log: none of its {lines:,} lines is a decision of policyd{_advice(sample)}"
        )


def mail_log_hint(path: str) -> str:
    """Returns advice for the end of a message if a file without decisions is a mail log; empty if it is not.

    Raises `LogError` if the file cannot be read.
    """
    for block in read_blocks([path]):
        return _advice(block.lines[:_SAMPLE_LINES])
    return ""


def _advice(sample: list[bytes]) -> str:
    log = MailLog()
    log.feed(sample)
    return "; it is a mail log, which `policyd replay` and `policyd suggest` read" if log.counts.used else ""
