"""The meaning of every kind of answer that a DNS list can give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from policyd.core.address import parse_address
from policyd.core.dns_lists import NOT_LISTED, ListStatus, combine, unknown
from policyd.core.identity import Reason
from policyd.dns.list_answers import REFUSALS, explain_refusal, is_refusal, read_list_answer
from tests.dns.lists import dns_list

if TYPE_CHECKING:
    from policyd.core.address import Address


def addresses(text: str) -> tuple[Address, ...]:
    found = [parse_address(word.encode()) for word in text.split()]
    assert None not in found
    return tuple(address for address in found if address is not None)


TABLE = [
    # codes, refused, answer, meaning
    ("127.0.0.[2..11]", "", "127.0.0.2", "listed"),
    ("127.0.0.[2..11]", "", "127.0.0.12", "not listed"),
    ("127.0.0.[2..11]", "", "", "not listed"),
    ("127.0.0.[2..11]", "", "10.0.0.1", "outside_127"),
    ("127.0.0.[2..11]", "", "::1", "outside_127"),
    ("127.0.0.[2..11]", "", "127.0.0.2 10.0.0.1", "listed"),
    ("127.0.0.[2..11]", "", "127.0.0.77 10.0.0.1", "outside_127"),
    ("127.0.0.[2..11]", "", "127.0.0.77 127.0.0.78", "not listed"),
    ("127.0.0.[2..11]", "", "127.0.0.2 127.255.255.254", "listed"),
    ("127.0.0.[2..11]", "", "127.0.0.77 127.255.255.254", "refused_by_list"),
    ("127.0.0.[2..11]", "", "127.255.255.0", "refused_by_list"),
    ("127.[0..255].[0..255].[0..255]", "", "127.255.255.254", "refused_by_list"),
    ("127.[0..255].[0..255].[0..255]", "", "127.255.254.254", "listed"),
    ("127.0.1.[2..255]", "", "127.0.1.255", "refused_by_list"),
    ("127.0.0.[2..11]", "", "127.0.0.1", "refused_by_list"),
    ("127.0.0.[1..11]", "", "127.0.0.1", "listed"),
    ("127.0.0.[2..11]", "", "127.0.0.255", "refused_by_list"),
    ("127.0.0.[2..255]", "", "127.0.0.255", "listed"),
    ("127.0.[0..15].[1..3]", "127.0.10.3", "127.0.10.3", "refused_by_list"),
    ("127.0.[0..15].[1..3]", "127.0.10.3", "127.0.10.2", "listed"),
    ("127.0.[0..15].[1..3]", "127.0.0.77", "127.0.0.77", "refused_by_list"),
]


@pytest.mark.parametrize(("codes", "refused", "answer", "meaning"), TABLE)
def test_an_answer_is_listed_not_listed_or_unknown(codes: str, refused: str, answer: str, meaning: str) -> None:
    found = read_list_answer(dns_list(codes=codes, refused=refused), addresses(answer))
    assert (found.reason or found.status.value) == meaning
    assert found.addresses == (() if meaning == "not listed" else tuple(sorted(answer.split())))


@pytest.mark.parametrize("reason", list(Reason))
def test_a_failed_lookup_is_unknown_with_its_reason(reason: Reason) -> None:
    assert read_list_answer(dns_list(), reason) == unknown(str(reason))


def test_sixteen_of_a_thousand_addresses_are_kept() -> None:
    answer = tuple((4, 127 << 24 | number) for number in range(2, 1002))
    found = read_list_answer(dns_list(), answer)
    assert found.status is ListStatus.LISTED
    assert len(found.addresses) == 16


def test_several_names_are_listed_if_any_is_listed_and_otherwise_unknown_if_any_is_unknown() -> None:
    listed = read_list_answer(dns_list(), addresses("127.0.0.2"))
    also = read_list_answer(dns_list(), addresses("127.0.0.3"))
    failed = unknown("timeout")
    assert combine([NOT_LISTED, failed, listed, also]).addresses == ("127.0.0.2", "127.0.0.3")
    assert combine([NOT_LISTED, failed]) == failed
    assert combine([NOT_LISTED, NOT_LISTED]) == NOT_LISTED
    assert not combine([]).asked


@pytest.mark.parametrize("last", REFUSALS)
def test_each_refusal_is_explained(last: int) -> None:
    assert explain_refusal(f"127.255.255.{last}") == REFUSALS[last]


def test_a_refusal_beside_a_listing_is_detected() -> None:
    assert is_refusal(dns_list(), addresses("127.0.0.2 127.255.255.254"))
    assert not is_refusal(dns_list(), addresses("127.0.0.2"))
    assert not is_refusal(dns_list(), Reason.TIMEOUT)
