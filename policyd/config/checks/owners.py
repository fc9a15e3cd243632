"""Counts the networks that the databases have for each `asn` and `country` of a ruleset, for `policyd check`.

This reads every record of the databases, unlike a load of an MMDB file; it takes about 2 s for a million records.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policyd.config.conditions import Form
from policyd.config.databases import DatabaseError, DatabaseKind
from policyd.config.entries import fold_owner
from policyd.config.lists import WrittenEntry
from policyd.config.problems import Problem, Severity, counted, quoted
from policyd.core.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policyd.config.written import RulesFile

# Maximum number of values whose networks are shown; a list may have thousands.
MAX_SHOWN = 50

_FORMS = {Form.ASN: DatabaseKind.ASN, Form.COUNTRY: DatabaseKind.COUNTRY}

# IPv6 addresses are counted in networks of this length, the size of one subnet.
_SUBNET = 64


@dataclass(slots=True)
class NetworkCount:
    """The networks of one value: their number, and how many addresses (IPv4) and networks of /64 (IPv6) they have."""

    name: str = ""
    networks4: int = 0
    addresses4: int = 0
    networks6: int = 0
    subnets6: int = 0

    def add(self, version: int, first: int, last: int) -> None:
        """Counts one range."""
        if version == 4:
            self.networks4 += 1
            self.addresses4 += last - first + 1
        else:
            self.networks6 += 1
            self.subnets6 += (last >> _SUBNET) - (first >> _SUBNET) + 1

    def __str__(self) -> str:
        parts = []
        if self.networks4:
            parts.append(
                f"{counted(self.networks4, 'IPv4 network')} ({counted(self.addresses4, 'address', 'addresses')})"
            )
        if self.networks6:
            parts.append(f"{counted(self.networks6, 'IPv6 network')} ({self.subnets6:,} of /{_SUBNET})")
        return ", ".join(parts)


def count_networks(rules_file: RulesFile) -> tuple[list[str], list[Problem]]:
    """Returns a line for each value in the rules that the database has, and a warning for each other value."""
    lines: list[str] = []
    problems: list[Problem] = []
    for form, kind in _FORMS.items():
        used: dict[bytes, tuple[WrittenEntry, str, str]] = {}
        for entry, rule, condition in _entries(rules_file, form):
            folded = fold_owner(form, entry.text)
            if folded is not None:
                used.setdefault(folded, (entry, rule, condition))
        database = rules_file.databases.get(kind)
        if not used or database is None or database.info.missing:
            continue
        found: dict[bytes, NetworkCount] = defaultdict(NetworkCount)
        try:
            for version, first, last, owner in database.ranges():
                value = b"%d" % owner.asn if kind is DatabaseKind.ASN else owner.country.encode()
                if value in used:
                    found[value].add(version, first, last)
                    found[value].name = owner.asn_name
        except DatabaseError as error:
            problems.append(Problem(database.info.path, 0, 0, str(error), severity=Severity.WARNING))
            continue
        for value, (entry, rule, condition) in used.items():
            shown = f"AS{value.decode()}" if kind is DatabaseKind.ASN else value.decode()
            if value in found:
                name = printable(found[value].name) if kind is DatabaseKind.ASN else ""
                lines.append(f"{kind} {f'{shown} {name}'.rstrip()}: {found[value]}")
            else:
                message = f"{condition}: {quoted(entry.text)}: {database.info.path} has no network of {shown}"
                problems.append(Problem(entry.path, entry.line, entry.column, message, rule, Severity.WARNING))
    if len(lines) > MAX_SHOWN:
        lines[MAX_SHOWN:] = [f"and {len(lines) - MAX_SHOWN:,} more values of asn and country"]
    return lines, problems


def _entries(rules_file: RulesFile, form: Form) -> Iterator[tuple[WrittenEntry, str, str]]:
    """Yields the entries of the conditions of this form as written in the files, each with its rule and condition."""
    for written in rules_file.rules:
        for condition in (*written.match, *written.exceptions):
            if condition.type.form is form:
                for value in condition.values:
                    place = WrittenEntry(value.text, rules_file.path, value.line, value.column)
                    yield place, written.rule.name, condition.condition.name
                for _, definition in condition.lists:
                    for entry in definition.entries():
                        yield entry, written.rule.name, condition.condition.name
