"""Reads MMDB files (https://maxmind.github.io/MaxMind-DB/) from a sealed copy in memory.

The C reader of maxminddb maps a file and trusts it to stay as it is; a download script that rewrites the user's file in
place would change what is being read, or end the process with SIGBUS. So the bytes are copied into a memory file
(memfd_create(2)), which is sealed, and only this copy is mapped.

The C reader (3.2.0) also corrupts the memory of its process if it looks up a damaged record many times, or iterates
over a damaged file. So a load examines the file with the reader in Python. `MmdbFile.networks` looks up one network
after the other instead of iterating, and ends at the first error. After the lookup for a request has found damage, the
lookups for all further requests use the reader in Python.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import maxminddb

from policyd.config.countries import parse_country
from policyd.config.entries import MAX_ASN
from policyd.config.ranges import parse_asn
from policyd.core.address import format_address
from policyd.core.owners import NO_OWNER, Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from policyd.core.address import Address

# Marks the metadata, which are within the last 128 KiB of a file.
_METADATA_MARKER = b"\xab\xcd\xefMaxMind.com"
_METADATA_BYTES = 128 << 10

# Maximum number of cached spellings of countries, after which the cache is emptied; real files have fewer.
_MAX_SPELLINGS = 4096

# Maximum number of records searched for a file's keys, and of keys in a message. In real files the first record has all
# keys; reading a million records takes seconds.
_SEARCHED = 20_000
_MAX_KEYS = 12


# Networks of IPv6 that contain IPv4 addresses, by first address and length: mapped, Teredo, 6to4. MaxMind's files
# repeat the IPv4 networks there (https://maxmind.github.io/MaxMind-DB/).
_IPV4_IN_IPV6 = ((0xFFFF << 32, 96), (0x2001 << 112, 32), (0x2002 << 112, 16))

# IPv4 addresses from all over the address space, with which these repetitions are detected.
_PROBES = (0x01010101, 0x08080808, 0x31D4C9B1, 0x64400001, 0xC1000687, 0xD9000001, 0xFFFFFFFF)

_DAMAGED = "is damaged, or has been cut short"


class MmdbError(Exception):
    """The file cannot be used. The message says why, without the file's name."""


class RecordKeys(NamedTuple):
    """The keys under which the records of a file have AS number, name and country; empty for a missing value.

    `nested` is the key inside `country`, for files in which the country is a mapping.
    """

    asn: str = ""
    name: str = ""
    country: str = ""
    nested: str = ""


def is_mmdb(content: bytes) -> bool:
    """Whether these bytes end with the metadata of an MMDB file."""
    return content.rfind(_METADATA_MARKER, max(0, len(content) - _METADATA_BYTES)) >= 0


