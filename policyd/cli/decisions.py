"""`policyd stats`, `tail`, `lookup` and `report`: show the decisions of a log; `report` also reads a mail log."""

from __future__ import annotations

import datetime
import json
import mailbox
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from policyd.cli import Failure
from policyd.cli.log_options import (
    live_log,
    log_errors,
    log_paths,
    logs_argument,
    nothing_found,
    settings_of,
    since_option,
)
from policyd.cli.options import RulesetName, config_option, json_option, rules_options
from policyd.cli.terminal import print_json, print_tables
from policyd.config.conditions import Form
from policyd.config.dates import utc_today
from policyd.config.entries import fold_owner
from policyd.config.entry_messages import explain_entry
from policyd.config.load import load
from policyd.core.engine import decide
from policyd.core.facts import Facts, Greylisted, Needs
from policyd.core.ruleset import Verb
from policyd.decision_log import reader
from policyd.decision_log.lists import parse_answers
from policyd.logs.decisions import mail_log_hint
from policyd.logs.files import STANDARD_INPUT
from policyd.memory.counting import first_counts
from policyd.tools.decisions import abuse_report
from policyd.tools.decisions import lookup as lookup_tool
from policyd.tools.decisions import tail as tail_tool
from policyd.tools.decisions.networks import parse_networks
from policyd.tools.display import reading, results
from policyd.tools.explain import as_json as explanation_as_json
from policyd.tools.explain import as_tables, explain
from policyd.tools.stats import collect as statistics
from policyd.tools.stats import html as stats_page
from policyd.tools.stats import output as stats_report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policyd.config.load import Loaded
    from policyd.decision_log.reader import LoggedDecision
    from policyd.tools.explain import Explanation

_DEFAULT_LINES = 10

# Maximum characters of standard input that are searched for an id.
_MAX_PASTED = 1 << 20


@click.command()
@rules_options
@json_option
@since_option
@click.option(
    "--html", metavar="FILE", help="Write a page with plots for a browser; the page loads nothing from elsewhere."
)
@logs_argument
def stats(
    *,
    config: str | None,
    rules: str | None,
    as_json: bool,
    since: float | None,
    html: str | None,
    logs: tuple[str, ...],
) -> None:
    """Summarize the decision log: actions over time, rules, networks, names.

    LOG is policyd's decision log in either format, plain or compressed, or a journal that has it; `-` is standard
    input. Without LOG, the log that the settings name (-c) is read, with its rotated files. With a ruleset (-c or
    --rules), its rules that never matched are named.

    "Also delivered" counts the mails, by sender and recipient, that a rule refused and that passed at another time or
    from another client: a rule that refuses nothing else is useless, or blocks wanted mail.

    \b
    policyd stats --since 7d
    policyd stats --html stats.html decisions.log*
    """
    loaded = _loaded(config, rules)
    with log_errors():
        paths = log_paths(logs, loaded.settings if loaded is not None else None)
        with reading(paths) as advance:
            found = statistics.collect(
                paths, since=since, ruleset=loaded.ruleset if loaded is not None else None, advance=advance
            )
    if not found.decisions:
        raise nothing_found("no decision", paths)
    if html is not None:
        _write(html, stats_page.page(found))
    if as_json:
        print_json(stats_report.stats_as_json(found))
    elif html is None:
        stats_report.print_stats(results(), found)


@click.command()
@config_option
@json_option
@click.option(
    "--action",
    "actions",
    multiple=True,
    type=click.Choice([str(verb) for verb in Verb], case_sensitive=False),
    help="Only decisions with this action, even if mode: observe did not send it. May be given several times.",
)
@click.option(
    "--rule",
    "names",
    multiple=True,
    metavar="R",
    type=RulesetName("rules"),
    help="Only this rule, including matches that were only observed.",
)
@click.option("--client", "networks", multiple=True, metavar="CIDR", help="Only clients in this network.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    default=_DEFAULT_LINES,
    show_default=True,
    help="Number of earlier lines to show first.",
)
@click.option("--no-follow", is_flag=True, help="End at the end of the log.")
@click.argument("log", required=False, metavar="[LOG]")
def tail(
    *,
    config: str | None,
    as_json: bool,
    actions: tuple[str, ...],
    names: tuple[str, ...],
    networks: tuple[str, ...],
    lines: int,
    no_follow: bool,
    log: str | None,
) -> None:
    """Follow the decision log, filtered and in colour, across rotation.

    Decisions appear in the text format, whatever the format of the log, or with --json as objects. With `-` as LOG,
    standard input is read to its end: journalctl -fu policyd -o cat | policyd tail -

    \b
    policyd tail --action REJECT
    policyd tail --rule sakura-vps --client 49.212.0.0/16 decisions.log
    """
    try:
        wanted = tail_tool.DecisionFilter(
            frozenset(action.upper().encode() for action in actions),
            frozenset(name.encode() for name in names),
            parse_networks(networks),
        )
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--client") from None
    with log_errors():
        path = log if log is not None else live_log(settings_of(config))
        found: Iterator[LoggedDecision]
        if path == STANDARD_INPUT:
            found = tail_tool.every([path], wanted)
        elif no_follow:
            found = tail_tool.follow(path, lines, wanted, wait=lambda: False)
        else:
            found = tail_tool.follow(path, lines, wanted)
        console = results()
        shown = 0
        for decision in found:
            shown += 1
            if as_json:
                click.echo(json.dumps(reader.as_json(decision)))
            else:
                console.print(tail_tool.as_line(decision), soft_wrap=True)
                sys.stdout.flush()
        if no_follow and not shown and lines and path != STANDARD_INPUT:
            raise Failure(f"policyd: no decision to show in {path}{mail_log_hint(path)}", 1)


