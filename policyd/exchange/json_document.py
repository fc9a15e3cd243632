"""Reads a JSON document that may extend over several lines of a file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from policyd.exchange.model import IncompleteError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policyd.exchange.model import Line


def json_document(first: Line, following: Iterable[Line]) -> Any:
    """The document in the line `first` and all lines after it. Raises `IncompleteError` if it is not valid JSON."""
    try:
        return json.loads("\n".join(line.text for line in (first, *following)))
    except (ValueError, RecursionError):
        raise IncompleteError(first, "not a whole JSON document") from None
