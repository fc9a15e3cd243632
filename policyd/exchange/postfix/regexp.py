"""Imports Postfix's regexp: tables (regexp_table(5)), which have POSIX expressions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyd.exchange.postfix import expressions
from policyd.exchange.regex_translation import from_posix

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policyd.exchange.model import ConversionReport, Imported, Line


def read(lines: Iterable[Line], report: ConversionReport, *, attribute: str | None = None) -> Imported:
    """The table's rows; see `expressions.read`."""
    return expressions.read(lines, report, from_posix, attribute=attribute)
