"""postgrey's lists of clients and recipients that are not greylisted (postgrey(8)), import.

An entry is a name with the names under it, an address, a network, the first octets of an address, or an expression
between slashes, which postgrey matches against the client's name, case-insensitively. A list of recipients has
`local@`, addresses, domains and expressions (`attribute` recipient).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from policyd.exchange.lists import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from policyd.exchange.model import Imported, Line, Report


def read(lines: Iterable[Line], report: Report, *, attribute: str | None = None) -> Imported:
    """The list's entries; `attribute` is `client` (as None) or `recipient`. They become exemptions."""
    imported = plain.read(_without_comments(lines), report, attribute=attribute)
    if imported.entries:
        report.note(
            imported.entries[0].line, "these clients pass every rule below; put the rules above those that greylist"
        )
    return imported


def _without_comments(lines: Iterable[Line]) -> Iterator[Line]:
    for line in lines:
        text = re.sub(r"#.*", "", line.text).strip()
        # All expressions ignore case.
        yield line._replace(text=f"{text}i" if re.fullmatch(r"/\S+/", text) else text)
