"""Converts rules to the keys of an access table, for Postfix's access(5) tables and sendmail's access_db.

In such a table the most specific key decides, not the first. A key gets the answer of the first rule that covers it. A
key with the same answer as a wider key is left out.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import netaddr

from policyd.core.normalize import fold_name
from policyd.core.ruleset import Verb
from policyd.exchange.access.specificity import Mailbox, Name, Network, PlainKey
from policyd.exchange.model import DUNNO, UnsupportedError, by_condition, shown
from policyd.exchange.values import EXACT_CONDITIONS, SUFFIX_CONDITIONS, network

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from policyd.exchange.access.specificity import Key
    from policyd.exchange.model import ConversionReport, Row, Term, Verdict

# Maximum number of keys for one network. IPv4 needs at most 256, for 0.0.0.0/0; IPv6 may need more.
_MAX_KEYS = 256

# A local part at any domain: the expression that an import writes for the key `user@`.
_LOCAL_PART = re.compile(r"\^((?:[\w-]|\\[^\w])+)@")


class Written(NamedTuple):
    """A key of the table, and its answer.

    `row` is the rule that gives the answer, or None if the key is only an exception of rules.
    """

    key: str
    verdict: Verdict
    row: Row | None


def keys_of(rows: Sequence[Row], attribute: str, report: ConversionReport, *, dotted: bool) -> list[Written]:
    """The keys for the lookup of `attribute`: `client`, `helo_name`, `sender` or `recipient`.

    Reports rules that this lookup cannot express.
    """
    table = _Table(attribute, report, dotted=dotted)
    for row in rows:
        table.add(row)
    return table.written()


class _Table:
    def __init__(self, attribute: str, report: ConversionReport, *, dotted: bool) -> None:
        self._attribute = attribute
        self._report = report
        self._dotted = dotted
        self._rows: list[Row] = []
        self._matching: dict[Key, list[int]] = {}  # the rows of each key, in order
        self._excepting: dict[Key, list[int]] = {}
        self._mixed: set[Key] = set()  # names excepted from a row for networks
        self._prefixes: list[int] = []

    def add(self, row: Row) -> None:
        """Adds the keys of a rule; reports a rule that keys cannot express."""
        number = len(self._rows)
        try:
            matching, excepting = self._both_keys(row)
        except UnsupportedError as error:
            self._report.lose(row.line, str(error))
            return
        self._rows.append(row)
        self._report.taken += 1
        for key in matching:
            self._matching.setdefault(key, []).append(number)
        for key in excepting:
            self._excepting.setdefault(key, []).append(number)
            if isinstance(key, Network) != isinstance(matching[0], Network):
                self._mixed.add(key)

    def _both_keys(self, row: Row) -> tuple[list[Key], list[Key]]:
        matching = list(self._keys(row, row.match))
        excepting = list(self._keys(row, row.exceptions))
        if len(by_condition(row.match)) != 1:
            raise UnsupportedError("uses two conditions; a key has only one")
        if not isinstance(matching[0], Network) and any(isinstance(key, Network) for key in excepting):
            raise UnsupportedError("it excepts addresses, but a name is looked up before an address")
        return matching, excepting

    def written(self) -> list[Written]:
        """Returns the keys in the order of the rules, with the keys of exceptions last."""
        keys = {key: None for rows_of in (self._matching, self._excepting) for key in rows_of}
        self._prefixes = sorted({key.prefix for key in keys if isinstance(key, Network)}, reverse=True)
        self._note_order()
        answers: dict[Key, tuple[Verdict, Row | None]] = {}
        for key in sorted(keys, key=lambda each: each.depth):  # the widest first
            row = self._first_row(key)
            verdict = row.verdict if row is not None else DUNNO
            covering = next((wider for wider in key.wider(self._prefixes) if wider in answers), None)
            wider_verdict = answers[covering][0] if covering is not None else None
            if row is None and wider_verdict is not None:
                self._note_excepted_name(key)
            needed = verdict != wider_verdict if row is not None else wider_verdict is not None or key in self._mixed
            if needed and not (row is None and wider_verdict is not None and wider_verdict.verb is Verb.DUNNO):
                answers[key] = verdict, row
        return [Written(_text(key), *answers[key]) for key in keys if key in answers]

    def _first_row(self, key: Key) -> Row | None:
        left = self._rows_covering(key, self._matching) - self._rows_covering(key, self._excepting)
        return self._rows[min(left)] if left else None

    def _rows_covering(self, key: Key, rows_of: dict[Key, list[int]]) -> set[int]:
        """The numbers of the rows that have this key or a key that covers it."""
        return {number for wider in (key, *key.wider(self._prefixes)) for number in rows_of.get(wider, ())}

    def _note_order(self) -> None:
        """Notes that the lookup changes the order of the rules: names come before addresses, domains before `user@`."""
        names = [number for key, rows in self._matching.items() if isinstance(key, Name) for number in rows]
        later = [number for key, rows in self._matching.items() if _is_looked_up_late(key) for number in rows]
        if names and later and min(later) < max(names):
            what, early = (
                ("names are looked up before addresses", "names")
                if self._attribute == "client"
                else ("domains come before `user@`", "domains")
            )
            self._report.note(
                self._rows[min(later)].line,
                f"{what} in such a table, so rules about {early} take precedence over the rules above them",
            )

    def _note_excepted_name(self, key: Key) -> None:
        """Notes an excepted name in a table that also has networks: if the name is found, no address is looked up."""
        if isinstance(key, Name) and any(isinstance(key, Network) for key in self._matching):
            row = self._rows[min(self._rows_covering(key, self._excepting))]
            self._report.note(
                row.line, "in such a table, a name that it excepts is let through whatever the client's address is"
            )

    def _keys(self, row: Row, terms: Iterable[Term]) -> Iterator[Key]:
        for condition, value in terms:
            if condition == "cidr" and self._attribute == "client":
                yield from _network_keys(network(value))
            elif condition in {SUFFIX_CONDITIONS[self._attribute], EXACT_CONDITIONS.get(self._attribute)}:
                yield from self._name_keys(row, value, exact=condition != SUFFIX_CONDITIONS[self._attribute])
            elif condition == self._attribute and value != "<>":
                yield Mailbox(_mailbox(value))
            elif (condition, value) in {("sender", "<>"), ("client_name", "unknown")}:
                yield PlainKey(value)
            elif condition == f"{self._attribute}_regex" and (local := _LOCAL_PART.fullmatch(value)):
                yield PlainKey(re.sub(r"\\(.)", r"\1", local[1]).lower() + "@")
            else:
                raise UnsupportedError(f"uses {condition}, which a key cannot express")

    def _name_keys(self, row: Row, value: str, *, exact: bool) -> Iterator[Key]:
        name = fold_name(value.encode()).decode("ascii", "replace")
        if name.startswith("["):  # an address literal as the HELO name
            yield PlainKey(name)
        elif self._dotted:
            if not name.startswith("."):
                yield Name(name, exact=True)
            if not exact:
                yield Name(f".{name.removeprefix('.')}")
        elif name.startswith("."):
            raise UnsupportedError("a key covers the name itself as well as the names under it (--dotted)")
        else:
            if exact:
                self._report.note(row.line, "a key covers the names under it, too (--dotted)")
            yield Name(name)


def _mailbox(value: str) -> str:
    """A mail address as a key: in lower case, its domain in A-labels."""
    local, _, domain = value.rpartition("@")
    if not local or re.search(r'[\s"]|^#', local):
        raise UnsupportedError(f"a key cannot be {shown(value)}")
    return f"{local.lower()}@{fold_name(domain.encode()).decode('ascii', 'replace')}"


def _network_keys(of: netaddr.IPNetwork) -> Iterator[Key]:
    """Yields the prefixes of whole octets (IPv6: whole pairs) that make up this network."""
    step = 8 if of.version == 4 else 16
    prefix = -(-max(of.prefixlen, step) // step) * step
    if 1 << (prefix - of.prefixlen) > _MAX_KEYS:
        raise UnsupportedError(f"{of} would be {1 << (prefix - of.prefixlen):,} keys; export a cidr: table")
    for part in of.subnet(prefix):
        if part.version == 6 and not _can_be_cut_to(part):
            raise UnsupportedError(
                f"{part} cannot be a key, because Postfix shortens addresses with `::`; export a cidr: table"
            )
        yield Network.of(part)


def _is_looked_up_late(key: Key) -> bool:
    return isinstance(key, Network) or (isinstance(key, PlainKey) and key.value.endswith("@"))


def _text(key: Key) -> str:
    """The text of a key."""
    if isinstance(key, Network):
        address = netaddr.IPAddress(key.first, key.version)
        if key.version == 4:
            return ".".join(str(address).split(".")[: key.prefix // 8])
        pairs = [f"{key.first >> 112 - 16 * place & 0xFFFF:x}" for place in range(key.prefix // 16)]
        return str(address) if key.prefix == 128 else ":".join(pairs)
    return key.name if isinstance(key, Name) else key.value


def _can_be_cut_to(part: netaddr.IPNetwork) -> bool:
    """Whether Postfix gets this prefix by cutting pairs off an address in its short form (access(5))."""
    pairs = [part.first >> 112 - 16 * place & 0xFFFF for place in range(part.prefixlen // 16)]
    zeros = any(not pair and not other for pair, other in pairwise(pairs))
    return len(pairs) == 8 or (pairs[-1] != 0 and not zeros)
