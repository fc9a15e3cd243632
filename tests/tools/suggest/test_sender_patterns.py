from __future__ import annotations

import pytest
import re2
from hypothesis import given
from hypothesis import strategies as st

from policyd.config.checks.regex_pitfalls import complaints
from policyd.tools.suggest.sender_patterns import Shape, shape_of


@pytest.mark.parametrize(
    ("senders", "expression"),
    [
        (["rainbow+errnnn0", "rainbow+errnnn1"], r"^rainbow\+err[a-z0-9]+@"),
        (["rainbow+err000123", "Rainbow+ERR000124", "rainbow+errx7"], r"^rainbow\+err[a-z0-9]+@"),
        (["bounce-1201", "bounce-44"], r"^bounce-[0-9]+@"),
        (["bounces+12-joe=here.example", "bounces+13-ann=there.example"], r"^bounces\+[0-9]+-.+@"),
        (["list-owner-a7f3", "list-owner-09bc"], r"^list-owner-[a-z0-9]+@"),
        (["user12", "user7"], r"^user[0-9]+@"),
        (["20261121", "7"], r"^[0-9]+@"),
    ],
)
def test_senders_of_one_mailer_have_one_shape(senders: list[str], expression: str) -> None:
    shapes = {shape_of(sender) for sender in senders}
    assert len(shapes) == 1
    shape = shapes.pop()
    assert shape is not None
    assert shape.expression("") == expression
    assert not list(complaints(expression))


@pytest.mark.parametrize("local", ["supprot", "info", "first.last", "errors", "return", "", "root"])
def test_a_sender_in_which_nothing_changes_has_no_shape(local: str) -> None:
    assert shape_of(local) is None


@pytest.mark.parametrize(
    ("local", "distinctive"), [("rainbow+err1", True), ("news12", False), ("b-12", False), ("longword77", False)]
)
def test_only_distinctive_patterns_need_no_domain(local: str, distinctive: bool) -> None:
    shape = shape_of(local)
    assert shape is not None
    assert shape.distinctive is distinctive


def test_a_domain_is_a_literal_in_the_expression() -> None:
    expression = Shape(("news", "\0digits")).expression("mag-r.net")
    assert expression == r"^news[0-9]+@mag-r\.net$"
    assert not list(complaints(expression))


@given(st.from_regex(r"[!-?A-~]{1,40}", fullmatch=True))
def test_the_expression_of_a_shape_finds_its_own_sender(local: str) -> None:
    shape = shape_of(local)
    if shape is not None:
        options = re2.Options()
        options.case_sensitive = False
        for domain in ("", "mag-r.net"):
            assert re2.compile(shape.expression(domain), options).search(f"{local}@mag-r.net")
