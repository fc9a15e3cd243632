"""DNS lists with a real rbldnsd behind a real unbound, and with a misbehaving server."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from policyd.config.dns_list import Ask, DnsList
from policyd.config.settings import Dns, parse_dns_server
from policyd.core.address import parse_address
from policyd.core.dns_lists import ListAnswer, ListStatus
from policyd.core.protocol import Request
from policyd.dns import lists as module
from policyd.dns.lists import DnsLists
from policyd.dns.resolver import Resolver
from tests.dns.lists import dns_list
from tests.name_server import NXDOMAIN, REFUSED, SERVFAIL, Reply, ScriptedServer, start_unbound
from tests.ports import free_port
from tests.rbl_server import Zone, start_rbldnsd
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from policyd.dns.list_names import ListSubject

CLIENT = b"198.51.100.7"
NAME = "7.100.51.198.zen.test"

# Timeouts in seconds for questions that must be answered, even on a busy machine, and for those that must not be.
LONG_TIMEOUT, SHORT_TIMEOUT = 30.0, 0.4

GOOD = {"2.0.0.127.zen.test": Reply(["@ 60 A 127.0.0.2"])}


@asynccontextmanager
async def use(*definitions: DnsList, server: str, **settings: Any) -> AsyncIterator[DnsLists]:
    """Uses these lists, with one name server."""
    dns = Dns(servers=(parse_dns_server(server),), **{"timeout": LONG_TIMEOUT, **settings})
    resolver = Resolver(dns)
    lists = DnsLists()
    lists.use(definitions, dns, resolver.servers)
    try:
        yield lists
    finally:
        await lists.close()
        await resolver.close()


def subject_of(text: bytes) -> ListSubject:
    return parse_address(text) or text


async def ask(lists: DnsLists, name: str = "zen", *texts: bytes) -> ListAnswer:
    subjects = [subject_of(text) for text in texts or (CLIENT,)]
    known = lists.known_answer(name, subjects)
    return known if known is not None else await lists.look_up(name, subjects)


def meaning(answer: ListAnswer) -> str:
    return answer.reason or "+".join(answer.addresses) or "-"


async def wait_until(condition: Callable[[], bool], lists: DnsLists) -> None:
    """Waits until a condition holds, and meanwhile runs the self-tests that are due."""
    deadline = time.monotonic() + LONG_TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        lists.check()
        await asyncio.sleep(0.01)


class Clock:
    """The monotonic clock of the lists, which a test can advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        monkeypatch.setattr(module, "monotonic", lambda: time.monotonic() + self.ahead)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


# --- A real rbldnsd, queried directly and through unbound -------------------------------------------------------------

OVERLAPPING = ":127.0.0.2:listed\n127.0.0.2\n198.51.100.7\n198.51.100.0/28 :127.0.0.4:a range\n"
ZONES = {
    "set.test": Zone("ip4set", OVERLAPPING),
    "trie.test": Zone("ip4trie", OVERLAPPING),
    "six.test": Zone("ip6trie", ":127.0.0.2:listed\n0:0:0:0:0:ffff:7f00:2\n2a00:1450::/32\n"),
    "names.test": Zone("dnset", ":127.0.1.2:listed\ntest\n.bad.example\n"),
    "wild.test": Zone("ip4set", ":127.0.0.2:listed\n0.0.0.0/1\n128.0.0.0/1\n"),
    "wildtest.test": Zone("ip4set", ":127.0.0.2:listed\n127.0.0.2\n0.0.0.0/2\n128.0.0.0/1\n"),
    "empty.test": Zone("ip4set", ""),
    "limit.test": Zone("ip4set", ":127.255.255.254:public\n127.0.0.2\n198.51.100.0/24\n"),
    "parked.test": Zone("ip4set", ":10.0.0.1:parked\n127.0.0.2\n198.51.100.0/24\n"),
}


