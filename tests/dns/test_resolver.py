"""The resolver with a real unbound, and with a misbehaving server."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from policyd.config.settings import Dns, parse_dns_server
from policyd.core.address import parse_address
from policyd.core.identity import Identity, Reason, Status, with_claimed
from policyd.dns import channels
from policyd.dns import resolver as module
from policyd.dns.answers import AAAA, MAX_SECONDS, PTR, A, RecordType, read_answer
from policyd.dns.identify import MAX_CLAIMED
from policyd.dns.lookup import QueryTrace
from policyd.dns.resolver import Resolver, look_up_once
from tests.name_server import (
    FORMERR,
    MANY_NAMES,
    NOERROR,
    NOTIMP,
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    YXDOMAIN,
    Reply,
    ScriptedServer,
    claim,
    host,
    reverse,
    start_unbound,
)
from tests.ports import free_port
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VERIFIED, MISMATCH, MISSING, ERROR = Status

# The client and its name in most tests.
CLIENT, CLIENT_PTR, NAME = b"192.0.2.1", reverse("192.0.2.1"), "mail.example"
GOOD: dict[str, Reply] = {CLIENT_PTR: Reply([f"@ 300 PTR {NAME}"]), NAME: Reply(["@ 300 A 192.0.2.1"])}

# Timeouts in seconds for questions that must be answered, even on a busy machine; for tests that also have questions
# without an answer; and for questions that must not be answered.
LONG_TIMEOUT, MEDIUM_TIMEOUT, SHORT_TIMEOUT = 30, 3, 0.4


def dns(*servers: str, **settings: Any) -> Dns:
    return Dns(servers=tuple(map(parse_dns_server, servers)), **{"timeout": LONG_TIMEOUT, **settings})


def untimed(identity: Identity) -> Identity:
    """Returns the identity without its duration."""
    return identity._replace(seconds=0.0)


def error(reason: Reason) -> Identity:
    """Returns the identity after a failed PTR lookup."""
    return Identity(ERROR, reason=reason, names_known=False)


class Clock:
    """The monotonic clock of the resolver, which a test can advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        for each in (module, channels):
            monkeypatch.setattr(each, "monotonic", lambda: time.monotonic() + self.ahead)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents retries on a busy machine, for tests that count questions."""
    monkeypatch.setattr(channels, "FAST_SECONDS", LONG_TIMEOUT)


# --- A real unbound ---------------------------------------------------------------------------------------------------

RECORDS = [
    *host("mail.example.", "192.0.2.1"),
    *host("mail6.example.", "2001:db8::1"),
    *host("several-a.example.", "192.0.2.2"),
    *host("several-b.example.", "192.0.2.2"),
    *claim("elsewhere.example.", "192.0.2.3"),
    "elsewhere.example. 300 IN A 192.0.2.99",
    *claim("nowhere.example.", "192.0.2.4"),
    *claim("192.0.2.6.", "192.0.2.6"),
    *claim("host.silent.test.", "192.0.2.7"),
    *claim("host.refused.test.", "192.0.2.8"),
    "9.2.0.192.in-addr.arpa. 300 IN TXT x",
    # The IPv4 name of a client that connects over IPv6.
    *claim("mail.example.", "2001:db8::4"),
]


# Classless delegation (RFC 2317): aliases lead to the PTR record and to the address of the name.
DELEGATED = {
    "5.113.0.203.in-addr.arpa": Reply(["@ 300 CNAME 5.0/25.113.0.203.in-addr.arpa"]),
    "5.0/25.113.0.203.in-addr.arpa": Reply(["@ 200 PTR Behind.delegated.test"]),
    "behind.delegated.test": Reply(["@ 300 CNAME there.delegated.test"]),
    "there.delegated.test": Reply(["@ 100 A 203.0.113.5"]),
    "6.113.0.203.in-addr.arpa": Reply(["@ 300 CNAME 6.0/25.113.0.203.in-addr.arpa"]),
    "7.113.0.203.in-addr.arpa": Reply(["@ 300 CNAME 7.0/25.113.0.203.in-addr.arpa"]),
    "7.0/25.113.0.203.in-addr.arpa": Reply(["@ 300 CNAME 7.113.0.203.in-addr.arpa"]),
    "9.113.0.203.in-addr.arpa": Reply(["@ 300 CNAME 9.0/25.113.0.203.in-addr.arpa"]),
    "9.0/25.113.0.203.in-addr.arpa": Reply(["@ 200 PTR Once.delegated.test"]),
    "once.delegated.test": Reply(["@ 100 A 203.0.113.9"]),
    "8.113.0.203.in-addr.arpa": Reply(["x.delegated.test 300 PTR mail.example"]),
}


@pytest.fixture(scope="module")
def unbound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    require("unbound")
    with (
        ScriptedServer({}, otherwise=Reply(silent=True)) as silent,
        ScriptedServer({}, otherwise=Reply(rcode=REFUSED)) as refuses,
        ScriptedServer(DELEGATED) as delegated,
    ):
        zones = {
            "silent.test": silent.port,
            "refused.test": refuses.port,
            "100.51.198.in-addr.arpa": refuses.port,
            "delegated.test": delegated.port,
            "113.0.203.in-addr.arpa": delegated.port,
        }
        with start_unbound(tmp_path_factory.mktemp("unbound"), RECORDS, zones) as address:
            yield address


@pytest.mark.parametrize(
    ("client_address", "want"),
    [
        (b"192.0.2.1", Identity(VERIFIED, (b"mail.example",))),
        (b"::ffff:192.0.2.1", Identity(VERIFIED, (b"mail.example",))),
        (b"2001:db8::1", Identity(VERIFIED, (b"mail6.example",))),
        (b"2001:DB8:0:0::1", Identity(VERIFIED, (b"mail6.example",))),
        (b"192.0.2.2", Identity(VERIFIED, (b"several-a.example", b"several-b.example"))),
        (b"192.0.2.3", Identity(MISMATCH, claimed=(b"elsewhere.example",))),
        (b"192.0.2.4", Identity(MISMATCH, claimed=(b"nowhere.example",))),
        (b"203.0.113.5", Identity(VERIFIED, (b"behind.delegated.test",))),
        (b"203.0.113.6", Identity(MISSING)),
        (b"203.0.113.7", error(Reason.SERVFAIL)),  # aliases in a loop
        (b"203.0.113.8", Identity(MISSING)),  # a record of another name, which unbound leaves out
        (b"192.0.2.6", Identity(MISMATCH, claimed=(b"192.0.2.6",))),
        (b"2001:db8::4", Identity(MISMATCH, claimed=(b"mail.example",))),
        (b"192.0.2.9", Identity(MISSING)),
        (b"192.0.2.10", Identity(MISSING)),
        (b"192.0.2.7", Identity(ERROR, claimed=(b"host.silent.test",), reason=Reason.TIMEOUT)),
        (b"192.0.2.8", Identity(ERROR, claimed=(b"host.refused.test",), reason=Reason.SERVFAIL)),
        (b"198.51.100.1", Identity(ERROR, reason=Reason.SERVFAIL, names_known=False)),
        (b"unknown", Identity(ERROR, reason=Reason.NO_ADDRESS, names_known=False)),
    ],
)
@pytest.mark.slow
async def test_identities_from_a_real_resolver(unbound: str, client_address: bytes, want: Identity) -> None:
    resolver = Resolver(dns(unbound, timeout=MEDIUM_TIMEOUT if want.reason is Reason.TIMEOUT else LONG_TIMEOUT))
    try:
        assert untimed(await resolver.look_up(parse_address(client_address))) == want
        if want.names_known:
            assert resolver.cached(parse_address(client_address)) == want
    finally:
        await resolver.close()


async def test_a_query_is_shown_with_its_answer_and_time(unbound: str) -> None:
    identity, trace = await look_up_once(dns(unbound), parse_address(b"203.0.113.9"))
    assert untimed(identity) == Identity(VERIFIED, (b"once.delegated.test",))
    assert [query._replace(seconds=0.0) for query in trace] == [
        QueryTrace(b"9.113.0.203.in-addr.arpa", "PTR", (b"Once.delegated.test",), 200, 0.0),
        QueryTrace(b"once.delegated.test", "A", ((4, 0xCB007109),), 100, 0.0),
    ]
    assert all(0 < query.seconds < identity.seconds for query in trace)
    _, trace = await look_up_once(dns(unbound), parse_address(b"192.0.2.10"))
    assert [query._replace(seconds=0.0) for query in trace] == [
        QueryTrace(b"10.2.0.192.in-addr.arpa", "PTR", (), None, 0.0)
    ]


@pytest.mark.usefixtures("no_retries")
async def test_a_name_in_the_hosts_file_is_looked_up_in_dns(unbound: str) -> None:
    """`localhost` is in every hosts file, and getaddrinfo knows numbers without asking."""
    with ScriptedServer({reverse("127.0.0.1"): Reply(["@ 300 PTR localhost", "@ 300 PTR 0x7f000001"])}) as server:
        identity, _ = await look_up_once(dns(server.address), parse_address(b"127.0.0.1"))
    assert untimed(identity) == Identity(MISMATCH, claimed=(b"0x7f000001", b"localhost"))
    assert sorted(server.asked) == ["0x7f000001 A", "1.0.0.127.in-addr.arpa PTR", "localhost A"]


# --- A server that misbehaves -----------------------------------------------------------------------------------------


ONE_PTR = [f"@ 300 PTR {NAME}"]
CLAIMED = Identity(MISMATCH, claimed=(b"mail.example",))


@pytest.mark.parametrize(
    ("reply", "want"),
    [
        pytest.param(Reply(silent=True), error(Reason.TIMEOUT), id="silence"),
        pytest.param(Reply(rcode=SERVFAIL), error(Reason.SERVFAIL), id="SERVFAIL"),
        pytest.param(Reply(rcode=REFUSED), error(Reason.REFUSED), id="REFUSED"),
        pytest.param(Reply(rcode=FORMERR), error(Reason.MALFORMED), id="FORMERR"),
        pytest.param(Reply(rcode=NOTIMP), error(Reason.MALFORMED), id="NOTIMP"),
        pytest.param(
            Reply(rcode=YXDOMAIN), error(Reason.MALFORMED), id="a response code that c-ares takes for a success"
        ),
        pytest.param(Reply(rcode=NXDOMAIN), Identity(MISSING), id="NXDOMAIN"),
        pytest.param(Reply(rcode=NOERROR), Identity(MISSING), id="NODATA"),
        pytest.param(Reply(ONE_PTR, cut=3), error(Reason.MALFORMED), id="cut short"),
        pytest.param(Reply(junk=b"junk"), error(Reason.MALFORMED), id="not a DNS message"),
        pytest.param(Reply(ONE_PTR, wrong_id=True), error(Reason.TIMEOUT), id="another id"),
        pytest.param(
            Reply(ONE_PTR, other_question="x.example"), error(Reason.TIMEOUT), id="the answer to another question"
        ),
        pytest.param(
            Reply(["x.example 300 PTR mail.example"]), error(Reason.MALFORMED), id="only records of other names"
        ),
        pytest.param(Reply([*ONE_PTR, "x.example 300 PTR bad.example"]), CLAIMED, id="records of other names as well"),
        pytest.param(Reply(["@ 300 CNAME x.example"]), Identity(MISSING), id="an alias without the record"),
        pytest.param(Reply(["@ 300 CNAME x.example", "x.example 300 PTR mail.example"]), CLAIMED, id="an alias"),
        pytest.param(
            Reply(["x.example 300 PTR mail.example", "@ 300 CNAME X.example"]), CLAIMED, id="an alias after its record"
        ),
        pytest.param(
            Reply(["@ 300 CNAME x.example", f"x.example 300 CNAME {CLIENT_PTR}"]),
            error(Reason.MALFORMED),
            id="aliases in a loop",
        ),
        pytest.param(
            Reply(["@ 300 CNAME x.example", "y.example 300 PTR bad.example"]),
            Identity(MISSING),
            id="an alias and a record of another name",
        ),
        pytest.param(Reply(ONE_PTR, truncated=True), CLAIMED, id="truncated over UDP, complete over TCP"),
        pytest.param(
            Reply([r"@ 300 PTR a\010\027[2J\"\;b\.c.example"]),
            Identity(MISMATCH, claimed=(rb"a\010\027[2j\"\;b\.c.example",)),
            id="control characters",
        ),
        pytest.param(
            Reply([r"@ 300 PTR \255\000.example"]),
            Identity(MISMATCH, claimed=(rb"\255\000.example",)),
            id="bytes outside ASCII",
        ),
        pytest.param(Reply(["@ 300 PTR ."]), Identity(MISMATCH, claimed=(b".",)), id="the root"),
        pytest.param(Reply(["@ 300 TXT x"]), error(Reason.MALFORMED), id="records of another type only"),
        pytest.param(Reply(["@ 4294967295 PTR mail.example"]), CLAIMED, id="the longest TTL"),
    ],
)
async def test_unusual_answers_give_the_right_identity(reply: Reply, want: Identity) -> None:
    with ScriptedServer({CLIENT_PTR: reply, "bad.example": Reply(["@ 300 A 192.0.2.1"])}) as server:
        identity, trace = await look_up_once(
            dns(server.address, timeout=SHORT_TIMEOUT if want.reason is Reason.TIMEOUT else LONG_TIMEOUT),
            parse_address(CLIENT),
        )
    assert untimed(identity) == want
    assert trace[0].name.decode() == CLIENT_PTR


async def test_a_truncated_answer_without_tcp_is_a_timeout() -> None:
    with ScriptedServer({CLIENT_PTR: Reply(ONE_PTR, truncated=True)}, tcp=False) as server:
        identity, _ = await look_up_once(dns(server.address, timeout=SHORT_TIMEOUT), parse_address(CLIENT))
    assert untimed(identity) == error(Reason.TIMEOUT)


async def test_thousands_of_ptr_records_are_read_and_bounded() -> None:
    records = [f"@ 300 PTR {number}.e" for number in range(3200)]  # as many as fit 64 KiB without name compression
    with ScriptedServer({CLIENT_PTR: Reply(records)}, otherwise=Reply(["@ 300 A 192.0.2.1"])) as server:
        identity, trace = await look_up_once(dns(server.address), parse_address(CLIENT))
    names = sorted(f"{number}.e".encode() for number in range(3200))
    assert list(identity.verified) == names[:10]
    assert list(identity.claimed) == names[10:MAX_CLAIMED]
    assert len(trace) == 11


@pytest.mark.slow
async def test_the_ptr_names_are_known_although_the_forward_servers_are_silent() -> None:
    script = {CLIENT_PTR: Reply([*ONE_PTR, "@ 300 PTR other.example"]), NAME: Reply(silent=True)}
    with ScriptedServer(script) as server:
        identity, trace = await look_up_once(dns(server.address, timeout=MEDIUM_TIMEOUT), parse_address(CLIENT))
    assert untimed(identity) == Identity(ERROR, claimed=(b"mail.example", b"other.example"), reason=Reason.TIMEOUT)
    assert [(query.name, query.answer) for query in trace[1:]] == [
        (b"mail.example", Reason.TIMEOUT),
        (b"other.example", ()),
    ]


@pytest.mark.slow
async def test_all_queries_of_a_client_share_one_deadline() -> None:
    delay = MEDIUM_TIMEOUT / 2
    with ScriptedServer({CLIENT_PTR: Reply(ONE_PTR, delay=delay), NAME: Reply(silent=True)}) as server:
        identity, _ = await look_up_once(dns(server.address, timeout=MEDIUM_TIMEOUT), parse_address(CLIENT))
    assert untimed(identity) == Identity(ERROR, claimed=(b"mail.example",), reason=Reason.TIMEOUT)
    assert identity.seconds < delay + MEDIUM_TIMEOUT


@pytest.mark.slow
async def test_forward_lookups_run_at_the_same_time() -> None:
    names = [f"{letter}.example" for letter in "abcdefghij"]
    script = {CLIENT_PTR: Reply([f"@ 300 PTR {name}" for name in names])}
    with ScriptedServer(script, otherwise=Reply(["@ 300 A 192.0.2.1"], delay=0.8)) as server:
        identity, _ = await look_up_once(dns(server.address), parse_address(CLIENT))
    assert len(identity.verified) == 10
    assert identity.seconds < 10 * 0.8


@pytest.mark.slow
async def test_a_slow_answer_is_used_after_fast_answers() -> None:
    """After fast answers c-ares uses short timeouts, and would miss a slow answer."""
    quick = {reverse(f"192.0.2.{number}"): Reply(rcode=NXDOMAIN) for number in range(100, 110)}
    with ScriptedServer({**quick, **GOOD, CLIENT_PTR: Reply(ONE_PTR, delay=2.5)}) as server:
        resolver = Resolver(dns(server.address))
        for number in range(100, 110):
            assert untimed(await resolver.look_up(parse_address(b"192.0.2.%d" % number))) == Identity(MISSING)
        assert untimed(await resolver.look_up(parse_address(CLIENT))) == Identity(VERIFIED, (b"mail.example",))
        await resolver.close()


@pytest.mark.slow
async def test_an_answer_of_a_returning_server_reaches_waiting_requests() -> None:
    port = free_port()
    resolver = Resolver(dns(f"127.0.0.1:{port}"))
    waiting = resolver.look_up(parse_address(CLIENT))
    await asyncio.sleep(0.3)
    with ScriptedServer(dict(GOOD), port=port):
        assert untimed(await waiting) == Identity(VERIFIED, (b"mail.example",))
    await resolver.close()


async def test_the_next_server_is_asked_if_one_is_silent_or_refuses() -> None:
    with (
        ScriptedServer({}, otherwise=Reply(silent=True)) as silent,
        ScriptedServer({}, otherwise=Reply(rcode=REFUSED)) as refuses,
        ScriptedServer(dict(GOOD)) as good,
    ):
        for bad in (silent, refuses):
            identity, _ = await look_up_once(dns(bad.address, good.address), parse_address(CLIENT))
            assert untimed(identity) == Identity(VERIFIED, (b"mail.example",))
            assert bad.asked


async def test_a_broken_message_for_one_client_does_not_harm_the_others() -> None:
    script = {CLIENT_PTR: Reply(junk=b"\0" * 12, delay=0.05)}
    with ScriptedServer(script, otherwise=Reply(rcode=NXDOMAIN, delay=0.1)) as server:
        resolver = Resolver(dns(server.address))
        others = [resolver.look_up(parse_address(b"198.51.100.%d" % number)) for number in range(20)]
        broken, *found = await asyncio.gather(resolver.look_up(parse_address(CLIENT)), *others)
        await resolver.close()
    assert untimed(broken) == error(Reason.MALFORMED)
    assert [untimed(identity) for identity in found] == [Identity(MISSING)] * 20


async def test_broken_messages_cost_only_a_few_channels() -> None:
    with ScriptedServer({}, otherwise=Reply(junk=b"\0" * 12, delay=0.01)) as server:
        resolver = Resolver(dns(server.address))
        before = descriptors = len(list(Path("/proc/self/fd").iterdir()))
        asking = asyncio.gather(*(resolver.look_up(parse_address(b"10.0.0.%d" % number)) for number in range(200)))
        while not asking.done():
            descriptors = max(descriptors, len(list(Path("/proc/self/fd").iterdir())))
            await asyncio.sleep(0.005)
        assert {untimed(identity) for identity in await asking} == {error(Reason.MALFORMED)}
        await resolver.close()
    assert descriptors < before + channels.ISOLATED_CHANNELS + 5


@pytest.mark.slow
async def test_an_answer_that_came_while_the_event_loop_was_busy_counts() -> None:
    with ScriptedServer(dict(GOOD)) as server:
        resolver = Resolver(dns(server.address))
        for number in range(100, 110):  # fast answers, after which c-ares uses short timeouts
            await resolver.look_up(parse_address(b"192.0.2.%d" % number))
        asked = len(server.asked)
        waiting = resolver.look_up(parse_address(CLIENT))
        while len(server.asked) == asked:
            await asyncio.sleep(0)
        time.sleep(3 * channels.FAST_SECONDS)  # the loop is busy
        assert untimed(await waiting) == Identity(VERIFIED, (b"mail.example",))
        assert len(server.asked) == asked + 2  # PTR and A, once each
        await resolver.close()


async def test_lookups_need_no_threads() -> None:
    """The exception is the thread in which pycares closes channels."""
    with ScriptedServer({}, otherwise=Reply(rcode=NXDOMAIN)) as server:
        before = len(list(Path("/proc/self/task").iterdir()))
        resolver = Resolver(dns(server.address))
        assert untimed(await resolver.look_up(parse_address(CLIENT))) == Identity(MISSING)
        assert len(list(Path("/proc/self/task").iterdir())) <= before + 1
        await resolver.close()


# --- The cache --------------------------------------------------------------------------------------------------------


HERE, AWAY = "@ 700 A 192.0.2.1", "@ 700 A 192.0.2.9"


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize(
    ("ptr", "forward", "seconds"),
    [
        pytest.param(Reply(["@ 900 PTR mail.example"]), Reply([HERE]), 700, id="the TTL of the forward record"),
        pytest.param(Reply(["@ 500 PTR mail.example"]), Reply([HERE]), 500, id="the TTL of the PTR record"),
        pytest.param(Reply(["@ 400 CNAME x", "x 900 PTR mail.example"]), Reply([HERE]), 400, id="the TTL of an alias"),
        pytest.param(
            Reply(["@ 900 PTR mail.example"]),
            Reply([HERE, "@ 600 A 192.0.2.9"]),
            600,
            id="the smaller TTL of two forward records",
        ),
        pytest.param(Reply(["@ 900 PTR mail.example"]), Reply([AWAY]), 700, id="another address"),
        pytest.param(Reply(["@ 900 PTR mail.example"]), Reply(rcode=NXDOMAIN), 60, id="no forward record"),
        pytest.param(Reply(["@ 900 PTR 1234"]), Reply(), 900, id="a PTR name that is not looked up"),
        pytest.param(Reply(rcode=NXDOMAIN), Reply(), 60, id="no PTR record"),
        pytest.param(Reply(["@ 0 PTR mail.example"]), Reply([HERE]), 60, id="a TTL of 0"),
        pytest.param(Reply(["@ 86400 PTR mail.example"]), Reply(["@ 86400 A 192.0.2.1"]), 3600, id="a TTL of a day"),
        pytest.param(Reply(rcode=SERVFAIL), Reply(), 30, id="an error of the PTR lookup"),
        pytest.param(Reply(["@ 900 PTR mail.example"]), Reply(rcode=SERVFAIL), 30, id="an error of the forward lookup"),
    ],
)
async def test_an_identity_is_kept_for_the_smallest_ttl_within_limits(
    clock: Clock, ptr: Reply, forward: Reply, seconds: float
) -> None:
    with ScriptedServer({CLIENT_PTR: ptr, NAME: forward}) as server:
        resolver = Resolver(dns(server.address))
        first = await resolver.look_up(parse_address(CLIENT))
        asked = len(server.asked)
        clock.ahead = seconds - 1
        assert untimed(await resolver.look_up(parse_address(CLIENT))) == untimed(first)
        assert len(server.asked) == asked
        clock.ahead = seconds + 1
        assert untimed(await resolver.look_up(parse_address(CLIENT))) == untimed(first)
        assert len(server.asked) == 2 * asked
        await resolver.close()


async def test_setting_the_wall_clock_does_not_affect_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(dict(GOOD)) as server:
        resolver = Resolver(dns(server.address))
        await resolver.look_up(parse_address(CLIENT))
        for hours in (-1, 1000):
            now = time.time() + hours * 3600
            monkeypatch.setattr(time, "time", lambda now=now: now)
            assert resolver.cached(parse_address(CLIENT)) is not None
        await resolver.close()


async def test_a_changed_answer_is_found_after_the_ttl(clock: Clock) -> None:
    """c-ares's own cache would keep NODATA for an hour."""
    with ScriptedServer({CLIENT_PTR: Reply()}) as server:
        resolver = Resolver(dns(server.address))
        assert untimed(await resolver.look_up(parse_address(CLIENT))) == Identity(MISSING)
        server.script.update(GOOD)
        clock.ahead = 61
        assert untimed(await resolver.look_up(parse_address(CLIENT))) == Identity(VERIFIED, (b"mail.example",))
        await resolver.close()


