"""Reloads of a running daemon: new rules and settings take effect, and wrong ones leave the old ones in force."""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon.client import Client, request, unnamed
from tests.daemon.conftest import BULK, DNS_RULES, LATER, RULES, StartPolicyd, children, log_lines
from tests.field.policyd import Policyd
from tests.field.waiting import until
from tests.name_server import NXDOMAIN, Reply, ScriptedServer
from tests.ports import free_port

NEW_RULES = RULES.replace("later", "much later")
LONG_RULES = (
    f"lists: {{long: {{file: list}}}}\n{NEW_RULES}  - {{name: long, match: {{hostname: $long}}, action: REJECT}}\n"
)


def test_new_rules_decide_the_next_request_on_the_same_connection(start_policyd: StartPolicyd, port: int) -> None:
    with start_policyd() as policyd, Client(port) as client:
        assert client.ask(BULK) == LATER
        policyd.rules.write_text(NEW_RULES)
        assert "reloaded: ruleset " in policyd.reload()
        assert client.ask(BULK) == "DEFER 4.7.1 much later"
        old, new = policyd.decisions(2)
    assert old["ruleset"] != new["ruleset"]


def write_long_rules(policyd: Policyd, names: int) -> None:
    """Writes rules whose load takes some time: a second for 300,000 names."""
    (policyd.rules.parent / "list").write_text("".join(f"h{n}.example\n" for n in range(names)))
    policyd.rules.write_text(LONG_RULES)


def wait_for_worker(policyd: Policyd) -> tuple[int, int]:
    """Waits until a load has begun; returns the process ids of the loader and its worker."""
    (loader,) = children(policyd.pid)
    (worker,) = until("a load", lambda: children(loader) or None)
    return loader, worker


@contextmanager
def stopped_load(policyd: Policyd) -> Iterator[None]:
    """Suspends the load in progress during the block."""
    _, worker = wait_for_worker(policyd)
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


