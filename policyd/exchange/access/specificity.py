"""The order of an access table: Postfix and sendmail look up the most specific key first, but a ruleset tries its
rules from the top.

`most_specific_first` orders the rows of such a table so that the table's meaning stays the same: a row comes before
every wider row with another verdict. Rows with the same verdict are kept together as far as possible, so that they
become few rules.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from policyd.core.ruleset import Verb
from policyd.exchange.model import Term
from policyd.exchange.network_sets import addresses_of, network_texts, only_networks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import netaddr

    from policyd.exchange.model import ConversionReport, Row, Verdict


_INEXPRESSIBLE = (
    "it exempts only if two conditions decide together, which the exception of a rule cannot express; the rules below "
    "block such mail"
)


class Name(NamedTuple):
    """A domain as a key. It covers the name and all names under it.

    With `exact` it covers the name only; with a leading dot in `name`, only the names under it.
    """

    name: str
    exact: bool = False

    def wider(self, _prefixes: Sequence[int]) -> Iterator[Name]:
        """The keys that cover this one, the nearest first."""
        name = self.name.removeprefix(".")
        if self.exact:
            yield Name(name)
        elif self.name != name:
            yield Name(name)  # `example.com` covers `.example.com`
        while "." in name:
            name = name.partition(".")[2]
            yield Name(f".{name}")
            yield Name(name)

    @property
    def depth(self) -> tuple[int, int]:
        """Greater for a covered key than for the key that covers it."""
        labels = self.name.removeprefix(".").count(".") + 1
        return labels, 2 if self.exact else 1 if self.name.startswith(".") else 0


class Network(NamedTuple):
    """A network as a key: its first address as a number, and its prefix."""

    version: int
    first: int
    prefix: int

    @classmethod
    def of(cls, network: netaddr.IPNetwork) -> Network:
        """The key of a network."""
        return cls(network.version, network.first, network.prefixlen)

    def wider(self, prefixes: Sequence[int]) -> Iterator[Network]:
        """The keys of these prefixes (longest first) that cover this one, the nearest first."""
        width = 32 if self.version == 4 else 128
        for prefix in prefixes:
            if prefix < self.prefix:
                shift = width - prefix
                yield Network(self.version, self.first >> shift << shift, prefix)

    @property
    def depth(self) -> tuple[int, int]:
        """Greater for a covered key than for the key that covers it."""
        return self.prefix, 0


class PlainKey(NamedTuple):
    """A key that no other key covers, such as `unknown`, `<>` or a local part, `user@`."""

    value: str

    def wider(self, _prefixes: Sequence[int]) -> Iterator[PlainKey]:
        """Yields nothing: no key covers this one."""
        return iter(())

    @property
    def depth(self) -> tuple[int, int]:
        """The same for all keys."""
        return 0, 0


class Mailbox(NamedTuple):
    """A mail address as a key. It is covered by its domain, and by its local part at any domain."""

    value: str

    def wider(self, prefixes: Sequence[int]) -> Iterator[Key]:
        """The keys that cover this one, the nearest first."""
        local, _, domain = self.value.rpartition("@")
        yield Name(domain, exact=True)
        yield from Name(domain, exact=True).wider(prefixes)
        yield PlainKey(f"{local}@")

    @property
    def depth(self) -> tuple[int, int]:
        """Greater than that of any domain."""
        return 256, 0


Key = Name | Network | PlainKey | Mailbox


def most_specific_first(keyed: Mapping[Key, Row], *, last: bool) -> list[Row]:
    """The rows of one stage of a lookup, in order.

    `last` means that no row of a later stage follows. Then a row whose verdict is `passing` is left out if no wider key
    covers its key, because no row below would block the same mail.
    """
    prefixes = sorted({key.prefix for key in keyed if isinstance(key, Network)}, reverse=True)
    level = dict.fromkeys(keyed, 0)
    for key in sorted(keyed, key=lambda each: each.depth, reverse=True):
        covering = next((wider for wider in key.wider(prefixes) if wider in keyed), None)
        if covering is not None:
            # The nearest is enough: a wider key comes after the nearest one, unless both have the same verdict.
            differs = keyed[covering].verdict != keyed[key].verdict
            level[covering] = max(level[covering], level[key] + differs)
        elif last and keyed[key].verdict.passing:
            del level[key]
    groups: list[dict[Verdict, list[Row]]] = [{} for _ in range(max(level.values(), default=-1) + 1)]
    for key, row in keyed.items():
        if key in level:
            groups[level[key]].setdefault(row.verdict, []).append(row)
    return list(_join(groups))


def _join(groups: list[dict[Verdict, list[Row]]]) -> Iterator[Row]:
    """Yields all rows, level by level, and within a level verdict by verdict.

    The last verdict of the level before comes first, and a verdict that the next level also has comes last, so that
    rows with the same verdict follow each other.
    """
    before: Verdict | None = None
    for number, group in enumerate(groups):
        after = groups[number + 1] if number + 1 < len(groups) else {}
        verdicts = list(group)
        for *_, place in sorted((verdict != before, verdict in after, place) for place, verdict in enumerate(verdicts)):
            before = verdicts[place]
            yield from group[before]


def exemptions_as_exceptions(rows: Sequence[Row], report: ConversionReport) -> tuple[list[Row], list[Row]]:
    """Replaces each DUNNO by an exception of the blocking rows below it.

    This is for tables that are looked up one after the other: a DUNNO would also exempt from the rows of the next
    table. Returns the blocking rows, and the DUNNOs without a blocking row below. Reports a DUNNO as lost if no
    exception can express it.
    """
    exempt: list[Term] = []
    exceptions: tuple[Term, ...] = ()
    blocking: list[Row] = []
    unused: list[Row] = []
    for row in rows:
        if row.verdict.verb is Verb.DUNNO:
            unused.append(row)
            continue
        if unused:
            for exemption in unused:
                terms = _exempting_terms(exemption)
                if terms is None:
                    report.lose(exemption.line, _INEXPRESSIBLE, exempts=True)
                    report.taken -= 1
                else:
                    exempt += terms
            exceptions = tuple(exempt)  # one object for all rows up to the next exemption
            unused.clear()
        blocking.append(replace(row, exceptions=(*row.exceptions, *exceptions)) if exceptions else row)
    return blocking, unused


def _exempting_terms(row: Row) -> Sequence[Term] | None:
    """Returns terms each of which exempts exactly what the row matches; None if there are none.

    The terms of an `except` are alternatives, so two conditions that must both hold, or one that holds with an
    exception, cannot be written there. Networks can: the exceptions are cut out of them.
    """
    if len({term.condition for term in row.match}) > 1:
        return None
    if not row.exceptions:
        return row.match
    if not only_networks(row):
        return None
    left = addresses_of(row.match) - addresses_of(row.exceptions)
    return [Term("cidr", text) for text in network_texts(left)]
