"""The world of the fault tests: editions of a ruleset, clients, and their DNS.

From these, `tests.naive`, which shares no code with policyd, computes the right answers to a request at any time. Every
REJECT and DEFER names the edition of the ruleset, so an answer tells which ruleset gave it.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import ipaddress
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import yaml

from tests import naive
from tests.name_server import NXDOMAIN, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

# --- The ruleset and its editions -------------------------------------------------------------------------------------


@functools.cache
def rules(edition: int) -> list[dict[str, Any]]:
    """The rules of an edition, in the form of `tests.naive`. Odd editions list one more network."""

    def text(verb: str) -> str:
        return f"{verb} edition {edition} {{rule}}"

    listed = ["203.0.113.0/24", "2001:db8:bad::/48", *(["198.51.100.0/24"] if edition % 2 else [])]
    return [
        {"name": "postmaster", "match": {"recipient_regex": ["^postmaster@"]}, "action": "DUNNO"},
        {"name": "users", "match": {"sasl_username_regex": ["."]}, "action": "DUNNO"},
        {"name": "listed", "match": {"cidr": listed}, "action": text("REJECT 5.7.1")},
        {"name": "bounces", "match": {"sender_regex": [r"^bounce\+[0-9]+@"]}, "action": "REJECT", "mode": "observe"},
        {"name": "dynamic", "match": {"helo_name_suffix": ["dynamic.example"]}, "action": text("DEFER 4.7.1")},
        {"name": "customers", "match": {"hostname_suffix": ["customers.vps.example"]}, "action": "DUNNO"},
        {
            "name": "vps",
            "match": {"hostname_suffix": ["vps.example"]},
            "except": {"hostname_suffix": ["excepted.vps.example"]},
            "action": text("REJECT 5.7.1"),
        },
        {"name": "unnamed", "match": {"reverse_dns": ["missing"]}, "action": text("DEFER 4.7.25")},
        {"name": "broken", "match": {"reverse_dns": ["error"]}, "action": text("DEFER 4.4.3")},
    ]


@functools.cache
def rules_file(edition: int) -> str:
    """The rules of an edition as a rules file."""
    return yaml.safe_dump({"rules": rules(edition)}, sort_keys=False, width=1000)


@functools.cache
def ruleset_hash(edition: int) -> str:
    """The hash of an edition, in the form of the decision log."""
    return hashlib.sha256(rules_file(edition).encode()).hexdigest()[:8]


def right_answer(edition: int, attributes: dict[str, str], dns: naive.Dns) -> str:
    """The right answer of an edition to a request, given these DNS answers."""
    made = rules(edition)
    decided = naive.decide(made, "DUNNO", attributes, dns, datetime.datetime.now(datetime.UTC).date())
    if decided.verb == "DUNNO":
        return "DUNNO"
    action = next(rule["action"] for rule in made if rule["name"] == decided.rule)
    _, _, text = action.partition(" ")
    if decided.downgraded:
        text = text.replace("5", "4", 1)
    return f"{decided.verb} {text.replace('{rule}', decided.rule)}"


# --- The clients ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Named:
    """A client whose name Postfix has verified, or whose name no rule needs, so DNS is not asked."""

    attributes: dict[str, str]


@dataclass(frozen=True)
class Nameless:
    """Clients without a name from Postfix. Each has its own address, and a PTR name in this domain (empty: no PTR
    record). `forward` says whether the name resolves `back` to the address, `elsewhere` or `nowhere`.
    """

    domain: str = ""
    forward: str = "back"


NAMED = (
    Named({"client_address": "192.0.2.25", "client_name": "mail.honest.example"}),
    Named({"client_address": "203.0.113.9", "client_name": "mail.honest.example"}),
    Named({"client_address": "::ffff:203.0.113.9", "client_name": "unknown"}),
    Named({"client_address": "2001:db8:bad::9", "client_name": "unknown"}),
    Named({"client_address": "203.0.113.9", "recipient": "postmaster@recipient.example"}),
    Named({"client_address": "203.0.113.9", "sasl_username": "anna"}),
    Named({"client_address": "198.51.100.9", "client_name": "mail.honest.example"}),  # only odd editions reject it
    Named({"client_address": "192.0.2.26", "client_name": "host.vps.example"}),
    Named({"client_address": "192.0.2.27", "client_name": "host.customers.vps.example"}),
    Named({"client_address": "192.0.2.28", "client_name": "HOST.Excepted.VPS.example"}),
    Named({"client_address": "192.0.2.29", "client_name": "mail.honest.example", "helo_name": "a.dynamic.example"}),
    Named({"client_address": "192.0.2.30", "client_name": "mail.honest.example", "sender": "bounce+77@spam.example"}),
)

NAMELESS = (
    Nameless("honest.example"),
    Nameless("honest.example", "nowhere"),
    Nameless("vps.example"),
    Nameless("vps.example", "nowhere"),
    Nameless("customers.vps.example"),
    Nameless("customers.vps.example", "elsewhere"),  # liars
    Nameless("excepted.vps.example"),
    Nameless("excepted.vps.example", "elsewhere"),
    Nameless(),
)

CLIENTS: tuple[Named | Nameless, ...] = NAMED + NAMELESS

# For IPv4 and IPv6, addresses of nameless clients: the first address, and by how many bits the index into NAMELESS is
# shifted to the left. The serial number is in the lowest bits.
_SERIAL_BITS = 20
_NETWORKS = (
    (ipaddress.ip_address("10.0.0.0"), _SERIAL_BITS),
    (ipaddress.ip_address("2001:db8::"), 64),
)


def address_of(place: int, serial: int) -> str:
    """The address of a nameless client: IPv4 and IPv6 in turn."""
    base, shift = _NETWORKS[serial % 2]
    return str(base + ((place << shift) + serial % (1 << _SERIAL_BITS)))


def place_of(address: str) -> int:
    """The place in NAMELESS of the client with this address."""
    parsed = ipaddress.ip_address(address)
    base, shift = _NETWORKS[parsed.version == 6]
    return (int(parsed) - int(base)) >> shift


def ptr_name(address: str) -> str:
    """The name in the PTR record of a nameless client that has one."""
    domain = NAMELESS[place_of(address)].domain
    return f"x{ipaddress.ip_address(address).packed.hex()}.{domain}"


def attributes_of(client: int, serial: int) -> dict[str, str]:
    """A request from a client, given the place in CLIENTS and the serial number."""
    attributes = {
        "request": "smtpd_access_policy",
        "protocol_state": "RCPT",
        "protocol_name": "ESMTP",
        "client_address": "192.0.2.25",
        "client_name": "unknown",
        "reverse_client_name": "unknown",
        "helo_name": "mail.somewhere.example",
        "sender": "anna@sender.example",
        "recipient": "bob@recipient.example",
        "recipient_count": "0",
        "sasl_username": "",
    }
    who = CLIENTS[client]
    if isinstance(who, Named):
        return attributes | who.attributes
    return attributes | {"client_address": address_of(client - len(NAMED), serial)}


# --- DNS answers ------------------------------------------------------------------------------------------------------


def truth(address: str) -> naive.Dns:
    """The identity of a nameless client while DNS works."""
    who = NAMELESS[place_of(address)]
    if not who.domain:
        return naive.Dns("missing")
    name = ptr_name(address)
    if who.forward == "back":
        return naive.Dns("verified", verified=(name,))
    return naive.Dns("mismatch", claimed=(name,))


def nothing_known(_address: str) -> naive.Dns:
    """The identity of a client if the first lookup fails."""
    return naive.Dns("error", names_known=False)


def only_the_name(address: str) -> naive.Dns:
    """The identity of a client if the PTR lookup succeeds and the forward lookup fails."""
    if not NAMELESS[place_of(address)].domain:
        return naive.Dns("missing")
    return naive.Dns("error", claimed=(ptr_name(address),))


def reply_to(question: str) -> Reply:
    """The right reply to a question, `NAME TYPE`."""
    name, _, kind = question.partition(" ")
    address = _address_at(name) if kind == "PTR" else _address_in(name)
    if address is None or place_of(address) >= len(NAMELESS):
        return Reply()  # for instance a parent of other names, which a resolver asks for on its way down
    who = NAMELESS[place_of(address)]
    version = ipaddress.ip_address(address).version
    if kind == "PTR":
        return Reply([f"@ 300 PTR {ptr_name(address)}"]) if who.domain else Reply(rcode=NXDOMAIN)
    if who.forward == "nowhere" or kind != ("A" if version == 4 else "AAAA"):
        return Reply(rcode=NXDOMAIN)
    if who.forward == "elsewhere":
        address = "192.0.2.99" if version == 4 else "2001:db8:ffff::99"
    return Reply([f"@ 300 {kind} {address}"])


def _address_at(name: str) -> str | None:
    """The address whose PTR records are at a name."""
    labels = name.split(".")[:-2]
    labels.reverse()
    try:
        if name.endswith(".ip6.arpa"):
            return str(ipaddress.ip_address(bytes.fromhex("".join(labels))))
        return str(ipaddress.IPv4Address(".".join(labels)))
    except ValueError:
        return None


def _address_in(name: str) -> str | None:
    """The address that is written in a host's name."""
    try:
        return str(ipaddress.ip_address(bytes.fromhex(name.partition(".")[0].removeprefix("x"))))
    except ValueError:
        return None


