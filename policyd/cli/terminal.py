"""Prints tables and JSON to a terminal, a file or a pipe."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from rich.console import Console, RenderableType

# Width without a terminal: wide enough that nothing is folded.
_NO_TERMINAL = 4096


def print_tables(*tables: RenderableType) -> None:
    """Prints tables with empty lines between them: in colour and folded on a terminal, otherwise plain."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _NO_TERMINAL)
    for number, table in enumerate(tables):
        if number:
            click.echo()
        with console.capture() as capture:
            console.print(table)
        for line in capture.get().splitlines():
            click.echo(line.rstrip(), color=True)


def print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")
