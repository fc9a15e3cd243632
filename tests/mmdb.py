"""Small MMDB files in the shapes of the vendors, made with mmdb-writer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdb_writer import MMDBWriter
from netaddr import IPSet

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Networks and numbers that are reserved for documentation (RFC 5398, RFC 5737, RFC 3849).
SYSTEMS = {
    "192.0.2.0/24": (64496, "Example Internet Inc.", "JP"),
    "198.51.100.0/24": (64497, "Other Hosting", "DE"),
    "203.0.113.0/25": (64511, "Third Net", "US"),
    "2001:db8::/32": (64496, "Example Internet Inc.", "JP"),
    "2001:db9::/32": (64497, "Other Hosting", "DE"),
}


def maxmind_asn(asn: int, name: str, _country: str) -> dict[str, Any]:
    """A record of MaxMind GeoLite2 ASN, DB-IP ASN Lite or ip-location-db asn."""
    return {"autonomous_system_number": asn, "autonomous_system_organization": name}


def maxmind_country(_asn: int, _name: str, country: str) -> dict[str, Any]:
    """A record of MaxMind GeoLite2 Country or DB-IP; `registered_country` differs, and policyd ignores it."""
    return {
        "continent": {"code": "AS"},
        "country": {"geoname_id": 1861060, "iso_code": country, "names": {"en": country}},
        "registered_country": {"iso_code": "AU"},
    }


def flat_country(_asn: int, _name: str, country: str) -> dict[str, Any]:
    """A record of ip-location-db's countries."""
    return {"country_code": country}


def ipinfo_lite(asn: int, name: str, country: str) -> dict[str, Any]:
    """A record of IPinfo Lite, which has AS numbers and countries in one file."""
    return {
        "asn": f"AS{asn}",
        "as_name": name,
        "as_domain": "example.net",
        "continent": "Asia",
        "country": "Japan",
        "country_code": country,
    }


SHAPES = {shape.__name__: shape for shape in (maxmind_asn, maxmind_country, flat_country, ipinfo_lite)}


def write_mmdb(path: Path, records: Mapping[str, Any], **options: Any) -> Path:
    """Writes a file with these records, by network. `options` are those of MMDBWriter, and `built` (the build date)."""
    built = options.pop("built", None)
    version = options.setdefault("ip_version", 6)
    options.setdefault("ipv4_compatible", version == 6)
    writer = MMDBWriter(**{"database_type": "test", "int_type": "u32", **options})
    for network, record in records.items():
        writer.insert_network(IPSet([network]), record)
    writer.to_db_file(str(path))
    if built is not None:
        set_build_date(path, built)
    return path


def write_systems(path: Path, shape: str, *, built: int | None = None, **options: Any) -> Path:
    """Writes SYSTEMS in the shape of a vendor."""
    records = {network: SHAPES[shape](*system) for network, system in SYSTEMS.items()}
    return write_mmdb(path, records, built=built, **options)


def set_build_date(path: Path, built: int) -> None:
    """Sets the build date, in seconds since 1970: a 64-bit number after its key in the metadata."""
    content = path.read_bytes()
    place = content.rindex(b"build_epoch") + len(b"build_epoch")
    length = content[place] & 0x1F  # a control byte of an extended type: the length, then the type
    assert content[place + 1] == 2
    path.write_bytes(content[: place + 2] + built.to_bytes(8)[-length:] + content[place + 2 + length :])
