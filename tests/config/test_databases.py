"""Databases of networks: formats detected by content, load errors with suggestions, and sealed copies."""

from __future__ import annotations

import gzip
import ipaddress
import os
import pickle
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.config.databases import DatabaseError, DatabaseFile, DatabaseKind
from policyd.config.load import load
from policyd.config.mmdb import MmdbFile
from policyd.config.problems import ConfigErrors
from policyd.core.address import format_address
from policyd.core.owners import NO_OWNER, Owner, Owners
from policyd.core.protocol import Request
from tests.mmdb import SHAPES, flat_country, maxmind_asn, write_mmdb, write_systems

if TYPE_CHECKING:
    from policyd.config.databases import Database

ASN, COUNTRY = DatabaseKind
DAY = 86400

ASN_CSV = b"""\
192.0.2.0,192.0.2.255,64496,"Example Internet, Inc."
198.51.100.0,198.51.100.77,64497,Other Hosting
2001:db8::,2001:db8:0:ffff:ffff:ffff:ffff:ffff,64496,"Example Internet, Inc."
"""
COUNTRY_CSV = b"192.0.2.0,192.0.2.255,JP\n198.51.100.0,198.51.100.77,de\n2001:db8::,2001:db8::ffff,JP\n"
COMBINED_TSV = b"""\
192.0.2.0\t192.0.2.255\t64496\tJP\tEXAMPLE-AS Example "Internet"
198.51.100.0\t198.51.100.77\t64497\tDE\tOTHER
203.0.113.0\t203.0.113.255\t0\tNone\tNot routed
2001:db8::\t2001:db8::ffff\t64496\tJP\tEXAMPLE-AS Example "Internet"
"""


def read(path: Path, kind: DatabaseKind) -> Database:
    return DatabaseFile(str(path)).read(frozenset({kind}), {kind: 60 * DAY})[kind]


def owners(path: Path, *kinds: DatabaseKind) -> Owners:
    found = DatabaseFile(str(path)).read(frozenset(kinds), dict.fromkeys(kinds, 60.0 * DAY))
    return Owners(*(found[kind].records if kind in found else None for kind in (ASN, COUNTRY)))


def owner_at(found: Owners, address: bytes) -> Owner:
    return found.find(Request.of({"client_address": address}))


def write(folder: Path, content: bytes, name: str = "networks") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


EXAMPLE, OTHER = (64496, "Example Internet Inc.", "JP"), (64497, "Other Hosting", "DE")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
def test_the_kind_of_an_mmdb_is_detected_from_its_records(tmp_path: Path, shape: str, compress: bool) -> None:
    path = write_systems(tmp_path / "some.mmdb", shape)
    if compress:
        path.write_bytes(gzip.compress(path.read_bytes()))
    has = {"maxmind_asn": (ASN,), "ipinfo_lite": (ASN, COUNTRY)}.get(shape, (COUNTRY,))
    found = owners(path, *has)
    for address, (asn, name, country) in (
        (b"192.0.2.7", EXAMPLE),
        (b"::ffff:192.0.2.7", EXAMPLE),
        (b"198.51.100.255", OTHER),
        (b"2001:db8:ffff::1", EXAMPLE),
    ):
        want = Owner(asn, name) if ASN in has else NO_OWNER
        assert owner_at(found, address) == (want._replace(country=country) if COUNTRY in has else want)
    for address in (b"192.0.3.1", b"203.0.113.128", b"2001:dba::1", b"2002:c000:0207::1", b"64:ff9b::c000:207",
                    b"unknown", b"", b"192.0.2", b"192.0.2.7 x", b"fe80::1%eth0", b"\xff"):  # fmt: skip
        assert owner_at(found, address) == NO_OWNER
    for kind in {ASN, COUNTRY} - set(has):
        with pytest.raises(DatabaseError, match=rf"no record has a value for {kind} .*the keys of its records are: "):
            read(path, kind)


