"""Memory shared by several hosts, in Valkey or Redis.

Promises that no call takes longer than twice the timeout (once for the answer, and once to end the connection after a
failure), and that a failure returns None: the caller then uses the memory of the process. No call is sent twice,
because a failed call may have been carried out. A failed call ends the connection, so a late answer is never read as
the answer to the next call.

The operations of all requests in one turn of the event loop go into one call of a script, and those of requests that
arrive before its answer share the next call, because each call has a fixed cost of some 100 us.

After MAX_FAILURES in a row the server counts as away. Then only a probe asks it, once a second, until a probe succeeds.
The probe is a write, because a full server still answers PING and GET.

The script's first write is one that a full server refuses (HINCRBY, ZADD, SET), never one that it accepts (EXPIRE,
DEL): once a script has written, a full server refuses none of its further writes, and would grow. The script has no
`#!lua` line, because with such a line a full server would refuse the script even if it only reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, cast

from valkey.asyncio import Valkey
from valkey.asyncio.retry import Retry
from valkey.backoff import NoBackoff
from valkey.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ValkeyError,
)
from valkey.exceptions import TimeoutError as ValkeyTimeoutError

from policyd.core.throttle import MessageThrottle
from policyd.memory.window import MAX_DISTINCT, SLOTS
from policyd.state.operations import PREFIX, Operation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from valkey.asyncio.connection import AbstractConnection

    from policyd.state.operations import Result

_log = logging.getLogger(__name__)

# Number of failures in a row after which requests no longer ask the server.
MAX_FAILURES = 3

# Seconds between probes of a server that is away.
PROBE_SECONDS = 1.0

# Seconds between lines that say why the server cannot be used.
COMPLAINT_SECONDS = 60.0

# Maximum number of operations in one call: some milliseconds of the server's time, in which it serves no other client.
MAX_BATCH = 500

# Maximum number of operations without an answer yet. Above it the process's own memory answers: these are ten calls,
# half a second for a server that takes 50 ms for a call.
MAX_WAITING = 5000

# Each operation has three arguments: kind, seconds, value. The answer is one text, because a list takes ten times as
# long. It has `policyd`, then a word for each operation: a number, `-` if the key does not exist, or `?` if its value
# is unusable. A counter's key gets a new expiry only with a new slot or value. That is enough, because the expiry is
# longer than the window.
_SCRIPT = f"""
local slots, most = {SLOTS}, {MAX_DISTINCT}
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local function expire(key, seconds)
  redis.call('EXPIRE', key, math.ceil(seconds * slots / (slots - 1)) + 1)