def make_unreadable(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "complaints"),
    [
        (lambda path: path.write_text(""), ["rules.yaml"]),
        (lambda path: path.write_text(NEW_RULES[: len(NEW_RULES) // 2]), ["rules.yaml:"]),
        (
            lambda path: path.write_text(NEW_RULES.replace("cidr", "cidre").replace("REJECT", "REJCT")),
            ["cidr", "REJCT"],
        ),
        (lambda path: path.write_bytes(b"\xff\x00" * 100), ["rules.yaml"]),
        (lambda path: path.unlink(), ["rules.yaml: "]),
        (make_unreadable, ["rules.yaml: "]),
    ],
)
def test_a_ruleset_with_an_error_changes_nothing_and_every_error_is_logged(
    start_policyd: StartPolicyd, port: int, spoil: Callable[[Path], object], complaints: list[str]
) -> None:
    with start_policyd() as policyd, Client(port) as client:
        assert client.ask(BULK) == LATER
        spoil(policyd.rules)
        logged = policyd.reload()
        for complaint in complaints:
            assert complaint in logged
        assert "reload failed: ruleset" in logged
        assert client.ask(BULK) == LATER
        first, second = policyd.decisions(2)
        assert first["ruleset"] == second["ruleset"]


def test_signals_during_a_load_cause_one_more_load(start_policyd: StartPolicyd, port: int) -> None:
    with start_policyd() as policyd, Client(port) as client:
        write_long_rules(policyd, 300_000)
        os.kill(policyd.pid, signal.SIGHUP)
        with stopped_load(policyd):
            for _ in range(20):
                os.kill(policyd.pid, signal.SIGHUP)
                client.ask(request())
        until("two loads", lambda: len(log_lines(policyd, ": reloaded: ")) == 2 or None)
        policyd.rules.write_text(RULES.replace("later", "even later"))
        os.kill(policyd.pid, signal.SIGHUP)
        until("the last load", lambda: client.ask(BULK) == "DEFER 4.7.1 even later" or None)
        assert len(log_lines(policyd, ": reloaded: ")) == 3


# --- Settings ---------------------------------------------------------------------------------------------------------


def change(policyd: Policyd, old: str, new: str) -> str:
    settings = policyd.settings.read_text()
    assert old in settings
    policyd.settings.write_text(settings.replace(old, new))
    return policyd.reload()


def test_a_changed_listen_needs_a_restart_and_a_message_says_so(start_policyd: StartPolicyd, port: int) -> None:
    with start_policyd() as policyd, Client(port) as client:
        logged = change(policyd, f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}")
        assert "listen has changed; that needs a restart of policyd" in logged
        assert "reloaded" in logged
        assert client.ask(BULK) == LATER


def test_a_changed_limit_of_state_keys_needs_a_restart_and_a_message_says_so(start_policyd: StartPolicyd) -> None:
    with start_policyd(limits={"state_keys": 1000}) as policyd:
        logged = change(policyd, "state_keys: 1000", "state_keys: 2000")
        assert "limits.state_keys has changed; that needs a restart of policyd" in logged


def test_changed_settings_take_effect(start_policyd: StartPolicyd, port: int, tmp_path: Path) -> None:
    with start_policyd(limits={"idle_timeout": "1h"}, log_level="info") as policyd, Client(port) as client:
        assert client.ask(BULK) == LATER
        policyd.settings.write_text(
            policyd.settings.read_text()
            .replace("decisions.log", "others.log")
            .replace("format: json", "format: text")
            .replace("idle_timeout: 1h", "idle_timeout: 2s")
            .replace("log_level: info", "log_level: debug")
        )
        policyd.reload()
        with Client(port) as late:  # the other connection may have been idle for too long
            assert late.ask(BULK) == LATER
            others = tmp_path / "others.log"
            text = until("a decision", lambda: (others.exists() and others.read_text()) or None)
            assert " DEFER id=" in text
            assert late.is_closed()
        assert client.is_closed()
        assert "idle for " in log_lines(policyd, ": debug: ")[0]


def test_wrong_settings_also_keep_the_old_rules(start_policyd: StartPolicyd, port: int) -> None:
    with start_policyd(log_level="info") as policyd, Client(port) as client:
        policyd.rules.write_text(NEW_RULES)
        assert "log_level" in change(policyd, "log_level: info", "log_level: loud")
        assert client.ask(BULK) == LATER


def test_a_new_resolver_is_asked_after_a_reload(start_policyd: StartPolicyd, port: int) -> None:
    silent = Reply(silent=True)
    with ScriptedServer({}, otherwise=silent) as old, ScriptedServer({}, otherwise=Reply(rcode=NXDOMAIN)) as new:
        dns = {"servers": [old.address], "timeout": "20s"}
        with start_policyd(DNS_RULES, dns=dns) as policyd, Client(port) as waiting, Client(port) as client:
            waiting.send(unnamed("192.0.2.99"))
            until("a question", lambda: old.asked or None)
            change(policyd, old.address, new.address)
            assert client.ask(unnamed("192.0.2.98")) == "DEFER 4.7.25 no name"
            old.break_silence(Reply(rcode=NXDOMAIN))
            assert waiting.answer() == "DEFER 4.7.25 no name"
    assert "bug" not in policyd.operational_log.read_text()


# --- The loading processes --------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_changes_nothing_and_the_next_load_works(
    start_policyd: StartPolicyd, port: int
) -> None:
    with start_policyd() as policyd, Client(port) as client:
        write_long_rules(policyd, 300_000)
        os.kill(policyd.pid, signal.SIGHUP)
        _, worker = wait_for_worker(policyd)
        os.kill(worker, signal.SIGKILL)
        log_lines(policyd, "the loading process has failed (killed by SIGKILL; out of memory?)")
        log_lines(policyd, "reload failed: ruleset")
        assert client.ask(BULK) == LATER
        policyd.rules.write_text(NEW_RULES)
        policyd._wait_for("READY=1")
        assert "reloaded" in policyd.reload()
        assert client.ask(BULK) == "DEFER 4.7.1 much later"


def test_a_load_that_needs_too_much_memory_affects_nothing_else(start_policyd: StartPolicyd, port: int) -> None:
    with start_policyd() as policyd, Client(port) as client:
        (loader,) = children(policyd.pid)
        room = int(Path(f"/proc/{loader}/statm").read_text().split()[0]) * resource.getpagesize() + (20 << 20)
        resource.prlimit(loader, resource.RLIMIT_AS, (room, room))
        write_long_rules(policyd, 400_000)
        assert "does not fit into memory" in policyd.reload()
        assert client.ask(BULK) == LATER


def test_a_load_for_which_no_descriptor_is_free_fails_and_the_next_one_works(
    start_policyd: StartPolicyd, port: int
) -> None:
    with start_policyd() as policyd, Client(port) as client:
        assert client.ask(BULK) == LATER
        _, hard = resource.prlimit(policyd.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(policyd.pid, resource.RLIMIT_NOFILE, (3, hard))
        policyd.rules.write_text(NEW_RULES)
        assert "no descriptor is free" in policyd.reload()
        assert client.ask(BULK) == LATER
        resource.prlimit(policyd.pid, resource.RLIMIT_NOFILE, (hard, hard))
        policyd.reload()
        assert client.ask(BULK) == "DEFER 4.7.1 much later"
        assert len(policyd.decisions(3)) == 3


def test_without_the_loader_requests_go_on_and_every_reload_explains_its_failure(
    start_policyd: StartPolicyd, port: int
) -> None:
    with start_policyd() as policyd, Client(port) as client:
        (loader,) = children(policyd.pid)
        os.kill(loader, signal.SIGKILL)
        (line,) = log_lines(policyd, "the loading process has ended")  # without a reload
        assert ": error: " in line
        policyd.rules.write_text(NEW_RULES)
        for _ in range(2):
            logged = policyd.reload()
            assert "the loading process has ended (killed by SIGKILL" in logged
            assert "needs a restart of policyd" in logged
        assert client.ask(BULK) == LATER


def test_the_loading_processes_end_with_the_daemon(start_policyd: StartPolicyd) -> None:
    with start_policyd() as policyd:
        write_long_rules(policyd, 300_000)
        os.kill(policyd.pid, signal.SIGHUP)
        loader, worker = wait_for_worker(policyd)
        policyd.kill()
        until(
            "the end of both processes",
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in (loader, worker)) or None,
        )


def test_only_the_first_thread_takes_signals(start_policyd: StartPolicyd) -> None:
    wanted = sum(1 << number - 1 for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
    with start_policyd(dns={"timeout": "100ms"}) as policyd:

        def blocked() -> list[int]:
            others = Path(f"/proc/{policyd.pid}/task").glob("*/status")
            texts = [path.read_text() for path in others if path.parent.name != str(policyd.pid)]
            return [int(text.partition("SigBlk:")[2].split()[0], 16) & wanted for text in texts]

        policyd.reload()
        until("the thread that frees the old ruleset", lambda: wanted in blocked() or None)
        assert {*blocked()} == {wanted}


def test_the_loader_ignores_signals_to_the_whole_group(start_policyd: StartPolicyd, port: int) -> None:
    with start_policyd() as policyd, Client(port) as client:
        (loader,) = children(policyd.pid)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            os.kill(loader, number)
        policyd.rules.write_text(NEW_RULES)
        assert "reloaded" in policyd.reload()
        assert client.ask(BULK) == "DEFER 4.7.1 much later"


# --- Dates ------------------------------------------------------------------------------------------------------------


def test_only_expired_rules_are_warned_of(start_policyd: StartPolicyd) -> None:
    rules = """
rules:
  - {name: gone, match: {cidr: 192.0.2.1}, action: REJECT, expires: 2020-01-01}
  - {name: lasting, match: {cidr: 192.0.2.2}, action: REJECT, expires: 9999-01-01}
"""
    with start_policyd(rules) as policyd:
        warnings = log_lines(policyd, "expire")
    assert len(warnings) == 1
    assert "rule 'gone' has expired on 2020-01-01" in warnings[0]
