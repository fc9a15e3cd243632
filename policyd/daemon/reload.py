"""Loads settings and ruleset without delaying requests.

A small *loader* process is forked at the start, before there is an event loop or a thread. For each load it forks a
*worker*, which reads, checks and indexes everything, runs the ruleset's tests, writes the result into a memory file
(memfd_create(2)), passes that to the daemon and ends; so a load that fails halfway frees its memory. The daemon maps
the file: tables of a million entries are used in place, and the other objects are unpickled in slices, one slice in
each turn of the event loop.

Tables of long lists have memory files of their own (`policyd.tables.kept`). The daemon keeps those of the ruleset in
force and passes them along with the next request to load; a worker reuses those that fit. So only tables of a ruleset
that was in force are reused, and a worker that dies changes nothing.

Why processes: a thread would hold the interpreter's lock, and requests would wait for it. To load a million networks
and names, a thread took 3.3 s and delayed requests by up to 273 ms; with loops that yield it took 7 s and delayed them
by 40 ms. Why forked from one parent: the tables use `hash(bytes)`, whose key is only passed on by a fork. Why a
separate loader: by the time of a reload the daemon has threads and may use much memory, so a fork of it would be
neither safe nor cheap.

If a worker dies, for instance because memory ran out, the load has failed and the ruleset in force stays. The worker
makes itself the first choice of the kernel's out-of-memory killer. If the loader is killed, requests are served as
before, but every load fails with a message until the daemon is restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import copyreg
import dataclasses
import fcntl
import gc
import mmap
import os
import pickle
import select
import signal
import socket
import sys
import traceback
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, NoReturn, TypeAlias

from policyd.config.databases import RecordsInForce, take_records
from policyd.config.load import load
from policyd.config.mmdb import MmdbError
from policyd.config.problems import ConfigErrors
from policyd.core.tables import NameTable, RangeTable
from policyd.tables.kept import ALIGNMENT, TableFile, TableStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from policyd.config.databases import DatabaseInfo
    from policyd.config.in_force import LoadedFile, Outline, Texts
    from policyd.config.load import Loaded
    from policyd.config.settings import InetAddress, Settings, UnixAddress
    from policyd.core.index import Ruleset
    from policyd.core.owners import Owners

    LoadFiles: TypeAlias = Callable[[Texts | None, TableStore, tuple[DatabaseInfo, ...]], Loaded]

# Elements of a long collection that are unpickled at a time. A rule with its conditions takes some 30 us, so a slice
# delays requests by 2 ms at most.
SLICE = 64

# Maximum number of descriptors in a message: a memory file, the tables (one for each attribute that conditions use) and
# the databases. Linux passes at most 253 (SCM_MAX_FD).
_MAX_DESCRIPTORS = 200

# Signals for the daemon; a terminal or an init system sends them to the whole process group.
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

# Maximum bytes of a message between the processes; the longest is a traceback.
_MESSAGE_BYTES = 65536


class LoadError(Exception):
    """A load failed for a reason that is not in the files. The message is for the administrator."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The result of a load. `summary` describes it in a line; `seconds` is the duration of the load; `warnings` has a
    line for each. `files`, `texts`, `left_alone` and `databases` are as in `policyd.config.load.Loaded`. `reused` has a
    line for each part of the ruleset in force that the load has reused. `next_end` is the time at which the next entry
    of a list file ends (Unix seconds).
    """

    settings: Settings
    ruleset: Ruleset
    summary: str
    seconds: float
    warnings: tuple[str, ...]
    files: tuple[LoadedFile, ...]
    texts: Texts
    outline: Outline
    left_alone: tuple[str, ...]
    databases: tuple[DatabaseInfo, ...] = ()
    reused: tuple[str, ...] = ()
    next_end: float | None = None

    def with_databases_of(self, other: LoadResult) -> LoadResult:
        """Returns this result with the databases of another, which are already open."""
        ruleset = dataclasses.replace(self.ruleset, owners=other.ruleset.owners)
        outline = dataclasses.replace(self.outline, databases=other.outline.databases)
        return dataclasses.replace(self, ruleset=ruleset, databases=other.databases, outline=outline)


class MappedTable:
    """A table's memory file in this process: rulesets that have the table share it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        self.users = 0  # rulesets that have it


