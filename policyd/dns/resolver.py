"""Asking DNS who a client is: aiodns below, one answer for each client above.

Promises: one deadline for all that one client needs; one lookup under way for a client however many ask; a bounded
number of lookups at once; a bounded cache that honours TTLs; and an `Identity` for whatever DNS, or no DNS, says. DNS
only: no hosts file, no search list. What the answers mean is left to `policyd.core.identity`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from cachetools import LRUCache

from policyd.core.address import Address, parse_address
from policyd.core.identity import AddressesAnswer, Identity, NamesAnswer, Reason, Status, identify
from policyd.core.normalize import fold_name
from policyd.core.throttle import Throttled
from policyd.dns.answers import AAAA, MAX_SECONDS, PTR, A, answer_to
from policyd.dns.channels import NameServers

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence

    from policyd.config.settings import Dns
    from policyd.dns.answers import RecordType
    from policyd.dns.channels import Channel

_log = logging.getLogger(__name__)

# How long an answer is kept, in seconds (ruleset.md, "Reverse DNS"): the smallest TTL of its chain, but at least this
# (and at most MAX_SECONDS); a definite "none"; anything that failed.
MIN_SECONDS = 60
NONE_SECONDS = 60
ERROR_SECONDS = 30

# Bytes of names that count as one client in the cache, and what a name takes beside its own: most clients have one
# name of some 40 bytes. So 256 names, the most that are kept of a client (`policyd.core.identity`), do not take the
# room of one.
CLIENT_BYTES = 512
NAME_BYTES = 48

# Before a third try at what stays silent, in seconds, and twice as long before each one after it: a resolver that
# restarts is heard again soon, and one that is down, with its port closed, does not keep this process busy.
PAUSE_SECONDS = 0.25

# Lookups whose durations are kept, for the median that `policyd status` shows.
RECENT_LOOKUPS = 1000

# A bug is logged once in so many seconds: whoever can cause one can do so often.
BUG_SECONDS = 60.0

_NO_ADDRESS = Identity(Status.ERROR, reason=Reason.NO_ADDRESS, names_known=False)
_TOO_MANY = Identity(Status.ERROR, reason=Reason.TIMEOUT, names_known=False)
_BUG = Identity(Status.ERROR, reason=Reason.MALFORMED, names_known=False)


class Asked(NamedTuple):
    """One query and what it brought: names of PTR records, addresses, or why nothing is known. `seconds` is how
    long that took, `ttl` how long the answer may be kept (None: it does not say)."""

    name: bytes
    type: str
    answer: NamesAnswer | AddressesAnswer
    ttl: int | None
    seconds: float


class DnsCounters:
    """What lookups count, since the start of the daemon."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[Status, Reason | None]] = Counter()  # of lookups, and of those refused
        self.hits = 0  # answers from the cache
        self.misses = 0  # lookups begun, joined or refused
        self.joined = 0  # of these: waited for a lookup that was under way
        self.refused = 0  # of these: not begun, as there were `dns.lookups` under way
        self.bugs = 0
        self.recent: deque[float] = deque(maxlen=RECENT_LOOKUPS)  # seconds that the last lookups took


