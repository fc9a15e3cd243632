"""Opens the daemon's memory: in the process and, as the settings say, also in a state file and on a shared server."""

from __future__ import annotations

import asyncio
import heapq
from pathlib import Path
from typing import TYPE_CHECKING

from policyd.config.public_suffixes import registrable_domains
from policyd.memory.definitions import GreylistSettings
from policyd.state.memory import Memory, client_domain
from policyd.state.opening import shared_memory
from policyd.state.operations import Operation, count_operation, counter_key, network_key
from policyd.state.process import ProcessMemory
from policyd.state.sqlite import StateFile

if TYPE_CHECKING:
    from policyd.config.settings import Settings
    from policyd.core.index import Ruleset
    from policyd.memory.definitions import CounterDefinition
    from policyd.state.operations import Result

# Maximum seconds that the start waits for the shared server; after that the daemon serves without it, and keeps trying.
CONNECT_SECONDS = 1.0

# Number of this host's highest keys whose values are read from the shared server, to find the highest of all hosts.
CANDIDATES = 100


class SharedMemoryError(Exception):
    """The shared server did not answer. The message says why."""


class DaemonMemory:
    """The memory of the daemon, with its state file and shared server. Belongs to the running event loop."""

    def __init__(self, settings: Settings, ruleset: Ruleset) -> None:
        local = ProcessMemory(settings.limits.state_keys)
        self.file = StateFile(Path(settings.state_file), local) if settings.state_file is not None else None
        if self.file is not None:
            greylist = ruleset.greylist if ruleset.greylist is not None else GreylistSettings()
            self.file.load((counted.definition for counted in ruleset.counters), greylist)
        self.shared = shared_memory(settings)
        self.memory = Memory(local, self.shared, client_domain)
        self.prepare(ruleset)

    def prepare(self, ruleset: Ruleset) -> None:
        """Reads the list of public suffixes (60 ms) if the ruleset greylists, so that no request waits for it."""
        if ruleset.greylist is not None:
            registrable_domains().of(b"www.example.com")

    async def drop_unused(self, ruleset: Ruleset) -> None:
        """Drops the counts of counters that this ruleset does not have; the event loop runs between slices."""
        for _ in self.memory.local.drop_others([counted.definition for counted in ruleset.counters]):
            await asyncio.sleep(0)

    async def connect(self) -> None:
        """Connects to the shared server, so that the first requests know whether it is available; waits CONNECT_SECONDS
        at most.
        """
        if self.shared is not None:
            await asyncio.wait([asyncio.ensure_future(self.shared.connect())], timeout=CONNECT_SECONDS)

    async def run(self) -> None:
        """Writes to the state file, if there is one, until it is cancelled."""
        if self.file is not None:
            await self.file.run()

    async def highest(self, counter: CounterDefinition, count: int) -> list[tuple[bytes, int]]:
        """Returns the keys with the highest values, the highest first; the event loop runs between slices.

        With a shared server the values are those of all hosts, for the highest keys of this host. Raises
        SharedMemoryError.
        """
        best: list[tuple[int, bytes]] = []
        for found in self.memory.local.counts_by_key(counter, self.memory.clock()):
            if found is None:
                await asyncio.sleep(0)
            elif len(best) < CANDIDATES:
                heapq.heappush(best, found[::-1])
            else:
                heapq.heappushpop(best, found[::-1])
        if self.shared is not None and best:
            # Each answer includes this request, with an empty value for a counter of distinct values. Empty values are
            # never counted, so 1 is subtracted.
            values = await self._ask_shared([count_operation(counter, key, None, add=False) for _, key in best])
            best = [(value - 1, key) for value, (_, key) in zip(values, best, strict=True) if isinstance(value, int)]
        return [(key, value) for value, key in heapq.nlargest(count, best) if value > 0]

    async def value_of(self, counter: CounterDefinition, key: bytes, value: bytes | None) -> int:
        """Returns the value that a counter would have for one more request. Raises SharedMemoryError."""
        if self.shared is None:
            return self.memory.local.peek(counter, key, value, self.memory.clock())
        (found,) = await self._ask_shared([count_operation(counter, key, value, add=False)])
        return found if isinstance(found, int) else 0

    async def forget_key(self, counter: CounterDefinition, key: bytes) -> bool:
        """Resets one key of a counter. Returns whether the key was there. Raises SharedMemoryError."""
        return await self._forget(counter_key(counter, key), was_here=self.memory.local.forget(counter, key))

    async def forget_network(self, network: bytes) -> bool:
        """Forgets that a network has passed greylisting. Returns whether it had. Raises SharedMemoryError."""
        return await self._forget(network_key(network), was_here=self.memory.local.forget_client(network))

    async def _forget(self, name: bytes, *, was_here: bool) -> bool:
        if self.shared is None:
            return was_here
        (deleted,) = await self._ask_shared([Operation("delete", name)])
        return was_here or bool(deleted)

    async def _ask_shared(self, operations: list[Operation]) -> list[Result]:
        assert self.shared is not None
        found = await self.shared.ask(operations)
        if found is None:
            why = f": {self.shared.why}" if self.shared.why else ""
            raise SharedMemoryError(f"the shared memory {self.shared.name} did not answer{why}")
        return found

    async def close(self) -> None:
        """Writes remaining changes, and closes the state file and the connection."""
        if self.shared is not None:
            await self.shared.close()
        if self.file is not None:
            await self.file.close()
