"""One lookup with one deadline: sends queries, collects answers, and sends queries again.

`DnsLookup` implements `policyd.dns.identify.IdentityLookups` for one client, and also queries DNS lists. A silent
server is asked again until the deadline; after a malformed answer the query is sent once more, over a separate channel.
`policyd.dns.resolver` and `policyd.dns.lists` have the caches and limits.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from policyd.core.identity import Reason
from policyd.dns.answers import AAAA, MAX_SECONDS, PTR, A, answer_to

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence

    from policyd.dns.answers import RecordType
    from policyd.dns.channels import Channel, NameServers
    from policyd.dns.identify import AddressesAnswer, NamesAnswer

# Seconds that an answer is cached (docs/ruleset.md, "Reverse DNS").
MIN_SECONDS = 60  # minimum for records; MAX_SECONDS is their maximum, and between them the smallest TTL counts
NONE_SECONDS = 60  # a definite "none"
ERROR_SECONDS = 30  # a failure

# Seconds before the third try of a query without an answer, doubled before each further try: a restarting resolver is
# asked again soon, and a closed port does not keep this process busy.
PAUSE_SECONDS = 0.25


class QueryTrace(NamedTuple):
    """One query with its answer, as `explain` shows it: PTR names, addresses, or the reason of a failure.

    `ttl` is the number of seconds that the answer may be cached (None: unknown), `seconds` the duration of the query.
    """

    name: bytes
    type: str
    answer: NamesAnswer | AddressesAnswer
    ttl: int | None
    seconds: float


class Answer(NamedTuple):
    """The result of one query: its records' values, or the reason why there is no answer."""

    found: tuple[Any, ...] | Reason
    ttl: int | None  # None: the answer has no TTL
    at: float  # arrival, on the monotonic clock; 0 without a trace


class DnsLookup:
    """The queries of one client, up to one deadline: `policyd.dns.identify.IdentityLookups` over aiodns.

    Collects the seconds that the result may be cached and, if `trace` is given, each query with its answer.
    """

    __slots__ = ("_expired", "_failed", "_seconds", "_servers", "_trace", "_waiting")

    def __init__(self, servers: NameServers, trace: list[QueryTrace] | None = None) -> None:
        self._servers = servers
        self._trace = trace
        self._waiting: Iterable[asyncio.Future[Any]] = ()
        self._expired = False
        self._failed = False
        self._seconds = MAX_SECONDS

    @property
    def seconds_to_keep(self) -> int:
        """Seconds that the result may be cached."""
        return ERROR_SECONDS if self._failed else max(MIN_SECONDS, self._seconds)

    def expire(self) -> None:
        """Ends the lookup: queries without an answer, and all later queries, get the reason `timeout`."""
        self._expired = True
        for future in self._waiting:
            future.cancel()

    async def names(self, name: bytes) -> NamesAnswer:
        """Returns the PTR records at `name`."""
        answer: NamesAnswer = (await self._records((name,), PTR))[0]
        return answer

    async def addresses(self, names: Sequence[bytes], version: int) -> Sequence[AddressesAnswer]:
        """Returns the addresses of each name, in the same order."""
        return await self._records(names, A if version == 4 else AAAA)

    async def ask(self, names: Sequence[bytes], kind: RecordType) -> list[Answer]:
        """Asks for the records of one type of all names at the same time; returns the answers in the order of names."""
        began = monotonic()
        if self._expired:
            answers = [Answer(Reason.TIMEOUT, None, began)] * len(names)
        else:
            answers = await self._ask_over(await self._servers.fast(), names, kind)
            await self.ask_again(names, kind, answers)
        for name, (found, ttl, at) in zip(names, answers, strict=True):
            if isinstance(found, Reason):
                self._failed = True
            else:
                self._seconds = min(self._seconds, NONE_SECONDS if ttl is None else ttl)
            if self._trace is not None:
                self._trace.append(QueryTrace(name, kind.name, found, ttl, at - began))
        return answers

    async def _records(self, names: Sequence[bytes], kind: RecordType) -> list[Any]:
        return [answer.found for answer in await self.ask(names, kind)]

    async def ask_again(self, names: Sequence[bytes], kind: RecordType, answers: list[Answer]) -> None:
        """Repeats queries without an answer until the deadline, and those with a malformed answer once.

        Replaces their answers in `answers`.
        """

        async def ask(places: list[int], channel: Channel) -> None:
            again = await self._ask_over(channel, [names[place] for place in places], kind)
            for place, answer in zip(places, again, strict=True):
                answers[place] = answer

        def places_of(reason: Reason) -> list[int]:
            return [place for place, answer in enumerate(answers) if answer.found is reason and not self._expired]

        pause, was_isolated = PAUSE_SECONDS, False
        while True:
            if silent := places_of(Reason.TIMEOUT):
                await ask(silent, await self._servers.slow())
                if places_of(Reason.TIMEOUT):
                    await self._wait(asyncio.sleep(pause))
                    pause *= 2
            elif (malformed := places_of(Reason.MALFORMED)) and not was_isolated:
                was_isolated = True
                if await self._wait(self._servers.isolated_slots.acquire()):
                    try:
                        await ask(malformed, await self._servers.isolated())
                    finally:
                        self._servers.isolated_slots.release()
            else:
                break

    async def _ask_over(self, channel: Channel, names: Sequence[bytes], kind: RecordType) -> list[Answer]:
        """Sends queries over one channel, which asks each server once, and waits for all answers."""
        arrivals: dict[asyncio.Future[Any], float] = {}
        answers = []
        futures: list[asyncio.Future[Any]] = []
        hosts = [name.decode("ascii") for name in names]
        channel.users += 1
        try:
            futures += [channel.ask(host, kind.name) for host in hosts]
            self._waiting = futures
            if self._trace is not None:
                for future in futures:
                    future.add_done_callback(lambda future: arrivals.setdefault(future, monotonic()))
            for host, future in zip(hosts, futures, strict=True):
                try:
                    found, ttl = await answer_to(future, host, kind)
                except asyncio.CancelledError:
                    if not self._expired:
                        raise
                    found, ttl = Reason.TIMEOUT, None
                if found is not Reason.TIMEOUT:
                    channel.answered += 1
                answers.append(Answer(found, ttl, arrivals.get(future, 0.0)))
        finally:
            for future in futures:
                future.cancel()  # after an early end no task waits for it
            channel.users -= 1
            if not channel.users:
                await self._servers.release(channel)
        return answers

    async def _wait(self, work: Coroutine[Any, Any, object]) -> bool:
        """Waits for work; returns whether it ended before the deadline."""
        task = asyncio.create_task(work)
        self._waiting = (task,)
        try:
            await task
        except asyncio.CancelledError:
            if not self._expired:
                raise
            return False
        return True
