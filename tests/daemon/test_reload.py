"""The loader, and passing a ruleset from a worker to the daemon."""

import asyncio
import datetime
import gc
import io
import mmap
import os
import pickle
import select
import signal
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from policyd.config.in_force import Text, Texts
from policyd.config.problems import ConfigErrors
from policyd.core.engine import Decision, decide
from policyd.core.facts import Facts
from policyd.core.identity import Identity, Status
from policyd.core.protocol import Request
from policyd.daemon.reload import (
    SLICE,
    Loader,
    LoadError,
    MappedRuleset,
    _collect,
    _pack,
    _read_directory,
    _slices,
    _unpack,
)
from tests.core.build import build
from tests.daemon.turns import Turns


def pack_and_unpack(thing: object) -> tuple[mmap.mmap, list[Any]]:
    """Packs an object into a memory file and unpacks it. Returns the file, and a list of the slices and, last, the
    object.
    """
    descriptor = os.memfd_create("test")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        place = _pack(thing, file)
    memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    os.close(descriptor)
    return memory, [*_unpack(memory, _read_directory(memory, place))]


TODAY = datetime.date(2026, 1, 1)

RULES = [
    {
        "name": f"r{n}",
        "match": {"hostname_suffix": [f"d{n}.example"], "cidr": [f"10.{n % 250}.0.0/16"]},
        "action": "REJECT",
    }
    for n in range(3 * SLICE)
]


def test_a_ruleset_passed_between_processes_decides_the_same() -> None:
    ruleset = build(RULES)
    _, [*_, arrived] = pack_and_unpack(ruleset)
    assert arrived.rules == ruleset.rules
    for n in (0, 1, SLICE, 3 * SLICE - 1):
        request = Request.of({"client_address": f"10.{n % 250}.1.1".encode(), "protocol_state": b"RCPT"})
        identity = Identity(Status.VERIFIED, (f"x.d{n}.example".encode(),))
        decision = decide(arrived, request, Facts(identity), TODAY)
        assert decision == decide(ruleset, request, Facts(identity), TODAY)
        assert isinstance(decision, Decision)
        assert decision.rule_name == f"r{n}"


def test_long_results_are_sliced_without_copying_objects() -> None:
    ruleset = build(RULES)
    _, [*slices, arrived] = pack_and_unpack(ruleset)
    assert max(len(part) for part in slices) <= SLICE
    in_slices = {id(thing) for part in slices for thing in part}
    assert {id(rule) for rule in arrived.rules} <= in_slices


def test_the_last_pickle_is_a_small_part_of_a_ruleset() -> None:
    ruleset = build(RULES)
    pickler = pickle.Pickler(file := io.BytesIO(), protocol=5, buffer_callback=lambda _: None)
    sizes = []
    for part in (*_slices(ruleset), ruleset):
        before = file.tell()
        pickler.dump(part)
        sizes.append(file.tell() - before)
    assert sizes[-1] < sum(sizes) / 5


def mappings() -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:test" in line]


def test_tables_are_used_in_place() -> None:
    memory, [*_, arrived] = pack_and_unpack(build(RULES))
    assert [line.split()[1] for line in mappings()] == ["r--s"]
    with pytest.raises(BufferError):
        memory.close()
    del arrived
    memory.close()
    assert not mappings()


async def test_a_ruleset_is_freed_slice_by_slice() -> None:
    memory, [*slices, arrived] = pack_and_unpack(build(RULES))
    del arrived
    expected = len(slices)
    with Turns() as turns:
        await MappedRuleset(slices, memory).release()
    assert turns.count >= expected > 10
    assert not mappings()


async def test_a_ruleset_stays_until_its_last_request_ends() -> None:
    memory, [*slices, arrived] = pack_and_unpack(build(RULES))
    await MappedRuleset(slices, memory).release()
    del memory
    request = Request.of({"client_address": b"10.7.1.1", "protocol_state": b"RCPT"})
    decision = decide(arrived, request, Facts(Identity(Status.VERIFIED, (b"x.d7.example",))), TODAY)
    assert isinstance(decision, Decision)
    assert decision.rule_name == "r7"
    del arrived, decision
    await asyncio.sleep(0)  # the event loop's own reference ends with its turn
    gc.collect()
    assert not mappings()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rules.yaml").write_text("rules: [{name: a, match: {hostname: x.example}, action: REJECT}]")
    return tmp_path


