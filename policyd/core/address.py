"""Client addresses: parses and formats them, and makes the names of their PTR records."""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import TypeAlias

# Version (4 or 6) and number. IPv4-mapped IPv6 (RFC 4291 section 2.5.5.2) is IPv4.
Address: TypeAlias = tuple[int, int]


def parse_address(text: bytes) -> Address | None:
    """Returns an address as (version, number); IPv4-mapped IPv6 is IPv4. None if the text is not an address.

    Strict: no zone id, no brackets; IPv4 only as four decimal numbers (no octal, no short form).
    """
    try:
        if 0x3A not in text:  # no colon; searching for its number is ten times as fast as for b":"
            return 4, int.from_bytes(inet_pton(AF_INET, text.decode("ascii")))
        number = int.from_bytes(inet_pton(AF_INET6, text.decode("ascii")))
    except (OSError, ValueError):
        return None
    return (4, number & 0xFFFFFFFF) if number >> 32 == 0xFFFF else (6, number)


def format_address(address: Address) -> str:
    """Returns an address as text."""
    version, number = address
    return inet_ntop(AF_INET, number.to_bytes(4)) if version == 4 else inet_ntop(AF_INET6, number.to_bytes(16))


def reverse_name(address: Address) -> bytes:
    """Returns the name of an address's PTR records, without the trailing dot (RFC 1035 section 3.5, RFC 3596
    section 2.5)."""
    version, number = address
    if version == 4:
        return b"%d.%d.%d.%d.in-addr.arpa" % (number & 255, number >> 8 & 255, number >> 16 & 255, number >> 24)
    return b".".join((b"%032x" % number)[::-1][place : place + 1] for place in range(32)) + b".ip6.arpa"
