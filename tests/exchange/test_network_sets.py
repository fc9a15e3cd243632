"""An address is blocked if its first matching row blocks, for any order and overlap of the rows."""

from __future__ import annotations

import time

import netaddr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.exchange.model import DUNNO, REJECT, Line, Row, Term
from policyd.exchange.network_sets import blocked_addresses

LINE = Line("table", 1, "")


def network_at(base: str, prefix: int, number: int) -> netaddr.IPNetwork:
    """The network that contains address `number` after `base`; `prefix` is that of IPv4, and 96 less than in IPv6."""
    return netaddr.IPNetwork(f"{base}{number:x}/{prefix + 96}" if ":" in base else f"{base}{number}/{prefix}").cidr


# Networks within the same 16 addresses of each IP version, so that many overlap.
networks = st.builds(network_at, st.sampled_from(["192.0.2.", "2001:db8::"]), st.integers(28, 32), st.integers(0, 15))
terms = st.lists(networks.map(lambda network: Term("cidr", str(network))), max_size=2).map(tuple)
rows = st.builds(
    Row,
    st.just(LINE),
    networks.map(lambda network: (Term("cidr", str(network)),)),
    st.sampled_from([DUNNO, REJECT]),
    terms,
)


def blocks(table: list[Row], address: netaddr.IPAddress) -> bool:
    def lies_in(of: tuple[Term, ...]) -> bool:
        return any(address in netaddr.IPNetwork(entry.value) for entry in of)

    return next((row.verdict is REJECT for row in table if lies_in(row.match) and not lies_in(row.exceptions)), False)


@given(st.lists(rows, max_size=8))
def test_an_address_is_blocked_if_the_first_row_that_matches_it_blocks(table: list[Row]) -> None:
    found = blocked_addresses(table)
    for base in ("192.0.2.0/28", "2001:db8::/124"):
        for address in netaddr.IPNetwork(base):
            assert (address in found) == blocks(table, address)


@pytest.mark.slow
def test_thousands_of_alternating_rows_are_fast() -> None:
    table = [
        Row(LINE, (Term("cidr", f"10.{number >> 8}.{number & 255}.0/24"),), DUNNO if number % 2 else REJECT)
        for number in range(10_000)
    ]
    table += [Row(LINE, (Term("cidr", "10.0.0.0/8"),), REJECT)]
    began = time.process_time()
    found = blocked_addresses(table)
    assert time.process_time() - began < 5  # takes 0.6 s, or a minute if each group is subtracted from all before it
    assert found.size == (1 << 24) - 5_000 * 256
