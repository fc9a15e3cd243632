"""The tables against the standard library and plain dicts."""

from __future__ import annotations

import ipaddress
import pickle
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd.core import hits
from policyd.core.hits import LazyHits, hits_by_number, hits_of
from policyd.core.lookups import DomainTable
from policyd.core.ruleset import Kind
from policyd.core.tables import LongList, NameTable, Networks, RangeTable
from policyd.tables import build
from policyd.tables.build import (
    TooManyCombinationsError,
    build_list_table,
    build_table,
    group_by_users,
    plain_entries,
    table_of,
)
from policyd.tables.index import EntrySource
from tests.examples import examples

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from policyd.core.tables import Entries

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def pack(made: Sequence[Network]) -> Networks:
    networks = Networks()
    for network in made:
        networks.append(network.version, int(network.network_address), network.prefixlen)
    return networks


def pack_network(network: Network) -> int:
    return int(network.network_address) << (6 if network.version == 4 else 8) | network.prefixlen


def long_list(entries: Networks | list[bytes], key: str = "") -> LongList:
    """A `LongList`, possibly with few entries, that is read in several blocks."""

    def read() -> Iterator[Networks | Sequence[bytes]]:
        if isinstance(entries, Networks):
            yield entries
        else:
            for start in range(0, len(entries), 3):
                yield entries[start : start + 3]

    return LongList(key, len(entries), read)


def ranges_of(lists: Sequence[Sequence[Network]]) -> tuple[RangeTable, list[int]]:
    """A table of these lists, as another process gets it; and its masks."""
    groups = [[EntrySource(pack(entries), Kind.NETWORK, frozenset({place}))] for place, entries in enumerate(lists)]
    parts, masks = build_table(groups)
    table = pickle.loads(pickle.dumps(table_of(parts)))
    assert isinstance(table, RangeTable)
    return table, masks


def networks(version: int) -> st.SearchStrategy[Network]:
    """Networks crowded into a few corners of the address space, so that they nest, touch and repeat."""
    width = 32 if version == 4 else 128
    corner = st.sampled_from(
        [0, (1 << width) - 256, 10 << width - 8, (10 << width - 8) + (1 << 64 if version == 6 else 0)]
    )
    first = st.builds(lambda a, b: a + b, corner, st.integers(0, 255))
    prefix = st.integers(0, width) | st.integers(width - 8, width)
    kind = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    return st.builds(lambda a, p: kind((a, p), strict=False), first, prefix)


some_networks = st.lists(networks(4) | networks(6), max_size=8)


@settings(max_examples=examples(500), deadline=None)
@given(st.lists(some_networks, min_size=1, max_size=5))
def test_an_address_lies_in_the_same_networks_as_in_ipaddress(lists: list[list[Network]]) -> None:
    table, masks = ranges_of(lists)
    every = [network for entries in lists for network in entries]
    edges = {int(n.network_address) + d for n in every for d in (-1, 0, 1)} | {
        int(n.broadcast_address) + d for n in every for d in (-1, 0, 1)
    }
    for version, width, number in ((4, 32, table.number4), (6, 128, table.number6)):
        kind = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
        for value in edges | {0, (1 << width) - 1}:
            if 0 <= value < 1 << width:
                want = sum(1 << place for place, entries in enumerate(lists) if any(kind(value) in n for n in entries))
                assert masks[number(value)] == want


@given(some_networks)
def test_repetitions_in_a_long_list_are_counted(made: list[Network]) -> None:
    listed = long_list(pack(made))
    build_list_table("client_address", [EntrySource(listed, Kind.NETWORK, frozenset({1}))])
    assert listed.repeated is not None
    assert listed.repeated.count == len(made) - len({*made})
    assert listed.repeated.examples == {(n.version, pack_network(n)) for n in made if made.count(n) > 1}


labels = st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=4).map(b".".join)
names = st.builds(bytes.__add__, st.sampled_from([b"", b"."]), labels)
lists_of_names = st.lists(
    st.tuples(st.lists(names, max_size=8), st.sampled_from([Kind.NAME, Kind.DOMAIN])), min_size=1, max_size=4
)


@settings(max_examples=examples(300), deadline=None)
@given(lists_of_names, st.lists(names | labels, max_size=5), st.booleans())
def test_a_name_is_found_in_exactly_the_lists_that_have_it_or_a_parent_domain(
    lists: list[tuple[list[bytes], Kind]], others: list[bytes], split: bool
) -> None:
    sources = [EntrySource(long_list(entries), kind, frozenset({place})) for place, (entries, kind) in enumerate(lists)]
    tables = []
    for chosen in (sources[:1], sources[1:]) if split else (sources, []):
        if chosen:
            parts, masks = build_table([[source] for source in chosen])
            table = pickle.loads(pickle.dumps(table_of(parts)))
            exact: list[frozenset[int]] = []
            under: list[frozenset[int]] = []
            for source in chosen:
                exact += source.users, frozenset()
                under += [source.users if source.kind is Kind.DOMAIN else frozenset()] * 2
            tables.append((table, hits_by_number(masks, exact, {}), hits_by_number(masks, under, {})))
    domains = DomainTable(tables)
    for name in {*others, *(name for entries, _ in lists for name in entries)}:
        want = {
            place
            for place, (entries, kind) in enumerate(lists)
            if any(satisfies(name, entry, kind) for entry in entries)
        }
        assert domains.find(name).conditions == want


