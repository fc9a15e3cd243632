"""Databases of networks in the daemon: sealed copies, reloads, the decision log, and files that change under it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.daemon.client import Client, request
from tests.mmdb import maxmind_asn, write_mmdb, write_systems

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.daemon.conftest import StartPolicyd
    from tests.field.policyd import Policyd

RULES = """
databases: {asn: asn.mmdb, country: countries.csv}
rules:
  - {name: hoster, match: {asn: [64497, 64500]}, except: {cidr: 198.51.100.5}, action: 'REJECT 5.7.1 {asn} {country}'}
  - {name: nation, match: {country: JP, helo_name: jp.example}, action: 'DEFER 4.7.1 {asn} {country}'}
"""
COUNTRIES = "192.0.2.0,192.0.2.255,JP\n198.51.100.0,198.51.100.255,DE\n2001:db8::,2001:db8::ffff,JP\n"

HOSTER = request(client_address="198.51.100.1")
EXCEPTED = request(client_address="198.51.100.5")
NATION = request(client_address="192.0.2.1", helo_name="jp.example")
MAPPED = request(client_address="::ffff:198.51.100.1")
STRANGER = request(client_address="203.0.113.200")
ANSWERS = {
    HOSTER: "REJECT 5.7.1 AS64497 DE",
    EXCEPTED: "DUNNO",
    NATION: "DEFER 4.7.1 AS64496 JP",
    MAPPED: "REJECT 5.7.1 AS64497 DE",
    STRANGER: "DUNNO",
}


def write_databases(folder: Path) -> None:
    write_systems(folder / "asn.mmdb", "maxmind_asn")
    (folder / "countries.csv").write_text(COUNTRIES)


def maps(policyd: Policyd) -> str:
    """The maps of the daemon and of the processes that it has forked."""
    children = Path(f"/proc/{policyd.pid}/task/{policyd.pid}/children").read_text().split()
    return "".join(Path(f"/proc/{pid}/maps").read_text() for pid in (policyd.pid, *children))


@pytest.fixture
def databases(tmp_path: Path) -> Path:
    write_databases(tmp_path)
    return tmp_path


def test_systems_and_countries_decide_and_stand_in_every_line_of_the_log(
    start_policyd: StartPolicyd, port: int, databases: Path
) -> None:
    with start_policyd(RULES) as policyd, Client(port) as client:
        assert {asked: client.ask(asked) for asked in ANSWERS} == ANSWERS
        logged = policyd.decisions(len(ANSWERS))
        assert str(databases / "asn.mmdb") not in maps(policyd)
    owned = [(line.get("asn"), line.get("asn_name"), line.get("country")) for line in logged]
    other, example = (64497, "Other Hosting", "DE"), (64496, "Example Internet Inc.", "JP")
    assert owned == [other, other, example, other, (None, None, None)]


def overwrite(path: Path, content: bytes) -> None:
    """Writes into the file that is there, as a careless download does."""
    with path.open("r+b") as file:
        file.write(content)


RUBBISH: dict[str, Callable[[Path], object]] = {
    "overwritten": lambda path: overwrite(path, b"\xa5" * path.stat().st_size),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:60]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("harm", RUBBISH)
@pytest.mark.parametrize("name", ["asn.mmdb", "countries.csv"])
def test_a_file_that_is_harmed_changes_nothing_and_neither_does_a_reload(
    start_policyd: StartPolicyd, port: int, databases: Path, harm: str, name: str
) -> None:
    with start_policyd(RULES) as policyd, Client(port) as client:
        RUBBISH[harm](databases / name)
        assert {asked: client.ask(asked) for asked in ANSWERS} == ANSWERS
        said = policyd.reload()
        assert "stays in force" in said
        assert name in said
        assert {asked: client.ask(asked) for asked in ANSWERS} == ANSWERS
        write_databases(databases)
        assert "reloaded: " in policyd.reload()
        assert {asked: client.ask(asked) for asked in ANSWERS} == ANSWERS


def test_a_new_database_counts_from_the_reload_on(start_policyd: StartPolicyd, port: int, databases: Path) -> None:
    with start_policyd(RULES) as policyd, Client(port) as client:
        assert client.ask(STRANGER) == "DUNNO"
        new = write_mmdb(databases / "new.mmdb", {"203.0.113.0/24": maxmind_asn(64500, "New", "")})
        new.rename(databases / "asn.mmdb")
        assert client.ask(STRANGER) == "DUNNO"
        policyd.reload()
        assert client.ask(STRANGER) == "REJECT 5.7.1 AS64500 unknown"
        assert client.ask(HOSTER) == "DUNNO"


def test_no_answer_is_wrong_while_files_are_overwritten_and_reloaded_under_load(
    start_policyd: StartPolicyd, port: int, databases: Path
) -> None:
    """The content is written in place, again and again, right and rubbish in turn."""
    content = {name: (databases / name).read_bytes() for name in ("asn.mmdb", "countries.csv")}
    wrong: list[tuple[bytes, str]] = []
    asked = 0
    over = threading.Event()

    def ask() -> None:
        nonlocal asked
        with Client(port) as client:
            while not over.is_set():
                for question, answer in ANSWERS.items():
                    got = client.ask(question)
                    asked += 1
                    if got != answer:
                        wrong.append((question, got))

    with start_policyd(RULES) as policyd:
        askers = [threading.Thread(target=ask) for _ in range(3)]
        for asker in askers:
            asker.start()
        outcomes = set()
        try:
            for turn in range(12):
                for name, right in content.items():
                    overwrite(databases / name, bytes(len(right)) if turn % 3 == 1 else right)
                outcomes.add("stays in force" in policyd.reload())
        finally:
            over.set()
            for asker in askers:
                asker.join()
        assert policyd.pid
    assert outcomes == {True, False}
    assert wrong == []
    assert asked > 100


def test_an_old_database_is_a_warning_in_the_operational_log(start_policyd: StartPolicyd, databases: Path) -> None:
    write_systems(databases / "asn.mmdb", "maxmind_asn", built=1_700_000_000)
    with start_policyd(RULES) as policyd:
        said = policyd.operational_log.read_text()
    assert "asn.mmdb: the asn database is of 2023-11-14" in said
