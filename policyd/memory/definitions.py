"""Definitions of counters and of greylisting, and the keys under which requests are counted."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from policyd.core.address import format_address, parse_address
from policyd.core.normalize import domain_of, fold_name, fold_value
from policyd.core.protocol import SENDER_STATES

if TYPE_CHECKING:
    from collections.abc import Callable

    from policyd.core.address import Address
    from policyd.core.protocol import Request

    # Returns a part of a key for a request and the AS number of its client (`AS64496`, empty without a record).
    Maker: TypeAlias = Callable[[Request, bytes], bytes]

# Maximum bytes of a key or value. A longer one is cut, and a digest keeps it unique: a client may send 64 KiB, and
# 200,000 keys must fit into 120 MB.
MAX_KEY_BYTES = 128

# Bytes of a definition's fingerprint.
FINGERPRINT_BYTES = 8

_COLON = 0x3A  # searching for a byte's number is ten times as fast as for b":"


class Answered(Enum):
    """The requests that a counter counts, by their answer."""

    ANY = "any"
    DUNNO = "DUNNO"  # only requests that the ruleset lets through


@dataclass(frozen=True, slots=True)
class KeyPart:
    """One part of a counter's key: an attribute of the request, or a value derived from it.

    `name` is the attribute's name, or `client_network`, `sender_domain`, `recipient_domain` or `asn`. `prefixes` are
    the lengths of IPv4 and IPv6 networks of a `client_network`.
    """

    name: str
    prefixes: tuple[int, int] = (24, 64)

    @property
    def maker(self) -> Maker:
        """A function that returns the value of this part; if the value is empty, the request is not counted."""
        match self.name:
            case "client_network":
                return client_network if self.prefixes == (24, 64) else _network(self.prefixes)
            case "client_address":
                return _address
            case "sender_domain" | "recipient_domain":
                attribute = self.name.removesuffix("_domain")
                return lambda request, _asn: domain_of(request.get(attribute))
            case "asn":
                return _asn
            case "sender":
                return _sender
            case name:
                return lambda request, _asn: fold_value(request.get(name))

    def parse(self, text: bytes) -> bytes:
        """Parses the value of this part in a key from a command line. Raises ValueError with a suggestion."""
        if self.name not in {"client_network", "client_address"}:
            if self.name in {"sender_domain", "recipient_domain"}:
                return fold_name(text)
            if self.name == "asn":
                return text.upper() if text[:2].upper() == b"AS" else b"AS" + text
            return fold_value(text)
        address = parse_address(text.partition(b"/")[0] if self.name == "client_network" else text)
        if address is None:
            raise ValueError(f"{self} must be an address, such as 192.0.2.25")
        return format_address(address).encode() if self.name == "client_address" else network_of(address, self.prefixes)

    def __str__(self) -> str:
        return "{}/{}/{}".format(self.name, *self.prefixes) if self.name == "client_network" else self.name


def _join(first: Maker, *others: Maker) -> Maker:
    """Returns a function that joins the parts of a key by LF, which no attribute can hold; empty if a part is empty.

    The function is a closure, because Python calls a closure in half the time of a functools.partial.
    """
    if not others:
        return first
    rest = _join(*others)

    def make(request: Request, asn: bytes) -> bytes:
        head, tail = first(request, asn), rest(request, asn)
        return head + b"\n" + tail if head and tail else b""

    return make


def client_network(request: Request, _asn: bytes = b"") -> bytes:
    """Returns the /24 or /64 that the client's address lies in; empty without an address."""
    address = request.address
    if address is None:
        return b""
    text = request.get("client_address")
    return network_of(address) if _COLON in text else text.rpartition(b".")[0] + b".0/24"


def _network(prefixes: tuple[int, int]) -> Maker:
    """Returns a function that returns the client's network, with these prefix lengths; empty without an address.

    An IPv4 address has only one form (policyd.core.address), so the text of a network from /16 to /24 differs from the
    address only in the last two numbers. The 256 possible endings are prepared.
    """
    prefix = prefixes[0]
    endings: dict[bytes, bytes] = {}
    if 16 <= prefix <= 24:
        zeros = 24 - prefix
        endings = {b"%d" % third: b".%d.0/%d" % (third >> zeros << zeros, prefix) for third in range(256)}

    def make(request: Request, _asn: bytes) -> bytes:
        address = request.address
        if address is None:
            return b""
        text = request.get("client_address")
        if _COLON in text or not endings:
            return network_of(address, prefixes)
        start, third, _ = text.rsplit(b".", 2)
        return start + endings[third]

    return make


