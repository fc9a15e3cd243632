"""Real databases, as users fetch them: their records, and the wrong files of the same packages."""

from __future__ import annotations

import datetime
import shutil
from typing import TYPE_CHECKING

import pytest

from policyd.config.load import load
from policyd.config.problems import ConfigErrors
from policyd.core.protocol import Request
from policyd.tools.suggest.candidates import suggest
from tests.field.incidents import DATA, sakura_attempts
from tests.public_databases import UnreachableError, public_databases

if TYPE_CHECKING:
    from pathlib import Path

    from policyd.core.index import Ruleset
    from policyd.core.owners import Owner

pytestmark = pytest.mark.slow  # fetches 26 MB

RULES = "databases: {asn: %s, country: %s}\nrules:\n  - {name: own, match: {cidr: 10.0.0.0/8}, action: DUNNO}\n"
GOOD = "192.0.2.0,192.0.2.255,64496,Example Internet Inc.\n2001:db8::,2001:db8::ffff,64496,Example Internet Inc.\n"
SAKURA = {7684, 9370, 9371}


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return public_databases()
    except UnreachableError as reason:
        pytest.skip(str(reason))


def rules(folder: Path, tmp_path: Path, asn: str = "asn.csv", country: str = "country.mmdb") -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES % (folder / asn, folder / country))
    return path


@pytest.fixture(scope="module")
def ruleset(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ruleset:
    return load(rules_path=rules(folder, tmp_path_factory.mktemp("rules"))).ruleset


def owner(ruleset: Ruleset, address: str) -> Owner:
    assert ruleset.owners is not None
    return ruleset.owners.find(Request.of({"client_address": address.encode()}))


@pytest.mark.parametrize(
    ("address", "asn", "country"),
    [
        ("1.1.1.1", 13335, None),  # three files have three different countries for it
        ("8.8.8.8", 15169, "US"),
        ("2001:4860:4860::8888", 15169, "US"),
        ("193.0.6.139", 3333, "NL"),
        ("2001:67c:2e8:22::c100:68b", 3333, "NL"),
        ("202.12.27.33", 7500, "JP"),
        ("2001:dc3::35", 7500, None),
        ("::ffff:49.212.201.177", 9371, "JP"),
        ("10.1.2.3", 0, ""),
        ("fd00::1", 0, ""),
    ],
)
def test_well_known_addresses_have_their_owners(ruleset: Ruleset, address: str, asn: int, country: str | None) -> None:
    found = owner(ruleset, address)
    assert (found.asn, found.country) == (asn, found.country if country is None else country)


def test_every_client_of_the_first_incident_is_in_one_of_three_systems(ruleset: Ruleset) -> None:
    found = [owner(ruleset, attempt.client_address) for attempt in sakura_attempts()]
    assert {owner.asn for owner in found} == SAKURA
    assert {owner.country for owner in found} == {"JP"}
    assert all("SAKURA" in owner.asn_name for owner in found)


def test_the_suggestions_name_the_systems_of_the_incidents(ruleset: Ruleset) -> None:
    logs = [str(DATA / "maillog.sendmail"), str(DATA / "maillog.postfix")]
    suffix, network, senders = suggest(logs, ruleset=ruleset, today=datetime.date(2026, 11, 21)).candidates
    assert (suffix.value, {system.asn for system in suffix.systems}) == ("vs.sakura.ne.jp", SAKURA)
    assert (network.value, len(network.systems)) == ("180.222.51.0/24", 1)
    assert senders.condition == "sender_regex"


@pytest.mark.parametrize(
    ("asn", "country", "message"),
    [
        ("good.csv", "country-ipv6.mmdb", "has IPv6 networks only, so no IPv4 client would have a record"),
        ("asn-ipv6.csv", "country.mmdb", "has no IPv4 range with a record"),
        ("good.csv", "good.csv", "has no countries; the columns of its lines are: addresses, AS number, name"),
        ("country.mmdb", "country.mmdb", "no record has a value for asn"),
        ("asn-ipv4-num.csv", "country.mmdb", r"has addresses as numbers; use the file .* \(without -num\)"),
        ("cut.mmdb", "country.mmdb", "if it is an MMDB file, it has been cut short"),
    ],
)
def test_the_wrong_file_of_a_package_is_an_error_with_a_hint(
    folder: Path, tmp_path: Path, asn: str, country: str, message: str
) -> None:
    for name in {asn, country} - {"good.csv", "cut.mmdb"}:
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "good.csv").write_text(GOOD)
    (tmp_path / "cut.mmdb").write_bytes((folder / "country.mmdb").read_bytes()[:-200_000])
    with pytest.raises(ConfigErrors, match=message):
        load(rules_path=rules(tmp_path, tmp_path, asn, country))


def test_a_file_with_ipv4_only_causes_a_warning(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "country-ipv4.mmdb", tmp_path)
    (tmp_path / "good.csv").write_text(GOOD)
    path = rules(tmp_path, tmp_path, "good.csv", "country-ipv4.mmdb")
    warnings = load(rules_path=path, warnings_on=datetime.date(2026, 11, 21)).warning_lines
    message = "warning: the country database has IPv4 networks only, so no IPv6 client has a record"
    assert f"{tmp_path}/country-ipv4.mmdb: {message}" in warnings
