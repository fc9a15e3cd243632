"""The state file: the process's memory in SQLite, so that a restart does not lose it.

Promises that no request waits for the disk: changes are collected, and a thread writes them about once a second.
SIGKILL loses at most the changes of two seconds. A file that is damaged, unreadable or from a newer version is moved
aside, and a file that another process has locked is not used; mail goes on in every case. If the disk is full, the file
is not written, and the memory keeps working.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sqlite3
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from policyd.core.printable import printable
from policyd.core.throttle import MessageThrottle
from policyd.memory.definitions import FINGERPRINT_BYTES
from policyd.memory.window import DistinctWindow, EventWindow, slot_of
from policyd.state.process import Changes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from policyd.memory.definitions import CounterDefinition, GreylistSettings
    from policyd.state.process import ProcessMemory, Window

_log = logging.getLogger(__name__)

# Signals that the writing thread blocks. The main thread blocks them when it removes their handlers at the end; then
# this thread must not receive one, because that would end the process.
_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

# The version of the tables, in SQLite's user_version.
VERSION = 1

# Seconds between writes.
WRITE_SECONDS = 1.0

# Seconds between tries to write after a failure: more than WRITE_SECONDS, because each try prepares all changes again.
RETRY_SECONDS = 10.0

# Seconds between lines that say why the file cannot be written.
COMPLAINT_SECONDS = 60.0

# Maximum number of keys prepared for writing in one turn of the event loop: about a millisecond.
KEYS_A_TURN = 500

_TABLES = """
CREATE TABLE IF NOT EXISTS windows (key BLOB PRIMARY KEY, used REAL NOT NULL, window BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS networks (key BLOB PRIMARY KEY, time REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS waiting (key BLOB PRIMARY KEY, time REAL NOT NULL) WITHOUT ROWID;
"""

_EVENTS, _VALUES = b"e", b"d"  # the first byte of a stored window
_PAIR = struct.Struct("<QQ")  # slot, events
_VALUE = struct.Struct("<QH")  # slot, length of the value that follows


class FileLockedError(Exception):
    """Another process has locked the state file."""


class _Batch(NamedTuple):
    """Rows to write to each table, and keys to delete from it."""

    windows: list[tuple[bytes, float, bytes]]
    gone_windows: list[tuple[bytes]]
    times: dict[str, list[tuple[bytes, float]]]
    gone: dict[str, list[tuple[bytes]]]


class StateFile:
    """The file that keeps a memory. Call `load` before the first request, run `run` while requests are served, and call
    `close` at the end.
    """

    def __init__(self, path: Path, memory: ProcessMemory, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.is_used = False
        self.why = ""  # why the file is not used, or why the last write failed
        self._memory = memory
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._writes_all = False  # the next write replaces all rows, because not every change is known
        # One thread, because a write goes on after its task was cancelled, and must end before the next write or the
        # close begins.
        self._thread = ThreadPoolExecutor(1, "state-file", signal.pthread_sigmask, (signal.SIG_BLOCK, _SIGNALS))
        self._complaint = MessageThrottle(COMPLAINT_SECONDS)

    def load(self, counters: Iterable[CounterDefinition], greylist: GreylistSettings) -> None:
        """Opens the file and reads the entries that these definitions still use. Logs failures, and raises nothing."""
        try:
            self._open()
            self._read({counter.fingerprint: counter for counter in counters}, greylist)
        except FileLockedError:
            self._close()
            self.why = "locked by another process"
            _log.warning("state_file: %s is locked by another process; memory is kept in this process only", self._name)
            return
        except (sqlite3.Error, OSError, ValueError, struct.error) as error:
            self._close()
            self._memory.clear()
            self.why = _reason(error)
            if not self._move_aside(error):
                return
            try:
                self._open()
            except (sqlite3.Error, OSError, FileLockedError) as second_error:
                self._close()
                self.why = _reason(second_error)
                _log.warning("state_file: %s: %s; memory is kept in this process only", self._name, self.why)
                return
        self._memory.changes = Changes()
        self.is_used, self.why = True, ""

    async def run(self) -> None:
        """Writes changes about once a second, or less often after a failure, as long as the file is used."""
        while self.is_used:
            await asyncio.sleep(RETRY_SECONDS if self.why else WRITE_SECONDS)
            await self.write()

    async def write(self) -> None:
        """Writes changed keys. After a failure or a cancellation they are written the next time."""
        changes = Changes(*self._memory.tables()) if self._writes_all else self._memory.changes
        if not changes or self._connection is None:
            return
        self._memory.changes = Changes()
        try:
            batch = await self._batch(changes)
            await self._in_thread(partial(self._write, batch, replaces_all=self._writes_all))
        except BaseException as error:
            self._memory.changes |= changes
            if len(self._memory.changes) > 2 * self._memory.max_keys:  # because removed keys accumulate
                self._writes_all, self._memory.changes = True, Changes()
            if not isinstance(error, sqlite3.Error):
                raise
            self.why = _reason(error)
            message = f"state_file: {self._name}: {self.why}; changes are kept in memory, and the write is tried again"
            if (line := self._complaint.line_for(message, monotonic())) is not None:
                _log.warning("%s", line)
        else:
            self.why, self._writes_all = "", False

    async def close(self) -> None:
        """Writes remaining changes, and closes the file."""
        if self.is_used:
            await self.write()
            self.is_used = False
        await self._in_thread(self._close)
        self._thread.shutdown(wait=False)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, work)

    @property
    def _name(self) -> str:
        return printable(str(self.path))

    # --- Opening ----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Opens the file and makes its tables. Raises LockedError, sqlite3.Error, and ValueError for a newer file."""
        self._connection = connection = sqlite3.connect(
            self.path, timeout=0, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # no other process may use the file until `_close`
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise ValueError(f"it was written by a newer policyd (version {version} of its tables)")
            connection.execute("BEGIN IMMEDIATE")
            for statement in _TABLES.strip().splitlines():
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("COMMIT")
            self.path.chmod(0o600)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                raise FileLockedError from None
            raise

    def _move_aside(self, error: Exception) -> bool:
        """Moves the file aside; returns whether a new file can be made."""
        aside = self.path.with_name(f"{self.path.name}.damaged-{int(self._clock())}")
        try:
            if self.path.exists():
                self.path.rename(aside)
                result = f"it was moved to {printable(str(aside))}, and memory begins empty"
            else:
                result = "memory begins empty"
        except OSError as move_error:
            _log.warning(
                "state_file: %s: %s; it cannot be moved aside (%s), so memory is kept in this process only",
                *(self._name, _reason(error), move_error.strerror),
            )
            return False
        for ending in ("-wal", "-shm", "-journal"):
            with contextlib.suppress(OSError):
                self.path.with_name(self.path.name + ending).unlink()
        _log.warning("state_file: %s: %s; %s", self._name, _reason(error), result)
        return True

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    # --- Reading ----------------------------------------------------------------------------------------------------

    def _read(self, counters: Mapping[bytes, CounterDefinition], greylist: GreylistSettings) -> None:
        """Reads the tables. Raises sqlite3.Error, struct.error and ValueError for damaged content."""
        connection, memory, now = self._connection, self._memory, self._clock()
        assert connection is not None
        limit = (memory.max_keys,)
        rows = connection.execute("SELECT key, window FROM windows ORDER BY used DESC LIMIT ?", limit).fetchall()
        for key, window in reversed(rows):
            counter = counters.get(key[:FINGERPRINT_BYTES])
            if counter is not None:
                memory.restore_window(key, _window_of(window, slot_of(now, counter.within)))
        rows = connection.execute("SELECT key, time FROM networks ORDER BY time DESC LIMIT ?", limit).fetchall()
        for network, seen in reversed(rows):
            if now - greylist.remember < seen <= now:
                memory.restore_network(network, seen)
        rows = connection.execute("SELECT key, time FROM waiting ORDER BY time DESC LIMIT ?", limit).fetchall()
        for key, first in reversed(rows):
            if now - greylist.retry_within <= first <= now:
                memory.restore_waiting(key, first)
        # Rows that are not in the memory now, such as expired ones, would stay for ever.
        connection.execute("BEGIN IMMEDIATE")
        tables = memory.tables()
        for table, kept in (("windows", tables.windows), ("networks", tables.networks), ("waiting", tables.waiting)):
            unread = [(key,) for (key,) in connection.execute(f"SELECT key FROM {table}") if key not in kept]  # noqa: S608 - the table names are constants
            connection.executemany(f"DELETE FROM {table} WHERE key = ?", unread)  # noqa: S608 - the table names are constants
        connection.execute("COMMIT")

    # --- Writing ----------------------------------------------------------------------------------------------------

    async def _batch(self, changes: Changes) -> _Batch:
        """Makes the rows of changed keys, KEYS_A_TURN in each turn of the event loop."""
        tables, now = self._memory.tables(), self._clock()
        batch = _Batch([], [], {"networks": [], "waiting": []}, {"networks": [], "waiting": []})
        for place, key in enumerate(changes.windows):
            window = tables.windows.get(key)
            if window is None:
                batch.gone_windows.append((key,))
            else:
                batch.windows.append((key, now, _stored_window(window)))
            if place % KEYS_A_TURN == KEYS_A_TURN - 1:
                await asyncio.sleep(0)
        for table, keys, times in (
            ("networks", changes.networks, tables.networks),
            ("waiting", changes.waiting, tables.waiting),
        ):
            for place, key in enumerate(keys):
                if (at := times.get(key)) is None:
                    batch.gone[table].append((key,))
                else:
                    batch.times[table].append((key, at))
                if place % KEYS_A_TURN == KEYS_A_TURN - 1:
                    await asyncio.sleep(0)
        return batch

    def _write(self, batch: _Batch, *, replaces_all: bool) -> None:
        """Writes a batch, in the thread. Raises sqlite3.Error; then nothing has been written."""
        connection = self._connection
        assert connection is not None
        connection.execute("BEGIN IMMEDIATE")
        try:
            for table in ("windows", "networks", "waiting") if replaces_all else ():
                connection.execute(f"DELETE FROM {table}")  # noqa: S608 - the table names are constants
            connection.executemany("INSERT OR REPLACE INTO windows VALUES (?, ?, ?)", batch.windows)
            connection.executemany("DELETE FROM windows WHERE key = ?", batch.gone_windows)
            for table in ("networks", "waiting"):
                connection.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", batch.times[table])  # noqa: S608 - the table names are constants
                connection.executemany(f"DELETE FROM {table} WHERE key = ?", batch.gone[table])  # noqa: S608 - the table names are constants
            connection.execute("COMMIT")
        except sqlite3.Error:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise


def _stored_window(window: Window) -> bytes:
    if isinstance(window, EventWindow):
        return _EVENTS + b"".join(_PAIR.pack(*entry) for entry in window.entries())
    return _VALUES + b"".join(_VALUE.pack(slot, len(value)) + value for value, slot in window.entries())


def _window_of(stored: bytes, now: int) -> Window:
    """Parses a stored window. Raises struct.error and ValueError if it is not a window."""
    kind, rest = stored[:1], stored[1:]
    if kind == _EVENTS:
        return EventWindow.of(_PAIR.iter_unpack(rest), now)
    if kind != _VALUES:
        raise ValueError("a window of an unknown kind")
    entries: list[tuple[bytes, int]] = []
    place = 0
    while place < len(rest):
        slot, length = _VALUE.unpack_from(rest, place)
        place += _VALUE.size
        entries.append((rest[place : place + length], slot))
        place += length
    if place != len(rest):
        raise ValueError("a window that is cut short")
    return DistinctWindow.of(entries, now)


def _reason(error: Exception) -> str:
    if isinstance(error, struct.error):
        return "a stored window is damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(str(error))[:200]