def satisfies(name: bytes, entry: bytes, kind: Kind) -> bool:
    if kind is Kind.NAME:
        return name == entry
    return (
        name.endswith(entry)
        if entry.startswith(b".") and name != entry
        else ("." + name.decode()).endswith("." + entry.decode())
    )


@given(st.lists(st.lists(st.binary(max_size=8), max_size=9), max_size=4), st.lists(st.binary(max_size=8)))
def test_a_table_of_names_agrees_with_a_dict(lists: list[list[bytes]], others: list[bytes]) -> None:
    long = [long_list(entries) for entries in lists or [[]]]
    parts, masks = build_table([[EntrySource(long_entries, Kind.VALUE, frozenset())] for long_entries in long])
    table = pickle.loads(pickle.dumps(table_of(parts)))
    assert isinstance(table, NameTable)
    assert len(table) == len({entry for entries in lists for entry in entries})
    for key in [*others, *(entry for entries in lists for entry in entries)]:
        assert masks[table.number(key)] == sum(1 << 2 * place for place, entries in enumerate(lists) if key in entries)
    repeated = [long_entries.repeated for long_entries in long]
    assert [found and found.count for found in repeated] == [
        len(entries) - len({*entries}) for entries in lists or [[]]
    ]
    assert [found and found.examples for found in repeated] == [
        {n for n in entries if entries.count(n) > 1} for entries in lists or [[]]
    ]


@pytest.mark.slow
def test_a_hundred_thousand_names_and_networks_are_found_again() -> None:
    generator = random.Random(4)
    listed: list[list[bytes]] = [[] for _ in range(7)]
    for number in range(100_000):
        listed[number % 7].append(b"host%d.example%d.net" % (generator.getrandbits(40), number % 999))
    parts, masks = build_table([[EntrySource(long_entries, Kind.VALUE, frozenset())] for long_entries in listed])
    table = table_of(parts)
    assert isinstance(table, NameTable)
    for place, entries in enumerate(listed):
        assert {masks[table.number(name)] for name in entries} == {1 << 2 * place}
        assert not any(table.number(name + b"x") for name in entries)
    made = [[ipaddress.ip_network((generator.getrandbits(24) << 8, 24)) for _ in range(33_000)] for _ in range(3)]
    ranges, masks = ranges_of(made)
    for place, networks_of in enumerate(made):
        for network in networks_of:
            assert masks[ranges.number4(int(network.network_address) + 77)] & 1 << place


# --- Many combinations ------------------------------------------------------------------------------------------------


def overlapping(count: int) -> list[Networks]:
    """Lists with a different combination for each address: the list at place n has the addresses with bit n."""
    lists = [Networks() for _ in range(count)]
    for number in range(1 << count):
        for place, entries in enumerate(lists):
            if number >> place & 1:
                entries.append(4, number, 32)
    return lists


def test_lists_with_too_many_combinations_share_a_bit_if_the_same_conditions_use_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "MAX_COMBINATIONS", 100)
    lists = [long_list(entries, str(place)) for place, entries in enumerate(overlapping(8))]
    with pytest.raises(TooManyCombinationsError):
        build_table([[EntrySource(entries, Kind.NETWORK, frozenset({7}))] for entries in lists], 100)
    made = build_list_table("client_address", [EntrySource(entries, Kind.NETWORK, frozenset({7})) for entries in lists])
    assert made.masks == [0, 1]
    assert made.keys == ("0",)
    assert isinstance(made.table, RangeTable)
    assert [made.table.number4(number) for number in (0, 1, 200, 255, 256)] == [0, 1, 1, 1, 0]


def test_hits_of_many_combinations_are_made_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hits, "MAX_EAGER", 100)
    monkeypatch.setattr(hits, "MAX_LAZY", 10)
    users = [frozenset({place, 100}) for place in range(9)]
    rule_of = {place: 50 - place for place in range(9)}
    lazy = hits_by_number(range(512), users, rule_of)
    assert isinstance(lazy, LazyHits)
    unpickled = pickle.loads(pickle.dumps(lazy))
    for mask in range(512):
        want = hits_of({n for place in range(9) if mask >> place & 1 for n in users[place]}, rule_of)
        assert unpickled[mask] == want
        assert len(unpickled) <= 10


def test_sources_are_grouped_by_the_conditions_that_use_them() -> None:
    users, other_users = frozenset({1}), frozenset({2})
    sources = [
        EntrySource([b"a"], Kind.VALUE, users),
        EntrySource([b"b"], Kind.VALUE, other_users),
        EntrySource([b"c"], Kind.VALUE, users),
    ]
    assert group_by_users(sources) == [[sources[0], sources[2]], [sources[1]]]


@pytest.mark.parametrize("entries", [pack([ipaddress.ip_network("10.0.0.0/8")] * 5), [b"a", b"b", b"c", b"d"]])
def test_a_long_list_is_read_back_with_the_same_entries(entries: Networks | list[bytes]) -> None:
    plain: Entries = plain_entries(long_list(entries))
    if isinstance(entries, Networks):
        assert isinstance(plain, Networks)
        assert plain.v4 == entries.v4
    else:
        assert plain == entries
