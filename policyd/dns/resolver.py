"""Looks up clients' identities over aiodns, with a cache.

Promises: one deadline for all lookups of a client; one lookup in flight for a client, however many requests wait for
it; a bounded number of lookups at once; a bounded cache that honours TTLs; and an `Identity` in every case, also if DNS
does not answer. DNS only: no hosts file, no search list.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from cachetools import LRUCache

from policyd.core.address import parse_address
from policyd.core.identity import NO_ADDRESS, Identity, Reason, Status
from policyd.core.normalize import fold_name
from policyd.core.throttle import MessageThrottle
from policyd.dns.channels import NameServers
from policyd.dns.identify import identify
from policyd.dns.lookup import ERROR_SECONDS, DnsLookup, QueryTrace

if TYPE_CHECKING:
    from policyd.config.settings import Dns
    from policyd.core.address import Address

_log = logging.getLogger(__name__)

# Bytes of names that count as one client in the cache, and bytes added for each name; most clients have one name of
# some 40 bytes. So a client with the maximum of 256 names (`policyd.dns.identify`) counts as several.
CLIENT_BYTES = 512
NAME_BYTES = 48

# Number of lookups whose durations are kept, for the median that `policyd status` shows.
RECENT_LOOKUPS = 1000

# Clients in the cache that `forget` checks in one turn of the event loop: about a millisecond.
FORGET_SLICE = 1000

# Minimum seconds between two log lines about bugs: a client that can cause one can cause many.
BUG_SECONDS = 60.0

_TOO_MANY = Identity(Status.ERROR, reason=Reason.TIMEOUT, names_known=False)
_BUG = Identity(Status.ERROR, reason=Reason.MALFORMED, names_known=False)


class DnsCounters:
    """Counters of lookups since the start of the daemon."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[Status, Reason | None]] = Counter()  # of lookups, also refused ones
        self.hits = 0  # answers from the cache
        self.misses = 0  # lookups begun, joined or refused
        self.joined = 0  # misses that waited for a lookup in flight
        self.refused = 0  # misses that were not looked up, because `dns.lookups` were in flight
        self.bugs = 0
        self.recent: deque[float] = deque(maxlen=RECENT_LOOKUPS)  # seconds that the last lookups took