@pytest.mark.parametrize(
    ("content", "kinds", "want"),
    [
        (ASN_CSV, {ASN}, Owner(64496, "Example Internet, Inc.")),
        (ASN_CSV.replace(b"\n", b"\r\n"), {ASN}, Owner(64496, "Example Internet, Inc.")),
        (ASN_CSV.replace(b",64", b",AS64"), {ASN}, Owner(64496, "Example Internet, Inc.")),
        (b"\xef\xbb\xbf# a comment\n\n" + ASN_CSV, {ASN}, Owner(64496, "Example Internet, Inc.")),
        (b"192.0.2.0,192.0.2.255,64496\n", {ASN}, Owner(64496)),
        (COUNTRY_CSV, {COUNTRY}, Owner(country="JP")),
        (b'"192.0.2.0","192.0.2.255","JP"\n', {COUNTRY}, Owner(country="JP")),
        (COMBINED_TSV, {ASN}, Owner(64496, 'EXAMPLE-AS Example "Internet"')),
        (COMBINED_TSV, {COUNTRY}, Owner(country="JP")),
        (COMBINED_TSV, {ASN, COUNTRY}, Owner(64496, 'EXAMPLE-AS Example "Internet"', "JP")),
        (gzip.compress(COMBINED_TSV, mtime=0), {ASN, COUNTRY}, Owner(64496, 'EXAMPLE-AS Example "Internet"', "JP")),
    ],
)
def test_the_format_of_ranges_is_detected_from_their_columns(
    tmp_path: Path, content: bytes, kinds: set[DatabaseKind], want: Owner
) -> None:
    found = owners(write(tmp_path, content), *kinds)
    for address in (b"192.0.2.0", b"192.0.2.255", b"::ffff:192.0.2.1"):
        assert owner_at(found, address) == want
    for address in (b"192.0.1.255", b"192.0.3.0", b"203.0.113.9", b"0.0.0.0", b"255.255.255.255", b"::", b"x"):
        assert owner_at(found, address) == NO_OWNER


def test_the_size_of_a_range_need_not_be_a_power_of_two(tmp_path: Path) -> None:
    found = owners(write(tmp_path, ASN_CSV), ASN)
    assert owner_at(found, b"198.51.100.77") == Owner(64497, "Other Hosting")
    assert owner_at(found, b"198.51.100.78") == NO_OWNER


@pytest.mark.parametrize(
    ("content", "kind", "line", "message"),
    [
        (b"", ASN, 0, "is empty"),
        (b"<html>error</html>\n", ASN, 0, "is neither an MMDB file nor lines of ranges"),
        (b"network,asn\n192.0.2.0/24,64496\n", ASN, 0, "is neither"),
        (b"192.0.2.0/24,64496,x\n", ASN, 0, "has networks; use a file with the first and last address"),
        (b"16777216,16777471,13335,x\n", ASN, 0, "has addresses as numbers; use the file with IP addresses"),
        (b"\x00\x01" * 3000, ASN, 0, "if it is an MMDB file, it has been cut short"),
        (gzip.compress(ASN_CSV, mtime=0)[:-20], ASN, 0, "is gzip that cannot be unpacked"),
        (gzip.compress(ASN_CSV, mtime=0)[:20] + b"xxxxxxxxxxxxxxx", ASN, 0, "is gzip that cannot be unpacked"),
        (COUNTRY_CSV, ASN, 0, "has no AS numbers; the columns of its lines are: addresses, country"),
        (ASN_CSV, COUNTRY, 0, "has no countries; the columns of its lines are: addresses, AS number, name"),
        (b"2001:db8::,2001:db8::1,JP\n", COUNTRY, 0, "has no IPv4 range with a record"),
        (COUNTRY_CSV + b"192.0.2.x,192.0.2.9,JP\n", COUNTRY, 4, "'192.0.2.x' is not an IP address"),
        (COUNTRY_CSV + b"192.0.2.0/24,192.0.2.9,JP\n", COUNTRY, 4, "this file has networks"),
        (COUNTRY_CSV + b"3221225984,3221226239,JP\n", COUNTRY, 4, "(without -num)"),
        (COUNTRY_CSV + b"192.0.2.0\n", COUNTRY, 4, "expected first address, last address"),
        (COUNTRY_CSV + b"192.0.2.9,192.0.2.1,JP\n", COUNTRY, 4, "the first address is after the last"),
        (COUNTRY_CSV + b"192.0.2.9,2001:db8::,JP\n", COUNTRY, 4, "of another family"),
        (COUNTRY_CSV + b"192.0.2.9,192.0.2.9,Japan\n", COUNTRY, 4, "'Japan' is not a country"),
        (COUNTRY_CSV + b"192.0.2.9,192.0.2.9,\xff\xff\n", COUNTRY, 4, "is not UTF-8 (byte 0xff)"),
        (ASN_CSV + b"192.0.2.9,192.0.2.9,4294967296,x\n", ASN, 4, "'4294967296' is not an AS number"),
        (ASN_CSV + b"192.0.2.9,192.0.2.9,-1,x\n", ASN, 4, "'-1' is not an AS number"),
        (ASN_CSV + b"192.0.2.9,192.0.2.9,\xd9\xa3,x\n", ASN, 4, "is not an AS number"),
    ],
)
def test_each_mistake_in_a_file_has_its_line_and_message(
    tmp_path: Path, content: bytes, kind: DatabaseKind, line: int, message: str
) -> None:
    with pytest.raises(DatabaseError) as error:
        read(write(tmp_path, content), kind)
    assert message in str(error.value)
    assert error.value.line == line


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("10.0.0.x,10.0.0.1,64496,x", "'10.0.0.x' is not an IP address"),
        ("10.0.0.0,10.0.0.1,x64497,x", "'x64497' is not an AS number"),
        ("10.0.0.0,10.0.0.1,64496 ,\udcff", "is not UTF-8 (byte 0xff)"),
    ],
)
def test_a_bad_line_far_down_is_found(tmp_path: Path, bad: str, message: str) -> None:
    lines = [f"10.{n >> 8}.{n & 255}.0,10.{n >> 8}.{n & 255}.255,64496,x{n}" for n in range(9000)]
    lines[5000] = "10.0.0.0,10.0.0.1,1,x64497,x"  # a valid line that ends like one of the invalid lines
    lines[7654] = bad
    with pytest.raises(DatabaseError) as error:
        read(write(tmp_path, "\n".join(lines).encode("utf-8", "surrogateescape")), ASN)
    assert (error.value.line, str(error.value)[: len(message)]) == (7655, message)


