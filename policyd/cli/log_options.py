"""LOG, --since and the errors of the commands that read logs."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, TypeVar

import click

from policyd.cli import Failure
from policyd.config.load import load_settings
from policyd.logs.files import STANDARD_INPUT, LogError, in_order, rotated_set
from policyd.logs.timestamps import parse_since

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policyd.config.settings import Settings

_Function = TypeVar("_Function")


def logs_argument(function: _Function) -> _Function:
    """`[LOG]...`: without it, the log that the settings name, with its rotated files."""
    argument: Any = click.argument("logs", nargs=-1, metavar="[LOG]...")
    decorated: _Function = argument(function)
    return decorated


def required_logs_argument(function: _Function) -> _Function:
    """`LOG...`: at least one."""
    argument: Any = click.argument("logs", nargs=-1, required=True, metavar="LOG...")
    decorated: _Function = argument(function)
    return decorated


def since_option(function: _Function) -> _Function:
    """`--since T`, as Unix seconds."""
    option: Any = click.option(
        "--since",
        metavar="T",
        callback=parse_time,
        help="Only from this time on: 7d, 12h, 2026-11-21 or 2026-11-21T17:00.",
    )
    decorated: _Function = option(function)
    return decorated


def parse_time(_context: click.Context, _parameter: click.Parameter, written: str | None) -> float | None:
    """The value of a time option, as Unix seconds."""
    try:
        return None if written is None else parse_since(written, time.time())
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def settings_of(config: str | None) -> Settings | None:
    """The settings of a command that also works without them; None without `-c`, if none are installed."""
    return load_settings(config) if config is not None else None


def live_log(settings: Settings | None) -> str:
    """The decision log that the settings name."""
    if settings is None:
        raise click.UsageError("name the LOG, or the settings that name it with -c")
    path = settings.decision_log.path
    if path == STANDARD_INPUT:
        raise click.UsageError(
            "the settings send decisions to standard output; name the LOG, or pipe it: journalctl -u policyd -o cat |"
        )
    return path


def log_paths(logs: tuple[str, ...], settings: Settings | None) -> list[str]:
    """The logs to read, oldest first."""
    return in_order(logs) if logs else rotated_set(live_log(settings))


def nothing_found(what: str, paths: list[str]) -> Failure:
    """Returns the error, with exit status 1, for logs in which nothing was found."""
    return Failure(f"policyd: {what} in {', '.join(paths)}", 1)


@contextlib.contextmanager
def log_errors() -> Iterator[None]:
    """Ends a command with one line and exit status 2 if a log cannot be read."""
    try:
        yield
    except LogError as error:
        raise Failure(f"policyd: {error}", 2) from None
