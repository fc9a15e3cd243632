"""Lines about events that repeat."""

from policyd.core.throttle import MessageThrottle


def test_the_first_event_gets_a_line_at_once_and_later_events_share_a_line() -> None:
    throttle = MessageThrottle(1.0)
    assert throttle.line_for("one", 10.0) == "one"
    assert throttle.due_line(10.5) is None
    assert throttle.line_for("two", 10.6) is None
    assert throttle.line_for("three", 10.7) is None
    assert throttle.due_line(10.8) is None
    assert throttle.due_line(11.0) == "three (2 times since the last such line)"
    assert throttle.line_for("four", 11.5) is None
    assert throttle.due_line(12.1) == "four"
    assert throttle.due_line(13.2) is None
    assert throttle.line_for("five", 20.0) == "five"
    assert throttle.line_for("six", 20.5) is None
    assert throttle.line_for("seven", 30.0) == "seven (2 times since the last such line)"
