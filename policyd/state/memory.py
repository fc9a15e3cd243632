"""The memory that requests use: that of a server if several hosts share a memory, else the process's own memory.

`Memory.note` notes a request once, when it arrives. It increases the process's own counters at once, but only reads
those that count only requests that are let through. It asks a shared server in the same turn of the event loop.
`RequestNote.answer` passes results to the inquiry. `RequestNote.finish` stores, after the decision, everything that
depends on it; no request waits for it.

If the server does not answer, the process's own memory answers, and lets clients that it does not know pass
greylisting: no failure of memory causes a reject or a deferral. An inquiry refers to its note, but a note does not
refer to its inquiry, so no request leaves a reference cycle to the garbage collector.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, cast

from policyd.config.public_suffixes import registrable_domains
from policyd.core.facts import Greylisted
from policyd.core.identity import Status
from policyd.core.ruleset import Verb
from policyd.memory.counting import Count, counts_of
from policyd.memory.definitions import client_network
from policyd.memory.greylist import Client, judge, waiting_keys
from policyd.state.operations import Operation, count_operation, network_key, waiting_key
from policyd.tables.generic import is_generic

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from policyd.core.engine import Decision, Inquiry
    from policyd.core.facts import Needs
    from policyd.core.index import Ruleset
    from policyd.memory.definitions import GreylistSettings
    from policyd.state.operations import Result
    from policyd.state.process import ProcessMemory
    from policyd.state.valkey import SharedMemory

_NONE_COUNTED: Final[dict[str, int]] = {}
_KNOWN: Final = Greylisted.KNOWN  # before Python 3.12, looking up an Enum member takes 0.1 us
_DUNNO: Final = Verb.DUNNO


class Memory:
    """The memory of the daemon. `client_domain` returns the registrable domain of an inquiry's client."""

    def __init__(
        self,
        local: ProcessMemory,
        shared: SharedMemory | None,
        client_domain: Callable[[Inquiry], str | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.local = local
        self.shared = shared
        self.client_domain = client_domain
        self.clock = clock

    def note(self, inquiry: Inquiry) -> RequestNote | None:
        """Notes a request, before it is decided. Returns None if no counter counts it and no rule greylists."""
        ruleset = inquiry.ruleset
        counts = counts_of(inquiry) if ruleset.counters else []
        if not counts and ruleset.greylist is None:
            inquiry.learn_counters(_NONE_COUNTED)
            return None
        if self.shared is None:
            return RequestNote(self, inquiry, counts)
        return SharedNote(self, inquiry, counts, self.shared)


def uses_memory(ruleset: Ruleset) -> bool:
    """Returns whether a ruleset counts or greylists."""
    return bool(ruleset.counters) or ruleset.greylist is not None


def client_domain(inquiry: Inquiry) -> str | None:
    """Returns the registrable domain of the client's verified, non-generic host name; None if there is none."""
    identity, address = inquiry.identity, inquiry.request.address
    if identity is None or identity.status is not Status.VERIFIED or address is None:
        return None
    domains = registrable_domains()
    if is_generic(identity.hostname, address, domains):
        return None
    return domains.of(identity.hostname)


class RequestNote:
    """One request in the process's own memory. `is_local` says that a shared server did not answer for it."""

    __slots__ = ("_late", "_memory", "_network", "_now", "_values", "is_local")

    def __init__(self, memory: Memory, inquiry: Inquiry, counts: list[Count]) -> None:
        self.is_local = False
        self._memory = memory
        self._now = now = memory.clock()
        self._late: Sequence[Count] = ()  # counts that are made only if the request is let through
        inquiry.memory = self
        local = memory.local
        values: dict[str, int] = {}
        self._values = values
        for counter, key, value in counts:
            if counter.counts_all:
                values[counter.name] = local.add(counter, key, value, now)
            else:
                values[counter.name] = local.peek(counter, key, value, now)
                self._late = (*self._late, (counter, key, value))
        self._network = client_network(inquiry.request) if inquiry.ruleset.greylist is not None else b""
        self._begin(inquiry)

    def _begin(self, inquiry: Inquiry) -> None:
        inquiry.learn_counters(self._values)
        if self._network:
            settings = inquiry.ruleset.greylist
            inquiry.is_network_known = self._memory.local.knows_network(settings, self._network, self._now)

    # --- What the decision needs ------------------------------------------------------------------------------------

    def answer(self, inquiry: Inquiry, needs: Needs) -> bool:
        """Passes to the inquiry the facts that it needs, as far as they are known. Returns whether any were."""
        if not needs.greylist or inquiry.greylist is not None:
            return False
        # A client without an address cannot be recognised later.
        inquiry.greylist = self._greylist(inquiry) if self._network else Greylisted.UNKNOWN
        return inquiry.greylist is not None

    def pending_calls(self, _needs: Needs) -> list[asyncio.Future[list[Result] | None]]:
        """Returns the calls that must end before `answer` has more facts."""
        return []

    def finish(self, decision: Decision) -> None:
        """Stores what depends on the decision: counts, and when a known network was seen. No request waits for it."""
        if decision.greylist is _KNOWN:
            self._memory.local.see_network(self._network, self._now)
        if self._late and decision.verb is _DUNNO:
            for count in self._late:
                self._memory.local.add(*count, self._now)

    def _greylist(self, inquiry: Inquiry) -> Greylisted | None:
        """Returns the result of greylisting; None before the client's reverse DNS is known."""
        if inquiry.identity is None:
            return None
        settings = cast("GreylistSettings", inquiry.ruleset.greylist)
        return self._memory.local.greylist(settings, self._client(inquiry), *_envelope(inquiry), self._now)

    def _client(self, inquiry: Inquiry) -> Client:
        domain = self._memory.client_domain(inquiry)
        return Client(self._network, domain.encode() if domain is not None else b"")


class SharedNote(RequestNote):
    """One request if several hosts share a memory: asks the server, and also updates the process's own memory."""

    __slots__ = ("_counts", "_first_call", "_keys", "_remember", "_second_call", "_shared")

    def __init__(self, memory: Memory, inquiry: Inquiry, counts: list[Count], shared: SharedMemory) -> None:
        self._shared = shared
        self._counts = counts
        self._remember = inquiry.ruleset.greylist.remember if inquiry.ruleset.greylist is not None else 0
        self._first_call: asyncio.Future[list[Result] | None] | None = None
        self._keys: tuple[bytes, ...] = ()  # of the first tries that the second call asks for
        self._second_call: asyncio.Future[list[Result] | None] | None = None
        super().__init__(memory, inquiry, counts)

    def _begin(self, inquiry: Inquiry) -> None:
        if not self._shared.is_up:
            self.is_local = True
            inquiry.learn_counters(self._values)
            return
        operations = [count_operation(*count, add=count[0].counts_all) for count in self._counts]
        if self._network:
            operations.append(Operation("get", network_key(self._network)))
        if operations:
            self._first_call = self._shared.ask(operations)
        if not self._counts:
            inquiry.learn_counters({})

    def answer(self, inquiry: Inquiry, needs: Needs) -> bool:
        """Passes the server's answers, or else the process's own data, to the inquiry."""
        answered = super().answer(inquiry, needs)
        if needs.counters and inquiry.counters is None and self._first_call is not None and self._first_call.done():
            found = self._first_call.result()
            inquiry.learn_counters(self._counter_values(found))
            inquiry.is_network_known = found is not None and bool(self._network) and found[-1] is not None
            answered = True
        return answered

    def pending_calls(self, needs: Needs) -> list[asyncio.Future[list[Result] | None]]:
        """Returns the calls to the server that have not been answered."""
        pending = []
        if (needs.counters or needs.greylist) and self._first_call is not None and not self._first_call.done():
            pending.append(self._first_call)
        if needs.greylist and self._second_call is not None and not self._second_call.done():
            pending.append(self._second_call)
        return pending

    def finish(self, decision: Decision) -> None:
        """Stores what depends on the decision, in the process and on the server."""
        super().finish(decision)
        writes = []
        if self._late and decision.verb is _DUNNO:
            writes = [count_operation(*count, add=True) for count in self._late]
        if decision.greylist is _KNOWN and not self.is_local and not self._is_seen_now():
            writes.append(self._see_network())
        if writes:
            self._shared.ask(writes)

    def _is_seen_now(self) -> bool:
        """Whether the server already has the current second for the client's network, so that no write is needed."""
        found = self._first_call.result() if self._first_call is not None else None
        return found is not None and found[-1] == b"%d" % self._now

    def _see_network(self) -> Operation:
        """The operation that stores the current time for the client's network."""
        return Operation("set", network_key(self._network), self._remember, b"%d" % self._now)

    def _counter_values(self, found: list[Result] | None) -> dict[str, int]:
        """The values of counters in the server's answer or, if there is no answer, the process's own values."""
        if found is None:
            self.is_local = True
            return self._values
        values = (value if isinstance(value, int) else 0 for value in found[: len(self._counts)])
        return {count[0].name: value for count, value in zip(self._counts, values, strict=True)}

    # --- Greylisting ------------------------------------------------------------------------------------------------

    def _greylist(self, inquiry: Inquiry) -> Greylisted | None:
        """Asks for first tries if the first call found that the network is not known.

        Returns None before the server has answered or the client's reverse DNS is known. After a failed call the server
        is not asked again, so that a request waits for one failed call at most.
        """
        settings = cast("GreylistSettings", inquiry.ruleset.greylist)
        if self._first_call is not None and not self._first_call.done():
            return None
        found = self._first_call.result() if self._first_call is not None and not self.is_local else None
        if found is None:
            return self._greylist_locally(inquiry, settings)
        if found[-1] is not None:
            return Greylisted.KNOWN
        return self._first_tries(inquiry, settings) if inquiry.identity is not None else None

    def _first_tries(self, inquiry: Inquiry, settings: GreylistSettings) -> Greylisted | None:
        """Judges by the first tries under the client's domain and network; None before the server has answered."""
        client = self._client(inquiry)
        keys = waiting_keys(client, *_envelope(inquiry))
        if self._second_call is None or keys != self._keys:
            self._keys = keys
            names = [network_key(self._network), *map(waiting_key, keys)]
            self._second_call = self._shared.ask([Operation("get", name) for name in names])
        if not self._second_call.done():
            return None
        found = self._second_call.result()
        if found is None:
            return self._greylist_locally(inquiry, settings)
        return self._judge(inquiry, settings, client, keys, found)

    def _judge(
        self,
        inquiry: Inquiry,
        settings: GreylistSettings,
        client: Client,
        keys: tuple[bytes, ...],
        found: list[Result],
    ) -> Greylisted:
        """Judges a try with the server's data, and stores the result on the server and in the process."""
        verdict = judge(settings, self._now, keys, tuple(map(_time_of, found[1:])), _time_of(found[0]))
        self._memory.local.greylist(settings, client, *_envelope(inquiry), self._now)
        writes = [
            Operation("set-new", waiting_key(key), settings.retry_within, b"%.3f" % first)
            for key, first in verdict.first_tries
        ]
        if verdict.has_passed:
            writes.append(self._see_network())
        writes += [Operation("delete", waiting_key(key)) for key in verdict.forget]
        self._shared.ask(writes)
        return verdict.state

    def _greylist_locally(self, inquiry: Inquiry, settings: GreylistSettings) -> Greylisted | None:
        """Judges a try with the process's own memory, which lets through clients that this process has not deferred."""
        self.is_local = True
        local = self._memory.local
        if local.knows_network(settings, self._network, self._now):
            return Greylisted.KNOWN
        if inquiry.identity is None:
            return None
        if not local.waits(waiting_keys(self._client(inquiry), *_envelope(inquiry))):
            return Greylisted.UNKNOWN
        return super()._greylist(inquiry)


def _envelope(inquiry: Inquiry) -> tuple[bytes, bytes]:
    request = inquiry.request
    return request.get("sender").lower(), request.get("recipient").lower()


def _time_of(found: Result) -> float | None:
    """Returns the time stored under a key; None if there is none, or if the value is not a time."""
    if isinstance(found, bytes):
        try:
            return float(found)
        except ValueError:
            return None
    return None
