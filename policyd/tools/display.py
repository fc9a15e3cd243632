"""Output of the tools: results on standard output, progress on standard error if that is a terminal.

Promises: text that `shown` made from a client's bytes is printable ASCII, so it cannot control a terminal. Colours and
progress bars appear on a terminal only, and rich honours NO_COLOR.
"""

from __future__ import annotations

import contextlib
import re
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from policyd.logs.files import total_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Characters in a line without a terminal: a table must not be cut in a file or a pipe.
_PIPE_WIDTH = 240

# Columns whose text is never folded.
_UNFOLDED = frozenset({"rule", "action", "time", "last"})

_UNPRINTABLE = re.compile(rb"[^ -~]|\\")


def shown(value: bytes) -> str:
    """Converts bytes to printable ASCII; other bytes and backslashes become `\\xNN`, as in the decision log."""
    return _UNPRINTABLE.sub(lambda byte: b"\\x%02x" % byte[0][0], value).decode("ascii")


def results() -> Console:
    """Returns a console for results. It writes to the current standard output."""
    terminal = sys.stdout.isatty()
    return Console(
        file=sys.stdout,
        highlight=False,
        markup=False,
        emoji=False,
        width=None if terminal else _PIPE_WIDTH,
        soft_wrap=not terminal,
    )


def table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    """Returns an empty table with these headings; the columns in `numbers` are aligned to the right.

    On a narrow terminal, text from users and clients is folded; numbers, rule names, actions and times are not.
    """
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        number = column in numbers
        no_wrap = number or column in _UNFOLDED
        made.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=no_wrap)
    return made


def styled_verb(verb: str) -> Text:
    """Returns the word of an action in the colour of that action."""
    return Text(verb, style={"REJECT": "red", "DUNNO": "green"}.get(verb, "yellow"))


@contextlib.contextmanager
def reading(paths: Sequence[str]) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar over the bytes of these files while the block runs.

    Yields a function that advances the bar by a number of bytes. Raises `LogError` for a path that cannot be read.
    """
    total = total_bytes(paths)
    console = Console(file=sys.stderr)
    with Progress(
        TextColumn("reading"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)