class Resolver:
    """Identities of clients, asked for and remembered. It belongs to the event loop that is running."""

    def __init__(self, dns: Dns, counters: DnsCounters | None = None) -> None:
        self.counters = counters if counters is not None else DnsCounters()
        self._loop = asyncio.get_running_loop()
        self._timeout = dns.timeout
        self._most = dns.lookups
        self._servers = NameServers(dns)
        self._cache: LRUCache[Address, _Kept] = LRUCache(dns.cache_size, getsizeof=_weight)
        self._under_way: dict[Address, _UnderWay] = {}
        self._bug = Throttled(BUG_SECONDS)

    @property
    def in_flight(self) -> int:
        """Clients that are being looked up."""
        return len(self._under_way)

    @property
    def cached_clients(self) -> int:
        """Clients in the cache, those included whose time is over."""
        return len(self._cache)

    def cached(self, client_address: bytes) -> Identity | None:
        """What is known without asking. None where DNS is to be asked, and also where only the name that the client
        claims before Postfix could add to what is known: `look_up` then answers at once."""
        address = parse_address(client_address)
        if address is None:
            return None
        kept = self._cache.get(address)
        if kept is None or kept.until <= monotonic() or not kept.identity.names_known:
            return None
        self.counters.hits += 1
        return kept.identity

    def look_up(self, client_address: bytes) -> asyncio.Future[Identity]:
        """Who the client is, within `dns.timeout`. It raises nothing, and is not to be cancelled: others may wait for
        the same one."""
        counters = self.counters
        address = parse_address(client_address)
        if address is None:
            counters.outcomes[Status.ERROR, Reason.NO_ADDRESS] += 1
            return self._known(_NO_ADDRESS)
        kept = self._cache.get(address)
        if kept is not None and kept.until > monotonic():
            counters.hits += 1
            return self._known(kept.identity)
        counters.misses += 1
        under_way = self._under_way.get(address)
        if under_way is not None:
            counters.joined += 1
            return under_way.task
        if len(self._under_way) >= self._most:
            counters.refused += 1
            counters.outcomes[Status.ERROR, Reason.TIMEOUT] += 1
            return self._known(_TOO_MANY)
        lookup = _Lookup(self._servers)
        task = self._loop.create_task(self._look_up(address, client_address, lookup))
        self._under_way[address] = _UnderWay(task, lookup)
        return task

    async def close(self) -> None:
        """Ends all lookups, which are answered as if their time were over, and frees what they used."""
        for one in self._under_way.values():
            one.lookup.expire()
        await asyncio.gather(*(one.task for one in self._under_way.values()))
        await self._servers.close()

    def _known(self, identity: Identity) -> asyncio.Future[Identity]:
        future: asyncio.Future[Identity] = self._loop.create_future()
        future.set_result(identity)
        return future

    async def _look_up(self, address: Address, client_address: bytes, lookup: _Lookup) -> Identity:
        """Asks DNS, within the deadline, and keeps the answer."""
        began = monotonic()
        deadline = self._loop.call_later(self._timeout, lookup.expire)
        try:
            identity = await identify(client_address, lookup)
            seconds = lookup.seconds_to_keep
        except Exception:  # noqa: BLE001 - the boundary of a lookup: whoever waits gets an answer, nobody a wrong one
            identity, seconds = _BUG, ERROR_SECONDS
            self.counters.bugs += 1
            message = "a bug in policyd, please report it; its client's reverse DNS is taken for an error"
            if (said := self._bug.happened(message, monotonic())) is not None:
                _log.exception("%s", said)
        finally:
            deadline.cancel()
            del self._under_way[address]
        ended = monotonic()
        kept = _Kept(identity, ended + seconds)
        if _weight(kept) <= self._cache.maxsize:
            self._cache[address] = kept
        self.counters.outcomes[identity.status, identity.reason] += 1
        self.counters.recent.append(ended - began)
        return identity._replace(seconds=ended - began)


async def look_up_once(dns: Dns, client_address: bytes, claimed: bytes = b"") -> tuple[Identity, list[Asked]]:
    """As `Resolver.look_up`, for one client only and without a cache; and each query with what it brought, in order:
    for people who want to know why."""
    servers = NameServers(dns)
    asked: list[Asked] = []
    lookup = _Lookup(servers, asked)
    deadline = asyncio.get_running_loop().call_later(dns.timeout, lookup.expire)
    began = monotonic()
    try:
        identity = await identify(client_address, lookup)
        return with_claimed(identity, claimed)._replace(seconds=monotonic() - began), asked
    finally:
        deadline.cancel()
        await servers.close()


def with_claimed(identity: Identity, claimed: bytes) -> Identity:
    """The identity of one request: with Postfix's `reverse_client_name` (nothing where Postfix is not trusted) as the
    claimed name, if the PTR names could not be had."""
    if identity.names_known or not claimed or claimed == b"unknown":
        return identity
    name = fold_name(claimed)
    return identity._replace(claimed=(name,)) if name else identity


class _UnderWay(NamedTuple):
    """A lookup that has begun."""

    task: asyncio.Task[Identity]
    lookup: _Lookup


class _Kept(NamedTuple):
    """An answer in the cache, and until when on the monotonic clock."""

    identity: Identity
    until: float


def _weight(kept: _Kept) -> int:
    """The room that an answer takes in the cache, in clients."""
    identity = kept.identity
    names = identity.verified + identity.claimed
    return 1 + (sum(map(len, names)) + NAME_BYTES * len(names)) // CLIENT_BYTES


# --- One client -------------------------------------------------------------------------------------------------------


class _Answer(NamedTuple):
    """What became of one query: what its records say, or why there is no answer."""

    found: tuple[Any, ...] | Reason
    ttl: int | None  # None: it has none to go by
    at: float  # when it came, on the monotonic clock


