"""`policyd export`: a ruleset's rules and lists in another system's format.

Takes the result of `policyd.config.load.load`. Returns the text, with the entries of each list instead of its name, and
a report of everything that the format cannot express. Prints nothing and asks no DNS.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from policyd.core.printable import printable
from policyd.core.ruleset import Kind, Verb
from policyd.exchange.access import postfix, sendmail
from policyd.exchange.firewall import ipset, iptables, nftables
from policyd.exchange.lists import csv_table, json_rules, plain, rspamd_map
from policyd.exchange.model import ConversionReport, Line, Row, Term, UnsupportedError, Verdict
from policyd.exchange.owned_networks import OwnedNetworks
from policyd.exchange.postfix import cidr
from policyd.exchange.values import looks_like_address, term

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from policyd.config.load import Loaded
    from policyd.core.ruleset import Condition
    from policyd.exchange.model import ExportOptions


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """A format that can be exported.

    With `keeps_inactive`, the output also has observed and expired rules, with their mode and date.
    """

    write: Callable[[Sequence[Row], ConversionReport, ExportOptions], str]
    keeps_inactive: bool = False


EXPORT_FORMATS: dict[str, ExportFormat] = {
    "plain": ExportFormat(plain.write),
    "nftables": ExportFormat(nftables.write),
    "iptables": ExportFormat(iptables.write),
    "ipset": ExportFormat(ipset.write),
    "postfix-cidr": ExportFormat(cidr.write),
    "postfix-access": ExportFormat(postfix.write),
    "postscreen-cidr": ExportFormat(cidr.write_postscreen),
    "sendmail-access": ExportFormat(sendmail.write),
    "rspamd-map": ExportFormat(rspamd_map.write),
    "csv": ExportFormat(csv_table.write, keeps_inactive=True),
    "json": ExportFormat(json_rules.write, keeps_inactive=True),
}


class NoSuchListError(Exception):
    """A requested list is not defined. The message names the existing lists."""


def export(
    name: str, loaded: Loaded, options: ExportOptions, today: datetime.date, lists: Sequence[str] = ()
) -> tuple[str, ConversionReport]:
    """Exports the rules or, if `lists` is not empty, the lists with these names, in the format `name`.

    `today` is the date in UTC, which decides whether a rule has expired. Raises `NoSuchListError`.
    """
    report = ConversionReport()
    path = loaded.rules_file.path
    if lists:
        rows = list(_of_lists(loaded, lists, options.verdict, report))
        what = ", ".join(lists)
    else:
        keeps_inactive = EXPORT_FORMATS[name].keeps_inactive
        rules = _of_rules(loaded, report, None if keeps_inactive else OwnedNetworks(loaded))
        rows = list(_in_force(rules, report, today, keeps_inactive=keeps_inactive))
        what = "rules"
        _report_outside_rules(loaded, report)
    # The name of a file may contain any character, and is written into a comment.
    heading = f"{what} of {Path(path).name} (ruleset {loaded.ruleset.hash}), exported by policyd"
    return EXPORT_FORMATS[name].write(rows, report, replace(options, heading=printable(heading))), report


def _of_rules(loaded: Loaded, report: ConversionReport, owned: OwnedNetworks | None) -> Iterator[Row]:
    """Yields the rules as rows, and reports those that no format can express.

    With `owned`, autonomous systems and countries become their networks.
    """
    for rule in loaded.ruleset.rules:
        line = Line(loaded.rules_file.path, rule.line, f"rule {rule.name}")
        if any(condition.kind is Kind.LISTED for condition in (*rule.match, *rule.exceptions)):
            report.lose(line, "uses listed; no format can ask DNS lists")
            continue
        if any(condition.kind is Kind.COUNTER for condition in rule.match):
            report.lose(line, "uses counter; no format can count earlier requests of a client")
            continue
        if rule.action.verb is Verb.GREYLIST:
            report.lose(line, "uses GREYLIST; no format remembers first tries")
            continue
        match, exceptions = tuple(_terms(loaded, rule.match)), tuple(_terms(loaded, rule.exceptions))
        if owned is not None:
            match, exceptions = owned.as_networks(match), owned.as_networks(exceptions)
        yield Row(
            line,
            match,
            Verdict.of(rule.action),
            exceptions,
            rule.name,
            rule.observe,
            rule.expires,
        )


def _terms(loaded: Loaded, conditions: Iterable[Condition]) -> Iterator[Term]:
    """Yields every value of every condition; `$name` gives each entry of that list, `$$` a literal `$`."""
    for condition in conditions:
        for value in condition.values:
            if not value.startswith("$"):
                yield Term(condition.name, value)
            elif value.startswith("$$"):
                yield Term(condition.name, value[1:])
            else:
                yield from (Term(condition.name, entry.text) for entry in loaded.lists[value[1:]].entries())


def _in_force(
    rows: Iterable[Row], report: ConversionReport, today: datetime.date, *, keeps_inactive: bool
) -> Iterator[Row]:
    for row in rows:
        if keeps_inactive:
            yield row
        elif row.observe:
            report.lose(row.line, "observed only (mode: observe), so it is not exported")
        elif row.expires is not None and row.expires <= today:
            report.lose(row.line, f"it expired on {row.expires}")
        else:
            if row.expires is not None:
                report.note(row.line, f"it expires on {row.expires} here, but never there")
            yield row


def _report_outside_rules(loaded: Loaded, report: ConversionReport) -> None:
    """Reports the settings of a ruleset that no rule contains."""
    path = loaded.rules_file.path
    if loaded.ruleset.observe:
        report.note(Line(path, 0, ""), "the whole file is observed (mode: observe), but the exported rules block")
    if loaded.ruleset.default.verb is not Verb.DUNNO:
        report.lose(Line(path, 0, f"default {Verdict.of(loaded.ruleset.default).action}"), "only rules are exported")


def _of_lists(loaded: Loaded, names: Sequence[str], verdict: Verdict, report: ConversionReport) -> Iterator[Row]:
    conditions_of_lists = {
        value[1:]: condition.name
        for rule in loaded.ruleset.rules
        for condition in (*rule.exceptions, *rule.match)
        for value in condition.values
        if value.startswith("$") and not value.startswith("$$")
    }
    for name in names:
        definition = loaded.lists.get(name)
        if definition is None:
            known = ", ".join(loaded.lists) or "none"
            raise NoSuchListError(f"{loaded.rules_file.path}: there is no list '{name}'; there are: {known}")
        line = Line(definition.path, definition.line, f"list {name}")
        entries = [entry.text for entry in definition.entries()]
        condition = conditions_of_lists.get(name)
        if condition is None:
            # No rule uses the list, so the loader has not checked its entries.
            condition = "cidr" if any(map(looks_like_address, entries)) else "hostname_suffix"
            entries = list(_valid(condition, entries, line, report))
        if entries:
            yield Row(line, tuple(Term(condition, entry) for entry in entries), verdict, (), name)


def _valid(condition: str, entries: Iterable[str], line: Line, report: ConversionReport) -> Iterator[str]:
    for entry in entries:
        try:
            yield term(condition, entry).value
        except UnsupportedError as error:
            report.lose(line, f"no rule uses it, and its entries were read as values of {condition}: {error}")
