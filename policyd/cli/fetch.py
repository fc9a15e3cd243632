"""`policyd fetch`: keeps the lists and databases with `from:` current."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from policyd.cli import Failure
from policyd.cli.options import RulesetName, rules_options
from policyd.cli.rules_in_force import is_behind, reload_data, rules_in_force
from policyd.config.files import UnreadableError
from policyd.fetch.run import Choice, NoSourceError
from policyd.fetch.run import fetch as fetch_lists

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command()
@rules_options
@click.option(
    "--list",
    "only",
    multiple=True,
    metavar="NAME",
    type=RulesetName("lists+databases"),
    help="Only this list, or this database (asn, country). Repeatable.",
)
@click.option("--force", is_flag=True, help="Fetch everything, even if it is not due or has not changed.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, but replace nothing.")
@click.option(
    "--accept",
    multiple=True,
    metavar="NAME",
    type=RulesetName("lists+databases"),
    help="Accept this list once without min_entries and max_change, or this database even if it is older or "
    "smaller. Repeatable.",
)
def fetch(
    config: str | None,
    rules: str | None,
    only: Sequence[str],
    force: bool,
    dry_run: bool,
    accept: Sequence[str],
) -> None:
    """Fetch the lists and databases that have a source (from:), and put good copies in force.

    A new copy replaces the old copy only if the ruleset in force loads with it and passes its tests. A list must also
    be complete, have enough entries, not have changed too much, and hold no reserved or protected network. A database
    must also have the needed kind, be no older than the old copy, and have at least half as many networks. Otherwise
    the old copy stays in force. The former copy is kept as FILE.previous. Exit status: 0 if nothing failed, 1 if a copy
    was refused or the reload failed.

    \b
    policyd fetch
    policyd fetch --list drop --force --dry-run
    policyd fetch --accept drop
    """
    in_force = rules_in_force(config, rules)
    try:
        outcome = fetch_lists(in_force.rules, Choice(only, force, dry_run, accept))
    except NoSourceError as error:
        raise click.BadParameter(str(error), param_hint="--list, --accept") from None
    except UnreadableError as error:
        raise Failure(str(error), 2) from None
    for line in outcome.messages:
        click.echo(line)
    for line in outcome.refused:
        click.echo(line, err=True)
    if outcome.changed or (not dry_run and is_behind(in_force, outcome.paths)):
        reload_data(in_force)
    if not outcome.messages and not outcome.refused:
        click.echo(f"no list or database in {Path(in_force.rules.path)} has from:")
    if outcome.refused:
        sys.exit(1)
