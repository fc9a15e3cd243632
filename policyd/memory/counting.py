"""Finds the counters that count a request, and the key and value that each counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, cast

from policyd.core.engine import Inquiry
from policyd.core.facts import NOTHING_KNOWN
from policyd.memory.definitions import MAX_KEY_BYTES, bounded

if TYPE_CHECKING:
    import datetime

    from policyd.core.index import Ruleset
    from policyd.core.owners import Owner
    from policyd.core.protocol import Request
    from policyd.memory.definitions import CounterDefinition


# A counter that counts a request; its key; the value that a `distinct` counter counts (None for a count of requests).
Count: TypeAlias = "tuple[CounterDefinition, bytes, bytes | None]"


def counts_of(inquiry: Inquiry) -> list[Count]:
    """Returns the counters that count the inquiry's request."""
    request, owner = inquiry.request, inquiry.owner
    counts: list[Count] = []
    asn = b"AS%d" % owner.asn if owner is not None and owner.asn else b""
    counter: CounterDefinition
    for counter in inquiry.matching_counters():
        key = counter.make_key(request, asn)
        if not key:
            continue
        make_value, value = counter.make_value, None
        if make_value is not None and not (value := make_value(request, asn)):
            continue
        if len(key) > MAX_KEY_BYTES or (value is not None and len(value) > MAX_KEY_BYTES):
            key, value = bounded(key), bounded(value) if value is not None else None
        counts.append((counter, key, value))
    return counts


def first_counts(ruleset: Ruleset, request: Request, owner: Owner | None = None) -> dict[str, int]:
    """Returns the values of counters when a request is the first that they count: 1 for each counter that counts it.

    If `owner` is None, it is looked up in the databases of the ruleset.
    """
    inquiry = Inquiry(ruleset, request, NOTHING_KNOWN._replace(owner=owner), _ANY_DAY)
    return {counter.name: 1 for counter, _, _ in counts_of(inquiry)}


_ANY_DAY = cast("datetime.date", None)  # counting does not use it
