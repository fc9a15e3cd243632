"""Address ranges become networks, and words that look like addresses are recognised."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.exchange.model import UnsupportedError
from policyd.exchange.values import address_range, looks_like_address


@given(st.ip_addresses(v=4), st.ip_addresses(v=4))
def test_an_ipv4_range_becomes_the_fewest_networks(one: ipaddress.IPv4Address, other: ipaddress.IPv4Address) -> None:
    first, last = sorted((one, other))
    wanted = [str(network) for network in ipaddress.summarize_address_range(first, last)]
    assert [str(network) for network in address_range(f"{first}-{last}")] == wanted


@given(st.ip_addresses(network="2000::/3"), st.integers(0, 1 << 100))
def test_an_ipv6_range_becomes_the_fewest_networks_up_to_64(first: ipaddress.IPv6Address, size: int) -> None:
    last = first + size
    wanted = [str(network) for network in ipaddress.summarize_address_range(first, last)]
    try:
        found = [str(network) for network in address_range(f"{first}-{last}")]
    except UnsupportedError as error:
        assert str(error).endswith(f"it takes {len(wanted)}")
        assert len(wanted) > 64
    else:
        assert found == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("192.0.2.1", True),
        ("192.0.2.0/33", True),
        ("[2001:db8::1]", True),
        ("2001:db8::1 - 2001:db8::9", True),
        ("::ffff:192.0.2.1", True),
        ("1.2.*", True),
        (":", True),
        ("", False),
        ("example", False),
        ("add.fed", False),
        ("a:x", False),
    ],
)
def test_words_that_look_like_addresses_are_recognised(text: str, *, wanted: bool) -> None:
    assert looks_like_address(text) == wanted
