"""Imports the output of `ipset save` and `ipset list` (ipset(8)), and exports two sets, for IPv4 and IPv6, for `ipset
restore`.

An import follows the commands in order, as `ipset restore` does: a later line may swap, rename, flush or destroy a set.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policyd.exchange.firewall.sets import ELEMENT_EXPIRES, note_merged
from policyd.exchange.model import DUNNO, REJECT, Imported, ListEntry, Row, Term, UnsupportedError, shown
from policyd.exchange.network_sets import blocked_addresses, rejected_addresses
from policyd.exchange.values import address_range, network, network_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import netaddr

    from policyd.exchange.model import ConversionReport, ExportOptions, Line

_NAMES = ("create", "add", "del", "flush", "swap", "rename", "destroy")
_COMMANDS = {
    **dict(zip(_NAMES, _NAMES, strict=True)),
    **dict(zip(("-N", "-A", "-D", "-F", "-W", "-E", "-X"), _NAMES, strict=True)),
}

# Types whose elements are addresses or networks. iphash, nethash and ipmap are the names before ipset 6.
_TYPES = frozenset({"hash:ip", "hash:net", "bitmap:ip", "iphash", "nethash", "ipmap"})

# The lines of `ipset list` before a set's members.
_HEADER = re.compile(
    r"(?P<field>Name|Type|Header|Members|Revision|Size in memory|References|Number of entries):\s*(?P<value>.*)"
)


@dataclass(slots=True)
class _Set:
    line: Line
    reason: str = ""  # why its elements are not networks
    netmask: str = ""
    elements: dict[netaddr.IPNetwork, tuple[Line, bool]] = field(default_factory=dict)  # line, and whether `nomatch`


def read(lines: Iterable[Line], report: ConversionReport, *, sets: tuple[str, ...] = ()) -> Imported:
    """The elements of all sets, or of those named in `sets`."""
    file = _File(report)
    report.take_each(lines, file.take)
    for ip_set in file.sets.values():
        if ip_set.reason:
            report.lose(ip_set.line, f"{ip_set.reason}; only sets of addresses and networks are supported")
    found = {name: ip_set for name, ip_set in file.sets.items() if not ip_set.reason}
    chosen = {name: ip_set for name, ip_set in found.items() if name in sets or not sets}
    for name in sets:
        if name not in found and file.first is not None:
            report.lose(
                file.first, f"there is no set {shown(name)} of addresses; there are: {', '.join(found) or 'none'}"
            )
    if not sets:
        note_merged({name: ip_set.line for name, ip_set in chosen.items()}, report)
    report.taken += len({line for ip_set in chosen.values() for line, _ in ip_set.elements.values()})
    return Imported(entries=[entry for ip_set in chosen.values() for entry in _entries(ip_set)])


class _File:
    """The sets of a file, built line by line."""

    def __init__(self, report: ConversionReport) -> None:
        self.sets: dict[str, _Set] = {}
        self.first: Line | None = None
        self._report = report
        self._listed = ""  # the current set in the output of `ipset list`

    def take(self, line: Line) -> bool:
        """Takes a line; returns False, because imported lines are only known at the end."""
        text = line.text.strip()
        if not text or text.startswith("#") or text == "COMMIT":
            return False
        self.first = self.first or line
        if (header := _HEADER.fullmatch(text)) is not None:
            self._take_header(line, header["field"], header["value"])
            return False
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise UnsupportedError(f"not a line of ipset save: {str(error).lower()}") from None
        if words[0] == "ipset":
            words = words[1:]
        command = _COMMANDS.get(words[0]) if words else None
        if command is None and self._listed:
            self._add(line, self._listed, words)
            return False
        if command is None or len(words) < 2:
            raise UnsupportedError("not a line of ipset save; write `add SET NETWORK`")
        self._listed = ""  # a command ends the `ipset list` output about a set
        self._run(line, command, words[1], words[2:])
        return False

    def _run(self, line: Line, command: str, name: str, rest: list[str]) -> None:
        if command == "create":
            self._create(line, name, rest)
        elif command == "add":
            self._add(line, name, rest)
        elif command == "del" and rest and name in self.sets:
            for element in self._networks(line, self.sets[name], rest[0]):
                if self.sets[name].elements.pop(element, None) is None:
                    raise UnsupportedError(f"{network_text(element)} is not in the set in this form")
        elif command == "flush" and name in self.sets:
            self.sets[name].elements.clear()
        elif command in {"swap", "rename"} and rest:
            self._swap(name, rest[0])
        elif command == "destroy":
            self.sets.pop(name, None)

    def _take_header(self, line: Line, name: str, value: str) -> None:
        if name == "Name":
            self._listed = value
            self.sets[value] = _Set(line)
        elif name == "Type" and self._listed:
            self.sets[self._listed].reason = _reason(value)

    def _create(self, line: Line, name: str, rest: list[str]) -> None:
        if name in self.sets:  # allowed by the option -exist
            return
        made = self.sets[name] = _Set(line, _reason(rest[0] if rest else ""))
        if "netmask" in rest[:-1]:
            made.netmask = rest[rest.index("netmask") + 1]

    def _add(self, line: Line, name: str, rest: list[str]) -> None:
        # A set has no line with `create` if only the lines with `add` were kept.
        filled = self.sets.setdefault(name, _Set(line))
        if filled.reason or not rest:
            return
        found = self._networks(line, filled, rest[0])
        if "timeout" in rest[1:-1] and rest[rest.index("timeout") + 1] != "0":
            self._report.note(line, ELEMENT_EXPIRES)
        filled.elements.update(dict.fromkeys(found, (line, "nomatch" in rest[1:])))

    def _networks(self, line: Line, ip_set: _Set, text: str) -> list[netaddr.IPNetwork]:
        if "," in text:
            raise UnsupportedError(f"{shown(text)} is not only a network")
        if ip_set.netmask:
            return [network(f"{text}/{ip_set.netmask}", lambda: None)]
        return address_range(text, self._report.on_host_bits(line))

    def _swap(self, name: str, other: str) -> None:
        first, second = self.sets.pop(name, None), self.sets.pop(other, None)
        if first is not None:
            self.sets[other] = first
        if second is not None:
            self.sets[name] = second


def _reason(kind: str) -> str:
    return "" if kind in _TYPES else f"a set of the type {shown(kind)}"


def _entries(ip_set: _Set) -> list[ListEntry]:
    if not any(nomatch for _, nomatch in ip_set.elements.values()):
        return [ListEntry(Term("cidr", network_text(element)), line) for element, (line, _) in ip_set.elements.items()]
    # The narrowest network that contains an address decides, as in the kernel.
    rows = [
        Row(line, (Term("cidr", network_text(element)),), DUNNO if nomatch else REJECT)
        for element, (line, nomatch) in sorted(ip_set.elements.items(), key=lambda item: -item[0].prefixlen)
    ]
    return [
        ListEntry(Term("cidr", network_text(element)), ip_set.line) for element in blocked_addresses(rows).iter_cidrs()
    ]


# --- Export -----------------------------------------------------------------------------------------------------------

_FAMILIES = {4: "inet", 6: "inet6"}

# ipset's default for maxelem. It cannot be raised later, so it is at least twice the number of networks now.
_MAXELEM = 65536


def write(rows: Sequence[Row], report: ConversionReport, options: ExportOptions) -> str:
    """Commands for `ipset restore`, which fill each set under a temporary name and then swap it in."""
    addresses = rejected_addresses(rows, report, deferred=options.deferred)
    lines = [
        f"# {options.heading}",
        "# Load with: ipset restore -file FILE",
        f"# and, once: iptables -I INPUT -p tcp --dport 25 -m set --match-set {options.name}4 src -j DROP",
    ]
    for version, family in _FAMILIES.items():
        name, filled = f"{options.name}{version}", f"{options.name}{version}-new"
        cidrs = [cidr for cidr in addresses.iter_cidrs() if cidr.version == version]
        networks = [network for cidr in cidrs for network in _as_hash_net(cidr)]
        maxelem = max(_MAXELEM, 2 * len(networks))
        lines += [
            f"create {filled} hash:net family {family} maxelem {maxelem} -exist",
            f"flush {filled}",
            *(f"add {filled} {network_text(network)} -exist" for network in networks),
            f"create {name} hash:net family {family} maxelem {maxelem} -exist",
            f"swap {filled} {name}",
            f"destroy {filled}",
        ]
    return "\n".join(lines) + "\n"


def _as_hash_net(network: netaddr.IPNetwork) -> list[netaddr.IPNetwork]:
    """A network in the form that hash:net accepts: /0 becomes two networks of /1."""
    return [network] if network.prefixlen else list(network.subnet(1))
