"""Converts single values of other systems: networks, ranges, host names, mail addresses.

The functions raise `UnsupportedError` with the reason for an invalid value.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import netaddr

from policyd.config.conditions import CONDITIONS
from policyd.config.entries import parse_entries
from policyd.config.entry_messages import explain_entry
from policyd.core.address import parse_address
from policyd.exchange.model import Term, UnsupportedError, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from policyd.core.address import Address

_ADDRESS_LIKE = re.compile(
    r"\[?(?:[\d.]+|(?=[0-9a-f.]*:)[0-9a-f:.]+)\]?(?:/.*|\s*-\s*(?:[\d.]+|(?=[0-9a-f.]*:)[0-9a-f:.]+))?|[\d.]+\*",
    re.IGNORECASE,
)

# Maximum number of networks for a range: an IPv4 range needs at most 62, and registries assign no IPv6 range that needs
# more than 64.
_MAX_NETWORKS = 64

_MASK = re.compile(r"\d+\.\d+\.\d+\.\d+", re.ASCII)
_LENGTH = re.compile(r"\d{1,3}", re.ASCII)


# For each attribute of a lookup, the condition on exactly one name, and the condition on a name and all names under it.
# No condition compares exactly the domain of a mail address.
EXACT_CONDITIONS = {"client": "hostname", "helo_name": "helo_name"}
SUFFIX_CONDITIONS = {
    "client": "hostname_suffix",
    "helo_name": "helo_name_suffix",
    "sender": "sender_domain",
    "recipient": "recipient_domain",
}


def looks_like_address(text: str) -> bool:
    """Whether a word is meant as an address, network or range (even an invalid one), and not as a name."""
    return _ADDRESS_LIKE.fullmatch(text) is not None


def address(text: str) -> netaddr.IPAddress:
    """Parses an address; an IPv4-mapped address (RFC 4291 section 2.5.5.2) becomes the IPv4 address."""
    version, number = _parse(text)
    return netaddr.IPAddress(number, version)


def network(text: str, on_host_bits: Callable[[], None] | None = None) -> netaddr.IPNetwork:
    """Parses a network, or an address as a network of one address; the prefix may be a netmask (`/255.255.255.0`).

    If host bits are set, they are cleared and `on_host_bits` is called. Without `on_host_bits` the network is refused,
    with a message that names the right network.
    """
    base, slash, prefix = text.partition("/")
    version, number = _parse(base)
    width = 32 if version == 4 else 128
    if not slash:
        return netaddr.IPNetwork((number, width), version=version)
    bits = _prefix_length(text, prefix) - (96 if version == 4 and ":" in base else 0)
    if not 0 <= bits <= width:
        raise UnsupportedError(f"{shown(text)} is not a network")
    found = netaddr.IPNetwork((number, bits), version=version)
    if number & (1 << width - bits) - 1:
        if on_host_bits is None:
            raise UnsupportedError(f"the address has bits set beyond the prefix; the network is {found.cidr}")
        on_host_bits()
    return found.cidr


def _parse(text: str) -> Address:
    found = parse_address(text.encode("utf-8", "replace"))
    if found is None:
        raise UnsupportedError(f"{shown(text)} is not an address")
    return found


def _prefix_length(text: str, prefix: str) -> int:
    if _LENGTH.fullmatch(prefix):
        return int(prefix)
    mask = netaddr.IPAddress(prefix) if _MASK.fullmatch(prefix) and netaddr.valid_ipv4(prefix) else None
    if mask is None or not mask.is_netmask():
        raise UnsupportedError(f"{shown(text)} is not a network")
    return int(mask.netmask_bits())


def address_range(text: str, on_host_bits: Callable[[], None] | None = None) -> list[netaddr.IPNetwork]:
    """Parses `FIRST-LAST`, a network or an address, and returns the fewest networks for it.

    `on_host_bits` is as in `network`.
    """
    first, dash, last = text.partition("-")
    if not dash:
        return [network(text.strip(), on_host_bits)]
    start, end = address(first.strip()), address(last.strip())
    if start.version != end.version:
        raise UnsupportedError(f"{shown(text)} is not a range: one end is IPv4, the other IPv6")
    if start > end:
        raise UnsupportedError(f"{shown(text)} is not a range: it begins after its end")
    if (count := _count_of_networks(int(start), int(end) + 1)) > _MAX_NETWORKS:
        raise UnsupportedError(f"{shown(text)} is neither a network nor a few networks: it takes {count}")
    return list(netaddr.iprange_to_cidrs(start, end))


def _count_of_networks(first: int, end: int) -> int:
    """The number of networks for the addresses from `first` to `end` (excluded).

    The networks meet at `middle`, the number between both with the most trailing zeros. On each side, every bit that is
    set in the distance to `middle` is one network.
    """
    shift = (first ^ end).bit_length() - 1
    middle = end >> shift << shift
    return (middle - first).bit_count() + (end - middle).bit_count()


def network_text(of: netaddr.IPNetwork) -> str:
    """A network in the form of lists: a network of one address without its prefix."""
    return str(of.network) if of.size == 1 else str(of.cidr)


def term(condition: str, value: str) -> Term:
    """Makes a term. Raises `UnsupportedError` with the loader's reason if the value is not valid for the condition."""
    form = CONDITIONS[condition].form
    if not value.isprintable():
        raise UnsupportedError(f"{shown(value)} has characters that are not text")
    _, bad = parse_entries(form, [value.encode("utf-8", "replace")])
    if bad:
        raise UnsupportedError(explain_entry(form, value.encode("utf-8", "replace")))
    return Term(condition, value)


def literal(text: str) -> str:
    """An expression that finds exactly this text."""
    return re.escape(text).replace(r"\-", "-")  # a dash is special only in brackets
