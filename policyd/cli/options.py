"""Options of several commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

import click

_Function = TypeVar("_Function")

# The settings of every command without -c and --rules, if the file exists (docs/settings.md).
DEFAULT_CONFIG = "/etc/policyd/policyd.yaml"


class RulesetName(click.types.StringParamType):
    """A name in the ruleset, which a shell completes.

    `section` is a section of the ruleset, or several joined by `+` (policyd.config.names); with a `=` after it, a value
    follows the name.
    """

    def __init__(self, section: str) -> None:
        self.section = section


class Suggested(click.types.StringParamType):
    """Text that often begins with one of these words, which a shell completes."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words


def rules_options(function: _Function) -> _Function:
    """`-c` and `--rules`: the settings and the ruleset; without either, the installed ones."""
    rules: Any = click.option(
        "--rules",
        metavar="FILE",
        is_eager=True,  # _config reads it
        help="The ruleset, instead of the one that the settings name.",
    )
    decorated: _Function = config_option(rules(function))
    return decorated


def config_option(function: _Function) -> _Function:
    """`-c`: the settings; without it, the installed ones."""
    option: Any = click.option(
        "-c",
        "--config",
        metavar="FILE",
        callback=_config,
        help=f"Settings (policyd.yaml).  [default: {DEFAULT_CONFIG}, if it exists]",
    )
    decorated: _Function = option(function)
    return decorated


def json_option(function: _Function) -> _Function:
    """`--json`: output for programs."""
    option: Any = click.option("--json", "as_json", is_flag=True, help="Write JSON, for programs.")
    decorated: _Function = option(function)
    return decorated


def _config(context: click.Context, _parameter: click.Parameter, written: str | None) -> str | None:
    """The settings file of a command: the one given, or the installed one if no ruleset is given either."""
    if context.resilient_parsing:  # no command is run: a manual page or a shell reads the options
        return written
    if written is not None or context.params.get("rules") is not None or not _exists(DEFAULT_CONFIG):
        return written
    if context.info_name in _WORK_WITHOUT_SETTINGS and not os.access(DEFAULT_CONFIG, os.R_OK):
        click.echo(f"policyd: continuing without {DEFAULT_CONFIG}, which this user may not read", err=True)
        return None
    if "rules" in context.params:  # the result depends on the ruleset, so say which is used
        click.echo(f"policyd: using {DEFAULT_CONFIG}", err=True)
    return DEFAULT_CONFIG


# Commands that need only a log, which members of the group adm may read, unlike /etc/policyd.
_WORK_WITHOUT_SETTINGS = frozenset({"find", "stats", "tail", "lookup", "report", "suggest"})


def _exists(path: str) -> bool:
    """Whether the file exists, even in a folder that this user may not enter."""
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
