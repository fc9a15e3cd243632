"""Reads `databases:` of a ruleset: files with the autonomous systems and the countries of networks.

Two formats, detected from the content, plain or gzip: MMDB (`policyd.config.mmdb`) and ranges as text
(`policyd.config.ranges`). A file is read once in a load, even if it serves both kinds. A load refuses a file that
cannot be used; the lookup for a request raises no error.
"""

from __future__ import annotations

import dataclasses
import datetime
import gzip
import hashlib
import io
import time
import zlib
from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from policyd.config.files import BYTE_ORDER_MARK, OversizedError, UnreadableError, read_dated
from policyd.config.in_force import HASH_DIGITS
from policyd.config.list_sources import (
    DATABASE_SOURCE_KEYS,
    checked_at,
    late_message,
    late_since,
    read_source,
)
from policyd.config.mmdb import MmdbError, MmdbFile, is_mmdb
from policyd.config.problems import Problem, Severity, unknown_key
from policyd.config.ranges import Columns, LineError, columns_of, read_ranges, unsupported_form
from policyd.config.settings import parse_duration
from policyd.config.yaml_tree import Mapping, Scalar, describe
from policyd.core.address import format_address

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from collections.abc import Mapping as Mapping_

    from policyd.config.list_sources import Source
    from policyd.config.problems import Report
    from policyd.config.ranges import OwnerRanges
    from policyd.config.yaml_tree import Item, Node
    from policyd.core.address import Address
    from policyd.core.owners import Owner, Owners
    from policyd.core.protocol import Request

# Maximum bytes of a database, before and after decompression: GeoLite2's cities have 70 MB, the largest commercial
# files several hundred MB.
MAX_DATABASE_BYTES = 512 << 20

# Default of `max_age`, in seconds. Networks change owners every day; vendors publish once a week or once a month.
DEFAULT_MAX_AGE = 60 * 86400

DATABASE_KEYS = ("file", "max_age", "from")

# The date that npm gives every file of a package, so that equal packages have equal bytes.
_NPM_DATE = datetime.date(1985, 10, 26)

# Bytes at the beginning of a file that are searched for its first line.
_HEAD_BYTES = 4096

_GZIP = b"\x1f\x8b"


class DatabaseKind(StrEnum):
    """The kinds of data of a database."""

    ASN = "asn"
    COUNTRY = "country"


