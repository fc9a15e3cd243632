"""Greylisting: whether a deferred client retries.

The first mail from a client with a given sender and recipient is deferred. A client has two names: its network, and the
registrable domain of its verified host name. A retry is recognised by either name, so a pool of mail servers is one
client, and a client loses nothing if DNS fails between two tries. After a retry in time, only the network is
remembered: a domain would let in all customers of a hoster after a retry by one of them.

The caller stores first tries and known networks, in two mappings; `judge` returns the result and the changes to store.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from policyd.core.facts import Greylisted
from policyd.memory.definitions import bounded

if TYPE_CHECKING:
    from policyd.memory.definitions import GreylistSettings


class Client(NamedTuple):
    """The client: its network, and the registrable domain of its verified, non-generic name (empty if none)."""

    network: bytes
    domain: bytes


class GreylistVerdict(NamedTuple):
    """The result of one try, and the changes to store.

    `first_tries` has keys with the times of their first tries (Unix seconds), `forget` the keys that no longer wait.
    `has_passed` says that the network has passed, now or earlier, so that the time of this try is stored for it.
    """

    state: Greylisted
    first_tries: tuple[tuple[bytes, float], ...] = ()
    forget: tuple[bytes, ...] = ()
    has_passed: bool = False


def waiting_keys(client: Client, sender: bytes, recipient: bytes) -> tuple[bytes, ...]:
    """Returns the keys under which a first try waits: by network, and by domain if there is one."""
    names = (client.network, client.domain) if client.domain else (client.network,)
    return tuple(bounded(b"\n".join((name, sender, recipient))) for name in names)


def judge(
    settings: GreylistSettings,
    now: float,
    keys: tuple[bytes, ...],
    first_tries: tuple[float | None, ...],
    network_seen: float | None,
) -> GreylistVerdict:
    """Judges one try at `now` (Unix seconds).

    `first_tries` are the times of the first try under each of `keys`, None if there is none; `network_seen` is when
    the network was last seen, None if it has not passed.
    """
    if network_seen is not None and now - network_seen < settings.remember:
        return GreylistVerdict(Greylisted.KNOWN, has_passed=True)
    waits = [now - first if first is not None else math.inf for first in first_tries]
    waited = [wait for wait in waits if wait <= settings.retry_within]
    if not waited:
        return GreylistVerdict(Greylisted.NEW, tuple((key, now) for key in keys))
    longest = max(waited)
    if longest >= settings.wait:
        return GreylistVerdict(Greylisted.PASSED, forget=keys, has_passed=True)
    # An early try does not restart the wait. A name without a first try in time gets that of the other name.
    first = now - longest
    return GreylistVerdict(
        Greylisted.EARLY,
        tuple((key, first) for key, wait in zip(keys, waits, strict=True) if wait > settings.retry_within),
    )
