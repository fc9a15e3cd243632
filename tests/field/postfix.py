"""A real Postfix for the field tests, and an SMTP client that chooses its name and address.

`Postfix` runs Debian's package from its own folder: configuration, queue, state and log. It does not read or
change the machine's mail system. It listens on 127.0.0.1 only, and its deliveries end in discard(8), in cat(1), in a
maildir of that folder, or at its own port `relay`. It needs root, because master(8) does. It needs no syslog, because
postlogd(8) writes the mail log. Every smtpd(8) runs in the chroot, as Debian's do, and accepts the address and names
that a client gives (https://www.postfix.org/XCLIENT_README.html).
"""

from __future__ import annotations

import pwd
import shutil
import smtplib
import subprocess
from typing import TYPE_CHECKING, NamedTuple, Self

from tests.field.waiting import until
from tests.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path

# Where policyd listens, as a chrooted smtpd(8) sees it: below the queue folder.
POLICY_SOCKET = "private/policyd"

# TCP ports: those of the smtpd services, of the services that they ask, and an unused one (`closed`).
PORTS = ("inet", "unix", "lenient", "states", "access", "filtered", "relay", "policy", "milter", "closed")

# The settings of every Postfix of the tests.
_COMMON_MAIN_CF = """\
compatibility_level = 3.6
queue_directory = {root}/queue
data_directory = {root}/state
maillog_file = {root}/log/maillog
maillog_file_prefixes = {root}/log
inet_interfaces = 127.0.0.1
mydestination =
alias_maps =
alias_database =
smtpd_peername_lookup = no
"""

# The services except smtpd(8), for every Postfix of the tests. The columns have the values of Debian's master.cf.
_COMMON_MASTER_CF = """\
pickup    unix       n - y 60    1 pickup
cleanup   unix       n - y -     0 cleanup
qmgr      unix       n - n 300   1 qmgr
rewrite   unix       - - y -     - trivial-rewrite
bounce    unix       - - y -     0 bounce
defer     unix       - - y -     0 bounce
trace     unix       - - y -     0 bounce
flush     unix       n - y 1000? 0 flush
proxymap  unix       - - n -     - proxymap
smtp      unix       - - y -     - smtp
lmtp      unix       - - y -     - lmtp
error     unix       - - y -     - error
retry     unix       - - y -     - error
discard   unix       - - y -     - discard
virtual   unix       - n n -     - virtual
anvil     unix       - - y -     1 anvil
scache    unix       - - y -     1 scache
postlog   unix-dgram n - n -     1 postlogd
piped     unix       - n n -     - pipe
  user=nobody argv=/bin/cat
"""

MAIN_CF = """\
inet_protocols = all
myhostname = mx.field.example
# The tests connect from 127.0.0.1, and must not be trusted; only this address is.
mynetworks = 127.0.0.2/32
# A recipient's domain chooses how the delivery ends, so that the mail log shows every kind of status=.
relay_domains = field.example, bounced.example, deferred.example, piped.example, unreachable.example, \
relayed.example, lmtp.example
virtual_mailbox_domains = maildir.example
virtual_mailbox_base = {root}/maildir
virtual_mailbox_maps = static:inbox/
virtual_minimum_uid = 1
virtual_uid_maps = static:{nobody}
virtual_gid_maps = static:{nobody}
transport_maps = inline:{{
    {{ field.example = discard: }}
    {{ piped.example = piped: }}
    {{ unreachable.example = smtp:[127.0.0.1]:{closed} }}
    {{ relayed.example = smtp:[127.0.0.1]:{relay} }}
    {{ bounced.example = smtp:[127.0.0.1]:{relay} }}
    {{ deferred.example = smtp:[127.0.0.1]:{relay} }}
    {{ lmtp.example = lmtp:inet:[127.0.0.1]:{closed} }} }}
# All other mail, such as bounces to made-up senders: nothing leaves this machine.
default_transport = discard:
append_dot_mydomain = no
# The names of clients come from XCLIENT only.
smtpd_authorized_xclient_hosts = 127.0.0.1
# Many clients with errors must not be slowed down or disconnected.
smtpd_error_sleep_time = 0
smtpd_soft_error_limit = 1000
smtpd_hard_error_limit = 1000
smtpd_client_connection_count_limit = 0
# No default_action here: without the daemon, a test must see 451, not the 250 of a more lenient setting.
smtpd_policy_service_timeout = 10s
"""

