"""A second Postfix, which connects from an IP address that the test chooses, and queues and retries deferred mail."""

from __future__ import annotations

import smtplib
from typing import TYPE_CHECKING

from tests.field.postfix import Postfix
from tests.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path

_MAIN_CF = """\
inet_protocols = ipv4
myhostname = out.sender.example
mynetworks = 127.0.0.0/8
relayhost = [127.0.0.1]:{receiver}
# Seconds between tries instead of minutes.
minimal_backoff_time = 2s
maximal_backoff_time = 2s
queue_run_delay = 2s
# Each try is made by a new process, which reads this file, so `send_from` takes effect at once, without a reload.
max_use = 1
"""

_MASTER_CF = "127.0.0.1:{submission} inet n - y - - smtpd\n"


class Sender(Postfix):
    """A Postfix that relays everything to port `receiver` of 127.0.0.1, running between `__enter__` and `__exit__`."""

    def __init__(self, root: Path, receiver: int) -> None:
        self.port = {"submission": free_port()}
        self._set_up(root, _MAIN_CF.format(receiver=receiver), _MASTER_CF.format(**self.port))

    def send_from(self, address: str) -> None:
        """Makes every later try use this address of 127.0.0.0/8."""
        self._run("postconf", "-c", self.root / "etc", "-e", f"smtp_bind_address = {address}")
        self.flush()

    def flush(self) -> None:
        """Makes Postfix retry now, in addition to its own retries."""
        self._run("postqueue", "-c", self.root / "etc", "-f")

    def submit(self, sender: str, recipient: str) -> None:
        """Puts a mail into the queue."""
        with smtplib.SMTP("127.0.0.1", self.port["submission"], timeout=30) as client:
            refused = client.sendmail(sender, recipient, "Subject: field test\r\n\r\nOne line.\r\n")
        assert refused == {}
