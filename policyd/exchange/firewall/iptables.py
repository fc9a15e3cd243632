"""iptables-save(8) and ip6tables-save(8), import, and the form of iptables-restore(8), export.

Of the table `filter`, the lines of INPUT and of the chains that it jumps to are taken, where they are about sources and
could be about mail.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policyd.exchange.firewall.chains import MAIL_PORTS, Does, Step, flattened
from policyd.exchange.model import Imported, Line, NoEqualError, shown
from policyd.exchange.network_sets import count, rejected, texts
from policyd.exchange.values import address_range, network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import netaddr

    from policyd.exchange.model import ExportOptions, Report, Row

_TARGETS = {
    "DROP": Does.DROP,
    "REJECT": Does.DROP,
    "TARPIT": Does.DROP,
    "ACCEPT": Does.ACCEPT,
    "RETURN": Does.RETURN,
}
_NOT_DECIDING = frozenset(
    {"AUDIT", "CLASSIFY", "CONNMARK", "CT", "LOG", "MARK", "NFLOG", "NOTRACK", "SET", "TRACE", "ULOG"}
)

_PORT = re.compile("[0-9]{1,5}")

# Options that say nothing of who the client is, with the number of words that each takes.
_WORDS = {"-m": 2, "--match": 2, "--comment": 2, "--reject-with": 2, "-c": 3, "--tcp-flags": 3, "--syn": 1}


def read(lines: Iterable[Line], report: Report) -> Imported:
    """The rows of what the file lets in and keeps out."""
    chains: dict[str, list[Step]] = {}
    table = ""

    def take(line: Line) -> bool:
        nonlocal table
        text = line.text.strip()
        if text.startswith("*"):
            table = text[1:].strip()
        elif text.startswith(":") and table == "filter":
            chains.setdefault(text[1:].partition(" ")[0], [])
        elif text and not text.startswith(("#", ":")) and text != "COMMIT":
            _read_rule(line, table, chains, report)
        return False  # what is taken is known when the chains are followed

    report.take_each(lines, take)
    return Imported(rows=flattened(chains, ["INPUT"], report))


def _read_rule(line: Line, table: str, chains: dict[str, list[Step]], report: Report) -> None:
    try:
        words = shlex.split(re.sub(r"^\s*\[\d+:\d+\]\s*", "", line.text))
    except ValueError as error:
        raise NoEqualError(f"no line of iptables-save: {str(error).lower()}") from None
    if len(words) < 3 or words[0] != "-A":
        raise NoEqualError("no line of iptables-save; it would be `-A CHAIN -s NETWORK -j DROP`")
    if table not in {"filter", ""}:
        raise NoEqualError(f"the table {shown(table)} does not decide who comes in")
    if words[1] in {"OUTPUT", "FORWARD"}:
        raise NoEqualError(f"{words[1]} is not about mail that comes in")
    step = _Rule(line, report).read(words[2:])
    chains.setdefault(words[1], []).append(step)


@dataclass(slots=True)
class _Rule:
    """What the options of one line say."""

    line: Line
    report: Report
    sources: list[netaddr.IPNetwork] = field(default_factory=list)
    negated: bool = False
    target: str = ""
    goto: bool = False

    def read(self, words: list[str]) -> Step:
        """The line as a step. Raises `NoEqualError` where it is not about who sends mail."""
        place = 0
        while place < len(words):
            negated = words[place] == "!"
            place += negated
            option = words[place] if place < len(words) else ""
            argument = words[place + 1] if place + 1 < len(words) else ""
            place += self._take(option, argument, negated=negated)
        if self.target in _NOT_DECIDING or not self.target:
            raise NoEqualError("it decides nothing" if not self.target else f"{self.target} decides nothing")
        jumps = self.target not in _TARGETS
        does = _TARGETS.get(self.target, Does.GOTO if self.goto else Does.JUMP)
        sources = tuple(self.sources) if self.sources else None
        return Step(self.line, does, sources, self.negated, self.target if jumps else "")

    def _take(self, option: str, argument: str, *, negated: bool) -> int:
        """Takes one option; gives how many words it took."""
        if option in {"-s", "--source", "--src"}:
            self.sources += [network(one) for one in argument.split(",")]
            self.negated = negated
        elif option == "--src-range":
            self.sources += address_range(argument)
            self.negated = negated
        elif option in {"-j", "--jump", "-g", "--goto"}:
            self.target, self.goto = argument, option in {"-g", "--goto"}
        elif option in _ABOUT_MAIL:
            accepts, what = _ABOUT_MAIL[option]
            if negated == accepts(argument):
                raise NoEqualError(what.format(argument))
        elif option in {"-i", "--in-interface"}:
            if (argument == "lo") != negated:
                raise NoEqualError("it is about the machine's own connections")
            self.report.note(self.line, "it holds for one interface there, and for all here")
        elif option == "--match-set":
            name = shown(argument.partition(" ")[0])
            raise NoEqualError(f"the set {name} is not in this file; import its members as plain")
        elif option not in _WORDS:
            raise NoEqualError(f"the condition {shown(option)} has no equal")
        return _WORDS.get(option, 2)


def _is_mail(ports: str) -> bool:
    first, colon, last = ports.partition(":")
    if not colon:
        return ports in MAIL_PORTS
    if not _PORT.fullmatch(first or "0") or not _PORT.fullmatch(last or "0"):
        return False
    return any(port.isdecimal() and int(first or 0) <= int(port) <= int(last or 65535) for port in MAIL_PORTS)


# Conditions under which a line can still be about mail: whether it can with this argument, and what it is about if not.
_ABOUT_MAIL: dict[str, tuple[Callable[[str], bool], str]] = {
    **dict.fromkeys(
        ("--dport", "--dports", "--destination-port", "--destination-ports"),
        (lambda ports: any(_is_mail(port) for port in ports.split(",")), "port {} is not mail's"),
    ),
    **dict.fromkeys(("-p", "--protocol"), (lambda name: name in {"tcp", "6", "all"}, "{} is not mail's protocol")),
    **dict.fromkeys(
        ("--ctstate", "--state"),
        (lambda states: "NEW" in states.split(","), "it is about connections that are there already"),
    ),
}


# --- Export -----------------------------------------------------------------------------------------------------------


def write(rows: Sequence[Row], report: Report, options: ExportOptions) -> str:
    """A chain for iptables-restore(8), or with `options.version` 6 for ip6tables-restore, that drops what is rejected.

    The chain is filled anew each time; that INPUT jumps to it is for the administrator to say, once.
    """
    addresses = rejected(rows, report, deferred=options.deferred)
    tool = "iptables" if options.version == 4 else "ip6tables"
    others = len(texts(addresses, 10 - options.version))
    if others:
        what = "--ipv6 gives those" if options.version == 4 else "without --ipv6 it gives those"
        report.lose(Line(rows[0].line.path, 0, count(others)), f"{tool} has no IPv{10 - options.version}; {what}")
    chain = options.name
    return "\n".join(
        [
            f"# {options.heading}",
            f"# Load with: {tool}-restore --noflush FILE",
            f"# and, once: {tool} -I INPUT -p tcp --dport 25 -j {chain}",
            "*filter",
            f":{chain} - [0:0]",
            *(f"-A {chain} -s {network} -j DROP" for network in texts(addresses, options.version)),
            "COMMIT",
            "",
        ]
    )
