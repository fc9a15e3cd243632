"""Converts autonomous systems and countries to their networks, for formats that support addresses only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netaddr import IPAddress, IPNetwork, IPRange, cidr_merge

from policyd.config.databases import DatabaseKind
from policyd.exchange.model import Term

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policyd.config.load import Loaded
    from policyd.core.owners import Owner

_KINDS = {"asn": DatabaseKind.ASN, "country": DatabaseKind.COUNTRY}


class OwnedNetworks:
    """Converts terms for `asn` and `country` to terms for `cidr`, with the databases of a ruleset.

    A database is read at most once, and only if a rule needs it, because reading takes seconds.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._databases = loaded.rules_file.databases
        self._wanted: dict[str, set[str]] = {"asn": set(), "country": set()}
        for rule in loaded.ruleset.rules:
            for condition in (*rule.match, *rule.exceptions):
                if condition.name in self._wanted:
                    values = [value for value in condition.values if not value.startswith("$")]
                    lists = [loaded.lists[value[1:]] for value in condition.values if value.startswith("$")]
                    values += [entry.text for definition in lists for entry in definition.entries()]
                    self._wanted[condition.name].update(map(_fold, values))
        self._networks: dict[str, dict[str, list[IPNetwork]]] = {}

    def as_networks(self, terms: tuple[Term, ...]) -> tuple[Term, ...]:
        """Replaces owners by their networks, merged.

        Terms of one condition are alternatives, but all conditions must hold. So if a rule also has a condition on
        networks, or conditions on both system and country, its owners stay, and the format reports them. They also stay
        if the database has no network for any of them.
        """
        names = {term.condition for term in terms}
        owners = names & self._wanted.keys()
        if len(owners) != 1 or "cidr" in names:
            return terms
        (name,) = owners
        values = [_fold(term.value) for term in terms if term.condition == name]
        networks = [network for value in values for network in self._of(name).get(value, ())]
        others = tuple(term for term in terms if term.condition != name)
        if not networks:
            return terms
        return (*others, *(Term("cidr", str(network)) for network in cidr_merge(networks)))

    def _of(self, name: str) -> dict[str, list[IPNetwork]]:
        """The networks of each value that a rule names."""
        if name not in self._networks:
            found: dict[str, list[IPNetwork]] = {}
            database = self._databases.get(_KINDS[name])
            for version, first, last, owner in database.ranges() if database is not None else ():
                value = _value(name, owner)
                if value in self._wanted[name]:
                    found.setdefault(value, []).extend(_cidrs(version, first, last))
            self._networks[name] = found
        return self._networks[name]


def _cidrs(version: int, first: int, last: int) -> Iterator[IPNetwork]:
    yield from IPRange(IPAddress(first, version), IPAddress(last, version)).cidrs()


def _value(name: str, owner: Owner) -> str:
    return str(owner.asn) if name == "asn" else owner.country


def _fold(value: str) -> str:
    return value.upper().removeprefix("AS") if value[-1:].isdigit() else value.upper()
