"""The definition of a DNS list."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Ask(StrEnum):
    """The attribute of a client or request that is looked up in a list."""

    CLIENT_ADDRESS = "client_address"
    HOSTNAME = "hostname"
    HELO_NAME = "helo_name"
    SENDER_DOMAIN = "sender_domain"


@dataclass(frozen=True, slots=True)
class Code:
    """A pattern of addresses, in Postfix's syntax (`127.0.[0..2].[2;4]`; postconf(5), `reject_rbl_client`).

    Each of `parts` is a bit mask: bit 4 is set if the part may be 4.
    """

    text: str
    parts: tuple[int, int, int, int]

    def matches(self, number: int) -> bool:
        """Whether the pattern matches an IPv4 address, given as a number."""
        first, second, third, fourth = self.parts
        return bool(
            first >> (number >> 24) & 1
            and second >> (number >> 16 & 255) & 1
            and third >> (number >> 8 & 255) & 1
            and fourth >> (number & 255) & 1
        )


@dataclass(frozen=True, slots=True)
class DnsList:
    """The definition of one list.

    `zone` is the zone to query, in A-labels, lower case, without the trailing dot. If it contains a key, it must never
    be printed; print `shown_zone`, which has `{key}` in the key's place. `codes` are the answers that mean *listed*,
    `refused` those with which the list refuses to answer. `self_test` is the entry that must be listed (an
    address or a name), or empty for a list that is not tested.
    """

    name: str
    zone: str = field(repr=False)
    shown_zone: str
    ask: Ask
    codes: tuple[Code, ...]
    refused: tuple[Code, ...] = ()
    self_test: str = ""

    @property
    def takes_addresses(self) -> bool:
        """Whether addresses, not names, are looked up in the list."""
        return self.ask is Ask.CLIENT_ADDRESS