@dataclass(frozen=True)
class DnsState:
    """A state of DNS: the distortion of replies, and the resulting identity of a client."""

    distorted: Callable[[Reply, str], Reply]
    known: Callable[[str], naive.Dns]


HEALTHY = DnsState(lambda reply, _: reply, truth)


class Zone(dict[str, Reply]):
    """The world's names, as the script of a `ScriptedServer`."""

    state = HEALTHY

    def get(self, question: str, otherwise: Reply | None = None) -> Reply | None:  # type: ignore[override] # its only caller passes these
        """The reply to `NAME TYPE`; a name without a type has none."""
        if " " not in question:
            return otherwise
        return self.state.distorted(reply_to(question), question)


def verified_by_postfix(attributes: dict[str, str]) -> naive.Dns:
    """The identity of a client whose name Postfix has verified."""
    return naive.Dns("verified", verified=(attributes["client_name"].lower(),))


# --- States over time -------------------------------------------------------------------------------------------------


@dataclass
class _Span(Generic[T]):
    value: T
    began: float
    ended: float


class Timeline(Generic[T]):
    """The states over time, on the monotonic clock. During a change, both the old and the new state count."""

    def __init__(self, first: T) -> None:
        self._spans = [_Span(first, float("-inf"), float("inf"))]

    @property
    def now(self) -> T:
        """The present state; during a change, the new state."""
        return self._spans[-1].value

    @contextmanager
    def changing(self, value: T) -> Iterator[None]:
        """The block makes the change; at the end of the block, the change is complete."""
        old = self._spans[-1]
        self._spans.append(_Span(value, time.monotonic(), float("inf")))
        yield
        old.ended = min(old.ended, time.monotonic())

    def during(self, began: float, ended: float) -> list[T]:
        """The states in force at any time between these two times."""
        return [span.value for span in self._spans if span.began <= ended and span.ended >= began]

    def seen(self, value: T, at: float) -> None:
        """Records that a state was seen, so earlier states had ended by then."""
        for span in self._spans:
            if span.value == value:
                return
            span.ended = min(span.ended, at)


