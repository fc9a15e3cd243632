"""Likely mistakes in expressions, and correct expressions that cause no warning."""

from __future__ import annotations

import pytest
import re2
from hypothesis import given
from hypothesis import strategies as st

from policyd.config.checks.regex_pitfalls import complaints
from policyd.core.lookups import expression_options

DOT, END, BEGIN = "stands for any character", "end it with '$'", "put '^', '@'"


def kinds(expression: str) -> list[str]:
    return [next(kind for kind in (DOT, END, BEGIN) if kind in complaint) for complaint in complaints(expression)]


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("vs.sakura.ne.jp", [DOT, DOT, DOT, END, BEGIN]),
        (r"vs\.sakura\.ne\.jp", [END, BEGIN]),
        (r"vs\.sakura\.ne\.jp$", [BEGIN]),
        (r"\.vs\.sakura\.ne\.jp", [END]),
        (r"\.vs\.sakura\.ne\.jp$", []),
        (r"^vs\.sakura\.ne\.jp$", []),
        (r"@sakura\.ne\.jp$", []),
        (r"(^|\.)sakura\.ne\.jp$", []),
        (r"(\.|^)sakura\.ne\.jp$", []),
        (r"(?:^|\.)sakura\.ne\.jp$", []),
        (r"(@|\.)sakura\.ne\.jp$", []),
        (r"[.@]sakura\.ne\.jp$", []),
        (r"(^|\.)sakura\.ne\.jp\.?$", []),
        (r".*sakura\.ne\.jp$", [BEGIN]),
        (r".+sakura\.ne\.jp$", [BEGIN]),
        (r"^mail.sakura\.ne\.jp$", [DOT]),
        (r"^mail[.]sakura[.]ne[.]jp$", []),
        (r"^a.*b.+c.?d.{2}e$", []),
        (r"^.a\.b.$", []),
        (r"^[a.b]c$", []),
        (r"^[]a.b]c$", []),
        (r"^[^]a.b]c$", []),
        (r"^[[:alpha:].]x$", []),
        (r"\Qa.b\E", []),
        (r"^192\.168\.1\.1$", []),
        (r"^192.168.1.1$", [DOT, DOT, DOT]),
        (r"^rainbow\+err[a-z0-9]+@", []),
        (r"^(postmaster|abuse)@", []),
        (r"^ip-[0-9]+-pool\.example\.net$", []),
        (r"^(\d+-){3}\d+\.dyn\.example\.net$", []),
        (r"^host\d\.example\.net$", []),
        (r"\.dsl", []),
        (r"\.dsl\.", []),
        (r"^dyn", []),
        (r"a\.example|(^|\.)b\.example$", [END, BEGIN]),
        (r"(a\.example|b\.example)$", []),
        (r"^a\|b\.example$", [BEGIN]),
        (r"\\.example\.com$", []),
        (r"", []),
        (r"x", []),
    ],
)
def test_a_likely_mistake_gives_its_warning(expression: str, wanted: list[str]) -> None:
    assert kinds(expression) == wanted


@given(st.text(r"ab.1\[]()|^$*+?{}@-QE:", max_size=20))
def test_every_valid_expression_can_be_checked(expression: str) -> None:
    try:
        re2.compile(expression, expression_options())
    except re2.error:
        return
    for complaint in complaints(expression):
        assert complaint


names = st.from_regex(r"[a-z]{1,4}(\.[a-z]{2,3}){1,3}", fullmatch=True)


@given(names, st.sampled_from(["^", r"(^|\.)", r"\.", "@"]))
def test_a_correct_domain_causes_no_warning(name: str, before: str) -> None:
    assert kinds(f"{before}{re2.escape(name)}$") == []


@given(names)
def test_warnings_about_a_domain_are_true(name: str) -> None:
    """The names in the warning really match, and do not match after the suggested change."""
    loose = re2.compile(re2.escape(name), expression_options())
    assert kinds(re2.escape(name)) == [END, BEGIN]
    assert loose.search(f"bad{name}")
    assert loose.search(f"{name}.example.net")
    strict = re2.compile(rf"(^|\.){re2.escape(name)}$", expression_options())
    assert strict.search(name)
    assert not strict.search(f"bad{name}")
    assert not strict.search(f"{name}.example.net")
