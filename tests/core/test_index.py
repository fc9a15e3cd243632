"""The tables against the standard library and plain dicts; what is compared, against the words of the reference."""

import gc
import ipaddress
import pickle
import random
import weakref
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd.core.lookups import ExpressionTable
from policyd.core.normalize import MAX_NAME, domain_of, fold_name, fold_value
from policyd.core.tables import Filing, Hits, NameTable, RangeTable
from tests.examples import examples

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def table_of(networks: Sequence[IPNetwork]) -> tuple[RangeTable, Filing]:
    """Each network holds for the condition that is its place in the list."""
    filing = Filing({})
    keys: dict[int, list[int]] = {4: [], 6: []}
    for place, network in enumerate(networks):
        bits = 6 if network.version == 4 else 8
        packed = int(network.network_address) << bits | network.prefixlen
        keys[network.version].append(packed << 32 | filing.number([place]))
    return RangeTable.build(keys[4], keys[6], filing), filing


def networks(version: int) -> st.SearchStrategy[IPNetwork]:
    """Networks crowded into a few corners of the address space, so that they nest, touch and repeat."""
    width = 32 if version == 4 else 128
    corner = st.sampled_from(
        [0, (1 << width) - 256, 10 << width - 8, (10 << width - 8) + (1 << 64 if version == 6 else 0)]
    )
    first = st.builds(lambda a, b: a + b, corner, st.integers(0, 255))
    prefix = st.integers(0, width) | st.integers(width - 8, width)
    kind = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    return st.builds(lambda a, p: kind((a, p), strict=False), first, prefix)


@settings(max_examples=examples(500), deadline=None)
@given(st.lists(networks(4) | networks(6), max_size=12))
def test_an_address_lies_in_just_the_networks_that_the_standard_library_says(
    made: list[IPNetwork],
) -> None:
    table, filing = table_of(made)
    table = pickle.loads(pickle.dumps(table))
    edges = {int(n.network_address) + d for n in made for d in (-1, 0, 1)} | {
        int(n.broadcast_address) + d for n in made for d in (-1, 0, 1)
    }
    for version, width, number in ((4, 32, table.number4), (6, 128, table.number6)):
        kind = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
        for value in edges | {0, (1 << width) - 1}:
            if 0 <= value < 1 << width:
                want = {place for place, n in enumerate(made) if n.version == version and kind(value) in n}
                assert filing.hits[number(value)].conditions == want


@given(st.dictionaries(st.binary(max_size=8), st.integers(1, 9)), st.lists(st.binary(max_size=8)))
def test_a_table_of_names_is_a_dict(entries: dict[bytes, int], others: list[bytes]) -> None:
    table = pickle.loads(pickle.dumps(NameTable.build(entries)))
    assert len(table) == len(entries)
    for key in [*entries, *others]:
        assert table.number(key) == entries.get(key, 0)


@pytest.mark.slow
def test_a_hundred_thousand_names_and_networks_are_found_again() -> None:
    chosen = random.Random(4)
    names = {b"host%d.example%d.net" % (chosen.getrandbits(40), n % 999): 1 + n % 7 for n in range(100_000)}
    table = NameTable.build(names)
    assert all(table.number(name) == number for name, number in names.items())
    assert not any(table.number(name + b"x") for name in names)
    made = [ipaddress.ip_network((chosen.getrandbits(24) << 8, 24)) for _ in range(100_000)]
    ranges, filing = table_of(made)
    for place, network in enumerate(made):
        assert place in filing.hits[ranges.number4(int(network.network_address) + 77)].conditions


@pytest.mark.parametrize(
    ("name", "want"),
    [
        (b"A.Example.", b"a.example"),
        ("Bücher.Example".encode(), b"xn--bcher-kva.example"),
        ("faß.example".encode(), b"xn--fa-hia.example"),
        (b"\xff.example", b"\xef\xbf\xbd.example"),
        (b"a" * MAX_NAME + b".", b"a" * MAX_NAME),
        (b"a" * (MAX_NAME + 2), b""),
        (b"", b""),
    ],
)
def test_names_are_compared_in_lower_case_a_labels_without_the_trailing_dot(name: bytes, want: bytes) -> None:
    assert fold_name(name) == want


@pytest.mark.parametrize(
    ("address", "want"),
    [
        (b"u@A.example", b"a.example"),
        (b"a@b@c.example.", b"c.example"),
        (b"root", b""),
        (b"u@[192.0.2.1]", b""),
        (b"u@", b""),
        (b"", b""),
    ],
)
def test_the_domain_follows_the_last_at_sign(address: bytes, want: bytes) -> None:
    assert domain_of(address) == want


def test_values_fold_outside_ascii_too_and_survive_what_is_not_utf_8() -> None:
    assert fold_value("Ünï@EXAMPLE".encode()) == "ünï@example".encode()
    assert fold_value(b"\xff\xc0") == b"\xef\xbf\xbd" * 2


@given(st.binary())
def test_folding_twice_changes_nothing(value: bytes) -> None:
    assert fold_value(fold_value(value)) == fold_value(value)


def test_expressions_see_invalid_utf_8_as_the_replacement_character() -> None:
    hits = tuple(Hits(frozenset({place}), ()) for place in range(3))
    table = ExpressionTable(("^a.b$", "\ufffd", "^$"), hits)
    assert table.find(b"A\xffB").conditions == {0, 1}
    assert table.find(b"\xed\xa0\x80").conditions == {1}
    assert table.find(b"").conditions == {2}
    assert table.find(b"a\xc3\xa9b").conditions == {0}


def test_five_thousand_expressions_are_one_set() -> None:
    patterns = tuple(rf"^host-[0-9]+-{number}\.dyn{number}\.example\.net$" for number in range(5000))
    table = ExpressionTable(patterns, tuple(Hits(frozenset({number}), ()) for number in range(5000)))
    for number in (0, 17, 4999):
        assert table.find(b"HOST-12-%d.dyn%d.example.net" % (number, number)).conditions == {number}
    assert table.find(b"host-12-5000.dyn5000.example.net").conditions == frozenset()


def test_the_same_expressions_are_compiled_once_and_not_kept_longer_than_they_are_used() -> None:
    expressions = ("^once-compiled$",)
    table, again = (ExpressionTable(expressions, (Hits(frozenset({n}), ()),)) for n in range(2))
    assert table._set is again._set
    assert table.find(b"once-compiled").conditions == {0}
    assert again.find(b"once-compiled").conditions == {1}
    still_there = weakref.ref(table._set)
    del table, again
    gc.collect()
    assert still_there() is None
