"""`policyd fetch` of databases: accepted copies, the message of every guard, and the old copy in force."""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from policyd.config.list_sources import state_path
from policyd.config.load import load
from policyd.config.problems import ConfigErrors
from policyd.fetch.guards import Rules
from policyd.fetch.run import Choice, fetch
from tests.daemon.client import Client, request
from tests.daemon.conftest import port, start_policyd  # noqa: F401 - fixtures
from tests.daemon.test_control import cli
from tests.fetch.web import PageRequest, Web, answer, serve
from tests.mmdb import SYSTEMS, maxmind_asn, maxmind_country, write_mmdb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.daemon.conftest import StartPolicyd

DAY = 86400
NOW = int(time.time())
RULES = """\
databases: {{asn: {{file: asn.mmdb, from: {{url: '{url}', every: 7d}}}}}}
rules:
  - {{name: system, match: {{asn: 64496}}, action: REJECT}}
"""
# Parts of the messages about a file that is not a database, and about a database of another kind.
NEITHER = (
    "is neither an MMDB file nor lines of ranges (first address, last address, then an AS number or a country); if it "
    "is an MMDB file, it has been cut short: fetch it again"
)
NO_SYSTEM = "no record has a value for asn (autonomous_system_number or asn); the keys of its records are: "
CSV = b"192.0.2.0,192.0.2.255,64496,Example\n198.51.100.0,198.51.100.255,64497,Other\n"


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as server:
        yield server


def write(folder: Path, url: str) -> Rules:
    (folder / "rules.yaml").write_text(RULES.format(url=url))
    return Rules(str(folder / "rules.yaml"), None)


def mmdb(folder: Path, count: int = 5, built: int = NOW, shape: Callable[..., object] = maxmind_asn) -> bytes:
    path = folder / "made"
    write_mmdb(path, {network: shape(*SYSTEMS[network]) for network in [*SYSTEMS][:count]}, built=built)
    content = path.read_bytes()
    path.unlink()
    return content


def test_a_good_database_replaces_the_old_one_and_keeps_it_as_previous(tmp_path: Path, web: Web) -> None:
    old = mmdb(tmp_path, 3, NOW - 7 * DAY)
    (tmp_path / "asn.mmdb").write_bytes(old)
    new = mmdb(tmp_path)
    web.pages["/asn"] = answer(gzip.compress(new), ETag='"1"', Last_Modified="Sun, 29 Nov 2026 12:00:00 GMT")
    rules = write(tmp_path, web.url("/asn"))
    assert fetch(rules, Choice(dry_run=True)).changed == []
    outcome = fetch(rules, Choice())
    dates = [time.strftime("%Y-%m-%d", time.gmtime(at)) for at in (NOW, NOW - 7 * DAY)]
    assert outcome.messages == [f"database asn: 5 networks, of {dates[0]} (3 before, of {dates[1]})"]
    assert (outcome.refused, outcome.changed) == ([], ["database asn"])
    assert (tmp_path / "asn.mmdb").read_bytes() == new
    assert (tmp_path / "asn.mmdb.previous").read_bytes() == old
    assert fetch(rules, Choice()).messages == ["database asn: not due for 168.0 h"]
    os.utime(state_path(str(tmp_path / "asn.mmdb")), (0, 0))
    web.pages["/asn"] = answer(b"", 304)
    assert fetch(rules, Choice(only=["asn"])).messages == ["database asn: unchanged"]
    assert web.requests[-1][1]["If-None-Match"] == '"1"'


def format_time(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(seconds))


GUARDS: dict[str, tuple[Callable[[Path], Callable[[PageRequest], None]], str]] = {
    "an error page": (lambda _: answer(b"<!DOCTYPE html>"), "an HTML or XML page arrived instead of a database"),
    "nothing": (lambda _: answer(b""), "nothing arrived"),
    "not found": (lambda _: answer(b"", 404), "the server answers 404 Not Found"),
    "half a body": (
        lambda folder: answer(mmdb(folder)[:200], length=5000),
        "was cut short: the connection ended before the file did",
    ),
    "half a file": (
        lambda folder: answer(mmdb(folder)[:-300]),
        NEITHER,
    ),
    "a database of another kind": (
        lambda folder: answer(mmdb(folder, shape=maxmind_country)),
        f"{NO_SYSTEM}continent, country, registered_country",
    ),
    "an older copy": (
        lambda folder: answer(mmdb(folder, built=NOW - 30 * DAY)),
        f"is of {format_time(NOW - 30 * DAY)}, older than the copy in force, of {format_time(NOW - 7 * DAY)}",
    ),
    "more than half of the networks lost": (
        lambda folder: answer(mmdb(folder, 2)),
        "has 2 networks, fewer than half of the 5 in force",
    ),
    "a wrong line": (
        lambda _: answer(CSV + b"192.0.2.0,192.0.2.x,1,X\n"),
        "line 3: '192.0.2.x' is not an IP address",
    ),
}


@pytest.mark.parametrize("case", list(GUARDS))
def test_a_database_that_is_refused_leaves_the_old_one_in_force(case: str, tmp_path: Path, web: Web) -> None:
    make, reason = GUARDS[case]
    web.pages["/asn"] = make(tmp_path)
    old = mmdb(tmp_path, 5, NOW - 7 * DAY)
    (tmp_path / "asn.mmdb").write_bytes(old)
    outcome = fetch(write(tmp_path, web.url("/asn")), Choice())
    assert outcome.refused == [f"database asn: refused: {reason}"]
    assert (outcome.messages, outcome.changed) == ([], [])
    assert (tmp_path / "asn.mmdb").read_bytes() == old
    assert {path.name for path in tmp_path.iterdir()} == {"asn.mmdb", "rules.yaml"}


