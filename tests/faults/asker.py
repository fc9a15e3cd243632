"""The process that sends the requests of a flow: `python -m tests.faults.asker`, started by `tests.faults.flow`.

It keeps connections busy as Postfix does: one request in flight on each, a short pause, then the next request. If the
server closes or refuses a connection, it sends the same request over a new connection. It writes attempts to standard
output, as pickled lists of `Attempt` and `Waits`, and does not check answers, so that checking does not affect times.
At SIGTERM it sends no more requests, and ends as soon as those in flight have been answered or timed out.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import json
import os
import pickle
import signal
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import uvloop

from tests.faults.world import NAMED, attributes_of

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

# Postfix's timeout in seconds, as the README sets it (`timeout=10s` of check_policy_service).
PATIENCE_SECONDS = 10.0

# Seconds from the end or refusal of a connection to the next attempt. Postfix waits 1 s, which would make tests slow.
AGAIN_SECONDS = 0.1

# Seconds between two writes to standard output.
BATCH_SECONDS = 0.01

# In place of a client's number: no request was in flight when the server closed the connection or sent an answer.
IDLE = -1


class Attempt(NamedTuple):
    """One request, sent once. `failure` says why there was no `answer`. Times are on the monotonic clock."""

    client: int
    serial: int
    instance: str
    sent: float
    ended: float
    answer: str
    failure: str


class Waits(NamedTuple):
    """For each thread of the server and of this process, the seconds up to the time `at` in which it was ready to run
    while the machine ran other threads (/proc/PID/task/TID/schedstat).
    """

    at: float
    seconds: dict[int, float]


def waits(pids: list[int]) -> Waits:
    """Returns the current waits. A process or thread that has ended is left out."""
    seconds = {}
    for pid in pids:
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - runs thousands of times, and must be fast
                with open(f"/proc/{pid}/task/{thread}/schedstat", "rb") as file:  # noqa: PTH123 - as above
                    seconds[int(thread)] = int(file.read().split()[1]) / 1e9
        except (FileNotFoundError, ProcessLookupError):
            continue
    return Waits(monotonic(), seconds)


class Connection(asyncio.Protocol):
    """Consecutive connections to one address, with the requests that are sent over them."""

    def __init__(self, asker: Asker, place: str, number: int, questions: Iterator[tuple[int, int]]) -> None:
        self._asker = asker
        self._place = place
        self._number = number
        self._questions = questions
        self._count = 0
        # The client and serial number of the request that is in flight or will be sent next.
        self._current: tuple[int, int] | None = None
        self._instance = ""
        self._sent = 0.0
        self._read = b""
        self._transport: asyncio.Transport | None = None

    async def connect(self) -> None:
        """Connects, and tries again until the server accepts or the process stops."""
        loop = asyncio.get_running_loop()
        while not self._asker.stopped:
            began = monotonic()
            try:
                if self._place.startswith("unix:"):
                    await loop.create_unix_connection(lambda: self, self._place.removeprefix("unix:"))
                else:
                    await loop.create_connection(lambda: self, "127.0.0.1", int(self._place))
            except OSError as error:
                client, serial = self._current or next(self._questions)
                self._current = client, serial
                why = os.strerror(error.errno or 0)
                self._asker.note(Attempt(client, serial, "", began, monotonic(), "", f"cannot connect: {why}"))
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                return

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._read = b""
        self._ask()

    def data_received(self, received: bytes) -> None:
        now = monotonic()
        self._read += received
        if not self._read.endswith(b"\n\n"):
            return
        answer, self._read = self._read, b""
        if self._current is None:
            self._end("an answer without a question")
            return
        self._note(now, answer=answer.decode("latin-1"))
        self._current = None
        asyncio.get_running_loop().call_later(self._asker.pause, self._ask)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._current is None:
            self._asker.note(Attempt(IDLE, 0, "", monotonic(), monotonic(), "", ""))
        elif self._sent:
            self._end("the connection was closed")
        if not self._asker.stopped:
            asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._asker.start, self.connect())

    def check(self, now: float) -> bool:
        """Whether an answer is pending; gives up after Postfix's timeout."""
        if self._current is None or not self._sent:
            return False
        if now - self._sent > PATIENCE_SECONDS:
            self._end(f"no answer within {PATIENCE_SECONDS:.0f} s")
            if self._transport is not None:
                self._transport.abort()
        return True

    def _ask(self) -> None:
        if self._transport is None or self._asker.stopped:
            return
        if self._current is None:
            self._current = next(self._questions)
        client, serial = self._current
        self._count += 1
        self._instance = f"{os.getpid():x}.{self._number}.{self._count}"
        request = b"%binstance=%b\n\n" % (encode_request(client, serial), self._instance.encode())
        self._sent = monotonic()
        self._transport.write(request)

    def _end(self, failure: str) -> None:
        self._note(monotonic(), failure=failure)

    def _note(self, now: float, *, answer: str = "", failure: str = "") -> None:
        client, serial = self._current or (IDLE, 0)
        self._asker.note(Attempt(client, serial, self._instance, self._sent, now, answer, failure))
        self._sent = 0.0


