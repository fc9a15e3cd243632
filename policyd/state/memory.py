"""Memory as requests see it: the process's own and, if several hosts share one, the server's before it.

A request is noted once, when it arrives (`note`): its counters are counted in the process, or looked at if only what
is let through counts, and the shared server is asked in the same turn of the event loop. What the decision needs is
told to the inquiry (`Note.tell`), and what depends on the decision is written afterwards, for which no request waits
(`Note.finish`). If the server does not answer, the process's own memory does, and a client that it does not know passes
greylisting: no failure of memory rejects or delays a mail.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from policyd.config.public_suffixes import registrable_domains
from policyd.core.facts import Greylisted
from policyd.core.identity import Status
from policyd.core.ruleset import Verb
from policyd.memory.counting import Count, counts_of
from policyd.memory.definitions import Answered, network_of
from policyd.memory.greylist import Client, judge, waiting_keys
from policyd.state.operations import Operation, counting, network_key, waiting_key
from policyd.tables.generic import is_generic

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from policyd.core.engine import Decision, Inquiry
    from policyd.core.facts import Needs
    from policyd.core.index import Ruleset
    from policyd.memory.definitions import GreylistSettings
    from policyd.state.operations import Found
    from policyd.state.process import ProcessMemory
    from policyd.state.valkey import SharedMemory


class Memory:
    """The memory of the daemon. `domain_of` is passed in, because the data behind it are elsewhere."""

    def __init__(
        self,
        local: ProcessMemory,
        shared: SharedMemory | None,
        domain_of: Callable[[Inquiry], str | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.local = local
        self.shared = shared
        self.domain_of = domain_of
        self.clock = clock

    def note(self, inquiry: Inquiry) -> Note:
        """Notes a request, before it is decided."""
        return Note(self, inquiry)


def uses_memory(ruleset: Ruleset) -> bool:
    """Returns whether a ruleset counts or greylists."""
    return bool(ruleset.counters) or ruleset.greylist is not None


def domain_of(inquiry: Inquiry) -> str | None:
    """Returns the registrable domain of the client's verified host name, None if there is none."""
    identity, address = inquiry.identity, inquiry.request.address
    if identity is None or identity.status is not Status.VERIFIED or address is None:
        return None
    domains = registrable_domains()
    if is_generic(identity.hostname, address, domains):
        return None
    return domains.of(identity.hostname)