@pytest.fixture(scope="module", params=["rbldnsd", "unbound"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    require("rbldnsd", "unbound")
    folder = tmp_path_factory.mktemp("rbl")
    with start_rbldnsd(folder, ZONES) as rbldnsd:
        if request.param == "rbldnsd":
            yield f"127.0.0.1:{rbldnsd.port}"
        else:
            with start_unbound(folder, [], {"test": rbldnsd.port}) as resolver:
                yield resolver


@pytest.mark.parametrize(
    ("name", "subject", "answer"),
    [
        ("set", b"198.51.100.7", "127.0.0.2+127.0.0.4"),  # one for each covering entry
        ("trie", b"198.51.100.7", "127.0.0.2"),  # only the narrowest
        ("trie", b"198.51.100.8", "127.0.0.4"),
        ("set", b"198.51.100.77", "-"),
        ("set", b"::ffff:198.51.100.8", "127.0.0.4"),
        ("six", b"2a00:1450::25", "127.0.0.2"),
        ("six", b"2a00:1451::25", "-"),
        ("limit", b"198.51.100.7", "refused_by_list"),
        ("parked", b"198.51.100.7", "outside_127"),
        ("empty", b"198.51.100.7", "-"),
    ],
)
async def test_answers_of_rbldnsd_are_understood(server: str, name: str, subject: bytes, answer: str) -> None:
    async with use(dns_list(name, self_test=""), server=server) as lists:
        assert meaning(await ask(lists, name, subject)) == answer
        assert meaning(await ask(lists, name, subject)) == answer  # and from the cache
        assert lists.states[name].counters.asked == 1


async def test_names_are_looked_up_in_a_list_of_names(server: str) -> None:
    async with use(dns_list("names", ask=Ask.HOSTNAME, codes="127.0.1.2", self_test="test"), server=server) as lists:
        assert meaning(await ask(lists, "names", b"mx.bad.example", b"good.example")) == "127.0.1.2"
        assert meaning(await ask(lists, "names", b"other.example", b"good.example")) == "-"
        await wait_until(lambda: lists.states["names"].health.tested_at is not None, lists)
        assert lists.states["names"].health.usable


@pytest.mark.parametrize(
    ("definition", "why"),
    [
        (dns_list("set"), ""),
        (dns_list("trie"), ""),
        (dns_list("six", self_test="::ffff:127.0.0.2"), ""),
        (dns_list("six"), "127.0.0.2 must be listed, and is not"),
        (dns_list("wild"), "127.0.0.1 must not be listed, and is (127.0.0.2)"),
        (dns_list("wild", self_test=""), ""),
        (dns_list("empty"), "127.0.0.2 must be listed, and is not"),
        (dns_list("limit"), "127.255.255.254: your resolver is a public one, and this list does not answer those"),
        (dns_list("parked"), "10.0.0.1: an answer outside 127.0.0.0/8"),
    ],
    ids=lambda value: f"{value.name}-{value.self_test}" if isinstance(value, DnsList) else "",
)
async def test_self_tests_find_unusable_zones_of_rbldnsd(server: str, definition: DnsList, why: str) -> None:
    async with use(definition, server=server) as lists:
        state = lists.states[definition.name]
        await wait_until(lambda: state.health.tested_at is not None or not definition.self_test, lists)
        assert state.health.usable is (not why)
        assert why in state.health.why
        if why:
            assert meaning(await ask(lists, definition.name)) == "out_of_use"


async def test_a_zone_that_lists_every_address_fails_despite_right_test_entries() -> None:
    """A wildcard does not cover what lies below an existing name (RFC 4592): 127.0.0.1 stays unlisted."""
    script = dict(GOOD)
    wildcard = Reply(["@ 60 A 127.0.0.2"])
    script["1.0.0.127.zen.test"] = Reply(rcode=NXDOMAIN)
    with ScriptedServer(script, otherwise=wildcard) as scripted:
        async with use(dns_list(), server=scripted.address) as lists:
            health = lists.states["zen"].health
            await wait_until(lambda: not health.usable, lists)
            assert "it lists everything" in health.why


# --- A misbehaving server ---------------------------------------------------------------------------------------------

# A reply, and the meaning of the answer (None: any meaning).
REPLIES = [
    (Reply(rcode=SERVFAIL), "servfail"),
    (Reply(rcode=REFUSED), "refused"),
    (Reply(silent=True), "timeout"),
    (Reply(["@ 60 A 127.0.0.2"], cut=3), "malformed"),
    (Reply(["@ 60 A 127.0.0.2"], delay=3 * SHORT_TIMEOUT), "timeout"),
    (Reply(["@ 60 A 127.0.0.2"], delay=0.3), "127.0.0.2"),  # longer than c-ares's own timeout
    (Reply(["@ 60 A 127.255.255.254"]), "refused_by_list"),
    (Reply(["@ 60 A 10.0.0.1"]), "outside_127"),
    (Reply(["@ 60 CNAME listed.example", "listed.example 60 A 127.0.0.3"]), "127.0.0.3"),
    (Reply(["@ 60 TXT nothing"]), "malformed"),
    (Reply(), "-"),
    (Reply(rcode=NXDOMAIN), "-"),
    (Reply(["@ 60 A 127.0.0.2"], truncated=True), "127.0.0.2"),
    (Reply([f"@ 60 A 127.0.{number >> 8}.{number & 255}" for number in range(3000)]), None),
]


@pytest.mark.parametrize(("reply", "answer"), REPLIES, ids=lambda value: value if isinstance(value, str) else "")
async def test_every_reply_leads_to_an_answer_in_time(reply: Reply, answer: str | None) -> None:
    timeout = SHORT_TIMEOUT if answer == "timeout" else LONG_TIMEOUT
    with ScriptedServer({NAME: reply}) as scripted:
        async with use(dns_list(self_test=""), server=scripted.address, timeout=timeout) as lists:
            began = time.monotonic()
            found = await ask(lists)
            assert answer is None or meaning(found) == answer
            if answer == "timeout":
                assert time.monotonic() - began < SHORT_TIMEOUT + 1
            assert lists.in_flight == 0
            assert lists.states["zen"].in_flight == 0


async def test_a_closed_port_is_a_timeout_within_the_deadline() -> None:
    async with use(dns_list(self_test=""), server=f"127.0.0.1:{free_port()}", timeout=SHORT_TIMEOUT) as lists:
        assert meaning(await ask(lists)) == "timeout"


async def test_a_name_has_one_query_in_flight_for_all_lists_and_requests() -> None:
    part = dns_list("part", zone="all.test", codes="127.0.0.2", self_test="")
    both = dns_list("all", self_test=""), part
    script = {"7.100.51.198.all.test": Reply(["@ 60 A 127.0.0.4"], delay=0.2)}
    with ScriptedServer(script) as scripted:
        async with use(*both, server=scripted.address) as lists:
            wanted = [lists.look_up(name, [subject_of(CLIENT)]) for name in ("all", "part") for _ in range(100)]
            assert lists.in_flight == 1
            answers = await asyncio.gather(*wanted)
            assert {meaning(answer) for answer in answers[:100]} == {"127.0.0.4"}
            assert {meaning(answer) for answer in answers[100:]} == {"-"}
            assert scripted.asked.count("7.100.51.198.all.test A") == 1


async def test_questions_in_flight_are_limited_for_each_list() -> None:
    with ScriptedServer({}, otherwise=Reply(silent=True)) as scripted:
        silent, other = dns_list("zen", self_test=""), dns_list("other", self_test="")
        async with use(silent, other, server=scripted.address, lookups=10, timeout=SHORT_TIMEOUT) as lists:
            wanted = [lists.look_up("zen", [subject_of(b"198.51.100.%d" % number)]) for number in range(50)]
            assert lists.in_flight == 10
            assert [waiting.done() for waiting in wanted].count(True) == 40
            assert lists.states["zen"].counters.refused == 40
            beside = lists.look_up("other", [subject_of(CLIENT)])  # the limit of another list is separate
            assert not beside.done()
            assert {meaning(answer) for answer in await asyncio.gather(*wanted, beside)} == {"timeout"}
            assert lists.in_flight == 0


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        (Reply(["@ 5 A 127.0.0.2"]), 60),  # at least a minute
        (Reply(["@ 600 A 127.0.0.2"]), 600),
        (Reply(["@ 86400 A 127.0.0.2"]), 3600),  # at most an hour
        (Reply(["@ 86400 A 127.0.0.200"]), 60),  # not listed
        (Reply(rcode=NXDOMAIN), 60),
        (Reply(rcode=SERVFAIL), 30),
        (Reply(["@ 86400 A 10.0.0.1"]), 30),
    ],
)
async def test_an_answer_is_kept_for_its_time(clock: Clock, reply: Reply, seconds: int) -> None:
    with ScriptedServer({NAME: reply}) as scripted:
        async with use(dns_list(self_test=""), server=scripted.address) as lists:
            await ask(lists)
            clock.ahead = seconds - 2
            assert lists.known_answer("zen", [subject_of(CLIENT)]) is not None
            clock.ahead = seconds + 1
            assert lists.known_answer("zen", [subject_of(CLIENT)]) is None


