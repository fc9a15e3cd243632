"""Memory in a real Redis or Valkey server, and what happens when it fails."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from typing import TYPE_CHECKING

import pytest

from policyd.memory.definitions import CounterDefinition, KeyPart
from policyd.memory.window import MAX_DISTINCT
from policyd.state import valkey as module
from policyd.state.operations import Operation, count_operation
from policyd.state.valkey import MAX_FAILURES
from tests.state.servers import PROGRAMS

if TYPE_CHECKING:
    from policyd.state.valkey import SharedMemory
    from tests.state.servers import StateServer

pytestmark = [
    pytest.mark.slow,  # each test starts a server
    pytest.mark.skipif(not PROGRAMS, reason="needs Debian's redis-server or valkey-server"),
]

EVENTS = CounterDefinition("mails", None, (KeyPart("sasl_username"),), 3600)
DOORS = CounterDefinition("doors", KeyPart("client_address"), (KeyPart("recipient"),), 3600)
# Seconds: long enough for a server on a busy machine, short enough to wait for.
TIMEOUT = 0.2


def event(key: bytes = b"joe", *, add: bool = True) -> Operation:
    return count_operation(EVENTS, key, None, add=add)


def door(value: bytes, *, add: bool = True) -> Operation:
    return count_operation(DOORS, b"b@x", value, add=add)


async def test_requests_and_distinct_values_are_counted(server: StateServer) -> None:
    state = server.memory()
    assert await state.ask([event(add=False), door(b"a", add=False)]) == [1, 1]
    assert await state.ask([event(), event(), door(b"a"), door(b"b"), door(b"a")]) == [1, 2, 1, 2, 2]
    assert await state.ask([event(add=False), door(b"a", add=False), door(b"c", add=False)]) == [3, 2, 3]
    await state.close()


async def test_operations_of_one_call_see_those_before_them_and_no_others(server: StateServer) -> None:
    state = server.memory()
    operations = [event(add=False), event(), event(add=False), door(b"a", add=False), door(b"a"), door(b"a", add=False)]
    assert await state.ask([*operations, door(b"b"), event()]) == [1, 1, 2, 1, 1, 1, 2, 2]
    await state.close()


async def test_a_value_that_is_not_a_time_still_exists(server: StateServer) -> None:
    state = server.memory()
    for value in ("", "a b", "policyd 1", "1\n2"):
        server.command("set", "policyd:g:a", value)
        assert await state.ask([Operation("get", b"policyd:g:a"), event(add=False)]) == [b"?", 1]
    await state.close()


async def test_values_of_any_bytes_are_distinguished(server: StateServer) -> None:
    state = server.memory()
    values = (b" ", b"\r\n", b"$1\r\na\r\n", b"\xff\x00", b"a b", b"")
    assert await state.ask([door(value) for value in values]) == [1, 2, 3, 4, 5, 6]
    assert await state.ask([event(value) for value in values]) == [1, 1, 1, 1, 1, 1]
    await state.close()


async def test_after_the_server_ended_the_connection_a_new_one_is_used(server: StateServer) -> None:
    state = server.memory()
    assert await state.ask([event()]) == [1]
    server.command("client", "kill", "type", "normal")
    await asyncio.sleep(0.05)
    assert await state.ask([event()]) == [2]
    assert state.counters.failures == 0
    await state.close()


async def test_a_window_slides(server: StateServer) -> None:
    state = server.memory()
    short = CounterDefinition("short", None, (KeyPart("sender"),), 1)
    doors = CounterDefinition("short-doors", KeyPart("sender"), (KeyPart("sender"),), 1)
    operations = [count_operation(short, b"a", None, add=True), count_operation(doors, b"a", b"1", add=True)]
    assert await state.ask(operations) == [1, 1]
    await asyncio.sleep(0.3)
    assert await state.ask([*operations[:1], count_operation(doors, b"a", b"2", add=True)]) == [2, 2]
    await asyncio.sleep(0.8)
    peeks = [count_operation(short, b"a", None, add=False), count_operation(doors, b"a", b"3", add=False)]
    assert await state.ask(peeks) == [2, 2]
    assert await state.ask([*operations[:1], count_operation(doors, b"a", b"2", add=True)]) == [2, 1]
    await state.close()


async def test_keys_expire(server: StateServer) -> None:
    state = server.memory()
    await state.ask([event(), door(b"a"), Operation("set", b"policyd:g:k", 100, b"1")])
    for key in server.command("keys", "*").split():
        assert 0 < int(server.command("ttl", key)) <= 3700, key
        assert key.startswith("policyd:")
    await state.close()


async def test_distinct_values_beyond_the_maximum_are_dropped(server: StateServer) -> None:
    state = server.memory()
    found = await state.ask([door(b"%d" % number) for number in range(400)])
    assert found == [min(number, MAX_DISTINCT) for number in range(1, 401)]
    assert await state.ask([door(b"399")]) == [MAX_DISTINCT]
    await state.close()


async def test_first_tries_are_set_once_and_read(server: StateServer) -> None:
    state = server.memory()
    assert await state.ask([Operation("get", b"policyd:g:a")]) == [None]
    await state.ask([Operation("set-new", b"policyd:g:a", 60, b"1"), Operation("set-new", b"policyd:g:a", 60, b"2")])
    assert await state.ask([Operation("get", b"policyd:g:a")]) == [b"1"]
    await state.ask([Operation("set", b"policyd:g:a", 60, b"3"), Operation("delete", b"policyd:g:b")])
    assert await state.ask([Operation("get", b"policyd:g:a"), Operation("delete", b"policyd:g:a")]) == [b"3", 1]
    await state.close()


async def test_requests_of_one_turn_share_a_call_and_nothing_is_lost(server: StateServer) -> None:
    state = server.memory()
    found = await asyncio.gather(*(state.ask([event(b"k%d" % (number % 7))]) for number in range(2000)))
    assert found == [[1 + number // 7] for number in range(2000)]
    assert state.counters.calls <= 2000 // module.MAX_BATCH + 2
    await state.close()


async def test_two_daemons_count_together_exactly(server: StateServer) -> None:
    states = [server.memory(), server.memory()]
    for _ in range(10):
        await asyncio.gather(*(states[number % 2].ask([event()]) for number in range(100)))
    assert await states[0].ask([event(add=False)]) == [1001]
    for state in states:
        await state.close()


async def expect_failures(state: SharedMemory, times: int = MAX_FAILURES) -> None:
    for _ in range(times):
        began = time.monotonic()
        assert await state.ask([event()]) is None
        assert time.monotonic() - began < 1  # a wide limit, for busy machines; `make faults` checks 0.1 s


async def wait_until_up(state: SharedMemory, seconds: float = 2.0) -> None:
    until = time.monotonic() + seconds
    while await state.ask([event(b"other")]) is None:
        assert time.monotonic() < until, state.why
        await asyncio.sleep(0.02)


async def test_a_killed_server_is_used_again_when_it_returns(
    server: StateServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    state = server.memory(TIMEOUT)
    assert await state.ask([event()]) == [1]
    server.stop()
    await expect_failures(state)
    assert not state.is_up
    calls = state.counters.calls
    await expect_failures(state, 50)
    assert state.counters.calls == calls  # requests do not ask the server any more, only the probe does
    server.start()
    await wait_until_up(state)
    assert await state.ask([event()]) == [1]  # the server came back without its data
    await state.close()
    assert len(caplog.records) == 2
    assert "this process's own memory answers meanwhile" in caplog.text
    assert "answers again" in caplog.text


async def test_a_frozen_server_delays_nothing_and_its_late_answer_is_dropped(server: StateServer) -> None:
    state = server.memory(TIMEOUT)
    assert await state.ask([event()]) == [1]
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    await expect_failures(state)
    server.process.send_signal(signal.SIGCONT)
    await wait_until_up(state)
    assert await state.ask([event(b"new"), Operation("get", b"policyd:x")]) == [1, None]
    await state.close()


async def test_a_full_server_counts_as_away_and_does_not_grow(server: StateServer) -> None:
    state = server.memory(TIMEOUT)
    await state.ask([event()])
    server.command("config", "set", "maxmemory", "1")
    before = server.command("dbsize")
    await expect_failures(state)
    assert "it is full" in state.why
    await asyncio.sleep(module.PROBE_SECONDS + 0.2)
    assert not state.is_up  # reading still works, so a probe that only reads would not detect this
    assert server.command("dbsize") == before
    server.command("config", "set", "maxmemory", "0")
    await wait_until_up(state)
    await state.close()


async def test_a_full_server_still_answers_reads(server: StateServer) -> None:
    state = server.memory()
    await state.ask([event()])
    server.command("config", "set", "maxmemory", "1")
    assert await state.ask([event(add=False), Operation("get", b"policyd:g:x")]) == [2, None]
    await state.close()


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        (("requirepass", "secret"), "state_credentials"),
        (("min-replicas-to-write", "1"), "cannot be reached or used"),
    ],
)
async def test_a_server_that_refuses_calls_is_a_failure_with_its_reason(
    server: StateServer, setting: tuple[str, str], why: str
) -> None:
    server.command("config", "set", *setting)
    state = server.memory(TIMEOUT)
    await expect_failures(state)
    assert why in state.why
    assert "secret" not in state.why
    await state.close()


async def test_a_wrong_password_is_reported_and_never_shown(
    server: StateServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.command("config", "set", "requirepass", "right")
    state = server.memory(TIMEOUT, user="default", password="hunter2")
    await expect_failures(state)
    assert "refuses the user or password" in state.why
    assert "hunter2" not in caplog.text
    await state.close()


async def test_a_replica_is_not_written_to(server: StateServer) -> None:
    server.command("replicaof", "127.0.0.1", "1")
    state = server.memory(TIMEOUT)
    await expect_failures(state)
    assert "replica" in state.why
    await state.close()


async def test_waiting_operations_are_sent_on_close(server: StateServer) -> None:
    state = server.memory()
    waiting = [state.ask([event()]) for _ in range(2 * module.MAX_BATCH)]
    await state.close()
    assert [future.result() for future in waiting] == [[count] for count in range(1, len(waiting) + 1)]


async def test_a_frozen_server_does_not_delay_close(server: StateServer) -> None:
    state = server.memory(TIMEOUT)
    assert await state.ask([event()]) == [1]
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    waiting = [state.ask([event()]) for _ in range(2 * module.MAX_BATCH)]
    await state.close()
    assert {future.result() for future in waiting} == {None}


async def test_the_queue_of_waiting_operations_is_bounded(server: StateServer) -> None:
    state = server.memory()
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    futures = [state.ask([event()]) for _ in range(module.MAX_WAITING + 10)]
    assert sum(future.done() for future in futures) == 10
    server.process.send_signal(signal.SIGCONT)
    assert all(value is not None for value in (await asyncio.gather(*futures))[: module.MAX_WAITING])
    await state.close()
