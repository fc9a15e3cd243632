"""Imports the output of `nft list ruleset` and `nft -j list ruleset` (nft(8)), and exports named sets for `nft -f`.

The import follows new TCP connections to one port through each base chain that receives incoming packets, and through
its jumps. If the file gives no rows, the elements of its unused sets become the entries of a list.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from policyd.exchange.firewall.address_block import EVERYTHING, AddressBlock
from policyd.exchange.firewall.chains import (
    BaseChain,
    ChainStep,
    Effect,
    FollowedConnection,
    OtherTrafficError,
    flatten,
)
from policyd.exchange.firewall.nft_json import as_text
from policyd.exchange.firewall.sets import ELEMENT_EXPIRES, note_merged
from policyd.exchange.model import Imported, IncompleteError, Line, ListEntry, Term, UnsupportedError, shown
from policyd.exchange.network_sets import network_texts, rejected_addresses
from policyd.exchange.values import address_range, network_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import netaddr

    from policyd.exchange.model import ConversionReport, ExportOptions, Row

_TOKEN = re.compile(r'"[^"]*"?|[{};=,]|!=|[^\s{};=,!"]+|!')
_EFFECTS = {
    "accept": Effect.ACCEPT,
    "drop": Effect.DROP,
    "reject": Effect.DROP,
    "return": Effect.RETURN,
    "continue": Effect.NOTHING,
}
_FAMILIES = {"ip": AddressBlock(EVERYTHING[4]), "ip6": AddressBlock(EVERYTHING[6])}
_ADDRESS_TYPES = frozenset({"ipv4_addr", "ipv6_addr"})
_ADDRESS_FIELDS = (["ip", "saddr"], ["ip6", "saddr"], ["ip", "daddr"], ["ip6", "daddr"])

# Hooks for incoming packets, in the kernel's order; `forward`, `output` and `postrouting` get other packets.
_HOOKS = ("ingress", "prerouting", "input")

# Words at the beginning of a line that may open a block of statements. In all other lines a brace opens values.
_BLOCKS = frozenset({"table", "set", "map", "chain", "counter", "quota", "limit", "flowtable"})

# Maximum nesting of blocks and of variables: a table contains chains, and a variable may name another.
_DEPTH = 8


class _Word(NamedTuple):
    text: str
    line: Line


class _Values(NamedTuple):
    """The right side of a comparison as words, and whether it is negated."""

    words: list[_Word]
    negated: bool = False


@dataclass(slots=True)
class _Statement:
    """The words up to a line's end or a `;`. If they open a block, `inner` is its content."""

    words: list[_Word]
    inner: list[_Statement] | None = None

    @property
    def line(self) -> Line:
        return self.words[0].line


@dataclass(slots=True)
class _Set:
    """A set or a map. `keys` has the words of each element, and `verdicts` the words of each verdict in a map."""

    line: Line
    keys: list[list[_Word]] = field(default_factory=list)
    verdicts: list[list[_Word]] = field(default_factory=list)
    elements: list[netaddr.IPNetwork] = field(default_factory=list)
    reason: str = ""  # why its elements are not networks
    used: bool = False


