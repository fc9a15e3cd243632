"""The state file: data that survives a restart, and broken files."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from typing import TYPE_CHECKING

import pytest

from policyd.memory.definitions import CounterDefinition, GreylistSettings, KeyPart
from policyd.memory.greylist import Client
from policyd.state.process import ProcessMemory
from policyd.state.sqlite import KEYS_A_TURN, StateFile

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_800_000_000.0
GREYLIST = GreylistSettings()
EVENTS = CounterDefinition("mails", None, (KeyPart("sasl_username"),), 3600)
DOORS = CounterDefinition("doors", KeyPart("client_address"), (KeyPart("recipient"),), 3600)


def open_state(path: Path, *, now: float = NOW, max_keys: int = 1000) -> tuple[ProcessMemory, StateFile]:
    memory = ProcessMemory(max_keys)
    state = StateFile(path, memory, lambda: now)
    state.load([EVENTS, DOORS], GREYLIST)
    return memory, state


def fill(memory: ProcessMemory) -> None:
    for _ in range(3):
        memory.add(EVENTS, b"joe", None, NOW)
    for address in (b"192.0.2.1", b"192.0.2.2"):
        memory.add(DOORS, b"b@x", address, NOW)
    memory.greylist(GREYLIST, Client(b"192.0.2.0/24", b"d.example"), b"a", b"b", NOW)
    memory.greylist(GREYLIST, Client(b"198.51.100.0/24", b""), b"a", b"b", NOW - 400)
    memory.greylist(GREYLIST, Client(b"198.51.100.0/24", b""), b"a", b"b", NOW)


def check(memory: ProcessMemory) -> None:
    assert memory.peek(EVENTS, b"joe", None, NOW) == 4
    assert memory.peek(DOORS, b"b@x", b"192.0.2.2", NOW) == 2
    assert memory.knows_network(GREYLIST, b"198.51.100.0/24", NOW)
    assert memory.greylist(GREYLIST, Client(b"203.0.113.0/24", b"d.example"), b"a", b"b", NOW + 300).value == "passed"


async def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    memory, state = open_state(tmp_path / "state.db")
    fill(memory)
    await state.close()
    memory, state = open_state(tmp_path / "state.db")
    check(memory)
    await state.close()


async def test_a_killed_process_loses_only_unwritten_changes(tmp_path: Path) -> None:
    memory, state = open_state(tmp_path / "state.db")
    fill(memory)
    await state.write()
    memory.add(EVENTS, b"joe", None, NOW)
    state._close()
    memory, state = open_state(tmp_path / "state.db")
    check(memory)
    await state.close()


async def test_forgotten_and_evicted_keys_are_removed_from_the_file(tmp_path: Path) -> None:
    memory, state = open_state(tmp_path / "state.db", max_keys=3)
    for user in (b"a", b"b", b"c", b"d"):
        memory.add(EVENTS, user, None, NOW)
        await state.write()
    memory.forget(EVENTS, b"d")
    await state.close()
    with sqlite3.connect(tmp_path / "state.db") as connection:
        assert sorted(key[8:] for (key,) in connection.execute("SELECT key FROM windows")) == [b"b", b"c"]
    connection.close()


async def test_expired_entries_and_entries_in_the_future_are_dropped(tmp_path: Path) -> None:
    memory, state = open_state(tmp_path / "state.db")
    fill(memory)
    await state.close()
    for now in (NOW - 7200, NOW + 40 * 86400):
        memory, state = open_state(tmp_path / "state.db", now=now)
        assert memory.peek(EVENTS, b"joe", None, now) == 1
        assert not memory.knows_network(GREYLIST, b"198.51.100.0/24", now)
        state._close()


async def test_a_counter_with_a_changed_definition_starts_again(tmp_path: Path) -> None:
    memory, state = open_state(tmp_path / "state.db")
    fill(memory)
    await state.close()
    other = CounterDefinition("mails", None, (KeyPart("sasl_username"),), 60)
    memory = ProcessMemory(1000)
    state = StateFile(tmp_path / "state.db", memory, lambda: NOW)
    state.load([other], GREYLIST)
    assert memory.peek(other, b"joe", None, NOW) == 1
    assert len(memory) == 3  # the entries of greylisting
    await state.close()


async def test_a_file_locked_by_another_process_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory, state = open_state(tmp_path / "state.db")
    fill(memory)
    await state.write()
    other, locked = open_state(tmp_path / "state.db")
    assert not locked.is_used
    assert "is locked by another process" in caplog.text
    fill(other)
    await locked.write()
    await locked.close()
    await state.close()
    memory, state = open_state(tmp_path / "state.db")
    check(memory)
    await state.close()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def zero_the_second_half(path: Path) -> None:
    half = path.stat().st_size // 2
    path.write_bytes(path.read_bytes()[:half] + bytes(half))


def make_newer(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def make_text(path: Path) -> None:
    path.write_text("counters: none\n" * 1000)


def spoil_a_window(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE windows SET window = x'640102'")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("break_it", [cut, zero, zero_the_second_half, make_newer, make_text, spoil_a_window])
async def test_a_broken_file_is_moved_aside_and_mail_goes_on(
    tmp_path: Path, break_it: object, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.db"
    memory, state = open_state(path)
    for number in range(500):
        memory.add(EVENTS, b"user%d" % number, None, NOW)
    await state.close()
    assert callable(break_it)
    break_it(path)
    broken_size = path.stat().st_size
    caplog.set_level(logging.WARNING)
    memory, state = open_state(path)
    (record,) = caplog.records
    aside = tmp_path / f"state.db.damaged-{int(NOW)}"
    assert f"it was moved to {aside}" in record.message
    assert aside.stat().st_size == broken_size
    assert len(memory) == 0
    assert state.is_used
    fill(memory)
    await state.close()
    memory, state = open_state(path)
    check(memory)
    await state.close()


async def test_a_missing_folder_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory, state = open_state(tmp_path / "missing" / "state.db")
    assert not state.is_used
    assert "memory is kept in this process only" in caplog.text
    fill(memory)
    await state.write()
    await state.close()


async def test_a_full_disk_is_reported_and_the_write_is_repeated_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory, state = open_state(tmp_path / "state.db")
    assert state._connection is not None
    (pages,) = state._connection.execute("PRAGMA page_count").fetchone()
    state._connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's error for a full disk
    for number in range(2000):
        memory.add(EVENTS, b"user%d" % number, None, NOW)
    for _ in range(3):
        await state.write()
    assert len(caplog.records) == 1
    assert "full" in caplog.text
    state._connection.execute("PRAGMA max_page_count = 100000")
    await state.close()
    memory, state = open_state(tmp_path / "state.db")
    assert memory.peek(EVENTS, b"user1999", None, NOW) == 2
    await state.close()


async def test_on_a_full_disk_removed_keys_do_not_accumulate(tmp_path: Path) -> None:
    memory, state = open_state(tmp_path / "state.db", max_keys=100)
    memory.add(EVENTS, b"old", None, NOW)
    await state.write()
    assert state._connection is not None
    (pages,) = state._connection.execute("PRAGMA page_count").fetchone()
    state._connection.execute(f"PRAGMA max_page_count = {pages}")
    for round_ in range(20):
        for number in range(100):
            memory.add(EVENTS, b"%04096d-%d" % (round_, number), None, NOW)
        await state.write()
        assert state.why
        assert memory.changes is not None
        assert len(memory.changes) <= 200
    state._connection.execute("PRAGMA max_page_count = 100000")
    await state.write()
    rows = {key for (key,) in state._connection.execute("SELECT key FROM windows")}
    assert rows == set(memory.tables().windows)
    memory.add(EVENTS, b"new", None, NOW)
    await state.close()
    again, state = open_state(tmp_path / "state.db", max_keys=100)
    assert set(again.tables().windows) == set(memory.tables().windows)
    await state.close()


async def test_a_shutdown_in_the_middle_of_a_write_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("policyd.state.sqlite.WRITE_SECONDS", 0)
    memory, state = open_state(tmp_path / "state.db", max_keys=100_000)
    connection = state._connection
    assert connection is not None
    for number in range(20_000):
        memory.add(EVENTS, b"user%d" % number, None, NOW)
    running = asyncio.create_task(state.run())
    async with asyncio.timeout(30):
        while not connection.in_transaction:
            await asyncio.sleep(0)
    memory.add(EVENTS, b"late", None, NOW)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await state.close()
    assert caplog.text == ""
    memory, state = open_state(tmp_path / "state.db", max_keys=100_000)
    assert len(memory.tables().windows) == 20_001
    await state.close()


async def test_a_shutdown_while_a_write_is_prepared_loses_nothing(tmp_path: Path) -> None:
    memory, state = open_state(tmp_path / "state.db")
    for number in range(KEYS_A_TURN):
        memory.add(EVENTS, b"user%d" % number, None, NOW)
    writing = asyncio.create_task(state.write())
    await asyncio.sleep(0)  # the batch has begun, and waits for its next turn
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await state.close()
    memory, state = open_state(tmp_path / "state.db")
    assert len(memory.tables().windows) == KEYS_A_TURN
    await state.close()


@pytest.mark.slow
async def test_requests_are_answered_during_a_write(tmp_path: Path) -> None:
    memory, state = open_state(tmp_path / "state.db", max_keys=100_000)
    for number in range(50_000):
        memory.add(EVENTS, b"user%d" % number, None, NOW)
    turns, ended = 0, False

    async def watch() -> None:
        nonlocal turns
        while not ended:
            await asyncio.sleep(0)
            turns += 1

    watching = asyncio.create_task(watch())
    await state.write()
    ended = True
    await watching
    assert turns >= 50_000 // KEYS_A_TURN
    await state.close()