@click.command()
@rules_options
@json_option
@click.argument("decision_id", metavar="ID")
@logs_argument
def lookup(*, config: str | None, rules: str | None, as_json: bool, decision_id: str, logs: tuple[str, ...]) -> None:
    """Show the decision with an id, and what the ruleset decides on the same request today.

    ID is the id itself, or a text with the id in it, such as a pasted bounce in quotes; with - the text is read from
    standard input. The id replaces {id} in a reply, and is id= in the decision log. Without LOG, the log that the
    settings name and its rotated files are searched. With a ruleset (-c or --rules) the request is decided again, with
    the attributes and the reverse DNS that the log has; DNS is not asked.

    \b
    policyd lookup 7Q4K2M9X
    policyd lookup '550 5.7.1 Access denied (7Q4K2M9X)'
    policyd lookup --rules rules.yaml 7Q4K2M9X decisions.log*
    """
    ids = lookup_tool.ids_in(sys.stdin.read(_MAX_PASTED) if decision_id == STANDARD_INPUT else decision_id)
    if not ids:
        raise click.UsageError("there is no id in the text; an id has eight letters and digits, as in (7Q4K2M9X)")
    loaded = _loaded(config, rules)
    with log_errors():
        paths = log_paths(logs, loaded.settings if loaded is not None else None)
        with reading(paths) as advance:
            found = lookup_tool.find(ids, paths, advance)
    if not found:
        raise nothing_found(f"no decision with the id {' or '.join(ids[:5])}", paths)
    objects = []
    console = results()
    for decision in found:
        if as_json:
            logged = reader.as_json(decision)
            objects.append({"logged": logged, "today": _today_as_json(loaded, decision)})
            continue
        console.print(tail_tool.as_line(decision), soft_wrap=True)
        if loaded is not None:
            console.print()
            _print_today(loaded, decision)
    if as_json:
        print_json(objects)


@click.command()
@rules_options
@since_option
@click.option("--network", metavar="CIDR", help="Report what came from this network.")
@click.option("--suffix", metavar="NAME", help="Report what came from host names that are NAME or lie under it.")
@click.option("--asn", metavar="N", help="Report what came from this autonomous system: 9371 or AS9371.")
@click.option("--country", metavar="CC", help="Report what came from networks in this country: two letters.")
@click.option(
    "--from", "sender", required=True, metavar="ADDRESS", help="The sender of the report: the message's From."
)
@click.option(
    "--to", "recipient", metavar="ADDRESS", help="The recipient of the report, if you know it: the message's To."
)
@click.option("-o", "--output", metavar="FILE", help="Write the message to a new file, not to standard output.")
@click.option("--mbox", metavar="FILE", help="Append the message to a mailbox in the mbox format.")
@click.option("--show-recipients", is_flag=True, help="Leave your recipients' addresses in the log lines.")
@logs_argument
def report(
    *,
    config: str | None,
    rules: str | None,
    since: float | None,
    network: str | None,
    suffix: str | None,
    asn: str | None,
    country: str | None,
    sender: str,
    recipient: str | None,
    output: str | None,
    mbox: str | None,
    show_recipients: bool,
    logs: tuple[str, ...],
) -> None:
    """Write an abuse report for a network, host name suffix, system or country, from a decision log or a mail log.

    The report is a message in the Abuse Reporting Format (RFC 5965) with a summary and log lines: what policyd refused
    or, from a mail log of Postfix or sendmail, every mail. It is not sent. Recipients are hidden unless you ask for
    them. With --asn and --country, owners of addresses come from the decision log, or else from the databases of the
    ruleset (-c or --rules). A mail log has no owners, so it needs the ruleset.

    \b
    policyd report --network 180.222.51.0/24 --from postmaster@example.com decisions.log*
    policyd report --suffix vs.sakura.ne.jp --from postmaster@example.com --mbox reports.mbox
    policyd report --asn AS9371 --from postmaster@example.com decisions.log*
    """
    if sum(option is not None for option in (network, suffix, asn, country)) != 1:
        raise click.UsageError("name what to report, by one of --network, --suffix, --asn and --country")
    number, code = int(_owner("--asn", Form.ASN, asn)), _owner("--country", Form.COUNTRY, country)
    if output is not None and mbox is not None:
        raise click.UsageError("write either to --output or to --mbox")
    for address, option in ((sender, "--from"), (recipient, "--to")):
        if address is not None and ("@" not in address or not address.isascii() or not address.isprintable()):
            raise click.BadParameter(f"'{address}' is not a mail address", param_hint=option)
    try:
        (parsed,) = parse_networks([network]) if network is not None else (None,)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--network") from None
    needs_ruleset = (asn is not None or country is not None) and (config is not None or rules is not None)
    ruleset = load(config, rules).ruleset if needs_ruleset else None
    with log_errors():
        paths = log_paths(logs, settings_of(config))
        with reading(paths) as advance:
            incident = abuse_report.collect(
                paths,
                network=parsed,
                suffix=suffix,
                asn=number,
                country=code,
                ruleset=ruleset,
                since=since,
                show_recipients=show_recipients,
                advance=advance,
            )
    if not incident.count:
        what = f"nothing from {incident.subject} was refused"
        if (asn or country) and (ruleset is None or ruleset.owners is None):
            what += " (a mail log has no systems and countries: name a ruleset with databases by --rules)"
        raise nothing_found(what, paths)
    message = abuse_report.as_message(incident, sender, recipient, datetime.datetime.now(datetime.UTC))
    if mbox is not None:
        _append(mbox, message)
    elif output is not None:
        _write(output, message.as_string(), replace=False)
    else:
        click.echo(message.as_string(), nl=False)


