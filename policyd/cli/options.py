"""Options that several commands share, so that they read and mean the same everywhere."""

from __future__ import annotations

from typing import Any, TypeVar

import click

_Function = TypeVar("_Function")


def rules_options(function: _Function) -> _Function:
    """`-c` and `--rules`: which settings and which ruleset."""
    config: Any = click.option(
        "-c", "--config", metavar="FILE", help="Settings (policyd.yaml). Without it, every setting has its default."
    )
    rules: Any = click.option("--rules", metavar="FILE", help="The ruleset, instead of the one that the settings name.")
    decorated: _Function = config(rules(function))
    return decorated


def json_option(function: _Function) -> _Function:
    """`--json`: for programs."""
    option: Any = click.option("--json", "as_json", is_flag=True, help="Write JSON, for programs.")
    decorated: _Function = option(function)
    return decorated
