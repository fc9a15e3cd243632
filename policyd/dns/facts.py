"""Finds the facts that a decision needs: the client's identity, answers of DNS lists, counters and greylisting.

Runs the daemon's loop "decide, find the facts, decide again". All questions that the engine names are sent together;
each answer is passed to the inquiry when it arrives, and the decision is made as soon as no outstanding answer can
change it. After `dns.timeout` every list without an answer is unknown.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from policyd.core.dns_lists import unknown
from policyd.core.facts import Needs
from policyd.core.identity import Reason

if TYPE_CHECKING:
    from policyd.core.dns_lists import ListAnswer
    from policyd.core.engine import Decision, Inquiry
    from policyd.core.identity import Identity
    from policyd.dns.lists import DnsLists
    from policyd.dns.resolver import Resolver

_TIMEOUT = unknown(Reason.TIMEOUT)


class FactFinder:
    """Finds facts by asking DNS and the memory. Belongs to the running event loop; `timeout` is in seconds."""

    def __init__(self, resolver: Resolver, lists: DnsLists, timeout: float) -> None:
        self.resolver = resolver
        self.lists = lists
        self.timeout = timeout

    def decide_with_known(self, inquiry: Inquiry, needs: Needs) -> Decision | Needs:
        """Decides with cached facts. Returns the facts that must be looked up if the cached ones are not enough."""
        decision: Decision | Needs = needs
        while isinstance(decision, Needs) and self._learn_known(inquiry, decision):
            decision = inquiry.decide()
        return decision

    def find(self, inquiry: Inquiry, needs: Needs) -> asyncio.Future[Decision]:
        """Looks up the facts that `decide_with_known` lacked. The future must not be cancelled; it raises only if there
        is a bug.
        """
        return _Search(self, inquiry, needs).decision

    def _learn_known(self, inquiry: Inquiry, needs: Needs) -> bool:
        """Passes cached facts to the inquiry; returns whether there were any."""
        learnt = False
        if needs.identity and (identity := self.resolver.cached(inquiry.request.address)) is not None:
            inquiry.learn_identity(identity)
            learnt = True
        if inquiry.memory is not None and (needs.counters or needs.greylist):
            learnt = inquiry.memory.answer(inquiry, needs) or learnt
        if needs.lists and (answers := self.lists.known_answers(needs.lists, inquiry.request, inquiry.identity)):
            inquiry.learn_lists(answers)
            learnt = True
        return learnt


class _Search:
    """The facts of one inquiry that have to be looked up."""

    __slots__ = (
        "_answers",
        "_asked_lists",
        "_asks_identity",
        "_deadline",
        "_expires_at",
        "_facts",
        "_inquiry",
        "_is_expired",
        "_loop",
        "_memory_futures",
        "_needs",
        "_will_decide",
        "decision",
    )

    def __init__(self, facts: FactFinder, inquiry: Inquiry, needs: Needs) -> None:
        self._facts = facts
        self._inquiry = inquiry
        self._loop = asyncio.get_running_loop()
        self.decision: asyncio.Future[Decision] = self._loop.create_future()
        self._asks_identity = False
        self._asked_lists: set[str] = set()  # their names
        self._memory_futures: list[asyncio.Future[object]] = []
        self._needs = needs
        self._answers: dict[str, ListAnswer] = {}  # answers that the inquiry does not have yet
        self._deadline: asyncio.TimerHandle | None = None
        self._expires_at = self._loop.time() + facts.timeout
        self._is_expired = False
        self._will_decide = False
        self._ask(needs)

    def _ask(self, needs: Needs) -> None:
        """Sends the questions that have not been sent yet."""
        self._needs = needs
        request = self._inquiry.request
        if needs.identity and not self._asks_identity:
            self._asks_identity = True
            self._facts.resolver.look_up(request.address).add_done_callback(self._identity_found)
        if self._inquiry.memory is not None:
            for future in self._inquiry.memory.pending_calls(needs):
                if future not in self._memory_futures:
                    self._memory_futures.append(future)
                    future.add_done_callback(self._memory_answered)
        for name in needs.lists:
            if name in self._asked_lists:
                continue
            self._asked_lists.add(name)
            if self._is_expired:
                self._take(name, _TIMEOUT)
                continue
            future = self._facts.lists.ask(name, request, self._inquiry.identity)
            future.add_done_callback(partial(self._list_answered, name))
            if self._deadline is None:
                self._deadline = self._loop.call_at(self._expires_at, self._expire)

    def _identity_found(self, future: asyncio.Future[Identity]) -> None:
        if not self.decision.done():
            self._inquiry.learn_identity(future.result())
            self._decide_soon()

    def _memory_answered(self, _future: asyncio.Future[object]) -> None:
        if not self.decision.done():
            self._decide_soon()

    def _list_answered(self, name: str, future: asyncio.Future[ListAnswer]) -> None:
        if not self.decision.done() and not self._is_expired:
            self._take(name, future.result())

    def _take(self, name: str, answer: ListAnswer) -> None:
        self._answers[name] = answer
        self._decide_soon()

    def _expire(self) -> None:
        """Treats every list without an answer as unknown. The identity has its own deadline, which is not later."""
        self._is_expired = True
        waiting = self._asked_lists.difference(self._inquiry.lists, self._answers)
        self._answers.update(dict.fromkeys(waiting, _TIMEOUT))
        self._decide_soon()

    def _decide_soon(self) -> None:
        """Schedules one decision for all answers that arrive in this turn of the event loop."""
        if not self._will_decide:
            self._will_decide = True
            self._loop.call_soon(self._decide)

    def _decide(self) -> None:
        self._will_decide = False
        try:
            if self._answers:
                self._inquiry.learn_lists(self._answers)
                self._answers = {}
            if self._memory_futures:
                self._inquiry.memory.answer(self._inquiry, self._needs)
            decision = self._inquiry.decide()
            if isinstance(decision, Needs):
                decision = self._facts.decide_with_known(self._inquiry, decision)
            if isinstance(decision, Needs):
                self._ask(decision)
                return
            self.decision.set_result(decision)
        except Exception as error:  # noqa: BLE001 - the callback of `decision` gets the exception and handles it (policyd.daemon.server)
            self.decision.set_exception(error)
        if self._deadline is not None:
            self._deadline.cancel()
