"""Codes of DNS lists: Postfix's syntax, and which addresses they match."""

from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.config.dns_codes import CodeError, can_match, parse_code


def number(address: str) -> int:
    return int(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("code", "matching", "others"),
    [
        ("127.0.0.2", ["127.0.0.2"], ["127.0.0.3", "127.0.1.2", "10.0.0.2"]),
        ("127.0.0.[2..11]", ["127.0.0.2", "127.0.0.7", "127.0.0.11"], ["127.0.0.1", "127.0.0.12"]),
        ("127.0.[2..9;11..15].[1..3]", ["127.0.2.1", "127.0.9.3", "127.0.15.2"], ["127.0.10.3", "127.0.2.0"]),
        ("127.0.0.[4;9]", ["127.0.0.4", "127.0.0.9"], ["127.0.0.5"]),
        ("127.[0..255].0.[0..255]", ["127.0.0.0", "127.255.0.255"], ["127.0.1.0"]),
        (" 127.0.0.[ 2 ; 4 .. 5 ] ", ["127.0.0.2", "127.0.0.5"], ["127.0.0.3"]),
    ],
)
def test_a_code_matches_the_addresses_that_postfix_documents(code: str, matching: list[str], others: list[str]) -> None:
    parsed = parse_code(code)
    assert [text for text in matching + others if parsed.matches(number(text))] == matching


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "is not a code"),
        ("127.0.0", "is not a code"),
        ("127.0.0.2.3", "is not a code"),
        ("127.0.0.2/31", "is not a number"),
        ("127.0.0.[2", "is not a code"),
        ("127.0.0.]2[", "is not a code"),
        ("127.0.0.[2]3", "is not a code"),
        ("127.0.0.[]", "'' is not a number"),
        ("127.0.0.[2;]", "'' is not a number"),
        ("127.0.0.256", "'256' is not a number from 0 to 255"),
        ("127.0.0.-1", "'-1' is not a number"),
        ("127.0.0.[11..2]", "the range 11..2 is empty; write 2..11"),
        ("127.0.0.[2-11]", "'2-11' is not a number"),
        ("127.0.0.\u0662", "is not a number"),
        ("::2", "is not a code"),
    ],
)
def test_an_invalid_code_has_its_message(code: str, message: str) -> None:
    with pytest.raises(CodeError, match=r".*") as caught:
        parse_code(code)
    assert message in str(caught.value)


@given(st.text(alphabet="0127.[];- ", max_size=30))
def test_any_text_is_a_code_or_a_code_error(text: str) -> None:
    with contextlib.suppress(CodeError):
        parse_code(text)


@pytest.mark.parametrize(
    ("codes", "refused", "possible"),
    [
        ("127.0.0.2", "", True),
        ("10.0.0.2", "", False),
        ("127.255.255.[250..255]", "", False),
        ("127.0.1.255", "", False),
        ("127.0.1.[254;255]", "", True),
        ("127.0.0.1", "", True),
        ("127.0.0.1", "127.0.0.1", False),
        ("127.0.0.[1..2]", "127.0.0.1", True),
        ("127.[0..255].[0..255].[0..255]", "127.[0..255].[0..255].[0..255]", False),
    ],
)
def test_a_code_can_match_if_any_answer_in_127_is_not_a_refusal(codes: str, refused: str, possible: bool) -> None:
    refusals = (parse_code(refused),) if refused else ()
    assert can_match((parse_code(codes),), refusals) is possible
