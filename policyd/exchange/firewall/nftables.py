"""nftables as `nft list ruleset` prints them, import, and a named set for `nft -f`, export.

Lines about `ip saddr` and `ip6 saddr` are taken, in the order in which they decide. A file that has sets and no such
line is a list: its sets' elements are the entries.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from policyd.exchange.firewall.address_block import EVERYTHING, Block
from policyd.exchange.firewall.chains import MAIL_PORTS, Does, Step, flattened
from policyd.exchange.model import Entry, Imported, Line, NoEqualError, Term, shown
from policyd.exchange.network_sets import rejected, texts
from policyd.exchange.values import address_range, network_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import netaddr

    from policyd.exchange.model import ExportOptions, Report, Row

_TOKEN = re.compile(r'"[^"]*"?|[{};=,]|!=|[^\s{};=,!"]+|!')
_DOES = {"accept": Does.ACCEPT, "drop": Does.DROP, "reject": Does.DROP, "return": Does.RETURN}
_SOURCES = {"ip": 4, "ip6": 6}
_ADDRESSES = frozenset({"ipv4_addr", "ipv6_addr"})

# Words with which a block of statements begins; any other brace is around values.
_BLOCKS = frozenset({"table", "set", "map", "chain"})

# A table holds chains, a chain statements, and a variable may name others: what is deeper than this is no ruleset.
_DEPTH = 8


class _Word(NamedTuple):
    text: str
    line: Line


@dataclass(slots=True)
class _Statement:
    """The words up to a line's end or a `;`; where they open a block, what is in it."""

    words: list[_Word]
    inner: list[_Statement] | None = None

    @property
    def line(self) -> Line:
        return self.words[0].line


@dataclass(slots=True)
class _Set:
    line: Line
    elements: list[netaddr.IPNetwork] = field(default_factory=list)
    reason: str = ""  # why its elements are no networks
    used: bool = False


def read(lines: Iterable[Line], report: Report) -> Imported:
    """The rows of what the chains let in and keep out, or the elements of the sets."""
    imported = Imported()
    unused: list[_Set] = []
    variables: dict[str, list[_Word]] = {}
    for statement in _statements(lines, report):
        head = [word.text for word in statement.words]
        if head[0] == "define" and len(head) > 3 and head[2] == "=":
            variables[head[1]] = statement.words[3:]
        elif head[0] in {"table", "add", "create"} and statement.inner is not None and "table" in head[:2]:
            table = _Table(statement, variables, report)
            imported.rows += table.rows()
            unused += table.unused()
        elif head[0] not in {"flush", "delete", "destroy"}:
            report.lose(
                statement.line, "only tables with their chains and sets are read, as `nft list ruleset` prints them"
            )
    if not imported.rows:
        imported.entries = [
            Entry(Term("cidr", network_text(one)), each.line) for each in unused for one in each.elements
        ]
        report.taken += len(imported.entries)
        return imported
    for each in unused:
        report.lose(each.line, "no line that was taken asks for this set")
    return imported


# --- Words and statements ---------------------------------------------------------------------------------------------


def _words(lines: Iterable[Line]) -> Iterator[_Word]:
    """The words of all lines; a line's end is a word of its own."""
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


def _statements(lines: Iterable[Line], report: Report) -> list[_Statement]:
    top: list[_Statement] = []
    blocks = [top]
    words: list[_Word] = []
    values = 0  # braces around values that are open
    for word in _words(lines):
        if word.text == "{" and (values or not _opens_block(words)):
            values += 1
            words.append(word)
        elif word.text == "{":
            inner: list[_Statement] = []
            statement = _Statement(words, inner)
            if len(blocks) > _DEPTH:
                report.lose(word.line, f"blocks are more than {_DEPTH} deep")
                break
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
    if words or len(blocks) > 1:
        line = (words or blocks[-2][-1].words)[0].line
        report.note(line, "the file ends within this block; it was cut off")
        if words:
            blocks[-1].append(_Statement(words))
    return top


def _opens_block(words: list[_Word]) -> bool:
    if not words:
        return False
    first = words[1].text if words[0].text in {"add", "create"} and len(words) > 1 else words[0].text
    return first in _BLOCKS and len(words) <= 5 and not any(word.text in {"=", "saddr", "dport"} for word in words)


