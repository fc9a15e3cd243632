"""Real mail through a real Postfix during a fault: every message gets the right reply, and none gets 451."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from tests.faults.conftest import LONG, add_row
from tests.faults.flow import NORMAL_SECONDS, Row
from tests.faults.test_process import kept_socket
from tests.field.policyd import Policyd
from tests.field.postfix import Client
from tests.name_server import claim, host, start_unbound
from tests.ports import free_port
from tests.requirements import require

if TYPE_CHECKING:
    from pathlib import Path

    from tests.field.postfix import Postfix, Reply

RULES = """\
rules:
  - {name: listed, match: {cidr: 198.18.0.0/16}, action: REJECT 5.7.1 listed}
  - {name: customers, match: {hostname_suffix: customers.vps.example}, action: DUNNO}
  - {name: vps, match: {hostname_suffix: vps.example}, action: REJECT 5.7.1 vps}
  - {name: broken, match: {reverse_dns: error}, action: DEFER 4.4.3 broken}
"""


# The right replies to a client that needs DNS, while DNS fails (docs/ruleset.md, the two principles). If its PTR lookup
# fails, no name is known: `vps` does not match, and `broken` decides. If only the lookup of the name's address fails,
# the claimed name matches `vps`, whose REJECT becomes a DEFER because of the error. It is then unknown whether
# `customers` matches, so it exempts no client.
DEFERRED = frozenset({"450 broken", "450 vps"})


class Sender(NamedTuple):
    """Clients of a network (its first two octets). `reply` is the right reply while DNS works; `failing_replies` are
    the right replies while DNS fails. `name` is the verified name that Postfix sends, if
    any. The names in DNS are below `domain`; `names_verify` says whether they lead back to the addresses.
    """

    network: str
    name: str | None
    reply: str
    failing_replies: frozenset[str]
    domain: str = ""
    names_verify: bool = True


SENDERS = (
    Sender("198.18", None, "554 listed", frozenset({"554 listed"})),
    Sender("198.19", "mail.honest.example", "250", frozenset({"250"})),
    Sender("10.1", None, "250", DEFERRED, "customers.vps.example"),
    Sender("10.2", None, "554 vps", DEFERRED, "customers.vps.example", names_verify=False),
    Sender("10.3", None, "554 vps", DEFERRED, "vps.example"),
)

# Addresses of each sender; many, because DNS answers are cached for a while.
ADDRESSES = 4000


def address_of(sender: Sender, number: int) -> str:
    """One of the addresses of a sender."""
    return f"{sender.network}.{number // 250}.{number % 250 + 1}"


RECORDS = [
    line
    for each in SENDERS
    if each.domain
    for number in range(ADDRESSES)
    for line in (host if each.names_verify else claim)(
        f"m{number}.{each.network}.{each.domain}", address_of(each, number)
    )
]


class Mail:
    """Between `__enter__` and `__exit__`, all senders send at the same time, each one message after another."""

    def __init__(self, fault: str, port: int) -> None:
        self.row = add_row(Row(fault))
        self.dns_may_fail = False
        self.codes: Counter[int] = Counter()
        self.wrong: list[str] = []
        self._answers: Counter[Sender] = Counter()
        self._touched: set[str] = set()  # addresses for which an error of DNS may be cached
        self._over: float | None = None
        self._port = port
        self._stop = threading.Event()
        self._lock = threading.Condition()
        self._threads = [threading.Thread(target=self._send, args=(sender,)) for sender in SENDERS]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.wait_for(1)
        return self

    def __exit__(self, *_: object) -> None:
        if self._over is not None:
            time.sleep(NORMAL_SECONDS)
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, messages: int) -> None:
        """Waits until each of the senders has got this many more answers."""
        with self._lock:
            wanted = Counter({sender: self._answers[sender] + messages for sender in SENDERS})
            assert self._lock.wait_for(lambda: self._answers >= wanted, timeout=60), self.row

    def fault_is_over(self) -> None:
        """Marks the end of the fault; the row gets the seconds until the first reply to a later message."""
        self._over = time.monotonic()

    def _send(self, sender: Sender) -> None:
        number = 0
        while not self._stop.is_set():
            number = (number + 1) % ADDRESSES
            address, began = address_of(sender, number), time.monotonic()
            if self.dns_may_fail:
                self._touched.add(address)
            with Client(self._port, address, sender.name) as client:
                (reply,) = client.offer("anna@sender.example", f"{address}@field.example")
            if self.dns_may_fail:
                self._touched.add(address)
            self._judge(sender, address, reply, began)

    def _judge(self, sender: Sender, address: str, reply: Reply, began: float) -> None:
        ended = time.monotonic()
        right = {sender.reply} | (sender.failing_replies if address in self._touched else frozenset())
        # `554 5.7.1 <unknown[198.18.0.1]>: Client host rejected: listed`: the rule's name is the last word
        short = f"{reply.code} {reply.text.split()[-1]}" if reply.code != 250 else "250"
        with self._lock:
            row = self.row
            row.sent += 1
            row.answered += 1
            self.codes[reply.code] += 1
            self._answers[sender] += 1
            if sender.domain:
                row.longest_with_dns = max(row.longest_with_dns, ended - began)
            else:
                row.longest = max(row.longest, ended - began)
            if short not in right:
                row.wrong += 1
                self.wrong.append(f"{sender} {address}: {reply}, not one of {right}")
            if self._over is not None and row.normal_within is None and began > self._over:
                row.normal_within = ended - self._over
            self._lock.notify_all()


def settings(postfix: Postfix, resolver: str) -> dict[str, Any]:
    """Settings of a daemon that listens where Postfix asks."""
    return {
        "listen": [f"inet:127.0.0.1:{postfix.port['policy']}"],
        "dns": {"servers": [resolver], "timeout": "3s"},
    }


def test_a_resolver_that_dies_and_returns_defers_only_clients_that_need_it(postfix: Postfix, tmp_path: Path) -> None:
    require("unbound")
    port = free_port()
    with ExitStack() as alive:
        alive.enter_context(start_unbound(tmp_path, RECORDS, port=port))
        with (
            Policyd(tmp_path, RULES, **settings(postfix, f"127.0.0.1:{port}")),
            Mail("mail: unbound dies and returns (Postfix)", postfix.port["inet"]) as mail,
        ):
            mail.wait_for(4)
            mail.dns_may_fail = True
            alive.close()
            mail.wait_for(4 if LONG else 2)  # the first of these messages may have been in flight before
            alive.enter_context(start_unbound(tmp_path, RECORDS, port=port))
            mail.dns_may_fail = False
            mail.fault_is_over()
    assert mail.wrong == []
    assert mail.codes.keys() == {250, 450, 554}


def test_sigkill_and_a_new_start_with_the_socket_kept_cost_no_message(postfix: Postfix, tmp_path: Path) -> None:
    require("unbound")
    times = 10 if LONG else 2
    with (
        start_unbound(tmp_path, RECORDS) as resolver,
        kept_socket(postfix.port["policy"]) as listener,
        Policyd(tmp_path, RULES, listener=listener, **settings(postfix, resolver)) as policyd,
        Mail(f"mail: SIGKILL and a new start, the socket kept, {times} x (Postfix)", postfix.port["inet"]) as mail,
    ):
        for _ in range(times):
            # Postfix asks at most twice for a message. After this wait, no message in flight has lost a question to an
            # earlier SIGKILL, so Postfix can ask again for each.
            mail.wait_for(4)
            policyd.kill()
            policyd.start()
        mail.fault_is_over()
    assert mail.wrong == []
    assert mail.codes.keys() == {250, 554}
