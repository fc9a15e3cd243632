"""Memory in the process. It is bounded: the least recently used keys are dropped."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple, Self, TypeAlias

from policyd.memory.definitions import FINGERPRINT_BYTES
from policyd.memory.greylist import Client, judge, waiting_keys
from policyd.memory.window import SLOTS, DistinctWindow, EventWindow, slot_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from policyd.core.facts import Greylisted
    from policyd.memory.definitions import CounterDefinition, GreylistSettings

Window: TypeAlias = "EventWindow | DistinctWindow"


class Changes:
    """Keys that have changed since they were last written to the state file, by the table that they are in."""

    def __init__(
        self, windows: Iterable[bytes] = (), networks: Iterable[bytes] = (), waiting: Iterable[bytes] = ()
    ) -> None:
        self.windows = set(windows)
        self.networks = set(networks)
        self.waiting = set(waiting)

    def __len__(self) -> int:
        return len(self.windows) + len(self.networks) + len(self.waiting)

    def __ior__(self, others: Changes) -> Self:
        self.windows |= others.windows
        self.networks |= others.networks
        self.waiting |= others.waiting
        return self


class MemoryTables(NamedTuple):
    """The three tables of a memory: windows of counters; networks that have passed; first tries that wait."""

    windows: Mapping[bytes, Window]
    networks: Mapping[bytes, float]
    waiting: Mapping[bytes, float]


class ProcessMemory:
    """Counters and greylisting of one process.

    It has at most `max_keys` entries: one for each key of a counter, each value of a `distinct` counter, and each
    network that has passed. In addition, there may be half as many first tries. They displace only each other: a flood
    of new senders must not make the daemon forget its counts.
    """

    def __init__(self, max_keys: int) -> None:
        self.max_keys = max_keys
        self._max_waiting = max(1, max_keys // 2)
        self.evicted = 0  # keys dropped because of the limits
        # Windows by the counter's fingerprint and key; the least recently used first.
        self._windows: OrderedDict[bytes, Window] = OrderedDict()
        self._networks: OrderedDict[bytes, float] = OrderedDict()  # networks that passed, with the time when last seen
        self._waiting: OrderedDict[bytes, float] = OrderedDict()  # first tries, with their time
        self._entries = 0
        self.changes: Changes | None = None  # changes to write to the state file, if there is one

    def __len__(self) -> int:
        return self._entries + len(self._waiting)

    # --- Counters ---------------------------------------------------------------------------------------------------

    def add(self, counter: CounterDefinition, key: bytes, value: bytes | None, now: float) -> int:
        """Counts a request. Returns the counter's value, the request included."""
        full_key = counter.fingerprint + key
        if self.changes is not None:
            self.changes.windows.add(full_key)
        window = self._windows.get(full_key)
        if window is None:
            window = self._new_window(counter, full_key)
        else:
            self._windows.move_to_end(full_key)
        slot = int(now * SLOTS / counter.within)  # written out, because a call of slot_of takes as long as the rest
        if isinstance(window, EventWindow):
            return window.add(slot)
        count = window.add(slot, value or b"")
        if count != window.charged:
            self._charge(window, count)
        return count

    def peek(self, counter: CounterDefinition, key: bytes, value: bytes | None, now: float) -> int:
        """Returns the counter's value with the request included, without counting it."""
        window = self._windows.get(counter.fingerprint + key)
        if window is None:
            return 1
        slot = slot_of(now, counter.within)
        if isinstance(window, EventWindow):
            return window.count(slot) + 1
        count = window.count_with(slot, value or b"")
        self._charge(window, len(window))
        return count

    def counts_by_key(self, counter: CounterDefinition, now: float) -> Iterator[tuple[bytes, int] | None]:
        """Yields each key of a counter with its value, and None every thousand entries, for the caller to pause."""
        prefix, slot = counter.fingerprint, slot_of(now, counter.within)
        for place, (key, window) in enumerate(list(self._windows.items())):
            # Entries that were evicted during a pause are not counted any more.
            if key.startswith(prefix) and self._windows.get(key) is window:
                count = window.count(slot)
                if isinstance(window, DistinctWindow):
                    self._charge(window, count)
                if count:
                    yield key[FINGERPRINT_BYTES:], count
            if place % 1000 == 999:
                yield None

    def forget(self, counter: CounterDefinition, key: bytes) -> bool:
        """Forgets a key of a counter. Returns whether the key was known."""
        window = self._windows.pop(counter.fingerprint + key, None)
        if window is None:
            return False
        if self.changes is not None:
            self.changes.windows.add(counter.fingerprint + key)
        self._entries -= _weight(window)
        return True

    def _charge(self, window: DistinctWindow, values: int) -> None:
        """Updates the number of entries for a window that has grown or shrunk."""
        self._entries += values - window.charged
        window.charged = values
        if self._entries > self.max_keys:
            self._evict()

    def _new_window(self, counter: CounterDefinition, full_key: bytes) -> Window:
        window = EventWindow() if counter.distinct is None else DistinctWindow()
        self._windows[full_key] = window
        self._entries += 1
        if self._entries > self.max_keys:
            self._evict()
        return window

    def _evict(self) -> None:
        """Drops the least recently used keys: first keys of counters, because networks are seen less often."""
        while self._entries > self.max_keys:
            if len(self._windows) > 1:
                key, window = self._windows.popitem(last=False)
                self._entries -= _weight(window)
                if self.changes is not None:
                    self.changes.windows.add(key)
            elif self._networks:
                network, _ = self._networks.popitem(last=False)
                self._entries -= 1
                if self.changes is not None:
                    self.changes.networks.add(network)
            else:
                return
            self.evicted += 1

    # --- Greylisting ------------------------------------------------------------------------------------------------

    def knows_network(self, settings: GreylistSettings, network: bytes, now: float) -> bool:
        """Returns whether a network has passed and is still remembered."""
        seen = self._networks.get(network)
        return seen is not None and now - seen < settings.remember

    def greylist(
        self, settings: GreylistSettings, client: Client, sender: bytes, recipient: bytes, now: float
    ) -> Greylisted:
        """Judges one try, and remembers it."""
        keys = waiting_keys(client, sender, recipient)
        first_tries = tuple(map(self._waiting.get, keys))
        verdict = judge(settings, now, keys, first_tries, self._networks.get(client.network))
        for key, first in verdict.first_tries:
            self._waiting[key] = first
            self._waiting.move_to_end(key)
        for key in verdict.forget:
            self._waiting.pop(key, None)
        if self.changes is not None:
            self.changes.waiting.update(keys)
        while len(self._waiting) > self._max_waiting:
            key, _ = self._waiting.popitem(last=False)
            self.evicted += 1
            if self.changes is not None:
                self.changes.waiting.add(key)
        if verdict.has_passed:
            self.see_network(client.network, now)
        return verdict.state

    def waits(self, keys: tuple[bytes, ...]) -> bool:
        """Returns whether a first try waits under one of these keys."""
        return any(key in self._waiting for key in keys)

    def forget_client(self, network: bytes) -> bool:
        """Forgets that a network has passed. Returns whether it had."""
        if self._networks.pop(network, None) is None:
            return False
        self._entries -= 1
        if self.changes is not None:
            self.changes.networks.add(network)
        return True

    def see_network(self, network: bytes, now: float) -> None:
        """Remembers that a network has passed, and that it was last seen now."""
        networks = self._networks
        if network in networks:
            networks.move_to_end(network)
        else:
            self._entries += 1
        networks[network] = now
        if self.changes is not None:
            self.changes.networks.add(network)
        if self._entries > self.max_keys:
            self._evict()

    def drop_others(self, counters: Iterable[CounterDefinition]) -> Iterator[None]:
        """Drops the counts of all counters except these. Yields every thousand keys, for the caller to pause."""
        kept = {counter.fingerprint for counter in counters}
        for place, key in enumerate(list(self._windows)):
            if key[:FINGERPRINT_BYTES] not in kept and (window := self._windows.pop(key, None)) is not None:
                self._entries -= _weight(window)
                if self.changes is not None:
                    self.changes.windows.add(key)
            if place % 1000 == 999:
                yield

    # --- What a state file keeps ------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Forgets everything."""
        for table in (self._windows, self._networks, self._waiting):
            table.clear()
        self._entries = 0

    def tables(self) -> MemoryTables:
        """Returns the tables themselves, not copies; the least recently used entries come first."""
        return MemoryTables(self._windows, self._networks, self._waiting)

    def restore_window(self, key: bytes, window: Window) -> None:
        """Takes a counter's window from a state file, as the most recently used."""
        if window.newest < 0 or key in self._windows:
            return
        self._windows[key] = window
        self._entries += 1
        if isinstance(window, DistinctWindow):
            self._charge(window, len(window))
        elif self._entries > self.max_keys:
            self._evict()

    def restore_network(self, network: bytes, seen: float) -> None:
        """Takes a network that has passed from a state file."""
        self.see_network(network, seen)

    def restore_waiting(self, key: bytes, first: float) -> None:
        """Takes a first try from a state file."""
        if len(self._waiting) < self._max_waiting:
            self._waiting[key] = first


def _weight(window: Window) -> int:
    """The entries that a window was charged for."""
    return 1 + (window.charged if isinstance(window, DistinctWindow) else 0)
