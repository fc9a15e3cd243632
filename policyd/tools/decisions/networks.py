"""Networks by which decisions and mails are selected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import netaddr

from policyd.core.address import parse_address

if TYPE_CHECKING:
    from collections.abc import Sequence


def parse_networks(values: Sequence[str]) -> tuple[netaddr.IPNetwork, ...]:
    """Parses networks or addresses, such as 192.0.2.0/24. Raises ValueError with a message for the user."""
    networks = []
    for value in values:
        try:
            networks.append(netaddr.IPNetwork(value))
        except (netaddr.AddrFormatError, ValueError):
            raise ValueError(f"'{value}' is not a network; write 192.0.2.0/24 or 2001:db8::/32") from None
    return tuple(networks)


def in_networks(address: bytes, networks: Sequence[netaddr.IPNetwork]) -> bool:
    """Whether an address lies in one of the networks."""
    parsed = parse_address(address)
    if parsed is None:
        return False
    version, number = parsed
    return any(network.version == version and network.first <= number <= network.last for network in networks)
