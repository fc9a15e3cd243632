"""The daemon for the field tests: `policyd serve` as a process, as an init system would run it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

import yaml

from tests.field.waiting import PATIENCE_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def serve_in_vain(
    *arguments: str | Path, cwd: Path, wrapper: Sequence[str] = (), pass_fds: Sequence[int] = ()
) -> subprocess.CompletedProcess[str]:
    """Runs `policyd serve`, which must end by itself. `wrapper` is a command that runs the command after it."""
    return subprocess.run(
        [*wrapper, sys.executable, "-m", "policyd", "serve", *arguments],
        cwd=cwd,
        pass_fds=pass_fds,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


class Policyd:
    """One daemon with its settings, rules and logs in a folder, running between `__enter__` and `__exit__`.

    `settings` are keys of policyd.yaml; the decision log is `decisions.log` in the folder.
    With `listener`, a listening socket, the daemon gets it as systemd would pass it (sd_listen_fds(3)), and the
    socket outlives the daemon. `wrapper` is a command that runs the command after it; `patience` is the timeout of a
    start or a reload in seconds; `program` is the command that runs policyd.
    """

    def __init__(
        self,
        folder: Path,
        rules: str,
        *,
        listener: socket.socket | None = None,
        wrapper: Sequence[str] = (),
        decision_log_format: str = "json",
        patience: float = PATIENCE_SECONDS,
        program: Sequence[str] = (sys.executable, "-m", "policyd"),
        **settings: Any,
    ) -> None:
        self.rules = folder / "rules.yaml"
        self.settings = folder / "policyd.yaml"
        self.decision_log = folder / "decisions.log"
        self.operational_log = folder / "policyd.log"
        self._listener = listener
        self._wrapper = wrapper
        self._patience = patience
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._notify_path = folder / "notify"
        self.rules.write_text(rules)
        self.settings.write_text(
            yaml.safe_dump(
                {
                    "rules": str(self.rules),
                    "decision_log": {"path": str(self.decision_log), "format": decision_log_format},
                    **settings,
                }
            )
        )
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(self._notify_path))
        self._notified.setblocking(False)

    @property
    def pid(self) -> int:
        """The process id of the running daemon."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            if self._process is not None:
                self.kill()
            self._notified.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self._notified.close()

    def start(self) -> None:
        """Starts the daemon and waits until it notifies readiness (sd_notify(3))."""
        command = [*self._wrapper, *self._program, "serve", "-c", str(self.settings)]
        inherited: tuple[int, ...] = ()
        if self._listener is not None:
            # systemd passes sockets from descriptor 3 on, and LISTEN_PID names the process that they are for.
            number = self._listener.fileno()
            script = f'export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@" 3<&{number} {number}<&-'
            command = ["bash", "-c", script, "bash", *command]
            inherited = (number,)
        with self.operational_log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=inherited,
                env={**os.environ, "NOTIFY_SOCKET": str(self._notify_path)},
            )
        self._wait_for("READY=1")

    def stop(self) -> None:
        """Ends the daemon as systemd does, and requires a clean end."""
        if self._process is not None:
            self._process.terminate()
            try:
                status = self._process.wait(timeout=PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            self._process = None
            assert status == 0, f"exit status {status}\n{self.operational_log.read_text()}"

    def kill(self) -> None:
        """Ends the daemon as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(timeout=PATIENCE_SECONDS)
        self._process = None

    def reload(self) -> str:
        """Reloads, waits for the end of the reload, and returns what the daemon has logged during it."""
        before = self.operational_log.stat().st_size
        os.kill(self.pid, signal.SIGHUP)
        self._wait_for("RELOADING=1")
        self._wait_for("READY=1")
        return self.operational_log.read_bytes()[before:].decode()

    def _wait_for(self, assignment: str) -> None:
        until(f"{assignment} from policyd", lambda: self._is_notified_of(assignment), self._patience)

    def _is_notified_of(self, assignment: str) -> bool | None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"policyd has ended:\n{self.operational_log.read_text()}")
        try:
            return assignment in self._notified.recv(4096).decode().splitlines() or None
        except BlockingIOError:
            return None

    def decisions(self, count: int = 1, **wanted: str) -> list[dict[str, Any]]:
        """The decisions in the log whose keys have these values; waits until there are at least `count`."""

        def found() -> list[dict[str, Any]] | None:
            written, _, _ = self.decision_log.read_bytes().rpartition(b"\n")  # the last line may be incomplete
            logged = [json.loads(line) for line in written.splitlines()]
            matching = [each for each in logged if wanted.items() <= each.items()]
            return matching if len(matching) >= count else None

        return until(f"{count} decisions with {wanted}", found)
