"""`policyd import` and `policyd export`: other systems' lists and tables."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from policyd.cli import Failure
from policyd.cli.options import RulesetName, json_option, rules_options
from policyd.config.actions import ActionError, parse_action
from policyd.config.conditions import CONDITIONS
from policyd.config.dates import utc_today
from policyd.config.load import load
from policyd.exchange.access.keys import LOOKUPS
from policyd.exchange.exporting import EXPORT_FORMATS, NoSuchListError
from policyd.exchange.exporting import export as export_rules
from policyd.exchange.importing import (
    IMPORT_FORMATS,
    ImportFailedError,
    ImportForm,
    ImportOptions,
    as_json_object,
    import_files,
)
from policyd.exchange.model import ExportOptions, Verdict
from policyd.logs.files import STANDARD_INPUT, LogError
from policyd.tools.display import reading
from policyd.tools.replace_file import replace_file

if TYPE_CHECKING:
    from policyd.exchange.importing import ImportResult
    from policyd.exchange.model import ConversionReport


def _verdict(_context: click.Context, _parameter: click.Parameter, written: str | None) -> Verdict | None:
    if written is None:
        return None
    try:
        return Verdict.of(parse_action(written))
    except ActionError as error:
        raise click.BadParameter(str(error)) from None


def _name(_context: click.Context, _parameter: click.Parameter, name: str) -> str:
    # The shortest limit of all formats is ipset's 31 characters, which include the suffix that policyd adds.
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,23}", name):
        raise click.BadParameter("a name has up to 24 letters, digits, - and _, and begins with a letter")
    return name


@click.command("import")
@click.argument("format_name", metavar="FORMAT", type=click.Choice(list(IMPORT_FORMATS)))
@click.argument("files", metavar="[FILE]...", nargs=-1)
@click.option(
    "--as",
    "shape",
    type=click.Choice([shape.value for shape in ImportForm]),
    help="Write rules, or a list file.",
)
@click.option("-o", "--output", metavar="FILE", help="Write to this file instead of standard output.")
@click.option(
    "--attribute",
    type=click.Choice(LOOKUPS),
    help="The attribute that is looked up in the table, if the format does not say which.",
)
@click.option(
    "--dotted", is_flag=True, help="postfix-access: for a parent_domain_matches_subdomains without smtpd_access_maps."
)
@click.option("--delimiter", default="", metavar="CHARACTER", help="postfix-access: recipient_delimiter of main.cf.")
@click.option(
    "--condition",
    type=click.Choice(list(CONDITIONS)),
    metavar="NAME",
    help="The kind of entries to put into a list, if the file has several: cidr, hostname_suffix, ...",
)
@click.option(
    "--action",
    "verdict",
    callback=_verdict,
    help="The action of entries that become rules: REJECT by default, DUNNO for postgrey's list.",
)
@click.option(
    "--name", default="", metavar="NAME", help="The beginning of the rules' names, instead of the file's name."
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=25,
    show_default=True,
    help="iptables-save, nft: import the rules for connections to this port.",
)
@click.option(
    "--interface", default="", metavar="NAME", help="iptables-save, nft: the network interface of incoming mail."
)
@click.option(
    "--set", "sets", multiple=True, metavar="NAME", help="ipset, nft: only this set. May be given several times."
)
@click.option("--strict", is_flag=True, help="Exit with 1 if a line or rule was lost.")
@click.option("--force", is_flag=True, help="Write --output, and exit with 0, even if exemptions were lost.")
@json_option
def import_(
    *,
    format_name: str,
    files: tuple[str, ...],
    output: str | None,
    shape: str | None,
    strict: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Turn another system's list or table into a list file or rules.

    \b
    FORMAT is one of plain, postfix-access, postfix-cidr, postfix-pcre, postfix-regexp, sendmail-access,
    postconf, postfwd, postgrey, whois, spamhaus-drop, iptables-save, nft, ipset, rspamd-map. FILE may be
    compressed; without FILE, or if it is `-`, standard input is read.

    A table with verdicts becomes rules, in an order that keeps their meaning; a plain list becomes a list file. Every
    line that is not imported, or not with exactly its meaning, is reported on standard error with its number and the
    reason.

    \b
    policyd import postfix-access /etc/postfix/client_access > rules.yaml
    policyd import spamhaus-drop drop.txt -o lists/drop.txt
    """
    paths = files or (STANDARD_INPUT,)
    try:
        with reading(paths) as advance:
            result = import_files(
                format_name, paths, ImportOptions(shape=ImportForm(shape) if shape else None, **options), advance
            )
    except ImportFailedError as error:
        if error.report is not None:
            _print_report(error.report)
        raise Failure(f"policyd: {error}", error.exit_status) from None
    except LogError as error:
        raise Failure(f"policyd: {error}", 2) from None
    if not as_json:
        _print_report(result.report)
    unsafe = result.lost_exemptions > 0 and not force
    if not unsafe or output is None:
        _write(json.dumps(as_json_object(result), indent=2) + "\n" if as_json else result.text, output)
    if result.report.losses and not as_json:
        click.echo(_summary(result), err=True)
    if unsafe:
        written = "" if output is None else f"{output} was not written. "
        raise Failure(f"policyd: {written}Repair the lines that were lost, or use --force.", 1)
    if strict and result.report.losses:
        sys.exit(1)


