"""Postfix's regexp: tables (regexp_table(5)), import: POSIX expressions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyd.tools.formats import postfix_expressions
from policyd.tools.formats.expressions import from_posix

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policyd.tools.formats.exchange import Imported, Line, Report


def read(lines: Iterable[Line], report: Report, *, attribute: str | None = None) -> Imported:
    """The table's rows; see `postfix_expressions.read`."""
    return postfix_expressions.read(lines, report, from_posix, attribute=attribute)
