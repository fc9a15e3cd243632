"""Real Redis and Valkey servers for tests, each on its own unix socket."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

from policyd.state.valkey import SharedMemory, connection_of

if TYPE_CHECKING:
    from pathlib import Path

PROGRAMS = [program for program in ("redis-server", "valkey-server") if shutil.which(program)]


class StateServer:
    """One server, started on a unix socket in a folder, without persistence."""

    def __init__(self, folder: Path, program: str = "redis-server", *options: str) -> None:
        self.folder = folder
        self.socket = folder / "state.sock"
        self.program = program
        self._options = options
        self._memories: list[SharedMemory] = []
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Starts the server without data, and waits until it listens."""
        self.socket.unlink(missing_ok=True)
        settings = ["--port", "0", "--unixsocket", str(self.socket), "--save", "", "--dir", str(self.folder)]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen([self.program, *settings, *self._options], stdout=log, stderr=log)
        until = time.monotonic() + 10
        while not self._listens():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < until, "the server does not listen"
            time.sleep(0.01)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:  # the socket exists before the server listens
            try:
                client.connect(str(self.socket))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            return True

    def memory(self, timeout: float = 2.0, **options: Any) -> SharedMemory:
        """A memory on this server; `close_memories` closes it if the test does not."""
        connection = connection_of(path=str(self.socket), timeout=timeout, **options)
        opened = SharedMemory(connection, "valkey", timeout)
        self._memories.append(opened)
        return opened

    async def close_memories(self) -> None:
        """Closes all memories on this server."""
        while self._memories:
            await self._memories.pop().close()

    def stop(self) -> None:
        """Ends the server at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def command(self, *words: str) -> str:
        """Runs a command with the server's own client."""
        client = self.program.replace("-server", "-cli")
        return subprocess.run(
            [client, "-s", str(self.socket), *words], check=True, capture_output=True, text=True
        ).stdout
