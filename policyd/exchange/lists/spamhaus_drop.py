"""Imports Spamhaus' DROP lists: the text form (`NETWORK ; SBL123`) and JSON lines (`{"cidr": ...}`).

JSON ends with a record about the list, which may give the number of the other records. A file without this record, or
with another number of records, is incomplete. A text that ends in the middle of an entry's line is incomplete, too.
Networks that overlap are all kept.

https://www.spamhaus.org/blocklists/do-not-route-or-peer/
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from policyd.exchange.model import Imported, IncompleteError, ListEntry, Term, UnsupportedError
from policyd.exchange.values import network, network_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policyd.exchange.model import ConversionReport, Line


def read(lines: Iterable[Line], report: ConversionReport) -> Imported:
    """The list's networks. Raises `IncompleteError`."""
    imported = Imported()
    records = 0  # since the file's beginning, or since the last record about a list
    last: Line | None = None

    def take(line: Line) -> bool:
        nonlocal records, last
        text = line.text.strip()
        if not text.startswith("{"):
            last = line if text else last
            word = text.partition(";")[0].strip()
            if word and not line.ended:
                raise IncompleteError(line, "the file ends in the middle of the line")
        else:
            last = line
            fields = _fields(line)
            if fields.get("type") == "metadata":
                _check_count(line, fields.get("records"), records)
                records = 0
                return False
            records += 1
            word = _network_of(fields)
        if word:
            entry = Term("cidr", network_text(network(word, report.on_host_bits(line))))
            imported.entries.append(ListEntry(entry, line))
        return bool(word)

    report.take_each(lines, take)
    if records and last is not None:
        raise IncompleteError(last, 'the last record, {"type":"metadata",...}, is missing')
    return imported


def _fields(line: Line) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = json.loads(line.text)
    except (ValueError, RecursionError):
        if not line.ended:
            raise IncompleteError(line, "the file ends in the middle of the line") from None
        raise UnsupportedError("not a JSON object") from None
    return fields


def _check_count(line: Line, promised: object, found: int) -> None:
    if isinstance(promised, int) and promised != found:
        raise IncompleteError(line, f"the list has {promised:,} records, and {found:,} of them are in the file")


def _network_of(fields: dict[str, Any]) -> str:
    if "asn" in fields:
        raise UnsupportedError("an AS number; this format is imported as networks only")
    found = fields.get("cidr")
    if not isinstance(found, str):
        raise UnsupportedError("the object has no 'cidr'")
    return found
