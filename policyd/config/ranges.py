"""Reads a database of address ranges as text: CSV or TSV lines of first address, last address, AS number or country,
and the name of the system.

Known forms: ip-location-db's CSV (`1.0.0.0,1.0.0.255,13335,"Cloudflare, Inc."`, `1.0.0.0,1.0.0.255,AU`), iptoasn's TSV
(AS number, country and name, separated by tabs; or a country alone). The content decides which form it is.

Half a million lines take half a second: blocks of lines are parsed by loops in C, and only a block with a wrong or
unusual line, such as a comment, is parsed line by line.
"""

from __future__ import annotations

import csv
import re
import socket
import sys
from array import array
from bisect import bisect_right
from collections import defaultdict
from functools import partial
from itertools import accumulate, compress, count, islice, repeat
from operator import ge, le
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from policyd.config.countries import UNKNOWN_COUNTRIES, parse_country
from policyd.config.entries import MAX_ASN
from policyd.config.problems import quoted
from policyd.core.address import parse_address
from policyd.core.owners import Owner
from policyd.core.tables import RangeTable, packed
from policyd.tables.build import count_before_blocks, halves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from policyd.core.address import Address
    from policyd.core.tables import Buffer

# Bytes of lines that are parsed at a time. The objects of a small block stay in the processor's cache, which halves the
# time, and a small block is quickly parsed line by line if it has to be.
_BLOCK = 1 << 15

# Maximum bytes of a system's name; longer ones are cut. The longest in public data have 90.
MAX_NAME = 200

# Maximum number of cached records (3 MB), after which the cache is emptied. Making a record takes longer than looking
# it up.
MAX_CACHED = 16384

# A byte that is not UTF-8, as `surrogateescape` decodes it.
_SURROGATE = re.compile("[\ud800-\udfff]")

_MAPPED = bytes(10) + b"\xff\xff"

# Starts of ranges: a flat array for IPv4, a list for IPv6.
_Starts = TypeVar("_Starts", "array[int]", "list[int]")


class Ranges(NamedTuple):
    """Ranges of addresses: first and last of each, and its number (0: none)."""

    firsts: array[int] | list[int]
    lasts: array[int] | list[int]
    numbers: array[int]


class OwnerRanges:
    """A database of ranges: a table of addresses, and for each number in it a system or a country.

    `asns` has the AS number for each number in the table. `texts` has the names of the systems, or the countries, one
    after another (UTF-8); `ends` has the end of each.
    """

    __slots__ = ("_asns", "_ends", "_known", "_numbers4", "_starts4", "_table", "_texts", "_top")

    def __init__(self, table: RangeTable, asns: Buffer, ends: Buffer, texts: Buffer) -> None:
        self._table = table
        self._top, self._starts4, self._numbers4, *_ = table.parts
        self._asns = memoryview(asns).cast("B").cast("I")
        self._ends = memoryview(ends).cast("B").cast("I")
        self._texts = memoryview(texts)
        self._known: dict[int, tuple[int, str]] = {0: (0, "")}  # recently used records, by number

    def system(self, address: Address, _text: str) -> tuple[int, str]:
        """Implements `Records.system`."""
        version, value = address
        if version == 4:  # the same as RangeTable.number4, without the call, because this runs at each request
            top, block = self._top, value >> 16
            number = self._numbers4[bisect_right(self._starts4, value, top[block], top[block + 1]) - 1]
        else:
            number = self._table.number6(value)
        return self._known.get(number) or self._record(number)

    def country(self, address: Address, _text: str) -> str:
        """Implements `Records.country`."""
        number = self._table.number4(address[1]) if address[0] == 4 else self._table.number6(address[1])
        return (self._known.get(number) or self._record(number))[1]

    def owner(self, address: Address, text: str) -> Owner:
        """Implements `Records.owner` for a table of systems; a table has either systems or countries."""
        return Owner(*self.system(address, text))

    def range_of(self, address: Address) -> tuple[int, int] | None:
        """First and last address of the range that an address lies in; None without a record."""
        for version, first, last, _ in self._ranges():
            if version == address[0] and first <= address[1] <= last:
                return first, last
        return None

    def networks(self) -> Iterator[tuple[int, int, int, Owner]]:
        """Yields every range: version, first address, last address, owner (a system, or only a country)."""
        for version, first, last, number in self._ranges():
            asn, text = self._asns[number], self._text_of(number)
            yield version, first, last, Owner(asn, text) if asn else Owner(0, "", text)

    def _ranges(self) -> Iterator[tuple[int, int, int, int]]:
        """Every range that has a number: version, first address, last address, number."""
        _, starts4, numbers4, high, low, numbers6 = self._table.parts
        starts6 = [upper << 64 | lower for upper, lower in zip(high, low, strict=True)]
        for version, starts, numbers in ((4, starts4, numbers4), (6, starts6, numbers6)):
            ends = [*starts[1:], 1 << (32 if version == 4 else 128)]
            for first, end, number in zip(starts, ends, numbers, strict=True):
                if number:
                    yield version, first, end - 1, number

    def _record(self, number: int) -> tuple[int, str]:
        if len(self._known) >= MAX_CACHED:
            self._known = {0: (0, "")}
        record = self._known[number] = self._asns[number], self._text_of(number)
        return record

    def _text_of(self, number: int) -> str:
        return str(self._texts[self._ends[number - 1] : self._ends[number]], "utf-8")

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        parts = (self._asns, self._ends, self._texts)
        return type(self), (self._table, *(packed(part, protocol) for part in parts))


