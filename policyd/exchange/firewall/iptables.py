"""Imports the output of iptables-save(8) and ip6tables-save(8), and exports a chain for iptables-restore(8).

The import follows new TCP connections to one port through the chains of each table that receive incoming packets, and
through their jumps. `iptables -S` and a script of `iptables -A ...` lines are read as well.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policyd.config.problems import counted
from policyd.exchange.firewall.chains import (
    BaseChain,
    ChainStep,
    Effect,
    FollowedConnection,
    OtherTrafficError,
    flatten,
)
from policyd.exchange.model import Imported, IncompleteError, Line, UnsupportedError, shown
from policyd.exchange.network_sets import network_texts, rejected_addresses
from policyd.exchange.values import address_range, network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import netaddr

    from policyd.exchange.model import ConversionReport, ExportOptions, Row

_TARGETS = {
    "DROP": Effect.DROP,
    "REJECT": Effect.DROP,
    "TARPIT": Effect.DROP,
    "ACCEPT": Effect.ACCEPT,
    "RETURN": Effect.RETURN,
}
_NOT_DECIDING = frozenset(
    {"AUDIT", "CLASSIFY", "CONNMARK", "CT", "LOG", "MARK", "NFLOG", "NOTRACK", "SET", "TCPMSS", "TRACE", "ULOG"}
)

# The chains that decide on incoming packets, in the kernel's order. Each decides separately.
_BASES = ("raw PREROUTING", "mangle PREROUTING", "mangle INPUT", "filter INPUT", "security INPUT")
_BUILT_IN = frozenset({"INPUT", "OUTPUT", "FORWARD", "PREROUTING", "POSTROUTING"})

# Options without an argument to test, or with a test of their own, with the number of words of each: the option and its
# arguments.
_WORDS = {
    **dict.fromkeys(("-m", "--match", "--comment", "--reject-with"), 2),
    **dict.fromkeys(("-c", "--tcp-flags", "--match-set"), 3),
    "--syn": 1,
}
_TCP_FLAGS = frozenset({"SYN", "ACK", "FIN", "RST", "URG", "PSH"})


def read(lines: Iterable[Line], report: ConversionReport, *, port: int = 25, interface: str = "") -> Imported:
    """The rows for one port: accepted and dropped sources. Raises `IncompleteError`."""
    file = _File(report, FollowedConnection(port, interface))
    report.take_each(lines, file.take)
    if file.unfinished is not None:
        raise IncompleteError(file.unfinished, "the table has no COMMIT: the file is truncated")
    bases = [
        BaseChain(name, file.declared.get(name) or file.chains[name][0].line, drops=name in file.dropping)
        for name in _BASES
        if name in file.declared or file.chains.get(name)
    ]
    return Imported(rows=flatten(file.chains, bases, report))


class _File:
    """The chains of a file, by table and name, built line by line."""

    def __init__(self, report: ConversionReport, connection: FollowedConnection) -> None:
        self.chains: dict[str, list[ChainStep]] = {}
        self.declared: dict[str, Line] = {}
        self.dropping: set[str] = set()
        self.unfinished: Line | None = None
        self._report = report
        self._connection = connection
        self._table = "filter"

    def take(self, line: Line) -> bool:
        """Takes a line; returns False, because imported lines are only known after the chains have been followed."""
        text = line.text.strip()
        if text.startswith("*"):
            if self.unfinished is not None:
                raise IncompleteError(
                    line, f"a table begins, but the table of line {self.unfinished.number} has no COMMIT"
                )
            self._table, self.unfinished = text[1:].strip(), line
        elif text == "COMMIT":
            self._table, self.unfinished = "filter", None
        elif text.startswith(":"):
            name, _, policy = text[1:].partition(" ")
            self._declare(name, policy.split(maxsplit=1)[0] if policy else "-", line)
        elif text and not text.startswith("#"):
            self._take_command(line)
        return False

    def _declare(self, name: str, policy: str, line: Line) -> None:
        chain = f"{self._table} {name}"
        self.chains.setdefault(chain, [])
        self.declared.setdefault(chain, line)
        if policy == "DROP":
            self.dropping.add(chain)

    def _take_command(self, line: Line) -> None:
        try:
            words = shlex.split(re.sub(r"^\s*\[\d+:\d+\]\s*", "", line.text))
        except ValueError as error:
            raise UnsupportedError(f"not a line of iptables-save: {str(error).lower()}") from None
        while words and re.fullmatch(r"(?:.*/)?(?:sudo|ip6?tables)|-w|--wait", words[0]):
            words = words[1:]
        before = self._table
        if len(words) > 2 and words[0] in {"-t", "--table"}:
            self._table, words = words[1], words[2:]
        try:
            self._take_words(line, words)
        finally:
            self._table = before

    def _take_words(self, line: Line, words: list[str]) -> None:
        if len(words) == 2 and words[0] in {"-N", "--new-chain"}:
            self._declare(words[1], "-", line)
            return
        if len(words) == 3 and words[0] in {"-P", "--policy"}:
            self._declare(words[1], words[2], line)
            return
        inserted = words[:1] in (["-I"], ["--insert"])
        if len(words) < 3 or not (inserted or words[0] in {"-A", "--append"}):
            raise UnsupportedError("not a line of iptables-save; write `-A CHAIN -s NETWORK -j DROP`")
        if self._table == "nat":
            raise UnsupportedError("the table 'nat' does not filter incoming connections")
        steps = self.chains.setdefault(f"{self._table} {words[1]}", [])
        place = len(steps)
        if inserted:
            numbered = words[2].isdecimal() and len(words[2]) < 9
            place = int(words[2]) - 1 if numbered else 0
            words = words[:2] + words[3:] if numbered else words
        step = _Rule(line, self._report, self._connection).read(words[2:])
        if step.target:
            step.target = f"{self._table} {step.target}"
        chain = f"{self._table} {words[1]}"
        if words[1] in _BUILT_IN and chain not in _BASES:
            step.lost, step.other_traffic = f"{words[1]} is not about incoming mail", True
        steps.insert(place, step)


@dataclass(slots=True)
class _Rule:
    """The options of one line."""

    line: Line
    report: ConversionReport
    connection: FollowedConnection
    sources: list[netaddr.IPNetwork] = field(default_factory=list)
    negated: bool = False
    target: str = ""
    goto: bool = False
    condition: str = ""
    lost: str = ""
    other_traffic: bool = False

    def read(self, words: list[str]) -> ChainStep:
        """The line as a step."""
        place = 0
        while place < len(words):
            negated = words[place] == "!"
            place += negated
            option = words[place] if place < len(words) else ""
            argument = words[place + 1] if place + 1 < len(words) else ""
            try:
                if option == "--tcp-flags":
                    self._take_flags(words[place + 1 : place + 3], negated=negated)
                self._take(option, argument, negated=negated)
            except UnsupportedError as error:
                if not self.lost or isinstance(error, OtherTrafficError):
                    self.lost, self.other_traffic = str(error), isinstance(error, OtherTrafficError)
            place += _WORDS.get(option, 2) if option in _KNOWN else _until_next_option(words, place)
        if self.target in _NOT_DECIDING or not self.target:
            self.lost = f"{self.target} decides nothing" if self.target else "it decides nothing"
            return ChainStep(self.line, lost=self.lost, other_traffic=True)
        jumps = self.target not in _TARGETS
        effect = _TARGETS.get(self.target, Effect.GOTO if self.goto else Effect.JUMP)
        sources = tuple(self.sources) if self.sources else None
        target = self.target if jumps else ""
        return ChainStep(
            self.line, effect, sources, self.negated, target, self.condition, self.lost, self.other_traffic
        )

    def _take(self, option: str, argument: str, *, negated: bool) -> None:
        """Takes one option. Raises `UnsupportedError` for a condition that a rule does not have."""
        if option in {"-s", "--source", "--src", "--src-range"}:
            if self.sources:
                raise UnsupportedError("two conditions on the source")
            if argument in {"0/0", "any"} and not negated:
                return
            self.negated = negated
            if option == "--src-range":
                self.sources = address_range(argument)
            else:
                on_host_bits = self.report.on_host_bits(self.line)
                self.sources = [network(text, on_host_bits) for text in argument.split(",")]
        elif option in {"-j", "--jump", "-g", "--goto"}:
            self.target, self.goto = argument, option in {"-g", "--goto"}
        else:
            self._take_condition(option, argument, negated=negated)

    def _take_condition(self, option: str, argument: str, *, negated: bool) -> None:
        """Takes a condition on anything except the source."""
        if option in _PORT_OPTIONS:
            if any(self.connection.is_port(text) for text in argument.split(",")) == negated:
                raise OtherTrafficError(f"it is not about port {self.connection.port} (--port)")
        elif option in _ABOUT_MAIL:
            accepts, what = _ABOUT_MAIL[option]
            if negated == accepts(argument):
                raise OtherTrafficError(what.format(argument))
        elif option in {"-i", "--in-interface"}:
            self.condition = self.connection.interface_condition([argument], negated=negated) or self.condition
        elif option in {"-d", "--destination", "--dst"}:
            self.condition = f"an address of this host, {argument}"
        elif option == "--syn" and negated:
            raise OtherTrafficError("it is about established connections")
        elif option == "--match-set":
            name = argument
            raise UnsupportedError(
                f"the set {shown(name)} is not in this file; import the output of "
                f"`ipset save {name}` with the format ipset"
            )
        elif option not in _WORDS:
            raise UnsupportedError(f"the condition {shown(option)} is not supported")

    def _take_flags(self, words: list[str], *, negated: bool) -> None:
        """Takes `--tcp-flags EXAMINED SET`: a new connection begins with a packet that has only SYN set."""
        named = {"ALL": _TCP_FLAGS, "NONE": frozenset[str]()}
        examined, wanted = (named.get(word, frozenset(word.split(","))) for word in (*words, "", "")[:2])
        if (examined & {"SYN"} == wanted) == negated:
            raise OtherTrafficError("it is about packets that do not begin a connection")


def _until_next_option(words: list[str], place: int) -> int:
    """The number of words that an unknown option takes: all up to the next word that looks like an option."""
    end = place + 1
    while end < len(words) and not words[end].startswith("-") and words[end] != "!":
        end += 1
    return end - place


_PORT_OPTIONS = frozenset({"--dport", "--dports", "--destination-port", "--destination-ports", "--port", "--ports"})

# Conditions that a new connection can meet. Each has a test of its argument, and the reason to report if the test
# fails.
_ABOUT_MAIL: dict[str, tuple[Callable[[str], bool], str]] = {
    **dict.fromkeys(
        ("-p", "--protocol"), (lambda name: name.lower() in {"tcp", "6", "all", "0"}, "{} is not mail's protocol")
    ),
    **dict.fromkeys(
        ("--ctstate", "--state"),
        (lambda states: "NEW" in states.split(","), "it is about established connections"),
    ),
    "--dst-type": (lambda types: "LOCAL" in types.split(","), "it is not about addresses of this host"),
}
_KNOWN = frozenset(
    {*_WORDS, *_ABOUT_MAIL, *_PORT_OPTIONS}
    | {"-s", "--source", "--src", "--src-range", "-j", "--jump", "-g", "--goto"}
    | {"-i", "--in-interface", "-d", "--destination", "--dst"}
)


# --- Export -----------------------------------------------------------------------------------------------------------


def write(rows: Sequence[Row], report: ConversionReport, options: ExportOptions) -> str:
    """A chain for iptables-restore(8), or with `options.version` 6 for ip6tables-restore, that drops rejected clients.

    The chain is refilled each time; the administrator adds the jump from INPUT to it, once.
    """
    addresses = rejected_addresses(rows, report, deferred=options.deferred)
    tool = "iptables" if options.version == 4 else "ip6tables"
    others = len(network_texts(addresses, 10 - options.version))
    if others:
        what = "--ipv6 gives those" if options.version == 4 else "without --ipv6, only IPv4 is written"
        report.lose(
            Line(rows[0].line.path, 0, counted(others, "network")), f"{tool} has no IPv{10 - options.version}; {what}"
        )
    chain = options.name
    return "\n".join(
        [
            f"# {options.heading}",
            f"# Load with: {tool}-restore --noflush FILE",
            f"# and, once: {tool} -I INPUT -p tcp --dport 25 -j {chain}",
            "*filter",
            f":{chain} - [0:0]",
            *(f"-A {chain} -s {network} -j DROP" for network in network_texts(addresses, options.version)),
            "COMMIT",
            "",
        ]
    )
