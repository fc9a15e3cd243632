"""Definitions of counters and of greylisting, and the key under which a request is counted."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from policyd.core.address import format_address, parse_address
from policyd.core.normalize import domain_of, fold_name, fold_value
from policyd.core.protocol import SENDER_STATES

if TYPE_CHECKING:
    from policyd.core.address import Address
    from policyd.core.protocol import Request

# Bytes of a key or value that are kept as they are. A client may send 64 KiB, and 200,000 keys are to fit into 120 MB;
# a longer one is cut and told apart by a digest.
MAX_KEY_BYTES = 128


class Answered(Enum):
    """Which requests a counter counts."""

    ANY = "any"
    DUNNO = "DUNNO"  # those that the ruleset let through


@dataclass(frozen=True, slots=True)
class KeyPart:
    """One part of a counter's key: an attribute of the request, or what is made of one.

    `name` is the attribute's name, or `client_network`, `sender_domain`, `recipient_domain` or `asn`. `prefixes` are
    the lengths of IPv4 and IPv6 networks of a `client_network`.
    """

    name: str
    prefixes: tuple[int, int] = (24, 64)

    def of(self, request: Request, asn: bytes) -> bytes:
        """Returns the value of this part; empty if the request has none, so that it is not counted.

        `asn` is the AS number of the client, `AS64496`; empty without a record.
        """
        name, address = self.name, request.address
        match name:
            case "client_network":
                value = network_of(address, self.prefixes) if address is not None else b""
            case "client_address":
                value = format_address(address).encode() if address is not None else b""
            case "sender_domain" | "recipient_domain":
                value = domain_of(request.get(name.removesuffix("_domain")))
            case "asn":
                value = asn
            case _:
                value = fold_value(request.get(name))
        if not value and name == "sender" and request.get("protocol_state") in SENDER_STATES:
            return b"<>"
        return value

    def parse(self, text: bytes) -> bytes:
        """Returns the value that a person writes for this part. Raises ValueError, with what to write."""
        if self.name not in {"client_network", "client_address"}:
            if self.name in {"sender_domain", "recipient_domain"}:
                return fold_name(text)
            if self.name == "asn":
                return text.upper() if text[:2].upper() == b"AS" else b"AS" + text
            return fold_value(text)
        address = parse_address(text.partition(b"/")[0] if self.name == "client_network" else text)
        if address is None:
            raise ValueError(f"{self} is an address, as 192.0.2.25")
        return format_address(address).encode() if self.name == "client_address" else network_of(address, self.prefixes)

    def __str__(self) -> str:
        return "{}/{}/{}".format(self.name, *self.prefixes) if self.name == "client_network" else self.name


def network_of(address: Address, prefixes: tuple[int, int] = (24, 64)) -> bytes:
    """Returns the network that an address lies in, `192.0.2.0/24`; `prefixes` for IPv4 and IPv6."""
    version, number = address
    prefix, width = (prefixes[0], 32) if version == 4 else (prefixes[1], 128)
    first = number >> width - prefix << width - prefix
    return f"{format_address((version, first))}/{prefix}".encode()


@dataclass(frozen=True)
class CounterDefinition:
    """One counter of a ruleset.

    `distinct` is what is told apart, None for a count of requests. `within` is the window in seconds. `where` are the
    values of its conditions as they are written: a counter whose definition did not change keeps what it has counted.
    """

    name: str
    distinct: KeyPart | None
    per: tuple[KeyPart, ...]
    within: int
    answered: Answered = Answered.ANY
    where: tuple[str, ...] = ()

    @functools.cached_property
    def fingerprint(self) -> bytes:
        """Eight bytes that are the same on every host and change with the definition."""
        parts = (self.name, str(self.distinct), *map(str, self.per), str(self.within), self.answered.value, *self.where)
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).digest()

    def key(self, request: Request, asn: bytes) -> bytes | None:
        """Returns the key under which a request is counted; None if a part of it is empty.

        Parts are separated by LF, which no attribute of the protocol can hold.
        """
        if len(self.per) == 1:
            return bounded(self.per[0].of(request, asn)) or None
        parts = [part.of(request, asn) for part in self.per]
        return bounded(b"\n".join(parts)) if all(parts) else None

    def parse_key(self, text: bytes) -> bytes:
        """Returns the key that a person writes, one part a line. Raises ValueError, with what to write."""
        parts = text.split(b"\n")
        if len(parts) != len(self.per):
            raise ValueError(f"a key of counter {self.name} is: {', '.join(map(str, self.per))}")
        return bounded(b"\n".join(part.parse(written) for part, written in zip(self.per, parts, strict=True)))

    def value(self, request: Request, asn: bytes) -> bytes | None:
        """Returns the value that a `distinct` counter tells apart; None if it is empty."""
        return bounded(self.distinct.of(request, asn)) or None if self.distinct is not None else None


def bounded(text: bytes) -> bytes:
    """Returns the text itself or, if it is long, its beginning and a digest."""
    if len(text) <= MAX_KEY_BYTES:
        return text
    digest = hashlib.blake2b(text, digest_size=16).hexdigest().encode()
    return text[: MAX_KEY_BYTES - len(digest) - 3] + b"..." + digest


@dataclass(frozen=True, slots=True)
class GreylistSettings:
    """How long a first try waits, how late its second may come, and how long a network is remembered: seconds."""

    wait: int = 5 * 60
    retry_within: int = 24 * 3600
    remember: int = 35 * 86400
