"""Comparisons, against the reference in docs/ruleset.md; and the sets of expressions."""

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.core.lookups import ExpressionTable
from policyd.core.normalize import MAX_NAME, domain_of, fold_name, fold_value
from policyd.core.tables import Hits


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


def test_values_outside_ascii_are_folded_and_invalid_utf_8_is_kept() -> None:
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


def test_equal_expressions_are_compiled_once_and_freed_after_use() -> None:
    expressions = ("^once-compiled$",)
    table, again = (ExpressionTable(expressions, (Hits(frozenset({n}), ()),)) for n in range(2))
    assert table._set is again._set
    assert table.find(b"once-compiled").conditions == {0}
    assert again.find(b"once-compiled").conditions == {1}
    still_there = weakref.ref(table._set)
    del table, again
    gc.collect()
    assert still_there() is None
