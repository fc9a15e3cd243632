from __future__ import annotations

from collections import Counter

import netaddr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.core.address import parse_address
from policyd.tools.address_blocks import NetworkBlock, blocks, part_of


def found(*addresses: str, min_clients: int = 3) -> list[str]:
    clients: Counter[tuple[int, int]] = Counter()
    for address in addresses:
        parsed = parse_address(address.encode())
        assert parsed is not None
        clients[part_of(*parsed)] += 1
    return [str(block) for block in blocks(clients, min_clients)]


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (["180.222.51.40", "180.222.51.165", "180.222.51.215"], ["180.222.51.0/24"]),
        (["180.222.51.40", "180.222.51.165"], []),
        # Clients in different networks are not a block.
        (["49.212.1.1", "160.16.2.2", "133.242.3.3", "153.127.4.4"], []),
        # Neighbours make one block if all or three quarters of it have clients, even if each has few.
        ([f"198.51.{number}.7" for number in range(96, 112)], ["198.51.96.0/20"]),
        ([f"198.51.{number}.7" for number in range(96, 108)], ["198.51.96.0/20"]),
        # Clients in half of a /20 make only the /21.
        ([f"198.51.{number}.7" for number in range(96, 104)], ["198.51.96.0/21"]),
        # Neighbours that are not halves of a larger block are not joined.
        ([f"198.51.{number}.{host}" for number in (1, 2) for host in (1, 2, 3)], ["198.51.1.0/24", "198.51.2.0/24"]),
        (["2001:db8:1::1", "2001:db8:1:2::1", "2001:db8:1:ffff::9"], ["2001:db8:1::/48"]),
        ([f"2001:db8:{number:x}::1" for number in range(8)], ["2001:db8::/45"]),
    ],
)
def test_parts_with_enough_clients_are_found_and_joined(addresses: list[str], expected: list[str]) -> None:
    assert found(*addresses) == expected


@given(st.lists(st.integers(0, 2**13), max_size=80), st.integers(1, 5))
def test_blocks_never_overlap_and_each_has_enough_clients(hosts: list[int], min_clients: int) -> None:
    first = 0xC6330000
    clients = Counter(part_of(4, first + host * 37) for host in hosts)
    networks = [netaddr.IPNetwork(str(block)) for block in blocks(clients, min_clients)]
    for network in networks:
        inside = sum(count for (_, part), count in clients.items() if netaddr.IPAddress(part << 8) in network)
        assert inside >= min_clients
    assert sum(network.size for network in networks) == netaddr.IPSet(networks).size


def test_the_parts_of_a_block_are_those_of_its_addresses() -> None:
    block = NetworkBlock(4, 0xC6336000, 23)
    assert [(4, number) for number in block.part_numbers()] == [part_of(4, 0xC6336001), part_of(4, 0xC6336101)]
