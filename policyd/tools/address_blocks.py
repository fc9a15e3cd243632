"""Finds blocks of addresses that probably have one owner, from single addresses with the same behaviour.

No registry is asked. A part is a /24 of IPv4, the smallest network that is routed separately, or a /48 of IPv6, the
usual size of a site. Neighbouring parts form a larger block if at least three quarters of that block's parts have
clients, and the block has enough clients.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import netaddr

if TYPE_CHECKING:
    from collections.abc import Mapping

# Prefix lengths by IP version: of a part, of the largest block, and of a single address.
_PART = {4: 24, 6: 48}
_LARGEST = {4: 16, 6: 32}
_WIDTH = {4: 32, 6: 128}


class NetworkBlock(NamedTuple):
    """A network as its IP version, first address and prefix length."""

    version: int
    first: int
    prefix: int

    def __str__(self) -> str:
        return str(netaddr.IPNetwork((self.first, self.prefix), version=self.version))

    def part_numbers(self) -> range:
        """The numbers of this block's parts, as `part_of` gives them."""
        shift = _WIDTH[self.version] - _PART[self.version]
        return range(self.first >> shift, (self.first >> shift) + (1 << (_PART[self.version] - self.prefix)))


def part_of(version: int, address: int) -> tuple[int, int]:
    """Returns the part of an address (its /24 or /48), as IP version and number."""
    return version, address >> (_WIDTH[version] - _PART[version])


def block_of(version: int, number: int) -> NetworkBlock:
    """Returns a part as a block; `number` is the part's number, as `part_of` gives it."""
    return NetworkBlock(version, number << (_WIDTH[version] - _PART[version]), _PART[version])


def blocks(clients: Mapping[tuple[int, int], int], min_clients: int) -> list[NetworkBlock]:
    """Blocks without overlap, each with at least `min_clients` clients. `clients` has the number of clients by part.

    A block of several parts must have clients in three quarters of them, and twice the minimum of clients, because
    neighbours also occur by chance.
    """
    found: list[NetworkBlock] = []
    for version in (4, 6):
        shift = _WIDTH[version] - _PART[version]
        left = {number: count for (v, number), count in clients.items() if v == version}
        # From the largest down: the parts of a large block are not checked again.
        for prefix in range(_LARGEST[version], _PART[version] + 1):
            size = 1 << (_PART[version] - prefix)
            parts, totals = Counter[int](), Counter[int]()
            for number, count in left.items():
                parts[number // size] += 1
                totals[number // size] += count
            enough = min_clients if size == 1 else 2 * min_clients
            for number in [n for n in parts if parts[n] * 4 >= size * 3 and totals[n] >= enough]:
                found.append(NetworkBlock(version, (number * size) << shift, prefix))
                for part in range(number * size, (number + 1) * size):
                    left.pop(part, None)
    return found
