"""`policyd block` and `policyd allow`: list entries with an end, an author and a reason."""

from __future__ import annotations

import os
import pwd
import re
import time
from typing import TYPE_CHECKING, Any, TypeVar

import click

from policyd.cli import Failure
from policyd.cli.log_options import live_log, settings_of
from policyd.cli.options import rules_options
from policyd.cli.rules_in_force import reload_data, rules_in_force
from policyd.config.durations import YEAR, whole_duration
from policyd.config.files import UnreadableError
from policyd.core.printable import printable
from policyd.fetch.by_hand import LocalLists, Side, comment_of
from policyd.fetch.guards import RefusedError
from policyd.logs.files import LogError, rotated_set
from policyd.tools.decisions import lookup

if TYPE_CHECKING:
    from collections.abc import Callable

_Function = TypeVar("_Function")

_EVER = "ever"

# Maximum duration in seconds: ten years. `ever` is for longer entries.
_MAX_SECONDS = 10 * YEAR

# The form of a decision's id: eight letters and digits. A host name has a dot.
_ID = re.compile(r"[0-9A-Za-z]{8}")


def _duration(_context: click.Context, _parameter: click.Parameter, written: str) -> float | None:
    """Returns a duration in seconds, or None for `ever`."""
    if written == _EVER:
        return None
    seconds = whole_duration(written, "smhdw", 1, _MAX_SECONDS)
    if seconds is None:
        raise click.BadParameter(f"'{printable(written[:40])}' is not a duration; write 30m, 12h, 7d, 4w or ever")
    return seconds


def _options(default: str) -> Callable[[_Function], _Function]:
    """The options of both commands; `default` is the default of `--for`."""

    def decorate(function: _Function) -> _Function:
        decorated: Any = function
        for option in (
            click.option("--list", "is_list", is_flag=True, help="Print current entries, with end, author and reason."),
            click.option("--end", is_flag=True, help="Remove the entry."),
            click.option("--why", default="", metavar="TEXT", help="The reason, kept beside the entry."),
            click.option(
                "--for",
                "seconds",
                default=default,
                show_default=True,
                metavar="DURATION",
                callback=_duration,
                help="The time until the entry expires: 30m, 12h, 7d, 4w, or ever.",
            ),
        ):
            decorated = option(decorated)
        result: _Function = rules_options(decorated)
        return result

    return decorate


@click.command()
@_options("7d")
@click.argument("what", required=False, metavar="ADDRESS|NETWORK|NAME")
def block(*, what: str | None, **arguments: Any) -> None:
    """Block a client for a limited time: an address, a network, or a host name with the names under it.

    Writes a line with end, author and reason into a list of this host, if the rules in force load and pass their tests
    with the changed list, and makes the daemon read the list. An edited rules.yaml is not loaded. Refuses networks
    larger than a /8 (IPv6: /19), and entries that cover or lie in an entry of allowed-networks, own-networks or a list
    that never: names.

    \b
    policyd block 192.0.2.0/24 --for 12h --why 'bulk mail since midnight'
    policyd block --list
    policyd block --end 192.0.2.0/24
    """
    _run(Side.BLOCK, what, **arguments)


@click.command()
@_options("3d")
@click.argument("what", required=False, metavar="ADDRESS|NETWORK|NAME|ID")
def allow(*, what: str | None, **arguments: Any) -> None:
    """Let a client through for a limited time: an address, a network, a verified host name, or the client of a
    decision.

    For the ID of a decision (in parentheses in the bounce), it lets through the client's address if the deciding rule
    blocks by network; otherwise the client's verified name or, without one, its address. A sender is refused, because
    senders can be forged.

    \b
    policyd allow 7Q4K2M9X --why 'customer called'
    policyd allow mail.example.com --for 30d
    policyd allow --end mail.example.com
    """
    _run(Side.ALLOW, what, **arguments)


def _run(
    side: Side,
    what: str | None,
    *,
    config: str | None,
    rules: str | None,
    seconds: float | None,
    why: str,
    end: bool,
    is_list: bool,
) -> None:
    if is_list == (what is not None):
        raise click.UsageError("name a client, or give --list alone")
    in_force = rules_in_force(config, rules)
    try:
        lists = LocalLists(in_force.rules, side)
        if what is None:
            _print_entries(lists, side)
            return
        if end:
            click.echo(printable(f"no longer {side}: {lists.end(what)}"))
        else:
            if side is Side.ALLOW and _ID.fullmatch(what):
                what = _client_of(lists, what, config)
            until = None if seconds is None else time.time() + seconds
            click.echo(printable(f"{side}: {lists.add(what, until, comment_of(_user(), why))}"))
    except (RefusedError, UnreadableError) as error:
        raise Failure("\n".join(map(printable, f"policyd: {error}".split("\n"))), 1) from None
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise Failure(f"policyd: {place}{error.strerror or error}", 2) from None
    reload_data(in_force)


def _print_entries(lists: LocalLists, side: Side) -> None:
    entries = lists.entries()
    for entry in entries:
        click.echo(
            printable(f"{entry.what}  {'until ' + entry.end if entry.end else 'for ever'}  {entry.comment}".rstrip())
        )
    if not entries:
        click.echo(f"nothing is {side}")


def _client_of(lists: LocalLists, decision_id: str, config: str | None) -> str:
    """The client of a decision in the log that the settings name. Raises RefusedError."""
    try:
        found = lookup.find([decision_id], rotated_set(live_log(settings_of(config))))
    except LogError as error:
        raise Failure(f"policyd: {error}", 2) from None
    if not found:
        raise RefusedError(f"no decision has the id {decision_id}")
    return lists.entry_for_decision(found[-1])


def _user() -> str:
    """The name of the user who runs the command; under sudo, of the user who called sudo."""
    name = os.environ.get("SUDO_USER", "")
    if name:
        return name[:64]
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
