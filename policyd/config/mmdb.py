"""Reads MMDB files (https://maxmind.github.io/MaxMind-DB/) from a sealed copy in memory.

The C reader of maxminddb maps a file and trusts it to stay as it is; a download script that rewrites the user's file in
place would change what is being read, or end the process with SIGBUS. So the bytes are copied into a memory file
(memfd_create(2)), which is sealed, and only that is ever mapped.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import maxminddb

from policyd.config.countries import parse_country
from policyd.config.ranges import parse_asn
from policyd.core.address import format_address
from policyd.core.owners import NO_OWNER, Owner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policyd.core.address import Address

# Marks the metadata, which are within the last 128 KiB of a file.
_METADATA_MARKER = b"\xab\xcd\xefMaxMind.com"
_METADATA_BYTES = 128 << 10

# Maximum number of cached country spellings; a file with more is not a database of countries.
_MAX_SPELLINGS = 4096

# Maximum number of records searched for a file's keys, and of keys in a message. In real files the first record has all
# keys; reading a million records takes seconds.
_SEARCHED = 20_000
_MAX_KEYS = 12


class MmdbError(Exception):
    """The file cannot be used. The message says why, without the file's name."""


class Shape(NamedTuple):
    """The keys of a file's records for each value; empty for a missing value.

    `nested` is the key within the record under `country`, for files whose country is a record of its own.
    """

    asn: str = ""
    name: str = ""
    country: str = ""
    nested: str = ""


def is_mmdb(content: bytes) -> bool:
    """Whether these are the bytes of an MMDB file, up to its end."""
    return content.rfind(_METADATA_MARKER, max(0, len(content) - _METADATA_BYTES)) >= 0


