"""Requests to a shared server: operations of its script, and the names of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from policyd.memory.definitions import CounterDefinition

PREFIX = b"policyd:"


class Operation(NamedTuple):
    """One thing that the script does: `kind` as it stands there, and what the kind needs."""

    kind: str
    key: bytes
    seconds: int = 0  # the window of a counter, or after how long a key expires
    value: bytes = b""


# What came of each operation: the value of a counter, what stands under a key, or None for nothing.
Found: TypeAlias = "int | bytes | None"


def counting(counter: CounterDefinition, key: bytes, value: bytes | None, *, add: bool) -> Operation:
    """Returns the operation that counts a request (`add`), or that tells the value that it would have."""
    kind = "event" if counter.distinct is None else "distinct"
    return Operation(kind if add else f"peek-{kind}", counter_key(counter, key), counter.within, value or b"")


def counter_key(counter: CounterDefinition, key: bytes) -> bytes:
    """Returns the name under which a counter's key is kept; two definitions never share one."""
    return b"%bc:%b:%b:%b" % (PREFIX, counter.name.encode(), counter.fingerprint.hex().encode(), key)


def network_key(network: bytes) -> bytes:
    """Returns the name under which it is kept that a network has passed greylisting."""
    return b"%bg:network:%b" % (PREFIX, network)


def waiting_key(key: bytes) -> bytes:
    """Returns the name under which a first try waits."""
    return b"%bg:first:%b" % (PREFIX, key)