def _summary(result: ImportResult) -> str:
    text = f"policyd: {result.report.taken:,} taken, {len(result.report.losses):,} lost"
    if result.lost_exemptions:
        text += (
            f", {result.lost_exemptions:,} of them exemptions from blocks that were kept: these clients are blocked now"
        )
    return text


@click.command()
@click.argument("format_name", metavar="FORMAT", type=click.Choice(list(EXPORT_FORMATS)))
@rules_options
@click.option(
    "--list",
    "lists",
    multiple=True,
    metavar="NAME",
    type=RulesetName("lists"),
    help="Only this list. May be given several times.",
)
@click.option("-o", "--output", metavar="FILE", help="Write to this file instead of standard output.")
@click.option(
    "--condition",
    type=click.Choice(list(CONDITIONS)),
    metavar="NAME",
    help="plain, rspamd-map: which entries to write: cidr (unless there is none), hostname_suffix, ...",
)
@click.option(
    "--attribute",
    type=click.Choice(LOOKUPS),
    default="client",
    show_default=True,
    help="postfix-access: the attribute that will be looked up in the table.",
)
@click.option(
    "--dotted", is_flag=True, help="postfix-access: for a parent_domain_matches_subdomains without smtpd_access_maps."
)
@click.option("--deferred", is_flag=True, help="Treat DEFER as a rejection if the format has no other verdict.")
@click.option("--ipv6", is_flag=True, help="iptables: write IPv6 rules, for ip6tables-restore.")
@click.option(
    "--name",
    default="policyd",
    show_default=True,
    callback=_name,
    help="The name of the set, chain or table in the other system.",
)
@click.option("--action", "verdict", default="REJECT", callback=_verdict, help="The action of a list's entries.")
@click.option("--strict", is_flag=True, help="Exit with 1 if a line or rule was lost.")
def export(
    *,
    format_name: str,
    config: str | None,
    rules: str | None,
    lists: tuple[str, ...],
    output: str | None,
    strict: bool,
    ipv6: bool,
    **options: Any,
) -> None:
    """Turn rules and lists into another system's format.

    \b
    FORMAT is one of plain, nftables, iptables, ipset, postfix-cidr, postfix-access, postscreen-cidr,
    sendmail-access, rspamd-map, csv, json.

    Networks are merged. Exceptions, exemptions and the order of the rules are kept. Every rule that the format cannot
    express is reported on standard error, with its line and the reason.

    \b
    policyd export nftables --rules rules.yaml > policyd.nft
    policyd export postfix-cidr --rules rules.yaml --list bulk-networks
    """
    loaded = load(config, rules)
    chosen = ExportOptions(version=6 if ipv6 else 4, **options)
    try:
        text, report = export_rules(format_name, loaded, chosen, utc_today(), lists)
    except NoSuchListError as error:
        raise Failure(f"policyd: {error}", 1) from None
    _print_report(report)
    if not report.taken:
        raise Failure(
            f"policyd: {loaded.rules_file.path}: nothing in it can be expressed in the format {format_name}", 1
        )
    _write(text, output)
    if strict and report.losses:
        sys.exit(1)


def _print_report(report: ConversionReport) -> None:
    """Prints what was lost or changed, on standard error."""
    for message in report.messages():
        click.echo(message, err=True)


def _write(text: str, output: str | None) -> None:
    """Writes the result to standard output or a file."""
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        replace_file(Path(output), text.encode("utf-8"))
    except OSError as error:
        raise Failure(f"policyd: {output}: cannot be written: {error.strerror}", 2) from None