# --- One table --------------------------------------------------------------------------------------------------------


class _Table:
    def __init__(self, statement: _Statement, variables: dict[str, list[_Word]], report: Report) -> None:
        self.report = report
        self._variables = variables
        names = [word.text for word in statement.words if word.text not in {"add", "create", "table"}]
        self._family = names[0] if len(names) > 1 else "ip"
        self._sets: dict[str, _Set] = {}
        self._chains: dict[str, list[Step]] = {}
        self._roots: list[str] = []
        inner = statement.inner or []
        # Sets first: a chain may ask for one that stands below it.
        for kind, take in (("set", self._take_set), ("chain", self._take_chain)):
            for one in inner:
                if one.words[0].text == kind and one.inner is not None and len(one.words) > 1:
                    take(one.words[1].text, one)
        for one in inner:
            if one.words[0].text not in {"set", "chain", "flags", "comment"}:
                report.lose(one.line, f"{shown(one.words[0].text)} says nothing of who sends mail")

    def rows(self) -> list[Row]:
        everybody = (
            Block(EVERYTHING[4]) if self._family == "ip" else Block(EVERYTHING[6]) if self._family == "ip6" else Block()
        )
        return flattened(self._chains, self._roots, self.report, everybody)

    def unused(self) -> list[_Set]:
        """The sets of networks for which no line asks."""
        return [one for one in self._sets.values() if not one.used and not one.reason]

    def _take_set(self, name: str, statement: _Statement) -> None:
        found = self._sets[name] = _Set(statement.line)
        for one in statement.inner or []:
            words = [word.text for word in one.words]
            if words[0] == "type" and not (len(words) == 2 and words[1] in _ADDRESSES):
                found.reason = f"a set of {' '.join(words[1:])[:40]}"
            elif words[0] == "typeof" and words[1:] not in (
                ["ip", "saddr"],
                ["ip6", "saddr"],
                ["ip", "daddr"],
                ["ip6", "daddr"],
            ):
                found.reason = "a set of something else than addresses"
            elif words[0] == "elements":
                self._take_elements(one.words[2:], found)
        if found.reason:
            self.report.lose(found.line, f"{found.reason}; only sets of addresses are read")

    def _take_elements(self, words: list[_Word], found: _Set) -> None:
        if found.reason:
            return
        for element in _split(words):
            if any(word.text == "timeout" for word in element):
                self.report.note(element[0].line, "the element expires there by itself; here it stays")
            try:
                found.elements += address_range(element[0].text)
            except NoEqualError as error:
                self.report.lose(element[0].line, str(error))

    def _take_chain(self, name: str, statement: _Statement) -> None:
        steps = self._chains.setdefault(name, [])
        for one in statement.inner or []:
            words = [word.text for word in one.words]
            if words[0] == "type":
                if "input" in words:
                    self._roots.append(name)
                elif "hook" in words:
                    del self._chains[name]
                    self.report.lose(statement.line, "the chain is not about what comes in")
                    return
            elif words[0] not in {"policy", "comment", "devices"}:
                try:
                    steps.append(_Rule(self, one.words).read())
                except NoEqualError as error:
                    self.report.lose(one.line, str(error))

    def networks(self, words: list[_Word], depth: int = 0) -> list[netaddr.IPNetwork]:
        """The networks of `@SET`, `$VARIABLE`, `{ ... }`, a network or a range."""
        first = words[0].text
        if first.startswith("@"):
            found = self._sets.get(first[1:])
            if found is None or found.reason:
                raise NoEqualError(f"there is no set of addresses {shown(first[1:])} in this table")
            found.used = True
            if not found.elements:
                raise NoEqualError(f"the set {shown(first[1:])} is empty in this file")
            return found.elements
        if first.startswith("$"):
            meant = self._variables.get(first[1:])
            if not meant or depth > _DEPTH:
                raise NoEqualError(f"{shown(first)} is not defined in this file")
            return self.networks(meant, depth + 1)
        if first == "{":
            return [one for element in _split(words) for one in self.networks(element, depth + 1)]
        return address_range(first)


def _split(words: list[_Word]) -> Iterator[list[_Word]]:
    """The elements between braces, each as its words."""
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


