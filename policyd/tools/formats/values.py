"""Single values as other systems write them: networks, ranges, host names, mail addresses.

Each is given as rules.yaml takes it, or refused by `NoEqualError` with what is wrong with it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import netaddr

from policyd.config.conditions import CONDITIONS
from policyd.config.entries import parse_entries
from policyd.config.explain import explain_entry
from policyd.tools.formats.exchange import NoEqualError, Term, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

_ADDRESS_LIKE = re.compile(r"\[?(?:[\d.]+|[0-9a-f:.]*:[0-9a-f:.]*)\]?(?:\s*[/-].*)?|[\d.]+\*", re.IGNORECASE)
_MASK = re.compile(r"\d+\.\d+\.\d+\.\d+")
_MAPPED = netaddr.IPNetwork("::ffff:0.0.0.0/96")


def looks_like_address(text: str) -> bool:
    """Whether a word is meant as an address, network or range, rightly written or not, and not as a name."""
    return _ADDRESS_LIKE.fullmatch(text) is not None


def address(text: str) -> netaddr.IPAddress:
    """An address; an IPv4-mapped one (RFC 4291 section 2.5.5.2) is the IPv4 address."""
    try:
        found = netaddr.IPAddress(text, flags=netaddr.INET_PTON)
    except (netaddr.AddrFormatError, ValueError):
        raise NoEqualError(f"{shown(text)} is no address") from None
    return found.ipv4() if found in _MAPPED else found


def network(text: str) -> netaddr.IPNetwork:
    """A network, or an address as a network of one; `/255.255.255.0` is a prefix too.

    Host bits that are set are refused, and the message names the right network.
    """
    base, slash, prefix = text.partition("/")
    first = address(base)
    if not slash:
        return netaddr.IPNetwork(first)
    if not prefix.isdecimal() and not _MASK.fullmatch(prefix):
        raise NoEqualError(f"{shown(text)} is no network")
    try:
        found = netaddr.IPNetwork(text)
    except (netaddr.AddrFormatError, ValueError):
        raise NoEqualError(f"{shown(text)} is no network") from None
    if found.ip != found.network:
        raise NoEqualError(f"the address has bits set beyond the prefix; the network is {found.cidr}")
    if found.version == 6 and found in _MAPPED:
        return netaddr.IPNetwork((found.first & 0xFFFFFFFF, found.prefixlen - 96), version=4)
    return found


def address_range(text: str) -> list[netaddr.IPNetwork]:
    """`FIRST-LAST`, a network or an address as the fewest networks."""
    first, dash, last = text.partition("-")
    if not dash:
        return [network(text.strip())]
    start, end = address(first.strip()), address(last.strip())
    if start.version != end.version or start > end:
        raise NoEqualError(f"{shown(text)} is no range: it begins after its end")
    return list(netaddr.iprange_to_cidrs(start, end))


def network_text(of: netaddr.IPNetwork) -> str:
    """A network as lists show it: an address alone where it is one of one."""
    return str(of.network) if of.size == 1 else str(of.cidr)


def fewest(networks: Iterable[netaddr.IPNetwork]) -> list[str]:
    """The same addresses in the fewest networks, in order of addresses, IPv4 first."""
    return [network_text(one) for one in netaddr.cidr_merge(list(networks))]


def term(condition: str, value: str) -> Term:
    """A condition with a value that rules.yaml takes. Raises `NoEqualError` with the loader's own reason otherwise."""
    form = CONDITIONS[condition].form
    _, bad = parse_entries(form, [value.encode("utf-8", "replace")])
    if bad:
        raise NoEqualError(explain_entry(form, value.encode("utf-8", "replace")))
    return Term(condition, value)


def literal(text: str) -> str:
    """An expression for this text alone."""
    return re.escape(text).replace(r"\-", "-")  # a dash is special in brackets only, and none are put around it
