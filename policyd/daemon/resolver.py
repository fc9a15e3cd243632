"""Asking DNS who a client is: aiodns below, one answer for each client above.

Promises: one deadline for all that one client needs; one lookup under way for a client however many ask; a bounded
number of lookups at once; a bounded cache that honours TTLs; and an `Identity` for whatever DNS, or no DNS, says. DNS
only: no hosts file, no search list. What the answers mean is left to `policyd.core.identity`.

This is the one file that knows aiodns (4) and, below it, c-ares (1.34). What they do, and what is done about it here:

- c-ares sends a query again after 250 ms, if the server has been quick before and whatever its `timeout` says, from a
  new socket, and no longer hears the answer to the first. A name that takes the resolver 4 s would never be heard of.
  So it may try each server once only (an *eager* channel); what stays silent is asked again over a *patient* channel,
  one that has not seen enough answers to have learnt haste, and that listens for as long as there is time.
- A message that it cannot read makes it drop its socket, and all that was asked over that comes back as malformed.
  So what comes back so is asked again over a *lone* channel, where nobody suffers from it but who caused it.
- Its cache has no bound, cannot be turned off from here, and keeps a NODATA answer for an hour. So channels are
  replaced before that matters: after CHANNEL_SECONDS or CHANNEL_QUERIES.
- A query that nobody waits for any more goes on, and ends with its channel.
- aiodns lets c-ares run a thread for each channel, which wakes the event loop for each answer; `_Sockets` goes without.
- An answer with 3,800 names, which is what 64 KiB hold, takes c-ares 35 ms, as it compresses all of them once more for
  its cache, and pycares 20 ms. Only TCP brings such answers, so what comes over TCP has no more than its share of time.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import weakref
from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import aiodns
import pycares
from aiodns.error import (
    ARES_ECANCELLED,
    ARES_ECONNREFUSED,
    ARES_EDESTRUCTION,
    ARES_ENODATA,
    ARES_ENOTFOUND,
    ARES_EREFUSED,
    ARES_ESERVFAIL,
    ARES_ETIMEOUT,
)
from cachetools import LRUCache

from policyd.core.address import Address, parse_address
from policyd.core.identity import AddressesAnswer, Identity, NamesAnswer, Reason, Status, identify
from policyd.core.index import fold_name
from policyd.daemon.oplog import Throttled

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from policyd.config.settings import Dns

_log = logging.getLogger(__name__)

# How long an answer is kept, in seconds (ruleset.md, "Reverse DNS"): the smallest TTL of its chain within these
# bounds; a definite "none"; anything that failed.
MIN_SECONDS = 60
MAX_SECONDS = 3600
NONE_SECONDS = 60
ERROR_SECONDS = 30

# Bytes of names that count as one client in the cache, and what a name takes beside its own: most clients have one
# name of some 40 bytes. So 256 names, the most that are kept of a client (`policyd.core.identity`), do not take the
# room of one.
CLIENT_BYTES = 512
NAME_BYTES = 48

# A channel is replaced after so many seconds, which is less than any answer is kept here, so that none comes from
# c-ares's own cache in place of this one; or after so many queries, by when that cache holds some 12 MB. (With 65,536
# under way at once, c-ares would look for a free query id for ever.)
CHANNEL_SECONDS = 30
CHANNEL_QUERIES = 10_000

# How long an eager channel waits for a server before it tries the next, in seconds: the least that c-ares can do.
EAGER_SECONDS = 0.25

# After so many answers a patient channel takes no more queries: with the third c-ares begins to estimate.
PATIENT_ANSWERS = 2

# So many clients at once have a channel to themselves for what came back malformed; the others wait.
LONE_CHANNELS = 16

# Before a third try at what stays silent, in seconds, and twice as long before each one after it: a resolver that
# restarts is heard again soon, and one that is down, with its port closed, does not keep this process busy.
PAUSE_SECONDS = 0.25

# Room for answers that have arrived and are not yet read. By default it is some 270 answers; the kernel gives what
# net.core.rmem_max allows.
RECEIVE_BUFFER = 1 << 20

# Room for answers over TCP, of which c-ares reads at once all that are there: too little for two large ones.
STREAM_BUFFER = 8 << 10

# After a read over TCP that took longer than this, in seconds, nothing more is read over TCP for so many times as long.
# It is far more than a usual answer takes.
LONG_READ_SECONDS = 0.005
REST = 4.0

# After an answer of more records than this others have their turn before it is looked at.
MANY_RECORDS = 256

# A bug is logged once in so many seconds: whoever can cause one can do so often.
BUG_SECONDS = 60.0

# c-ares, ares.h: take SERVFAIL and REFUSED for an answer, instead of asking on; and EDNS, its own default.
_NOCHECKRESP = 1 << 7
_EDNS = 1 << 8

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


class Resolver:
    """Identities of clients, asked for and remembered. It belongs to the event loop that is running."""

    def __init__(self, dns: Dns, counters: DnsCounters | None = None) -> None:
        self.counters = counters if counters is not None else DnsCounters()
        self._loop = asyncio.get_running_loop()
        self._timeout = dns.timeout
        self._most = dns.lookups
        self._servers = _Servers(dns)
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
        return identity._replace(seconds=ended - began)


async def look_up_once(dns: Dns, client_address: bytes, claimed: bytes = b"") -> tuple[Identity, list[Asked]]:
    """As `Resolver.look_up`, for one client only and without a cache; and each query with what it brought, in order:
    for people who want to know why."""
    servers = _Servers(dns)
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

    def __init__(self, servers: _Servers, asked: list[Asked] | None = None) -> None:
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

        async def ask(places: list[int], channel: _Channel) -> None:
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

    async def _ask_over(self, channel: _Channel, names: Sequence[bytes], kind: RecordType) -> list[_Answer]:
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
                    records = (await future).answer
                    if len(records) > MANY_RECORDS:
                        await asyncio.sleep(0)
                    found, ttl = read_answer(records, host, kind)
                except aiodns.error.DNSError as error:
                    found, ttl = _FAILURES.get(error.args[0], Reason.MALFORMED), None
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


# --- What an answer says ----------------------------------------------------------------------------------------------


class Record(Protocol):
    """A resource record as aiodns gives it. Names are in presentation form, without the trailing dot."""

    name: str
    type: int
    ttl: int
    data: Any  # with `dname` (PTR), `addr` (A, AAAA) or `cname`


def read_answer(answer: Sequence[Record], name: str, kind: RecordType) -> tuple[tuple[Any, ...] | Reason, int | None]:
    """What the records of one type say that a name has, and the smallest TTL of the chain that leads to them.

    `answer` is the answer section of a message that c-ares takes for a success. What belongs to another name is
    ignored. The chain of aliases (RFC 1034 section 3.6.2) is followed as far as the message has it; one that leads to
    no such record is a definite "none", without a TTL. A loop, and a message that says nothing of the name (it has
    no record at all where the response code is one that c-ares does not know), are malformed.
    """
    records: dict[str, list[Record]] = {}
    aliases: dict[str, Record] = {}
    for record in answer:
        if record.type == kind.number:
            records.setdefault(record.name.lower(), []).append(record)
        elif record.type == _CNAME:
            aliases[record.name.lower()] = record
    ttl = MAX_SECONDS
    followed: set[str] = set()
    while name not in records:
        alias = aliases.get(name)
        if alias is None:
            return ((), None) if followed else (Reason.MALFORMED, None)
        if name in followed:
            return Reason.MALFORMED, None
        followed.add(name)
        ttl = min(ttl, alias.ttl)
        name = alias.data.cname.lower()
    found = records[name]
    return tuple([kind.read(record.data) for record in found]), min(ttl, *[record.ttl for record in found])


class RecordType(NamedTuple):
    """A type of record: its name, its number, and how its data become what `policyd.core.identity` takes."""

    name: str
    number: int
    read: Callable[[Any], Any]


def _read_name(found: Any) -> bytes:
    name: str = found.dname
    return name.encode()


def _read_address(found: Any) -> Address | None:
    address: str = found.addr
    return parse_address(address.encode())


# RFC 1035 section 3.2.2, RFC 3596 section 2.1.
_CNAME = 5
PTR = RecordType("PTR", 12, _read_name)
A = RecordType("A", 1, _read_address)
AAAA = RecordType("AAAA", 28, _read_address)

# How c-ares says that a lookup brought nothing; all that is not here is malformed.
_FAILURES: dict[int, tuple[()] | Reason] = {
    ARES_ENODATA: (),
    ARES_ENOTFOUND: (),  # NXDOMAIN
    ARES_ESERVFAIL: Reason.SERVFAIL,
    ARES_EREFUSED: Reason.REFUSED,
    ARES_ETIMEOUT: Reason.TIMEOUT,
    ARES_ECONNREFUSED: Reason.TIMEOUT,  # a closed port, and every other failure of a socket
    ARES_ECANCELLED: Reason.TIMEOUT,  # the channel was closed
    ARES_EDESTRUCTION: Reason.TIMEOUT,
}


# --- The servers ------------------------------------------------------------------------------------------------------


class _Pace:
    """Who reads over TCP, of all channels, rests after what took long."""

    def __init__(self) -> None:
        self._until = 0.0

    @property
    def rest(self) -> float:
        """For how many seconds nothing is to be read."""
        return self._until - monotonic()

    def took(self, seconds: float) -> None:
        """To be told of every read."""
        if seconds > LONG_READ_SECONDS:
            self._until = monotonic() + REST * seconds


class _Sockets(aiodns.DNSResolver):
    """An aiodns resolver whose sockets are read by the event loop itself, those of TCP at a pace.

    Two threads that hand the lock to and fro for each answer take a sixth of what a client costs. aiodns goes without
    a thread only where the system has no room for one, and there is no way to ask for that but this.
    """

    def __init__(self, servers: Sequence[str], pace: _Pace, **arguments: Any) -> None:
        self._pace = pace
        self._streams: set[int] = set()
        super().__init__(servers, **arguments)

    def _make_channel(self, **arguments: Any) -> tuple[bool, pycares.Channel]:
        itself = weakref.ref(self)  # the channel, which calls it, belongs to it

        def changed(descriptor: int, readable: bool, writable: bool) -> None:  # noqa: FBT001 - pycares calls it so
            if (resolver := itself()) is not None:
                resolver._sock_state_cb(descriptor, readable, writable)  # noqa: SLF001 - its own

        return False, pycares.Channel(sock_state_cb=changed, timeout=self._timeout, **arguments)

    def _sock_state_cb(self, fd: int, readable: bool, writable: bool) -> None:  # noqa: FBT001 - aiodns has it so
        super()._sock_state_cb(fd, readable, writable)
        if not writable and fd in self._write_fds:  # aiodns would wait for what is always so, as long as it is open
            self._write_fds.discard(fd)
            self.loop.remove_writer(fd)
        if not readable:
            self._streams.discard(fd)
        elif fd in self._streams or _is_stream(fd):
            self._streams.add(fd)
            self.loop.add_reader(fd, self._read_stream, fd)

    def _read_stream(self, fd: int) -> None:
        """Reads what has come over TCP, or once the rest is over."""
        if fd not in self._streams:
            return  # closed meanwhile
        if (rest := self._pace.rest) > 0:
            self.loop.remove_reader(fd)
            self.loop.call_later(rest + 0.001, self._watch_stream, fd)  # to the millisecond: not a moment too early
            return
        began = monotonic()
        self._channel.process_fd(fd, pycares.ARES_SOCKET_BAD)
        self._pace.took(monotonic() - began)

    def _watch_stream(self, fd: int) -> None:
        if fd in self._streams and not self._closed:
            self.loop.add_reader(fd, self._read_stream, fd)

    def _timer_cb(self) -> None:
        # What came while the loop was busy is read before c-ares looks whose time is over.
        for descriptor in tuple(self._read_fds):
            if descriptor in self._streams:
                self._read_stream(descriptor)
            else:
                self._channel.process_fd(descriptor, pycares.ARES_SOCKET_BAD)
        super()._timer_cb()


def _is_stream(descriptor: int) -> bool:
    """Whether it is a socket of TCP; if so, it holds no more than STREAM_BUFFER from now on."""
    opened = socket.socket(fileno=descriptor)
    try:
        if opened.type != socket.SOCK_STREAM:
            return False
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, STREAM_BUFFER)
        return True
    finally:
        opened.detach()  # it is another's to close


class _Channel:
    """A c-ares channel, and what has become of it."""

    __slots__ = ("_dns", "answered", "asked", "born", "is_lone", "users")

    def __init__(self, servers: Sequence[str], seconds: float, pace: _Pace) -> None:
        # With one server there is nobody to ask on, so what it says counts at once, also SERVFAIL and REFUSED.
        flags = _EDNS | (_NOCHECKRESP if len(servers) == 1 else 0)
        self._dns = _Sockets(
            servers, pace, timeout=seconds, tries=1, flags=flags, socket_receive_buffer_size=RECEIVE_BUFFER
        )
        self.born = monotonic()
        self.asked = 0  # queries
        self.answered = 0
        self.users = 0  # clients that wait for an answer
        self.is_lone = False

    @property
    def is_fresh(self) -> bool:
        """Whether it may be used on."""
        return self.asked < CHANNEL_QUERIES and monotonic() - self.born < CHANNEL_SECONDS

    @property
    def servers(self) -> int:
        """How many servers are asked in turn."""
        return len(self._dns.nameservers)

    def ask(self, name: str, kind: str) -> asyncio.Future[Any]:
        """Sends a query. The future raises aiodns.error.DNSError."""
        self.asked += 1
        return self._dns.query_dns(name, kind)

    async def close(self) -> None:
        """Ends what is under way."""
        await self._dns.close()


class _Servers:
    """The name servers, by way of channels that are replaced before they go bad (see the head of this file)."""

    def __init__(self, dns: Dns) -> None:
        self._servers = [str(server) for server in dns.servers]
        self._timeout = dns.timeout
        self._pace = _Pace()
        self._eager: _Channel | None = None
        self._patient: _Channel | None = None
        self._lone: list[_Channel] = []  # those that nobody uses at the moment
        self._in_use: set[_Channel] = set()  # channels that somebody may use from now on
        self.alone = asyncio.Semaphore(LONE_CHANNELS)  # to be had by who takes a lone channel

    async def eager(self) -> _Channel:
        """A channel that asks each server once, and waits as long as it has been found to take."""
        old = self._eager
        if old is not None and old.is_fresh:
            return old
        new = self._eager = self._open(EAGER_SECONDS)
        if old is not None:
            await self._replace(old)
        return new

    async def patient(self) -> _Channel:
        """A channel that asks each server once, and gives each an equal share of the time (5 s at most: c-ares)."""
        old = self._patient
        if old is not None and old.is_fresh and old.answered < PATIENT_ANSWERS:
            return old
        new = self._patient = await self._open_patient()
        if old is not None:
            await self._replace(old)
        return new

    async def lone(self) -> _Channel:
        """A channel like a patient one that one client has to itself until its answers have come."""
        while self._lone:
            old = self._lone.pop()
            if old.is_fresh:
                return old
            await self._replace(old)
        channel = await self._open_patient()
        channel.is_lone = True
        return channel

    async def unused(self, channel: _Channel) -> None:
        """To be told when the last answer has come that somebody waited for."""
        if channel not in self._in_use:
            await channel.close()
        elif channel.is_lone:
            self._lone.append(channel)

    async def close(self) -> None:
        """Closes what is open; nobody may wait for an answer any more."""
        for channel in list(self._in_use):
            await channel.close()
        self._in_use.clear()
        self._lone.clear()
        self._eager = self._patient = None

    def _open(self, seconds: float) -> _Channel:
        channel = _Channel(self._servers, seconds, self._pace)
        self._in_use.add(channel)
        return channel

    async def _open_patient(self) -> _Channel:
        return self._open(max(EAGER_SECONDS, self._timeout / (await self.eager()).servers))

    async def _replace(self, channel: _Channel) -> None:
        self._in_use.discard(channel)
        if not channel.users:
            await channel.close()
