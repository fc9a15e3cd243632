"""Asks DNS lists: one query in flight for a name, a bounded cache, self-tests.

Promises that nothing here raises; that every answer comes within `dns.timeout`; that the number of queries in flight is
bounded for each list, so a silent list does not delay another; and that a list which its self-test has taken out of use
is neither asked nor trusted. `policyd.dns.list_answers` interprets answers, `policyd.dns.list_health` tracks
self-tests, and the caller keeps the deadline of a request.

A query that gets an answer costs no task: a callback reads it. After silence or a malformed answer, a `DnsLookup` asks
again, in a task.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from functools import partial
from random import SystemRandom
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from cachetools import LRUCache

from policyd.config.dns_list import Ask
from policyd.core.address import parse_address
from policyd.core.dns_lists import NEVER_ASKED, OUT_OF_USE, ListAnswer, ListAnswers, ListStatus, combine, unknown
from policyd.core.identity import Reason
from policyd.core.normalize import fold_name
from policyd.core.throttle import MessageThrottle
from policyd.dns.answers import MAX_SECONDS, A, settled_answer
from policyd.dns.channels import NameServers
from policyd.dns.list_answers import is_suspect, read_list_answer
from policyd.dns.list_health import Due, ListHealth, SelfTestResult, judge_self_test, self_test_questions
from policyd.dns.list_names import ListSubject, question, subjects
from policyd.dns.lookup import ERROR_SECONDS, MIN_SECONDS, NONE_SECONDS, Answer, DnsLookup

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from policyd.config.dns_list import DnsList
    from policyd.config.settings import Dns
    from policyd.core.identity import Identity
    from policyd.core.protocol import Request
    from policyd.dns.channels import Channel
    from policyd.dns.identify import AddressesAnswer

_log = logging.getLogger(__name__)

# Minimum seconds between two lines about a list, so that a list which keeps failing and recovering does not fill the
# log.
LINE_SECONDS = 60.0

# Minimum seconds between two lines about bugs: a client that can cause one can cause many.
BUG_SECONDS = 60.0

# Subjects in the cache that `forget` checks in one turn of the event loop.
FORGET_SLICE = 1000

_OUT_OF_USE = unknown(OUT_OF_USE)
_TOO_MANY = unknown(Reason.TIMEOUT)


class ListCounters:
    """Counts of one list since it came into the ruleset."""

    def __init__(self) -> None:
        self.asked = 0  # questions sent for requests, without those of self-tests
        self.hits = 0  # answers from the cache
        self.answers: Counter[tuple[ListStatus, str]] = Counter()  # by status and reason, of questions sent
        self.refused = 0  # questions not sent because `dns.lookups` were in flight
        self.seconds = 0.0  # sum over all answers


class ListState:
    """One list: its definition, its health, and its counters."""

    def __init__(self, definition: DnsList, counters: ListCounters) -> None:
        self.definition = definition
        self.takes_addresses = definition.takes_addresses
        self.health = ListHealth(is_tested=bool(definition.self_test))
        self.counters = counters
        self.in_flight = 0  # questions
        self.generation = 0  # changes when earlier answers become invalid
        self.complaint = MessageThrottle(LINE_SECONDS)
        self.outage_logged = False  # the operational log says that it is out of use


class _CachedAnswer(NamedTuple):
    """A cached answer, and its expiry on the monotonic clock."""

    answer: ListAnswer
    until: float
    state: ListState
    generation: int


class _Joint(NamedTuple):
    """The answers of several lists for one address, found together by one access to the cache."""

    names: AbstractSet[str]
    answers: ListAnswers
    counters: tuple[ListCounters, ...]
    until: float  # when the first of the answers expires, on the monotonic clock
    version: int  # of `DnsLists._version`


class _SubjectAnswers:
    """The cached answers for one subject: `kept` has those of each list by its name, `joint` those of several lists."""

    __slots__ = ("joint", "kept")

    def __init__(self) -> None:
        self.kept: dict[str, _CachedAnswer] = {}
        self.joint: _Joint | None = None


class _Waiter(NamedTuple):
    """A list, and the subject about which it waits for the answer of a query."""

    state: ListState
    subject: ListSubject
    answer: asyncio.Future[ListAnswer]


class _Query:
    """One name whose query is in flight."""

    __slots__ = ("began", "name", "servers", "waiters")

    def __init__(self, name: str, servers: NameServers) -> None:
        self.name = name
        self.servers = servers
        self.began = monotonic()
        self.waiters: list[_Waiter] = []


class DnsLists:
    """Looks up and caches answers of DNS lists. Belongs to the running event loop."""

    def __init__(self) -> None:
        self.states: dict[str, ListState] = {}  # by the list's name, those in use by the ruleset in force
        self.counters: dict[str, ListCounters] = {}
        self.bugs = 0
        self._loop = asyncio.get_running_loop()
        self._random = SystemRandom()
        self._cache: LRUCache[ListSubject, _SubjectAnswers] = LRUCache(0)
        # Changes if the lists or their health change; joint answers of an earlier version are not used.
        self._version = 0
        self._queries: dict[str, _Query] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._bug = MessageThrottle(BUG_SECONDS)
        self._is_closed = False

    def use(self, lists: Sequence[DnsList], dns: Dns, servers: NameServers) -> None:
        """Puts definitions and settings in force. A list whose definition did not change keeps its state and its
        answers.
        """
        old = self.states
        self.states = {}
        self._version += 1
        for definition in lists:
            state = old.get(definition.name)
            if state is None or state.definition != definition:
                counters = self.counters.setdefault(definition.name, ListCounters())
                state = ListState(definition, counters)
            self.states[definition.name] = state
        for name in self.counters.keys() - self.states.keys():
            del self.counters[name]
        self._dns = dns
        self._servers = servers
        if self._cache.maxsize != dns.cache_size:
            self._cache = LRUCache(dns.cache_size)
        self.check()

    @property
    def in_flight(self) -> int:
        """Questions that are in flight."""
        return len(self._queries)

    @property
    def cached_subjects(self) -> int:
        """Addresses and names in the cache, including expired ones."""
        return len(self._cache)

    # --- Answers of all lists that a request needs --------------------------------------------------------------------

    def known_answers(
        self, names: AbstractSet[str], request: Request, identity: Identity | None
    ) -> Mapping[str, ListAnswer]:
        """Returns these lists' answers that need no query."""
        now = monotonic()
        address = request.address
        try:
            known = self._cache[address] if address is not None else None
        except KeyError:
            known = None
        joint = known.joint if known is not None else None
        if joint is not None and joint.until > now and joint.version == self._version and joint.names == names:
            for counters in joint.counters:
                counters.hits += 1
            return joint.answers
        return self._known_one_by_one(names, request, identity, known, now)

    def _known_one_by_one(
        self,
        names: AbstractSet[str],
        request: Request,
        identity: Identity | None,
        known: _SubjectAnswers | None,
        now: float,
    ) -> Mapping[str, ListAnswer]:
        """Does the same as `known_answers`, list by list; `known` has the answers for the client's address."""
        answers = {}
        addresses: tuple[ListSubject, ...] | None = None
        kept = known.kept if known is not None else {}
        until = math.inf
        found: list[ListCounters] = []
        for name in names:
            state = self.states.get(name)
            if state is None:
                answers[name] = _OUT_OF_USE  # a request that began before a reload which removed the list
                continue
            if not state.takes_addresses:
                if identity is None and state.definition.ask is Ask.HOSTNAME:
                    answers[name] = _OUT_OF_USE  # a request that began before a reload which changed the list
                    continue
                if (answer := self.known_answer(name, subjects(state.definition, request, identity))) is not None:
                    answers[name] = answer
                continue
            if addresses is None:
                addresses = subjects(state.definition, request, identity)
            if not addresses:
                answers[name] = NEVER_ASKED
            elif not state.health.usable:
                answers[name] = _OUT_OF_USE
            elif (
                (cached := kept.get(name)) is not None
                and cached.until > now
                and cached.state is state
                and cached.generation == state.generation
            ):
                state.counters.hits += 1
                answers[name] = cached.answer
                until = min(until, cached.until)
                found.append(state.counters)
        if known is not None and len(found) == len(names):
            known.joint = _Joint(names, ListAnswers(answers), tuple(found), until, self._version)
            return known.joint.answers
        return answers

    def ask(self, name: str, request: Request, identity: Identity | None) -> asyncio.Future[ListAnswer]:
        """Does the same as `look_up`, for a list for which `known_answers` had no answer."""
        return self.look_up(name, subjects(self.states[name].definition, request, identity))

    # --- Answers of one list ----------------------------------------------------------------------------------------

    def known_answer(self, name: str, asked_for: Sequence[ListSubject]) -> ListAnswer | None:
        """Returns a list's answer for these subjects if it needs no query, else None."""
        state = self.states.get(name)
        if not asked_for:
            return NEVER_ASKED
        if state is None or not state.health.usable:
            return _OUT_OF_USE
        if len(asked_for) == 1:
            return self._cached_answer(state, asked_for[0])
        answers = [self._cached_answer(state, subject) for subject in asked_for]
        return combine(answer for answer in answers if answer is not None) if None not in answers else None

    def look_up(self, name: str, asked_for: Sequence[ListSubject]) -> asyncio.Future[ListAnswer]:
        """Asks a list about these subjects; `known_answer` had no answer for all of them.

        The future raises nothing, and must not be cancelled, because other requests may wait for it.
        """
        state = self.states[name]
        if len(asked_for) == 1:
            return self._look_up(state, asked_for[0])
        answers = [self._look_up(state, subject) for subject in asked_for]
        combined: asyncio.Future[ListAnswer] = self._loop.create_future()
        missing = len(answers)

        def answered(_: asyncio.Future[ListAnswer]) -> None:
            nonlocal missing
            missing -= 1
            if not missing:
                combined.set_result(combine(answer.result() for answer in answers))

        for answer in answers:
            answer.add_done_callback(answered)
        return combined

    async def forget(self, what: bytes) -> int:
        """Drops the cached answers for an address, or for the name `what` and every name under it.

        Returns the number of addresses and names dropped.
        """
        self._servers.renew()
        address = parse_address(what)
        if address is not None:
            return 0 if self._cache.pop(address, None) is None else 1
        name = fold_name(what)
        count = 0
        for number, subject in enumerate(list(self._cache), 1):
            if isinstance(subject, bytes) and (subject == name or subject.endswith(b"." + name)):
                count += self._cache.pop(subject, None) is not None
            if number % FORGET_SLICE == 0:
                await asyncio.sleep(0)
        return count

    def _cached_answer(self, state: ListState, subject: ListSubject) -> ListAnswer | None:
        known = self._cache.get(subject)
        if known is None or (cached := known.kept.get(state.definition.name)) is None:
            return None
        if not self._is_valid(cached, state, monotonic()):
            return None
        state.counters.hits += 1
        return cached.answer

    def _is_valid(self, kept: _CachedAnswer, state: ListState, now: float) -> bool:
        return kept.until > now and kept.state is state and kept.generation == state.generation

    def _look_up(self, state: ListState, subject: ListSubject) -> asyncio.Future[ListAnswer]:
        answer: asyncio.Future[ListAnswer] = self._loop.create_future()
        kept = self._cached_answer(state, subject)
        if kept is not None:  # this answer is known; that of another subject of the request is not
            answer.set_result(kept)
            return answer
        name = question(state.definition, subject)
        query = self._queries.get(name)
        if query is not None:
            for waiter in query.waiters:
                if waiter.state is state:
                    return waiter.answer
        if state.in_flight >= self._dns.lookups:
            state.counters.refused += 1
            answer.set_result(_TOO_MANY)
            return answer
        state.in_flight += 1
        state.counters.asked += 1
        waiter = _Waiter(state, subject, answer)
        if query is not None:
            query.waiters.append(waiter)
        else:
            query = self._queries[name] = _Query(name, self._servers)
            query.waiters.append(waiter)
            self._ask(query)
        return answer

    # --- Questions --------------------------------------------------------------------------------------------------

    def _ask(self, query: _Query) -> None:
        """Sends a query over a channel that is ready or, if there is none, in a task."""
        channel = query.servers.ready()
        if channel is None:
            self._run(self._ask_in_task(query, None))
            return
        channel.users += 1
        channel.ask(query.name, A.name).add_done_callback(partial(self._answered, query, channel))

    def _answered(self, query: _Query, channel: Channel, future: asyncio.Future[Any]) -> None:
        """Takes the first answer to a query, and ends the query unless it has to be sent again."""
        try:
            found, ttl = settled_answer(future, query.name, A)
            channel.users -= 1
            if found is not Reason.TIMEOUT:
                channel.answered += 1
            if not channel.users and query.servers.is_replaced(channel):
                self._run(query.servers.release(channel))
            if (found is Reason.TIMEOUT or found is Reason.MALFORMED) and not self._is_closed:
                self._run(self._ask_in_task(query, Answer(found, ttl, 0.0)))
            else:
                self._end(query, found, ttl)
        except Exception:  # noqa: BLE001 - the boundary of a question: requests that wait get an answer
            self._fail(query)

    async def _ask_in_task(self, query: _Query, first: Answer | None) -> None:
        """Sends a query that `_ask` could not send, or sends it again, until the deadline."""
        try:
            lookup = DnsLookup(query.servers)
            left = query.began + self._dns.timeout - monotonic()
            expiry = self._loop.call_later(max(0.0, left), lookup.expire)
            try:
                names = (query.name.encode(),)
                if first is None:
                    answers = await lookup.ask(names, A)
                else:
                    answers = [first]
                    await lookup.ask_again(names, A, answers)
            finally:
                expiry.cancel()
            self._end(query, answers[0].found, answers[0].ttl)
        except Exception:  # noqa: BLE001 - as above
            self._fail(query)

    def _end(self, query: _Query, found: AddressesAnswer, ttl: int | None) -> None:
        """Gives a query's answer to every waiter, and caches it."""
        self._queries.pop(query.name, None)
        now = monotonic()
        for state, subject, future in query.waiters:
            state.in_flight -= 1
            answer = read_list_answer(state.definition, found)
            state.counters.seconds += now - query.began
            state.counters.answers[answer.status, answer.reason or ""] += 1
            due = state.health.record_answer(found, now, is_suspect=is_suspect(state.definition, found))
            self._keep(state, subject, answer, now + _seconds_to_keep(answer, ttl))
            future.set_result(answer)
            if due:
                self.check()
        query.waiters.clear()

    def _keep(self, state: ListState, subject: ListSubject, answer: ListAnswer, until: float) -> None:
        if not self._cache.maxsize:
            return
        known = self._cache.get(subject)
        if known is None:
            known = self._cache[subject] = _SubjectAnswers()
        elif len(known.kept) > len(self.states):  # lists that are no longer in the ruleset
            known.kept.clear()
        known.kept[state.definition.name] = _CachedAnswer(answer, until, state, state.generation)
        known.joint = None

    def _fail(self, query: _Query) -> None:
        """Logs a bug; requests that wait for the query get `malformed`."""
        self.bugs += 1
        message = "a bug in policyd, please report it; the answer of a DNS list counts as malformed"
        if (line := self._bug.line_for(message, monotonic())) is not None:
            _log.exception("%s", line)
        self._queries.pop(query.name, None)
        for state, _, future in query.waiters:
            state.in_flight -= 1
            if not future.done():
                future.set_result(unknown(Reason.MALFORMED))
        query.waiters.clear()

    # --- Self-tests -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Starts the self-tests that are due. Call it once a second; it returns at once."""
        now = monotonic()
        for state in self.states.values():
            due = state.health.due(now)
            if due is Due.TEST:
                self._run(self._test(state))
            elif due is Due.PROBE:
                self._run(self._probe(state))
            if (line := state.complaint.due_line(now)) is not None and not state.health.usable:
                self._log_outage(state, line)

    async def _test(self, state: ListState) -> None:
        result = await self_test(state.definition, self._dns, self._random)
        now = monotonic()
        if not state.health.record_test(result, now):
            return
        name = state.definition.name
        # Earlier answers must not be used when the list is back in use.
        state.generation += 1
        self._version += 1
        self._servers.renew()
        if state.health.usable:
            if state.outage_logged:
                _log.info("DNS list %s: in use again: its self-test passed", name)
            state.outage_logged = False
            return
        self._give_up(state)
        message = f"DNS list {name}: {result.message}; it is out of use until its self-test passes"
        if (line := state.complaint.line_for(message, now)) is not None:
            self._log_outage(state, line)

    def _log_outage(self, state: ListState, line: str) -> None:
        state.outage_logged = True
        _log.warning("%s", line)

    async def _probe(self, state: ListState) -> None:
        """Asks a silent list for its test entry; an answer starts a self-test at once."""
        first = self_test_questions(state.definition, self._random)[0]
        (answer,) = await _ask_all((first.name,), self._dns)
        state.health.record_probe(answer, monotonic())
        self.check()

    def _give_up(self, state: ListState) -> None:
        """Answers requests that wait for a list which has gone out of use."""
        for query in self._queries.values():
            for waiter in query.waiters:
                if waiter.state is state:
                    state.in_flight -= 1
                    waiter.answer.set_result(_OUT_OF_USE)
            query.waiters = [waiter for waiter in query.waiters if waiter.state is not state]

    # --- The end ----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Ends the tasks. The queries end when the owner of the name servers closes them."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _run(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)  # the loop itself keeps tasks by weak references only
        task.add_done_callback(self._tasks.discard)


