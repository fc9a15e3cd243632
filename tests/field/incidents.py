"""The clients of two real incidents, from the mail logs in tests/data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).parents[1] / "data"


class Attempt(NamedTuple):
    """One attempt to send mail; values that are not in the log are made up."""

    client_address: str
    client_name: str | None  # verified; None for a client without reverse DNS
    sender: str
    helo_name: str


def sakura_attempts() -> list[Attempt]:
    """Phishing from virtual servers. The log is sendmail's; its `relay=` has verified names."""
    lines = (DATA / "maillog.sendmail").read_text().splitlines()
    attempts = []
    for line in lines:
        client = re.search(r"relay=(\S+) \[([\d.]+)\]", line)
        sender = re.search(r"from=<(.*?)>", line)  # none in the line of a client that was refused at once
        assert client is not None, line
        attempts.append(Attempt(client[2], client[1], sender[1] if sender else "noreply@ts3card.com", client[1]))
    return attempts


def bulk_attempts() -> list[Attempt]:
    """A bulk mailer without reverse DNS. The log is Postfix's."""
    lines = (DATA / "maillog.postfix").read_text().splitlines()
    attempts = []
    for line in lines:
        found = re.search(r"from unknown\[([\d.]+)\].* from=<(.*?)> .* helo=<(.*?)>", line)
        assert found is not None, line
        attempts.append(Attempt(found[1], None, found[2], found[3]))
    return attempts
