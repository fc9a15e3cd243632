"""The control socket of a real daemon: its answers, its permissions, and that no peer delays Postfix."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from policyd.control.client import ControlError, ask
from policyd.control.words import Command, ControlRequest
from tests.daemon.client import Client, request, unnamed
from tests.daemon.conftest import BULK, DNS_RULES, LATER, RULES, StartPolicyd, children
from tests.field.policyd import Policyd
from tests.name_server import NXDOMAIN, Reply, ScriptedServer, claim, reverse

if TYPE_CHECKING:
    from collections.abc import Iterator

LISTED = """
lists:
  drop: {file: drop.txt}
rules:
  - {name: drop, match: {cidr: $drop}, action: REJECT}
"""


def run(policyd: Policyd, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with the settings of a running daemon."""
    return cli(policyd.settings.parent, *arguments)


def cli(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with the settings in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "policyd", *arguments, "-c", str(folder / "policyd.yaml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def control(tmp_path: Path) -> str:
    return str(tmp_path / "control.sock")


# --- Status -----------------------------------------------------------------------------------------------------------


def test_status_shows_version_mode_ruleset_and_files(start_policyd: StartPolicyd, port: int, control: str) -> None:
    with start_policyd(control=control) as policyd, Client(port) as client:
        client.ask(BULK)
        (logged,) = policyd.decisions(1)
        data = run(policyd, "status", "--json")
        text = run(policyd, "status")
        pid = policyd.pid
    assert (data.returncode, data.stderr) == (0, "")
    status = json.loads(data.stdout)
    assert (status["pid"], status["mode"], status["ruleset"]) == (pid, "enforce", logged["ruleset"])
    assert status["loaded"]["rules"] == 3
    assert [file["kind"] for file in status["files"]] == ["settings", "rules"]
    assert all(len(file["hash"]) == 8 for file in status["files"])
    assert status["answers_per_second"]["DEFER"] > 0
    assert status["connections"]["open"] == 1
    assert status["attention"] == []
    assert (text.returncode, text.stdout.splitlines()[0]) == (0, "mode         enforce")


def test_status_shows_observe_first_and_as_a_problem_after_a_week(
    start_policyd: StartPolicyd, control: str, tmp_path: Path
) -> None:
    with start_policyd("mode: observe\n" + RULES, control=control) as policyd:
        first = run(policyd, "status")
        old = (tmp_path / "rules.yaml").stat().st_mtime - 8 * 86400
        os.utime(policyd.rules, (old, old))
        policyd.reload()
        after_a_week = run(policyd, "status")
    assert first.returncode == 0
    assert first.stdout.startswith("mode         observe: every answer is DUNNO")
    assert after_a_week.returncode == 1
    assert "attention: mode: observe is at the top of the rules, last edited 8 days ago" in after_a_week.stdout


def test_an_expired_rule_needs_attention(start_policyd: StartPolicyd, control: str) -> None:
    rules = RULES + "  - {name: old, match: {cidr: 192.0.2.7}, action: REJECT, expires: 2026-01-01}\n"
    with start_policyd(rules, control=control) as policyd:
        status = run(policyd, "status")
    assert status.returncode == 1
    assert "rule ends    old: expired on 2026-01-01" in status.stdout
    assert "attention: expired rules: old; remove them or set another date" in status.stdout


def test_alive_exits_0_while_the_daemon_answers_and_2_without_it(start_policyd: StartPolicyd, control: str) -> None:
    with start_policyd(control=control) as policyd:
        alive = run(policyd, "status", "--alive")
    without_daemon = run(policyd, "status", "--alive")
    assert (alive.returncode, alive.stdout) == (0, "")
    assert without_daemon.returncode == 2
    assert f"{control} does not exist; is policyd running" in without_daemon.stderr


def test_without_a_control_socket_in_the_settings_status_names_the_line_to_add(start_policyd: StartPolicyd) -> None:
    with start_policyd() as policyd:
        status = run(policyd, "status")
    assert status.returncode == 2
    assert "names no control socket; add the line control: /run/policyd/control.sock" in status.stderr


# --- Reload -----------------------------------------------------------------------------------------------------------


def test_reload_waits_and_prints_changes(start_policyd: StartPolicyd, port: int, control: str) -> None:
    with start_policyd(control=control) as policyd, Client(port) as client:
        policyd.rules.write_text(RULES.replace("later", "much later").replace("name: vps", "name: hosters"))
        reloaded = run(policyd, "reload")
        assert client.ask(BULK) == "DEFER 4.7.1 much later"
        again = run(policyd, "reload")
    assert (reloaded.returncode, reloaded.stderr) == (0, "")
    first, *changes = reloaded.stdout.splitlines()
    assert first.startswith("reloaded: ruleset ")
    assert changes == ["  rule hosters added", "  rule bulk changed", "  rule vps removed"]
    assert again.stdout.splitlines()[1:] == ["  nothing changed"]


def test_a_reload_is_answered_although_the_daemon_ends_first(start_policyd: StartPolicyd, control: str) -> None:
    with start_policyd(control=control) as policyd, connect(control) as first, connect(control) as second:
        (loader,) = children(policyd.pid)
        os.kill(loader, signal.SIGSTOP)
        try:
            for peer, data in ((first, False), (second, True)):
                peer.sendall(
                    ControlRequest(Command.ALIVE).encode() + ControlRequest(Command.RELOAD, data=data).encode()
                )
            lines = [peer.makefile("rb") for peer in (first, second)]
            alive = [json.loads(line.readline())["ok"] for line in lines]
            os.kill(policyd.pid, signal.SIGTERM)
            answers = [json.loads(line.readline()) for line in lines]
        finally:
            os.kill(loader, signal.SIGCONT)
    assert alive == [True, True]
    assert [answer["errors"] for answer in answers] == [["policyd is ending; nothing was reloaded"]] * 2


def test_a_broken_reload_exits_1_with_every_error_and_status_shows_it_until_a_good_one(
    start_policyd: StartPolicyd, port: int, control: str
) -> None:
    with start_policyd(control=control) as policyd, Client(port) as client:
        policyd.rules.write_text(RULES.replace("cidr", "cidre").replace("REJECT", "REJCT"))
        failed = run(policyd, "reload")
        shown = run(policyd, "status")
        assert client.ask(BULK) == LATER
        policyd.rules.write_text(RULES)
        corrected = run(policyd, "reload")
        after = run(policyd, "status")
    assert (failed.returncode, failed.stdout) == (1, "")
    *errors, last = failed.stderr.splitlines()
    assert [error.partition(": ")[0] for error in errors] == [
        f"{policyd.rules}:3:68",
        f"{policyd.rules}:4:26",
        f"{policyd.rules}:5:75",
    ]
    assert last.startswith("policyd: reload failed: ruleset ")
    assert shown.returncode == 1
    assert all(error in shown.stdout for error in errors)
    assert "attention: the last reload failed" in shown.stdout
    assert (corrected.returncode, after.returncode) == (0, 0)
    assert "failed" not in after.stdout.replace("failed 0", "")


def test_data_is_reloaded_despite_half_edited_rules_and_settings(
    start_policyd: StartPolicyd, port: int, control: str, tmp_path: Path
) -> None:
    drop = tmp_path / "drop.txt"
    drop.write_text("192.0.2.0/24\n")
    with start_policyd(LISTED, control=control) as policyd, Client(port) as client:
        assert client.ask(BULK) == "DUNNO"
        drop.write_text("192.0.2.0/24\n203.0.113.0/24\n")
        policyd.rules.write_text(LISTED[: len(LISTED) // 2] + "  - {name: [")
        policyd.settings.write_text(policyd.settings.read_text() + "limits: {conections: 7}\n")
        before = json.loads(run(policyd, "status", "--json").stdout)
        reloaded = run(policyd, "reload", "--data")
        assert client.ask(BULK).startswith("REJECT")
        status = run(policyd, "status", "--json")
        full = run(policyd, "reload")
        drop.write_text("no network\n")
        bad = run(policyd, "reload", "--data")
        both = run(policyd, "status", "--json")
    assert (reloaded.returncode, reloaded.stderr) == (0, "")
    settings, rules, *changes = reloaded.stdout.splitlines()
    assert settings.startswith(f"{policyd.settings} has been edited since it was loaded; left alone")
    assert rules.startswith(f"{policyd.rules} has been edited since it was loaded; left alone")
    assert changes[1:] == ["  list drop changed: 1 entries before, 2 now"]
    assert status.returncode == 0
    after = json.loads(status.stdout)
    assert [file["hash"] for file in after["files"][:2]] == [file["hash"] for file in before["files"][:2]]
    assert after["files"][2]["hash"] != before["files"][2]["hash"]
    assert full.returncode == 1
    assert bad.returncode == 1
    assert f"{drop}:1:1: " in bad.stderr
    assert [failure["data"] for failure in json.loads(both.stdout)["reload"]["failures"]] == [False, True]


def test_a_good_reload_of_data_does_not_hide_that_the_rules_are_broken(
    start_policyd: StartPolicyd, control: str
) -> None:
    with start_policyd(control=control) as policyd:
        policyd.rules.write_text("rules: 7\n")
        assert run(policyd, "reload").returncode == 1
        assert run(policyd, "reload", "--data").returncode == 0
        status = run(policyd, "status")
    assert status.returncode == 1
    assert "expected a list of rules" in status.stdout


def test_the_rules_text_in_force_is_sent_even_if_the_file_was_edited(start_policyd: StartPolicyd, control: str) -> None:
    rules = "# \u00e9 \U0001f600\n" + RULES + "".join(f"# a comment of some length {n}\n" for n in range(10_000))
    with start_policyd(rules, control=control) as policyd:
        policyd.rules.write_text("rules: []\n")
        answer = ask(control, ControlRequest(Command.RULES))
    assert answer["rules"] == rules
    assert (answer["path"], answer["settings"]) == (str(policyd.rules), str(policyd.settings))


# --- Forget -----------------------------------------------------------------------------------------------------------


def test_dns_answers_about_a_client_are_forgotten_by_address_or_name(
    start_policyd: StartPolicyd, port: int, control: str
) -> None:
    name = "mail.repaired.example"
    zone = {
        reverse("192.0.2.31"): Reply(claim(name, "192.0.2.31")),
        f"{name} A": Reply([f"{name} 300 A 192.0.2.31"]),
        reverse("192.0.2.32"): Reply(claim(name, "192.0.2.32")),
    }
    with (
        ScriptedServer(zone, otherwise=Reply(rcode=NXDOMAIN)) as dns,
        start_policyd(DNS_RULES, control=control, dns={"servers": [dns.address]}) as policyd,
        Client(port) as client,
    ):

        def count_questions() -> int:
            before = len(dns.asked)
            for host in (31, 32, 33):
                client.ask(unnamed(f"192.0.2.{host}"))
            return len(dns.asked) - before

        assert count_questions() > 0
        assert count_questions() == 0
        by_address = run(policyd, "forget", "192.0.2.33")
        assert count_questions() == 1
        by_name = run(policyd, "forget", "Repaired.Example.")
        assert count_questions() > 2
        nothing = run(policyd, "forget", "2001:db8::1")
        wrong = run(policyd, "forget", "no name")
    assert (by_address.returncode, by_address.stdout) == (0, "forgot 1 client: 192.0.2.33\n")
    assert (by_name.returncode, by_name.stdout) == (0, "forgot 2 clients: Repaired.Example.\n")
    assert (nothing.returncode, nothing.stdout) == (0, "nothing is cached for 2001:db8::1\n")
    assert (wrong.returncode, wrong.stdout) == (2, "")


def test_answers_of_dns_lists_about_a_client_are_forgotten(
    start_policyd: StartPolicyd, port: int, control: str
) -> None:
    rules = (
        "dns_lists: {bad: {zone: bad.test, codes: 127.0.0.2, self_test: no}}\n"
        "rules: [{name: listed, match: {listed: bad}, action: REJECT}]\n"
    )
    with (
        ScriptedServer({}, otherwise=Reply(rcode=NXDOMAIN)) as dns,
        start_policyd(rules, control=control, dns={"servers": [dns.address]}) as policyd,
        Client(port) as client,
    ):
        client.ask(request(client_address="192.0.2.44"))
        first, second = (run(policyd, "forget", "192.0.2.44") for _ in range(2))
    assert (first.returncode, first.stdout) == (0, "forgot the answers of DNS lists: 192.0.2.44\n")
    assert (second.returncode, second.stdout) == (0, "nothing is cached for 192.0.2.44\n")


# --- Permissions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "mode"), [(None, 0o600), (str(os.getgid()), 0o660)])
def test_only_its_owner_may_use_the_socket_unless_a_group_is_named(
    start_policyd: StartPolicyd, control: str, group: str | None, mode: int
) -> None:
    settings = {"control": control} | ({} if group is None else {"control_group": group})
    with start_policyd(**settings):
        assert stat.S_IMODE(Path(control).stat().st_mode) == mode
    assert not Path(control).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_another_user_is_refused(start_policyd: StartPolicyd, open_folder: Path) -> None:
    control = str(open_folder / "control.sock")
    script = (
        "import os; from policyd.control.client import ask; from policyd.control.words import *\n"
        f"os.setuid(65534); ask({control!r}, ControlRequest(Command.ALIVE))"
    )
    with start_policyd(control=control):
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert f"no permission to use {control}; ask as root or as a member of the socket's group" in ended.stderr


def test_an_unusable_control_socket_is_reported_and_mail_goes_on(
    start_policyd: StartPolicyd, port: int, tmp_path: Path
) -> None:
    with start_policyd(control=str(tmp_path / "missing" / "c.sock")) as policyd, Client(port) as client:
        assert client.ask(BULK) == LATER
        log = policyd.operational_log.read_text()
        assert "No such file or directory; serving without a control socket, which" in log
        assert "make its folder or set 'control' to another path, and restart" in log


# --- Peers that do not behave -----------------------------------------------------------------------------------------


def connect(control: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    try:
        connection.connect(control)
    except OSError:
        connection.close()
        raise
    return connection


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"GET / HTTP/1.1\r\n", "expected one JSON object in a line"),
        (b"\0" * 100 + b"\n", "expected one JSON object in a line"),
        (b'{"command": "stop"}\n', "unknown command; the commands are alive, status, reload, forget, rules, counted"),
        (b"x" * 1_000_000, "a request has at most 4096 bytes"),
    ],
)
def test_an_invalid_request_is_refused_with_a_message(
    start_policyd: StartPolicyd, control: str, sent: bytes, error: str
) -> None:
    with start_policyd(control=control), connect(control) as peer:
        try:
            peer.sendall(sent)
        except OSError:  # the daemon has closed the connection
            return
        answer: Any = json.loads(peer.makefile("rb").readline())
        assert (answer["ok"], answer["errors"]) == (False, [error])
        assert peer.recv(1) == b""


def test_many_silent_peers_do_not_block_others(start_policyd: StartPolicyd, port: int, control: str) -> None:
    with start_policyd(control=control) as policyd, ExitStack() as crowd, Client(port) as client:
        for _ in range(100):
            crowd.enter_context(connect(control)).sendall(b'{"comm')
        assert ask(control, ControlRequest(Command.ALIVE))["ok"]
        assert client.ask(BULK) == LATER
        assert len(os.listdir(f"/proc/{policyd.pid}/fd")) < 64  # noqa: PTH208 - a count


def test_several_requests_may_use_one_connection(start_policyd: StartPolicyd, control: str) -> None:
    with start_policyd(control=control), connect(control) as peer:
        peer.sendall(ControlRequest(Command.ALIVE).encode() * 3)
        lines = peer.makefile("rb")
        assert [json.loads(lines.readline())["ok"] for _ in range(3)] == [True] * 3


def test_a_stale_control_socket_is_detected(tmp_path: Path) -> None:
    path = str(tmp_path / "stale")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    with pytest.raises(ControlError, match="nothing listens"):
        ask(path, ControlRequest(Command.ALIVE))


# --- Many hosts -------------------------------------------------------------------------------------------------------

HOSTS = 20
# Replaces ssh in the documented loop: the daemon of each host runs in the folder that has the host's name.
SSH = (
    'ssh() { folder=$1; shift; "$@" -c $folder/policyd.yaml; }; policyd() { ' + sys.executable + ' -m policyd "$@"; }\n'
)


@contextmanager
def fleet(folder: Path) -> Iterator[list[Path]]:
    """Starts a daemon for each host, each in a folder of its own and with the same ruleset."""
    with ExitStack() as running:
        for number in range(HOSTS):
            place = folder / f"mx{number}"
            place.mkdir()
            (place / "drop.txt").write_text("192.0.2.0/24\n")
            running.enter_context(Policyd(place, LISTED, listen=["unix:s"], control="c.sock"))
        yield [folder / f"mx{number}" for number in range(HOSTS)]


@pytest.mark.slow
def test_the_documented_loop_finds_the_host_with_a_stale_ruleset(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "systemd.md").read_text()
    (loop,) = re.findall(r"^    (want=.*\n)^    (for host in .*\n)", page, re.MULTILINE)
    pushed = LISTED.replace("REJECT", "DEFER")
    with fleet(tmp_path) as hosts:
        hashes = set()
        for number, host in enumerate(hosts):
            (host / "rules.yaml").write_text(pushed)
            if number != 7:
                assert cli(host, "reload").returncode == 0
        for host in hosts:
            hashes.add((host.name == "mx7", json.loads(cli(host, "status", "--json").stdout)["ruleset"]))
        assert len(hashes) == 2
        script = SSH + "".join(loop).replace("policyd check", "policyd check -c mx0/policyd.yaml")
        script = script.replace("mx1 mx2 mx3", " ".join(host.name for host in hosts))
        ended = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("mx7\n", "")
