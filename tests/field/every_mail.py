"""Mail of many kinds, for which Postfix writes every kind of mail log line."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from tests.field.milter import milter
from tests.field.postfix import Client
from tests.field.waiting import until

if TYPE_CHECKING:
    from tests.field.postfix import Postfix

RULES = """\
rules:
  - {name: rejected, match: {cidr: 198.51.100.0/24}, action: REJECT 5.7.1 Access denied}
  - {name: deferred, match: {cidr: 203.0.113.0/24}, action: DEFER 4.7.25 cannot find your hostname}
"""

# Recipients with every result of a delivery: sent (discarded, to a maildir, to a pipe, over SMTP), bounced, deferred by
# a server, deferred because no server answers over SMTP or LMTP.
EVERY_RESULT = [
    f"someone@{domain}"
    for domain in (
        "field.example",
        "maildir.example",
        "piped.example",
        "relayed.example",
        "bounced.example",
        "deferred.example",
        "unreachable.example",
        "lmtp.example",
    )
]

# A part of the last log line that Postfix writes for the message to all these recipients.
LAST = b"sender non-delivery notification"


def send_every_kind(postfix: Postfix) -> None:
    """Sends all messages and waits for the results. policyd must be answering with `RULES`."""
    for long_queue_ids in ("yes", "no"):
        postfix.configure(f"enable_long_queue_ids = {long_queue_ids}")
        _send_and_wait(postfix)


def _send_and_wait(postfix: Postfix) -> None:
    already = postfix.maillog.read_bytes().count(LAST)
    _send(postfix)
    until("the bounce", lambda: postfix.maillog.read_bytes().count(LAST) > already or None)


def _send(postfix: Postfix) -> None:
    inet, states, access = (postfix.port[name] for name in ("inet", "states", "access"))
    with Client(inet, "192.0.2.1", "mail.sender.example") as client:
        client.offer("someone@sender.example", *EVERY_RESULT)
        client.offer("", "someone@field.example")
        client.offer('"a b"@sender.example', "someone+tag@field.example", "someone@elsewhere.example")
    with Client(inet, "2001:db8::25", None, "claimed.sender.example", helo_name="[IPv6:2001:db8::25]") as client:
        client.offer("rainbow+err000123@sender.example", "someone@field.example")
    with Client(inet, "192.0.2.2", sasl_username="joe") as client:
        client.offer("joe@sender.example", "someone@field.example")
    for client_address in ("198.51.100.7", "203.0.113.7"):
        for port in (inet, states, postfix.port["unix"]):
            with Client(port, client_address, f"host-{client_address}.sender.example") as client:
                client.command("MAIL", "FROM:<someone@sender.example>")
                client.command("RCPT", "TO:<someone@field.example>")
    with Client(access, "192.0.2.3", "mail.sender.example", helo_name="nodots") as client:
        for local_part in ("held", "warned", "filtered", "redirected", "plain"):
            client.offer(f"{local_part}@sender.example", "someone@field.example", "full@field.example")
    with Client(access, "192.0.2.99", helo_name="[192.0.2.99]") as client:
        client.command("MAIL", "FROM:<someone@sender.example>")
        client.command("RCPT", "TO:<someone@field.example>")
    with milter(postfix.port["milter"]):
        for sender in ("someone", "spammer", "greylisted"):
            with Client(postfix.port["filtered"], "192.0.2.4", "mail.sender.example") as client:
                client.command("MAIL", f"FROM:<{sender}@sender.example>")
                for local_part in ("virus", "busy", "someone"):
                    client.command("RCPT", f"TO:<{local_part}@field.example>")
                client.data("Subject: field test\r\n\r\nOne line.\r\n")
    with Client(inet, "192.0.2.5") as client:
        client.command("VRFY", "someone@field.example")
        client.command("BOGUS")
        client.command("MAIL", "FROM:<no syntax")
        client.command("MAIL", "FROM:<someone@sender.example>")
        assert client.sock is not None
        client.sock.shutdown(socket.SHUT_RDWR)  # lost connection after MAIL
        client.close()
