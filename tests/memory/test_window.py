"""Sliding windows against a naive model that keeps every event."""

from hypothesis import given
from hypothesis import strategies as st

from policyd.memory.window import MAX_DISTINCT, SLOTS, DistinctWindow, EventWindow, slot_of

WITHIN = 600
STEPS = st.lists(st.tuples(st.floats(0, 2 * WITHIN), st.integers(0, 4)), max_size=120)


def bounds(events: list[tuple[float, int]], now: float) -> tuple[set[int], set[int]]:
    """The events that certainly count, and those that may count."""
    certain = {place for place, (at, _) in enumerate(events) if now - at <= WITHIN * (SLOTS - 1) / SLOTS}
    possible = {place for place, (at, _) in enumerate(events) if now - at <= WITHIN}
    return certain, possible


@given(STEPS)
def test_events_count_for_the_window_exact_to_a_sixtieth(steps: list[tuple[float, int]]) -> None:
    window, events, now = EventWindow(), list[tuple[float, int]](), 1e9
    for wait, _ in steps:
        now += wait
        count = window.add(slot_of(now, WITHIN))
        events.append((now, 0))
        certain, possible = bounds(events, now)
        assert len(certain) <= count <= len(possible)
        assert window.count(slot_of(now, WITHIN)) == count
        assert len(window.entries()) <= SLOTS
        assert EventWindow.of(window.entries(), slot_of(now, WITHIN)).entries() == window.entries()


@given(STEPS)
def test_distinct_values_expire_after_they_were_last_seen(steps: list[tuple[float, int]]) -> None:
    window, events, now = DistinctWindow(), list[tuple[float, int]](), 1e9
    for wait, value in steps:
        now += wait
        slot = slot_of(now, WITHIN)
        expected = window.count_with(slot, b"%d" % value)
        count = window.add(slot, b"%d" % value)
        assert count == expected
        events.append((now, value))
        certain, possible = bounds(events, now)
        assert len({events[place][1] for place in certain}) <= count <= len({events[place][1] for place in possible})
        assert DistinctWindow.of(window.entries(), slot).entries() == window.entries()


def test_a_clock_that_is_set_back_loses_no_event() -> None:
    window = EventWindow()
    window.add(1000)
    assert window.add(990) == 2
    assert window.count(1000 + SLOTS - 1) == 2
    assert window.count(1000 + SLOTS) == 0


def test_a_clock_that_is_set_back_loses_no_value() -> None:
    window = DistinctWindow()
    window.add(1000, b"a")
    assert window.add(990, b"b") == 2
    assert window.add(990, b"a") == 2


def test_distinct_values_beyond_the_maximum_are_dropped() -> None:
    window = DistinctWindow()
    counts = [window.add(1, b"%d" % number) for number in range(1000)]
    assert counts[:MAX_DISTINCT] == list(range(1, MAX_DISTINCT + 1))
    assert set(counts[MAX_DISTINCT:]) == {MAX_DISTINCT}


def test_stored_entries_that_lie_in_the_future_are_dropped() -> None:
    assert EventWindow.of([(100, 2), (101, 3)], 100).entries() == [(100, 2)]
    assert DistinctWindow.of([(b"a", 101), (b"b", 99)], 100).entries() == [(b"b", 99)]
