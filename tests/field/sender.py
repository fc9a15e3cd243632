"""A second Postfix, which sends mail from a given address, and queues and retries deferred mail."""

from __future__ import annotations

import pwd
import shutil
import smtplib
from typing import TYPE_CHECKING

from tests.field.postfix import Postfix
from tests.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path

_MAIN_CF = """\
compatibility_level = 3.6
queue_directory = {root}/queue
data_directory = {root}/state
maillog_file = {root}/log/maillog
maillog_file_prefixes = {root}/log
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = out.sender.example
mydestination =
mynetworks = 127.0.0.0/8
relayhost = [127.0.0.1]:{receiver}
# Seconds between tries instead of minutes, and no bounce to the made-up sender while a test runs.
minimal_backoff_time = 2s
maximal_backoff_time = 2s
queue_run_delay = 2s
# Each try is made by a new process, which reads this file: `send_from` takes effect at once, without a reload.
max_use = 1
alias_maps =
alias_database =
smtpd_peername_lookup = no
"""

_MASTER_CF = """\
127.0.0.1:{submission} inet n - n - - smtpd
pickup    unix       n - n 60    1 pickup
cleanup   unix       n - n -     0 cleanup
qmgr      unix       n - n 300   1 qmgr
rewrite   unix       - - n -     - trivial-rewrite
bounce    unix       - - n -     0 bounce
defer     unix       - - n -     0 bounce
trace     unix       - - n -     0 bounce
flush     unix       n - n 1000? 0 flush
proxymap  unix       - - n -     - proxymap
smtp      unix       - - n -     - smtp
error     unix       - - n -     - error
retry     unix       - - n -     - error
anvil     unix       - - n -     1 anvil
scache    unix       - - n -     1 scache
postlog   unix-dgram n - n -     1 postlogd
"""


class Sender(Postfix):
    """A Postfix that relays everything to port `receiver` of 127.0.0.1, running between `__enter__` and `__exit__`."""

    def __init__(self, root: Path, receiver: int) -> None:
        self.root = root
        self.maillog = root / "log" / "maillog"
        self.port = {"submission": free_port()}
        owners = {"etc": 0, "log": 0, "queue": 0, "state": pwd.getpwnam("postfix").pw_uid}
        for folder, owner in owners.items():
            (root / folder).mkdir()
            shutil.chown(root / folder, owner)
        (root / "etc" / "main.cf").write_text(_MAIN_CF.format(root=root, receiver=receiver))
        (root / "etc" / "master.cf").write_text(_MASTER_CF.format(**self.port))

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