def _address(request: Request, _asn: bytes) -> bytes:
    address = request.address
    if address is None:
        return b""
    text = request.get("client_address")
    # An IPv4 address has only one form (policyd.core.address), and formatting it takes longer than counting.
    return format_address(address).encode() if _COLON in text else text


def _asn(_request: Request, asn: bytes) -> bytes:
    return asn


def _sender(request: Request, _asn: bytes) -> bytes:
    sender = request.get("sender")
    if not sender and request.get("protocol_state") in SENDER_STATES:
        return b"<>"
    return fold_value(sender)


def network_of(address: Address, prefixes: tuple[int, int] = (24, 64)) -> bytes:
    """Returns the network that an address lies in, `192.0.2.0/24`; `prefixes` for IPv4 and IPv6.

    For the client's address of a request, `client_network` takes a third of the time.
    """
    version, number = address
    if version == 4:
        prefix = prefixes[0]
        number = number >> 32 - prefix << 32 - prefix
        return b"%d.%d.%d.%d/%d" % (number >> 24, number >> 16 & 255, number >> 8 & 255, number & 255, prefix)
    prefix = prefixes[1]
    return f"{format_address((version, number >> 128 - prefix << 128 - prefix))}/{prefix}".encode()


@dataclass(frozen=True)
class CounterDefinition:
    """One counter of a ruleset.

    `distinct` is the attribute whose values are counted, None for a count of requests. `per` are the parts of the key.
    `within` is the window in seconds. `where` has the conditions of `where:` as written, because the counts are kept as
    long as the definition does not change.
    """

    name: str
    distinct: KeyPart | None
    per: tuple[KeyPart, ...]
    within: int
    answered: Answered = Answered.ANY
    where: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, object]:
        """Leaves out the functions derived from the fields, which cannot be passed to another process."""
        return {name: value for name, value in vars(self).items() if not callable(value)}

    @functools.cached_property
    def fingerprint(self) -> bytes:
        """Bytes that identify the definition: the same on every host, and others if the definition changes."""
        parts = (self.name, str(self.distinct), *map(str, self.per), str(self.within), self.answered.value, *self.where)
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=FINGERPRINT_BYTES).digest()

    @functools.cached_property
    def label(self) -> bytes:
        """The name and the fingerprint as text; two definitions never share it."""
        return b"%b:%b" % (self.name.encode(), self.fingerprint.hex().encode())

    @functools.cached_property
    def counts_all(self) -> bool:
        """Whether a request is counted regardless of its answer."""
        return self.answered is Answered.ANY

    @functools.cached_property
    def make_key(self) -> Maker:
        """A function that returns the key under which a request is counted, not yet `bounded`; empty if a part is."""
        return _join(*(part.maker for part in self.per))

    def parse_key(self, text: bytes) -> bytes:
        """Parses a key from a command line, with a line for each part. Raises ValueError with a suggestion."""
        parts = text.split(b"\n")
        if len(parts) != len(self.per):
            raise ValueError(f"a key of counter {self.name} is: {', '.join(map(str, self.per))}")
        return bounded(b"\n".join(part.parse(written) for part, written in zip(self.per, parts, strict=True)))

    @functools.cached_property
    def make_value(self) -> Maker | None:
        """A function that returns the value that a `distinct` counter counts; None for a count of requests."""
        return self.distinct.maker if self.distinct is not None else None


def bounded(text: bytes) -> bytes:
    """Returns the text itself or, if it is long, its beginning and a digest."""
    if len(text) <= MAX_KEY_BYTES:
        return text
    digest = hashlib.blake2b(text, digest_size=16).hexdigest().encode()
    return text[: MAX_KEY_BYTES - len(digest) - 3] + b"..." + digest


@dataclass(frozen=True, slots=True)
class GreylistSettings:
    """Settings of greylisting, in seconds."""

    wait: int = 5 * 60  # from a first try to the earliest retry that passes
    retry_within: int = 24 * 3600  # from a first try to the latest retry that passes
    remember: int = 35 * 86400  # for which a network that has passed is known after its last mail
