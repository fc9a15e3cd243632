"""Reading settings and ruleset without holding up requests.

A small *loader* process is forked at the start, before there is an event loop or a thread. For each load it forks a
*worker*, which reads, checks and indexes everything, runs the ruleset's tests, writes the result into a memory file
(memfd_create(2)), passes that to the daemon and ends; so a load that fails halfway frees all that it built. The
daemon maps the file: tables of a million entries are used where they lie, and the objects around them are unpickled
in slices, one in a turn of the event loop.

Why processes: whatever a thread does, it holds the interpreter's lock, and requests wait for it (a million networks
and names: 3.3 s, requests up to 273 ms; with the loops written to yield, 7 s and 40 ms). Why forked from one parent:
the tables use `hash(bytes)`, whose key only a fork hands on. Why a loader that does nothing else: by the time of a
reload the daemon has threads and gigabytes; a process forked then would be neither safe nor cheap.

A worker that dies, for want of memory for instance, is a failed load: the ruleset in force stays. It offers itself
first to the kernel's out-of-memory killer. The loader itself has nothing to die of; where somebody kills it, requests
are served as before, but nothing can be loaded until the daemon is restarted, and every attempt says so.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from policyd.config.in_force import Texts
from policyd.config.load import load
from policyd.config.problems import ConfigErrors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from policyd.config.in_force import LoadedFile, Outline
    from policyd.config.load import Loaded
    from policyd.config.settings import InetAddress, Settings, UnixAddress
    from policyd.core.index import Ruleset

# Elements of a long list that are unpickled at a time. A rule with its conditions takes some 30 us, so a slice takes
# 2 ms, which requests do not notice.
SLICE = 64

# A table begins on a cache line of the memory file.
_ALIGNMENT = 64

# The longest message between the processes: a traceback, at worst.
_MESSAGE_BYTES = 65536


class LoadError(Exception):
    """No result came back, for a reason that is not in the files. The message is for the operator."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a load has brought. `summary` says it in a line; `seconds` is how long that took; `warnings` are a line
    each. `files`, `texts` and `left_alone` are as in `policyd.config.load.Loaded`."""

    settings: Settings
    ruleset: Ruleset
    summary: str
    seconds: float
    warnings: tuple[str, ...]
    files: tuple[LoadedFile, ...]
    texts: Texts
    outline: Outline
    left_alone: tuple[str, ...]


class Holding:
    """What a delivery takes up in this process: its objects, by the slices in which they came, and the memory file."""

    def __init__(self, slices: list[object], memory: mmap.mmap) -> None:
        self._slices = slices
        self._memory = memory

    async def release(self) -> None:
        """Frees a delivery that nobody else refers to any more, in steps that requests do not notice.

        In one go, 10,000 rules (300,000 objects) would take 15 ms, and the tables of a million networks and names 20.
        """
        while self._slices:
            self._slices.pop()
            await asyncio.sleep(0)
        # A request may still have the ruleset. Then the memory goes when that request does.
        with contextlib.suppress(BufferError):
            await asyncio.to_thread(self._memory.close)  # which lets go of the interpreter's lock


class Loader:
    """The loading process, and how to ask it. It must be made before any thread or event loop exists.

    The arguments are as for `policyd.config.load.load`.
    """

    def __init__(
        self, config_path: str | None, rules_path: str | None, listen: Sequence[InetAddress | UnixAddress] = ()
    ) -> None:
        gc.freeze()  # what exists by now is shared with the loader and its workers, as long as nobody touches it
        self._channel, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(0)
        self._fate = ""
        self.pid = os.fork()
        if not self.pid:
            self._channel.close()
            _run_loader(
                far_end, lambda texts: load(config_path, rules_path, listen=listen, keep_lists=False, texts=texts)
            )
        far_end.close()

    async def load(self, texts: Texts | None = None) -> tuple[Delivery, Holding]:
        """Loads settings and ruleset; one load at a time. The holding is to be released when the delivery is replaced.

        With `texts`, these are loaded in place of what the settings file and the rules file say now.

        Raises ConfigErrors where something in the files is wrong, LoadError where something else is.
        """
        try:
            self._request(texts)
            await self._readable()
            message, descriptors, _, _ = socket.recv_fds(self._channel, _MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except (BrokenPipeError, ConnectionResetError):
            message, descriptors = b"", []
        if not message:
            raise LoadError(self._bury())
        if not message.isdigit():
            raise LoadError(message.decode())
        if not descriptors:
            raise LoadError("no descriptor is free to receive the new ruleset with")
        try:
            memory = _map(descriptors[0])
            slices = await _collect(_unpack(memory, int(message)))
        except (OSError, MemoryError):
            raise LoadError("the new ruleset does not fit into memory") from None
        result = slices.pop()
        if isinstance(result, ConfigErrors):
            raise result
        assert isinstance(result, Delivery)
        return result, Holding(slices, memory)

    def _request(self, texts: Texts | None) -> None:
        """Asks for a load. The texts go along in a memory file."""
        if texts is None:
            self._channel.send(b"load")
            return
        try:
            file = os.fdopen(os.memfd_create("policyd-texts", os.MFD_CLOEXEC), "w+b")
        except OSError as error:
            raise LoadError(f"cannot pass the rules in force to the loading process: {error.strerror}") from None
        with file:
            pickle.dump(texts, file, protocol=5)
            file.flush()
            socket.send_fds(self._channel, [b"load"], [file.fileno()])

    def close(self) -> None:
        """Ends the loading process, and a load that is under way."""
        self._channel.close()
        self._bury()

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        loop.add_reader(self._channel.fileno(), arrived.set)
        try:
            await arrived.wait()
        finally:
            loop.remove_reader(self._channel.fileno())

    def ended(self) -> str:
        """Why the loading process has ended; empty while it runs."""
        return self._bury(os.WNOHANG)

    def _bury(self, options: int = 0) -> str:
        """What the loader died of, as it will be told from now on; empty if `options` say not to wait, and it runs."""
        if not self._fate:
            pid, status = os.waitpid(self.pid, options)
            if not pid:
                return ""
            self._fate = f"the loading process has ended ({_told(status)}); a new ruleset needs a restart of policyd"
        return self._fate


async def _collect(slices: Iterator[object]) -> list[object]:
    """All of the slices, with a turn of the event loop after each.

    Each is looked at by the garbage collector once, alone, and is among the oldest objects from then on: the collector
    comes to these seldom, and would otherwise look at all slices in one go. (To freeze them instead freezes whatever
    else there is, and what of that becomes garbage in a cycle is never collected: 40 kB for each reload under load.)
    """
    collected = []
    gc.disable()
    try:
        for one in slices:
            collected.append(one)
            gc.collect(1)
            await asyncio.sleep(0)
    finally:
        gc.enable()
    return collected


# --- In the loader and its workers ------------------------------------------------------------------------------------


def _run_loader(channel: socket.socket, load_files: Callable[[Texts | None], Loaded]) -> NoReturn:
    """Forks a worker for each request, until the daemon is gone. Does nothing else, so that it stays as it is."""
    _call("policyd-loader")
    # These are meant for the daemon, but reach the whole group from a terminal or an init system.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    status = 1
    try:
        while True:
            message, descriptors, _, _ = socket.recv_fds(channel, _MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
            if not message:
                break
            worker = os.fork()
            if not worker:
                _run_worker(channel, lambda: load_files(_read_texts(descriptors)))  # noqa: B023 - called before the next
            for descriptor in descriptors:
                os.close(descriptor)
            problem = _watch(worker, channel)
            if problem:
                channel.send(f"the loading process has failed ({problem})".encode())
        status = 0
    except OSError as error:
        if not isinstance(error, BrokenPipeError | ConnectionResetError):  # the daemon is gone
            traceback.print_exc()
    finally:
        os._exit(status)


def _watch(worker: int, channel: socket.socket) -> str:
    """Waits for a worker; kills it where the daemon is gone. Returns what went wrong, if anything did."""
    ended = os.pidfd_open(worker)
    waiting = select.poll()
    waiting.register(ended, select.POLLIN)
    # Only for POLLHUP, which comes unasked: the daemon may have the result and want the next before the worker ends.
    waiting.register(channel, 0)
    if ended not in dict(waiting.poll()):
        os.kill(worker, signal.SIGKILL)
    os.close(ended)
    _, status = os.waitpid(worker, 0)
    return _told(status) if status else ""


def _run_worker(channel: socket.socket, load_files: Callable[[], Loaded]) -> NoReturn:
    """Loads, delivers and ends."""
    _call("policyd-worker")
    gc.disable()  # it ends before there is enough to collect
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        result: Delivery | ConfigErrors
        try:
            loaded = load_files()
            warnings = tuple(f"{one.path}: {one.message}" for one in loaded.warnings)
            result = Delivery(
                loaded.settings,
                loaded.ruleset,
                loaded.summary,
                loaded.seconds,
                warnings,
                loaded.files,
                loaded.texts,
                loaded.outline,
                loaded.left_alone,
            )
            del loaded  # its parsed lists, before all of the tables are there twice
        except ConfigErrors as errors:
            result = errors
        descriptor = os.memfd_create("policyd-ruleset", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            directory = _pack(result, file)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        socket.send_fds(channel, [str(directory).encode()], [descriptor])
    except MemoryError:
        channel.send(b"the new ruleset does not fit into memory")
    except Exception:  # noqa: BLE001 - the boundary of the load: a bug there must not look like a result
        channel.send(b"a bug in policyd, please report it:\n" + traceback.format_exc().encode()[-_MESSAGE_BYTES // 2 :])
    finally:
        sys.stderr.flush()
        os._exit(0)


def _read_texts(descriptors: list[int]) -> Texts | None:
    """The texts that came with the request to load, if any did."""
    if not descriptors:
        return None
    with open(descriptors[0], "rb") as file:  # noqa: PTH123 - a descriptor
        file.seek(0)
        texts = pickle.load(file)  # noqa: S301 - written by the daemon
    assert isinstance(texts, Texts)
    return texts


def _call(name: str) -> None:
    """Names this process, for ps(1)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)


