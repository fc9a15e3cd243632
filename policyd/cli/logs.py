"""`policyd replay` and `policyd suggest`: judge the mails of a log, and find what to block."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from policyd.cli import Failure
from policyd.cli.log_options import log_errors, required_logs_argument
from policyd.cli.options import json_option, rules_options
from policyd.cli.terminal import print_json
from policyd.config.databases import DatabaseKind
from policyd.config.dates import utc_today
from policyd.config.load import load
from policyd.config.problems import counted
from policyd.logs.files import in_order
from policyd.logs.maillog import WAYS_OUT, quote
from policyd.tools.display import reading, results
from policyd.tools.judge import Assumption, ListAssumption, OwnerSource
from policyd.tools.replay import output as replay_report
from policyd.tools.replay.replay import compare
from policyd.tools.replay.replay import replay as run_replay
from policyd.tools.suggest import output as suggest_report
from policyd.tools.suggest.candidates import suggest as find_candidates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policyd.logs.counts import LineCounts

# The database's file name in suggested rules if the systems come only from a decision log.
_UNNAMED_DATABASE = "asn.csv"


@click.command()
@rules_options
@json_option
@click.option("--against", metavar="OLD", help="Another ruleset: show only mails that the two answer differently.")
@click.option(
    "--unknown",
    "assumption",
    type=click.Choice([str(status) for status in Assumption]),
    default=str(Assumption.MISSING),
    show_default=True,
    help="The reverse DNS to assume for a client whose name is `unknown` in the mail log.",
)
@click.option(
    "--lists",
    "list_assumption",
    type=click.Choice([str(answer) for answer in ListAssumption]),
    default=str(ListAssumption.UNKNOWN),
    show_default=True,
    help="The answer to assume for a DNS list if the log does not have it; only policyd's decision log has answers.",
)
@click.option(
    "--owners",
    type=click.Choice([str(source) for source in OwnerSource]),
    default=str(OwnerSource.DATABASE),
    show_default=True,
    help="The source of the systems and countries of clients: each ruleset's databases, or policyd's decision log. With"
    " `log` no database is read, so its file may be missing.",
)
@click.option(
    "--fail-if-delivered",
    type=click.IntRange(min=0),
    metavar="N",
    help="Exit with 1 if more than N delivered mails would have been refused; with --against, by the new ruleset only."
    " Exit with 2 if lines were left out because of a limit.",
)
@required_logs_argument
def replay(
    *,
    config: str | None,
    rules: str | None,
    as_json: bool,
    against: str | None,
    assumption: str,
    list_assumption: str,
    owners: str,
    fail_if_delivered: int | None,
    logs: tuple[str, ...],
) -> None:
    """Show what a ruleset would have done to the mails in a log.

    LOG is a mail log of Postfix or sendmail, or policyd's own decision log, as written by syslog, journalctl or a
    container runtime; plain, gzip, bzip2, xz or zstd; `-` is standard input. Rotated files may be in any order.

    Mails that were delivered and would have been refused come first. DNS is not asked: the client's name is the one in
    the log.

    \b
    policyd replay --rules rules.yaml /var/log/mail.log*
    policyd replay --rules new.yaml --against rules.yaml --fail-if-delivered 0 mail.log
    """
    reads_databases = owners == OwnerSource.DATABASE
    ruleset = load(config, rules, databases=reads_databases).ruleset
    old = load(config, against, databases=reads_databases).ruleset if against is not None else None
    with log_errors(), reading(logs) as advance:
        if old is None:
            found = run_replay(
                ruleset,
                in_order(logs),
                utc_today(),
                assumption=Assumption(assumption),
                list_assumption=ListAssumption(list_assumption),
                advance=advance,
            )
        else:
            compared = compare(
                ruleset,
                old,
                in_order(logs),
                utc_today(),
                assumption=Assumption(assumption),
                list_assumption=ListAssumption(list_assumption),
                advance=advance,
            )
    result = found if old is None else compared
    if not result.facts.transactions:
        raise _no_mail(logs, result.facts.counts)
    if as_json:
        print_json(replay_report.replay_as_json(found) if old is None else replay_report.comparison_as_json(compared))
    elif old is None:
        replay_report.print_replay(results(), found)
    else:
        replay_report.print_comparison(results(), compared)
    refused = result.facts.refused_delivered
    if fail_if_delivered is not None and result.facts.counts.left_out.is_incomplete:
        left_out = "; ".join(result.facts.counts.left_out.notes())
        raise Failure(
            f"policyd: {counted(refused, 'delivered mail')} would have been refused, and there may be more: {left_out}",
            2,
        )
    if fail_if_delivered is not None and refused > fail_if_delivered:
        allowed = "none is allowed" if not fail_if_delivered else f"{fail_if_delivered:,} are allowed"
        raise Failure(f"policyd: {counted(refused, 'delivered mail')} would have been refused; {allowed}", 1)


@click.command()
@rules_options
@json_option
@click.option(
    "--min-clients",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="Minimum number of refused addresses for a suffix or a network.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    metavar="N",
    help="Maximum number of candidates.",
)
@click.option(
    "--by",
    type=click.Choice(["asn"]),
    help="Group clients by autonomous system only, instead of suffix and network. Needs a ruleset with databases: asn,"
    " or a decision log that has asn=.",
)
@required_logs_argument
def suggest(
    *,
    config: str | None,
    rules: str | None,
    as_json: bool,
    min_clients: int,
    limit: int,
    by: str | None,
    logs: tuple[str, ...],
) -> None:
    """Find what to block in a mail log, and write it as rules that observe.

    Host names are grouped by suffix, addresses by network, senders by pattern. Mails that were refused or deferred for
    a reason about the client count for a candidate; delivered mails from the same place count against it. With a
    ruleset, mails that its rules decide already are left out. If the systems of clients are known, from the databases
    of the ruleset or from a decision log, each candidate names them, and a system is proposed if several suffixes or
    networks lie in it. The result is YAML that policyd check accepts, the best candidate first. Exit status 1: there is
    no candidate.

    \b
    policyd suggest /var/log/mail.log* > candidates.yaml
    policyd suggest --rules rules.yaml /var/log/mail.log
    """
    loaded = load(config, rules) if config is not None or rules is not None else None
    ruleset = loaded.ruleset if loaded is not None else None
    with log_errors(), reading(logs) as advance:
        found = find_candidates(
            in_order(logs),
            min_clients=min_clients,
            by_asn=by is not None,
            ruleset=ruleset,
            today=utc_today(),
            advance=advance,
        )
    if not found.transactions:
        raise _no_mail(logs, found.counts)
    if by is not None and not found.has_systems:
        raise Failure(
            "policyd: no client's system is known; name a ruleset that declares databases: asn with --rules", 1
        )
    taken = [rule.name for rule in ruleset.rules] if ruleset is not None else []
    if as_json:
        print_json(suggest_report.as_json(found, limit, taken))
    elif found.candidates:
        files = (
            [database.path for database in loaded.databases if database.kind is DatabaseKind.ASN]
            if loaded is not None
            else []
        )
        database = str(Path(files[0]).absolute()) if files else _UNNAMED_DATABASE
        click.echo(suggest_report.as_yaml(found, limit, taken, database), nl=False)
    if not found.candidates:
        raise Failure(f"policyd: nothing to suggest: {suggest_report.why_nothing(found, min_clients)}", 1)


def _no_mail(logs: Sequence[str], counts: LineCounts) -> Failure:
    """Returns the error for logs without any mail: a check that saw no mail must not pass."""
    quoted = quote(counts.example)
    example = f"; one line begins with {quoted}; {WAYS_OUT}" if quoted else ""
    hidden = f", {counts.hidden:,} without text (read the journal with --all)" if counts.hidden else ""
    return Failure(
        f"policyd: no mail from outside in {', '.join(logs)}: {counted(counts.lines, 'line')}, {counts.other:,} of"
        f" other matters, {counts.unknown:,} in no known form{hidden}{example}",
        1,
    )
