"""Builds the names of questions to a DNS list (RFC 5782 sections 2.1, 2.4 and 3.1), and skips subjects that are never
looked up.

Pure. A subject is a client's address, or a folded name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from policyd.config.dns_list import Ask
from policyd.core.identity import may_be_host
from policyd.core.normalize import domain_of, fold_name
from policyd.core.protocol import SENDER_STATES
from policyd.dns.identify import MAX_TRIED

if TYPE_CHECKING:
    from policyd.config.dns_list import DnsList
    from policyd.core.address import Address
    from policyd.core.identity import Identity
    from policyd.core.protocol import Request

ListSubject: TypeAlias = "Address | bytes"

# RFC 1035 section 2.3.4: 255 octets on the wire are 253 characters.
MAX_NAME = 253

# Networks that no public list can know, as (version, first bits, number of bits): private use (RFC 1918, RFC 4193),
# shared space of providers (RFC 6598), loopback (RFC 1122, RFC 4291) and link-local (RFC 3927, RFC 4291).
_NEVER_ASKED = (
    (4, 10, 8),
    (4, 172 << 4 | 1, 12),
    (4, 192 << 8 | 168, 16),
    (4, 100 << 2 | 1, 10),
    (4, 127, 8),
    (4, 169 << 8 | 254, 16),
    (6, 0xFC >> 1, 7),
    (6, 0xFE80 >> 6, 10),
    (6, 1, 128),
)
# First octets of the IPv4 networks: every other address is outside them.
_FIRST_OCTETS = frozenset({10, 172, 192, 100, 127, 169})


def subjects(dns_list: DnsList, request: Request, identity: Identity | None) -> tuple[ListSubject, ...]:
    """Returns the subjects to look up in the list; empty if the request has none.

    For `ask: hostname` these are the verified names or, if there are none, the claimed names; at most ten. The identity
    must be given for such a list.
    """
    match dns_list.ask:
        case Ask.CLIENT_ADDRESS:
            address = request.address
            return (address,) if address is not None and _may_ask(address) else ()
        case Ask.HOSTNAME:
            assert identity is not None
            names = identity.verified or identity.claimed
        case Ask.HELO_NAME:
            names = (fold_name(request.get("helo_name")),)
        case Ask.SENDER_DOMAIN:
            known = request.get("protocol_state") in SENDER_STATES
            names = (domain_of(request.get("sender")),) if known else ()
    room = MAX_NAME - len(dns_list.zone) - len(".")
    return tuple(name for name in names if len(name) <= room and may_be_host(name))[:MAX_TRIED]


def _may_ask(address: Address) -> bool:
    version, number = address
    if version == 4 and number >> 24 not in _FIRST_OCTETS:
        return True
    bits = 32 if version == 4 else 128
    return not any(v == version and number >> bits - length == first for v, first, length in _NEVER_ASKED)


def question(dns_list: DnsList, subject: ListSubject) -> str:
    """Returns the name whose A records are the list's answer for a subject."""
    if isinstance(subject, bytes):
        return f"{subject.decode('ascii')}.{dns_list.zone}"
    return f"{reversed_address(*subject)}.{dns_list.zone}"


def reversed_address(version: int, number: int) -> str:
    """Returns an address in the form of DNS lists: octets (IPv4) or nibbles (IPv6), reversed."""
    if version == 4:
        return f"{number & 255}.{number >> 8 & 255}.{number >> 16 & 255}.{number >> 24}"
    return ".".join(f"{number:032x}"[::-1])
