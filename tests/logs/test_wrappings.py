from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.logs.maillog import MailLog, observations
from policyd.logs.transaction import MailOutcome, NameStatus, Observation
from policyd.logs.wrappings import repeats, unwrap
from tests.local_time import local_time
from tests.logs.wrapped import LINES, WRAPPINGS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Facts that no wrapping may change: the client, its names, and the outcome of its mail.
MAILS = [
    (b"192.0.2.10", (b"mail.example.com",), NameStatus.VERIFIED, MailOutcome.DELIVERED),
    (b"198.51.100.7", (b"bad.example.org",), NameStatus.CLAIMED, MailOutcome.REJECTED),
    (b"203.0.113.9", (b"spam.example.org",), NameStatus.VERIFIED, MailOutcome.REJECTED),
]
WITHOUT_A_TIME = {
    "journalctl -o short-monotonic",
    "journalctl -o short-delta",
    "journalctl -o cat",
    "a tag without a timestamp",
    "host and tag without a timestamp",
}


@pytest.fixture(autouse=True)
def utc() -> Iterator[None]:
    with local_time("UTC"):
        yield


def read(path: Path, log: MailLog) -> list[Observation]:
    return [mail for batch in observations([str(path)], log) for mail in batch]


def wrapped(folder: Path, name: str) -> Path:
    path = folder / "mail.log"
    path.write_text("".join(WRAPPINGS[name](line) + "\n" for line in LINES), newline="")
    return path


def facts_of(mails: list[Observation]) -> list[tuple[bytes, tuple[bytes, ...], NameStatus, MailOutcome]]:
    return sorted((mail.client_address, mail.names, mail.name_status, mail.outcome) for mail in mails)


@pytest.mark.parametrize("name", WRAPPINGS)
def test_a_log_gives_the_same_mails_in_every_wrapping(tmp_path: Path, name: str) -> None:
    log = MailLog()
    mails = read(wrapped(tmp_path, name), log)
    assert facts_of(mails) == MAILS
    assert log.counts.unknown == 0
    assert {mail.time is None for mail in mails} == {name in WITHOUT_A_TIME}
    if name not in WITHOUT_A_TIME and "+03" not in WRAPPINGS[name](LINES[0]):
        assert all(abs((mail.time or 0) - LINES[0].when.timestamp()) < 20 for mail in mails)


def test_wrappings_may_be_mixed_in_one_file(tmp_path: Path) -> None:
    wraps = list(WRAPPINGS.values())
    path = tmp_path / "mail.log"
    with path.open("w", newline="") as file:
        for wrap in wraps:
            file.writelines(wrap(line) + "\n" for line in LINES)
    mails = read(path, MailLog())
    assert len(mails) == 3 * len(wraps)
    assert sorted(set(facts_of(mails))) == MAILS


def test_there_are_many_wrappings() -> None:
    assert len(WRAPPINGS) >= 37


@pytest.mark.parametrize(
    "line",
    [
        "Jan  5 10:05:00 mx sshd[4]: Invalid user Jan  5 10:05:01 mx postfix/smtpd[104]: NOQUEUE: reject: RCPT",
        "Jan  5 10:05:00 mx sshd[4]: Jan  5 10:05:01 mx postfix/smtpd: x",
        "<22>1 2026-01-05T10:05:01Z mx sshd 4 - - Jan  5 10:05:01 mx postfix/smtpd[104]: x",
        "postfix-1  | Jan  5 10:05:00 mx sshd[4]: postfix/smtpd[104]: x",
    ],
)
def test_the_outermost_tag_counts(line: str) -> None:
    entry = unwrap(line.encode())
    assert (entry.program, entry.pid) == (b"sshd", b"4")


@pytest.mark.parametrize(
    ("line", "times"),
    [
        ("Jan  5 10:05:05 mx last message repeated 3 times", 3),
        ("Jan  5 10:05:05 last message repeated 1 time", 1),
        ("Jan  5 10:05:05 <mail.info> mx last message repeated 2 times", 2),
        ("Jan  5 10:05:05 mx syslogd: last message repeated 2 times", 2),
        ("Jan  5 10:05:05 mx --- last message repeated 4 times ---", 4),
        ("Jan  5 10:05:05 mx Last message 'NOQUEUE: reject: RC' repeated 5 times, suppressed by syslog-ng on mx", 5),
        ("Jan  5 10:05:05 mx sshd[4]: last message repeated 3 times", 0),
        ("Jan  5 10:05:05 mx postfix/smtpd[4]: connect from a[192.0.2.1]", 0),
    ],
)
def test_the_number_of_repetitions_that_a_line_reports(line: str, times: int) -> None:
    assert repeats(line.encode()) == times


# Lines that would make a backtracking expression slow: each repeats a text that several of its parts can match.
@pytest.mark.parametrize(
    "line",
    [
        b"Jan  5 10:05:01 " + text * (8000 // len(text))
        for text in (b"a ", b"INFO ", b"<mail.info> ", b"a/", b"1:", b"a[1", b"192.0.2.1 ", b"[a] ", b"a.b@c ")
    ]
    + [text * (8000 // len(text)) for text in (b"> ", b"1 ", b"a:", b'"', b"[a] ", b"a b ", b"a", b"a|", b"\x1b[0m")]
    + [
        b"2026-01-05T10:05:01Z " * 380,
        b"<22>1 2026-01-05T10:05:01Z a b c d " + b'[a "x\\]"]' * 800,
        b'<22>1 2026-01-05T10:05:01Z a b c d [a "' + b"\\" * 8000,
    ],
    ids=lambda line: line[:24].decode() + "..." + line[-6:].decode(),
)
def test_no_line_takes_long(line: bytes) -> None:
    started = time.process_time()
    unwrap(line)
    repeats(line)
    assert time.process_time() - started < 0.05


@given(st.binary(max_size=300))
def test_any_bytes_can_be_unwrapped(line: bytes) -> None:
    entry = unwrap(line)
    assert len(entry.message) <= len(line)
    assert repeats(line) >= 0