async def test_the_cache_is_bounded_and_entries_can_be_forgotten() -> None:
    with ScriptedServer({}) as scripted:
        async with use(dns_list(self_test=""), server=scripted.address, cache_size=10) as lists:
            for number in range(50):
                await ask(lists, "zen", b"198.51.100.%d" % number)
            assert lists.cached_subjects == 10
            assert lists.known_answer("zen", [subject_of(b"198.51.100.49")]) is not None
            assert await lists.forget(b"::ffff:198.51.100.49") == 1
            assert lists.known_answer("zen", [subject_of(b"198.51.100.49")]) is None
            assert await lists.forget(b"198.51.100.49") == 0


async def test_a_joint_answer_is_used_no_longer_than_each_of_its_answers(clock: Clock) -> None:
    other = NAME.replace("zen", "other")
    request, both = Request.of({"client_address": CLIENT}), frozenset({"zen", "other"})
    with ScriptedServer({NAME: Reply(["@ 600 A 127.0.0.2"]), other: Reply(rcode=NXDOMAIN)}) as scripted:
        definitions = [dns_list("zen", self_test=""), dns_list("other", zone="other.test", self_test="")]
        async with use(*definitions, server=scripted.address) as lists:
            assert lists.known_answers(both, request, None) == {}
            await asyncio.gather(ask(lists, "zen"), ask(lists, "other"))
            first = lists.known_answers(both, request, None)
            assert {name: meaning(answer) for name, answer in first.items()} == {"zen": "127.0.0.2", "other": "-"}
            assert lists.known_answers(both, request, None) is first
            assert [lists.counters[name].hits for name in ("zen", "other")] == [2, 2]
            assert set(lists.known_answers(frozenset({"zen"}), request, None)) == {"zen"}
            assert lists.known_answers(both, request, None) == first
            changed = dns_list("other", zone="other.test", codes="127.0.0.9", self_test="")
            lists.use([definitions[0], changed], lists._dns, lists._servers)
            assert set(lists.known_answers(both, request, None)) == {"zen"}
            lists.use(definitions, lists._dns, lists._servers)
            await ask(lists, "other")
            assert set(lists.known_answers(both, request, None)) == both
            clock.ahead = 61
            assert set(lists.known_answers(both, request, None)) == {"zen"}
            await ask(lists, "other")
            assert lists.known_answers(both, request, None) == first
            assert await lists.forget(CLIENT) == 1
            assert lists.known_answers(both, request, None) == {}


