"""`policyd fetch` with a running daemon, and without a daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.daemon.client import Client, request
from tests.daemon.conftest import port, start_policyd  # noqa: F401 - fixtures
from tests.daemon.test_control import cli
from tests.fetch.web import answer, serve

if TYPE_CHECKING:
    from pathlib import Path

    from tests.daemon.conftest import StartPolicyd

RULES = """\
lists:
  one: {{file: one.txt, from: {{url: '{one}'}}}}
  two: {{file: two.txt, from: {{url: '{two}'}}}}
rules:
  - {{name: listed, match: {{cidr: [$one, $two]}}, action: REJECT}}
"""


def test_the_daemon_loads_fetched_lists_but_not_edited_rules(
    tmp_path: Path,
    start_policyd: StartPolicyd,  # noqa: F811 - the fixture above
    port: int,  # noqa: F811 - the fixture above
) -> None:
    with serve() as web:
        web.pages |= {"/one": answer(b"8.8.8.0/24\n"), "/two": answer(b"", 503)}
        rules = RULES.format(one=web.url("/one"), two=web.url("/two"))
        with start_policyd(rules, control=str(tmp_path / "control.sock")) as policyd, Client(port) as client:
            before = client.ask(request(client_address="8.8.8.8"))
            status_before = cli(tmp_path, "status")
            policyd.rules.write_text("rules: half-edited")
            ended = cli(tmp_path, "fetch")
            after = client.ask(request(client_address="8.8.8.8"))
            again = cli(tmp_path, "fetch", "--list", "one")
            unknown = cli(tmp_path, "fetch", "--list", "three")
            status = cli(tmp_path, "status")
    assert (before, after.split()[0]) == ("DUNNO", "REJECT")
    assert ended.returncode == 1
    assert ended.stderr == "two: refused: the server answers 503 Service Unavailable\n"
    assert ended.stdout.splitlines() == [
        "one: 1 entries (+1 -0)",
        f"{policyd.rules} has been edited since it was loaded; left alone (policyd reload loads it)",
        "reloaded: list one changed: 0 entries before, 1 now",
    ]
    assert (again.returncode, again.stdout) == (0, "one: not due for 24.0 h\n")
    assert (
        unknown.returncode,
        "'three' is not a list or database with from:; there are: one, two" in unknown.stderr,
    ) == (2, True)
    assert "attention: list one has not been fetched yet" in status_before.stdout
    assert "attention: list one" not in status.stdout
    assert "attention: list two has not been fetched yet, so it is empty" in status.stdout


@pytest.mark.slow
def test_without_a_daemon_the_list_is_put_in_place(tmp_path: Path) -> None:
    with serve() as web:
        web.pages |= {"/one": answer(b"8.8.8.0/24\n"), "/two": answer(b"8.8.4.0/24\n")}
        (tmp_path / "rules.yaml").write_text(RULES.format(one=web.url("/one"), two=web.url("/two")))
        (tmp_path / "policyd.yaml").write_text("control: control.sock\nrules: rules.yaml\n")
        ended = cli(tmp_path, "fetch")
    assert ended.returncode == 0
    assert ended.stdout.splitlines() == ["one: 1 entries (+1 -0)", "two: 1 entries (+1 -0)"]
    assert ended.stderr.startswith("not reloaded: cannot ask the daemon: ")
    assert (tmp_path / "two.txt").exists()
