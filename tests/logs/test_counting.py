from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from policyd.logs.counting import Distinct, Frequent


def test_distinct_values_are_counted_over_all_sets_up_to_a_limit() -> None:
    distinct = Distinct(3)
    first: set[int] = set()
    second: set[int] = set()
    assert [distinct.add(first, 1), distinct.add(first, 1), distinct.add(second, 1), distinct.add(first, 2)] == [
        True
    ] * 4
    assert not distinct.add(second, 2)
    assert distinct.add(first, 2)
    assert (first, second) == ({1, 2}, {1})


@given(st.lists(st.integers(0, 300), max_size=400))
def test_frequent_values_are_exact_as_long_as_nothing_is_forgotten(values: list[int]) -> None:
    frequent: Frequent[int] = Frequent(1000)
    for value in values:
        frequent.add(value)
    assert frequent.forgotten == 0
    assert frequent.most_common(400) == Counter(values).most_common(400)


def test_frequent_values_are_kept_when_the_limit_is_reached() -> None:
    frequent: Frequent[str] = Frequent(100)
    for number in range(10_000):
        frequent.add(f"once-{number}")
        if number % 10 == 0:
            frequent.add("often")
    assert frequent.most_common(1) == [("often", 1000)]
    assert len(frequent.most_common(1_000_000)) <= 100
    assert frequent.forgotten > 9000
