"""Owners of addresses: the autonomous system that announces an address, and the country of its network.

The data come from files that `policyd.config.databases` has read. No network is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from policyd.core.address import format_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policyd.core.address import Address
    from policyd.core.protocol import Request


class Owner(NamedTuple):
    """The owner of one address: AS number (0: no record), its name (may be empty), country (empty: no record)."""

    asn: int = 0
    asn_name: str = ""
    country: str = ""


NO_OWNER = Owner()

# Makes an Owner in half the time of its constructor, which is written in Python; each request makes one.
_new = tuple.__new__


class Records(Protocol):
    """The records of one database. `text` is the address as text, an IPv4-mapped one as IPv4."""

    def system(self, address: Address, text: str) -> tuple[int, str]:
        """The number and name of the autonomous system; 0 and an empty name without a record."""

    def country(self, address: Address, text: str) -> str:
        """The country, two upper-case letters; empty without a record."""

    def owner(self, address: Address, text: str) -> Owner:
        """The system and the country, with one lookup."""


@runtime_checkable
class InMemoryFile(Protocol):
    """Records whose bytes are in a memory file, which another process opens by its descriptor."""

    descriptor: int

    def adopt(self, descriptor: int) -> None:
        """Opens the memory file."""


class Owners:
    """The databases of a ruleset: each is None if not declared. They are the same object if one file serves both."""

    __slots__ = ("asn", "country")

    def __init__(self, asn: Records | None, country: Records | None) -> None:
        self.asn = asn
        self.country = country

    def find(self, request: Request) -> Owner:
        """The owner of the client's address; NO_OWNER if `client_address` is not an address."""
        address = request.address
        if address is None:
            return NO_OWNER
        text = str(request.values[request.places["client_address"]], "ascii")
        if address[0] == 4 and ":" in text:  # IPv4-mapped: the reader of MMDB does not unwrap it
            text = format_address(address)
        systems, countries = self.asn, self.country
        if systems is None:
            return NO_OWNER if countries is None else Owner(0, "", countries.country(address, text))
        if systems is countries:
            return systems.owner(address, text)
        asn, name = systems.system(address, text)
        country = "" if countries is None else countries.country(address, text)
        return _new(Owner, (asn, name, country))

    @property
    def descriptors(self) -> list[int]:
        """Descriptors of memory files, in the process that read the databases; for `adopt` in another process."""
        return [records.descriptor for records in self._records() if isinstance(records, InMemoryFile)]

    def adopt(self, descriptors: Sequence[int]) -> None:
        """Opens the memory files, in the order of `descriptors`, which may be closed afterwards."""
        files = (records for records in self._records() if isinstance(records, InMemoryFile))
        for file, descriptor in zip(files, descriptors, strict=True):
            file.adopt(descriptor)

    def _records(self) -> list[Records]:
        return [records for records in dict.fromkeys((self.asn, self.country)) if records is not None]
