"""Memory in the process: greylisting step by step, and the limits of the memory."""

import pytest

from policyd.core.facts import Greylisted
from policyd.memory.definitions import CounterDefinition, GreylistSettings, KeyPart
from policyd.memory.greylist import Client
from policyd.state.process import ProcessMemory

GREYLIST = GreylistSettings()
POOL = b"provider.example"
NOW = 1_800_000_000.0
DAY = 86400


def memory(max_keys: int = 1000) -> ProcessMemory:
    return ProcessMemory(max_keys)


def try_mail(
    state: ProcessMemory, at: float, network: bytes = b"192.0.2.0/24", domain: bytes = b"", to: bytes = b"b@x"
) -> str:
    return state.greylist(GREYLIST, Client(network, domain), b"a@y", to, NOW + at).value


def test_a_client_waits_once_and_its_network_is_known() -> None:
    state = memory()
    assert try_mail(state, 0) == "new"
    assert try_mail(state, 100) == "early"
    assert try_mail(state, 299) == "early"
    assert try_mail(state, 300) == "passed"
    assert try_mail(state, 301, to=b"c@x") == "known"
    assert try_mail(state, 34 * DAY, to=b"d@x") == "known"
    assert try_mail(state, 68 * DAY, to=b"e@x") == "known"  # each mail extends the time
    assert try_mail(state, 103 * DAY + 1, to=b"f@x") == "new"


def test_a_retry_that_comes_too_late_is_new() -> None:
    state = memory()
    assert try_mail(state, 0) == "new"
    assert try_mail(state, DAY + 1) == "new"
    assert try_mail(state, DAY + 302) == "passed"


def test_a_pool_of_mail_servers_is_one_client() -> None:
    state = memory()
    assert try_mail(state, 0, b"192.0.2.0/24", POOL) == "new"
    assert try_mail(state, 400, b"198.51.100.0/24", POOL) == "passed"
    assert try_mail(state, 500, b"198.51.100.0/24", POOL, to=b"c@x") == "known"
    assert try_mail(state, 500, b"192.0.2.0/24", POOL, to=b"d@x") == "new"  # the domain itself is not remembered


@pytest.mark.parametrize("names", [(POOL, b""), (b"", POOL)])
def test_a_dns_failure_between_two_tries_costs_nothing(names: tuple[bytes, bytes]) -> None:
    state = memory()
    assert try_mail(state, 0, domain=names[0]) == "new"
    assert try_mail(state, 400, domain=names[1]) == "passed"


def test_an_early_try_adds_its_other_name_to_the_wait() -> None:
    state = memory()
    assert try_mail(state, 0, b"192.0.2.0/24") == "new"  # without a domain: reverse DNS failed
    assert try_mail(state, 100, b"192.0.2.0/24", POOL) == "early"
    assert try_mail(state, 300, b"198.51.100.0/24", POOL) == "passed"


def test_first_tries_displace_only_each_other() -> None:
    state = memory(max_keys=100)
    counter = CounterDefinition("c", None, (KeyPart("sender"),), 3600)
    for number in range(90):
        state.add(counter, b"%d" % number, None, NOW)
    for number in range(500):
        try_mail(state, 0, to=b"%d" % number)
    assert all(state.peek(counter, b"%d" % number, None, NOW) == 2 for number in range(90))
    assert len(state) == 140
    assert state.evicted == 450
    assert try_mail(state, 1, to=b"499") == Greylisted.EARLY.value


def test_the_least_recently_used_key_is_dropped_first() -> None:
    state = memory(max_keys=3)
    counter = CounterDefinition("c", None, (KeyPart("sender"),), 3600)
    for key in (b"a", b"b", b"c", b"a", b"d"):
        state.add(counter, key, None, NOW)
    assert [state.peek(counter, key, None, NOW) for key in (b"a", b"b", b"c", b"d")] == [3, 1, 2, 2]
    assert (len(state), state.evicted) == (3, 1)


def test_each_value_of_a_distinct_counter_is_an_entry() -> None:
    state = memory(max_keys=10)
    counter = CounterDefinition("c", KeyPart("client_address"), (KeyPart("sender"),), 60)
    for number in range(4):
        state.add(counter, b"a", b"%d" % number, NOW)
    assert len(state) == 5
    for number in range(5):
        state.add(counter, b"b", b"%d" % number, NOW)
    assert len(state) == 6  # `a` and its values have been dropped
    state.add(counter, b"b", b"x", NOW + 120)
    assert len(state) == 2


def test_forgotten_keys_and_networks_begin_again() -> None:
    state = memory()
    counter = CounterDefinition("c", None, (KeyPart("sasl_username"),), 3600)
    for _ in range(5):
        state.add(counter, b"joe", None, NOW)
    assert [found for found in state.counts_by_key(counter, NOW) if found] == [(b"joe", 5)]
    assert state.forget(counter, b"joe")
    assert not state.forget(counter, b"joe")
    assert state.peek(counter, b"joe", None, NOW) == 1
    try_mail(state, 0)
    try_mail(state, 300)
    assert state.forget_client(b"192.0.2.0/24")
    assert not state.forget_client(b"192.0.2.0/24")
    assert len(state) == 0