async def test_the_cache_is_bounded_and_drops_the_least_recently_used_client() -> None:
    with ScriptedServer({}) as server:
        resolver = Resolver(dns(server.address, cache_size=10))
        addresses = [b"192.0.2.%d" % number for number in range(11)]
        for address in addresses:
            await resolver.look_up(parse_address(address))
            assert resolver.cached(parse_address(addresses[0])) is not None
        assert resolver.cached_clients == 10
        assert resolver.cached(parse_address(addresses[1])) is None
        await resolver.close()


async def test_a_client_with_many_long_names_counts_as_several() -> None:
    names = [f"@ 300 PTR {letter}{number}.{'x' * 60}.{'y' * 60}" for letter in "ab" for number in range(100)]
    with ScriptedServer({CLIENT_PTR: Reply(names)}) as server:
        resolver = Resolver(dns(server.address, cache_size=100))
        for number in range(100, 150):
            await resolver.look_up(parse_address(b"192.0.2.%d" % number))
        identity = await resolver.look_up(parse_address(CLIENT))
        assert len(identity.claimed) == 200
        assert resolver.cached(parse_address(CLIENT)) == untimed(identity)
        assert resolver.cached_clients < 40
        await resolver.close()


async def test_without_a_cache_no_identity_is_kept() -> None:
    with ScriptedServer(dict(GOOD)) as server:
        resolver = Resolver(dns(server.address, cache_size=0))
        assert untimed(await resolver.look_up(parse_address(CLIENT))) == Identity(VERIFIED, (b"mail.example",))
        assert resolver.cached(parse_address(CLIENT)) is None
        await resolver.close()


