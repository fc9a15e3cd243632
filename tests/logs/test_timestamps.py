from __future__ import annotations

import datetime
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.logs.timestamps import LogClock, rfc3339
from tests.local_time import local_time

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def tokyo() -> Iterator[None]:
    with local_time("Asia/Tokyo"):
        yield


def unix(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()


def clock(modified: str) -> LogClock:
    started = LogClock()
    started.start_file(unix(modified))
    return started


def times(modified: str, *stamps: str) -> list[str]:
    reader = clock(modified)
    return [rfc3339(reader.seconds(stamp.encode())) for stamp in stamps]


@pytest.mark.parametrize(
    ("stamp", "expected"),
    [
        ("Aug  3 12:15:23", "2026-08-03T12:15:23+09:00"),
        ("Aug 03 12:15:23", "2026-08-03T12:15:23+09:00"),  # journald
        ("Mar 9 23:12:23", "2026-03-09T23:12:23+09:00"),
        ("<22>Aug  3 12:15:23", "2026-08-03T12:15:23+09:00"),
        ("2026-08-03T12:15:23.125+09:00", "2026-08-03T12:15:23+09:00"),
        ("2026-08-03T03:15:23Z", "2026-08-03T12:15:23+09:00"),
        ("2026-08-03T12:15:23+0900", "2026-08-03T12:15:23+09:00"),  # journalctl -o short-iso
        ("2026-08-03 12:15:23", "2026-08-03T12:15:23+09:00"),
        ("@1785726923000000", "2026-08-03T12:15:23+09:00"),
    ],
)
def test_the_usual_forms_of_a_timestamp_are_read(stamp: str, expected: str) -> None:
    assert times("2026-09-01T00:00:00+09:00", stamp) == [expected]


@pytest.mark.parametrize("stamp", ["2026-08-03T12:15:23.125+09:00", "Aug  3 12:15:23.125", "@1785726923125000"])
def test_fractions_of_a_second_are_kept(stamp: str) -> None:
    seconds = clock("2026-09-01T00:00:00+09:00").seconds(stamp.encode())
    assert seconds == pytest.approx(unix("2026-08-03T12:15:23.125+09:00"), abs=1e-6)


@pytest.mark.parametrize(
    "stamp",
    [
        "",
        "Foo  3 12:15:23",
        "Aug 32 12:15:23",
        "Aug  3 25:15:23",
        "Feb 30 00:00:00",
        "2026-13-03T12:15:23Z",
        "0000-01-01T00:00:00Z",
        "9999-12-31T23:59:59-12:00",
        "@x",
    ],
)
def test_an_invalid_time_gives_none(stamp: str) -> None:
    assert times("2026-09-01T00:00:00+09:00", stamp) == ["-"]


@pytest.mark.parametrize(
    ("modified", "stamps", "years"),
    [
        # Over New Year, in a file that was written to on 2 January.
        ("2027-01-02T08:00:00+09:00", ["Dec 30 10:00:00", "Dec 31 23:59:59", "Jan  1 00:00:00"], [2026, 2026, 2027]),
        # A line from another host, whose clock is a second behind.
        ("2027-01-02T08:00:00+09:00", ["Jan  1 00:00:00", "Dec 31 23:59:59", "Jan  1 00:00:01"], [2027, 2026, 2027]),
        # A file of last year, read today: its own date counts.
        ("2025-08-04T00:00:00+09:00", ["Aug  3 12:00:00"], [2025]),
        # A leap day is in a leap year, however long ago.
        ("2026-03-01T00:00:00+09:00", ["Feb 29 12:00:00"], [2024]),
        ("2024-03-01T00:00:00+09:00", ["Feb 28 12:00:00", "Feb 29 12:00:00", "Mar  1 00:00:00"], [2024] * 3),
        # A line may be two days later than the file's date. A later line is from the year before.
        ("2026-11-21T12:00:00+09:00", ["Nov 22 12:00:00", "Nov 23 12:00:00", "Nov 24 13:00:00"], [2026, 2026, 2025]),
        # A log of most of a year, with gaps.
        ("2026-11-21T12:00:00+09:00", ["Dec  1 00:00:00", "Feb  5 00:00:00", "Aug  3 00:00:00"], [2025, 2026, 2026]),
    ],
)
def test_the_year_is_inferred(modified: str, stamps: list[str], years: list[int]) -> None:
    assert [int(text[:4]) for text in times(modified, *stamps)] == years


def test_each_file_is_dated_by_its_own_date() -> None:
    reader = clock("2026-03-01T00:00:00+09:00")
    assert rfc3339(reader.seconds(b"Feb  5 12:00:00")) == "2026-02-05T12:00:00+09:00"
    reader.start_file(unix("2025-03-01T00:00:00+09:00"))
    assert rfc3339(reader.seconds(b"Feb  5 12:00:00")) == "2025-02-05T12:00:00+09:00"


@given(st.binary(max_size=60))
def test_no_timestamp_raises(stamp: bytes) -> None:
    seconds = clock("2026-09-01T00:00:00+09:00").seconds(stamp)
    assert seconds is None or seconds >= 0


@given(st.integers(int(unix("2025-12-01T00:00:00Z")), int(unix("2026-11-20T00:00:00Z"))))
def test_every_time_in_the_year_before_a_files_date_is_read_correctly(seconds: int) -> None:
    stamp = time.strftime("%b %e %H:%M:%S", time.localtime(seconds)).encode()
    assert clock("2026-11-21T00:00:00+09:00").seconds(stamp) == seconds
