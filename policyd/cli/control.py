"""`policyd status`, `policyd reload` and `policyd forget`: ask the running daemon over its control socket.

Imports as little as possible, because a health check may run `policyd status` every few seconds.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

import click

from policyd import __version__
from policyd.cli import Failure
from policyd.cli.options import RulesetName, config_option, json_option
from policyd.config.control_path import control_path
from policyd.config.problems import counted
from policyd.control.client import ControlError, ask
from policyd.control.words import Command, ControlRequest
from policyd.core.address import parse_address
from policyd.core.normalize import fold_name
from policyd.core.printable import printable

# A host name in the form in which names are compared.
_NAME = re.compile(rb"(?=.{1,255}$)[a-z0-9_-]+(\.[a-z0-9_-]+)*")


@click.command()
@config_option
@json_option
@click.option("--alive", is_flag=True, help="Only ask whether the daemon answers: exit status 0 if it does, else 2.")
@click.option(
    "--counter",
    metavar="NAME",
    type=RulesetName("counters"),
    help="Print the ten keys of this counter that have the highest values.",
)
def status(config: str | None, as_json: bool, alive: bool, counter: str | None) -> None:
    """Show the state of the running daemon: version, mode, ruleset, the last reload, DNS, lists.

    Exit status: 0 if all is well, 1 if something needs attention (the last lines say what), 2 if the daemon cannot be
    asked. The daemon is asked over the control socket that the settings name (control:).

    \b
    policyd status
    policyd status --json | jq -r .ruleset
    policyd status --alive
    policyd status --counter mails-of-user
    """
    if alive and counter:
        raise click.UsageError("use --alive or --counter, not both")
    if counter:
        _print_highest(_ask(config, ControlRequest(Command.STATUS, counter=counter)), as_json=as_json)
        return
    if alive:
        _ask(config, ControlRequest(Command.ALIVE))
        return
    answer = _ask(config, ControlRequest(Command.STATUS))
    data, attention, notices = answer["data"], list(answer["attention"]), list(answer["notices"])
    if data["version"] != __version__:
        attention.append(f"version {__version__} is installed, and {data['version']} runs; restart policyd")
    if as_json:
        output = {**data, "installed_version": __version__, "attention": attention, "notices": notices}
        click.echo(json.dumps(output, indent=2))
    else:
        _print_status(answer["lines"], attention, notices, observes=data["mode"] == "observe")
    if attention:
        sys.exit(1)


@click.command("reload")
@config_option
@click.option(
    "--data",
    is_flag=True,
    help="Read list files and databases only, for the rules in force; edited rules and settings are not loaded.",
)
def reload(config: str | None, data: bool) -> None:
    """Make the running daemon load settings, rules and lists again, and wait until it has.

    Prints the ruleset now in force, and the changes. If there is an error, nothing changes: every error is printed,
    with file, line and column, and the exit status is 1. It is 2 if the daemon cannot be asked.

    \b
    policyd reload
    policyd reload --data
    """
    answer = _ask(config, ControlRequest(Command.RELOAD, data=data))
    if not answer["ok"]:
        for line in answer["errors"]:
            click.echo(printable(line), err=True)
        raise Failure(f"policyd: reload failed: ruleset {answer['ruleset']} stays in force", 1)
    for warning in answer["warnings"]:
        click.echo(printable(warning), err=True)
    print_left_alone(answer["left_alone"])
    click.echo(printable(f"reloaded: {answer['summary']}"))
    for change in answer["changes"] or ["nothing changed"]:
        click.echo(printable(f"  {change}"))


@click.command()
@config_option
@click.option(
    "--counter",
    metavar="NAME",
    type=RulesetName("counters"),
    help="Reset a key of this counter; give each part of the key (per:) as an argument.",
)
@click.option("--greylist", is_flag=True, help="Forget that the network of an address has passed greylisting.")
@click.argument("parts", metavar="ADDRESS|NAME|KEY...", nargs=-1, required=True)
def forget(config: str | None, counter: str | None, greylist: bool, parts: tuple[str, ...]) -> None:
    """Make the running daemon forget DNS answers about a client, a counter's key, or that a client passed greylisting.

    If a sender has repaired its reverse DNS, give the client's address or name. With a name, every client that has or
    claims the name, or a name under it, is forgotten. The next mail asks DNS again. The cache of your DNS resolver is
    not touched; for unbound, run unbound-control flush NAME.

    If a user's password has been changed, give the counter and the user. A shared memory (state:) forgets as well.

    \b
    policyd forget 192.0.2.25
    policyd forget mail.example.com
    policyd forget --counter mails-of-user alice
    policyd forget --greylist 192.0.2.25
    """
    if counter and greylist:
        raise click.UsageError("use --counter or --greylist, not both")
    if len(parts) > 1 and not counter:
        raise click.UsageError("give one address or name; a key of several parts belongs to --counter")
    what = "\n".join(parts)
    if counter or greylist:
        answer = _ask(config, ControlRequest(Command.FORGET, what=what, counter=counter or "", greylist=greylist))
        click.echo(printable(f"{'forgot' if answer['forgotten'] else 'nothing to forget:'} {answer['name']}"))
        return
    raw = os.fsencode(what)
    if parse_address(raw) is None and not _NAME.fullmatch(fold_name(raw)):
        raise click.BadParameter(
            f"'{printable(what)}' is neither an address nor a host name", param_hint="ADDRESS|NAME"
        )
    answer = _ask(config, ControlRequest(Command.FORGET, what=what))
    if answer["clients"]:
        click.echo(f"forgot {counted(answer['clients'], 'client')}: {printable(what)}")
    elif answer.get("listed"):  # a daemon of version 0.2.0 does not say it
        click.echo(f"forgot the answers of DNS lists: {printable(what)}")
    else:
        click.echo(f"nothing is cached for {printable(what)}")


def print_left_alone(paths: list[str]) -> None:
    """Prints the edited files that a reload of the data did not load."""
    for path in paths:
        click.echo(printable(f"{path} has been edited since it was loaded; left alone (policyd reload loads it)"))


def _ask(config: str | None, request: ControlRequest) -> dict[str, Any]:
    path = control_path(config)
    if path is None:
        raise Failure(
            f"policyd: {config} names no control socket; add the line control: /run/policyd/control.sock, and restart "
            "policyd",
            2,
        )
    try:
        answer = ask(path, request)
    except ControlError as error:
        raise Failure(f"policyd: {error}", 2) from None
    if not answer["ok"] and request.command is not Command.RELOAD:
        raise Failure("\n".join(printable(f"policyd: {error}") for error in answer["errors"]), 2)
    return answer


def _print_highest(answer: dict[str, Any], *, as_json: bool) -> None:
    """Prints a line for each key, with its count."""
    if as_json:
        click.echo(json.dumps({name: answer[name] for name in ("counter", "per", "keys")}, indent=2))
        return
    if not answer["keys"]:
        click.echo(printable(f"counter {answer['counter']} has counted nothing within its window"))
        return
    click.echo(printable(f"{'count':>9}  {' '.join(answer['per'])}"))
    for key in answer["keys"]:
        click.echo(printable(f"{key['count']:>9,}  {' '.join(key['key'])}"))


def _print_status(lines: list[tuple[str, str]], attention: list[str], notices: list[str], *, observes: bool) -> None:
    """Prints labels and texts in two columns, then notices, then in red the points that need attention."""
    width = max(len(label) for label, _ in lines)
    for number, (label, text) in enumerate(lines):
        is_red = number == 0 and observes
        click.secho(printable(f"{label:<{width}}  {text}"), fg="red" if is_red else None, bold=is_red)
    for notice in notices:
        click.echo(printable(f"notice: {notice}"))
    for line in attention:
        click.secho(printable(f"attention: {line}"), fg="red")
