"""A running daemon drops entries at their end, without a command and without reading a file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from policyd.config.dates import format_end
from tests.daemon.client import Client, request
from tests.field.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.daemon.conftest import StartPolicyd

# An audit hook, which records every file that the daemon and its forked processes open.
HOOK = """
import os, sys
log = os.open(os.environ["OPENED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
sys.addaudithook(lambda event, args: event == "open" and os.write(log, f"{args[0]}\\n".encode()))
"""
RULES_WITH_OTHER_FILES = """
databases: {country: countries.csv}
dns_lists: {keyed: {zone: '{key}.list.example', key_file: key, codes: 127.0.0.2, self_test: no}}
lists: {l: {file: l.txt}, other: {file: other.txt}}
rules:
  - {name: l, match: {cidr: $l}, action: REJECT}
  - {name: country, match: {country: JP}, action: REJECT}
  - {name: generic, match: {hostname_generic: yes, cidr: $other}, action: REJECT}
  - {name: keyed, match: {listed: keyed, cidr: $other}, action: REJECT}
"""
RULES = "lists: {l: {file: l.txt}}\nrules:\n  - {name: l, match: {cidr: $l}, action: REJECT}\n"


def test_an_entry_ends_without_a_command_while_the_files_are_edited(
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


@pytest.mark.slow
def test_entries_end_without_any_file_being_read(
    tmp_path: Path,
    start_policyd: StartPolicyd,
    port: int,
    run_before_python: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_before_python(HOOK)
    opened = tmp_path / "opened"
    monkeypatch.setenv("OPENED", str(opened))
    ends = [int(time.time()) + 6, int(time.time()) + 9]
    (tmp_path / "l.txt").write_text("".join(f"192.0.2.{n} expires={format_end(end)}\n" for n, end in enumerate(ends)))
    (tmp_path / "other.txt").write_text("203.0.113.0/24\n")
    (tmp_path / "countries.csv").write_text("198.51.100.0,198.51.100.255,JP\n")
    (tmp_path / "key").write_text("secret\n")
    (tmp_path / "key").chmod(0o600)
    with start_policyd(RULES_WITH_OTHER_FILES) as policyd, Client(port) as client:
        assert client.ask(request(client_address="192.0.2.1")).startswith("REJECT")
        at_start = opened.read_text().splitlines()
        for name in ("l.txt", "other.txt", "countries.csv", "key"):
            (tmp_path / name).unlink()
        until("the end of both entries", lambda: client.ask(request(client_address="192.0.2.1")) == "DUNNO" or None, 20)
        country = client.ask(request(client_address="198.51.100.1"))
        generic = client.ask(request(client_address="203.0.113.9", client_name="h-203-0-113-9.dyn.example.net"))
        log = policyd.operational_log.read_text()
    later = opened.read_text().splitlines()[len(at_start) :]
    assert (country.split()[0], generic.split()[0]) == ("REJECT", "REJECT")
    assert log.count("dropped entries that have ended: list l changed") == 2
    assert f"{tmp_path / 'countries.csv'}" in at_start
    # The hook records a descriptor that os.fdopen opens as a number.
    assert [path for path in later if not path.isdigit() and path[:6] != "/proc/"] == []
