"""The memory that requests use: the process's own or, if several hosts share one, the server's first.

A request is noted once, when it arrives (`note`): its counters are counted in the process, or only read if they count
answered requests only, and the shared server is asked in the same turn of the event loop. `Note.tell` passes results to
the inquiry; `Note.finish` stores what depends on the decision, afterwards, and no request waits for it. If the server
does not answer, the process's own memory does, and a client that it does not know passes greylisting: no failure of
memory rejects or delays a mail. An inquiry refers to its note, but a note does not refer to its inquiry, so no request
leaves a reference cycle to the garbage collector.
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
from policyd.state.operations import Operation, counting, network_key, waiting_key
from policyd.tables.generic import is_generic

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from policyd.core.engine import Decision, Inquiry
    from policyd.core.facts import Needs
    from policyd.core.index import Ruleset
    from policyd.memory.definitions import GreylistSettings
    from policyd.state.operations import Found
    from policyd.state.process import ProcessMemory
    from policyd.state.valkey import SharedMemory

_NONE_COUNTED: Final[dict[str, int]] = {}
_KNOWN: Final = Greylisted.KNOWN  # a member of an Enum takes 0.1 us to look up before Python 3.12
_DUNNO: Final = Verb.DUNNO


class Memory:
    """The memory of the daemon. `domain_of` returns a name's registrable domain."""

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

    def note(self, inquiry: Inquiry) -> Note | None:
        """Notes a request, before it is decided. Returns None if no counter counts it, and nothing greylists."""
        ruleset = inquiry.ruleset
        counts = counts_of(inquiry) if ruleset.counters else []
        if not counts and ruleset.greylist is None:
            inquiry.learn_counters(_NONE_COUNTED)
            return None
        if self.shared is None:
            return Note(self, inquiry, counts)
        return SharedNote(self, inquiry, counts, self.shared)


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
    """One request, as the process's own memory sees it. `is_local` says that a shared server did not answer for it."""

    __slots__ = ("_late", "_memory", "_network", "_now", "_values", "is_local")

    def __init__(self, memory: Memory, inquiry: Inquiry, counts: list[Count]) -> None:
        self.is_local = False
        self._memory = memory
        self._now = now = memory.clock()
        self._late: Sequence[Count] = ()  # the counts to make if the request is let through
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

    def tell(self, inquiry: Inquiry, needs: Needs) -> bool:
        """Passes the known facts that the inquiry needs to it. Returns whether there were any."""
        if not needs.greylist or inquiry.greylist is not None:
            return False
        # A client without an address cannot be known again.
        inquiry.greylist = self._greylisted(inquiry) if self._network else Greylisted.UNKNOWN
        return inquiry.greylist is not None

    def ask(self, _needs: Needs) -> list[asyncio.Future[list[Found] | None]]:
        """Returns the futures to wait for before `tell` has more."""
        return []

    def finish(self, decision: Decision) -> None:
        """Counts what depends on the decision. No request waits for it."""
        if decision.greylist is _KNOWN:
            self._memory.local.see_network(self._network, self._now)
        if self._late and decision.verb is _DUNNO:
            for count in self._late:
                self._memory.local.add(*count, self._now)

    def _greylisted(self, inquiry: Inquiry) -> Greylisted | None:
        """Returns the result of greylisting; None as long as the client's name is unknown."""
        if inquiry.identity is None:
            return None
        settings = cast("GreylistSettings", inquiry.ruleset.greylist)
        return self._memory.local.greylist(settings, self._client(inquiry), *_envelope(inquiry), self._now)

    def _client(self, inquiry: Inquiry) -> Client:
        domain = self._memory.domain_of(inquiry)
        return Client(self._network, domain.encode() if domain is not None else b"")


