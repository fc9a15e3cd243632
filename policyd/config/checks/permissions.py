"""Who may write the files that decide whose mail arrives.

Everybody who can write a rules file, a list or the settings, or put another file in their place, decides that as much
as their owner. Only what every user of the host may do is found: a group that may write is taken for one that is
meant to.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from policyd.config.problems import Problem, Severity, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def exposed_files(paths: Iterable[str]) -> Iterator[Problem]:
    """A warning for each file that everybody on this host may write, or replace by another."""
    for path in paths:
        try:
            message = _exposure(path)
        except OSError:
            continue  # it has been read, and is gone by now
        if message:
            yield Problem(path, 0, 0, message, severity=Severity.WARNING)


def _exposure(path: str) -> str:
    decides = "and so decide whose mail arrives"
    if Path(path).stat().st_mode & stat.S_IWOTH:
        return f"everybody on this host may write to it, {decides}; chmod o-w"
    # With a symbolic link on the way there are two places where another file could be put.
    for folder in {os.path.dirname(path) or ".", os.path.dirname(os.path.realpath(path))}:  # noqa: PTH120 - text, as it was written
        mode = Path(folder).stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return f"everybody on this host may put another file in its place, {decides}; chmod o-w {quoted(folder)}"
    return ""