# The smtpd(8) services. Those that ask policyd do so in different ways.
MASTER_CF = """\
127.0.0.1:{inet} inet n - y - - smtpd
  -o {{ smtpd_recipient_restrictions = permit_mynetworks, permit_sasl_authenticated,
        reject_unauth_destination, check_policy_service inet:127.0.0.1:{policy} }}
127.0.0.1:{unix} inet n - y - - smtpd
  -o syslog_name=postfix-in
  -o smtputf8_enable=no
  -o {{ smtpd_recipient_restrictions = permit_mynetworks, permit_sasl_authenticated,
        reject_unauth_destination, check_policy_service unix:{policy_socket} }}
127.0.0.1:{lenient} inet n - y - - smtpd
  -o syslog_name=postfix/lenient
  -o {{ smtpd_recipient_restrictions = permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination,
        check_policy_service {{ inet:127.0.0.1:{policy}, timeout=10s, default_action=DUNNO }} }}
127.0.0.1:{states} inet n - y - - smtpd
  -o syslog_name=postfix/states
  -o smtpd_delay_reject=no
  -o {{ smtpd_client_restrictions = check_policy_service inet:127.0.0.1:{policy} }}
  -o {{ smtpd_helo_restrictions = check_policy_service inet:127.0.0.1:{policy} }}
  -o {{ smtpd_sender_restrictions = check_policy_service inet:127.0.0.1:{policy} }}
  -o {{ smtpd_recipient_restrictions = reject_unauth_destination,
        check_policy_service inet:127.0.0.1:{policy} }}
  -o {{ smtpd_data_restrictions = check_policy_service inet:127.0.0.1:{policy} }}
  -o {{ smtpd_end_of_data_restrictions = check_policy_service inet:127.0.0.1:{policy} }}
127.0.0.1:{filtered} inet n - y - - smtpd
  -o syslog_name=postfix/filtered
  -o smtpd_milters=inet:127.0.0.1:{milter}
  -o milter_default_action=accept
127.0.0.1:{access} inet n - y - - smtpd
  -o {{ smtpd_helo_restrictions = check_helo_access inline:{{ {{ [192.0.2.99] = REJECT }} }} }}
  -o {{ smtpd_sender_restrictions = check_sender_access inline:{{
        {{ held@sender.example = HOLD }} {{ warned@sender.example = WARN looks odd }}
        {{ filtered@sender.example = FILTER discard: }} {{ redirected@sender.example = REDIRECT a@field.example }}
        }} }}
  -o {{ smtpd_recipient_restrictions = reject_unauth_destination, warn_if_reject reject_non_fqdn_helo_hostname,
        check_recipient_access inline:{{ {{ full@ = 452 4.2.2 mailbox full }} }} }}
127.0.0.1:{relay} inet n - y - - smtpd
  -o syslog_name=postfix/relay
  -o myhostname=relay.field.example
  -o {{ smtpd_recipient_restrictions = check_recipient_access inline:{{
        {{ bounced.example = REJECT 5.1.1 no such user here }}
        {{ deferred.example = DEFER 4.3.0 come back later }}
        {{ relayed.example = DISCARD }} }} }}
"""