class MappedRuleset:
    """The memory of a loaded ruleset in this process: its objects, in slices, and the memory files.

    `catalogue` describes the tables, for the next load.
    """

    def __init__(
        self, slices: list[object], memory: mmap.mmap, tables: Sequence[MappedTable] = (), catalogue: bytes = b""
    ) -> None:
        self._slices = slices
        self._memory = memory
        self.tables = tuple(tables)
        self.catalogue = catalogue
        for table in self.tables:
            table.users += 1

    async def release(self) -> None:
        """Frees an unused ruleset in small steps, so that requests are not delayed.

        In one step, 10,000 rules (300,000 objects) would take 15 ms, and the tables of a million networks and names 20
        ms.
        """
        while self._slices:
            self._slices.pop()
            await asyncio.sleep(0)
        memories = [self._memory]
        for table in self.tables:
            table.users -= 1
            if not table.users:
                os.close(table.descriptor)
                memories.append(table.memory)
        self.tables = ()
        for memory in memories:
            # A request may still use the ruleset. Then the memory is freed with that request.
            with contextlib.suppress(BufferError):
                await asyncio.to_thread(memory.close)  # in a thread, because it releases the interpreter's lock


class Loader:
    """Starts the loading process, and asks it for loads. Must be made before any thread or event loop exists.

    The arguments are as for `policyd.config.load.load`.
    """

    def __init__(
        self, config_path: str | None, rules_path: str | None, listen: Sequence[InetAddress | UnixAddress] = ()
    ) -> None:
        gc.freeze()  # present objects are shared with the loader and its workers until they are written to
        self._channel, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(0)
        self._why_ended = ""
        self.pid = os.fork()
        if not self.pid:
            self._channel.close()
            _run_loader(
                far_end,
                lambda texts, tables, databases: load(
                    config_path,
                    rules_path,
                    listen=listen,
                    keep_lists=False,
                    texts=texts,
                    tables=tables,
                    databases_in_force=databases,
                ),
            )
        far_end.close()
        self._has_begun = False
        # The number of the last load. Each answer begins with the number of its load: if a worker is killed after its
        # answer, the loader sends a second answer, which is ignored because of its number.
        self._number = 0

    def begin(self) -> None:
        """Asks for the first load, whose result `load` then returns."""
        self._channel.send(self._next())
        self._has_begun = True

    def _next(self) -> bytes:
        self._number += 1
        return b"load %d" % self._number

    async def load(
        self, texts: Texts | None = None, in_force: MappedRuleset | None = None, old: LoadResult | None = None
    ) -> tuple[LoadResult, MappedRuleset]:
        """Loads settings and ruleset; one load at a time. Release the mapped ruleset when it is replaced.

        With `texts`, these are loaded instead of the files (`policyd.config.in_force.Texts`). The load reuses unchanged
        tables and databases: tables of `in_force`, the mapped ruleset in force, and databases of `old`, the result of
        the load in force. `in_force` must not be released during the load.

        Raises ConfigErrors if the files are wrong, LoadError if the load failed for another reason.
        """
        try:
            if not self._has_begun:
                await self._request(texts, in_force, () if old is None else old.databases)
            self._has_begun = False
            message, descriptors = await self._answer()
        except (BrokenPipeError, ConnectionResetError):
            message, descriptors = b"", []
        if not message:
            raise LoadError(self._reap())
        directory, _, sent = message.partition(b" ")
        if not directory.isdigit() or not sent.isdigit():
            raise LoadError(message.decode())
        try:
            if len(descriptors) < int(sent):
                raise LoadError("no descriptor is free to receive the new ruleset")
            return await _receive(int(directory), descriptors, in_force, old)
        except (OSError, MemoryError):
            raise LoadError("the new ruleset does not fit into memory") from None
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    async def _request(
        self, texts: Texts | None, in_force: MappedRuleset | None, databases: tuple[DatabaseInfo, ...]
    ) -> None:
        """Asks for a load. The texts, the catalogue and the descriptions of databases are passed in one memory file,
        tables in memory files of their own.

        A thread writes the texts without the interpreter's lock, because the list files among them may have 100 MB. If
        this is cancelled meanwhile, the file is closed only after the write, because its descriptor number may soon be
        another file's.
        """
        if texts is None and not databases and (in_force is None or not in_force.tables):
            self._channel.send(self._next())
            return
        try:
            file = os.fdopen(os.memfd_create("policyd-request", os.MFD_CLOEXEC), "wb")
        except OSError as error:
            raise LoadError(f"cannot pass the rules in force to the loading process: {error.strerror}") from None
        catalogue, tables = (b"", ()) if in_force is None else (in_force.catalogue, in_force.tables)
        with file:
            buffers: list[pickle.PickleBuffer] = []
            head = pickle.dumps((texts, catalogue, databases), protocol=5, buffer_callback=buffers.append)
            pieces = [each.raw() for each in buffers]
            pickle.dump((head, [len(piece) for piece in pieces]), file)
            await asyncio.to_thread(file.writelines, pieces)
            file.flush()
            socket.send_fds(self._channel, [self._next()], [file.fileno(), *(table.descriptor for table in tables)])

    def close(self) -> None:
        """Ends the loading process, and a load in progress."""
        self._channel.close()
        self._reap()

    async def _answer(self) -> tuple[bytes, list[int]]:
        """Returns the answer to the last request to load, and its descriptors; empty if the loader has ended."""
        while True:
            await self._readable()
            message, descriptors, _, _ = socket.recv_fds(
                self._channel, _MESSAGE_BYTES, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
            number, _, answer = message.partition(b" ")
            if not message or int(number) == self._number:
                return answer, descriptors
            for descriptor in descriptors:
                os.close(descriptor)

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        loop.add_reader(self._channel.fileno(), arrived.set)
        try:
            await arrived.wait()
        finally:
            loop.remove_reader(self._channel.fileno())

    def why_ended(self) -> str:
        """Returns why the loading process has ended; empty while it runs."""
        return self._reap(os.WNOHANG)

    def _reap(self, options: int = 0) -> str:
        """Waits for the end of the loader, and returns its cause. With `os.WNOHANG` it does not wait; empty if the
        loader runs.
        """
        if not self._why_ended:
            pid, status = os.waitpid(self.pid, options)
            if not pid:
                return ""
            self._why_ended = (
                f"the loading process has ended ({_exit_cause(status)}); a new ruleset needs a restart of policyd"
            )
        return self._why_ended


async def _receive(
    place: int, descriptors: list[int], in_force: MappedRuleset | None, old: LoadResult | None
) -> tuple[LoadResult, MappedRuleset]:
    """Maps the memory files of the result and of new tables, and unpickles the result.

    `descriptors` has the file of the result, then those of new tables, then those of databases. The files of new tables
    are removed from the list, and stay open.
    """
    memory = mmap.mmap(descriptors[0], 0, access=mmap.ACCESS_READ)
    directory = _read_directory(memory, place)
    kept = () if in_force is None else in_force.tables
    tables = []
    new = []
    try:
        for reused in directory.tables:
            if reused is None:
                new.append(MappedTable(descriptors.pop(1)))
            tables.append(new[-1] if reused is None else kept[reused])
        slices = await _collect(_unpack(memory, directory, tables))
    except BaseException:
        for table in new:
            os.close(table.descriptor)
        raise
    result = slices.pop()
    if isinstance(result, ConfigErrors):
        raise result
    assert isinstance(result, LoadResult)
    if result.ruleset.owners is not None:
        try:
            result.ruleset.owners.adopt(descriptors[1:])
        except MmdbError as error:
            raise LoadError(f"a database of the new ruleset cannot be opened: it {error}") from None
        if old is not None and old.ruleset.owners is not None:
            take_records(result.ruleset.owners, old.ruleset.owners)
    return result, MappedRuleset(slices, memory, tables, directory.catalogue)


async def _collect(slices: Iterator[object]) -> list[object]:
    """Returns all slices, with a turn of the event loop after each.

    The garbage collector traverses each slice separately, and then moves it to the oldest generation, which is rarely
    collected; otherwise it would traverse all slices at once. (gc.freeze() would also freeze objects that later become
    cyclic garbage, which is then never collected: 40 kB for each reload under load.)
    """
    collected = []
    gc.disable()
    try:
        for part in slices:
            collected.append(part)
            gc.collect(1)
            await asyncio.sleep(0)
    finally:
        gc.enable()
    return collected


# --- In the loader and its workers ------------------------------------------------------------------------------------


def _run_loader(channel: socket.socket, load_files: LoadFiles) -> NoReturn:
    """Forks a worker for each request, until the daemon has ended. Does nothing else, so that its memory does not
    change.
    """
    _name_process("policyd-loader")
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    status = 1
    try:
        while True:
            message, descriptors, _, _ = socket.recv_fds(
                channel, _MESSAGE_BYTES, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
            if not message:
                break
            request = message.removeprefix(b"load ")
            worker = os.fork()
            if not worker:
                _run_worker(channel, load_files, request, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            problem = _watch(worker, channel)
            if problem:
                channel.send(request + f" the loading process has failed ({problem})".encode())
        status = 0
    except OSError as error:
        if not isinstance(error, BrokenPipeError | ConnectionResetError):  # these mean that the daemon has ended
            traceback.print_exc()
    finally:
        os._exit(status)


def _watch(worker: int, channel: socket.socket) -> str:
    """Waits for a worker; kills it if the daemon has ended. Returns the error, if any."""
    ended = os.pidfd_open(worker)
    waiting = select.poll()
    waiting.register(ended, select.POLLIN)
    # No event but POLLHUP, which is always reported: the daemon may ask for the next load before the worker ends.
    waiting.register(channel, 0)
    if ended not in dict(waiting.poll()):
        os.kill(worker, signal.SIGKILL)
    os.close(ended)
    _, status = os.waitpid(worker, 0)
    return _exit_cause(status) if status else ""


def _run_worker(channel: socket.socket, load_files: LoadFiles, request: bytes, descriptors: list[int]) -> NoReturn:
    """Loads, sends the result and ends. The answer begins with the number of the request."""
    _name_process("policyd-worker")
    gc.disable()  # the process ends before a collection is useful
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        texts, store, known = _read_request(descriptors)
        result: LoadResult | ConfigErrors
        databases: list[int] = []
        try:
            loaded = load_files(texts, store, known)
            warnings = tuple(f"{warning.path}: {warning.message}" for warning in loaded.warnings)
            result = LoadResult(
                loaded.settings,
                loaded.ruleset,
                loaded.summary,
                loaded.seconds,
                warnings,
                loaded.files,
                loaded.texts,
                loaded.outline,
                loaded.left_alone,
                loaded.databases,
                (*store.reuse_summary(), *_databases_as_before(loaded.ruleset.owners)),
                loaded.next_end,
            )
            del loaded  # frees its parsed lists before all tables are copied
            if result.ruleset.owners is not None:
                databases = result.ruleset.owners.descriptors
        except ConfigErrors as errors:
            result = errors
            store.used.clear()
        descriptor = os.memfd_create("policyd-ruleset", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            place = _pack(result, file, store)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        sent = [descriptor, *(table.descriptor for table in store.used if table not in store.kept), *databases]
        socket.send_fds(channel, [b"%b %d %d" % (request, place, len(sent))], sent)
    except MemoryError:
        channel.send(request + b" the new ruleset does not fit into memory")
    except Exception:  # noqa: BLE001 - the boundary of the load: a bug in it must not look like a result
        text = traceback.format_exc().encode()[-_MESSAGE_BYTES // 2 :]
        channel.send(request + b" a bug in policyd, please report it:\n" + text)
    finally:
        sys.stderr.flush()
        os._exit(0)


def _databases_as_before(owners: Owners | None) -> tuple[str, ...]:
    """Returns a line for each database that was not parsed again."""
    by_kind = {} if owners is None else {"asn": owners.asn, "country": owners.country}
    return tuple(
        f"database {kind} as before" for kind, records in by_kind.items() if isinstance(records, RecordsInForce)
    )


def _read_request(descriptors: list[int]) -> tuple[Texts | None, TableStore, tuple[DatabaseInfo, ...]]:
    """Reads the parts of a request to load: texts, and tables and databases of the ruleset in force."""
    if not descriptors:
        return None, TableStore(), ()
    with open(descriptors[0], "rb", closefd=False) as file:
        file.seek(0)
        head, lengths = pickle.load(file)  # noqa: S301 - written by the daemon
        pieces = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[file.tell() :]
    ends = [*accumulate(lengths)]
    buffers = (pieces[end - length : end] for end, length in zip(ends, lengths, strict=True))
    texts, catalogue, databases = pickle.loads(head, buffers=buffers)  # noqa: S301 - as above
    records = pickle.loads(catalogue) if catalogue else []  # noqa: S301 - written by an earlier worker
    return texts, TableStore([*map(TableFile, descriptors[1:], records)]), databases


def _name_process(name: str) -> None:
    """Sets the name of this process that ps(1) shows."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)


def _exit_cause(status: int) -> str:
    """Says how a process ended, given its wait status."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit status {code}"
    out_of_memory = "; out of memory?" if -code == signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{out_of_memory}"


# --- The memory file: pickles one after the other, then the tables that have no file of their own, then a directory ---


class Directory(NamedTuple):
    """Positions of the arrays in a memory file.

    `pickles` is the number of pickles, which are at the start. `buffers` has an element for each array, in the order in
    which they are unpickled: its file (0 is this memory file, 1 that of the first table in `tables`), and its start and
    length in bytes. `tables` has an element for each table with a file of its own: its place among the tables of the
    ruleset in force, or None if it is new.
    """

    pickles: int
    buffers: tuple[tuple[int, int, int], ...]
    tables: tuple[int | None, ...]
    catalogue: bytes


def _pack(result: object, file: BinaryIO, store: TableStore | None = None) -> int:
    """Writes the result. Returns where the directory begins.

    The pickles share one memo, so an object in a slice is the same object in all later pickles.
    """
    store = TableStore() if store is None else store
    files = {id(table_file.table): (place, table_file) for place, table_file in enumerate(store.used, 1)}
    buffers: list[pickle.PickleBuffer] = []
    in_files: dict[int, tuple[int, int, int]] = {}  # by the identity of the buffer; all buffers stay until the end

    def reduce_table(table: RangeTable | NameTable) -> tuple[type, tuple[pickle.PickleBuffer, ...]]:
        parts = tuple(map(pickle.PickleBuffer, table.parts))
        if id(table) in files:
            place, mapped = files[id(table)]
            in_files.update((id(part), (place, *span)) for part, span in zip(parts, mapped.record.layout, strict=True))
        return type(table), parts

    pickler = pickle.Pickler(file, protocol=5, buffer_callback=buffers.append)
    pickler.dispatch_table = {**copyreg.dispatch_table, RangeTable: reduce_table, NameTable: reduce_table}
    count = 0
    for piece in (*_slices(result), result):
        pickler.dump(piece)
        count += 1
    places = []
    for buffer in buffers:
        if id(buffer) in in_files:
            places.append(in_files[id(buffer)])
            continue
        with buffer.raw() as raw:
            start = -(-file.tell() // ALIGNMENT) * ALIGNMENT
            file.seek(start)
            file.write(raw)
            places.append((0, start, len(raw)))
    place = file.tell()
    kept = {id(table_file): n for n, table_file in enumerate(store.kept)}
    catalogue = pickle.dumps([table_file.record for table_file in store.used])
    pickle.dump(
        Directory(count, tuple(places), tuple(kept.get(id(table_file)) for table_file in store.used), catalogue), file
    )
    return place


def _read_directory(memory: mmap.mmap, place: int) -> Directory:
    memory.seek(place)
    directory = pickle.load(memory)  # noqa: S301 - written by a process of our own, and sealed
    assert isinstance(directory, Directory)
    return directory


def _unpack(memory: mmap.mmap, directory: Directory, tables: Sequence[MappedTable] = ()) -> Iterator[object]:
    """Yields the slices and, last, the result."""
    views = [memoryview(memory), *(memoryview(table.memory) for table in tables)]
    buffers = (views[place][start : start + length] for place, start, length in directory.buffers)
    unpickler = pickle.Unpickler(memory, buffers=buffers)  # noqa: S301 - as above
    memory.seek(0)
    for _ in range(directory.pickles):
        yield unpickler.load()


def _slices(root: object) -> Iterator[list[object]]:
    """Yields the elements of all long collections in an object, at most SLICE at a time, inner collections first."""
    seen: set[int] = set()
    waiting: list[tuple[object, bool]] = [(root, False)]
    while waiting:
        held, is_walked = waiting.pop()
        if is_walked:
            assert isinstance(held, list | tuple | dict)
            elements = [*(held.values() if isinstance(held, dict) else held)]
            for start in range(0, len(elements), SLICE):
                yield elements[start : start + SLICE]
        elif id(held) not in seen:
            seen.add(id(held))
            parts = [part for part in gc.get_referents(held) if _is_compound(part)]
            if len(parts) > SLICE and isinstance(held, list | tuple | dict):
                waiting.append((held, True))
            waiting.extend((part, False) for part in parts)


def _is_compound(part: object) -> bool:
    """Whether an object may contain many others: a collection, or an instance of a class of policyd."""
    return isinstance(part, list | tuple | dict | frozenset) or type(part).__module__.startswith("policyd.")
