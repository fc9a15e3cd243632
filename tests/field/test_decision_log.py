"""The decision log with a real Postfix: the line of one decision, and logrotate(8) while mail flows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.field.postfix import Client
from tests.field.waiting import until
from tests.requirements import require

if TYPE_CHECKING:
    from tests.field.conftest import StartPolicyd
    from tests.field.postfix import Postfix

RULES = Path(__file__).with_name("rules.yaml").read_text()
LOGROTATE = Path(__file__).parents[2] / "systemd" / "policyd.logrotate"

TEXT_LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d REJECT id=[0-9A-HJKMNP-TV-Z]{8} rule=sakura-vps "
    r"client=unknown\[192\.0\.2\.66\] claimed=tk2-406-44074\.vs\.sakura\.ne\.jp rdns=mismatch state=RCPT "
    r"from=<a@sender\.example> to=<text@field\.example> helo=<client\.example> instance=[0-9a-f.]+ "
    r'ruleset=[0-9a-f]{8} dns_ms=[0-9.]+ ms=[0-9.]+ reply="5\.7\.1 Access denied"\n'
)


def test_the_text_log_has_the_answer_to_the_smtp_client(postfix: Postfix, start_policyd: StartPolicyd) -> None:
    with start_policyd(RULES, decision_log_format="text") as policyd:
        with Client(postfix.port["inet"], "192.0.2.66") as client:
            (reply,) = client.offer("a@sender.example", "text@field.example")
        until("a whole line", lambda: policyd.decision_log.read_text().endswith("\n") or None)
        logged = policyd.decision_log.read_text()
    assert reply.text == "5.7.1 <text@field.example>: Recipient address rejected: Access denied"
    assert TEXT_LINE.fullmatch(logged), logged


def test_rotating_the_decision_log_loses_no_line(postfix: Postfix, start_policyd: StartPolicyd) -> None:
    require("logrotate", root=True)
    recipients = [f"rotated{number}@field.example" for number in range(30)]
    with start_policyd("rules: []\n") as policyd:
        folder = policyd.decision_log.parent
        configuration = folder / "logrotate.conf"
        configuration.write_text(
            LOGROTATE.read_text()
            .replace("/var/log/policyd/*.log", str(policyd.decision_log))
            .replace("su policyd adm", "su root root")
        )
        configuration.chmod(0o644)
        with Client(postfix.port["inet"], "192.0.2.25", "mail.sender.example") as client:
            for recipient in recipients[:10]:
                client.offer("someone@sender.example", recipient)
            subprocess.run(["logrotate", "--force", "--state", folder / "state", configuration], check=True)
            for recipient in recipients[10:20]:
                client.offer("someone@sender.example", recipient)
            until("a new decision log", lambda: policyd.decision_log.exists() or None)
            for recipient in recipients[20:]:
                client.offer("someone@sender.example", recipient)
        files = sorted(folder.glob("decisions.log*"))
        logged = [line for each in files for line in each.read_text().splitlines()]
    assert len(files) == 2
    assert [sum(f'"{recipient}"' in line for line in logged) for recipient in recipients] == [1] * len(recipients)
