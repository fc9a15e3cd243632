"""Finds the counters that count a request, with key and value."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

from policyd.core.engine import Inquiry
from policyd.core.facts import NOTHING_KNOWN
from policyd.memory.definitions import MAX_KEY_BYTES, bounded

if TYPE_CHECKING:
    import datetime

    from policyd.core.index import Ruleset
    from policyd.core.owners import Owner
    from policyd.core.protocol import Request
    from policyd.memory.definitions import CounterDefinition


class Count(NamedTuple):
    """One counter that counts a request. `value` is the value that a `distinct` counter counts, None for a count of
    requests.
    """

    counter: CounterDefinition
    key: bytes
    value: bytes | None


def counts_of(inquiry: Inquiry) -> list[Count]:
    """Returns the counters that count the inquiry's request."""
    request, counts, owner = inquiry.request, [], inquiry.owner
    asn = b"AS%d" % owner.asn if owner is not None and owner.asn else b""
    counter: CounterDefinition
    for counter in inquiry.counted():
        key = counter.make_key(request, asn)
        if not key:
            continue
        value = None
        if counter.make_value is not None and not (value := counter.make_value(request, asn)):
            continue
        if len(key) > MAX_KEY_BYTES or (value is not None and len(value) > MAX_KEY_BYTES):
            key, value = bounded(key), bounded(value) if value is not None else None
        counts.append(Count(counter, key, value))
    return counts


def first_counts(ruleset: Ruleset, request: Request, owner: Owner | None = None) -> dict[str, int]:
    """Returns the values of counters for a request that is the first of its kind: 1 for each that counts it.

    An `owner` that is not given is looked up in the databases of the ruleset.
    """
    inquiry = Inquiry(ruleset, request, NOTHING_KNOWN._replace(owner=owner), _ANY_DAY)
    return {count.counter.name: 1 for count in counts_of(inquiry)}


_ANY_DAY = cast("datetime.date", None)  # counting does not use it
