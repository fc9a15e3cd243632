"""Exports rules as comma-separated values (RFC 4180, but with LF): a line for each value of each condition."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policyd.exchange.model import ConversionReport, ExportOptions, Row

_COLUMNS = ("order", "rule", "action", "code", "text", "mode", "expires", "clause", "condition", "value")


def write(rows: Sequence[Row], report: ConversionReport, _options: ExportOptions) -> str:
    """Every row, in order, with all its conditions and exceptions."""
    file = io.StringIO(newline="")
    table = csv.writer(file, lineterminator="\n")
    table.writerow(_COLUMNS)
    for order, row in enumerate(rows, 1):
        mode = "observe" if row.observe else "enforce"
        of_rule = (order, row.name, str(row.verdict.verb), row.verdict.code, row.verdict.text, mode, row.expires or "")
        table.writerows((*of_rule, "match", *term) for term in row.match)
        table.writerows((*of_rule, "except", *term) for term in row.exceptions)
        report.taken += 1
    return file.getvalue()
