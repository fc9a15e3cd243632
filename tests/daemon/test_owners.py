"""Databases of networks in the daemon: sealed copies, reloads, the decision log, and files that change meanwhile."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from tests.daemon.client import Client, request
from tests.daemon.conftest import children
from tests.daemon.test_control import run
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


def ask_all(client: Client) -> dict[bytes, str]:
    """Returns the answers to the requests of ANSWERS."""
    return {content: client.ask(content) for content in ANSWERS}


def maps(policyd: Policyd) -> str:
    """The memory maps of the daemon and of the processes that it has forked."""
    return "".join(Path(f"/proc/{pid}/maps").read_text() for pid in (policyd.pid, *children(policyd.pid)))


@pytest.fixture
def databases(tmp_path: Path) -> Path:
    write_databases(tmp_path)
    return tmp_path


def test_systems_and_countries_decide_and_are_logged(start_policyd: StartPolicyd, port: int, databases: Path) -> None:
    with start_policyd(RULES) as policyd, Client(port) as client:
        assert ask_all(client) == ANSWERS
        logged = policyd.decisions(len(ANSWERS))
        assert str(databases / "asn.mmdb") not in maps(policyd)
    owned = [(line.get("asn"), line.get("asn_name"), line.get("country")) for line in logged]
    other, example = (64497, "Other Hosting", "DE"), (64496, "Example Internet Inc.", "JP")
    assert owned == [other, other, example, other, (None, None, None)]


def overwrite(path: Path, content: bytes) -> None:
    """Overwrites the file in place, as a careless download does; creates it if it does not exist."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(content)
        file.truncate()