class _Rule:
    """One line of a chain, read from its first word to its last."""

    def __init__(self, table: _Table, words: list[_Word]) -> None:
        self._table = table
        self._words = words
        self._place = 0
        self._sources: list[netaddr.IPNetwork] | None = None
        self._negated = False
        self._does: Does | None = None
        self._target = ""

    def read(self) -> Step:
        """The line as a step. Raises `NoEqualError` where it is not about who sends mail."""
        while self._place < len(self._words):
            self._take(self._next())
        if self._does is None:
            raise NoEqualError("it decides nothing")
        sources = tuple(self._sources) if self._sources is not None else None
        return Step(self._words[0].line, self._does, sources, self._negated, self._target)

    def _next(self) -> str:
        if self._place == len(self._words):
            raise NoEqualError("the line is cut off")
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
        if word in _SOURCES and self._peek() == "saddr":
            self._next()
            if self._sources is not None:
                raise NoEqualError("two conditions on the source")
            self._negated = self._unequal()
            self._sources = self._table.networks(self._value())
        elif word in {"tcp", "th"} and self._peek() in {"dport", "flags"}:
            self._take_port(self._next())
        elif word in {"iif", "iifname"}:
            self._take_interface()
        elif word == "ct" and self._peek() == "state":
            self._next()
            negated = self._unequal()
            if negated == ("new" in {one.text for one in self._value()}):
                raise NoEqualError("it is about connections that are there already")
        elif word in {"meta", "ip", "ip6"} and self._peek() in {"l4proto", "nfproto", "protocol", "nexthdr"}:
            self._next()
            negated = self._unequal()
            if negated or not {one.text for one in self._value()} & {"tcp", "6", "ipv4", "ipv6"}:
                raise NoEqualError("it is not about mail's protocol")
        elif not self._take_statement(word):
            raise NoEqualError(f"the condition {shown(word)} has no equal")

    def _take_statement(self, word: str) -> bool:
        """Takes what is no condition, if it is that."""
        if word in _DOES:
            self._does = _DOES[word]
            if word == "reject" and self._peek() == "with":
                self._place = len(self._words)
        elif word in {"jump", "goto"}:
            self._does = Does.JUMP if word == "jump" else Does.GOTO
            self._target = self._next()
        elif word == "counter":
            while self._peek() in {"packets", "bytes"}:
                self._place += 2
        elif word == "comment":
            self._next()
        elif word == "log":
            while self._peek() in {"prefix", "level", "flags", "group"}:
                self._place += 2
        else:
            return False
        return True

    def _unequal(self) -> bool:
        if self._peek() == "!=":
            self._place += 1
            return True
        if self._peek() == "==":
            self._place += 1
        return False

    def _take_interface(self) -> None:
        negated = self._unequal()
        if ("lo" in {word.text.strip('"') for word in self._value()}) != negated:
            raise NoEqualError("it is about the machine's own connections")
        self._table.report.note(self._words[0].line, "it holds for one interface there, and for all here")

    def _take_port(self, what: str) -> None:
        negated = self._unequal()
        ports = {word.text for word in self._value()}
        if what == "dport" and negated == bool(ports & MAIL_PORTS):
            raise NoEqualError("the port is not mail's")


# --- Export -----------------------------------------------------------------------------------------------------------

_TYPES = {4: "ipv4_addr", 6: "ipv6_addr"}


def write(rows: Sequence[Row], report: Report, options: ExportOptions) -> str:
    """A table with a named set for each IP version, for `nft -f`: all in one step, and the sets filled anew each time.

    The rule that drops is a comment: where it belongs, and what it is to do, the administrator knows.
    """
    addresses = rejected(rows, report, deferred=options.deferred)
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
        *(line for version in _TYPES for line in _set(version, texts(addresses, version))),
        "}",
        "",
    ]
    return "\n".join(lines)


def _set(version: int, networks: list[str]) -> Iterator[str]:
    yield f"\tset blocked{version} {{"
    yield f"\t\ttype {_TYPES[version]}"
    yield "\t\tflags interval"
    if networks:
        yield "\t\telements = {"
        yield from (f"\t\t\t{network}," for network in networks)
        yield "\t\t}"
    yield "\t}"
