"""The addresses that reach a line of a table or chain: a network without some of the networks in it.

The `if`s and jumps around the line and the lines above it reduce these addresses. Two networks are nested or disjoint,
so a condition `cidr` with exceptions can always express the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import netaddr

from policyd.exchange.model import Term, UnsupportedError
from policyd.exchange.values import network_text

NO_ADDRESS = "no address reaches it: the lines around or above it leave none"

EVERYTHING = {4: netaddr.IPNetwork("0.0.0.0/0"), 6: netaddr.IPNetwork("::/0")}

# Maximum number of excluded networks; `within` compares its network with all of them.
_MAX_OUTSIDE = 1000


@dataclass(frozen=True, slots=True)
class AddressBlock:
    """The addresses in `inside` (None: all of both versions) that are not in `outside`; no address if `empty`."""

    inside: netaddr.IPNetwork = None
    outside: tuple[netaddr.IPNetwork, ...] = ()
    empty: bool = False

    def within(self, network: netaddr.IPNetwork) -> AddressBlock:
        """The part inside a network."""
        inside = self.inside if self.inside is not None and self.inside in network else network
        if self.inside is not None and network not in self.inside and self.inside not in network:
            return replace(self, empty=True)
        if any(inside in hole for hole in self.outside):
            return replace(self, empty=True)
        return replace(self, inside=inside, outside=tuple(hole for hole in self.outside if hole in inside))

    def without(self, network: netaddr.IPNetwork) -> AddressBlock:
        """The part outside a network. Raises `UnsupportedError` if too many networks are excluded."""
        if self.inside is not None and self.inside in network:
            return replace(self, empty=True)
        if self.inside is None or network in self.inside:
            if len(self.outside) == _MAX_OUTSIDE:
                raise UnsupportedError(
                    f"more than {_MAX_OUTSIDE:,} networks are excluded from one network; invert the rules"
                )
            return replace(self, outside=(*self.outside, network))
        return self

    def terms(self) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
        """The condition and its exceptions. Raises `UnsupportedError` if no address is left."""
        if self.empty:
            raise UnsupportedError(NO_ADDRESS)
        inside = [self.inside] if self.inside is not None else list(EVERYTHING.values())
        return (
            tuple(Term("cidr", network_text(network)) for network in inside),
            tuple(Term("cidr", network_text(hole)) for hole in self.outside),
        )