class Postfix:
    """One Postfix, running between `__enter__` and `__exit__`.

    `port` has the ports of the smtpd services by name. `inet` and `unix` ask policyd for each recipient, at port
    `policy` and at the unix socket `policy_socket`; `unix` also accepts bytes that are not UTF-8. `lenient` is set up
    as the README says, with `default_action=DUNNO`. `states` asks at every stage of a session. Three services do not
    ask policyd: `access` uses access tables, `filtered` a milter at port `milter`, and `relay` receives the mail that
    Postfix itself sends over SMTP.
    """

    def __init__(self, root: Path) -> None:
        self.policy_socket = root / "queue" / POLICY_SOCKET
        self.port = {name: free_port() for name in PORTS}
        nobody = pwd.getpwnam("nobody").pw_uid
        main_cf = MAIN_CF.format(root=root, nobody=nobody, **self.port)
        self._set_up(root, main_cf, MASTER_CF.format(policy_socket=POLICY_SOCKET, **self.port))
        (root / "maildir").mkdir()
        shutil.chown(root / "maildir", nobody)

    def _set_up(self, root: Path, main_cf: str, master_cf: str) -> None:
        """Makes the folders of a Postfix, and writes its configuration."""
        self.root = root
        self.maillog = root / "log" / "maillog"
        for folder in ("etc", "log", "queue", "state"):
            (root / folder).mkdir()
        shutil.chown(root / "state", "postfix")
        (root / "etc" / "main.cf").write_text(_COMMON_MAIN_CF.format(root=root) + main_cf)
        (root / "etc" / "master.cf").write_text(master_cf + _COMMON_MASTER_CF)

    def __enter__(self) -> Self:
        self._run("postfix", "-c", self.root / "etc", "start")
        return self

    def __exit__(self, *_: object) -> None:
        self._run("postfix", "-c", self.root / "etc", "stop")

    def configure(self, setting: str) -> None:
        """Changes a line of main.cf, and makes every process read it."""
        self._run("postconf", "-c", self.root / "etc", "-e", setting)
        self._run("postfix", "-c", self.root / "etc", "reload")

    def _run(self, *command: str | Path) -> None:
        ended = subprocess.run(command, check=False, capture_output=True, text=True)
        log = self.maillog.read_text(errors="replace") if self.maillog.exists() else ""
        assert ended.returncode == 0, f"{command}: {ended.stderr}{log}"

    def log_lines(self, containing: str) -> list[str]:
        """The lines of the mail log that contain a text. Waits for the first line, because postlogd(8) lags."""

        def found() -> list[str] | None:
            lines = self.maillog.read_text(errors="surrogateescape").splitlines()
            return [line for line in lines if containing in line] or None

        return until(f"{containing!r} in the mail log", found)


class Reply(NamedTuple):
    """The answer of an SMTP server: the code, and the text without the code."""

    code: int
    text: str


class Client(smtplib.SMTP):
    """An SMTP session with one of Postfix's services, of a client with any address and name.

    `client_name` is the name that Postfix would have verified, `reverse_client_name` the name in the PTR record;
    None means `unknown`.
    """

    def __init__(
        self,
        port: int,
        client_address: str,
        client_name: str | None = None,
        reverse_client_name: str | None = None,
        *,
        helo_name: str = "client.example",
        sasl_username: str | None = None,
    ) -> None:
        super().__init__("127.0.0.1", port, local_hostname=helo_name, timeout=30)
        self.command_encoding = "latin-1"  # sends each character as one byte
        self.ehlo()
        attributes = {
            "ADDR": f"IPV6:{client_address}" if ":" in client_address else client_address,
            "NAME": client_name or "[UNAVAILABLE]",
            "REVERSE_NAME": reverse_client_name or client_name or "[UNAVAILABLE]",
            "LOGIN": sasl_username or "[UNAVAILABLE]",
        }
        # The reply is the greeting for this client; it may refuse the client at once.
        self.greeting = self.command("XCLIENT", " ".join("=".join(each) for each in attributes.items()))
        assert self.greeting.code in {220, 450, 554}, self.greeting
        self.command("EHLO", helo_name)

    def command(self, verb: str, argument: str = "") -> Reply:
        """Sends one command unchanged, and reads its reply."""
        code, text = self.docmd(verb, argument)
        return Reply(code, text.decode("latin-1"))

    def offer(self, sender: str, *recipients: str) -> list[Reply]:
        """Sends one message to the recipients that the server accepts. Returns the reply to each recipient."""
        began = self.command("MAIL", f"FROM:<{sender}>")
        assert began.code == 250, began
        replies = [self.command("RCPT", f"TO:<{recipient}>") for recipient in recipients]
        if any(reply.code == 250 for reply in replies):
            code, text = self.data("Subject: field test\r\n\r\nOne line.\r\n")
            assert code == 250, text
        else:
            self.rset()
        return replies
