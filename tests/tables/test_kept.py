"""Tables that are kept and patched answer as tables that are built from the same lists."""

from __future__ import annotations

import ipaddress
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from policyd.core.ruleset import Kind
from policyd.core.tables import LongList, NameTable, Networks, RangeTable
from policyd.tables import kept, patch
from policyd.tables.build import build_list_table
from policyd.tables.index import Source
from policyd.tables.kept import MAX_PATCHES, TableStore
from tests.examples import examples
from tests.tables.test_build import Network, long_list, names, networks, packed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from policyd.tables.build import ListTable


@pytest.fixture
def always_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tables, much of which changes, are patched too."""
    monkeypatch.setattr(kept, "_MAX_SHARE", 0)
    monkeypatch.setattr(patch, "_MAX_DEAD", 0)
    monkeypatch.setattr(patch, "_MIN_SLOTS_PER_KEY", 2)


def listed(path: str, entries: list[Network] | list[bytes], kind: Kind) -> Source:
    """A long list in a file, which only its content and its path tell from others."""
    one = long_list(packed(entries) if kind is Kind.NETWORK else entries, (str(entries), kind))  # type: ignore[arg-type] # either form
    return Source(LongList(one.key, len(one), one.read, path), kind, frozenset({1}))


def close(store: TableStore) -> None:
    for file in {id(table): table for table in (*store.kept, *store.used)}.values():
        if file.descriptor >= 0:
            os.close(file.descriptor)
            file.descriptor = -1


def by_key(table: ListTable, mask: int, width: int) -> set[tuple[object, int]]:
    """A mask as the lists and the bits that it stands for."""
    return {
        (key, bit) for place, key in enumerate(table.keys) for bit in range(width) if mask >> place * width + bit & 1
    }


def answers(table: ListTable, asked: Sequence[bytes | tuple[int, int]]) -> list[set[tuple[object, int]]]:
    found = []
    for value in asked:
        if isinstance(value, bytes):
            assert isinstance(table.table, NameTable)
            number, width = table.table.number(value), 2
        else:
            assert isinstance(table.table, RangeTable)
            version, address = value
            number, width = (table.table.number4(address) if version == 4 else table.table.number6(address)), 1
        found.append(by_key(table, table.masks[number], width))
    return found


def edges(lists: Sequence[Sequence[Network]]) -> Iterator[tuple[int, int]]:
    yield from [(4, 0), (4, (1 << 32) - 1), (6, 0), (6, (1 << 128) - 1)]
    for network in (network for entries in lists for network in entries):
        for address in (int(network.network_address), int(network.broadcast_address)):
            for near in (address - 1, address, address + 1):
                if 0 <= near < 1 << network.max_prefixlen:
                    yield network.version, near


steps_of_networks = st.lists(
    st.dictionaries(st.sampled_from("abcd"), st.lists(networks(4) | networks(6), max_size=5), min_size=1),
    min_size=2,
    max_size=5,
)
steps_of_names = st.lists(
    st.dictionaries(
        st.sampled_from("abcd"),
        st.tuples(st.lists(names, max_size=6), st.sampled_from([Kind.NAME, Kind.DOMAIN])),
        min_size=1,
    ),
    min_size=2,
    max_size=5,
)


def follow(steps: Sequence[Sequence[Source]], asked: Sequence[bytes | tuple[int, int]]) -> None:
    """Makes the table of each step from that of the step before, and compares it with one that is built alone."""
    store = TableStore()
    try:
        for sources in steps:
            store = TableStore(store.used)
            made = store.make_list_table("x", sources)
            wanted = {source.entries.key for source in sources if isinstance(source.entries, LongList)}
            fresh = answers(build_list_table("x", [*{key_of(source): source for source in sources}.values()]), asked)
            got = [{(key, bit) for key, bit in answer if key in wanted} for answer in answers(made, asked)]
            assert got == fresh
            event("patched" if store.used[0].record.patches else "built")
            for file in store.kept:
                if file not in store.used:
                    os.close(file.descriptor)
    finally:
        for file in store.used:
            os.close(file.descriptor)


def key_of(source: Source) -> object:
    assert isinstance(source.entries, LongList)
    return source.entries.key


@pytest.mark.slow
@pytest.mark.usefixtures("always_patched")
@settings(max_examples=examples(400), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps_of_networks)
def test_patched_networks_equal_rebuilt_ones(steps: list[dict[str, list[Network]]]) -> None:
    asked = [*edges([entries for step in steps for entries in step.values()])]
    follow([[listed(path, entries, Kind.NETWORK) for path, entries in step.items()] for step in steps], asked)


@pytest.mark.slow
@pytest.mark.usefixtures("always_patched")
@settings(max_examples=examples(400), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps_of_names)
def test_patched_names_are_those_built_anew(steps: list[dict[str, tuple[list[bytes], Kind]]]) -> None:
    every = {name for step in steps for entries, _ in step.values() for name in entries}
    asked = [*every, *(name.removeprefix(b".") for name in every), b"nowhere"]
    follow([[listed(path, entries, kind) for path, (entries, kind) in step.items()] for step in steps], asked)


def some(first: int, count: int) -> list[bytes]:
    return [b"h%d.example" % number for number in range(first, first + count)]


def test_a_table_is_kept_patched_or_built_again() -> None:
    lists = [listed(str(n), some(1000 * n, 100), Kind.VALUE) for n in range(10)]
    store = TableStore()
    store.make_list_table("sender", lists)
    built = store.used[0]
    for sources, kept_as_it_is, patches in (
        (lists, True, 0),
        (lists[:8], True, 0),  # two lists are not used any more
        (lists[:5], False, 0),  # half of them
        ([listed("0", some(0, 90), Kind.VALUE), *lists[1:]], False, 1),
        ([listed("0", some(0, 90), Kind.VALUE), *lists[1:], listed("new", some(77_000, 20), Kind.VALUE)], False, 1),
        ([listed(str(n), some(1000 * n, 90), Kind.VALUE) for n in range(10)], False, 0),  # all have changed
    ):
        again = TableStore([built])
        again.make_list_table("sender", sources)
        assert (again.used[0] is built) is kept_as_it_is
        assert again.used[0].record.patches == patches
    other = TableStore([built])
    other.make_list_table("recipient", lists)
    assert other.used[0] is not built


def test_added_and_removed_entries_of_a_patched_list_are_counted() -> None:
    lists = [listed(str(n), some(1000 * n, 100), Kind.VALUE) for n in range(10)]
    store = TableStore()
    store.make_list_table("sender", lists)
    again = TableStore(store.used)
    again.make_list_table("sender", [listed("0", some(3, 105), Kind.VALUE), *lists[1:]])
    assert again.differences == {"0": (8, 3)}


def test_a_table_is_built_again_after_some_patches() -> None:
    store = TableStore()
    many = listed("many", some(50_000, 1000), Kind.VALUE)
    store.make_list_table("sender", [listed("l", some(0, 10), Kind.VALUE), many])
    patches = []
    for step in range(1, MAX_PATCHES + 2):
        store = TableStore(store.used)
        store.make_list_table("sender", [listed("l", some(step, 10), Kind.VALUE), many])
        patches.append(store.used[0].record.patches)
    assert patches == [*range(1, MAX_PATCHES + 1), 0]


def test_a_table_of_names_that_are_mostly_gone_is_built_again() -> None:
    store = TableStore()
    many = listed("many", some(50_000, 400), Kind.VALUE)
    patches = []
    for step in range(9):
        store = TableStore(store.used)
        store.make_list_table("sender", [listed("l", some(100 * step, 90), Kind.VALUE), many])
        patches.append(store.used[0].record.patches)
    assert 0 in patches[1:]
    assert max(patches) >= 1


def test_a_table_with_too_many_combinations_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_COMBINATIONS", 10)
    lists = [
        listed(str(n), [ipaddress.ip_network(a) for a in range(256) if a >> n & 1], Kind.NETWORK) for n in range(8)
    ]
    store = TableStore()
    made = store.make_list_table("client_address", lists)
    assert not store.used
    assert isinstance(made.table, RangeTable)
    assert made.masks[made.table.number4(3)]


def test_a_memory_file_cannot_be_written_to() -> None:
    store = TableStore()
    store.make_list_table("client_address", [listed("l", [ipaddress.ip_network("10.0.0.0/8")], Kind.NETWORK)])
    with pytest.raises(PermissionError):
        os.pwrite(store.used[0].descriptor, b"x", 0)
    assert isinstance(store.used[0].table, RangeTable)
    assert isinstance(Networks(), Networks)