class SharedNote(Note):
    """One request if several hosts share a memory: asks the server, and also updates the process's own memory."""

    __slots__ = ("_asked", "_counted", "_keys", "_keys_asked", "_remember", "_shared")

    def __init__(self, memory: Memory, inquiry: Inquiry, counts: list[Count], shared: SharedMemory) -> None:
        self._shared = shared
        self._counted = counts
        self._remember = inquiry.ruleset.greylist.remember if inquiry.ruleset.greylist is not None else 0
        self._asked: asyncio.Future[list[Found] | None] | None = None
        self._keys: tuple[bytes, ...] = ()  # of first tries
        self._keys_asked: asyncio.Future[list[Found] | None] | None = None
        super().__init__(memory, inquiry, counts)

    def _begin(self, inquiry: Inquiry) -> None:
        if not self._shared.is_up:
            self.is_local = True
            inquiry.learn_counters(self._values)
            return
        operations = [counting(*count, add=count[0].counts_all) for count in self._counted]
        if self._network:
            operations.append(Operation("get", network_key(self._network)))
        if operations:
            self._asked = self._shared.ask(operations)
        if not self._counted:
            inquiry.learn_counters({})

    def tell(self, inquiry: Inquiry, needs: Needs) -> bool:
        """Passes the server's answers, or the process's own data instead, to the inquiry."""
        told = super().tell(inquiry, needs)
        if needs.counters and inquiry.counters is None and self._asked is not None and self._asked.done():
            found = self._asked.result()
            inquiry.learn_counters(self._values_there(found))
            inquiry.is_network_known = found is not None and bool(self._network) and found[-1] is not None
            told = True
        return told

    def ask(self, needs: Needs) -> list[asyncio.Future[list[Found] | None]]:
        """Returns the calls to the server that have not been answered."""
        waiting = []
        if (needs.counters or needs.greylist) and self._asked is not None and not self._asked.done():
            waiting.append(self._asked)
        if needs.greylist and self._keys_asked is not None and not self._keys_asked.done():
            waiting.append(self._keys_asked)
        return waiting

    def finish(self, decision: Decision) -> None:
        """Counts what depends on the decision, in the process and on the server."""
        super().finish(decision)
        writes = []
        if self._late and decision.verb is _DUNNO:
            writes = [counting(*count, add=True) for count in self._late]
        if decision.greylist is _KNOWN and not self.is_local and not self._is_seen_now():
            writes.append(self._seen())
        if writes:
            self._shared.ask(writes)

    def _is_seen_now(self) -> bool:
        """Whether the server has the present second for the client's network, which is as exact as its times are."""
        found = self._asked.result() if self._asked is not None else None
        return found is not None and found[-1] == b"%d" % self._now

    def _seen(self) -> Operation:
        """The operation that remembers the client's network, from now on."""
        return Operation("set", network_key(self._network), self._remember, b"%d" % self._now)

    def _values_there(self, found: list[Found] | None) -> dict[str, int]:
        if found is None:
            self.is_local = True
            return self._values
        values = (value if isinstance(value, int) else 0 for value in found[: len(self._counted)])
        return {count[0].name: value for count, value in zip(self._counted, values, strict=True)}

    # --- Greylisting ------------------------------------------------------------------------------------------------

    def _greylisted(self, inquiry: Inquiry) -> Greylisted | None:
        """Asks for first tries if the first call found that the network is not known.

        Returns None as long as the server's answer or the client's name is unknown. After a call that failed the server
        is not asked again: a request waits for one timeout, not for one for each question.
        """
        settings = cast("GreylistSettings", inquiry.ruleset.greylist)
        if self._asked is not None and not self._asked.done():
            return None
        known = self._asked.result() if self._asked is not None and not self.is_local else None
        if known is None:
            return self._greylisted_here(inquiry, settings)
        if known[-1] is not None:
            return Greylisted.KNOWN
        return self._first_tries(inquiry, settings) if inquiry.identity is not None else None

    def _first_tries(self, inquiry: Inquiry, settings: GreylistSettings) -> Greylisted | None:
        """Judges by the first tries under the client's name and network; None as long as they are not known."""
        client = self._client(inquiry)
        keys = waiting_keys(client, *_envelope(inquiry))
        if self._keys_asked is None or keys != self._keys:
            self._keys = keys
            names = [network_key(self._network), *map(waiting_key, keys)]
            self._keys_asked = self._shared.ask([Operation("get", name) for name in names])
        if not self._keys_asked.done():
            return None
        found = self._keys_asked.result()
        if found is None:
            return self._greylisted_here(inquiry, settings)
        return self._judge(inquiry, settings, client, keys, found)

    def _judge(
        self,
        inquiry: Inquiry,
        settings: GreylistSettings,
        client: Client,
        keys: tuple[bytes, ...],
        found: list[Found],
    ) -> Greylisted:
        """Judges a try with the server's data, and stores the result on the server and in the process."""
        verdict = judge(settings, self._now, keys, tuple(map(_time_of, found[1:])), _time_of(found[0]))
        self._memory.local.greylist(settings, client, *_envelope(inquiry), self._now)
        writes = [
            Operation("set-new", waiting_key(key), settings.retry_within, b"%.3f" % first)
            for key, first in verdict.first_tries
        ]
        if verdict.network_seen:
            writes.append(self._seen())
        writes += [Operation("delete", waiting_key(key)) for key in verdict.forget]
        self._shared.ask(writes)
        return verdict.state

    def _greylisted_here(self, inquiry: Inquiry, settings: GreylistSettings) -> Greylisted | None:
        """Judges a try with the process's own memory, which lets through clients that it did not defer itself."""
        self.is_local = True
        local = self._memory.local
        if local.knows_network(settings, self._network, self._now):
            return Greylisted.KNOWN
        if inquiry.identity is None:
            return None
        if not local.waits(waiting_keys(self._client(inquiry), *_envelope(inquiry))):
            return Greylisted.UNKNOWN
        return super()._greylisted(inquiry)


def _envelope(inquiry: Inquiry) -> tuple[bytes, bytes]:
    request = inquiry.request
    return request.get("sender").lower(), request.get("recipient").lower()


def _time_of(found: Found) -> float | None:
    """Returns the time stored under a key; None if there is none, or if the value is not a time."""
    if isinstance(found, bytes):
        try:
            return float(found)
        except ValueError:
            return None
    return None