def _told(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit status {code}"
    out_of_memory = "; out of memory?" if -code == signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{out_of_memory}"


# --- The memory file: pickles one after the other, then the tables, then a directory of the tables --------------------


def _pack(result: object, file: BinaryIO) -> int:
    """Writes the result. Returns where the directory begins.

    The pickles share one memo, so an object that a slice holds is the same object in all that follows.
    """
    buffers: list[pickle.PickleBuffer] = []
    pickler = pickle.Pickler(file, protocol=5, buffer_callback=buffers.append)
    count = 0
    for one in (*_slices(result), result):
        pickler.dump(one)
        count += 1
    directory = []
    for buffer in buffers:
        with buffer.raw() as raw:
            start = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
            file.seek(start)
            file.write(raw)
            directory.append((start, len(raw)))
    place = file.tell()
    pickle.dump((count, directory), file)
    return place


def _map(descriptor: int) -> mmap.mmap:
    """The memory file, to be read only. Takes the descriptor over."""
    try:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)


def _unpack(memory: mmap.mmap, directory: int) -> Iterator[object]:
    """The slices and, last, the result."""
    memory.seek(directory)
    count, places = pickle.load(memory)  # noqa: S301 - written by a process of our own, and sealed
    tables = memoryview(memory)
    buffers = (tables[start : start + length] for start, length in places)
    unpickler = pickle.Unpickler(memory, buffers=buffers)  # noqa: S301 - as above
    memory.seek(0)
    for _ in range(count):
        yield unpickler.load()


def _slices(root: object) -> Iterator[list[object]]:
    """The elements of all that is long in an object, inner things first, a few at a time."""
    seen: set[int] = set()
    waiting: list[tuple[object, bool]] = [(root, False)]
    while waiting:
        one, is_walked = waiting.pop()
        if is_walked:
            assert isinstance(one, list | tuple | dict)
            elements = [*(one.values() if isinstance(one, dict) else one)]
            for start in range(0, len(elements), SLICE):
                yield elements[start : start + SLICE]
        elif id(one) not in seen:
            seen.add(id(one))
            parts = [part for part in gc.get_referents(one) if _is_compound(part)]
            if len(parts) > SLICE and isinstance(one, list | tuple | dict):
                waiting.append((one, True))
            waiting.extend((part, False) for part in parts)


def _is_compound(part: object) -> bool:
    """Whether there may be much in it. A class is none of ours; its instances are."""
    return isinstance(part, list | tuple | dict | frozenset) or type(part).__module__.startswith("policyd.")
