"""The mail log of a real Postfix has the lines of tests/data/maillog.shapes, which tests without a Postfix use."""

from __future__ import annotations

import re
from pathlib import Path

RECORDED = Path(__file__).parents[1] / "data" / "maillog.shapes"


# The words that tell the kind of a line; the first match counts.
VERBS = re.compile(r"|".join([
    r"status=\w+",
    r"(?:[\w-]+: )?[\w-]+ (?=from )",  # reject: RCPT from, milter-reject: END-OF-MESSAGE from, connect from
    r"\b(?:client|from|message-id)=",
    r"sender non-delivery notification|lost connection after|connect to|removed",
]))  # fmt: skip
# Short: microseconds and inode in hexadecimal. Long: seconds and microseconds in base 52, "z", inode in base 51. On a
# small file system, the inode has one digit (global/mail_queue.h).
QUEUE_ID = re.compile(r"(?:(?P<none>NOQUEUE)|(?P<short>[0-9A-F]{6,})|(?P<long>[0-9A-Za-z]{10}z[0-9A-Za-y]+))(?=: )")
# Lines that begin with NOQUEUE in Postfix 3.10, but not in Postfix 3.7.
OF_A_SESSION = "lost connection after"


def shapes(log: str) -> set[str]:
    """The kinds of lines: program, kind of queue id, and the words of VERBS, without the values of one mail."""
    found = set()
    for line in log.splitlines():
        program, _, message = line.split(" ", 4)[4].partition("[")
        queue_id = QUEUE_ID.match(message.partition(": ")[2])
        verb = VERBS.search(message)
        if verb is not None:
            kind = queue_id.lastgroup if queue_id and verb[0] != OF_A_SESSION else "no"
            found.add(f"{program} {kind} {verb[0]}")
    return found


def test_the_recorded_shapes_are_what_postfix_writes(maillog: Path) -> None:
    assert shapes(RECORDED.read_text()) - shapes(maillog.read_text()) == set()