def _seconds_to_keep(answer: ListAnswer, ttl: int | None) -> float:
    """Returns the seconds for which an answer is kept (docs/dns-lists.md, "When it is asked")."""
    match answer.status:
        case ListStatus.LISTED:
            return min(MAX_SECONDS, max(MIN_SECONDS, ttl or 0))
        case ListStatus.NOT_LISTED:
            return NONE_SECONDS
        case ListStatus.UNKNOWN:
            return ERROR_SECONDS


class ListQueryTrace(NamedTuple):
    """One question to a DNS list with its answer, as `explain` shows it; `shown_name` hides the list's key."""

    dns_list: str
    shown_name: str
    answer: AddressesAnswer
    meaning: ListAnswer
    seconds: float


async def ask_once(
    lists: Iterable[DnsList], request: Request, identity: Identity | None, dns: Dns
) -> tuple[dict[str, ListAnswer], list[ListQueryTrace]]:
    """Asks these lists now, without a cache. Returns their answers, and each question with its answer."""
    answers: dict[str, ListAnswer] = {}
    trace: list[ListQueryTrace] = []

    async def ask(dns_list: DnsList, subject: ListSubject) -> ListAnswer:
        name = question(dns_list, subject)
        began = monotonic()
        (found,) = await _ask_all((name,), dns)
        meaning = read_list_answer(dns_list, found)
        shown = name.removesuffix(dns_list.zone) + dns_list.shown_zone
        trace.append(ListQueryTrace(dns_list.name, shown, found, meaning, monotonic() - began))
        return meaning

    async def ask_list(dns_list: DnsList) -> None:
        wanted = subjects(dns_list, request, identity)
        answers[dns_list.name] = combine(await asyncio.gather(*(ask(dns_list, subject) for subject in wanted)))

    await asyncio.gather(*map(ask_list, lists))
    return answers, trace


async def self_test(dns_list: DnsList, dns: Dns, random: SystemRandom) -> SelfTestResult:
    """Tests one list. The questions go over a channel of their own, so that no answer comes from c-ares's cache."""
    questions = self_test_questions(dns_list, random)
    answers = await _ask_all([question.name for question in questions], dns)
    return judge_self_test(dns_list, dict(zip(questions, answers, strict=True)))


async def _ask_all(names: Iterable[str], dns: Dns) -> list[AddressesAnswer]:
    """Returns the A records of each name (empty if it has none), or the reason of a failure, within one deadline."""
    servers = NameServers(dns)
    lookup = DnsLookup(servers)
    expiry = asyncio.get_running_loop().call_later(dns.timeout, lookup.expire)
    try:
        return [answer.found for answer in await lookup.ask([name.encode() for name in names], A)]
    finally:
        expiry.cancel()
        await servers.close()
