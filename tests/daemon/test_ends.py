"""A running daemon drops entries when their end has come: no command, no file read."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from policyd.config.dates import format_end
from tests.daemon.client import Client, request

if TYPE_CHECKING:
    from pathlib import Path

    from tests.daemon.conftest import StartPolicyd

RULES = "lists: {l: {file: l.txt}}\nrules:\n  - {name: l, match: {cidr: $l}, action: REJECT}\n"


def test_an_entry_ends_by_itself_while_the_files_are_edited(
    tmp_path: Path, start_policyd: StartPolicyd, port: int
) -> None:
    end = int(time.time()) + 4
    (tmp_path / "l.txt").write_text(f"192.0.2.9 expires={format_end(end)} # why\n198.51.100.0/24\n")
    ending, staying = request(client_address="192.0.2.9"), request(client_address="198.51.100.1")
    with start_policyd(RULES) as policyd, Client(port) as client:
        refused = client.ask(ending)
        (tmp_path / "l.txt").write_text("no entry at all!\n")
        deadline = end + 10
        while (answer := client.ask(ending)) == refused and time.time() < deadline:
            time.sleep(0.05)
        ended = time.time()
        still = client.ask(staying)
        log = policyd.operational_log.read_text()
    assert refused.startswith("REJECT")
    assert answer == "DUNNO"
    assert end <= ended < end + 3
    assert still.startswith("REJECT")
    assert "dropped entries that have ended: list l changed: 2 entries before, 1 now" in log
