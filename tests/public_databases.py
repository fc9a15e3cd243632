"""Public databases of autonomous systems and countries: pinned versions, never committed.

They are the files of two npm packages (ip-location-db; their data are in the public domain, the licences are in the
packages): ranges with AS numbers as CSV, and countries as MMDB. `make clean` removes them with build/.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "build" / "databases"

VERSION = "2.3.2026061719"
# The SHA-256 of each package, and the names that its files have here.
PACKAGES = {
    "@ip-location-db/asn": (
        "b9425daf2f011c28f8586685d4f89166e77627e2c15fd93c6262c3e2dead6153",
        {"asn-ipv4.csv": "asn-ipv4.csv", "asn-ipv6.csv": "asn-ipv6.csv", "asn-ipv4-num.csv": "asn-ipv4-num.csv"},
    ),
    "@ip-location-db/geo-whois-asn-country-mmdb": (
        "91757a1b06cdcd1955f292e4c4cfc54e091204f998e159a3187f7a2ef3724be0",
        {
            "geo-whois-asn-country.mmdb": "country.mmdb",
            "geo-whois-asn-country-ipv4.mmdb": "country-ipv4.mmdb",
            "geo-whois-asn-country-ipv6.mmdb": "country-ipv6.mmdb",
        },
    ),
}

# Timeout in seconds for one package (19 MB).
_FETCH_SECONDS = 180


class UnreachableError(Exception):
    """The databases cannot be fetched; the message says why."""


def public_databases() -> Path:
    """Returns a folder with these files and `asn.csv`, which has the IPv4 and IPv6 ranges. Raises UnreachableError."""
    done = FOLDER / VERSION
    if done.exists():
        return done
    npm = shutil.which("npm")
    if npm is None:
        raise UnreachableError("npm is not installed, so these databases cannot be fetched")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        made = Path(name) / "made"
        made.mkdir()
        for package, (digest, files) in PACKAGES.items():
            _unpack(_fetch(npm, f"{package}@{VERSION}", Path(name)), digest, files, made)
        (made / "asn.csv").write_bytes((made / "asn-ipv4.csv").read_bytes() + (made / "asn-ipv6.csv").read_bytes())
        try:
            made.rename(done)
        except OSError:  # another test was faster
            assert done.exists()
    return done


def _fetch(npm: str, package: str, folder: Path) -> Path:
    """Fetches a package; returns its file."""
    command = [npm, "pack", "--silent", "--pack-destination", str(folder), package]
    try:
        packed = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_FETCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnreachableError(f"{package}: the registry gave no answer within {_FETCH_SECONDS} s") from None
    if packed.returncode:
        reason = (packed.stderr or packed.stdout).strip().partition("\n")[0] or f"status {packed.returncode}"
        raise UnreachableError(f"{package} cannot be fetched: {reason}")
    return folder / packed.stdout.strip().splitlines()[-1]


def _unpack(package: Path, digest: str, files: dict[str, str], folder: Path) -> None:
    """Puts the files of a package into a folder. A package that is not the pinned one is an error."""
    assert hashlib.sha256(package.read_bytes()).hexdigest() == digest, f"{package.name} is not the pinned package"
    with tarfile.open(package) as archive:
        for inside, name in files.items():
            content = archive.extractfile(f"package/{inside}")
            assert content is not None
            (folder / name).write_bytes(content.read())
