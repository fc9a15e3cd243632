"""New rules under a real Postfix: they apply from the next recipient on, and no client is disconnected."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.field.postfix import Client

if TYPE_CHECKING:
    from tests.field.conftest import StartPolicyd
    from tests.field.policyd import Policyd
    from tests.field.postfix import Postfix

ACCEPT = "rules: []\n"
REJECT = """\
lists:
  listed: {file: listed.txt}
rules:
  - {name: listed, match: {cidr: $listed}, action: REJECT 5.7.1 Not any more}
"""


def open_sockets(policyd: Policyd) -> set[str]:
    """The sockets that the daemon has open, by inode: the same set means that nothing was closed or opened."""
    folder = Path(f"/proc/{policyd.pid}/fd")
    targets = [str(each.readlink()) for each in folder.iterdir()]
    return {target for target in targets if target.startswith("socket:")}


def smtpd_pid(instance: str) -> str:
    """The process that sent the request: the first part of `instance` (smtpd_check.c)."""
    return instance.partition(".")[0]


def test_a_reload_between_two_messages_of_a_session_changes_the_answer_and_closes_nothing(
    service: str, postfix: Postfix, start_policyd: StartPolicyd
) -> None:
    with start_policyd(ACCEPT) as policyd:
        (policyd.rules.parent / "listed.txt").write_text("192.0.2.25\n")
        with Client(postfix.port[service], "192.0.2.25", "mail.sender.example") as client:
            (before,) = client.offer("someone@sender.example", "before@field.example")
            open_before = open_sockets(policyd)
            policyd.rules.write_text(REJECT)
            policyd.reload()
            (after,) = client.offer("someone@sender.example", "after@field.example")
            open_after = open_sockets(policyd)
        (first,) = policyd.decisions(recipient="before@field.example")
        (second,) = policyd.decisions(recipient="after@field.example")
    assert (before.code, after.code) == (250, 554)
    assert after.text.endswith("Not any more")
    assert (first["action"], second["action"]) == ("DUNNO", "REJECT")
    assert first["ruleset"] != second["ruleset"]
    assert smtpd_pid(first["instance"]) == smtpd_pid(second["instance"])
    assert open_before == open_after


BROKEN = {
    "an invalid network": (
        "rules:\n  - {name: listed, match: {cidr: 192.0.2.25/24}, action: REJECT}\n",
        "rules.yaml:2:",
    ),
    "half-written": (REJECT[: REJECT.index("action")], "rules.yaml:"),
    "empty": ("", "rules.yaml:1:1:"),
    "missing": (None, "rules.yaml:"),
}


@pytest.mark.parametrize("name", BROKEN.keys())
def test_an_invalid_rules_file_changes_nothing(name: str, postfix: Postfix, start_policyd: StartPolicyd) -> None:
    text, place = BROKEN[name]
    with start_policyd(REJECT.replace("{file: listed.txt}", "[192.0.2.25]")) as policyd:
        with Client(postfix.port["inet"], "192.0.2.25", "mail.sender.example") as client:
            (before,) = client.offer("someone@sender.example", "before@field.example")
            open_before = open_sockets(policyd)
            policyd.rules.unlink() if text is None else policyd.rules.write_text(text)
            logged = policyd.reload()
            (after,) = client.offer("someone@sender.example", "after@field.example")
            open_after = open_sockets(policyd)
        (first,) = policyd.decisions(recipient="before@field.example")
        (second,) = policyd.decisions(recipient="after@field.example")
    assert place in logged
    assert before.code == after.code == 554
    assert first["reply"] == second["reply"]
    assert first["ruleset"] == second["ruleset"]
    assert open_before == open_after
