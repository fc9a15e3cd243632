"""Kept and patched tables give the same answers as tables that are built from the same lists."""

from __future__ import annotations

import ipaddress
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from policyd.core.ruleset import Kind
from policyd.core.tables import LongList, NameTable, RangeTable
from policyd.tables import kept, patch
from policyd.tables.build import build_list_table
from policyd.tables.index import EntrySource
from policyd.tables.kept import MAX_PATCHES, TableStore
from tests.examples import examples
from tests.tables.test_build import Network, long_list, names, networks, pack

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from policyd.tables.build import ListTable


@pytest.fixture
def always_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also patches small tables, and tables in which most entries change."""
    monkeypatch.setattr(kept, "_MAX_SHARE", 0)
    monkeypatch.setattr(patch, "_MAX_DEAD", 0)
    monkeypatch.setattr(patch, "_MIN_SLOTS_PER_KEY", 2)


def list_source(path: str, entries: list[Network] | list[bytes], kind: Kind) -> EntrySource:
    """A long list in a file; its key stands for its content and kind."""
    entries_of_file = long_list(pack(entries) if kind is Kind.NETWORK else entries, (str(entries), kind))  # type: ignore[arg-type] # networks or names
    return EntrySource(
        LongList(entries_of_file.key, len(entries_of_file), entries_of_file.read, path), kind, frozenset({1})
    )


def by_key(table: ListTable, mask: int, width: int) -> set[tuple[object, int]]:
    """The lists that a mask stands for, each with its bit."""
    return {
        (key, bit) for place, key in enumerate(table.keys) for bit in range(width) if mask >> place * width + bit & 1
    }


def answers(table: ListTable, queries: Sequence[bytes | tuple[int, int]]) -> list[set[tuple[object, int]]]:
    found = []
    for value in queries:
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


def follow(steps: Sequence[Sequence[EntrySource]], queries: Sequence[bytes | tuple[int, int]]) -> None:
    """Makes the table of each step from that of the step before, and compares it with a table built from the lists."""
    store = TableStore()
    try:
        for sources in steps:
            store = TableStore(store.used)
            made = store.make_list_table("x", sources)
            wanted = {source.entries.key for source in sources if isinstance(source.entries, LongList)}
            fresh = answers(build_list_table("x", [*{key_of(source): source for source in sources}.values()]), queries)
            got = [{(key, bit) for key, bit in answer if key in wanted} for answer in answers(made, queries)]
            assert got == fresh
            event("patched" if store.used[0].record.patches else "built")
            for file in store.kept:
                if file not in store.used:
                    os.close(file.descriptor)
    finally:
        for file in store.used:
            os.close(file.descriptor)


def key_of(source: EntrySource) -> object:
    assert isinstance(source.entries, LongList)
    return source.entries.key


@pytest.mark.slow
@pytest.mark.usefixtures("always_patched")
@settings(max_examples=examples(400), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps_of_networks)
def test_patched_networks_equal_rebuilt_ones(steps: list[dict[str, list[Network]]]) -> None:
    queries = [*edges([entries for step in steps for entries in step.values()])]
    follow([[list_source(path, entries, Kind.NETWORK) for path, entries in step.items()] for step in steps], queries)


@pytest.mark.slow
@pytest.mark.usefixtures("always_patched")
@settings(max_examples=examples(400), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps_of_names)
def test_patched_names_equal_rebuilt_ones(steps: list[dict[str, tuple[list[bytes], Kind]]]) -> None:
    every = {name for step in steps for entries, _ in step.values() for name in entries}
    queries = [*every, *(name.removeprefix(b".") for name in every), b"nowhere"]
    follow([[list_source(path, entries, kind) for path, (entries, kind) in step.items()] for step in steps], queries)


def some(first: int, count: int) -> list[bytes]:
    return [b"h%d.example" % number for number in range(first, first + count)]


def test_a_table_is_kept_patched_or_built_again() -> None:
    lists = [list_source(str(n), some(1000 * n, 100), Kind.VALUE) for n in range(10)]
    store = TableStore()
    store.make_list_table("sender", lists)
    built = store.used[0]
    for sources, kept_as_it_is, patches in (
        (lists, True, 0),
        (lists[:8], True, 0),  # two lists are unused: still below the maximum share
        (lists[:5], False, 0),  # half of the lists are unused
        ([list_source("0", some(0, 90), Kind.VALUE), *lists[1:]], False, 1),
        (
            [list_source("0", some(0, 90), Kind.VALUE), *lists[1:], list_source("new", some(77_000, 20), Kind.VALUE)],
            False,
            1,
        ),
        ([list_source(str(n), some(1000 * n, 90), Kind.VALUE) for n in range(10)], False, 0),  # all lists have changed
    ):
        again = TableStore([built])
        again.make_list_table("sender", sources)
        assert (again.used[0] is built) is kept_as_it_is
        assert again.used[0].record.patches == patches
    other = TableStore([built])
    other.make_list_table("recipient", lists)
    assert other.used[0] is not built


def test_added_and_removed_entries_of_a_patched_list_are_counted() -> None:
    lists = [list_source(str(n), some(1000 * n, 100), Kind.VALUE) for n in range(10)]
    store = TableStore()
    store.make_list_table("sender", lists)
    again = TableStore(store.used)
    again.make_list_table("sender", [list_source("0", some(3, 105), Kind.VALUE), *lists[1:]])
    assert again.differences == {"0": (8, 3)}


def test_a_table_is_built_again_after_the_maximum_of_patches() -> None:
    store = TableStore()
    many = list_source("many", some(50_000, 1000), Kind.VALUE)
    store.make_list_table("sender", [list_source("l", some(0, 10), Kind.VALUE), many])
    patches = []
    for step in range(1, MAX_PATCHES + 2):
        store = TableStore(store.used)
        store.make_list_table("sender", [list_source("l", some(step, 10), Kind.VALUE), many])
        patches.append(store.used[0].record.patches)
    assert patches == [*range(1, MAX_PATCHES + 1), 0]


def test_a_table_of_names_that_are_mostly_gone_is_built_again() -> None:
    store = TableStore()
    many = list_source("many", some(50_000, 400), Kind.VALUE)
    patches = []
    for step in range(9):
        store = TableStore(store.used)
        store.make_list_table("sender", [list_source("l", some(100 * step, 90), Kind.VALUE), many])
        patches.append(store.used[0].record.patches)
    assert 0 in patches[1:]
    assert max(patches) >= 1


def test_a_table_with_too_many_combinations_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MAX_COMBINATIONS", 10)
    lists = [
        list_source(str(n), [ipaddress.ip_network(a) for a in range(256) if a >> n & 1], Kind.NETWORK) for n in range(8)
    ]
    store = TableStore()
    made = store.make_list_table("client_address", lists)
    assert not store.used
    assert isinstance(made.table, RangeTable)
    assert made.masks[made.table.number4(3)]


def test_a_memory_file_cannot_be_written_to() -> None:
    store = TableStore()
    store.make_list_table("client_address", [list_source("l", [ipaddress.ip_network("10.0.0.0/8")], Kind.NETWORK)])
    with pytest.raises(PermissionError):
        os.pwrite(store.used[0].descriptor, b"x", 0)
    assert isinstance(store.used[0].table, RangeTable)