class DatabaseError(Exception):
    """A database cannot be used. The message says why, without the file's name; `line` is 0 for the whole file."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class DatabaseInfo:
    """Facts about one database, which `status`, `check` and the metrics show.

    `hash` is the first HASH_DIGITS of the file's SHA-256. `built` is when the data were built, in seconds
    since 1970: an MMDB contains it; for ranges as text it is the file's modification time. `max_age` is in seconds.
    `every` is the interval (seconds) at which the database is fetched, None if it is not; `missing` says that it has
    not been fetched yet.
    """

    kind: DatabaseKind
    path: str
    format: str
    hash: str
    built: int
    max_age: float
    has_ipv6: bool
    every: float | None = None
    missing: bool = False
    digest: bytes = b""  # the whole SHA-256

    @property
    def date(self) -> datetime.date:
        """The day on which the data were built, in UTC."""
        return datetime.datetime.fromtimestamp(self.built, datetime.UTC).date()

    @property
    def shown(self) -> str:
        """The file, and its date or that it was not fetched yet; for a message."""
        return f"{self.path}, not fetched yet" if self.missing else f"{self.path} of {self.date}"

    def is_old(self, now: float) -> bool:
        """Whether the data are older than `max_age`; `now` is in seconds since 1970."""
        return now - self.built > self.max_age and not self.missing

    def age_notice(self, now: float) -> str:
        """The warning for a database that is older than `max_age`; empty for any other."""
        if not self.is_old(now):
            return ""
        if self.date == _NPM_DATE:
            return (
                f"the {self.kind} database has the date that npm gives every file, {self.date}; "
                "touch it after a download"
            )
        return (
            f"the {self.kind} database is dated {self.date}, {_days((now - self.built) // 86400 * 86400)} ago, "
            f"and networks change hands; fetch a newer file (max_age is {_days(self.max_age)})"
        )


def _days(seconds: float) -> str:
    days = seconds / 86400
    return f"{days:g} {'day' if days == 1 else 'days'}"


class RecordsInForce:
    """Placeholder for the records of a database that has not changed since the ruleset in force was loaded.

    `take_records` replaces it.
    """

    def system(self, _address: Address, _text: str) -> tuple[int, str]:
        """Raises LookupError."""
        raise LookupError

    def country(self, _address: Address, _text: str) -> str:
        """Raises LookupError."""
        raise LookupError

    def owner(self, _address: Address, _text: str) -> Owner:
        """Raises LookupError."""
        raise LookupError


def take_records(owners: Owners, in_force: Owners) -> None:
    """Replaces the placeholders in new databases by the records in force."""
    owners.asn = in_force.asn if isinstance(owners.asn, RecordsInForce) else owners.asn
    owners.country = in_force.country if isinstance(owners.country, RecordsInForce) else owners.country


@dataclass(slots=True)
class Database:
    """One database of a load, with its records."""

    info: DatabaseInfo
    records: MmdbFile | OwnerRanges | RecordsInForce

    def network_of(self, request: Request) -> str:
        """Returns the network or range of the record for the client's address; empty without a record.

        Raises DatabaseError if the database was not read.
        """
        address = request.address
        if address is None:
            return ""
        if isinstance(self.records, RecordsInForce):
            raise DatabaseError("was not read, because it has not changed")
        if isinstance(self.records, MmdbFile):
            return self.records.network_of(address)
        found = self.records.range_of(address)
        if found is None:
            return ""
        first, last = found
        size = last - first + 1
        if not size & (size - 1) and not first % size:
            return f"{format_address((address[0], first))}/{(32 if address[0] == 4 else 128) - size.bit_length() + 1}"
        return f"{format_address((address[0], first))}-{format_address((address[0], last))}"

    def ranges(self) -> Iterator[tuple[int, int, int, Owner]]:
        """Yields every range: version, first address, last address, owner. Takes seconds for a large file.

        Raises DatabaseError if the file is damaged or was not read.
        """
        if isinstance(self.records, RecordsInForce):
            raise DatabaseError("was not read, because it has not changed")
        if not isinstance(self.records, MmdbFile):
            yield from self.records.networks()
            return
        try:
            for version, first, length, owner in self.records.networks():
                yield version, first, first + (1 << (32 if version == 4 else 128) - length) - 1, owner
        except MmdbError as error:
            raise DatabaseError(str(error)) from None


@dataclass(frozen=True, slots=True)
class DatabaseDefinition:
    """A file that a ruleset declares: the kinds that it serves, each with its `max_age`, and its source."""

    path: str
    max_ages: dict[DatabaseKind, float]
    source: Source | None = None

    @property
    def names(self) -> str:
        """The kinds, for a message."""
        return " and ".join(sorted(self.max_ages))


class DatabaseFile:
    """The bytes of one file, for the kinds that it serves."""

    def __init__(self, path: str) -> None:
        """Reads the file. Raises UnreadableError and OversizedError (`policyd.config.files`)."""
        self.path = path
        content, modified = read_dated(path, MAX_DATABASE_BYTES)
        self._digest = hashlib.sha256(content).digest()
        self._hash = self._digest.hex()[:HASH_DIGITS]
        self._modified = int(modified)
        self._content = content

    def read(
        self,
        kinds: frozenset[DatabaseKind],
        max_ages: dict[DatabaseKind, float],
        in_force: Collection[DatabaseInfo] = (),
    ) -> dict[DatabaseKind, Database]:
        """Returns the databases of these kinds in the file; to be called once. Raises DatabaseError.

        If file and kinds are unchanged since the ruleset in force was loaded, the file is not parsed again.
        """
        content, self._content = self._content, b""
        known = {info.kind: info for info in in_force if (info.path, info.digest) == (self.path, self._digest)}
        if known.keys() == kinds:
            return {kind: Database(self._as_before(known[kind], max_ages[kind]), RecordsInForce()) for kind in kinds}
        content = _unpacked(content)
        if not content:
            raise DatabaseError("is empty")
        if is_mmdb(content):
            found = self._read_mmdb(content, kinds, max_ages)
        else:
            found = {kind: self._read_ranges(content, kind, max_ages[kind]) for kind in sorted(kinds)}
        for database in found.values():
            database.info = dataclasses.replace(database.info, digest=self._digest)
        return found

    def _as_before(self, info: DatabaseInfo, max_age: float) -> DatabaseInfo:
        """Returns the info of a database whose content has not changed; its modification time may have changed."""
        built = info.built if info.format == "MMDB" else self._modified
        return dataclasses.replace(info, built=built, max_age=max_age)

    def _read_mmdb(
        self, content: bytes, kinds: frozenset[DatabaseKind], max_ages: dict[DatabaseKind, float]
    ) -> dict[DatabaseKind, Database]:
        try:
            file = MmdbFile(content, systems=DatabaseKind.ASN in kinds, countries=DatabaseKind.COUNTRY in kinds)
            has_ipv4, has_ipv6 = file.has_ipv4, file.has_ipv6
        except MmdbError as error:
            raise DatabaseError(f"{error}; fetch it again") from None
        if not has_ipv4:
            raise DatabaseError("has IPv6 networks only, so no IPv4 client would have a record; use the file with both")
        for kind, found, wanted in (
            (DatabaseKind.ASN, file.shape.asn, "autonomous_system_number or asn"),
            (DatabaseKind.COUNTRY, file.shape.country, "country.iso_code or country_code"),
        ):
            if kind in kinds and not found:
                keys = ", ".join(file.keys()) or "none"
                raise DatabaseError(f"no record has a value for {kind} ({wanted}); the keys of its records are: {keys}")
        infos = (
            DatabaseInfo(kind, self.path, "MMDB", self._hash, file.built, max_ages[kind], has_ipv6) for kind in kinds
        )
        return {info.kind: Database(info, file) for info in infos}

    def _read_ranges(self, content: bytes, kind: DatabaseKind, max_age: float) -> Database:
        content = content.removeprefix(BYTE_ORDER_MARK)
        head = content[:_HEAD_BYTES]
        lines = head.decode("utf-8", "replace").splitlines()
        first = next((line for line in lines if line.strip() and not line.lstrip().startswith(("#", ";"))), "")
        if b"\0" in head or not first:
            raise DatabaseError(_NEITHER)
        columns = columns_of(first)
        if columns is None:
            raise DatabaseError(unsupported_form(first) or _NEITHER)
        if (columns.asn if kind is DatabaseKind.ASN else columns.country) is None:
            missing = "AS numbers" if kind is DatabaseKind.ASN else "countries"
            raise DatabaseError(f"has no {missing}; the columns of its lines are: addresses, {', '.join(columns.keys)}")
        try:
            ranges = read_ranges(content, columns, systems=kind is DatabaseKind.ASN)
        except LineError as error:
            raise DatabaseError(str(error), error.line) from None
        if not ranges.has_ipv4:
            raise DatabaseError(
                "has no IPv4 range with a record, so no IPv4 client would have one; add the file with the IPv4 ranges"
            )
        form = "TSV" if columns.separator == "\t" else "CSV"
        info = DatabaseInfo(kind, self.path, form, self._hash, self._modified, max_age, ranges.has_ipv6)
        return Database(info, ranges.table)


_NEITHER = (
    "is neither an MMDB file nor lines of ranges (first address, last address, then an AS number or a country); "
    "if it is an MMDB file, it has been cut short: fetch it again"
)


def _unpacked(content: bytes) -> bytes:
    """Returns the content, decompressed if it is gzip. Raises DatabaseError."""
    if not content.startswith(_GZIP):
        return content
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            unpacked = file.read(MAX_DATABASE_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DatabaseError(f"is gzip that cannot be unpacked ({error}); fetch it again") from None
    if len(unpacked) > MAX_DATABASE_BYTES:
        raise DatabaseError(f"is longer than {MAX_DATABASE_BYTES >> 20} MiB when unpacked")
    return unpacked


# --- The section `databases:` of a rules file -------------------------------------------------------------------------


def read_databases(
    node: Node,
    rules_path: str,
    report: Report,
    *,
    replaced: Mapping_[str, str] | None = None,
    in_force: Collection[DatabaseInfo] = (),
) -> tuple[dict[DatabaseKind, Database], list[DatabaseDefinition]]:
    """Reads the databases that a ruleset declares; returns them with their definitions, and reports problems.

    `replaced` maps the path of a database to the file to read instead. A database with `from:` whose file
    does not exist yet is empty. `in_force` are the databases of the ruleset in force, which are not parsed again if
    their files have not changed.
    """
    return _Section(rules_path, report, replaced or {}, in_force).read(node)


class _Section:
    """Reads the section `databases:`."""

    def __init__(
        self, rules_path: str, report: Report, replaced: Mapping_[str, str], in_force: Collection[DatabaseInfo]
    ) -> None:
        self._path = rules_path
        self._in_force = in_force
        self._report = report
        self._replaced = replaced

    def _add(self, node: Node, message: str) -> None:
        self._report.add(Problem(self._path, node.line, node.column, f"databases: {message}"))

    def read(self, node: Node) -> tuple[dict[DatabaseKind, Database], list[DatabaseDefinition]]:
        if not isinstance(node, Mapping):
            self._add(node, f"expected asn and country, each with its file, not {describe(node)}")
            return {}, []
        sources: dict[str, Source] = {}
        max_ages_of: dict[str, dict[DatabaseKind, float]] = defaultdict(dict)
        where: dict[str, Node] = {}
        for item in node:
            if item.key.text not in set(DatabaseKind):
                self._add(item.key, unknown_key(item.key.text, [*DatabaseKind]))
                continue
            kind = DatabaseKind(item.key.text)
            fields = self._read_one(kind, item.value)
            if fields is not None:
                name, max_age, source = fields
                path = str(Path(self._path).parent / name.text)
                max_ages_of[path][kind] = max_age
                where.setdefault(path, name)
                if source is not None and sources.setdefault(path, source) != source:
                    self._add(item.value, f"{kind}: from: the same file has another source for another kind")
        found: dict[DatabaseKind, Database] = {}
        definitions = [DatabaseDefinition(path, max_ages, sources.get(path)) for path, max_ages in max_ages_of.items()]
        for definition in definitions:
            found |= self._load(definition, where[definition.path])
        return found, definitions

    def _read_one(self, kind: DatabaseKind, node: Node) -> tuple[Scalar, float, Source | None] | None:
        """Returns the file's name, the maximum age, and the source to fetch from; None if name or source is wrong."""
        if isinstance(node, Scalar) and not node.missing and node.text:
            return node, DEFAULT_MAX_AGE, None
        if not isinstance(node, Mapping):
            self._add(node, f"{kind}: expected the name of a file, not {describe(node)}")
            return None
        for item in node:
            if item.key.text not in DATABASE_KEYS:
                self._add(item.key, f"{kind}: {unknown_key(item.key.text, DATABASE_KEYS)}")
        file = node.get("file")
        max_age = self._max_age(kind, node.items["max_age"]) if "max_age" in node.items else DEFAULT_MAX_AGE
        written = node.get("from")
        source = None
        if written is not None:
            prefix = f"databases: {kind}: "
            source = read_source(written, self._path, prefix, self._report, keys=DATABASE_SOURCE_KEYS)
        if file is None:
            self._add(node, f"{kind}: 'file' is missing")
            return None
        if not isinstance(file, Scalar) or file.missing or not file.text:
            self._add(file, f"{kind}: file: expected the name of a file, not {describe(file)}")
            return None
        return None if written is not None and source is None else (file, max_age, source)

    def _max_age(self, kind: DatabaseKind, item: Item) -> float:
        if not isinstance(item.value, Scalar) or item.value.missing:
            self._add(item.value, f"{kind}: max_age: expected a duration, as in 60d, not {describe(item.value)}")
            return DEFAULT_MAX_AGE
        try:
            return parse_duration(item.value.text)
        except ValueError as error:
            self._add(item.value, f"{kind}: max_age: {error}")
            return DEFAULT_MAX_AGE

    def _load(self, definition: DatabaseDefinition, node: Node) -> dict[DatabaseKind, Database]:
        path, source, max_ages = definition.path, definition.source, definition.max_ages
        try:
            found = DatabaseFile(self._replaced.get(path, path)).read(frozenset(max_ages), max_ages, self._in_force)
        except (UnreadableError, OversizedError) as error:
            is_missing = isinstance(error.__cause__, FileNotFoundError) and checked_at(path) is None
            if source is not None and is_missing and path not in self._replaced:
                return {kind: _empty(path, kind, max_age, source.every) for kind, max_age in max_ages.items()}
            self._add(node, f"{path} {error}")
        except DatabaseError as error:
            self._report.add(Problem(path, error.line, 1 if error.line else 0, str(error)))
        else:
            for database in found.values():
                database.info = dataclasses.replace(database.info, every=None if source is None else source.every)
            return found
        return {}