def replace(path: Path, content: bytes) -> None:
    """Replaces the file by rename, as a careful download does."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.rename(path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "overwritten": lambda path: overwrite(path, b"\xa5" * path.stat().st_size),
    "zeroed": lambda path: overwrite(path, bytes(path.stat().st_size)),
    "replaced": lambda path: replace(path, b"\xa5" * path.stat().st_size),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:60]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["asn.mmdb", "countries.csv"])
def test_a_damaged_file_changes_nothing_even_after_a_reload(
    start_policyd: StartPolicyd, port: int, databases: Path, damage: str, name: str
) -> None:
    with start_policyd(RULES) as policyd, Client(port) as client:
        DAMAGES[damage](databases / name)
        assert ask_all(client) == ANSWERS
        log = policyd.reload()
        assert "stays in force" in log
        assert name in log
        assert ask_all(client) == ANSWERS
        write_databases(databases)
        assert "reloaded: " in policyd.reload()
        assert ask_all(client) == ANSWERS


def test_a_new_database_is_used_after_a_reload(start_policyd: StartPolicyd, port: int, databases: Path) -> None:
    with start_policyd(RULES) as policyd, Client(port) as client:
        assert client.ask(STRANGER) == "DUNNO"
        new = write_mmdb(databases / "new.mmdb", {"203.0.113.0/24": maxmind_asn(64500, "New", "")})
        new.rename(databases / "asn.mmdb")
        assert client.ask(STRANGER) == "DUNNO"
        policyd.reload()
        assert client.ask(STRANGER) == "REJECT 5.7.1 AS64500 unknown"
        assert client.ask(HOSTER) == "DUNNO"


def test_an_unchanged_database_is_not_parsed_again(start_policyd: StartPolicyd, port: int, databases: Path) -> None:
    with start_policyd(RULES) as policyd, Client(port) as client:
        logs = [policyd.reload() for _ in range(3)]
        assert all("; database asn as before; database country as before" in log for log in logs)
        assert ask_all(client) == ANSWERS
        (databases / "countries.csv").write_text(COUNTRIES.replace("DE", "FR"))
        assert "database asn as before" in (after := policyd.reload())
        assert "database country as before" not in after
        assert client.ask(HOSTER) == "REJECT 5.7.1 AS64497 FR"
        assert client.ask(NATION) == "DEFER 4.7.1 AS64496 JP"
        # The same bytes under another name count as a new file. A file that also serves another kind counts as new,
        # too.
        (databases / "asn.mmdb").rename(databases / "systems.mmdb")
        policyd.rules.write_text(RULES.replace("asn.mmdb", "systems.mmdb"))
        assert "database asn as before" not in policyd.reload()
        assert client.ask(HOSTER) == "REJECT 5.7.1 AS64497 FR"
        write_systems(databases / "asn.mmdb", "ipinfo_lite")
        policyd.rules.write_text(RULES.replace("countries.csv", "asn.mmdb"))
        assert "as before" not in policyd.reload()
        assert "database asn as before; database country as before" in policyd.reload()
        assert ask_all(client) == ANSWERS


def test_an_unchanged_database_gets_a_changed_max_age(start_policyd: StartPolicyd, port: int, databases: Path) -> None:
    write_systems(databases / "asn.mmdb", "maxmind_asn", built=int(time.time()) - 3 * 86400)
    with start_policyd(RULES) as policyd, Client(port) as client:
        assert "days ago" not in policyd.reload()
        policyd.rules.write_text(RULES.replace("asn: asn.mmdb", "asn: {file: asn.mmdb, max_age: 2d}"))
        log = policyd.reload()
        assert "database asn as before" in log
        assert "3 days ago" in log
        assert ask_all(client) == ANSWERS


def test_status_reports_a_damaged_database(
    start_policyd: StartPolicyd, port: int, databases: Path, tmp_path: Path
) -> None:
    valid = (databases / "asn.mmdb").read_bytes()
    damaged = valid.replace(b"\x4dOther Hosting", b"\x5fOther Hosting")  # a name longer than the rest of the file
    (databases / "asn.mmdb").write_bytes(damaged)
    with start_policyd(RULES, control=str(tmp_path / "control.sock")) as policyd, Client(port) as client:
        assert "is damaged" not in run(policyd, "status").stdout
        assert [client.ask(HOSTER) for _ in range(100)] == ["DUNNO"] * 100
        assert client.ask(NATION) == ANSWERS[NATION]
        ended = run(policyd, "status")
        assert ended.returncode == 1
        assert f"the asn database {databases}/asn.mmdb is damaged: fetch it again" in ended.stdout
        (databases / "asn.mmdb").write_bytes(valid)
        policyd.reload()
        assert ask_all(client) == ANSWERS


class Traffic:
    """Clients that ask continuously, between `__enter__` and `__exit__`, and record every wrong answer."""

    def __init__(self, port: int) -> None:
        self.asked = 0
        self.wrong: list[tuple[bytes, str]] = []
        self._over = threading.Event()
        self._port = port
        self._askers = [threading.Thread(target=self._ask) for _ in range(3)]

    def _ask(self) -> None:
        with Client(self._port) as client:
            while not self._over.is_set():
                for question, answer in ANSWERS.items():
                    got = client.ask(question)
                    self.asked += 1
                    if got != answer:
                        self.wrong.append((question, got))

    def __enter__(self) -> Self:
        for asker in self._askers:
            asker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for asker in self._askers:
            asker.join()


def test_no_answer_is_wrong_while_files_are_damaged_and_reloaded_under_load(
    start_policyd: StartPolicyd, port: int, databases: Path
) -> None:
    """Damages each file in each way, with a reload after the damage, and another after the repair."""
    content = {name: (databases / name).read_bytes() for name in ("asn.mmdb", "countries.csv")}
    logs: dict[tuple[str, ...], str] = {}
    with start_policyd(RULES) as policyd:
        with Traffic(port) as traffic:
            for name, valid in content.items():
                for damage, damage_file in DAMAGES.items():
                    damage_file(databases / name)
                    logs[name, damage] = policyd.reload()
                    overwrite(databases / name, valid)
                    logs[name, damage, "repaired"] = policyd.reload()
        assert [key for key, log in logs.items() if ("stays in force" in log) == ("repaired" in key)] == []
        assert [key for key, log in logs.items() if "repaired" not in key and key[0] not in log] == []
        assert not any(name in maps(policyd) for name in content)
    assert traffic.wrong == []
    assert traffic.asked > 100


def test_no_answer_is_wrong_if_files_are_damaged_at_the_moment_of_a_reload(
    start_policyd: StartPolicyd, port: int, databases: Path
) -> None:
    """Another program writes while the reload reads: the reload fails, or it has read a complete, valid file."""
    content = {name: (databases / name).read_bytes() for name in ("asn.mmdb", "countries.csv")}
    over = threading.Event()

    def write() -> None:
        turn = 0
        while not over.is_set():
            turn += 1
            for number, (name, valid) in enumerate(content.items()):
                damages = [*DAMAGES.values()]
                damages[(turn + number) % len(damages)](databases / name)
                # Longer than the resolution of file times, so that each write has a different time.
                time.sleep(0.015)
                overwrite(databases / name, valid)
            time.sleep(0.015)

    with start_policyd(RULES) as policyd:
        with Traffic(port) as traffic:
            writer = threading.Thread(target=write)
            writer.start()
            try:
                outcomes = ["stays in force" in policyd.reload() for _ in range(15)]
            finally:
                over.set()
                writer.join()
            assert "reloaded: " in policyd.reload()
        assert not any(name in maps(policyd) for name in content)
    assert True in outcomes
    assert traffic.wrong == []
    assert traffic.asked > 100


def test_an_old_database_is_a_warning_in_the_operational_log(start_policyd: StartPolicyd, databases: Path) -> None:
    write_systems(databases / "asn.mmdb", "maxmind_asn", built=1_700_000_000)
    with start_policyd(RULES) as policyd:
        log = policyd.operational_log.read_text()
    assert "asn.mmdb: the asn database is dated 2023-11-14" in log
