"""Asks name servers over channels of c-ares: chooses the channel, replaces channels, and reads their sockets.

How aiodns (4) and, below it, c-ares (1.34) behave, and how this file deals with it:

- If a server has answered fast before, c-ares repeats a query after 250 ms, regardless of its `timeout`. It sends the
  repeated query from a new socket, and no longer receives the answer to the first query, so a name for which the
  resolver needs 4 s would never be resolved. So a *fast* channel tries each server once only. A query without an answer
  is repeated over a *slow* channel, which has seen too few answers for an estimate, and so waits for its whole timeout.
- A message that c-ares cannot parse makes every query on the same socket fail as malformed. A query that has failed so
  is repeated over an *isolated* channel, where it cannot affect other clients.
- The cache of c-ares has no limit, cannot be turned off from here, and keeps a NODATA answer for an hour. So channels
  are replaced before that matters: after CHANNEL_SECONDS or CHANNEL_QUERIES.
- A cancelled query goes on until its channel is closed.
- aiodns lets c-ares run one thread per channel, which wakes the event loop for each answer. `_Sockets` reads the
  sockets without a thread.
- Parsing a very large answer takes tens of milliseconds of CPU. Only TCP carries such answers, so reads from TCP
  sockets are throttled to a share of the time.
"""

from __future__ import annotations

import asyncio
import socket
import weakref
from time import monotonic, thread_time
from typing import TYPE_CHECKING, Any

import aiodns
import pycares

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policyd.config.settings import Dns

# Seconds before a channel is replaced; policyd caches every answer for this time at least, so an answer that has
# expired is no longer in c-ares's own cache.
CHANNEL_SECONDS = 30

# Queries before a channel is replaced; its cache holds some 12 MB by then, and most of the 65,536 query ids are unused.
CHANNEL_QUERIES = 10_000

# Minimum seconds that a fast channel waits for a server before it tries the next; c-ares allows no less.
FAST_SECONDS = 0.25

# Answers after which a slow channel takes no more queries; c-ares begins to estimate with the third.
SLOW_ANSWERS = 2

# Maximum number of lookups that repeat malformed queries at the same time, each over its own channel; others wait.
ISOLATED_CHANNELS = 16

# Receive buffer of UDP sockets, in bytes, for answers that have not been read yet; the default holds some 270 answers,
# and the kernel allows net.core.rmem_max at most.
RECEIVE_BUFFER = 1 << 20

# Receive buffer of TCP sockets, in bytes; c-ares reads everything that has arrived at once, so two large answers must
# not fit.
STREAM_BUFFER = 8 << 10

# CPU seconds per answer above which a read over TCP is expensive; a usual answer takes a tenth of it. After such a read
# nothing is read over TCP for THROTTLED_TIMES times as long as the read took.
LONG_READ_SECONDS = 0.002
THROTTLED_TIMES = 4.0

# c-ares, ares.h: treat SERVFAIL and REFUSED as an answer, instead of asking the next server; and EDNS, its default.
_NOCHECKRESP = 1 << 7
_EDNS = 1 << 8


class _TcpThrottle:
    """Throttles reads from the TCP sockets of all channels after an expensive one."""

    def __init__(self) -> None:
        self._until = 0.0

    @property
    def remaining(self) -> float:
        """Seconds until the next read is allowed; zero or less if it is allowed now."""
        return self._until - monotonic()

    def record(self, seconds: float, answers: int) -> None:
        """Records one read: CPU seconds spent and answers received."""
        if seconds > LONG_READ_SECONDS * max(1, answers):
            self._until = monotonic() + THROTTLED_TIMES * seconds


class _Sockets(aiodns.DNSResolver):
    """An aiodns resolver whose sockets the event loop reads itself, with a throttle for TCP sockets.

    A second thread would pass the interpreter's lock back and forth for each answer, a sixth of the cost of a client.
    aiodns uses no thread only if none can be started; overriding `_make_channel` is the only way to request that.
    """

    def __init__(self, servers: Sequence[str], throttle: _TcpThrottle, **arguments: Any) -> None:
        self._throttle = throttle
        self._streams: set[int] = set()
        self._answers = 0
        super().__init__(servers, **arguments)

    def _make_channel(self, **arguments: Any) -> tuple[bool, pycares.Channel]:
        itself = weakref.ref(self)  # the resolver owns the channel, so a strong reference would be a cycle

        def changed(descriptor: int, readable: bool, writable: bool) -> None:  # noqa: FBT001 - the signature of pycares
            if (resolver := itself()) is not None:
                resolver._sock_state_cb(descriptor, readable, writable)  # noqa: SLF001 - a method of this class

        return False, pycares.Channel(sock_state_cb=changed, timeout=self._timeout, **arguments)

    def _sock_state_cb(self, fd: int, readable: bool, writable: bool) -> None:  # noqa: FBT001 - the signature of aiodns
        super()._sock_state_cb(fd, readable, writable)
        if not writable and fd in self._write_fds:  # aiodns would wait for writability, which an open socket always has
            self._write_fds.discard(fd)
            self.loop.remove_writer(fd)
        if not readable:
            self._streams.discard(fd)
        elif fd in self._streams or _is_stream(fd):
            self._streams.add(fd)
            self.loop.add_reader(fd, self._read_stream, fd)

    def _read_stream(self, fd: int) -> None:
        """Reads from a TCP socket now, or as soon as the throttle allows it."""
        if (seconds := self._throttle.remaining) > 0:
            self.loop.remove_reader(fd)
            # A millisecond later, because uvloop rounds to milliseconds: the call must not be too early.
            self.loop.call_later(seconds + 0.001, self._watch_stream, fd)
            return
        began, answers = thread_time(), self._answers
        self._channel.process_fd(fd, pycares.ARES_SOCKET_BAD)
        self._throttle.record(thread_time() - began, self._answers - answers)

    def _callback(self, fut: asyncio.Future[Any], result: Any, errorno: int | None) -> None:
        self._answers += 1
        super()._callback(fut, result, errorno)

    def _watch_stream(self, fd: int) -> None:
        if fd in self._streams and not self._closed:  # it may have been closed meanwhile
            self.loop.add_reader(fd, self._read_stream, fd)

    def _timer_cb(self) -> None:
        # Answers that arrived while the loop was busy are read before c-ares checks for timeouts.
        for descriptor in tuple(self._read_fds):
            if descriptor in self._streams:
                self._read_stream(descriptor)
            else:
                self._channel.process_fd(descriptor, pycares.ARES_SOCKET_BAD)
        super()._timer_cb()