class _Lookup:
    """The lookups of one client, up to one deadline: `policyd.core.identity.Lookups` over aiodns.

    It learns on the way for how many seconds the result may be kept and, if `asked` is given, notes each query there.
    """

    __slots__ = ("_asked", "_expired", "_failed", "_seconds", "_servers", "_waiting")

    def __init__(self, servers: NameServers, asked: list[Asked] | None = None) -> None:
        self._servers = servers
        self._asked = asked
        self._waiting: Iterable[asyncio.Future[Any]] = ()
        self._expired = False
        self._failed = False
        self._seconds = MAX_SECONDS

    @property
    def seconds_to_keep(self) -> int:
        """How long what was found may be kept, in seconds."""
        return ERROR_SECONDS if self._failed else max(MIN_SECONDS, self._seconds)

    def expire(self) -> None:
        """Ends it: what has no answer by now, and what is asked from now on, has the reason `timeout`."""
        self._expired = True
        for future in self._waiting:
            future.cancel()

    async def names(self, name: bytes) -> NamesAnswer:
        """The PTR records at `name`."""
        answer: NamesAnswer = (await self._ask((name,), PTR))[0]
        return answer

    async def addresses(self, names: Sequence[bytes], version: int) -> Sequence[AddressesAnswer]:
        """The addresses of each name, in the same order."""
        return await self._ask(names, A if version == 4 else AAAA)

    async def _ask(self, names: Sequence[bytes], kind: RecordType) -> list[Any]:
        """Asks for records of one type at all of the names at once; gives what each answer says."""
        began = monotonic()
        if self._expired:
            self._failed = True
            return [Reason.TIMEOUT] * len(names)
        answers = await self._ask_over(await self._servers.eager(), names, kind)
        for answer in answers:
            if answer.found is Reason.TIMEOUT or answer.found is Reason.MALFORMED:
                await self._ask_again(names, kind, answers)
                break
        for name, (found, ttl, at) in zip(names, answers, strict=True):
            if isinstance(found, Reason):
                self._failed = True
            else:
                self._seconds = min(self._seconds, NONE_SECONDS if ttl is None else ttl)
            if self._asked is not None:
                self._asked.append(Asked(name, kind.name, found, ttl, at - began))
        return [answer.found for answer in answers]

    async def _ask_again(self, names: Sequence[bytes], kind: RecordType, answers: list[_Answer]) -> None:
        """Asks anew, while there is time, where there was silence, and once more where an answer was malformed."""

        async def ask(places: list[int], channel: Channel) -> None:
            again = await self._ask_over(channel, [names[place] for place in places], kind)
            for place, answer in zip(places, again, strict=True):
                answers[place] = answer

        def which(reason: Reason) -> list[int]:
            return [place for place, answer in enumerate(answers) if answer.found is reason and not self._expired]

        pause, alone = PAUSE_SECONDS, False
        while True:
            if silent := which(Reason.TIMEOUT):
                await ask(silent, await self._servers.patient())
                if which(Reason.TIMEOUT):
                    await self._wait(asyncio.sleep(pause))
                    pause *= 2
            elif (malformed := which(Reason.MALFORMED)) and not alone:
                alone = True
                if await self._wait(self._servers.alone.acquire()):
                    try:
                        await ask(malformed, await self._servers.lone())
                    finally:
                        self._servers.alone.release()
            else:
                break

    async def _ask_over(self, channel: Channel, names: Sequence[bytes], kind: RecordType) -> list[_Answer]:
        """Asks each server once, over one channel, and waits for all of the answers."""
        came: dict[asyncio.Future[Any], float] = {}
        answers = []
        futures: list[asyncio.Future[Any]] = []
        hosts = [name.decode("ascii") for name in names]
        channel.users += 1
        try:
            futures += [channel.ask(host, kind.name) for host in hosts]
            self._waiting = futures
            if self._asked is not None:
                for future in futures:
                    future.add_done_callback(lambda future: came.setdefault(future, monotonic()))
            for host, future in zip(hosts, futures, strict=True):
                try:
                    found, ttl = await answer_to(future, host, kind)
                except asyncio.CancelledError:
                    if not self._expired:
                        raise
                    found, ttl = Reason.TIMEOUT, None
                if found is not Reason.TIMEOUT:
                    channel.answered += 1
                answers.append(_Answer(found, ttl, came.get(future, 0.0)))
        finally:
            for future in futures:
                future.cancel()  # what nobody waits for any more, if this was ended before its time
            channel.users -= 1
            if not channel.users:
                await self._servers.unused(channel)
        return answers

    async def _wait(self, work: Coroutine[Any, Any, object]) -> bool:
        """Whether something came to its end while there was time."""
        task = asyncio.create_task(work)
        self._waiting = (task,)
        try:
            await task
        except asyncio.CancelledError:
            if not self._expired:
                raise
            return False
        return True