@pytest.mark.parametrize("second", ["192.0.2.x,192.0.2.9,64497,x", "192.0.2.9,192.0.2.9,-1,x"])
def test_the_first_of_several_wrong_lines_is_reported(tmp_path: Path, second: str) -> None:
    with pytest.raises(DatabaseError) as error:
        read(write(tmp_path, f"192.0.2.0,192.0.2.1,64496,x\n192.0.2.2,192.0.2.3,x64497,x\n{second}\n".encode()), ASN)
    assert error.value.line == 2


def test_an_unclosed_quote_does_not_affect_other_lines(tmp_path: Path) -> None:
    content = b'1.0.0.0,1.0.0.255,64496,"A, B"\n1.0.1.0,1.0.1.255,64497,"C\n1.0.2.0,1.0.2.255,AS64498, D \n'
    database = read(write(tmp_path, content), ASN)
    found = [owner for _, _, _, owner in database.ranges()]
    assert [(owner.asn, owner.asn_name) for owner in found] == [(64496, "A, B"), (64497, "C"), (64498, "D")]


def test_the_database_type_in_the_metadata_is_ignored(tmp_path: Path) -> None:
    records = {"192.0.2.0/24": maxmind_asn(64496, "x", "")}
    path = write_mmdb(tmp_path / "a.mmdb", records, database_type="country ipvAll")
    assert owner_at(owners(path, ASN), b"192.0.2.1") == Owner(64496, "x")


def test_the_country_of_registration_is_not_used(tmp_path: Path) -> None:
    path = write_mmdb(tmp_path / "a.mmdb", {
        "192.0.2.0/24": {"country": {"iso_code": "JP"}},
        "198.51.100.0/24": {"registered_country": {"iso_code": "JP"}},
    })  # fmt: skip
    assert owner_at(owners(path, COUNTRY), b"192.0.2.1") == Owner(country="JP")
    assert owner_at(owners(path, COUNTRY), b"198.51.100.1") == NO_OWNER