def _owner(option: str, form: Form, written: str | None) -> str:
    """Returns the AS number or country code of an option, in digits or capitals; `0` or empty without the option."""
    if written is None:
        return "0" if form is Form.ASN else ""
    folded = fold_owner(form, written)
    if folded is None:
        raise click.BadParameter(explain_entry(form, os.fsencode(written)), param_hint=option)
    return folded.decode()


# --- Settings and ruleset ---------------------------------------------------------------------------------------------


def _loaded(config: str | None, rules: str | None) -> Loaded | None:
    """Returns settings and ruleset, or None if neither is named; these commands also work without them."""
    return load(config, rules) if config is not None or rules is not None else None


# --- Today's decision -------------------------------------------------------------------------------------------------


def _print_today(loaded: Loaded, decision: LoggedDecision) -> None:
    explanation = _explain_today(loaded, decision)
    if explanation is None:
        click.echo(_NEEDS_DNS)
        return
    print_tables(*as_tables(explanation))


def _today_as_json(loaded: Loaded | None, decision: LoggedDecision) -> dict[str, Any] | None:
    if loaded is None:
        return None
    explanation = _explain_today(loaded, decision)
    return explanation_as_json(explanation) if explanation is not None else {"needs_reverse_dns": True}


def _explain_today(loaded: Loaded, decision: LoggedDecision) -> Explanation | None:
    """Today's decision on the same request; None if it needs an answer of DNS that the log does not have."""
    request, identity = lookup_tool.request_of(decision), lookup_tool.identity_of(decision)
    owner = loaded.ruleset.owners.find(request) if loaded.ruleset.owners is not None else None
    known = decision.greylist.decode("ascii", "replace")
    greylist = Greylisted(known) if known in set(Greylisted) else Greylisted.NEW
    facts = Facts(
        identity, parse_answers(decision.lists), owner, first_counts(loaded.ruleset, request, owner), greylist
    )
    decided = decide(loaded.ruleset, request, facts, utc_today())
    if isinstance(decided, Needs):
        return None
    return explain(loaded, request, decided, facts, utc_today(), source="the decision log")


_NEEDS_DNS = (
    "Today's rules ask for the client's reverse DNS or a DNS list. The log does not have the answer, because no rule"
    " needed it then.\n"
    "Ask it now with: policyd explain client_address=..."
)


# --- Writing ----------------------------------------------------------------------------------------------------------


def _write(path: str, text: str, *, replace: bool = True) -> None:
    try:
        with Path(path).open("w" if replace else "x", encoding="utf-8", newline="") as file:
            file.write(text)
    except FileExistsError:
        raise Failure(f"policyd: {path}: exists already; name another file", 2) from None
    except OSError as error:
        raise Failure(f"policyd: {path}: {error.strerror}", 2) from None


def _append(path: str, message: Any) -> None:
    try:
        box = mailbox.mbox(path)
        try:
            box.lock()
            box.add(message)
            box.flush()
        finally:
            box.close()
    except (OSError, mailbox.Error) as error:
        raise Failure(f"policyd: {path}: {error}", 2) from None