async def test_the_loader_loads_the_present_content_of_files(folder: Path) -> None:
    rules = folder / "rules.yaml"
    loader = Loader(None, str(rules))
    try:
        first, _ = await loader.load()
        rules.write_text("rules: []")
        second, _ = await loader.load()
        rules.write_text("rules: 7")
        with pytest.raises(ConfigErrors) as errors:
            await loader.load()
        rules.write_text("rules: []")
        third, _ = await loader.load()
    finally:
        loader.close()
    assert [len(loaded.ruleset.rules) for loaded in (first, second, third)] == [1, 0, 0]
    assert first.settings.rules == str(rules)
    assert first.summary.startswith(f"ruleset {first.ruleset.hash}: 1 rule, ")
    assert errors.value.lines[0].startswith(f"{rules}:1:8: ")
    assert errors.value.exit_status == 1


async def test_a_bug_in_the_load_is_reported_as_a_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("policyd.daemon.reload.load", fail)
    loader = Loader(None, str(folder / "rules.yaml"))
    try:
        with pytest.raises(LoadError, match="a bug in policyd, please report it:\nTraceback"):
            await loader.load()
    finally:
        loader.close()


async def test_a_worker_that_is_killed_after_its_answer_does_not_affect_the_next_load(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "_exit", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    loader = Loader(None, str(folder / "rules.yaml"))
    monkeypatch.undo()
    loads = []
    try:
        for count in range(3):
            names = [f"r{number}" for number in range(count)]
            lines = (f"  - {{name: {name}, match: {{hostname: {name}.example}}, action: REJECT}}" for name in names)
            (folder / "rules.yaml").write_text("\n".join(["rules:", *lines]) if names else "rules: []")
            loads.append((await loader.load())[0])
            assert select.select([loader._channel], [], [], 30)[0]  # the loader says that its worker was killed
    finally:
        loader.close()
    assert [len(loaded.ruleset.rules) for loaded in loads] == [0, 1, 2]


async def test_closing_the_loader_ends_a_load_in_progress(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policyd.daemon.reload.load", lambda *_, **__: time.sleep(60))
    loader = Loader(None, str(folder / "rules.yaml"))
    loading = asyncio.create_task(loader.load())
    await asyncio.sleep(0.1)
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    before = time.monotonic()
    loader.close()
    assert time.monotonic() - before < 30  # the load would take 60 s


async def test_a_cancelled_load_writes_its_texts_only_to_the_memory_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Loader(None, str(folder / "rules.yaml"))
    texts = Texts(Text(b"x" * (8 << 20), 0), Text(b"y" * (8 << 20), 0))
    reading, writing = os.pipe()  # instead of the memory file: the thread waits until it is read
    monkeypatch.setattr(os, "memfd_create", lambda *_: writing)
    passing = asyncio.create_task(loader._request(texts, None, ()))
    while select.select([], [writing], [], 0)[1]:
        await asyncio.sleep(0)
    passing.cancel()
    with os.fdopen(reading, "rb") as file, ThreadPoolExecutor(1) as pool:
        passed = pool.submit(file.read)
        await asyncio.gather(passing, return_exceptions=True)
        another = os.open(folder / "another", os.O_WRONLY | os.O_CREAT)
        os.dup2(another, writing)
        passed.result()
        await asyncio.get_running_loop().shutdown_default_executor()  # waits for the thread
    for descriptor in {another, writing}:
        os.close(descriptor)
    loader.close()
    assert (folder / "another").read_bytes() == b""


async def test_garbage_made_during_a_load_is_collected() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.itself = self

    cycles = [weakref.ref(Cycle())]

    def slices() -> Iterator[object]:
        yield []
        cycles.append(weakref.ref(Cycle()))
        yield []

    await _collect(slices())
    gc.collect()
    assert [cycle() for cycle in cycles] == [None, None]