async def test_a_joint_answer_is_not_used_after_one_of_its_lists_is_out_of_use(clock: Clock) -> None:
    request, both = Request.of({"client_address": CLIENT}), frozenset({"zen", "other"})
    with ScriptedServer(dict(GOOD)) as scripted:
        definitions = [dns_list("zen"), dns_list("other", zone="other.test", self_test="")]
        async with use(*definitions, server=scripted.address) as lists:
            health = lists.states["zen"].health
            await wait_until(lambda: health.tested_at is not None, lists)
            await asyncio.gather(ask(lists, "zen"), ask(lists, "other"))
            assert {meaning(answer) for answer in lists.known_answers(both, request, None).values()} == {"-"}
            scripted.script.clear()
            clock.ahead = 3700
            await wait_until(lambda: not health.usable, lists)
            clock.ahead = 0
            answers = lists.known_answers(both, request, None)
            assert {name: meaning(answer) for name, answer in answers.items()} == {"zen": "out_of_use", "other": "-"}


async def test_without_a_cache_every_request_asks() -> None:
    with ScriptedServer({}) as scripted:
        async with use(dns_list(self_test=""), server=scripted.address, cache_size=0) as lists:
            assert meaning(await ask(lists)) == "-"
            assert lists.known_answer("zen", [subject_of(CLIENT)]) is None


# --- In use and out of use --------------------------------------------------------------------------------------------


