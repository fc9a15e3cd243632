"""Exports the rules in order as JSON for programs. The names of lists are replaced by the entries."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from policyd.exchange.model import by_condition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policyd.exchange.model import ConversionReport, ExportOptions, Row


def write(rows: Sequence[Row], report: ConversionReport, _options: ExportOptions) -> str:
    """A document `{"rules": [{"name", "match", "except", "action", ...}]}` with conditions as in rules.yaml."""
    report.taken += len(rows)
    rules = [
        {
            "name": row.name,
            "match": by_condition(row.match),
            "except": by_condition(row.exceptions),
            "action": str(row.verdict.verb),
            "code": row.verdict.code,
            "text": row.verdict.text,
            "mode": "observe" if row.observe else "enforce",
            "expires": row.expires.isoformat() if row.expires else None,
        }
        for row in rows
    ]
    return json.dumps({"rules": rules}, indent=2) + "\n"
