"""The restrictions of systemd/policyd.service, as far as they can be applied without systemd."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.field.postfix import Client

if TYPE_CHECKING:
    from tests.field.conftest import StartPolicyd
    from tests.field.postfix import Postfix

# prctl(2), since Linux 6.3: in this process and its children, no mapping that was writable can become executable.
PR_GET_MDWE = 66
DENY_WRITE_EXECUTE = """\
import ctypes, os, sys
PR_SET_MDWE, REFUSE_EXEC_GAIN = 65, 1
assert ctypes.CDLL(None).prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""

RULES = """\
rules:
  - {name: customer, match: {hostname: tk2-406-44074.vs.sakura.ne.jp}, action: DUNNO}
  - {name: sakura-vps, match: {hostname_suffix: vs.sakura.ne.jp}, action: REJECT 5.7.1 Access denied}
"""


def test_no_memory_needs_to_be_both_written_and_executed(postfix: Postfix, start_policyd: StartPolicyd) -> None:
    if ctypes.CDLL(None).prctl(PR_GET_MDWE, 0, 0, 0, 0) < 0:
        pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3)")
    with start_policyd(RULES, wrapper=[sys.executable, "-c", DENY_WRITE_EXECUTE]) as policyd:
        policyd.reload()
        with Client(postfix.port["inet"], "192.0.2.66") as client:
            (reply,) = client.offer("someone@sender.example", "no-wx@field.example")
        (decision,) = policyd.decisions(recipient="no-wx@field.example")
    assert (reply.code, decision["reverse_dns"]) == (554, "mismatch")


@pytest.mark.parametrize("service", ["unix"], indirect=True)
@pytest.mark.usefixtures("listener")
def test_postfix_does_not_change_the_socket_in_its_private_folder(postfix: Postfix) -> None:
    before, logged = postfix.policy_socket.stat(), len(postfix.maillog.read_text())
    output = ""
    for command in ("check", "reload", "stop", "start"):
        output += subprocess.run(
            ["postfix", "-c", postfix.root / "etc", command],
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ).stdout
    # Postfix 3.10 reports its actions; Postfix 3.7 does not.
    confirmed = re.compile(r"postfix/postlog: (refreshing|stopping|starting) the Postfix mail system")
    assert [line for line in output.splitlines() if not confirmed.fullmatch(line)] == []
    after = postfix.policy_socket.stat()
    assert (after.st_ino, after.st_mode, after.st_uid) == (before.st_ino, before.st_mode, before.st_uid)
    assert "private/policyd" not in postfix.maillog.read_text()[logged:]