class Resolver:
    """Looks up and caches identities of clients. Belongs to the running event loop."""

    def __init__(self, dns: Dns, counters: DnsCounters | None = None) -> None:
        self.counters = counters if counters is not None else DnsCounters()
        self._loop = asyncio.get_running_loop()
        self._timeout = dns.timeout
        self._max_lookups = dns.lookups
        self.servers = NameServers(dns)
        self._cache: LRUCache[Address, _CachedIdentity] = LRUCache(dns.cache_size, getsizeof=_weight)
        self._in_flight: dict[Address, _RunningLookup] = {}
        self._bug = MessageThrottle(BUG_SECONDS)

    @property
    def in_flight(self) -> int:
        """Clients that are being looked up."""
        return len(self._in_flight)

    @property
    def cached_clients(self) -> int:
        """Clients in the cache, including expired ones."""
        return len(self._cache)

    def cached(self, address: Address | None) -> Identity | None:
        """Returns the cached identity; None if there is none, or if its PTR lookup failed.

        In the second case `look_up` answers at once.
        """
        if address is None:
            return None
        kept = self._cache.get(address)
        if kept is None or kept.until <= monotonic() or not kept.identity.names_known:
            return None
        self.counters.hits += 1
        return kept.identity

    def look_up(self, address: Address | None) -> asyncio.Future[Identity]:
        """Looks up the client's identity within `dns.timeout`. The future raises nothing and must not be cancelled,
        because other requests may wait for it.
        """
        counters = self.counters
        if address is None:
            counters.outcomes[Status.ERROR, Reason.NO_ADDRESS] += 1
            return self._done_future(NO_ADDRESS)
        kept = self._cache.get(address)
        if kept is not None and kept.until > monotonic():
            counters.hits += 1
            return self._done_future(kept.identity)
        counters.misses += 1
        running = self._in_flight.get(address)
        if running is not None:
            counters.joined += 1
            return running.task
        if len(self._in_flight) >= self._max_lookups:
            counters.refused += 1
            counters.outcomes[Status.ERROR, Reason.TIMEOUT] += 1
            return self._done_future(_TOO_MANY)
        lookup = DnsLookup(self.servers)
        task = self._loop.create_task(self._look_up(address, lookup))
        self._in_flight[address] = _RunningLookup(task, lookup)
        return task

    async def forget(self, what: bytes) -> int:
        """Drops the cached answers for an address, or for all clients with the name `what` or a name under it.

        Returns the number of clients. Their next lookup asks DNS, not c-ares's cache.
        """
        self.servers.renew()
        address = parse_address(what)
        if address is not None:
            return 0 if self._cache.pop(address, None) is None else 1
        name = fold_name(what)
        count = 0
        for number, client in enumerate(list(self._cache), 1):
            kept = self._cache.get(client)
            if kept is not None and _has_name(kept.identity, name):
                del self._cache[client]
                count += 1
            if number % FORGET_SLICE == 0:
                await asyncio.sleep(0)
        return count

    async def close(self) -> None:
        """Ends all lookups with the reason `timeout`, and frees their resources."""
        for pending in self._in_flight.values():
            pending.lookup.expire()
        await asyncio.gather(*(pending.task for pending in self._in_flight.values()))
        await self.servers.close()

    def _done_future(self, identity: Identity) -> asyncio.Future[Identity]:
        future: asyncio.Future[Identity] = self._loop.create_future()
        future.set_result(identity)
        return future

    async def _look_up(self, address: Address, lookup: DnsLookup) -> Identity:
        """Asks DNS, within the deadline, and caches the answer."""
        began = monotonic()
        deadline = self._loop.call_later(self._timeout, lookup.expire)
        try:
            identity = await identify(address, lookup)
            seconds = lookup.seconds_to_keep
        except Exception:  # noqa: BLE001 - the boundary of a lookup: waiting requests get an answer, never a wrong one
            identity, seconds = _BUG, ERROR_SECONDS
            self.counters.bugs += 1
            message = "a bug in policyd, please report it; the client's reverse DNS gets the status error"
            if (line := self._bug.line_for(message, monotonic())) is not None:
                _log.exception("%s", line)
        finally:
            deadline.cancel()
            del self._in_flight[address]
        ended = monotonic()
        kept = _CachedIdentity(identity, ended + seconds)
        if _weight(kept) <= self._cache.maxsize:
            self._cache[address] = kept
        self.counters.outcomes[identity.status, identity.reason] += 1
        self.counters.recent.append(ended - began)
        return identity._replace(seconds=ended - began)


async def look_up_once(dns: Dns, address: Address | None) -> tuple[Identity, list[QueryTrace]]:
    """Looks up one client without a cache; returns its identity, and each query with its result, in order."""
    servers = NameServers(dns)
    trace: list[QueryTrace] = []
    lookup = DnsLookup(servers, trace)
    deadline = asyncio.get_running_loop().call_later(dns.timeout, lookup.expire)
    began = monotonic()
    try:
        identity = await identify(address, lookup)
        return identity._replace(seconds=monotonic() - began), trace
    finally:
        deadline.cancel()
        await servers.close()


class _RunningLookup(NamedTuple):
    """A lookup in flight."""

    task: asyncio.Task[Identity]
    lookup: DnsLookup


class _CachedIdentity(NamedTuple):
    """A cached answer, and its expiry on the monotonic clock."""

    identity: Identity
    until: float


def _has_name(identity: Identity, name: bytes) -> bool:
    """Whether a client has or claims the name, or a name under it."""
    return any(each == name or each.endswith(b"." + name) for each in identity.verified + identity.claimed)


def _weight(kept: _CachedIdentity) -> int:
    """Returns the size of an answer in the cache; a client with a short name counts as 1."""
    identity = kept.identity
    names = identity.verified + identity.claimed
    return 1 + (sum(map(len, names)) + NAME_BYTES * len(names)) // CLIENT_BYTES