def test_accept_takes_a_database_that_is_older_and_smaller(tmp_path: Path, web: Web) -> None:
    (tmp_path / "asn.mmdb").write_bytes(mmdb(tmp_path))
    web.pages["/asn"] = answer(mmdb(tmp_path, 2, NOW - DAY))
    rules = write(tmp_path, web.url("/asn"))
    assert fetch(rules, Choice()).refused
    assert fetch(rules, Choice(accept=["asn"])).changed == ["database asn"]


def test_a_text_database_has_the_date_that_the_server_gives(tmp_path: Path, web: Web) -> None:
    web.pages["/asn"] = answer(CSV, Last_Modified="Mon, 02 Nov 2026 12:00:00 GMT")
    rules = write(tmp_path, web.url("/asn"))
    assert fetch(rules, Choice()).messages == ["database asn: 2 networks, of 2026-11-02"]
    assert [str(database.date) for database in load(rules_path=rules.path).databases] == ["2026-11-02"]
    web.pages["/asn"] = answer(CSV + b"# comment\n", Last_Modified="Sun, 01 Nov 2026 12:00:00 GMT")
    assert fetch(rules, Choice(force=True)).refused == [
        "database asn: refused: is of 2026-11-01T12:00Z, older than the copy in force, of 2026-11-02T12:00Z"
    ]


def test_one_run_repairs_a_damaged_database_and_fetches_a_list(tmp_path: Path, web: Web) -> None:
    (tmp_path / "asn.mmdb").write_bytes(b"damaged")
    web.pages |= {"/asn": answer(mmdb(tmp_path)), "/list": answer(b"8.8.8.0/24\n")}
    rules = write(tmp_path, web.url("/asn"))
    text = f"lists: {{one: {{file: one.txt, from: {{url: '{web.url('/list')}'}}}}}}\n"
    text += Path(rules.path).read_text() + "  - {name: one, match: {cidr: $one}, action: REJECT}\n"
    Path(rules.path).write_text(text)
    assert fetch(rules, Choice()).changed == ["database asn", "one"]


def test_an_unfetched_database_is_empty_and_a_lost_database_is_an_error(tmp_path: Path, web: Web) -> None:
    web.pages["/asn"] = answer(mmdb(tmp_path))
    rules = write(tmp_path, web.url("/asn"))
    before = load(rules_path=rules.path)
    assert [database.missing for database in before.databases] == [True]
    fetch(rules, Choice())
    (tmp_path / "asn.mmdb").unlink()
    with pytest.raises(ConfigErrors, match=r"asn\.mmdb cannot be read: No such file"):
        load(rules_path=rules.path)
    assert fetch(rules, Choice()).changed == ["database asn"]


@pytest.mark.slow
def test_the_daemon_loads_a_fetched_database(
    tmp_path: Path,
    start_policyd: StartPolicyd,  # noqa: F811 - the fixture above
    port: int,  # noqa: F811 - the fixture above
) -> None:
    with serve() as web:
        web.pages["/asn"] = answer(mmdb(tmp_path))
        text = RULES.format(url=web.url("/asn"))
        with start_policyd(text, control=str(tmp_path / "control.sock")) as policyd, Client(port) as client:
            before = client.ask(request(client_address="192.0.2.1"))
            status_before, checked = cli(tmp_path, "status"), cli(tmp_path, "check")
            fetched = cli(tmp_path, "fetch")
            after = client.ask(request(client_address="192.0.2.1"))
            status = cli(tmp_path, "status")
            log = policyd.operational_log.read_text()
    name = f"{tmp_path / 'asn.mmdb'}"
    assert (before, after.split()[0]) == ("DUNNO", "REJECT")
    assert f"{name}: has not been fetched yet, so the asn database is empty; run policyd fetch --list asn" in log
    assert "database asn has not been fetched yet, so it is empty; see policyd fetch --list asn" in status_before.stdout
    assert f"asn: empty, because {name} has not been fetched yet" in status_before.stdout
    assert f"{name}: warning: has not been fetched yet, so the asn database is empty" in checked.stderr
    assert fetched.returncode == 0
    assert fetched.stdout.splitlines()[1].startswith("reloaded: database asn changed: empty before, now of ")
    assert "attention" not in status.stdout


def test_one_file_for_both_kinds_is_fetched_once(tmp_path: Path, web: Web) -> None:
    both = b"192.0.2.0\t192.0.2.255\t64496\tJP\tExample\n"
    web.pages["/both"] = answer(both)
    source = f"{{url: '{web.url('/both')}'}}"
    rules = tmp_path / "rules.yaml"
    rules.write_text(f"databases: {{asn: {{file: b.tsv, from: {source}}}, country: b.tsv}}\nrules: []\n")
    outcome = fetch(Rules(str(rules), None), Choice(only=["country"]))
    assert outcome.changed == ["database asn and country"]
    assert len(web.requests) == 1
    other = source.replace("both", "other")
    rules.write_text(
        f"databases: {{asn: {{file: b.tsv, from: {source}}}, country: {{file: b.tsv, from: {other}}}}}\nrules: []\n"
    )
    with pytest.raises(ConfigErrors, match="country: from: the same file has another source for another kind"):
        load(rules_path=rules)
