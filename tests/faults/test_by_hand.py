"""`policyd block` while the rules are half-edited: the block takes effect at once, and ends by itself."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.daemon.client import Client, request
from tests.daemon.conftest import port, start_policyd  # noqa: F401 - fixtures
from tests.daemon.test_control import cli
from tests.faults.conftest import LONG, SOON_SECONDS
from tests.field.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.daemon.conftest import StartPolicyd

SHIPPED = Path(__file__).parents[2] / "config" / "rules.yaml"

# The duration of the block, in seconds and as the value of `--for`. It is longer than the command may take: 2 s.
LASTS, FOR = (60, "1m") if LONG else (5, "5s")


def test_a_block_works_at_once_and_ends_by_itself_beside_half_edited_rules(
    tmp_path: Path,
    start_policyd: StartPolicyd,  # noqa: F811 - the fixture above
    port: int,  # noqa: F811 - the fixture above
) -> None:
    text = SHIPPED.read_text().replace("/var/lib/policyd/lists/", "")
    question = request(client_address="192.0.2.1", sasl_username="someone")
    with start_policyd(text, control=str(tmp_path / "control.sock")) as policyd, Client(port) as client:
        assert client.ask(question) == "DUNNO"
        policyd.rules.write_text("rules: half-edited")
        began = time.time()
        blocked = cli(tmp_path, "block", "192.0.2.1", "--for", FOR, "--why", "bulk")
        refused = client.ask(question)
        took = time.time() - began
        listed = cli(tmp_path, "block", "--list")
        while client.ask(question) != "DUNNO" and time.time() < began + LASTS + PATIENCE_SECONDS:
            time.sleep(0.05)
        lasted = time.time() - began
        after = cli(tmp_path, "block", "--list")
        (logged,) = policyd.decisions(1, rule="blocked-networks")[:1]
        edited = policyd.rules.read_text()
    assert (blocked.returncode, blocked.stderr) == (0, "")
    assert "has been edited since it was loaded; left alone" in blocked.stdout
    assert refused.startswith("REJECT 5.7.1 Mail from 192.0.2.1 is not accepted here")
    assert took < SOON_SECONDS, took
    assert re.fullmatch(r"192\.0\.2\.1  until \S+Z  \S+ \S+: bulk\n", listed.stdout)
    assert LASTS - 1 <= lasted < took + LASTS + SOON_SECONDS, (took, lasted)
    assert after.stdout == "nothing is blocked\n"
    assert (logged["rule"], logged["action"]) == ("blocked-networks", "REJECT")
    assert edited == "rules: half-edited"
