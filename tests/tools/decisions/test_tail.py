from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from policyd.decision_log.reader import as_text
from policyd.logs.files import LogError
from policyd.tools.decisions.networks import parse_networks
from policyd.tools.decisions.tail import DecisionFilter, as_line, every, follow
from tests.tools.decision_lines import line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Script:
    """A `wait` for `follow`: changes the log by one step in each call, and ends the tail after the last step."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self._steps = list(steps)

    def __call__(self) -> bool:
        if not self._steps:
            return False
        self._steps.pop(0)()
        return True


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "decisions.log"


def append(log: Path, *lines: str) -> Callable[[], object]:
    """Returns a function that appends the lines to the log."""

    def write() -> None:
        with log.open("a") as file:
            file.write("".join(lines))

    return write


def ids(log: Path, last: int, *steps: Callable[[], object], wanted: DecisionFilter | None = None) -> list[str]:
    return [decision.id.decode() for decision in follow(str(log), last, wanted or DecisionFilter(), Script(*steps))]


def test_the_last_lines_are_shown_and_then_each_new_line(log: Path) -> None:
    append(log, *(line(id=f"OLD{n}") for n in range(5)))()
    assert ids(log, 2, append(log, line(id="NEW1")), append(log, line(id="NEW2"))) == ["OLD3", "OLD4", "NEW1", "NEW2"]
    assert ids(log, 0, append(log, line(id="NEW3"))) == ["NEW3"]


def test_a_line_is_shown_when_it_is_complete(log: Path) -> None:
    log.touch()
    text = line(id="WHOLE")
    assert ids(log, 0, append(log, text[:50]), append(log, text[50:-1]), append(log, "\n")) == ["WHOLE"]


def test_a_rotated_log_is_read_to_its_end_before_the_new_log(log: Path) -> None:
    append(log, line(id="FIRST"))()
    rotated = log.with_suffix(".log.1")

    def rotate() -> None:
        log.rename(rotated)
        append(rotated, line(id="LATE"))()
        append(log, line(id="NEW"))()

    assert ids(log, 1, rotate, append(log, line(id="NEWER"))) == ["FIRST", "LATE", "NEW", "NEWER"]


def test_tail_waits_for_a_log_that_is_missing_for_a_while(log: Path) -> None:
    append(log, line(id="FIRST"))()
    steps = [lambda: log.rename(log.with_suffix(".1")), lambda: None, append(log, line(id="NEW"))]
    assert ids(log, 1, *steps) == ["FIRST", "NEW"]


def test_a_removed_log_is_followed_when_it_reappears(log: Path) -> None:
    append(log, line(id="FIRST"))()
    assert ids(log, 1, log.unlink, append(log, line(id="NEW"))) == ["FIRST", "NEW"]


def test_a_truncated_log_is_read_from_its_start(log: Path) -> None:
    append(log, line(id="FIRST"), line(id="SECOND"))()

    def copy_and_truncate() -> None:
        log.write_text("")
        append(log, line(id="NEW"))()

    assert ids(log, 1, copy_and_truncate) == ["SECOND", "NEW"]


def test_the_last_lines_of_a_large_log_are_found_from_its_end(log: Path) -> None:
    append(log, *(line(id=f"N{n}") for n in range(20_000)))()
    assert ids(log, 3) == ["N19997", "N19998", "N19999"]


def test_a_missing_log_is_an_error_at_the_start(log: Path) -> None:
    with pytest.raises(LogError, match=r"decisions.log: no such file or directory"):
        ids(log, 1)


NETWORKS = parse_networks(["192.0.2.0/24", "2001:db8::/32"])


@pytest.mark.parametrize(
    ("wanted", "text", "is_shown"),
    [
        (DecisionFilter(), line(), True),
        (DecisionFilter(actions=frozenset({b"REJECT"})), line(), True),
        (DecisionFilter(actions=frozenset({b"REJECT"})), line("DUNNO would=REJECT"), True),
        (DecisionFilter(actions=frozenset({b"REJECT", b"DEFER"})), line("DUNNO"), False),
        (DecisionFilter(rules=frozenset({b"sakura-vps"})), line(), True),
        (DecisionFilter(rules=frozenset({b"default"})), line(rule=""), True),
        (DecisionFilter(rules=frozenset({b"tried"})), line(more="observed=other,tried"), True),
        (DecisionFilter(rules=frozenset({b"tried"})), line(), False),
        (DecisionFilter(networks=NETWORKS), line(client="x[192.0.2.7]"), True),
        (DecisionFilter(networks=NETWORKS), line(client="x[::ffff:192.0.2.7]"), True),
        (DecisionFilter(networks=NETWORKS), line(client="x[2001:db8:5::1]"), True),
        (DecisionFilter(networks=NETWORKS), line(client="x[192.0.3.7]"), False),
        (DecisionFilter(networks=NETWORKS), line(client="x[unknown]"), False),
        (DecisionFilter(frozenset({b"DEFER"}), frozenset({b"sakura-vps"})), line(), False),
    ],
    ids=[
        "no filter",
        "action",
        "action that was not sent",
        "other action",
        "rule",
        "default",
        "observed rule",
        "other rule",
        "network",
        "network of an IPv4-mapped address",
        "IPv6 network",
        "other network",
        "no address",
        "rule with another action",
    ],
)
def test_only_wanted_decisions_are_shown(log: Path, wanted: DecisionFilter, text: str, is_shown: bool) -> None:
    append(log, text)()
    assert (ids(log, 10, wanted=wanted) != []) is is_shown
    assert (list(every([str(log)], wanted)) != []) is is_shown


def test_an_invalid_network_gets_a_message_with_the_right_form() -> None:
    with pytest.raises(ValueError, match=r"'x' is not a network; write 192.0.2.0/24"):
        parse_networks(["x"])


def test_a_line_is_the_same_with_and_without_colour(log: Path) -> None:
    append(log, line(more="observed=rule=odd"), line(rule=""))()
    for decision in every([str(log)], DecisionFilter()):
        screen = io.StringIO()
        Console(file=screen, force_terminal=True, width=400).print(as_line(decision))
        assert "\x1b[" in screen.getvalue()
        assert as_line(decision).plain == as_text(decision)