# --- Many at once -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_retries")
async def test_one_lookup_serves_all_requests_that_wait_for_it() -> None:
    script = {CLIENT_PTR: Reply(ONE_PTR, delay=0.1), NAME: Reply(["@ 300 A 192.0.2.1"])}
    with ScriptedServer(script) as server:
        resolver = Resolver(dns(server.address))
        tasks = [resolver.look_up(parse_address(address)) for address in (CLIENT, b"::ffff:192.0.2.1") * 5]
        assert resolver.in_flight == 1
        assert {untimed(await task) for task in tasks} == {Identity(VERIFIED, (b"mail.example",))}
        await resolver.close()
    assert server.asked == [f"{CLIENT_PTR} PTR", f"{NAME} A"]
    assert (resolver.counters.misses, resolver.counters.joined) == (10, 9)


async def test_a_lookup_without_waiting_requests_fills_the_cache() -> None:
    with ScriptedServer({CLIENT_PTR: Reply(delay=0.1)}) as server:
        resolver = Resolver(dns(server.address))
        resolver.look_up(parse_address(CLIENT))
        while resolver.in_flight:
            await asyncio.sleep(0.01)
        assert resolver.cached(parse_address(CLIENT)) == Identity(MISSING)
        await resolver.close()


async def test_beyond_the_limit_of_lookups_a_client_gets_an_uncached_error() -> None:
    with ScriptedServer({}, otherwise=Reply(rcode=NXDOMAIN, delay=0.2)) as server:
        resolver = Resolver(dns(server.address, lookups=3))
        tasks = [resolver.look_up(parse_address(b"198.51.100.%d" % number)) for number in range(3)]
        assert untimed(await resolver.look_up(parse_address(CLIENT))) == error(Reason.TIMEOUT)
        assert untimed(await resolver.look_up(parse_address(b"198.51.100.0"))) == Identity(MISSING)
        await asyncio.gather(*tasks)
        assert resolver.cached(parse_address(CLIENT)) is None
        assert untimed(await resolver.look_up(parse_address(CLIENT))) == Identity(MISSING)
        await resolver.close()
    assert resolver.counters.refused == 1
    assert resolver.counters.outcomes == {(MISSING, None): 4, (ERROR, Reason.TIMEOUT): 1}