class World:
    """The history of a ruleset and of DNS, and the answers that are right in it."""

    def __init__(self) -> None:
        self.zone = Zone()
        self.edition = Timeline(0)
        self.dns = Timeline(HEALTHY)
        self.next_serial = 0  # a serial number that no client has had

    @contextmanager
    def dns_being(self, state: DnsState, *, may_fail: bool = False) -> Iterator[None]:
        """Sets the state of DNS for the block. With `may_fail`, lookups may also fail."""
        with self.dns.changing(state):
            self.zone.state = state
        failing = self.dns.changing(DnsState(state.distorted, nothing_known)) if may_fail else nullcontext()
        with failing:  # during this change, both states are right
            try:
                yield
            finally:
                with self.dns.changing(HEALTHY):
                    self.zone.state = HEALTHY

    @contextmanager
    def dns_may_fail(self) -> Iterator[None]:
        """During the block lookups may fail although DNS works."""
        with self.dns.changing(DnsState(HEALTHY.distorted, nothing_known)):
            yield
        with self.dns.changing(HEALTHY):
            pass

    def right_answers(self, client: int, serial: int, first_sent: float, sent: float, answered: float) -> set[str]:
        """All right answers to a request that was sent and answered at these times: by each edition that was in force
        between these times, and with any DNS answer since the first request of this client (`first_sent`).
        """
        known = [state.known for state in self.dns.during(first_sent, answered)]
        if len(known) > 1:  # the first DNS question may have met one state, and the second another
            known += [only_the_name, nothing_known]
        return self._answers(client, serial, known, sent, answered)

    def true_answers(self, client: int, serial: int, first_sent: float, sent: float, answered: float) -> set[str]:
        """The answers that would be given without a failure."""

        def true(state: DnsState) -> Callable[[str], naive.Dns]:
            return lambda address: truth(address) if state.known(address).status == "error" else state.known(address)

        known = [true(state) for state in self.dns.during(first_sent, answered)]
        return self._answers(client, serial, known, sent, answered)

    def _answers(
        self, client: int, serial: int, known: list[Callable[[str], naive.Dns]], sent: float, answered: float
    ) -> set[str]:
        attributes = attributes_of(client, serial)
        if isinstance(CLIENTS[client], Named):
            identities = {verified_by_postfix(attributes)}
        else:
            identities = {each(attributes["client_address"]) for each in known}
        editions = self.edition.during(sent, answered)
        return {right_answer(edition, attributes, dns) for edition in editions for dns in identities}


def distorted(**changes: Any) -> Callable[[Reply, str], Reply]:
    """A distortion that changes these fields of every `Reply`."""
    return lambda reply, _: dataclasses.replace(reply, **changes)