def _table_of(ranges4: Ranges, ranges6: Ranges) -> RangeTable:
    """The table of ranges that do not overlap, sorted by first address."""
    starts4, numbers4 = _with_gaps(ranges4, 32, partial(array, "I"))
    starts6, numbers6 = _with_gaps(ranges6, 128, list)
    return RangeTable(count_before_blocks(starts4), starts4, numbers4, *halves(starts6), numbers6)


def _with_gaps(ranges: Ranges, width: int, make: Callable[[Iterable[int]], _Starts]) -> tuple[_Starts, array[int]]:
    """Returns starts and numbers: a gap from address 0, then each range and the gap after it. A gap has the number 0.

    If another range follows directly, the gap and that range have equal starts, and a lookup finds the range.
    """
    gaps = [last + 1 for last in ranges.lasts]
    if gaps and gaps[-1] >> width:
        gaps.pop()
    starts = make([0]) * (1 + len(ranges.firsts) + len(gaps))
    starts[1::2] = make(ranges.firsts)
    starts[2::2] = make(gaps)
    numbers = array("I", bytes(4 * len(starts)))
    numbers[1::2] = ranges.numbers
    return starts, numbers


class LineError(Exception):
    """One line is wrong; `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class Columns(NamedTuple):
    """The places of a file's columns, counted after the two addresses; None for a missing column."""

    separator: str
    asn: int | None
    country: int | None
    name: int | None

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the columns, for messages."""
        known = (("AS number", self.asn), ("country", self.country), ("name", self.name))
        return tuple(name for name, place in known if place is not None)


def columns_of(line: str) -> Columns | None:
    """The columns of a file by its first line; None if it is not a line of ranges."""
    separator = "\t" if "\t" in line else ","
    try:
        first, *rest = _split(line, separator)
    except ValueError:
        return None
    if len(rest) < 2 or parse_address(_stripped(first)) is None or parse_address(_stripped(rest[0])) is None:
        return None
    values = rest[1:]
    if parse_asn(values[0]) is not None:
        if len(values) >= 3 and (values[1] in UNKNOWN_COUNTRIES or parse_country(values[1]) is not None):
            return Columns(separator, 0, 1, 2)  # iptoasn's combined file
        return Columns(separator, 0, None, 1 if len(values) > 1 else None)
    if values[0] in UNKNOWN_COUNTRIES or parse_country(values[0]) is not None:
        return Columns(separator, None, 0, None)
    return None


def unsupported_form(line: str) -> str:
    """The message for a file whose first line has numbers or networks instead of addresses; empty for other files."""
    try:
        fields = _split(line, "\t" if "\t" in line else ",")
    except ValueError:
        return ""
    if len(fields) < 2:
        return ""
    if fields[0].isdigit() and fields[1].isdigit():
        return "has addresses as numbers; use the file with IP addresses (without -num)"
    if "/" in fields[0] and parse_address(fields[0].partition("/")[0].encode("ascii", "replace")) is not None:
        return "has networks; use a file with the first and last address of each range, or an MMDB"
    return ""


def parse_asn(text: str) -> int | None:
    """An AS number as databases write it, `13335` or `AS13335` (0 stands for none); None for anything else."""
    digits = text[2:] if text[:2] in {"AS", "as"} else text
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 10):
        return None
    asn = int(digits)
    return asn if asn <= MAX_ASN else None


class RangesFile(NamedTuple):
    """A file that has been read: its table, and whether it has records for IPv4 and for IPv6."""

    table: OwnerRanges
    has_ipv4: bool
    has_ipv6: bool


def read_ranges(content: bytes, columns: Columns, *, systems: bool) -> RangesFile:
    """Reads all lines: with `systems` AS numbers and names, otherwise countries. Raises LineError."""
    reading = _Reading(columns, content, systems=systems)
    number = 1
    for lines in _blocks(content):
        reading.add(lines, number)
        number += len(lines)
    return reading.finish()


def _blocks(content: bytes) -> Iterator[list[str]]:
    """The lines, in blocks. Bytes that are not UTF-8 become surrogates, as in file names (PEP 383)."""
    tail = content[-_BLOCK:]
    length = len(content) - len(tail) + len(tail.rstrip(b"\r\n"))
    start = 0
    while start < length:
        end = content.find(b"\n", start + _BLOCK, length)
        end = length if end < 0 else end
        yield content[start:end].decode("utf-8", "surrogateescape").split("\n")
        start = end + 1


class _Reading:
    """Collects the ranges and records of one file."""

    def __init__(self, columns: Columns, content: bytes, *, systems: bool) -> None:
        self._content = content  # is searched for the line of a wrong record
        self._separator = columns.separator
        self._texts = _RecordTexts(columns, systems=systems)
        self._v4 = _Family(4)
        self._v6 = _Family(6)

    def add(self, lines: list[str], number: int) -> None:
        """Takes a block of lines; `number` is the number of its first line."""
        try:
            separator = self._separator
            firsts, lasts, rest = zip(*[line.split(separator, 2) for line in lines], strict=True)
            family = self._v6 if ":" in firsts[0] else self._v4
            family.add(firsts, lasts, map(self._texts.number, rest))
        except (ValueError, OSError):  # comments, blanks, both families, quotes around addresses, or a fault
            try:
                for place, line in enumerate(lines, number):
                    self._add_line(line, place)
            except LineError:
                self._parse_records()  # if a line above has a wrong record, that is the error
                raise

    def _add_line(self, line: str, number: int) -> None:
        line = line.strip()
        try:
            _check_utf8(line)
        except ValueError as error:
            raise LineError(number, str(error)) from None
        if not line or line.startswith(("#", ";")):
            return
        fields = line.split(self._separator, 2)
        if len(fields) < 3:
            raise LineError(number, "expected first address, last address, and an AS number or a country")
        addresses = []
        for field in fields[:2]:
            address = parse_address(_stripped(field))
            if address is None:
                shown = field.strip().strip('"')
                raise LineError(number, f"{quoted(shown)} is not an IP address{_instead(shown)}")
            addresses.append(address)
        first, last = addresses
        if first[0] != last[0]:
            raise LineError(number, "the first address is of another family than the last")
        if first[1] > last[1]:
            raise LineError(number, "the first address is after the last")
        family = self._v4 if first[0] == 4 else self._v6
        family.add_one(first[1], last[1], self._texts.number(fields[2]))

    def finish(self) -> RangesFile:
        """The table of all lines."""
        numbers, asns, texts = self._parse_records()
        if numbers:
            self._v4.renumber(numbers)
            self._v6.renumber(numbers)
        ends = array("I", accumulate(map(len, texts)))
        table = _table_of(self._v4.ranges(), self._v6.ranges())
        owners = OwnerRanges(table, asns, ends, b"".join(texts))
        return RangesFile(owners, any(self._v4.numbers), any(self._v6.numbers))

    def _parse_records(self) -> tuple[list[int], array[int], list[bytes]]:
        try:
            return self._texts.parse()
        except RecordError as error:
            raise LineError(self._line_of(error.rest), str(error)) from None

    def _line_of(self, rest: str) -> int:
        """The number of the first line with this record."""
        lines = enumerate((line.strip() for block in _blocks(self._content) for line in block), 1)
        return next((number for number, line in lines if line.split(self._separator, 2)[2:] == [rest.strip()]), 0)


def _check_utf8(text: str) -> None:
    """Raises ValueError for a text with surrogates, which replace bytes that are not UTF-8."""
    if surrogate := _SURROGATE.search(text):
        raise ValueError(f"is not UTF-8 (byte 0x{ord(surrogate[0]) & 0xFF:02x})")


def _instead(shown: str) -> str:
    if shown.isdigit():
        return "; this file has addresses as numbers: use the file with IP addresses (without -num)"
    if "/" in shown:
        return "; this file has networks: use a file with the first and last address of each range"
    return ""


class _Family:
    """The ranges of IPv4 or of IPv6, in flat arrays."""

    def __init__(self, version: int) -> None:
        self._version = version
        self._family = socket.AF_INET if version == 4 else socket.AF_INET6
        self._firsts: array[int] | list[int] = array("I") if version == 4 else []
        self._lasts: array[int] | list[int] = array("I") if version == 4 else []
        self.numbers = array("I")

    def add(self, firsts: Sequence[str], lasts: Sequence[str], numbers: Iterable[int]) -> None:
        """Takes ranges in bulk. Takes none and raises OSError or ValueError if the lines need parsing one by one."""
        first, last = self._addresses(firsts), self._addresses(lasts)
        if not all(map(le, first, last)):
            raise ValueError("a range that ends before it begins")
        self._firsts.extend(first)
        self._lasts.extend(last)
        self.numbers.extend(numbers)

    def _addresses(self, texts: Sequence[str]) -> array[int] | list[int]:
        octets = b"".join(map(socket.inet_pton, repeat(self._family), texts))
        if self._version == 4:
            addresses = array("I", octets)
            if sys.byteorder == "little":
                addresses.byteswap()
            return addresses
        if _MAPPED in octets:
            raise ValueError("perhaps an IPv4-mapped address")
        numbers = array("Q", octets)  # two of 64 bits for each address
        if sys.byteorder == "little":
            numbers.byteswap()
        return [high << 64 | low for high, low in zip(numbers[::2], numbers[1::2], strict=True)]

    def add_one(self, first: int, last: int, number: int) -> None:
        self._firsts.append(first)
        self._lasts.append(last)
        self.numbers.append(number)

    def renumber(self, numbers: Sequence[int]) -> None:
        """Replaces each number n by `numbers[n]`."""
        self.numbers = array("I", map(numbers.__getitem__, self.numbers))

    def ranges(self) -> Ranges:
        """The ranges, sorted and without overlaps."""
        ranges = Ranges(self._firsts, self._lasts, self.numbers)
        overlapping = _overlapping(ranges)
        if any(ranges.firsts[place] > ranges.firsts[place + 1] for place in overlapping):
            rows = sorted(zip(*ranges, strict=True), key=lambda row: (row[0], -row[1]))
            ranges = Ranges([row[0] for row in rows], [row[1] for row in rows], array("I", (row[2] for row in rows)))
            overlapping = _overlapping(ranges)
        return _without_overlaps(ranges, overlapping) if overlapping else ranges


def _overlapping(ranges: Ranges) -> list[int]:
    """The places of the ranges that do not end before the next one begins."""
    return [*compress(count(), map(ge, ranges.lasts, islice(ranges.firsts, 1, None)))]


def _without_overlaps(ranges: Ranges, overlapping: list[int]) -> Ranges:
    """Resolves overlaps; `overlapping` has the places of the ranges that the next one overlaps."""
    firsts, lasts, numbers = ranges
    found = Ranges(firsts[:0], lasts[:0], numbers[:0])  # of the same types
    done = 0
    for place in overlapping:
        if place < done:
            continue
        for part, whole in zip(found, ranges, strict=True):
            part.extend(whole[done:place])
        done, highest = place + 1, lasts[place]
        while done < len(firsts) and firsts[done] <= highest:
            highest = max(highest, lasts[done])
            done += 1
        rows = zip(firsts[place:done], lasts[place:done], numbers[place:done], strict=True)
        for row in _disjoint(sorted(rows, key=lambda row: (row[0], -row[1]))):
            for part, value in zip(found, row, strict=True):
                part.append(value)
    for part, whole in zip(found, ranges, strict=True):
        part.extend(whole[done:])
    return found


def _disjoint(rows: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yields ranges without overlaps, and none with the number 0.

    `rows` are sorted by first address; of ranges that begin together, the widest comes first. Public files have ranges
    within others, and some that overlap: an address belongs to the range around it that begins last.
    """
    outer: list[tuple[int, int]] = []  # outer ranges that continue after the current range: last address, number
    begin, end, number = 0, -1, 0
    for first, last, following in rows:
        if first <= end:  # begins within the current range
            if number and begin < first:
                yield begin, first - 1, number
            if end > last:
                outer.append((end, number))
        elif outer:
            if number:
                yield begin, end, number
            begin = end + 1
            yield from _resumed(outer, begin, first)
            while outer and outer[-1][0] <= last:
                outer.pop()
        elif number:
            yield begin, end, number
        begin, end, number = first, last, following
    if number:
        yield begin, end, number
    yield from _resumed(outer, end + 1, 1 << 128)