@pytest.mark.parametrize("delay", [0.01, 0.6])
@pytest.mark.slow
async def test_replacing_channels_loses_no_answer(monkeypatch: pytest.MonkeyPatch, delay: float) -> None:
    """Replaces the fast channels and, with a slow server, the slow ones."""
    monkeypatch.setattr(channels, "CHANNEL_QUERIES", 7)
    with ScriptedServer({}, otherwise=Reply(rcode=NXDOMAIN, delay=delay)) as server:
        resolver = Resolver(dns(server.address))
        found = await asyncio.gather(*(resolver.look_up(parse_address(b"10.0.0.%d" % number)) for number in range(100)))
        await resolver.close()
    assert {untimed(identity) for identity in found} == {Identity(MISSING)}
    assert len(server.asked) >= (100 if delay < channels.FAST_SECONDS else 200)


LARGE = Reply([f"@ 300 PTR {name}" for name in MANY_NAMES])


@pytest.mark.usefixtures("no_retries")
@pytest.mark.slow
async def test_waiting_for_an_answer_over_tcp_takes_no_processor_time() -> None:
    with ScriptedServer({CLIENT_PTR: Reply(ONE_PTR, truncated=True, delay=0.5)}) as server:
        resolver = Resolver(dns(server.address))
        began = time.thread_time()
        assert (await resolver.look_up(parse_address(CLIENT))).claimed == (b"mail.example",)
        assert time.thread_time() - began < 0.2
        await resolver.close()


