"""Forward-confirmed reverse DNS, over a map of records and a map of failures."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.core.address import parse_address
from policyd.core.identity import Identity, Reason, Status, may_be_host
from policyd.dns.identify import MAX_CLAIMED, MAX_TRIED, IdentityLookups, identify
from tests.name_server import Zone

PTR = "1.2.0.192.in-addr.arpa PTR"
PTR6 = "1" + ".0" * 23 + ".8.b.d.0.1.0.0.2.ip6.arpa PTR"
VERIFIED, MISMATCH, MISSING, ERROR = Status


def identity(zone: IdentityLookups, client_address: bytes = b"192.0.2.1") -> Identity:
    """Runs the coroutine without an event loop, because a dict never waits."""
    running = identify(parse_address(client_address), zone)
    with pytest.raises(StopIteration) as end:
        running.send(None)
    found = end.value.value
    assert isinstance(found, Identity)
    return found


@pytest.mark.parametrize(
    ("records", "failures", "want"),
    [
        pytest.param({PTR: ["mail.example"], "mail.example A": ["192.0.2.1"]}, {},
                     Identity(VERIFIED, (b"mail.example",)), id="the name has the address"),
        pytest.param({PTR: ["Mail.EXAMPLE."], "mail.example A": ["192.0.2.9", "192.0.2.1"]}, {},
                     Identity(VERIFIED, (b"mail.example",)), id="case, trailing dot, one address of several"),
        pytest.param({PTR: ["b.example", "a.example"], "a.example A": ["192.0.2.1"], "b.example A": ["192.0.2.1"]}, {},
                     Identity(VERIFIED, (b"a.example", b"b.example")), id="several verify, sorted"),
        pytest.param({PTR: ["b.example", "a.example"], "b.example A": ["192.0.2.1"]}, {},
                     Identity(VERIFIED, (b"b.example",), (b"a.example",)), id="one verifies, the other is claimed"),
        pytest.param({PTR: ["a.example", "A.example."], "a.example A": ["192.0.2.1"]}, {},
                     Identity(VERIFIED, (b"a.example",)), id="the same name twice"),
        pytest.param({PTR: ["mail.example"], "mail.example A": ["192.0.2.9"]}, {},
                     Identity(MISMATCH, claimed=(b"mail.example",)), id="another address"),
        pytest.param({PTR: ["mail.example"]}, {},
                     Identity(MISMATCH, claimed=(b"mail.example",)), id="no address"),
        pytest.param({PTR: ["mail.example"], "mail.example AAAA": ["::ffff:192.0.2.1"]}, {},
                     Identity(MISMATCH, claimed=(b"mail.example",)), id="an address of the other family"),
        pytest.param({}, {}, Identity(MISSING), id="no PTR record"),
        pytest.param({}, {PTR: Reason.SERVFAIL},
                     Identity(ERROR, reason=Reason.SERVFAIL, names_known=False), id="the PTR lookup fails"),
        pytest.param({PTR: ["mail.example"]}, {"mail.example A": Reason.TIMEOUT},
                     Identity(ERROR, claimed=(b"mail.example",), reason=Reason.TIMEOUT), id="the forward lookup fails"),
        pytest.param({PTR: ["a.example", "b.example"], "b.example A": ["192.0.2.1"]}, {"a.example A": Reason.REFUSED},
                     Identity(VERIFIED, (b"b.example",), (b"a.example",)), id="one fails, the other verifies"),
        pytest.param({PTR: ["a.example", "b.example"]}, {"b.example A": Reason.REFUSED},
                     Identity(ERROR, claimed=(b"a.example", b"b.example"), reason=Reason.REFUSED),
                     id="one fails, the other does not verify"),
        pytest.param({PTR: ["c.example", "b.example"]},
                     {"b.example A": Reason.MALFORMED, "c.example A": Reason.TIMEOUT},
                     Identity(ERROR, claimed=(b"b.example", b"c.example"), reason=Reason.MALFORMED),
                     id="several fail: the reason of the first name"),
    ],
)  # fmt: skip
def test_records_lead_to_a_status_names_and_a_reason(
    records: dict[str, list[str]], failures: dict[str, Reason], want: Identity
) -> None:
    assert identity(Zone(records, failures)) == want


@pytest.mark.parametrize("address", [b"192.0.2.1", b"::ffff:192.0.2.1", b"::FFFF:c000:201"])
def test_a_mapped_address_is_the_ipv4_address_in_both_directions(address: bytes) -> None:
    zone = Zone({PTR: ["mail.example"], "mail.example A": ["192.0.2.1"]})
    assert identity(zone, address) == Identity(VERIFIED, (b"mail.example",))
    assert zone.asked == [PTR, "mail.example A"]


def test_only_the_address_family_of_the_client_is_looked_up() -> None:
    records = {"mail.example A": ["192.0.2.1"], "mail.example AAAA": ["2001:db8::1"]}
    for ptr, address, kind in ((PTR, b"192.0.2.1", "A"), (PTR6, b"2001:db8::1", "AAAA")):
        zone = Zone({ptr: ["mail.example"], **records})
        assert identity(zone, address) == Identity(VERIFIED, (b"mail.example",))
        assert zone.asked == [ptr, f"mail.example {kind}"]


@pytest.mark.parametrize("address", [b"unknown", b"", b"fe80::1%eth0", b"192.0.2", b"192.0.2.1\n", b"\xff"])
def test_an_invalid_address_is_an_error_without_a_query(address: bytes) -> None:
    zone = Zone({PTR: ["mail.example"]})
    assert identity(zone, address) == Identity(ERROR, reason=Reason.NO_ADDRESS, names_known=False)
    assert zone.asked == []


@pytest.mark.parametrize(
    "name",
    [
        *("192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "[192.0.2.1]", "12345", "1.2", ".", "unknown", "UNKNOWN."),
        *("-a.example", "a-.example", "a..example", "a b.example", "a/b.example", "*.example", "a.example-"),
        *(r"a\010b.example", r"a\.b.example", r"\000", "a\nb.example", "ü.example", "a" * 64 + ".example"),
        ".".join(["a" * 63] * 4),
    ],
)  # fmt: skip
def test_a_name_that_no_host_can_have_is_claimed_and_not_looked_up(name: str) -> None:
    zone = Zone({PTR: [name], f"{name} A": ["192.0.2.1"]})
    found = identity(zone)
    assert found.status is MISMATCH
    assert found.claimed == (name.lower().removesuffix(".").encode("latin-1") or b".",)
    assert zone.asked == [PTR]


@pytest.mark.parametrize(
    "name",
    [
        *("a.example", "_dmarc.example", "host_1.example", "_", "a", "localhost", "1.example", "1a", "0x7f.1", "1-1"),
        *("xn--bcher-kva.example", "a" * 63 + ".example", "3com.com", "unknown.example", ".".join(["a" * 62] * 4)),
    ],
)  # fmt: skip
def test_a_name_that_a_host_can_have_is_looked_up(name: str) -> None:
    assert identity(Zone({PTR: [name], f"{name} A": ["192.0.2.1"]})) == Identity(VERIFIED, (name.encode(),))


def test_ten_of_many_names_are_tried_and_all_are_claimed() -> None:
    names = [f"{letter}.example" for letter in "ponmlkjihgfedcba"]
    zone = Zone({PTR: names, "k.example A": ["192.0.2.1"]})
    assert identity(zone) == Identity(MISMATCH, claimed=tuple(name.encode() for name in sorted(names)))
    assert zone.asked[1:] == [f"{letter}.example A" for letter in "abcdefghij"]
    zone = Zone({PTR: names, "j.example A": ["192.0.2.1"]})
    assert identity(zone).verified == (b"j.example",)


def test_invalid_names_do_not_count_towards_the_ten() -> None:
    zone = Zone({PTR: [*map(str, range(20)), "mail.example"], "mail.example A": ["192.0.2.1"]})
    assert identity(zone).verified == (b"mail.example",)


def test_the_names_kept_are_bounded_and_include_those_tried() -> None:
    tried = [f"z{number:04}.example" for number in range(2000)]
    zone = Zone({PTR: [f"{number:04}" for number in range(2000)] + tried})
    found = identity(zone)
    assert found.status is MISMATCH
    assert len(zone.asked) == 1 + MAX_TRIED
    assert len(found.claimed) == MAX_CLAIMED + MAX_TRIED
    assert list(found.claimed) == sorted(found.claimed)
    assert {name.encode() for name in tried[:MAX_TRIED]} <= set(found.claimed)


ANSWERS = st.sampled_from(list(Reason)) | st.lists(st.binary(max_size=30) | st.sampled_from([b"a.example", b"b"]))
FORWARD = st.sampled_from(list(Reason)) | st.lists(st.tuples(st.just(4), st.sampled_from([0xC0000201, 0, 1 << 31])))


class DrawnLookups:
    """Lookups whose answers hypothesis draws; `failed` says whether an answer was a failure."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.draw = draw
        self.failed = False

    def _record(self, answer: Reason | list[Any]) -> Reason | tuple[Any, ...]:
        self.failed |= isinstance(answer, Reason)
        return answer if isinstance(answer, Reason) else tuple(answer)

    async def names(self, name: bytes) -> Reason | tuple[bytes, ...]:
        return self._record(self.draw(ANSWERS))

    async def addresses(self, names: Sequence[bytes], version: int) -> list[Reason | tuple[tuple[int, int], ...]]:
        assert 0 < len(names) <= MAX_TRIED
        assert all(map(may_be_host, names))
        return [self._record(self.draw(FORWARD)) for _ in names]


@given(st.data(), st.sampled_from([b"192.0.2.1", b"::ffff:192.0.2.1", b"2001:db8::1", b"unknown"]))
def test_every_dns_answer_leads_to_one_of_four_statuses(data: st.DataObject, address: bytes) -> None:
    lookups = DrawnLookups(data.draw)
    found = identity(lookups, address)
    assert bool(found.verified) == (found.status is VERIFIED)
    assert (found.reason is not None) == (found.status is ERROR)
    assert found.names_known or found.status is ERROR
    assert bool(found.claimed) or found.status is not MISMATCH
    assert not (found.status is MISSING and found.claimed)
    assert not lookups.failed or found.status in {VERIFIED, ERROR}
    assert list(found.claimed) == sorted(set(found.claimed))
    assert not set(found.claimed) & set(found.verified)
