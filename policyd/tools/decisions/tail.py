"""Follows the decision log across rotation, like `tail -F`, with filters."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from rich.text import Text

from policyd.decision_log.reader import LoggedDecision, as_text, parse_anywhere
from policyd.logs.files import MAX_LINE_BYTES, LogError, read_blocks
from policyd.tools.decisions.networks import in_networks
from policyd.tools.display import styled_verb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import netaddr

# Seconds between two reads of a log: fast enough for people, and cheap.
POLL_SECONDS = 0.2

# Maximum bytes read at once. The first lines come from this many bytes at the end of the log, which hold more than 100
# lines of the maximum length (4 KiB).
_BACK_BYTES = 512 * 1024


class DecisionFilter(NamedTuple):
    """Filter of decisions; an empty field selects all.

    A decision matches if it has one of the actions, one of the rules and one of the networks.
    """

    actions: frozenset[bytes] = frozenset()
    rules: frozenset[bytes] = frozenset()
    networks: tuple[netaddr.IPNetwork, ...] = ()

    def matches(self, decision: LoggedDecision) -> bool:
        """Whether a decision matches, also by a suppressed action (`mode: observe`) or by a rule that only observes."""
        if decision.is_probe:
            return False
        if self.actions and decision.action not in self.actions and decision.would not in self.actions:
            return False
        if self.rules and not self.rules & {decision.rule_name, *decision.observed}:
            return False
        return not self.networks or in_networks(decision.client_address, self.networks)


def follow(
    path: str, last: int, wanted: DecisionFilter, wait: Callable[[], bool] = lambda: _wait(POLL_SECONDS)
) -> Iterator[LoggedDecision]:
    """Yields the `last` wanted decisions of the log, then each new decision as it is written.

    Looks for the `last` decisions in the last 512 KiB only. Calls `wait` when there is nothing to read, and ends when
    `wait` returns False. A rotated log is read to its end, then the new log from its start; a truncated log is read
    from its start. Raises `LogError` if the log cannot be opened at first.
    """
    try:
        file: BinaryIO = open(path, "rb")  # noqa: SIM115, PTH123 - replaced on rotation
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise LogError(f"{path}: {reason[0].lower()}{reason[1:]}") from None
    try:
        lines = _Lines()
        if last:
            yield from _last(file, lines, last, wanted)
        else:
            file.seek(0, os.SEEK_END)
        while True:
            found = lines.read(file)
            yield from _wanted_in(found, wanted)
            if found:
                continue
            new_file = _new_file(file, path)
            if new_file is not None:
                # The old file may have grown since the last read.
                yield from _wanted_in(lines.read(file), wanted)
                file.close()
                file, lines = new_file, _Lines()
                continue
            if os.fstat(file.fileno()).st_size < file.tell():
                file.seek(0)
                lines = _Lines()
                continue
            if not wait():
                return
    finally:
        file.close()


def every(paths: Sequence[str], wanted: DecisionFilter) -> Iterator[LoggedDecision]:
    """Yields the wanted decisions of complete files, or of standard input until it ends. Raises `LogError`."""
    for block in read_blocks(paths):
        yield from _wanted_in(block.lines, wanted)


def _wanted_in(lines: Iterable[bytes], wanted: DecisionFilter) -> Iterator[LoggedDecision]:
    for line in lines:
        decision = parse_anywhere(line)
        if decision is not None and wanted.matches(decision):
            yield decision


def as_line(decision: LoggedDecision) -> Text:
    """Returns the decision as a line of the text format, with its action in colour and its rule in bold."""
    line = as_text(decision)
    timestamp, _, rest = line.partition(" ")
    action, _, rest = rest.partition(" ")
    text = Text(timestamp, style="dim").append(" ").append(styled_verb(action)).append(" ")
    before, key, after = rest.partition("rule=")
    if decision.rule and key:
        rule, _, after = after.partition(" ")
        text.append(before + key).append(rule, style="bold").append(f" {after}")
    else:
        text.append(rest)
    return text


class _Lines:
    """Reads whole lines of a file that is being written."""

    def __init__(self) -> None:
        self._rest = b""

    def read(self, file: BinaryIO) -> list[bytes]:
        """Reads a block, and returns the lines that are complete with it; empty at the end of the file."""
        block = file.read(_BACK_BYTES)
        if not block:
            return []
        lines = (self._rest + block).split(b"\n")
        self._rest = lines.pop()[-MAX_LINE_BYTES:]
        return lines


def _last(file: BinaryIO, lines: _Lines, last: int, wanted: DecisionFilter) -> list[LoggedDecision]:
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _BACK_BYTES)
    file.seek(start)
    kept: deque[LoggedDecision] = deque(maxlen=last)
    is_cut = start > 0  # the first line lacks its start
    while found := lines.read(file):
        kept.extend(_wanted_in(found[1:] if is_cut else found, wanted))
        is_cut = False
    return list(kept)


def _new_file(file: BinaryIO, path: str) -> BinaryIO | None:
    """Opens the file that is now at the path, if it is not the open file; returns None if there is no such file yet."""
    try:
        now = os.stat(path)  # noqa: PTH116 - a path that was typed, used as it is
        if os.path.samestat(now, os.fstat(file.fileno())):
            return None
        return open(path, "rb")  # noqa: PTH123 - as above; the caller closes the file
    except OSError:
        return None  # rotation is not complete, or the new file is not readable yet: try again


def _wait(seconds: float) -> bool:
    time.sleep(seconds)
    return True
