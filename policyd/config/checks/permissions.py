"""Finds settings, rules, list and database files that every user of the host can write or replace.

A user who can write such a file decides whose mail arrives. Group write permission is assumed to be intended.
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
    """Yields a warning for each file that every user of this host may write, or replace by another."""
    for path in paths:
        try:
            message = _exposure(path)
        except OSError:
            continue  # it was removed after it had been read
        if message:
            yield Problem(path, 0, 0, message, severity=Severity.WARNING)


def _exposure(path: str) -> str:
    decides = "and so decide whose mail arrives"
    if Path(path).stat().st_mode & stat.S_IWOTH:
        return f"every user of this host may write to it, {decides}; chmod o-w"
    # A symbolic link makes two folders in which the file could be replaced.
    for folder in {os.path.dirname(path) or ".", os.path.dirname(os.path.realpath(path))}:  # noqa: PTH120 - the message quotes it unchanged
        mode = Path(folder).stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return f"every user of this host may put another file in its place, {decides}; chmod o-w {quoted(folder)}"
    return ""