def read(
    lines: Iterable[Line], report: ConversionReport, *, port: int = 25, interface: str = "", sets: tuple[str, ...] = ()
) -> Imported:
    """The rows for one port, or the elements of unused sets. Raises `IncompleteError`.

    If `sets` has names, only the elements of these sets are read, used or not.
    """
    imported = Imported()
    tables: list[_Table] = []
    variables: dict[str, list[_Word]] = {}
    for statement in _statements(as_text(lines)):
        head = [word.text for word in statement.words]
        if head[0] == "define" and len(head) > 3 and head[2] == "=":
            variables[head[1]] = statement.words[3:]
        elif head[0] in {"table", "add", "create"} and statement.inner is not None and "table" in head[:2]:
            tables.append(_Table(statement, variables, report, FollowedConnection(port, interface)))
        elif head[0] not in {"flush", "delete", "destroy"} and not (
            head[0] in {"table", "add"} and "table" in head[:2]
        ):
            report.lose(
                statement.line,
                "only tables with chains and sets are supported, in the form that `nft list ruleset` prints",
            )
    if not sets:
        chains = {name: steps for table in tables for name, steps in table.chains.items()}
        bases = sorted((base for table in tables for base in table.bases), key=lambda base: base[0])
        families = {table.family for table in tables}
        default_addresses = _FAMILIES.get(families.pop()) if len(families) == 1 else None
        imported.rows = flatten(chains, [base for _, base in bases], report, default_addresses)
    of_networks = {
        name: found_set for table in tables for name, found_set in table.sets.items() if not found_set.reason
    }
    chosen = {
        name: found_set for name, found_set in of_networks.items() if (name in sets if sets else not found_set.used)
    }
    if imported.rows:
        for chosen_set in chosen.values():
            report.lose(chosen_set.line, "no imported line uses this set")
        return imported
    if not sets:
        note_merged({name: chosen_set.line for name, chosen_set in chosen.items()}, report)
    for chosen_set in chosen.values():
        imported.entries += [
            ListEntry(Term("cidr", network_text(each)), chosen_set.line) for each in chosen_set.elements
        ]
    report.taken += len(imported.entries)
    return imported


# --- Words and statements ---------------------------------------------------------------------------------------------


def _words(lines: Iterable[Line]) -> Iterator[_Word]:
    """The words of all lines; a line's end is a separate word."""
    joined = False
    for line in lines:
        text = line.text
        if not joined and text.lstrip().startswith("#"):
            continue
        for match in _TOKEN.finditer(text):
            if match[0].startswith("#"):
                break
            if match[0] != "\\":
                yield _Word(match[0], line)
        joined = text.rstrip().endswith("\\")
        if not joined:
            yield _Word("\n", line)


def _statements(lines: Iterable[Line]) -> list[_Statement]:
    top: list[_Statement] = []
    blocks = [top]
    words: list[_Word] = []
    values = 0  # open braces around values
    for word in _words(lines):
        if word.text == "{" and (values or not _opens_block(words)):
            values += 1
            words.append(word)
        elif word.text == "{":
            inner: list[_Statement] = []
            statement = _Statement(words, inner)
            if len(blocks) > _DEPTH:
                raise IncompleteError(
                    word.line, f"blocks are more than {_DEPTH} deep, so a closing brace is probably missing"
                )
            blocks[-1].append(statement)
            blocks.append(inner)
            words = []
        elif word.text == "}" and values:
            values -= 1
            words.append(word)
        elif word.text in {";", "\n", "}"}:
            if values:
                continue
            if words:
                blocks[-1].append(_Statement(words))
                words = []
            if word.text == "}" and len(blocks) > 1:
                blocks.pop()
        else:
            words.append(word)
    if len(blocks) > 1 or values:
        line = blocks[-2][-1].line if len(blocks) > 1 else words[0].line
        raise IncompleteError(line, "the file ends in the middle of the block that begins here")
    return top


def _opens_block(words: list[_Word]) -> bool:
    if not words:
        return False
    first = words[1].text if words[0].text in {"add", "create"} and len(words) > 1 else words[0].text
    return first in _BLOCKS and len(words) <= 5 and not any(word.text in {"=", "saddr", "dport"} for word in words)


# --- One table --------------------------------------------------------------------------------------------------------