def _resumed(outer: list[tuple[int, int]], begin: int, before: int) -> Iterator[tuple[int, int, int]]:
    """The parts of outer ranges from the address `begin` up to the address before `before`."""
    while outer and begin < before:
        end, number = outer[-1]
        if end >= before:
            if number:
                yield begin, before - 1, number
            return
        outer.pop()
        if end >= begin:
            if number:
                yield begin, end, number
            begin = end + 1


class RecordError(ValueError):
    """A record is wrong; `rest` is the text after the addresses."""

    def __init__(self, rest: str, message: str) -> None:
        super().__init__(message)
        self.rest = rest


class _RecordTexts:
    """The different texts after the addresses: numbers them from 1, and parses each once, at the end."""

    def __init__(self, columns: Columns, *, systems: bool) -> None:
        self._columns = columns
        self._systems = systems
        self._numbers = defaultdict[str, int](count(1).__next__)
        self.number = self._numbers.__getitem__  # written in C, so `map` over a block of lines runs in C

    def parse(self) -> tuple[list[int], array[int], list[bytes]]:
        """Returns each text's number in the table, and the AS number and the name or country (UTF-8) of each number.

        A text without a record has the number 0. If every text keeps its number, the first part is empty. Raises
        RecordError.
        """
        rests = [*self._numbers]
        try:
            asns, names = self._in_bulk(rests)
        except (ValueError, OverflowError, IndexError, csv.Error):
            asns, names = array("I"), []
            for rest in rests:
                try:
                    asn, name = self._record(rest)
                    _check_utf8(name)
                except ValueError as error:
                    raise RecordError(rest, str(error)) from None
                asns.append(asn)
                names.append(name)
        has_record = [*map(bool, asns if self._systems else names)]
        numbers: list[int] = []
        if not all(has_record):
            numbers = [0, *(place * has for place, has in zip(accumulate(has_record), has_record, strict=True))]
            asns, names = array("I", compress(asns, has_record)), [*compress(names, has_record)]
        texts = [name.encode() if len(name) * 4 <= MAX_NAME else _cut(name) for name in names]
        return numbers, array("I", [0]) + asns, [b"", *texts]

    def _in_bulk(self, rests: list[str]) -> tuple[array[int], list[str]]:
        """AS numbers and names of systems. Raises an error if the records need parsing one by one."""
        columns = self._columns
        if not self._systems:
            raise ValueError("countries")
        rows = [*csv.reader(rests)] if columns.separator == "," else [rest.split(columns.separator) for rest in rests]
        asns = [row[columns.asn or 0] for row in rows]
        if len(rows) != len(rests) or not all(map(str.isdigit, asns)) or not "".join(asns).isascii():
            raise ValueError("quotes that do not end, AS before the number, or a fault")
        place = columns.name
        names = [row[place].strip() if place is not None and place < len(row) else "" for row in rows]
        "".join(names).encode()  # raises an error for invalid UTF-8
        return array("I", map(int, asns)), names

    def _record(self, rest: str) -> tuple[int, str]:
        fields = _split(rest, self._columns.separator)
        if not self._systems:
            return 0, self._country(_field(fields, self._columns.country))
        text = _field(fields, self._columns.asn)
        asn = parse_asn(text)
        if asn is None:
            raise ValueError(f"{quoted(text)} is not an AS number (0 to {MAX_ASN})")
        return (asn, _field(fields, self._columns.name)) if asn else (0, "")

    def _country(self, text: str) -> str:
        if text in UNKNOWN_COUNTRIES:
            return ""
        country = parse_country(text)
        if country is None:
            _check_utf8(text)
            raise ValueError(f"{quoted(text)} is not a country (two letters, ISO 3166-1)")
        return country


def _cut(name: str) -> bytes:
    return name.encode()[:MAX_NAME].decode("utf-8", "ignore").encode()


def _field(fields: list[str], place: int | None) -> str:
    return fields[place] if place is not None and place < len(fields) else ""


def _split(line: str, separator: str) -> list[str]:
    """The fields of a line. Quotes mean something in CSV only."""
    if separator == "," and '"' in line:
        try:
            return [field.strip() for field in next(csv.reader([line.rstrip("\r\n")]), [])]
        except csv.Error as error:
            raise ValueError(f"cannot be read as CSV: {error}") from None
    return [field.strip() for field in line.split(separator)]


def _stripped(field: str) -> bytes:
    return field.strip().strip('"').encode("ascii", "replace")
