"""The forms in which names and values are compared, as docs/ruleset.md defines them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.core.normalize import MAX_NAME, domain_of, fold_name, fold_value


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
def test_names_are_compared_as_lower_case_a_labels_without_the_trailing_dot(name: bytes, want: bytes) -> None:
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


def test_values_outside_ascii_are_folded_and_invalid_utf_8_is_replaced() -> None:
    assert fold_value("Ünï@EXAMPLE".encode()) == "ünï@example".encode()
    assert fold_value(b"\xff\xc0") == b"\xef\xbf\xbd" * 2


@given(st.binary())
def test_folding_twice_changes_nothing(value: bytes) -> None:
    assert fold_value(fold_value(value)) == fold_value(value)