def _is_stream(descriptor: int) -> bool:
    """Whether a descriptor is a TCP socket; if so, sets its receive buffer to STREAM_BUFFER."""
    opened = socket.socket(fileno=descriptor)
    try:
        if opened.type != socket.SOCK_STREAM:
            return False
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, STREAM_BUFFER)
        return True
    finally:
        opened.detach()  # c-ares closes it


class Channel:
    """A c-ares channel, with its age and its numbers of queries, answers and users."""

    __slots__ = ("_dns", "answered", "asked", "born", "is_isolated", "users")

    def __init__(self, servers: Sequence[str], seconds: float, throttle: _TcpThrottle) -> None:
        # With a single server, SERVFAIL or REFUSED is final: there is no other server to try.
        flags = _EDNS | (_NOCHECKRESP if len(servers) == 1 else 0)
        self._dns = _Sockets(
            servers, throttle, timeout=seconds, tries=1, flags=flags, socket_receive_buffer_size=RECEIVE_BUFFER
        )
        self.born = monotonic()
        self.asked = 0  # queries
        self.answered = 0
        self.users = 0  # lookups that wait for an answer
        self.is_isolated = False

    @property
    def is_fresh(self) -> bool:
        """Whether the channel may take more queries."""
        return self.asked < CHANNEL_QUERIES and monotonic() - self.born < CHANNEL_SECONDS

    @property
    def server_count(self) -> int:
        """The number of servers that are asked in turn."""
        return len(self._dns.nameservers)

    def ask(self, name: str, kind: str) -> asyncio.Future[Any]:
        """Sends a query. The future raises aiodns.error.DNSError."""
        self.asked += 1
        return self._dns.query_dns(name, kind)

    async def close(self) -> None:
        """Closes the channel; its queries fail."""
        await self._dns.close()


class NameServers:
    """The name servers, over channels that are replaced in time (see the head of this file)."""

    def __init__(self, dns: Dns) -> None:
        self._servers = [str(server) for server in dns.servers]
        self._timeout = dns.timeout
        self._throttle = _TcpThrottle()
        self._fast: Channel | None = None
        self._slow: Channel | None = None
        self._isolated: list[Channel] = []  # isolated channels without a user
        self._current: set[Channel] = set()  # all channels that have not been replaced
        self.isolated_slots = asyncio.Semaphore(ISOLATED_CHANNELS)  # held while a lookup has an isolated channel

    def ready(self) -> Channel | None:
        """The channel that `fast` would return; None if `fast` would have to open one."""
        return self._fast if self._fast is not None and self._fast.is_fresh else None

    def renew(self) -> None:
        """Replaces every channel before its next query, so that no answer comes from c-ares's cache."""
        for channel in self._current:
            channel.asked = CHANNEL_QUERIES

    def is_replaced(self, channel: Channel) -> bool:
        """Whether a channel has been replaced, so that `release` must close it once it has no users."""
        return channel not in self._current

    async def fast(self) -> Channel:
        """A channel that asks each server once, with a timeout estimated from earlier answers."""
        old = self._fast
        if old is not None and old.is_fresh:
            return old
        new = self._fast = self._open(FAST_SECONDS)
        if old is not None:
            await self._replace(old)
        return new

    async def slow(self) -> Channel:
        """A channel that asks each server once, and gives each an equal share of the time (5 s at most: c-ares)."""
        old = self._slow
        if old is not None and old.is_fresh and old.answered < SLOW_ANSWERS:
            return old
        new = self._slow = await self._open_slow()
        if old is not None:
            await self._replace(old)
        return new

    async def isolated(self) -> Channel:
        """A slow channel that a single lookup uses until its answers have come."""
        while self._isolated:
            old = self._isolated.pop()
            if old.is_fresh:
                return old
            await self._replace(old)
        channel = await self._open_slow()
        channel.is_isolated = True
        return channel

    async def release(self, channel: Channel) -> None:
        """Handles a channel that has no users: closes it if it has been replaced, otherwise keeps it for the next
        lookup.
        """
        if channel not in self._current:
            await channel.close()
        elif channel.is_isolated:
            self._isolated.append(channel)

    async def close(self) -> None:
        """Closes every channel. No task may still wait for a query."""
        for channel in list(self._current):
            await channel.close()
        self._current.clear()
        self._isolated.clear()
        self._fast = self._slow = None

    def _open(self, seconds: float) -> Channel:
        channel = Channel(self._servers, seconds, self._throttle)
        self._current.add(channel)
        return channel

    async def _open_slow(self) -> Channel:
        return self._open(max(FAST_SECONDS, self._timeout / (await self.fast()).server_count))

    async def _replace(self, channel: Channel) -> None:
        self._current.discard(channel)
        if not channel.users:
            await channel.close()