@pytest.mark.slow
async def test_large_answers_take_no_more_than_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "THROTTLED_TIMES", 1e6)
    with ScriptedServer({reverse(f"203.0.113.{number}"): LARGE for number in range(6)}) as server:
        resolver = Resolver(dns(server.address, timeout=MEDIUM_TIMEOUT))
        found = await asyncio.gather(
            *(resolver.look_up(parse_address(b"203.0.113.%d" % number)) for number in range(6))
        )
        assert 1 <= [identity.status for identity in found].count(MISMATCH) <= 2  # as many as come with the first read
        assert {untimed(identity) for identity in found if identity.status is ERROR} == {error(Reason.TIMEOUT)}
        # Over UDP nothing is throttled.
        assert untimed(await resolver.look_up(parse_address(CLIENT))) == Identity(MISSING)
        await resolver.close()


async def test_usual_answers_over_tcp_are_not_throttled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "THROTTLED_TIMES", 1e6)
    with ScriptedServer({}, otherwise=Reply(ONE_PTR, truncated=True)) as server:
        resolver = Resolver(dns(server.address))
        found = await asyncio.gather(
            *(resolver.look_up(parse_address(b"203.0.113.%d" % number)) for number in range(250))
        )
        assert {identity.claimed for identity in found} == {(b"mail.example",)}
        await resolver.close()


