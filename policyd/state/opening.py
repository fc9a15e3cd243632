"""Opens the shared memory that the settings name, and reads its credentials."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policyd.config.settings import Settings
    from policyd.state.valkey import SharedMemory

_log = logging.getLogger(__name__)


def shared_memory(settings: Settings) -> SharedMemory | None:
    """Returns a client of the server in the setting `state`, None without it. The event loop must be running."""
    server = settings.state
    if server is None:
        return None
    from policyd.state.valkey import SharedMemory, connection_of  # noqa: PLC0415 - takes 60 ms, so only if it is used

    user, password = credentials(settings.state_credentials)
    connection = connection_of(
        host=server.host,
        port=server.port,
        path=server.path,
        database=server.database,
        tls=server.tls,
        user=user,
        password=password,
        timeout=settings.state_timeout,
    )
    return SharedMemory(connection, str(server), settings.state_timeout)


def credentials(path: str | None) -> tuple[str | None, str | None]:
    """Returns user and password: the first and second line of the file. A single line is the password.

    If the file cannot be read, this logs only a warning: a server that needs a password will refuse the connection, and
    then the process's own memory answers.
    """
    if path is None:
        return None, None
    if problem := credentials_problem(path):
        _log.warning("state_credentials: %s", problem)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None, None
    words = [line.strip() for line in lines if line.strip()]
    if len(words) == 1:
        return None, words[0]
    return (words[0], words[1]) if len(words) > 1 else (None, None)


def credentials_problem(path: str) -> str:
    """Returns the problem of a credentials file, with the remedy; empty if there is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        if Path(path).stat().st_mode & 0o077:
            return f"{path} can be read by others; chmod 600"
    except (OSError, UnicodeDecodeError) as error:
        return f"{path}: {getattr(error, 'strerror', None) or 'is not text'}"
    return "" if text.strip() else f"{path} is empty; write the password, or user and password in two lines"
