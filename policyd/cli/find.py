"""`policyd find`: decisions in a decision log, mails in a mail log."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from policyd.cli.log_options import (
    log_errors,
    log_paths,
    logs_argument,
    nothing_found,
    parse_time,
    settings_of,
    since_option,
)
from policyd.cli.options import json_option, rules_options
from policyd.config.load import load
from policyd.decision_log import reader
from policyd.decision_log.reader import LoggedDecision
from policyd.tools.decisions import find as find_tool
from policyd.tools.decisions import tail as tail_tool
from policyd.tools.decisions.networks import parse_networks
from policyd.tools.decisions.tally import MAX_VALUES, By
from policyd.tools.decisions.tally import tally as make_tally
from policyd.tools.display import reading, results

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policyd.tools.decisions.find import Found
    from policyd.tools.decisions.tally import Tally


@click.command()
@rules_options
@json_option
@click.option("--client", "clients", multiple=True, metavar="A", help="Only this address or network. May be repeated.")
@click.option("--suffix", default="", metavar="NAME", help="Only clients that have, or claim, NAME or a name under it.")
@click.option("--sender", default="", metavar="S", help="Only this envelope sender: an address, a domain, or <>.")
@click.option("--recipient", default="", metavar="R", help="Only this recipient: an address or a domain.")
@since_option
@click.option(
    "--until", metavar="T", callback=parse_time, help="Only before this time; the forms are those of --since."
)
@click.option(
    "--by",
    type=click.Choice([str(by) for by in By]),
    help="Print each distinct value of this field once, with its count, first and last time.",
)
@logs_argument
def find(
    *,
    config: str | None,
    rules: str | None,
    as_json: bool,
    clients: tuple[str, ...],
    suffix: str,
    sender: str,
    recipient: str,
    since: float | None,
    until: float | None,
    by: str | None,
    logs: tuple[str, ...],
) -> None:
    """Find decisions in the decision log, or mails in a mail log.

    LOG is policyd's decision log in either format, or the mail log of Postfix or sendmail; plain or compressed; `-` is
    standard input. Without LOG, the decision log that the settings name is read, with its rotated files.

    With --by, each distinct value is printed once, the most frequent first: count, first time, last time, value. A host
    name that did not verify is marked (unverified). Systems (--by asn) come from the decision log, or else from the
    databases of the ruleset (-c or --rules). A mail log has no systems, so it needs the ruleset.

    \b
    policyd find --client 192.0.2.25 --since 7d
    policyd find --suffix sakura.ne.jp --by hostname --since 2026-02-01 --until 2026-03-01 maillog
    policyd find --by sender_domain --json
    """
    try:
        networks = parse_networks(clients)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--client") from None
    needs_ruleset = by == By.ASN and (config is not None or rules is not None)
    ruleset = load(config, rules).ruleset if needs_ruleset else None
    search = find_tool.Search(networks, suffix, sender, recipient, since, until, ruleset=ruleset)
    with log_errors():
        paths = log_paths(logs, settings_of(config) if not logs else None)
        with reading(paths) as advance:
            if by is not None:
                tally = make_tally(paths, search, By(by), advance)
            else:
                found = _print_each(find_tool.every(paths, search, advance), as_json=as_json)
    if not (tally.found if by is not None else found):
        raise nothing_found("no decision and no mail", paths)
    if by is not None:
        _print_tally(tally, as_json=as_json)


def _print_each(found: Iterator[Found], *, as_json: bool) -> int:
    """Prints each result as it is found; returns their number."""
    count = 0
    console = results() if sys.stdout.isatty() else None
    for each in found:
        count += 1
        source = each.source
        if as_json:
            fields = reader.as_json(source) if isinstance(source, LoggedDecision) else find_tool.mail_as_json(source)
            click.echo(json.dumps(fields))
        elif console is not None and isinstance(source, LoggedDecision):
            console.print(tail_tool.as_line(source), soft_wrap=True)
        else:
            click.echo(find_tool.as_line(source))
    return count


def _print_tally(tally: Tally, *, as_json: bool) -> None:
    if as_json:
        rows = [
            {"value": each.value, "count": each.count, "first": each.first or None, "last": each.last or None}
            | ({} if each.verified else {"verified": False})
            for each in tally.counts()
        ]
        click.echo(json.dumps({"by": tally.by, "found": tally.found, "values": rows, "not_counted": tally.others}))
        return
    for lines in tally.lines():
        click.echo(lines, nl=False)
    if tally.others:
        click.echo(
            f"policyd: {tally.others:,} more, with values beyond the first {MAX_VALUES:,}, were not counted",
            err=True,
        )