class MmdbFile:
    """The records of one MMDB file; implements `policyd.core.owners.Records`.

    A pickled MmdbFile has no content: after unpickling, the caller calls `adopt` with the descriptor of the memory
    file, which `descriptor` has in the process that read the file. `is_damaged` says that a lookup found damage.
    """

    def __init__(self, content: bytes, *, systems: bool, countries: bool) -> None:
        self._countries: dict[str, str] = {}
        self.descriptor = _sealed(content)
        self._open(self.descriptor)
        self._use(self._find_shape(systems=systems, countries=countries))

    def _open(self, descriptor: int) -> None:
        path = f"/proc/self/fd/{descriptor}"
        try:
            self._reader = maxminddb.open_database(path, maxminddb.MODE_MMAP_EXT)
            # This reader takes no memory of its own until it is used.
            self._slow_reader = maxminddb.open_database(path, maxminddb.MODE_MMAP)
        except maxminddb.InvalidDatabaseError:
            raise MmdbError(_DAMAGED) from None
        except ValueError as error:  # there is no C reader
            raise MmdbError(f"cannot be read: {error}") from None
        self.is_damaged = False
        self._get: Callable[[str], Any] = self._reader.get

    def _use(self, shape: RecordKeys) -> None:
        self.shape = shape
        self._key, self._nested = shape.country, shape.nested  # read at each request

    def adopt(self, descriptor: int) -> None:
        """Opens the memory file; the descriptor may be closed afterwards. Raises MmdbError."""
        self.descriptor = -1
        self._open(descriptor)

    def __getstate__(self) -> RecordKeys:
        return self.shape

    def __setstate__(self, shape: RecordKeys) -> None:
        self._use(shape)
        self.descriptor = -1
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
        """Implements `Records.system`."""
        record = self._record(text)
        return self._system_of(record) if record is not None else (0, "")

    def country(self, _address: Address, text: str) -> str:
        """Implements `Records.country`."""
        try:  # as in `_record`, without a call, because each request does this
            record = self._get(text)
        except (ValueError, maxminddb.InvalidDatabaseError) as error:
            record = self._record_after(error, text)
        if record is None:
            return ""
        try:
            return self._countries[record[self._key][self._nested] if self._nested else record[self._key]]
        except (LookupError, TypeError):  # a country that is not cached yet, or no country
            return self._country_of(record)

    def owner(self, _address: Address, text: str) -> Owner:
        """Implements `Records.owner`."""
        record = self._record(text)
        if record is None:
            return NO_OWNER
        return Owner(*self._system_of(record), self._country_of(record))

    def _record(self, text: str) -> Any:
        try:
            return self._get(text)
        except (ValueError, maxminddb.InvalidDatabaseError) as error:
            return self._record_after(error, text)

    def _record_after(self, error: Exception, text: str) -> Any:
        """The record of an address for which the reader raised an error."""
        if not isinstance(error, maxminddb.InvalidDatabaseError):
            return None  # a name that is not UTF-8, or an IPv6 address in a file for IPv4
        self.is_damaged = True
        self._get = self._get_slowly
        return self._get(text)

    def _get_slowly(self, text: str) -> Any:
        """Looks up with the reader in Python, which survives any damage."""
        try:
            return self._slow_reader.get(text)
        except Exception:  # noqa: BLE001 - damage leads to IndexError, struct.error, RecursionError and others
            return None

    def _system_of(self, record: Any) -> tuple[int, str]:
        shape = self.shape
        try:
            asn = record[shape.asn]
        except (KeyError, TypeError, IndexError):
            return 0, ""
        if type(asn) is not int or not 0 < asn <= MAX_ASN:
            asn = parse_asn(asn) if isinstance(asn, str) else 0
        name = record.get(shape.name) if asn else ""
        return asn or 0, name if isinstance(name, str) else ""

    def _country_of(self, record: Any) -> str:
        shape = self.shape
        try:
            country = record[shape.country][shape.nested] if shape.nested else record[shape.country]
        except (KeyError, TypeError, IndexError):
            return ""
        if not isinstance(country, str):
            return ""
        found = self._countries.get(country)
        if found is None:
            if len(self._countries) >= _MAX_SPELLINGS:
                self._countries.clear()
            found = self._countries[country] = parse_country(country) or ""
        return found

    # --- The whole file -----------------------------------------------------------------------------------------------

    @property
    def built(self) -> int:
        """When the file was built, in seconds since 1970."""
        return int(self._slow_reader.metadata().build_epoch)

    @property
    def has_ipv4(self) -> bool:
        """Whether any IPv4 address has a record. In a file with IPv6 only, the tree ends above 0.0.0.0/0."""
        record, length = self._with_prefix_length((4, 0))
        return record is not None or length > 0

    @property
    def has_ipv6(self) -> bool:
        """Whether the file has a branch for 2000::/3, where all IPv6 addresses of the Internet are."""
        if self._slow_reader.metadata().ip_version == 4:
            return False
        record, length = self._with_prefix_length((6, 0x2000 << 112))
        return record is not None or length > 3

    def network_of(self, address: Address) -> str:
        """The network of an address's record; empty without a record."""
        try:
            record, length = self._with_prefix_length(address)
        except MmdbError:
            return ""
        if record is None:
            return ""
        bits = 32 if address[0] == 4 else 128
        first = address[1] >> bits - length << bits - length
        return f"{format_address((address[0], first))}/{length}"

    def _with_prefix_length(self, address: Address) -> tuple[Any, int]:
        """The record of an address, and the prefix length of its network. Raises MmdbError for a damaged file."""
        try:
            return self._slow_reader.get_with_prefix_len(format_address(address))
        except Exception:  # noqa: BLE001 - damage leads to IndexError, struct.error, RecursionError and others
            raise MmdbError(_DAMAGED) from None

    def networks(self) -> Iterator[tuple[int, int, int, Owner]]:
        """Yields every network: version, first address, prefix length, owner. Raises MmdbError for a damaged file."""
        for version, first, length, record in self._networks(self._reader):
            yield version, first, length, Owner(*self._system_of(record), self._country_of(record))

    def _networks(self, reader: Any) -> Iterator[tuple[int, int, int, Any]]:
        """Yields every network and its record. A lookup returns the prefix length, which gives the next start."""
        get = reader.get_with_prefix_len
        versions = (4,) if reader.metadata().ip_version == 4 else (4, 6)
        try:
            for version in versions:
                bits = 32 if version == 4 else 128
                address = 0 if version == 4 else 1 << 32  # ::/96 of a tree has the IPv4 networks
                aliases = {} if version == 4 else _aliases(get)
                while address < 1 << bits:
                    if address in aliases:
                        address += aliases[address]
                        continue
                    record, length = get(format_address((version, address)))
                    size = 1 << bits - length
                    address &= -size
                    if record is not None:
                        yield version, address, length, record
                    address += size
        except Exception:  # noqa: BLE001 - damage leads to IndexError, struct.error, RecursionError and others
            raise MmdbError(_DAMAGED) from None

    def _find_shape(self, *, systems: bool, countries: bool) -> RecordKeys:
        """Reads records until the keys of the needed values (systems, countries) are found, or too many were read."""
        shape = RecordKeys()
        for _, _, _, record in islice(self._networks(self._slow_reader), _SEARCHED):
            if isinstance(record, dict):
                shape = _with(shape, record)
            if (shape.asn or not systems) and (shape.country or not countries):
                break
        return shape

    def keys(self) -> list[str]:
        """The keys of the first records, for a message."""
        keys: dict[str, None] = {}
        for _, _, _, record in islice(self._networks(self._slow_reader), _SEARCHED):
            if isinstance(record, dict):
                keys.update(dict.fromkeys(map(str, record)))
        return [*keys][:_MAX_KEYS]


def _aliases(get: Callable[[str], tuple[Any, int]]) -> dict[int, int]:
    """The IPv6 networks that repeat the file's IPv4 networks, with their sizes, by first address."""
    found = {}
    for first, length in _IPV4_IN_IPV6:
        for probe in _PROBES:
            record, length4 = get(format_address((4, probe)))
            repeated, length6 = get(format_address((6, first | probe << 96 - length)))
            if (repeated, length6) != (record, length + length4):
                break
        else:
            found[first] = 1 << 128 - length
    return found


def _with(shape: RecordKeys, record: dict[str, Any]) -> RecordKeys:
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
    """Returns the descriptor of a sealed memory file with these bytes. Raises OSError, and leaves nothing open then."""
    descriptor = os.memfd_create("policyd-database", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
        fcntl.fcntl(
            descriptor,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
        )
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
