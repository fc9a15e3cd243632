"""Reports that concern the sets of both ipset and nftables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyd.exchange.model import ConversionReport, Line

ELEMENT_EXPIRES = "the element expires by itself there, but not here"


def note_merged(sets: Mapping[str, Line], report: ConversionReport) -> None:
    """Notes that several sets became one list. `sets` has the first line of each set, by name."""
    if len(sets) > 1:
        report.note(
            next(iter(sets.values())),
            f"the sets {', '.join(sets)} were merged into one list; --set NAME selects one of them",
        )
