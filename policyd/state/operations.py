"""Operations of the script that a shared server runs, and the keys that they use on the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from policyd.memory.definitions import CounterDefinition

PREFIX = b"policyd:"


class Operation(NamedTuple):
    """One operation of the script: `kind` as in the script, with its arguments."""

    kind: str
    key: bytes
    seconds: int = 0  # the window of a counter, or the time after which a key expires
    value: bytes = b""


# The result of an operation: the value of a counter, the value of a key, or None.
Result: TypeAlias = "int | bytes | None"


def count_operation(counter: CounterDefinition, key: bytes, value: bytes | None, *, add: bool) -> Operation:
    """Returns the operation that counts a request or, without `add`, only reads the value with the request included."""
    count, peek = ("event", "peek-event") if counter.distinct is None else ("distinct", "peek-distinct")
    return Operation(count if add else peek, counter_key(counter, key), counter.within, value or b"")


def counter_key(counter: CounterDefinition, key: bytes) -> bytes:
    """Returns the server's key for a key of a counter; no two definitions share one."""
    return b"%bc:%b:%b" % (PREFIX, counter.label, key)


def network_key(network: bytes) -> bytes:
    """Returns the server's key for a network that has passed greylisting."""
    return b"%bg:network:%b" % (PREFIX, network)


def waiting_key(key: bytes) -> bytes:
    """Returns the server's key for a first try, from one of its `waiting_keys`."""
    return b"%bg:first:%b" % (PREFIX, key)