class Note:
    """One request, as memory sees it. `is_local` says that the shared server did not answer for it."""

    def __init__(self, memory: Memory, inquiry: Inquiry) -> None:
        self._memory = memory
        self._inquiry = inquiry
        self._now = memory.clock()
        self._counts = counts_of(inquiry)
        self._values = {count.counter.name: self._count_here(count) for count in self._counts}
        self._asked: asyncio.Future[list[Found] | None] | None = None
        self._greylist_asked: asyncio.Future[list[Found] | None] | None = None
        self._greylist_keys: tuple[bytes, ...] = ()
        self.is_local = False
        shared = memory.shared
        if shared is None:
            inquiry.learn_counters(self._values)
        elif not shared.is_up:
            self.is_local = True
            inquiry.learn_counters(self._values)
        elif self._counts:
            operations = [counting(*count, add=count.counter.answered is Answered.ANY) for count in self._counts]
            self._asked = shared.ask(operations)
        else:
            inquiry.learn_counters({})
        inquiry.memory = self

    # --- What the decision needs ------------------------------------------------------------------------------------

    def tell(self, needs: Needs) -> bool:
        """Tells the inquiry what is known by now of what it needs. Returns whether there was anything."""
        told = False
        if needs.counters and self._inquiry.counters is None and self._asked is not None and self._asked.done():
            self._inquiry.learn_counters(self._values_there(self._asked.result()))
            told = True
        if needs.greylist and self._inquiry.greylist is None:
            state = self._greylisted()
            if state is not None:
                self._inquiry.greylist = state
                told = True
        return told

    def ask(self, needs: Needs) -> list[asyncio.Future[list[Found] | None]]:
        """Returns what is to be waited for before `tell` has more; each future gets its result by itself."""
        waiting = []
        if needs.counters and self._asked is not None and not self._asked.done():
            waiting.append(self._asked)
        if needs.greylist and self._greylist_asked is not None and not self._greylist_asked.done():
            waiting.append(self._greylist_asked)
        return waiting

    def finish(self, decision: Decision) -> None:
        """Counts what depends on the decision. No request waits for it."""
        if decision.verb is not Verb.DUNNO:
            return
        memory = self._memory
        late = [count for count in self._counts if count.counter.answered is Answered.DUNNO]
        for count in late:
            memory.local.add(*count, self._now)
        if late and memory.shared is not None:
            memory.shared.ask([counting(*count, add=True) for count in late])

    def _count_here(self, count: Count) -> int:
        local = self._memory.local
        act = local.add if count.counter.answered is Answered.ANY else local.peek
        return act(*count, self._now)

    def _values_there(self, found: list[Found] | None) -> dict[str, int]:
        if found is None:
            self.is_local = True
            return self._values
        values = (value if isinstance(value, int) else 0 for value in found)
        return {count.counter.name: value for count, value in zip(self._counts, values, strict=True)}

    # --- Greylisting ------------------------------------------------------------------------------------------------

    def _greylisted(self) -> Greylisted | None:
        """Returns the result of greylisting; None as long as the server's answer or the client's name is unknown."""
        inquiry, memory = self._inquiry, self._memory
        address = inquiry.request.address
        if address is None:
            return Greylisted.UNKNOWN  # a client without an address cannot be known again
        settings = cast("GreylistSettings", inquiry.ruleset.greylist)
        network = network_of(address)
        if memory.shared is not None:
            return self._greylisted_there(memory.shared, settings, network)
        if memory.local.knows_network(settings, network, self._now):
            return Greylisted.KNOWN
        if inquiry.identity is None:
            return None
        return memory.local.greylist(settings, self._client(network), *self._envelope(), self._now)

    def _greylisted_there(self, shared: SharedMemory, settings: GreylistSettings, network: bytes) -> Greylisted | None:
        """Asks first for the network, which is enough for most; and for first tries when the client's name is known."""
        if self._greylist_asked is None and shared.is_up:
            self._greylist_asked = shared.ask([Operation("get", network_key(network))])
        if self._greylist_asked is None or (self._greylist_asked.done() and self._greylist_asked.result() is None):
            return self._greylisted_here(settings, network)
        found = self._greylist_asked.result() if self._greylist_asked.done() else None
        if found is None:
            return None
        if found[0] is not None:
            shared.ask([Operation("set", network_key(network), settings.remember, b"%d" % self._now)])
            return Greylisted.KNOWN
        if self._inquiry.identity is None:
            return None
        client = self._client(network)
        keys = waiting_keys(client, *self._envelope())
        if keys != self._greylist_keys:
            self._greylist_keys = keys
            reads = [Operation("get", network_key(network)), *(Operation("get", waiting_key(key)) for key in keys)]
            self._greylist_asked = shared.ask(reads)
            return None
        return self._judge(shared, settings, client, keys, found)

    def _judge(
        self,
        shared: SharedMemory,
        settings: GreylistSettings,
        client: Client,
        keys: tuple[bytes, ...],
        found: list[Found],
    ) -> Greylisted:
        """Judges a try by what the server knows, and writes what follows from it, there and here."""
        verdict = judge(settings, self._now, keys, tuple(map(_time_of, found[1:])), _time_of(found[0]))
        self._memory.local.greylist(settings, client, *self._envelope(), self._now)
        writes = [
            Operation("set-new", waiting_key(key), settings.retry_within, b"%.3f" % first)
            for key, first in verdict.first_tries
        ]
        if verdict.network_seen:
            writes.append(Operation("set", network_key(client.network), settings.remember, b"%d" % self._now))
        writes += [Operation("delete", waiting_key(key)) for key in verdict.forget]
        shared.ask(writes)
        return verdict.state

    def _greylisted_here(self, settings: GreylistSettings, network: bytes) -> Greylisted | None:
        """The process's own memory answers for the server: a client that it has not deferred itself is let by."""
        self.is_local = True
        local = self._memory.local
        if local.knows_network(settings, network, self._now):
            return Greylisted.KNOWN
        if self._inquiry.identity is None:
            return None
        client = self._client(network)
        if not local.waits(waiting_keys(client, *self._envelope())):
            return Greylisted.UNKNOWN
        return local.greylist(settings, client, *self._envelope(), self._now)

    def _client(self, network: bytes) -> Client:
        domain = self._memory.domain_of(self._inquiry)
        return Client(network, domain.encode() if domain is not None else b"")

    def _envelope(self) -> tuple[bytes, bytes]:
        request = self._inquiry.request
        return request.get("sender").lower(), request.get("recipient").lower()


def _time_of(found: Found) -> float | None:
    """The time that stands under a key; None if there is none, or something else."""
    if isinstance(found, bytes):
        try:
            return float(found)
        except ValueError:
            return None
    return None