async def test_a_refusal_starts_a_self_test_that_takes_the_list_out_of_use_and_a_later_one_brings_it_back(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    script = {**GOOD, NAME: Reply(["@ 600 A 127.0.0.2"])}
    with ScriptedServer(dict(script)) as scripted:
        async with use(dns_list(), server=scripted.address) as lists:
            health = lists.states["zen"].health
            await wait_until(lambda: health.tested_at is not None, lists)
            assert meaning(await ask(lists)) == "127.0.0.2"
            scripted.otherwise = Reply(["@ 60 A 127.255.255.254"])
            scripted.script.clear()
            clock.ahead = 10
            assert meaning(await ask(lists, "zen", b"198.51.100.8")) == "refused_by_list"
            await wait_until(lambda: not health.usable, lists)
            asked = len(scripted.asked)
            assert meaning(await ask(lists)) == "out_of_use"  # although an answer is cached
            assert len(scripted.asked) == asked
            (line,) = [message for message in caplog.messages if "zen" in message]
            assert "zen: 127.255.255.254: your resolver is a public one, and this list does not answer those" in line
            scripted.otherwise = Reply(rcode=NXDOMAIN)
            scripted.script.update(script)
            clock.ahead = 21
            await wait_until(lambda: health.usable, lists)
            asked = len(scripted.asked)
            assert meaning(await ask(lists)) == "127.0.0.2"  # asked again: earlier answers are not used
            assert len(scripted.asked) == asked + 1


async def test_a_silent_list_is_out_of_use_after_ten_questions_and_back_at_its_first_answer(clock: Clock) -> None:
    with ScriptedServer(dict(GOOD)) as scripted:
        async with use(dns_list(), server=scripted.address, timeout=SHORT_TIMEOUT) as lists:
            health = lists.states["zen"].health
            await wait_until(lambda: health.tested_at is not None, lists)
            scripted.script.clear()
            scripted.otherwise = Reply(silent=True)
            clock.ahead = 10
            wanted = [lists.look_up("zen", [subject_of(b"198.51.100.%d" % number)]) for number in range(20)]
            assert {meaning(answer) for answer in await asyncio.gather(*wanted)} == {"timeout"}
            late = lists.look_up("zen", [subject_of(CLIENT)])
            await wait_until(lambda: not health.usable, lists)
            assert meaning(await late) in {"out_of_use", "timeout"}
            assert lists.states["zen"].in_flight == 0
            scripted.script.update(GOOD)
            scripted.otherwise = Reply(rcode=NXDOMAIN)
            clock.ahead = 10 + 6
            await wait_until(lambda: health.usable, lists)


async def test_a_resolver_that_is_not_up_yet_leaves_the_list_in_use() -> None:
    port = free_port()
    async with use(dns_list(), server=f"127.0.0.1:{port}", timeout=SHORT_TIMEOUT) as lists:
        health = lists.states["zen"].health
        await wait_until(lambda: health.tested_at is not None, lists)
        assert health.usable
        with ScriptedServer({**GOOD, NAME: Reply(["@ 60 A 127.0.0.2"])}, port=port):
            assert meaning(await ask(lists)) == "127.0.0.2"


async def test_a_reload_keeps_health_and_answers_of_an_unchanged_list() -> None:
    with ScriptedServer({NAME: Reply(["@ 60 A 127.0.0.2"])}) as scripted:
        kept, changed = dns_list("zen"), dns_list("other", self_test="")
        async with use(kept, changed, server=scripted.address) as lists:
            await wait_until(lambda: not lists.states["zen"].health.usable, lists)  # it has no test entry
            await ask(lists, "other", CLIENT)
            dns, servers = lists._dns, lists._servers
            lists.use([kept, dns_list("other", self_test="", codes="127.0.0.9")], dns, servers)
            assert not lists.states["zen"].health.usable
            assert lists.known_answer("other", [subject_of(CLIENT)]) is None
            lists.use([dns_list("zen", self_test="")], dns, servers)
            assert lists.states["zen"].health.usable
            assert set(lists.states) == {"zen"}


async def test_a_bug_is_logged_once_and_requests_get_an_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    with ScriptedServer({}) as scripted:
        async with use(dns_list(self_test=""), server=scripted.address) as lists:
            monkeypatch.setattr(module, "read_list_answer", broken)
            for number in range(3):
                assert meaning(await ask(lists, "zen", b"198.51.100.%d" % number)) == "malformed"
            assert lists.bugs == 3
            assert caplog.text.count("Traceback") == 1
            assert lists.in_flight == 0


async def test_a_list_without_a_subject_is_not_asked() -> None:
    async with use(dns_list(self_test=""), server=f"127.0.0.1:{free_port()}") as lists:
        answer = lists.known_answer("zen", [])
        assert answer is not None
        assert answer.status is ListStatus.NOT_LISTED
        assert not answer.asked
