"""Client addresses: which texts are addresses, and the names of their PTR records."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.core.address import parse_address, reverse_name


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (b"192.0.2.1", (4, 0xC0000201)),
        (b"::ffff:192.0.2.1", (4, 0xC0000201)),
        (b"::FFFF:c000:201", (4, 0xC0000201)),
        (b"::192.0.2.1", (6, 0xC0000201)),
        (b"2001:db8::1", (6, 0x20010DB8 << 96 | 1)),
        (b"192.0.2.1 junk", None),
        (b"0300.0.2.1", None),
        (b"192.0.2", None),
        (b"192.0.2.1\x00", None),
        (b"fe80::1%eth0", None),
        (b"[2001:db8::1]", None),
        (b"unknown", None),
        (b"\xff\xfe", None),
        (b"", None),
    ],
)
def test_addresses_are_parsed_strictly_and_mapped_addresses_as_ipv4(text: bytes, want: tuple[int, int] | None) -> None:
    assert parse_address(text) == want


@given(st.ip_addresses())
def test_names_for_ptr_records_are_those_of_the_standard_library(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    parsed = parse_address(str(address).encode())
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    assert parsed is not None
    assert parsed == (address.version, int(address))
    assert reverse_name(parsed) == address.reverse_pointer.encode()


def test_a_mapped_address_has_the_ptr_name_of_the_ipv4_address() -> None:
    address = parse_address(b"::ffff:192.0.2.1")
    assert address is not None
    assert reverse_name(address) == b"1.2.0.192.in-addr.arpa"