end
local function events(key, oldest)
  local entries, gone, count = redis.call('HGETALL', key), {{}}, 0
  for j = 1, #entries, 2 do
    if tonumber(entries[j]) > oldest then count = count + tonumber(entries[j + 1])
    else gone[#gone + 1] = entries[j] end
  end
  return count, gone
end
local deleted, found = {{}}, {{}}
for i, key in ipairs(KEYS) do
  local kind, seconds, value = ARGV[3 * i - 2], tonumber(ARGV[3 * i - 1]), ARGV[3 * i]
  local slot = math.floor(now * slots / seconds)
  if kind == 'event' then
    local new = redis.call('HINCRBY', key, slot, 1) == 1
    local count, gone = events(key, slot - slots)
    if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
    if new then expire(key, seconds) end
    found[i] = count
  elseif kind == 'peek-event' then found[i] = events(key, slot - slots) + 1
  elseif kind == 'distinct' then
    local new = redis.call('ZADD', key, 'CH', slot, value) == 1
    if new then redis.call('ZREMRANGEBYSCORE', key, '-inf', slot - slots) end
    local count = redis.call('ZCARD', key)
    if count > most then
      redis.call('ZREMRANGEBYRANK', key, 0, count - most - 1)
      count = most
    end
    if new then expire(key, seconds) end
    found[i] = count
  elseif kind == 'peek-distinct' then
    local seen = redis.call('ZSCORE', key, value)
    local new = (seen and tonumber(seen) > slot - slots) and 0 or 1
    found[i] = redis.call('ZCOUNT', key, '(' .. slot - slots, '+inf') + new
  elseif kind == 'get' then
    local text = redis.call('GET', key)
    found[i] = text and (text:match('^[%d.]+$') or '?') or '-'
  elseif kind == 'set' then
    redis.call('SET', key, value, 'EX', seconds)
    found[i] = 1
  elseif kind == 'set-new' then
    redis.call('SET', key, value, 'EX', seconds, 'NX')
    found[i] = 1
  else deleted[#deleted + 1] = i end
end
for _, i in ipairs(deleted) do found[i] = redis.call('DEL', KEYS[i]) end
return 'policyd ' .. table.concat(found, ' ')
"""


class _Waiting(NamedTuple):
    """Operations that wait for their call. The future gets their results, or None if there is no answer."""

    operations: Sequence[Operation]
    future: asyncio.Future[list[Result] | None]


class StateCounters:
    """Counts of the calls to the server, of the failed ones, and of the seconds that calls took; since the start."""

    def __init__(self) -> None:
        self.calls = 0
        self.failures = 0
        self.seconds = 0.0


class SharedMemory:
    """The client of one server, with one task that sends the calls. It belongs to the running event loop.

    `timeout` is in seconds, for each call; `name` is how the server appears in messages, without any password.
    """

    def __init__(self, connection: AbstractConnection, name: str, timeout: float) -> None:
        self.counters = StateCounters()
        self.name = name
        self.is_up = True  # False after MAX_FAILURES failures in a row
        self.why = ""  # the last failure
        self._connection = connection
        self._timeout = timeout
        self._failures = 0
        self._is_closing = False
        self._waiting: list[_Waiting] = []
        self._operations = 0
        self._wanted = asyncio.Event()
        self._complaint = MessageThrottle(COMPLAINT_SECONDS)
        self._task = asyncio.get_running_loop().create_task(self._work())

    def ask(self, operations: Sequence[Operation]) -> asyncio.Future[list[Result] | None]:
        """Queues operations for the next call. The future gets the result of each, or None if there is no answer."""
        future: asyncio.Future[list[Result] | None] = asyncio.get_running_loop().create_future()
        if not self.is_up or self._operations + len(operations) > MAX_WAITING:
            future.set_result(None)
            return future
        self._operations += len(operations)
        self._waiting.append(_Waiting(operations, future))
        self._wanted.set()
        return future

    async def connect(self) -> None:
        """Tries the server once, so that a failure is known before the first request."""
        await self._probe()

    async def close(self) -> None:
        """Sends waiting operations, for twice the timeout at most, and ends the task and the connection."""
        if self._operations:
            last = self.ask([Operation("get", PREFIX + b"probe")])  # answered after all earlier operations
            await asyncio.wait([last], timeout=2 * self._timeout)
        self._is_closing = True  # ends the task even if valkey-py turns the cancellation into another error
        self._task.cancel()
        await asyncio.wait([self._task], timeout=2 * self._timeout)
        self._give_up(self._waiting)
        await self._disconnect()

    # --- The task that asks -----------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while not self._is_closing:
            if not self.is_up:
                await asyncio.sleep(PROBE_SECONDS)
                await self._probe()
                continue
            await self._wanted.wait()
            self._wanted.clear()
            while self._waiting and self.is_up:
                await self._call(self._take())
                await asyncio.sleep(0)  # so that requests with an answer add their writes to the next call
            if not self.is_up:
                self._give_up(self._waiting)

    def _take(self) -> list[_Waiting]:
        """Takes from the queue the operations that fit in one call."""
        taken, count = 0, 0
        for waiting in self._waiting:
            if taken and count + len(waiting.operations) > MAX_BATCH:
                break
            taken += 1
            count += len(waiting.operations)
        batch, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return batch

    async def _call(self, batch: list[_Waiting]) -> None:
        operations = [operation for waiting in batch for operation in waiting.operations]
        found = await self._run(operations)
        if found is None:
            self._give_up(batch)
            self._give_up(self._waiting)  # they have waited for this call, and must not wait for another timeout
            return
        self._operations -= len(operations)
        place = 0
        for waiting in batch:
            end = place + len(waiting.operations)
            if not waiting.future.done():
                waiting.future.set_result(found[place:end])
            place = end

    def _give_up(self, batch: list[_Waiting]) -> None:
        for waiting in batch:
            self._operations -= len(waiting.operations)
            if not waiting.future.done():
                waiting.future.set_result(None)
        if batch is self._waiting:
            self._waiting = []

    async def _run(self, operations: Sequence[Operation]) -> list[Result] | None:
        """Sends one call; returns None if it failed."""
        began = monotonic()
        self.counters.calls += 1
        connection = self._connection
        try:
            async with asyncio.timeout(self._timeout):
                if connection.is_connected and await _has_ended(connection):
                    await connection.disconnect()
                await connection.send_packed_command(_pack(operations), check_health=False)
                found = _parse(await connection.read_response(disable_decoding=True), operations)
        except Exception as error:  # noqa: BLE001 - valkey-py raises ValueError or RecursionError for malformed answers
            await self._record_failure(error)
            return None
        finally:
            self.counters.seconds += monotonic() - began
        self._failures = 0
        return found

    async def _probe(self) -> None:
        if await self._run([Operation("set", PREFIX + b"probe", 60, b"1")]) is None:
            return
        if not self.is_up:
            self.is_up = True
            _log.warning("memory: %s answers again", self.name)

    async def _record_failure(self, error: Exception) -> None:
        self.counters.failures += 1
        self._failures += 1
        self.why = _reason(error, self._timeout)
        if self._failures >= MAX_FAILURES:
            self.is_up = False
        message = f"memory: {self.name}: {self.why}; this process's own memory answers meanwhile"
        if (line := self._complaint.line_for(message, monotonic())) is not None:
            _log.warning("%s", line)
        # An answer that is still on the way must not be read as that of the next call.
        await self._disconnect()

    async def _disconnect(self) -> None:
        """Ends the connection, without waiting for a server that does not end it in time (TLS)."""
        with contextlib.suppress(ValkeyError, OSError, TimeoutError):
            await self._connection.disconnect()


async def _has_ended(connection: AbstractConnection) -> bool:
    """Whether the server has ended the connection, or sent data that was not asked for."""
    return bool(await connection.can_read_destructive())  # type: ignore[no-untyped-call] # valkey-py has no type for it


_PACKED_SCRIPT = b"$4\r\nEVAL\r\n$%d\r\n%b\r\n" % (len(_SCRIPT), _SCRIPT.encode())


def _pack(operations: Sequence[Operation]) -> bytes:
    """Returns a call of the script as it is sent (https://valkey.io/topics/protocol/), faster than valkey-py does."""
    count = b"%d" % len(operations)
    parts = [b"*%d\r\n%b$%d\r\n%b\r\n" % (3 + 4 * len(operations), _PACKED_SCRIPT, len(count), count)]
    parts += [b"$%d\r\n%b\r\n" % (len(key), key) for _, key, _, _ in operations]
    parts += [
        b"%b$%d\r\n%b\r\n" % (_pack_kind(kind, seconds), len(value), value) for kind, _, seconds, value in operations
    ]
    return b"".join(parts)


@functools.lru_cache(maxsize=1024)
def _pack_kind(kind: str, seconds: int) -> bytes:
    return b"$%d\r\n%b\r\n$%d\r\n%d\r\n" % (len(kind), kind.encode(), len(str(seconds)), seconds)


def _parse(answer: object, operations: Sequence[Operation]) -> list[Result]:
    """Returns the results in the script's answer. Raises ValkeyError or ValueError for anything else."""
    first, *words = answer.split(b" ") if isinstance(answer, bytes) else [b""]
    if first != b"policyd" or len(words) != len(operations):
        raise ValkeyError("UNFIT")
    return [
        int(word) if operation[0] != "get" else word if word != b"-" else None
        for word, operation in zip(words, operations, strict=True)
    ]


# Meaning and remedy of each error code: the first word of an error of Redis or Valkey. UNFIT is policyd's own code.
_CODES = {
    "OOM": "it is full; raise maxmemory, or set maxmemory-policy to volatile-ttl",
    "NOAUTH": "it wants a password; set state_credentials",
    "WRONGPASS": "it refuses the user or password of state_credentials",
    "NOPERM": "its user may not use the commands or keys that policyd needs (keys policyd:*)",
    "LOADING": "it is loading its data",
    "READONLY": "it is a replica, which cannot be written to; name the primary",
    "MISCONF": "it cannot save to disk, and refuses writes",
    "CLUSTERDOWN": "its cluster is down",
    "MOVED": "it is part of a cluster, which policyd does not support; name a single server",
    "MASTERDOWN": "it is a replica without a connection to its primary",
    "UNFIT": "its answer does not fit the question; is it a Valkey or Redis server?",
}

# valkey-py removes the code of an error that has its own class.
_CLASSES: tuple[tuple[type[ValkeyError], str], ...] = (
    (AuthenticationError, "WRONGPASS"),
    (BusyLoadingError, "LOADING"),
    (ReadOnlyError, "READONLY"),
    (OutOfMemoryError, "OOM"),
    (NoPermissionError, "NOPERM"),
)


def _reason(error: Exception, timeout: float) -> str:
    """Returns the cause of an error, and the remedy if there is one; never quotes the server."""
    if isinstance(error, TimeoutError | ValkeyTimeoutError):
        return f"no answer within {timeout * 1000:.0f} ms (state_timeout)"
    if isinstance(error, ValueError | RecursionError):
        return _CODES["UNFIT"]
    cause: BaseException | None = error
    while cause is not None:  # the reason of a connection error is in its __cause__ or __context__
        word = "NOAUTH" if "Authentication required" in str(cause) else str(cause).split(" ", 1)[0]
        if word not in _CODES:
            word = next((code for kind, code in _CLASSES if isinstance(cause, kind)), "")
        if word:
            return _CODES[word]
        if isinstance(cause, OSError) and cause.errno is not None:
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return f"cannot be reached or used ({type(error).__name__})"


def connection_of(
    *,
    host: str = "",
    port: int = 6379,
    path: str = "",
    database: int = 0,
    tls: bool = False,
    user: str | None = None,
    password: str | None = None,
    timeout: float,
) -> AbstractConnection:
    """Returns a connection to a server at HOST:PORT or at a unix socket. The connection never retries by itself.

    `timeout` is for connecting, in seconds; each call has its own timeout.
    """
    client = Valkey(
        host=host or "localhost",
        port=port,
        unix_socket_path=path or None,
        db=database,
        ssl=tls,
        username=user,
        password=password,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        retry_on_timeout=False,
        lib_name=None,
        lib_version=None,
    )
    connection = client.connection_pool.make_connection()  # type: ignore[no-untyped-call] # valkey-py has no type for it
    return cast("AbstractConnection", connection)
