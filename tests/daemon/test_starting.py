"""Starting a daemon, failures to start, its addresses, and notifications to systemd."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.client import Client
from tests.daemon.conftest import BULK, LATER, RULES, StartPolicyd, children
from tests.field.policyd import serve_in_vain
from tests.field.waiting import PATIENCE_SECONDS, until
from tests.ports import free_port

pytestmark = pytest.mark.slow  # starts programs

# Sends the daemon a signal before it is ready to handle one.
EARLY_SIGNAL = """
import os, sys
def send(event, arguments):
    if event == "import" and arguments[0] == "policyd.daemon.main":
        os.kill(os.getpid(), int(os.environ["EARLY_SIGNAL"]))
sys.addaudithook(send)
"""


@pytest.fixture
def early_signal(run_before_python: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def choose(number: int) -> None:
        run_before_python(EARLY_SIGNAL)
        monkeypatch.setenv("EARLY_SIGNAL", str(int(number)))

    return choose


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_start_ends_the_daemon_with_status_0(
    tmp_path: Path, early_signal: Callable[[int], None], number: int
) -> None:
    early_signal(number)
    (tmp_path / "rules.yaml").write_text(RULES)
    ended = serve_in_vain("--rules", "rules.yaml", "--listen", "unix:s", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_reload_requested_during_the_start_happens_after_the_start(
    early_signal: Callable[[int], None], start_policyd: StartPolicyd
) -> None:
    early_signal(signal.SIGHUP)
    with start_policyd() as policyd:
        until("the reload", lambda: "reloaded: " in policyd.operational_log.read_text() or None)


@pytest.mark.parametrize(
    ("files", "arguments", "status", "messages"),
    [
        (
            {"rules.yaml": "rules:\n  - {name: a, match: {hostname_sufix: x.example}, action: REJECT}\n  - 7\n"},
            ["--rules", "rules.yaml"],
            1,
            [
                "rules.yaml:2:23: rule 'a': unknown condition 'hostname_sufix'; did you mean 'hostname_suffix'?",
                ":3:5: ",
            ],
        ),
        ({}, ["--rules", "rules.yaml"], 2, ["rules.yaml: "]),
        ({"rules.yaml": ""}, ["--rules", "rules.yaml"], 1, ["rules.yaml"]),
        (
            {"rules.yaml": RULES, "policyd.yaml": "limits: {conections: 5}\n"},
            ["-c", "policyd.yaml"],
            1,
            ["unknown key 'conections'"],
        ),
        ({"rules.yaml": RULES}, ["--rules", "rules.yaml", "--listen", "tcp:1"], 2, ["'tcp:1' is not an address"]),
        (
            {"rules.yaml": RULES, "taken": "a file"},
            ["--rules", "rules.yaml", "--listen", "unix:taken"],
            2,
            ["cannot listen on unix:taken: the path exists and is not a socket"],
        ),
        (
            {"rules.yaml": RULES},
            ["--rules", "rules.yaml", "--listen", "unix:missing/socket"],
            2,
            ["cannot listen on unix:missing/socket: No such file or directory"],
        ),
        (
            {"rules.yaml": RULES, "policyd.yaml": "listen: [unix:s]\nsocket_group: no-such-group\n"},
            ["-c", "policyd.yaml"],
            2,
            ["socket_group: there is no group 'no-such-group' on this host"],
        ),
        (
            {"rules.yaml": RULES, "policyd.yaml": "listen: [unix:s]\nmetrics: 192.0.2.1:9\n"},
            ["-c", "policyd.yaml"],
            2,
            ["cannot listen on inet:192.0.2.1:9: "],
        ),
    ],
)
def test_errors_at_the_start_are_printed_and_set_the_exit_status(
    files: dict[str, str], arguments: list[str], status: int, messages: list[str], tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    ended = serve_in_vain(*arguments, cwd=tmp_path)
    assert ended.returncode == status
    assert ended.stdout == ""
    for message in messages:
        assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "taken").exists() == ("taken" in files)


def test_an_address_in_use_prevents_the_start(start_policyd: StartPolicyd, port: int, tmp_path: Path) -> None:
    with start_policyd():
        ended = serve_in_vain("--rules", "rules.yaml", "--listen", f"inet:127.0.0.1:{port}", cwd=tmp_path)
    assert ended.returncode == 2
    assert (
        f"cannot listen on inet:127.0.0.1:{port}: Address already in use; is policyd running already?" in ended.stderr
    )


def test_too_few_descriptors_prevent_the_start(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(RULES)
    ended = serve_in_vain("--rules", "rules.yaml", cwd=tmp_path, wrapper=["prlimit", "--nofile=60"])
    assert ended.returncode == 2
    assert "at most 60 descriptors may be open" in ended.stderr


# --- Sockets ----------------------------------------------------------------------------------------------------------


def test_the_daemon_listens_on_ipv4_ipv6_and_a_unix_socket(
    start_policyd: StartPolicyd, port: int, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    listen = [f"inet:127.0.0.1:{port}", f"inet:[::1]:{port}", f"unix:{path}"]
    with start_policyd(listen=listen, socket_mode="0666", socket_group=str(os.getgid())) as policyd:
        with Client(port) as one, Client(port, "::1") as two, Client(path) as three:
            assert {one.ask(BULK), two.ask(BULK), three.ask(BULK)} == {LATER}
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert all(f"listening on {address}" in policyd.operational_log.read_text() for address in listen)
    assert not path.exists()


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(start_policyd: StartPolicyd, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    with start_policyd(listen=[f"unix:{path}"]), Client(path) as client:
        assert client.ask(BULK) == LATER
        ended = serve_in_vain("--rules", "rules.yaml", "--listen", f"unix:{path}", cwd=tmp_path)
        assert ended.returncode == 2
        assert f"cannot listen on unix:{path}: another process serves it" in ended.stderr
        assert client.ask(BULK) == LATER
        with Client(path) as other:
            assert other.ask(BULK) == LATER


def test_the_socket_of_a_successor_is_not_removed(start_policyd: StartPolicyd, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with start_policyd(listen=[f"unix:{path}"]):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))
    assert path.exists()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_socket_passed_by_systemd_replaces_those_of_the_settings(
    start_policyd: StartPolicyd, port: int, tmp_path: Path, family: socket.AddressFamily
) -> None:
    with socket.socket(family) as passed:
        passed.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "socket"))
        passed.listen()
        place = passed.getsockname()[1] if family == socket.AF_INET else tmp_path / "socket"
        with start_policyd(listener=passed) as policyd:
            with Client(place) as client:
                assert client.ask(BULK) == LATER
            with pytest.raises(ConnectionRefusedError):
                Client(port)
            policyd.stop()
            with Client(place) as waiting:  # in the kernel's queue, until there is a daemon again
                waiting.send(BULK)
                policyd.start()
                assert waiting.answer() == LATER


def test_a_descriptor_from_systemd_must_be_a_listening_stream_socket(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(RULES)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        number = datagrams.fileno()
        for redirection, complaint in (
            ("3</dev/null", "is not a socket"),
            (f"3<&{number}", "is not a listening stream socket"),
        ):
            script = f'export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@" {redirection}'
            ended = serve_in_vain(cwd=tmp_path, wrapper=["bash", "-c", script, "bash"], pass_fds=[number])
            assert ended.returncode == 2
            assert f"descriptor 3 from systemd {complaint}" in ended.stderr


def test_a_reachable_listener_and_root_cause_warnings(start_policyd: StartPolicyd, port: int) -> None:
    with start_policyd(listen=[f"inet:0.0.0.0:{port}", f"inet:127.0.0.1:{free_port()}"]) as policyd:
        warnings = [line for line in policyd.operational_log.read_text().splitlines() if ": warning: " in line]
    assert any(f"inet:0.0.0.0:{port} can be reached from other hosts" in line for line in warnings)
    assert not any("127.0.0.1" in line for line in warnings)
    assert any("running as root" in line for line in warnings) == (os.geteuid() == 0)


# --- systemd ----------------------------------------------------------------------------------------------------------


def test_systemd_is_notified_of_each_step(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(b"")  # an abstract name of the kernel's choice (unix(7), autobind)
        notified.settimeout(PATIENCE_SECONDS)
        name = notified.getsockname()[1:].decode()
        environment = {**os.environ, "NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "200000"}
        environment.pop("WATCHDOG_PID", None)
        process = subprocess.Popen(
            [sys.executable, "-m", "policyd", "serve", "--rules", "rules.yaml", "--listen", "unix:socket"],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def next_notification() -> dict[str, str]:
            while True:
                notification = dict(line.split("=", 1) for line in notified.recv(4096).decode().splitlines())
                if "WATCHDOG" not in notification:
                    return notification

        try:
            notification = next_notification()
            assert notification["READY"] == "1"
            assert notification["STATUS"].startswith("ruleset ")
            assert "3 rules" in notification["STATUS"]
            assert notified.recv(4096) == b"WATCHDOG=1"
            before = time.monotonic_ns() // 1000
            rules.write_text("rules: 7")
            process.send_signal(signal.SIGHUP)
            notification = next_notification()
            assert notification["RELOADING"] == "1"
            assert before <= int(notification["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
            notification = next_notification()
            assert notification["READY"] == "1"
            assert "reload failed" in notification["STATUS"]
            rules.write_text(f"mode: observe\n{RULES}")
            process.send_signal(signal.SIGHUP)
            next_notification()
            assert next_notification()["STATUS"].endswith(" s; mode: observe, so every answer is DUNNO")
            rules.write_text("rules: 7")
            process.send_signal(signal.SIGHUP)
            next_notification()
            assert "(mode: observe, every answer is DUNNO) stays in force" in next_notification()["STATUS"]
            (loader,) = children(process.pid)
            os.kill(loader, signal.SIGKILL)
            notification = next_notification()
            assert "READY" not in notification
            assert notification["STATUS"].startswith("the loading process has ended (killed by SIGKILL")
            process.terminate()
            assert next_notification()["STOPPING"] == "1"
            assert process.wait(timeout=PATIENCE_SECONDS) == 0
        finally:
            process.kill()
            process.wait()