def _empty(path: str, kind: DatabaseKind, max_age: float, every: float) -> Database:
    """A database that has not been fetched yet: no address has a record."""
    columns = Columns(",", 0, None, None) if kind is DatabaseKind.ASN else Columns(",", None, 0, None)
    table = read_ranges(b"", columns, systems=kind is DatabaseKind.ASN).table
    return Database(DatabaseInfo(kind, path, "", "", 0, max_age, has_ipv6=False, every=every, missing=True), table)


def warnings_of(databases: dict[DatabaseKind, Database]) -> Iterator[Problem]:
    """Yields warnings for databases that are old, that were not fetched in time, or that have no IPv6 networks."""
    now = time.time()
    for database in databases.values():
        info = database.info
        if info.missing:
            message = (
                f"has not been fetched yet, so the {info.kind} database is empty; run policyd fetch --list {info.kind}"
            )
            yield Problem(info.path, 0, 0, message, severity=Severity.WARNING)
            continue
        if notice := info.age_notice(now):
            yield Problem(info.path, 0, 0, notice, severity=Severity.WARNING)
        if info.every is not None and (since := late_since(info.path, info.every, info.built)) is not None:
            message = late_message(f"the {info.kind} database", since)
            yield Problem(info.path, 0, 0, message, severity=Severity.WARNING)
        if not info.has_ipv6:
            message = f"the {info.kind} database has IPv4 networks only, so no IPv6 client has a record"
            yield Problem(info.path, 0, 0, message, severity=Severity.WARNING)