class _Table:
    """The chains and sets of a table. The names of the chains begin with the name of the table.

    `bases` are the chains that receive incoming packets, each with its place in the kernel's order.
    """

    def __init__(
        self,
        statement: _Statement,
        variables: dict[str, list[_Word]],
        report: ConversionReport,
        connection: FollowedConnection,
    ) -> None:
        self.report = report
        self.connection = connection
        self._variables = variables
        names = [word.text for word in statement.words if word.text not in {"add", "create", "table"}]
        self.family = names[0] if len(names) > 1 else "ip"
        self._name = " ".join(names)
        self.sets: dict[str, _Set] = {}
        self.chains: dict[str, list[ChainStep]] = {}
        self.bases: list[tuple[int, BaseChain]] = []
        inner = statement.inner or []
        # Sets are read first, because a chain may use a set that is defined below it.
        for kinds, take in ((("set", "map"), self._take_set), (("chain",), self._take_chain)):
            for unread in inner:
                if unread.words[0].text in kinds and unread.inner is not None and len(unread.words) > 1:
                    take(unread.words[1].text, unread)
        for unread in inner:
            if unread.words[0].text not in {"set", "map", "chain", "flags", "comment"}:
                report.lose(unread.line, f"{shown(unread.words[0].text)} does not decide who may send mail")

    def chain_name(self, name: str) -> str:
        """The unique name of a chain of this table among all tables."""
        return f"{self._name} {name}"

    def _take_set(self, name: str, statement: _Statement) -> None:
        found = self.sets[name] = _Set(statement.line)
        is_map = statement.words[0].text == "map"
        for inner in statement.inner or []:
            words = [word.text for word in inner.words]
            if is_map and words[0] in {"type", "typeof"} and words[-1] == "verdict":
                found.reason = "a map"
            elif words[0] == "type" and not (len(words) == 2 and words[1] in _ADDRESS_TYPES):
                found.reason = f"a set of {' '.join(words[1:])[:40]}"
            elif words[0] == "typeof" and words[1:] not in _ADDRESS_FIELDS:
                found.reason = "a set of elements that are not addresses"
            elif words[0] == "elements":
                self._take_elements(inner.words[2:], found)
        if found.reason and not is_map and not found.reason.startswith(("a set of inet_service", "a set of ifname")):
            self.report.lose(found.line, f"{found.reason}; only sets of addresses are supported")

    def _take_elements(self, words: list[_Word], found: _Set) -> None:
        for element in _split(words):
            key, verdict = _key_and_verdict(element)
            found.keys.append(key)
            found.verdicts.append(verdict)
            if found.reason:
                continue
            if any(word.text == "timeout" for word in element):
                self.report.note(element[0].line, ELEMENT_EXPIRES)
            try:
                found.elements += address_range(element[0].text, self.report.on_host_bits(element[0].line))
            except UnsupportedError as error:
                self.report.lose(element[0].line, str(error))

    def _take_chain(self, name: str, statement: _Statement) -> None:
        steps = self.chains.setdefault(self.chain_name(name), [])
        drops = False
        base: tuple[int, str] | None = None
        other_hook = False
        for inner in statement.inner or []:
            words = [word.text for word in inner.words]
            if words[0] == "type":
                hook = next((word for word in _HOOKS if word in words), "")
                if hook and words[1] == "filter" and self.family in {"ip", "ip6", "inet", "netdev"}:
                    condition = "the interface of this chain" if self.family == "netdev" else ""
                    base = _HOOKS.index(hook) * 1_000_000 + _priority(words), condition
                else:
                    other_hook = "hook" in words
            elif words[0] == "policy":
                drops = words[1:] == ["drop"]
            elif words[0] not in {"comment", "devices", "flags"}:
                steps += _Rule(self, inner.words).read()
        if other_hook:
            for step in steps:
                step.lost, step.other_traffic = "the chain is not about incoming packets", True
        if base is not None:
            addresses = _FAMILIES.get(self.family, AddressBlock())
            self.bases.append(
                (base[0], BaseChain(self.chain_name(name), statement.line, addresses, drops=drops, condition=base[1]))
            )

    def networks(self, words: list[_Word], depth: int = 0) -> list[netaddr.IPNetwork]:
        """The networks of `@SET`, `$VARIABLE`, `{ ... }`, a network or a range."""
        first = words[0].text
        if first.startswith("@"):
            found = self.sets.get(first[1:])
            if found is None or found.reason:
                raise UnsupportedError(f"there is no set of addresses {shown(first[1:])} in this table")
            found.used = True
            if not found.elements:
                raise OtherTrafficError(f"the set {shown(first[1:])} is empty in this file")
            return found.elements
        if first == "{" or first.startswith("$") or any(word.text == "," for word in words):
            return [found for element in self.elements(words, depth) for found in self.networks(element, depth + 1)]
        return address_range(first, self.report.on_host_bits(words[0].line))

    def elements(self, words: list[_Word], depth: int = 0) -> list[list[_Word]]:
        """The elements of `@SET`, `$VARIABLE` or `{ ... }`, or the value itself, each as its words."""
        first = words[0].text
        if first.startswith("@"):
            found = self.sets.get(first[1:])
            if found is None:
                raise UnsupportedError(f"there is no set {shown(first[1:])} in this table")
            found.used = True
            return found.keys
        if first.startswith("$"):
            value = self._variables.get(first[1:])
            if not value or depth > _DEPTH:
                raise UnsupportedError(f"{shown(first)} is not defined in this file")
            return self.elements(value, depth + 1)
        return [*_split(words)]

    def pairs(self, words: list[_Word]) -> list[tuple[list[_Word], list[_Word]]]:
        """The keys of a verdict map, `@MAP` or `{ KEY : VERDICT, ... }`, and the verdict of each."""
        if words[0].text.startswith("@"):
            found = self.sets.get(words[0].text[1:])
            if found is None:
                raise UnsupportedError(f"there is no map {shown(words[0].text[1:])} in this table")
            return [*zip(found.keys, found.verdicts, strict=True)]
        return [_key_and_verdict(element) for element in _split(words)]