def test_values_of_other_types_are_not_a_record(tmp_path: Path) -> None:
    path = write_mmdb(tmp_path / "a.mmdb", {
        "192.0.2.0/26": maxmind_asn(64496, "x", ""),
        "192.0.2.64/26": {"autonomous_system_number": "many", "country_code": "JPN"},
        "192.0.2.128/26": {"autonomous_system_number": 64497, "autonomous_system_organization": 7},
        "192.0.2.192/26": "text",
        "198.51.100.0/25": {"country_code": ["JP"]},
        "198.51.100.128/25": {"country_code": "jp"},
    })  # fmt: skip
    found = owners(path, ASN, COUNTRY)
    assert [owner_at(found, b"192.0.2.%d" % last) for last in (1, 65, 129, 193)] == [
        Owner(64496, "x"),
        NO_OWNER,
        Owner(64497),
        NO_OWNER,
    ]
    assert [owner_at(found, b"198.51.100.%d" % last) for last in (1, 129)] == [NO_OWNER, Owner(country="JP")]


def test_a_file_with_ipv6_only_is_refused_and_a_file_with_ipv4_only_is_not(tmp_path: Path) -> None:
    six = write_mmdb(tmp_path / "6.mmdb", {"2001:db8::/32": flat_country(0, "", "JP")}, ipv4_compatible=False)
    with pytest.raises(DatabaseError, match="has IPv6 networks only"):
        read(six, COUNTRY)
    four = write_mmdb(tmp_path / "4.mmdb", {"192.0.2.0/24": flat_country(0, "", "JP")}, ip_version=4)
    assert not read(four, COUNTRY).info.has_ipv6
    assert owner_at(owners(four, COUNTRY), b"2001:db8::1") == NO_OWNER
    whole = write_mmdb(tmp_path / "w.mmdb", {"0.0.0.0/0": flat_country(0, "", "JP")})
    assert owner_at(owners(whole, COUNTRY), b"203.0.113.1") == Owner(country="JP")
    both = write_systems(tmp_path / "b.mmdb", "flat_country")
    assert read(both, COUNTRY).info.has_ipv6


@pytest.mark.parametrize("keep", [0.999, 0.5, 0.01])
def test_an_mmdb_that_was_cut_short_is_refused(tmp_path: Path, keep: float) -> None:
    content = write_systems(tmp_path / "a.mmdb", "maxmind_asn").read_bytes()
    with pytest.raises(DatabaseError):
        read(write(tmp_path, content[: int(len(content) * keep)]), ASN)


def test_the_lookup_of_a_damaged_record_raises_no_error(tmp_path: Path) -> None:
    path = write_systems(tmp_path / "a.mmdb", "maxmind_asn")
    content = path.read_bytes()
    # The name in the second record gets bytes that are not UTF-8.
    path.write_bytes(content.replace(b"Other Hosting", b"Other\xff\xfe\xffsting"))
    found = owners(path, ASN)
    assert owner_at(found, b"198.51.100.1").asn in {0, 64497}
    assert owner_at(found, b"192.0.2.1") == Owner(64496, "Example Internet Inc.")


def test_a_file_that_ends_in_the_middle_of_a_record_is_read_up_to_there(tmp_path: Path) -> None:
    path = write_systems(tmp_path / "a.mmdb", "maxmind_asn")
    content = path.read_bytes()
    assert content.count(b"\x4dOther Hosting") == 1
    path.write_bytes(content.replace(b"\x4dOther Hosting", b"\x5fOther Hosting"))  # longer than the rest of the file
    database = read(path, ASN)
    found = Owners(database.records, None)
    for _ in range(1000):
        assert owner_at(found, b"198.51.100.1") == Owner()
        assert owner_at(found, b"192.0.2.1") == Owner(64496, "Example Internet Inc.")
    assert isinstance(database.records, MmdbFile)
    assert database.records.is_damaged
    with pytest.raises(DatabaseError, match="is damaged, or has been cut short"):
        list(database.ranges())