@pytest.mark.slow
async def test_reading_continues_after_the_throttle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "THROTTLED_TIMES", 2.0)
    with ScriptedServer({reverse(f"203.0.113.{number}"): LARGE for number in range(4)}) as server:
        resolver = Resolver(dns(server.address))
        found = await asyncio.gather(
            *(resolver.look_up(parse_address(b"203.0.113.%d" % number)) for number in range(4))
        )
        assert {identity.status for identity in found} == {MISMATCH}
        assert {len(identity.claimed) for identity in found} == {MAX_CLAIMED}
        await resolver.close()


# --- Names from Postfix -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_retries")
@pytest.mark.parametrize(
    ("claimed", "want"),
    [
        (b"Mail.Example.", (b"mail.example",)),
        (b"unknown", ()),
        (b"", ()),
        (b"x" * 1000, ()),
        ("m\u00fcller.example".encode(), (b"xn--mller-kva.example",)),
        (b"a\nb", (b"a\nb",)),
    ],
)
async def test_the_name_from_postfix_is_claimed_if_the_ptr_lookup_failed(
    claimed: bytes, want: tuple[bytes, ...]
) -> None:
    with ScriptedServer({CLIENT_PTR: Reply(rcode=SERVFAIL)}) as server:
        resolver = Resolver(dns(server.address))
        for _ in range(2):  # asked, and from the cache
            identity = with_claimed(await resolver.look_up(parse_address(CLIENT)), claimed)
            assert untimed(identity) == Identity(ERROR, claimed=want, reason=Reason.SERVFAIL, names_known=False)
        assert untimed(await resolver.look_up(parse_address(CLIENT))) == error(Reason.SERVFAIL)  # for other requests
        assert resolver.cached(parse_address(CLIENT)) is None
        assert len(server.asked) == 1
        await resolver.close()


