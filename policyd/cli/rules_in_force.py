"""Gets the rules in force, from the daemon or the files on disk, and reloads lists that a command has changed."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from policyd.cli import Failure
from policyd.cli.control import print_left_alone
from policyd.config.control_path import control_path
from policyd.config.databases import MAX_DATABASE_BYTES
from policyd.config.files import OversizedError, UnreadableError, read_file
from policyd.config.in_force import Text, file_hash
from policyd.config.load import load_settings
from policyd.control.client import ControlError, ask
from policyd.control.words import Command, ControlRequest
from policyd.core.printable import printable
from policyd.fetch.guards import Rules

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class InForce:
    """The rules in force, and the control socket; without a daemon, `control` is None, and `reason` says why."""

    rules: Rules
    control: str | None
    reason: str = ""


def rules_in_force(config: str | None, rules: str | None) -> InForce:
    """Asks the daemon for the rules text in force; without a daemon, or with `rules`, the file on disk is used."""
    if rules is not None:
        return InForce(Rules(rules, None), None, "--rules names a file")
    path = control_path(config)
    reason = "the settings name no control socket"
    if path is not None:
        try:
            answer = ask(path, ControlRequest(Command.RULES))
        except ControlError as error:
            reason = str(error)
        else:
            if answer["ok"]:
                return InForce(Rules(answer["path"], Text(answer["rules"].encode(), time.time())), path)
            reason = "; ".join(answer["errors"])
    on_disk = load_settings(config).rules
    if on_disk is None:
        raise Failure("policyd: name the settings with -c, or the rules file with --rules", 2)
    return InForce(Rules(on_disk, None), None, reason)


def is_behind(in_force: InForce, paths: Iterable[str]) -> bool:
    """Whether the daemon has loaded another copy of any of these files; False if it cannot be asked.

    A daemon is behind after a fetch that was killed before its reload, or whose reload failed.
    """
    if in_force.control is None:
        return False
    try:
        answer = ask(in_force.control, ControlRequest(Command.STATUS))
    except ControlError:
        return False
    if not answer["ok"]:
        return False
    data = answer["data"]
    loaded = {file["path"]: file["hash"] for file in (*data["lists"], *data["databases"])}
    for path in paths:
        try:
            on_disk = file_hash(read_file(path, MAX_DATABASE_BYTES))
        except (UnreadableError, OversizedError):
            continue  # missing or unreadable: a reload would not help
        if loaded.get(path, on_disk) != on_disk:
            return True
    return False


def reload_data(in_force: InForce) -> None:
    """Makes the daemon read the lists again, and prints the changes. Exits with status 1 if the reload fails."""
    if in_force.control is None:
        click.echo(
            printable(f"not reloaded: {in_force.reason}; the next start or reload applies the changes"), err=True
        )
        return
    try:
        answer = ask(in_force.control, ControlRequest(Command.RELOAD, data=True))
    except ControlError as error:
        raise Failure(f"policyd: not reloaded: {error}", 1) from None
    if not answer["ok"]:
        for line in answer["errors"]:
            click.echo(printable(line), err=True)
        click.echo("policyd: reload failed: the daemon keeps the lists that it has", err=True)
        sys.exit(1)
    print_left_alone(answer["left_alone"])
    for change in answer["changes"] or ["nothing changed"]:
        click.echo(printable(f"reloaded: {change}"))