class Aliased:
    """A reader of a file that repeats its IPv4 networks under 2002::/16, as MaxMind's files do."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.metadata = reader.metadata

    def get_with_prefix_len(self, text: str) -> tuple[Any, int]:
        """Looks up the address behind the alias."""
        packed = ipaddress.ip_address(text).packed
        if len(packed) == 16 and packed[:2] == b"\x20\x02":
            record, length = self._reader.get_with_prefix_len(str(ipaddress.IPv4Address(packed[2:6])))
            return record, length + 16
        found: tuple[Any, int] = self._reader.get_with_prefix_len(text)
        return found


def test_networks_that_a_file_has_twice_are_counted_once(tmp_path: Path) -> None:
    file = read(write_systems(tmp_path / "a.mmdb", "maxmind_asn"), ASN).records
    assert isinstance(file, MmdbFile)
    before = [*file.networks()]
    assert [(version, length) for version, _, length, _ in before] == [(4, 24), (4, 24), (4, 25), (6, 32), (6, 32)]
    aliased: Any = Aliased(file._reader)
    assert aliased.get_with_prefix_len("2002:c000:201::")[1] == 40
    file._reader = aliased
    assert [*file.networks()] == before


def test_the_file_itself_is_not_mapped_and_may_be_overwritten(tmp_path: Path) -> None:
    path = write_systems(tmp_path / "watched.mmdb", "maxmind_asn")
    found = owners(path, ASN)
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert "watched.mmdb" not in Path("/proc/self/maps").read_text()
    assert owner_at(found, b"192.0.2.1") == Owner(64496, "Example Internet Inc.")
    path.unlink()
    assert owner_at(found, b"198.51.100.1") == Owner(64497, "Other Hosting")


def test_a_memory_file_that_cannot_be_written_leaves_no_descriptor_open() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = len([*Path("/proc/self/fd").iterdir()])
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            MmdbFile(b"more than ten bytes", systems=True, countries=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len([*Path("/proc/self/fd").iterdir()]) <= before


def test_a_file_goes_to_another_process_by_its_descriptor(tmp_path: Path) -> None:
    found = owners(write_systems(tmp_path / "a.mmdb", "ipinfo_lite"), ASN, COUNTRY)
    passed = pickle.loads(pickle.dumps(found))
    assert isinstance(found.asn, MmdbFile)
    assert passed.asn is passed.country
    passed.adopt([found.asn.descriptor])
    found.asn.close()
    assert owner_at(passed, b"192.0.2.1") == Owner(*EXAMPLE)
    table = owners(write(tmp_path, ASN_CSV), ASN)
    assert owner_at(pickle.loads(pickle.dumps(table)), b"198.51.100.1") == Owner(64497, "Other Hosting")


# --- Ranges, compared with a slow model -------------------------------------------------------------------------------


def model(rows: list[tuple[int, int, int]], address: int) -> int:
    """The AS number of an address.

    Of the ranges around it, the last to begin counts; of several, the shortest; of several, the last in the file.
    """
    containing = [
        (first, -last, place, asn) for place, (first, last, asn) in enumerate(rows) if first <= address <= last
    ]
    return max(containing)[3] if containing else 0


small = st.integers(0, 30)


@given(
    st.sampled_from([4, 6]),
    st.lists(st.tuples(small, st.integers(0, 12), st.integers(0, 4)), min_size=1, max_size=9),
    st.sampled_from([0, 2**16 - 16]),
)
def test_overlapping_ranges_are_resolved_as_in_the_model(
    tmp_path_factory: pytest.TempPathFactory, version: int, rows: list[tuple[int, int, int]], base: int
) -> None:
    top = 2**32 - 1 if version == 4 else 2**128 - 1
    ranges = [(base + first, min(base + first + length, top), asn) for first, length, asn in rows]
    lines = [
        f"{format_address((version, first))},{format_address((version, last))},{asn},x" for first, last, asn in ranges
    ]
    lines.append("255.255.255.255,255.255.255.255,9,x")  # a file without an IPv4 record is refused
    lines.append("ffff::,ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff,9,x")
    path = tmp_path_factory.getbasetemp() / "ranges.csv"
    path.write_text("\n".join(lines))
    found = owners(path, ASN)
    for offset in range(45):
        address = base + offset
        text = format_address((version, address)).encode()
        if version == 6 and address >> 32 == 0xFFFF:
            continue
        assert owner_at(found, text).asn == model(ranges, address), text
    assert owner_at(found, b"255.255.255.255").asn == 9
    assert owner_at(found, b"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff").asn == 9


# --- In a ruleset -----------------------------------------------------------------------------------------------------


def errors(folder: Path, rules: str) -> tuple[str, ...]:
    path = folder / "rules.yaml"
    path.write_text(rules)
    with pytest.raises(ConfigErrors) as error:
        load(None, path)
    return tuple(line.replace(f"{folder}/", "") for line in error.value.lines)


RULES = "databases: {asn: asn.mmdb}\nrules: []\n"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("[asn.mmdb]", "rules.yaml:1:12: databases: expected asn and country, each with its file, not a list"),
        ("{asm: asn.mmdb}", "rules.yaml:1:13: databases: unknown key 'asm'; did you mean 'asn'?"),
        ("{city: asn.mmdb}", "rules.yaml:1:13: databases: unknown key 'city'; there are asn, country"),
        ("{asn: [a]}", "rules.yaml:1:18: databases: asn: expected the name of a file, not a list"),
        ("{asn: ''}", "rules.yaml:1:18: databases: asn: expected the name of a file, not ''"),
        ("{asn: {max_age: 60d}}", "rules.yaml:1:18: databases: asn: 'file' is missing"),
        ("{asn: {file: asn.mmdb, maxage: 60d}}",
         "rules.yaml:1:35: databases: asn: unknown key 'maxage'; did you mean 'max_age'?"),
        ("{asn: {file: asn.mmdb, max_age: old}}",
         "rules.yaml:1:44: databases: asn: max_age: 'old' is "),
        ("{asn: none.mmdb}", "rules.yaml:1:18: databases: none.mmdb cannot be read: No such file or directory"),
        ("{country: asn.mmdb}",
         "asn.mmdb: no record has a value for country (country.iso_code or country_code); the keys of its "),
        ("{country: bad.csv}", "bad.csv:2:1: 'Japan' is not a country (two letters, ISO 3166-1)"),
    ],
)  # fmt: skip
def test_each_mistake_in_the_section_has_its_message(tmp_path: Path, section: str, message: str) -> None:
    write_systems(tmp_path / "asn.mmdb", "maxmind_asn")
    write(tmp_path, b"192.0.2.0,192.0.2.1,JP\n192.0.2.2,192.0.2.2,Japan\n", "bad.csv")
    assert errors(tmp_path, f"databases: {section}\nrules: []\n")[0].startswith(message)


def test_the_hash_of_the_ruleset_does_not_cover_databases(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("databases: {asn: asn.mmdb}\nrules: []\n")
    write_systems(tmp_path / "asn.mmdb", "maxmind_asn", built=1_700_000_000)
    before = load(None, tmp_path / "rules.yaml")
    write_systems(tmp_path / "asn.mmdb", "maxmind_asn", built=1_700_100_000)
    after = load(None, tmp_path / "rules.yaml")
    assert before.ruleset.hash == after.ruleset.hash
    assert before.databases[0].hash != after.databases[0].hash
    assert (before.databases[0].built, str(before.databases[0].date)) == (1_700_000_000, "2023-11-14")


@pytest.mark.parametrize(("age", "max_age", "warns"), [(61, "", True), (59, "", False), (8, ", max_age: 7d", True)])
def test_an_old_database_causes_a_warning(tmp_path: Path, age: int, max_age: str, warns: bool) -> None:
    write_systems(tmp_path / "asn.mmdb", "maxmind_asn", built=int(time.time()) - age * DAY)
    (tmp_path / "rules.yaml").write_text(f"databases: {{asn: {{file: asn.mmdb{max_age}}}}}\nrules: []\n")
    lines = load(None, tmp_path / "rules.yaml").warning_lines
    assert any("asn.mmdb: warning: the asn database is dated" in line for line in lines) is warns
    if warns:
        assert f"{age} days ago" in lines[0]


def test_the_date_that_npm_gives_every_file_is_not_shown_as_an_age(tmp_path: Path) -> None:
    path = write(tmp_path, ASN_CSV)
    os.utime(path, (499162500, 499162500))
    notice = read(path, ASN).info.age_notice(time.time())
    assert notice == "the asn database has the date that npm gives every file, 1985-10-26; touch it after a download"


def test_a_database_without_ipv6_causes_a_warning(tmp_path: Path) -> None:
    records = {"192.0.2.0/24": flat_country(0, "", "JP")}
    write_mmdb(tmp_path / "c.mmdb", records, ip_version=4, built=int(time.time()))
    (tmp_path / "rules.yaml").write_text("databases: {country: c.mmdb}\nrules: []\n")
    assert [line.partition("c.mmdb: ")[2] for line in load(None, tmp_path / "rules.yaml").warning_lines] == [
        "warning: the country database has IPv4 networks only, so no IPv6 client has a record"
    ]
