"""`policyd doctor` checks the databases of systems and countries: whether they can be used, and their age."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from policyd.tools.doctor.databases import check_databases
from tests.mmdb import write_systems

if TYPE_CHECKING:
    from pathlib import Path

BUILT = 1_700_000_000  # 2023-11-14
DAY = 86400


def rules(folder: Path, databases: str) -> str:
    path = folder / "rules.yaml"
    path.write_text(f"databases: {databases}\nrules: []\n")
    return str(path)


def test_a_database_is_right_until_its_maximum_age(tmp_path: Path) -> None:
    write_systems(tmp_path / "asn.mmdb", "maxmind_asn", built=BUILT)
    path = rules(tmp_path, "{asn: {file: asn.mmdb, max_age: 10d}}")
    findings, right, notes = check_databases(path, BUILT + 9 * DAY)
    assert (findings, notes) == ((), ())
    assert right == (f"{tmp_path}/asn.mmdb: the asn database (MMDB) is dated 2023-11-14",)
    (finding,), right, _ = check_databases(path, BUILT + 11 * DAY)
    assert right == ()
    assert finding.where == f"{tmp_path}/asn.mmdb"
    assert finding.what.startswith("the asn database is dated 2023-11-14, 11 days ago")
    assert "policyd reload" in finding.write


def test_each_unusable_database_is_a_finding_despite_other_errors_in_the_file(tmp_path: Path) -> None:
    write_systems(tmp_path / "asn.mmdb", "maxmind_asn")
    (tmp_path / "broken.csv").write_text("192.0.2.0,192.0.2.255,JP\nnonsense\n")
    path = rules(tmp_path, "{asn: missing.mmdb, country: asn.mmdb}")
    findings, right, _ = check_databases(path, BUILT)
    assert right == ()
    assert sorted((finding.where, finding.what.split(";")[0]) for finding in findings) == [
        (f"{tmp_path}/asn.mmdb", "no record has a value for country (country.iso_code or country_code)"),
        (f"{tmp_path}/rules.yaml:1", f"databases: {tmp_path}/missing.mmdb cannot be read: No such file or directory"),
    ]
    (finding,), _, _ = check_databases(rules(tmp_path, "{country: broken.csv}"), BUILT)
    assert finding.where == f"{tmp_path}/broken.csv:2"


def test_a_database_without_ipv6_is_noted(tmp_path: Path) -> None:
    file = tmp_path / "asn.csv"
    file.write_text("192.0.2.0,192.0.2.255,64496,Example Internet Inc.\n")
    os.utime(file, (BUILT, BUILT))
    findings, right, notes = check_databases(rules(tmp_path, "{asn: asn.csv}"), BUILT)
    assert (findings, len(right)) == ((), 1)
    assert notes == (f"{file}: the asn database has IPv4 networks only, so no IPv6 client has a record",)


def test_without_databases_or_a_rules_file_there_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("rules: []\n")
    assert check_databases(str(tmp_path / "rules.yaml"), BUILT) == ((), (), ())
    assert check_databases(str(tmp_path / "missing.yaml"), BUILT) == ((), (), ())


def test_a_database_that_was_not_fetched_yet_is_noted(tmp_path: Path) -> None:
    path = rules(tmp_path, "{asn: {file: asn.mmdb, from: {url: 'https://data.example/asn.mmdb'}}}")
    note = f"{tmp_path}/asn.mmdb, not fetched yet, so the asn database is empty; see policyd fetch --list asn"
    assert check_databases(path, BUILT) == ((), (), (note,))