@pytest.mark.parametrize("ptr", [Reply(ONE_PTR), Reply(rcode=NXDOMAIN), Reply([*ONE_PTR, "@ 300 PTR x.example"])])
@pytest.mark.parametrize("forward", [Reply(["@ 300 A 192.0.2.1"]), Reply(), Reply(rcode=SERVFAIL)])
async def test_the_name_from_postfix_is_ignored_if_the_ptr_names_are_known(ptr: Reply, forward: Reply) -> None:
    with ScriptedServer({CLIENT_PTR: ptr, NAME: forward}) as server:
        resolver = Resolver(dns(server.address))
        identity = with_claimed(await resolver.look_up(parse_address(CLIENT)), b"lie.example")
        await resolver.close()
    assert b"lie.example" not in identity.claimed + identity.verified
    assert identity.names_known


# --- Beginning and end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run_in_loop", [asyncio.run, uvloop.run])
def test_after_closing_waiting_requests_have_an_answer_and_no_task_is_left(
    run_in_loop: Callable[..., Any],
    recwarn: pytest.WarningsRecorder,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def ask() -> None:
        resolver = Resolver(dns(server.address, timeout=60))
        waiting = [resolver.look_up(parse_address(b"10.0.0.%d" % number)) for number in range(50)]
        await asyncio.sleep(0.4)  # now it is asked again, over a slow channel
        await resolver.close()
        assert {untimed(identity) for identity in await asyncio.gather(*waiting)} == {error(Reason.TIMEOUT)}
        assert resolver.in_flight == 0

    with ScriptedServer({}, otherwise=Reply(silent=True)) as server, caplog.at_level(logging.DEBUG):
        run_in_loop(ask())
    assert [str(warning.message) for warning in recwarn] == []
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
    assert capfd.readouterr() == ("", "")


async def test_closing_ends_a_lookup_that_has_not_begun() -> None:
    with ScriptedServer({}, otherwise=Reply(silent=True)) as server:
        resolver = Resolver(dns(server.address, timeout=60))
        waiting = resolver.look_up(parse_address(CLIENT))  # a task that has had no turn
        async with asyncio.timeout(LONG_TIMEOUT):
            await resolver.close()
        assert untimed(await waiting) == error(Reason.TIMEOUT)
    assert server.asked == []


async def test_a_resolver_that_was_never_asked_can_be_closed() -> None:
    await Resolver(dns("192.0.2.53")).close()


async def test_the_address_of_an_ipv6_server_is_accepted() -> None:
    """No server listens there, so the lookup times out."""
    resolver = Resolver(dns(f"[::1]:{free_port()}", timeout=SHORT_TIMEOUT))
    assert untimed(await resolver.look_up(parse_address(CLIENT))) == error(Reason.TIMEOUT)
    await resolver.close()


async def test_a_bug_is_logged_once_with_its_traceback_and_counts_as_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(module, "identify", broken)
    resolver = Resolver(dns("192.0.2.53"))
    for number in range(3):
        assert untimed(await resolver.look_up(parse_address(b"192.0.2.%d" % number))) == error(Reason.MALFORMED)
    await resolver.close()
    assert [record.exc_info and record.exc_info[0] for record in caplog.records] == [ZeroDivisionError]
    assert resolver.counters.bugs == 3


# --- Reading answers --------------------------------------------------------------------------------------------------

OWNERS = st.sampled_from(["a", "A", "b", "c", "d", ""])


def record(name: str, kind: int, ttl: int, target: str) -> SimpleNamespace:
    return SimpleNamespace(
        name=name, type=kind, ttl=ttl, data=SimpleNamespace(dname=target, cname=target, addr="192.0.2.1")
    )


RECORDS_OF_ANY_KIND = st.builds(
    record, OWNERS, st.sampled_from([1, 2, 5, 5, 5, 12, 28, 999]), st.integers(0, 2**32 - 1), OWNERS
)


@given(st.lists(RECORDS_OF_ANY_KIND, max_size=8), st.sampled_from([PTR, A, AAAA]))
def test_any_set_of_records_is_read_without_raising(answer: list[SimpleNamespace], kind: RecordType) -> None:
    found, ttl = read_answer(answer, "a", kind)
    if isinstance(found, Reason):
        assert (found, ttl) == (Reason.MALFORMED, None)
    elif found:
        assert ttl is not None
        assert 0 <= ttl <= MAX_SECONDS
        assert len(found) <= sum(record.type == kind.number for record in answer)
    else:
        assert ttl is None
        assert any(record.type == 5 for record in answer)


def test_a_chain_of_thousands_of_aliases_takes_less_than_a_second() -> None:
    chain = [record(f"{number}", 5, 300, f"{number + 1}") for number in range(5000)]
    began = time.process_time()
    assert read_answer([*chain, record("5000", 12, 60, "x")], "0", PTR) == ((b"x",), 60)
    assert read_answer([*chain, record("5000", 5, 60, "0")], "0", PTR) == (Reason.MALFORMED, None)
    assert time.process_time() - began < 1
