"""Rulesets from plain dicts, for tests of the core without YAML, files or checks."""

import ipaddress
from typing import Any

from policyd.core.index import Ruleset
from policyd.core.normalize import fold_name, fold_value
from policyd.core.ruleset import Action, Condition, Kind, Rule, Verb
from policyd.core.tables import Networks
from policyd.tables.build import build_tables
from policyd.tables.index import build_index
from tests.naive import Listed


def condition_of(name: str) -> tuple[str, Kind]:
    """The subject and the kind of a condition."""
    if name == "cidr":
        return "client_address", Kind.NETWORK
    if name == "reverse_dns":
        return name, Kind.STATUS
    if name == "listed":
        return name, Kind.LISTED
    for suffix, kind in (("_regex", Kind.EXPRESSION), ("_suffix", Kind.DOMAIN), ("_domain", Kind.DOMAIN)):
        if name.endswith(suffix):
            return name.removesuffix(suffix), kind
    return name, Kind.NAME if name in {"hostname", "helo_name"} else Kind.VALUE


def entries_of(kind: Kind, values: list[str]) -> object:
    """Converts values to a collection of entries for `build_index`."""
    if kind is Kind.NETWORK:
        networks = Networks()
        for value in values:
            network = ipaddress.ip_network(value)
            networks.append(network.version, int(network.network_address), network.prefixlen)
        return networks
    if kind in {Kind.NAME, Kind.DOMAIN}:
        return [fold_name(value.encode()) for value in values]
    if kind is Kind.VALUE:
        return [fold_value(value.encode()) for value in values]
    return values


def build(
    rules: list[dict[str, Any]],
    default: str = "DUNNO",
    lists: dict[str, list[str]] | None = None,
    hostname_lists: frozenset[str] = frozenset(),
) -> Ruleset:
    """Makes a ruleset. A value `$name` stands for the list of this name.

    Conditions of the same kind share the list; exact names and domains count as one kind. `hostname_lists` names the
    DNS lists that are asked about host names. The value of a `listed` condition is a `tests.naive.Listed`.
    """
    entries: dict[int, list[Any]] = {}
    shared: dict[tuple[str, Kind], object] = {}

    def condition(name: str, values: list[str]) -> Condition:
        subject, kind = condition_of(name)
        if isinstance(values, Listed):
            listed = Condition(name, subject, kind, values.of, len(entries), values.at_least)
            entries[listed.number] = [list(values.of)]
            return listed
        own = [value for value in values if not value.startswith("$")]
        collections = [entries_of(kind, own)]
        for value in values:
            if value.startswith("$"):
                kind_of_entry = Kind.DOMAIN if kind is Kind.NAME else kind
                key = value[1:], kind_of_entry
                shared.setdefault(key, entries_of(kind, (lists or {})[value[1:]]))
                collections.append(shared[key])
        made = Condition(name, subject, kind, tuple(values), len(entries))
        entries[made.number] = collections
        return made

    ordered = []
    for number, rule in enumerate(rules):
        ordered.append(
            Rule(
                rule["name"],
                number,
                tuple(condition(name, values) for name, values in rule["match"].items()),
                tuple(condition(name, values) for name, values in rule.get("except", {}).items()),
                action_of(rule["action"]),
                rule.get("mode") == "observe",
                rule.get("expires"),
            )
        )
    return Ruleset(tuple(ordered), action_of(default), build_index(ordered, entries, build_tables, hostname_lists))


def action_of(text: str) -> Action:
    """Parses `VERB [code] [text]`, with placeholders as `{name}`."""
    verb, _, rest = text.partition(" ")
    code, _, words = rest.partition(" ")
    if code.count(".") != 2:
        code, words = "", rest
    pieces = tuple(words.replace("}", "{").split("{")) if words else ()
    return Action(Verb(verb), code, pieces)