class Asker:
    """All connections together."""

    def __init__(self, pause: float, pids: list[int]) -> None:
        self.pause = pause
        self._pids = pids
        self.stopped = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._noted: list[Attempt | Waits] = []

    def note(self, attempt: Attempt) -> None:
        self._noted.append(attempt)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def run(self, connections: list[Connection]) -> None:
        """Sends requests until SIGTERM, then waits for those in flight."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop)
        for connection in connections:
            self.start(connection.connect())
        while True:
            self._noted.append(waits(self._pids))
            await asyncio.sleep(BATCH_SECONDS)
            now = monotonic()
            waiting = [connection.check(now) for connection in connections]
            self._pass_on()
            if self.stopped and not any(waiting):
                return

    def _stop(self) -> None:
        self.stopped = True

    def _pass_on(self) -> None:
        noted, self._noted = self._noted, []
        if noted:
            sys.stdout.buffer.write(pickle.dumps(noted))
            sys.stdout.buffer.flush()


_ENCODED: dict[int, bytes] = {}


def encode_request(client: int, serial: int) -> bytes:
    """A request without its `instance` and its end. Requests of named clients are cached; they have no serial."""
    if client < len(NAMED) and client in _ENCODED:
        return _ENCODED[client]
    made = "".join(f"{name}={value}\n" for name, value in attributes_of(client, serial).items()).encode()
    if client < len(NAMED):
        _ENCODED[client] = made
    return made


def named_clients(first: int) -> Iterator[tuple[int, int]]:
    """Endlessly yields the number and serial number of each client that needs no DNS, beginning with client `first`."""
    while True:
        yield first % len(NAMED), 0
        first += 1


def nameless_clients(kinds: list[int], number: int, options: dict[str, int]) -> Iterator[tuple[int, int]]:
    """Endlessly yields new clients, each `repeats` times, as for a message to several recipients. Each connection
    begins with another kind, and has its own serial numbers.
    """
    serial = options["serial"] + number
    while True:
        for place in range(len(kinds)):
            for _ in range(options["repeats"]):
                yield len(NAMED) + kinds[(place + number) % len(kinds)], serial
            serial += options["nameless"]


def main() -> None:
    """Runs the connections that the argument describes: the JSON that `tests.faults.flow.Flow` writes."""
    options = json.loads(sys.argv[1])
    asker = Asker(options["pause"], [*options["pids"], os.getpid()])
    place, named, nameless = options["place"], options["named"], options["nameless"]
    connections = [Connection(asker, place, number, named_clients(number)) for number in range(named)]
    connections += [
        Connection(asker, place, named + number, nameless_clients(options["kinds"], number, options))
        for number in range(nameless)
    ]
    fcntl.fcntl(sys.stdout.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)  # so that it never waits for its reader
    gc.disable()  # because a garbage collection would look like a slow answer
    uvloop.run(asker.run(connections))


if __name__ == "__main__":
    from tests.faults.asker import main  # pickled objects must belong to that module, not to __main__

    main()
