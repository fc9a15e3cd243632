"""Logs of other programs and of policyd, with any client text in them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from policyd.decision_log import reader
from policyd.logs.files import MAX_LINE_BYTES, LogError, read_blocks
from policyd.logs.maillog import MailLog
from policyd.logs.transaction import MAX_RECIPIENTS, MailOutcome, NameStatus, Observation

if TYPE_CHECKING:
    from pathlib import Path

# When the file was modified: 1 January 2027. Timestamps without a year get their year from it.
MODIFIED = 1_798_761_600.0


def log_file(content: bytes, folder: Path) -> None:
    """A file, compressed or not, whole or truncated, gives lines of bounded length in the order of the file, or a
    one-line error.
    """
    path = folder / "log"
    path.write_bytes(content)
    lines: list[bytes] = []
    advanced = 0

    def advance(count: int) -> None:
        nonlocal advanced
        assert count >= 0
        advanced += count

    try:
        for block in read_blocks([str(path)], advance):
            assert block.lines
            assert block.first == (not lines)
            lines += block.lines
    except LogError as error:
        assert str(error).isprintable()
        return
    assert advanced == len(content)
    assert all(len(line) <= MAX_LINE_BYTES and b"\n" not in line for line in lines)
    if not content.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        *whole, last = content.replace(b"\r\n", b"\n").split(b"\n")
        assert lines == ([*whole, last.removesuffix(b"\r")] if last else whole)


def mail_log(content: bytes, _folder: Path) -> None:
    """No line raises, each is counted once, there are at most as many mails as the lines represent, and the size of
    blocks does not matter.
    """
    lines = content.split(b"\n")
    at_once, one_by_one = MailLog(), MailLog()
    at_once.start_file(MODIFIED)
    one_by_one.start_file(MODIFIED)
    found = [*at_once.feed(lines), *at_once.finish()]
    again = [mail for line in lines for mail in one_by_one.feed([line])] + one_by_one.finish()
    assert found == again
    counts = at_once.counts
    assert counts == one_by_one.counts
    assert counts.lines == len(lines) == counts.used + counts.other + counts.unknown
    assert len(found) <= counts.used + counts.repeated
    for mail in found:
        _check(mail)


def _check(mail: Observation) -> None:
    assert isinstance(mail.outcome, MailOutcome)
    assert isinstance(mail.name_status, NameStatus)
    assert mail.time is None or 0 <= mail.time < 1e10
    assert len(mail.recipients) <= MAX_RECIPIENTS
    assert mail.log in {"postfix", "sendmail", "policyd"}
    for value in (mail.client_address, mail.helo_name, mail.sasl_username, mail.by, mail.text, *mail.names):
        assert isinstance(value, bytes)
    assert all(isinstance(recipient, bytes) for recipient in mail.recipients)
    assert mail.sender is None or isinstance(mail.sender, bytes)


def decision_log(content: bytes, _folder: Path) -> None:
    """Any line is a decision or not; a decision can be written as one printable line of either format, and is read back
    unchanged.
    """
    for line in content.split(b"\n"):
        decision = reader.parse_anywhere(line)
        if decision is None:
            continue
        text = reader.as_text(decision)
        assert text.isascii()
        assert text.isprintable()
        again = reader.parse(text.encode())
        assert again is not None
        assert reader.as_text(again) == text
        fields = json.loads(json.dumps(reader.as_json(decision), allow_nan=False))
        from_fields = reader.from_json(fields)
        assert from_fields is not None
        assert reader.as_json(from_fields) == fields