def _priority(words: list[str]) -> int:
    """A base chain's priority as a number: `filter`, `-150`, `filter + 10` (nft(8), "Standard priority names")."""
    named = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}
    place = words.index("priority") + 1 if "priority" in words else len(words)
    total, sign = 0, 1
    for word in words[place:]:
        if word in {"+", "-"}:
            sign = 1 if word == "+" else -1
        elif word in named:
            total += named[word]
        elif re.fullmatch(r"[+-]?\d{1,6}", word):
            total += sign * int(word)
        else:
            break
    return total


def _split(words: list[_Word]) -> Iterator[list[_Word]]:
    """Yields the elements between braces, each as its words."""
    element: list[_Word] = []
    for word in words:
        if word.text in {"{", "}", ","}:
            if element:
                yield element
            element = []
        else:
            element.append(word)
    if element:
        yield element


def _key_and_verdict(element: list[_Word]) -> tuple[list[_Word], list[_Word]]:
    """The words of an element before and after the `:` of a map; a set's element has no verdict."""
    place = next((place for place, word in enumerate(element) if word.text == ":"), len(element))
    return element[:place], element[place + 1 :]


class _Rule:
    """One line of a chain, read from its first word to its last."""

    def __init__(self, table: _Table, words: list[_Word]) -> None:
        self._table = table
        self._words = words
        self._place = 0
        self._step = ChainStep(words[0].line)
        self._made: list[ChainStep] = []  # one for each key of a verdict map

    def read(self) -> list[ChainStep]:
        """The line as a step, or as a step for each key of a verdict map."""
        while self._place < len(self._words):
            try:
                self._take(self._next())
            except UnsupportedError as error:
                other_traffic = isinstance(error, OtherTrafficError)
                if not self._step.lost or other_traffic:
                    self._step.lost, self._step.other_traffic = str(error), other_traffic
        step = self._step
        if not self._made and step.effect is Effect.NOTHING:
            step.lost, step.other_traffic = step.lost or "it decides nothing", True
        steps = self._made or [step]
        for made in self._made:
            if step.lost and not made.lost:
                made.lost, made.other_traffic = step.lost, step.other_traffic
            made.condition = made.condition or step.condition
        return steps

    def _next(self) -> str:
        if self._place == len(self._words):
            raise UnsupportedError("the line is cut off")
        word = self._words[self._place].text
        self._place += 1
        return word

    def _peek(self) -> str:
        return self._words[self._place].text if self._place < len(self._words) else ""

    def _value(self) -> list[_Word]:
        """A value: one word, words with commas between them, or all between braces."""
        start = self._place
        if self._next() == "{":
            while self._next() != "}":
                pass
        else:
            while self._peek() == ",":
                self._place += 1
                self._next()
        return self._words[start : self._place]

    def _take(self, word: str) -> None:
        if word == "meta" and self._peek() in {"iif", "iifname", "l4proto", "nfproto", "protocol"}:
            word = self._next()
        key = f"{word} {self._peek()}"
        if key in {"ip saddr", "ip6 saddr"}:
            self._next()
            self._compare(self._apply_sources)
        elif key in {"tcp dport", "th dport"}:
            self._next()
            self._compare(self._apply_port)
        elif word in {"iif", "iifname"}:
            self._compare(self._apply_interface)
        elif key in {"ip daddr", "ip6 daddr"}:
            self._next()
            self._compare(self._apply_destination)
        elif key == "ct state":
            self._next()
            self._compare(self._apply_state)
        elif key in {"ip protocol", "ip6 nexthdr"}:
            self._next()
            self._compare(self._apply_protocol)
        elif word in {"l4proto", "nfproto", "protocol"}:
            self._compare(self._apply_protocol)
        elif word in {"udp", "icmp", "icmpv6", "sctp", "dccp", "esp", "ah"}:
            self._place = len(self._words)
            self._keep_verdict()
            raise OtherTrafficError("it is not about mail's protocol")
        elif not self._take_statement(word):
            self._keep_verdict()
            self._place = len(self._words)
            raise UnsupportedError(f"the condition {shown(word)} is not supported")

    def _keep_verdict(self) -> None:
        """Finds the verdict of a line that cannot be read to its end, for the report of the loss."""
        for place, word in enumerate(self._words):
            if word.text in _EFFECTS:
                self._step.effect = _EFFECTS[word.text]
            elif word.text in {"jump", "goto"} and place + 1 < len(self._words):
                self._step.effect = Effect.JUMP
                self._step.target = self._table.chain_name(self._words[place + 1].text)

    def _compare(self, apply: Callable[[ChainStep, _Values], None]) -> None:
        """Reads the rest of a comparison, and calls `apply` with its value, or with each key of its verdict map."""
        if self._peek() == "vmap":
            self._next()
            for key, verdict in self._table.pairs(self._value()):
                step = ChainStep(self._words[0].line)
                step.sources, step.negated = self._step.sources, self._step.negated
                self._set_effect(step, verdict)
                try:
                    apply(step, _Values(key))
                except UnsupportedError as error:
                    step.lost, step.other_traffic = str(error), isinstance(error, OtherTrafficError)
                self._made.append(step)
            return
        negated = self._peek() == "!="
        if self._peek() in {"!=", "=="}:
            self._next()
        if self._peek() == "=":  # `==` as two words
            self._place += 2
        if self._peek() in {".", "&"}:
            raise UnsupportedError("a condition on several things at once")
        apply(self._step, _Values(self._value(), negated))

    def _set_effect(self, step: ChainStep, words: list[_Word]) -> None:
        """Sets the effect of a step, from `drop` or `jump CHAIN`."""
        if len(words) > 1 and words[0].text in {"jump", "goto"}:
            step.effect = Effect.JUMP if words[0].text == "jump" else Effect.GOTO
            step.target = self._table.chain_name(words[1].text)
        elif words and words[0].text in _EFFECTS:
            step.effect = _EFFECTS[words[0].text]
        if step.effect is Effect.NOTHING:
            step.lost, step.other_traffic = "it decides nothing", True

    def _apply_sources(self, step: ChainStep, values: _Values) -> None:
        if step.sources is not None:
            raise UnsupportedError("two conditions on the source")
        networks = self._table.networks(values.words)
        step.sources, step.negated = tuple(networks), values.negated

    def _apply_port(self, _step: ChainStep, values: _Values) -> None:
        connection = self._table.connection
        if any(connection.is_port(element[0].text) for element in self._table.elements(values.words)) == values.negated:
            raise OtherTrafficError(f"it is not about port {connection.port} (--port)")

    def _apply_interface(self, step: ChainStep, values: _Values) -> None:
        names = [element[0].text.strip('"') for element in self._table.elements(values.words)]
        step.condition = self._table.connection.interface_condition(names, negated=values.negated) or step.condition

    def _apply_destination(self, step: ChainStep, values: _Values) -> None:
        names = ", ".join(element[0].text for element in self._table.elements(values.words))
        step.condition = f"an address of this host, {'not ' if values.negated else ''}{names}"

    def _apply_state(self, _step: ChainStep, values: _Values) -> None:
        states = {word.text for element in self._table.elements(values.words) for word in element}
        if values.negated == ("new" in states):
            raise OtherTrafficError("it is about established connections")

    def _apply_protocol(self, step: ChainStep, values: _Values) -> None:
        names = {element[0].text for element in self._table.elements(values.words)}
        versions = {4 if name in {"ipv4", "ip"} else 6 for name in names if name in {"ipv4", "ip", "ipv6", "ip6"}}
        if not versions:
            if bool(names & {"tcp", "6"}) == values.negated:
                raise OtherTrafficError("it is not about mail's protocol")
        elif len(versions) == 1 and step.sources is None:
            step.sources, step.negated = (EVERYTHING[versions.pop()],), False
            if values.negated:
                step.sources = (EVERYTHING[10 - step.sources[0].version],)

    def _take_statement(self, word: str) -> bool:
        """Takes a statement that is not a condition; returns whether it is known."""
        if word in _EFFECTS:
            self._step.effect = _EFFECTS[word]
            if word == "reject" and self._peek() == "with":
                self._place = len(self._words)
        elif word in {"jump", "goto"}:
            self._step.effect = Effect.JUMP if word == "jump" else Effect.GOTO
            self._step.target = self._table.chain_name(self._next())
        elif word == "counter":
            if self._peek() == "name":
                self._place += 2
            while self._peek() in {"packets", "bytes"}:
                self._place += 2
        elif word == "comment":
            self._next()
        elif word == "fib" and [each.text for each in self._words[self._place : self._place + 3]] == [
            "daddr",
            "type",
            "local",
        ]:
            self._place += 3
        elif word == "log":
            while self._peek() in {"prefix", "level", "flags", "group", "snaplen", "queue-threshold"}:
                self._place += 2
        else:
            return False
        return True