class MmdbFile:
    """One MMDB file: a `policyd.core.owners.Source`.

    A pickled MmdbFile has no content: after unpickling, the caller calls `adopt` with the descriptor of the memory
    file, which `descriptor` has in the process that read the file. `damaged` counts lookups that found the file broken.
    """

    def __init__(self, content: bytes, *, systems: bool, countries: bool) -> None:
        self.damaged = 0
        self._countries: dict[str, str] = {}
        self.descriptor = _sealed(content)
        self._open(self.descriptor)
        self._use(self._find_shape(systems=systems, countries=countries))

    def _open(self, descriptor: int) -> None:
        try:
            self._reader = maxminddb.open_database(f"/proc/self/fd/{descriptor}", maxminddb.MODE_MMAP_EXT)
        except maxminddb.InvalidDatabaseError:
            raise MmdbError("is damaged, or has been cut short") from None
        except ValueError as error:  # there is no C reader
            raise MmdbError(f"cannot be read: {error}") from None
        self._get = self._reader.get

    def _use(self, shape: Shape) -> None:
        self.shape = shape
        self._key, self._nested = shape.country, shape.nested  # read at each request

    def adopt(self, descriptor: int) -> None:
        """Opens the memory file; the descriptor may be closed afterwards. Raises MmdbError."""
        self.descriptor = -1
        self._open(descriptor)

    def __getstate__(self) -> Shape:
        return self.shape

    def __setstate__(self, shape: Shape) -> None:
        self._use(shape)
        self.descriptor = -1
        self.damaged = 0
        self._countries = {}

    def close(self) -> None:
        """Closes the descriptor; the file stays open for lookups."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self.close()

    # --- Lookups ------------------------------------------------------------------------------------------------------

    def system(self, _address: Address, text: str) -> tuple[int, str]:
        """As `Source.system`."""
        record = self._record(text)
        return self._system_of(record) if record is not None else (0, "")

    def country(self, _address: Address, text: str) -> str:
        """As `Source.country`."""
        try:
            record: Any = self._get(text)
            if self._nested:
                return self._countries[record[self._key][self._nested]]
            return self._countries[record[self._key]]
        except (LookupError, TypeError, ValueError, maxminddb.InvalidDatabaseError):
            record = self._record(text)  # no record, a country that is new here, or a damaged file
        return self._country_of(record) if record is not None else ""

    def owner(self, _address: Address, text: str) -> Owner:
        """As `Source.owner`."""
        record = self._record(text)
        if record is None:
            return NO_OWNER
        return Owner(*self._system_of(record), self._country_of(record))

    def _record(self, text: str) -> Any:
        try:
            return self._get(text)
        except (maxminddb.InvalidDatabaseError, ValueError):  # ValueError: a text that is not UTF-8
            self.damaged += 1
            return None

    def _system_of(self, record: Any) -> tuple[int, str]:
        shape = self.shape
        try:
            asn = record[shape.asn]
        except (KeyError, TypeError, IndexError):
            return 0, ""
        if type(asn) is not int or not 0 < asn <= 0xFFFFFFFF:
            asn = parse_asn(asn) if isinstance(asn, str) else 0
        name = record.get(shape.name) if asn else ""
        return asn or 0, name if isinstance(name, str) else ""

    def _country_of(self, record: Any) -> str:
        shape = self.shape
        try:
            country = record[shape.country][shape.nested] if shape.nested else record[shape.country]
            return self._countries[country]
        except (KeyError, TypeError, IndexError):
            pass
        try:
            country = record[shape.country][shape.nested] if shape.nested else record[shape.country]
        except (KeyError, TypeError, IndexError):
            return ""
        found = parse_country(country) or "" if isinstance(country, str) else ""
        if isinstance(country, str):
            if len(self._countries) >= _MAX_SPELLINGS:
                self._countries.clear()
            self._countries[country] = found
        return found

    # --- The whole file -----------------------------------------------------------------------------------------------

    @property
    def built(self) -> int:
        """When the file was built, in seconds since 1970."""
        return int(self._reader.metadata().build_epoch)

    @property
    def has_ipv4(self) -> bool:
        """Whether any IPv4 address has a record. The tree of a file with IPv6 only ends above all of 0.0.0.0/0."""
        try:
            record, length = self._reader.get_with_prefix_len("0.0.0.0")  # noqa: S104 - an address to look up
        except (maxminddb.InvalidDatabaseError, ValueError):
            raise MmdbError("is damaged, or has been cut short") from None
        return record is not None or length > 0

    @property
    def has_ipv6(self) -> bool:
        """Whether the file has a branch for 2000::/3, where all IPv6 addresses of the Internet are."""
        if self._reader.metadata().ip_version == 4:
            return False
        try:
            record, length = self._reader.get_with_prefix_len("2000::")
        except (maxminddb.InvalidDatabaseError, ValueError):
            raise MmdbError("is damaged, or has been cut short") from None
        return record is not None or length > 3

    def network_of(self, address: Address) -> str:
        """The network of an address's record; empty without a record. Raises MmdbError for a damaged file."""
        try:
            record, length = self._reader.get_with_prefix_len(format_address(address))
        except (maxminddb.InvalidDatabaseError, ValueError):
            raise MmdbError("is damaged, or has been cut short") from None
        if record is None:
            return ""
        bits = 32 if address[0] == 4 else 128
        first = address[1] >> bits - length << bits - length
        return f"{format_address((address[0], first))}/{length}"

    def networks(self) -> Iterator[tuple[int, int, int, Owner]]:
        """Every network with its owner: version, first address, prefix length. Raises MmdbError for a damaged file."""
        for version, first, length, record in self._networks():
            yield version, first, length, Owner(*self._system_of(record), self._country_of(record))

    def _networks(self) -> Iterator[tuple[int, int, int, Any]]:
        try:
            for network, record in self._reader:
                first, length = int(network.network_address), network.prefixlen
                if isinstance(network, ipaddress.IPv4Network):
                    yield 4, first, length, record
                elif first >> 32 == 0 and length >= 96:  # the IPv4 part of a tree
                    yield 4, first, length - 96, record
                else:
                    yield 6, first, length, record
        except (maxminddb.InvalidDatabaseError, ValueError):
            raise MmdbError("is damaged, or has been cut short") from None

    def _find_shape(self, *, systems: bool, countries: bool) -> Shape:
        """Reads records until the needed keys, of a system or a country, are found."""
        shape = Shape()
        for _, _, _, record in islice(self._networks(), _SEARCHED):
            if isinstance(record, dict):
                shape = _with(shape, record)
            if (shape.asn or not systems) and (shape.country or not countries):
                break
        return shape

    def keys(self) -> list[str]:
        """The keys of the first records, for a message."""
        keys: dict[str, None] = {}
        for _, _, _, record in islice(self._networks(), _SEARCHED):
            if isinstance(record, dict):
                keys.update(dict.fromkeys(map(str, record)))
        return [*keys][:_MAX_KEYS]


def _with(shape: Shape, record: dict[str, Any]) -> Shape:
    """The shape, with the keys of this record added."""
    if not shape.asn:
        for asn, name in (("autonomous_system_number", "autonomous_system_organization"), ("asn", "as_name")):
            value = record.get(asn)
            if (isinstance(value, int) and value > 0) or (isinstance(value, str) and parse_asn(value)):
                shape = shape._replace(asn=asn, name=name)
                break
    if not shape.country:
        country = record.get("country")
        if _is_country(record.get("country_code")):
            shape = shape._replace(country="country_code")
        elif isinstance(country, dict) and _is_country(country.get("iso_code")):
            shape = shape._replace(country="country", nested="iso_code")
        elif _is_country(country):
            shape = shape._replace(country="country")
    return shape


def _is_country(value: object) -> bool:
    return isinstance(value, str) and parse_country(value) is not None


def _sealed(content: bytes) -> int:
    """The descriptor of a sealed memory file with these bytes."""
    descriptor = os.memfd_create("policyd-database", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(content)
    fcntl.fcntl(
        descriptor,
        fcntl.F_ADD_SEALS,
        fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
    )
    return descriptor
