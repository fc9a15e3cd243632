"""Spamhaus' DROP lists, import: the text form (`NETWORK ; SBL123`) and JSON lines (`{"cidr": ...}`).

https://www.spamhaus.org/blocklists/do-not-route-or-peer/
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from policyd.exchange.model import Entry, Imported, NoEqualError, Term
from policyd.exchange.values import network, network_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policyd.exchange.model import Line, Report


def read(lines: Iterable[Line], report: Report) -> Imported:
    """The list's networks."""
    imported = Imported()

    def take(line: Line) -> bool:
        text = line.text.strip()
        word = _read_object(text) if text.startswith("{") else text.partition(";")[0].strip()
        if word:
            imported.entries.append(Entry(Term("cidr", network_text(network(word))), line))
        return bool(word)

    report.take_each(lines, take)
    return imported


def _read_object(text: str) -> str:
    """The network of a line's object; empty for the list's own description, its last line."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise NoEqualError("no whole JSON object; the file may be cut off") from None
    if fields.get("type") == "metadata":
        return ""
    if "asn" in fields:
        raise NoEqualError("an AS number; policyd knows networks, not who announces them")
    found = fields.get("cidr")
    if not isinstance(found, str):
        raise NoEqualError("the object has no 'cidr'")
    return found