# --- Export -----------------------------------------------------------------------------------------------------------

_TYPES = {4: "ipv4_addr", 6: "ipv6_addr"}


def write(rows: Sequence[Row], report: ConversionReport, options: ExportOptions) -> str:
    """A table with a named set for each IP version, for `nft -f`, which refills the sets in one transaction.

    The rule that drops is only a comment, because the administrator decides on its place and effect.
    """
    addresses = rejected_addresses(rows, report, deferred=options.deferred)
    table = f"inet {options.name}"
    lines = [
        f"# {options.heading}",
        "# Load with: nft -f FILE",
        f"table {table} {{",
        *(line for version in _TYPES for line in _set(version, [])),
        "\t# chain input {",
        "\t#\ttype filter hook input priority filter; policy accept;",
        "\t#\ttcp dport 25 ip saddr @blocked4 drop",
        "\t#\ttcp dport 25 ip6 saddr @blocked6 drop",
        "\t# }",
        "}",
        *(f"flush set {table} blocked{version}" for version in _TYPES),
        f"table {table} {{",
        *(line for version in _TYPES for line in _set(version, network_texts(addresses, version))),
        "}",
        "",
    ]
    return "\n".join(lines)


def _set(version: int, networks: list[str]) -> Iterator[str]:
    yield f"\tset blocked{version} {{"
    yield f"\t\ttype {_TYPES[version]}"
    yield "\t\tflags interval"
    yield "\t\tauto-merge"
    if networks:
        yield "\t\telements = {"
        yield from (f"\t\t\t{network}," for network in networks)
        yield "\t\t}"
    yield "\t}"
