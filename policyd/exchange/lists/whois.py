"""Imports saved answers of whois servers (RIPE, APNIC, AFRINIC, LACNIC, ARIN, JPNIC, KRNIC, TWNIC), rwhois and RDAP
(RFC 9083), and JPNIC's list of a contact's networks (`[Referred From] NET/...`).

One file is one answer, which often has several blocks of addresses, one inside another. The narrowest blocks are taken.
A block around another is reported, so that a whole provider is not blocked for one of its customers. A block that
belongs to a registry is reported as well. Ranges become the fewest networks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import netaddr

from policyd.exchange.json_document import json_document
from policyd.exchange.model import Imported, ListEntry, Term, UnsupportedError, shown
from policyd.exchange.network_sets import network_texts
from policyd.exchange.values import address_range, network, network_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from policyd.exchange.model import ConversionReport, Line

_FIELD = re.compile(
    r"\s*(?:(?P<name>inetnum|inet6num|NetRange|CIDR|route6?|Netblock|IPv[46] ?(?:Address|주소)"
    r"|network:IP-Network(?:-Block)?(?:;\w+)?)\s*:"
    r"|(?:[a-z]\.\s*)?\[(?P<bracket>Network Number|IPネットワークアドレス)\])\s*(?P<value>.*)",
    re.IGNORECASE,
)
_REFERRED = re.compile(r"\[Referred From\]|(?<=\s)NET/|^NET/", re.IGNORECASE)
_NET = re.compile(r"NET/([0-9a-f.:]+(?:/\d+|\s*-\s*[0-9a-f.:]+)?)", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"\s*(?P<name>[A-Za-z-]+)\s*:\s*(?P<value>.*)")

# Attributes that name the owner of a block, and the names of registries, which only assign blocks to others.
_OWNERS = frozenset({"organisation", "organization", "orgname", "org-name", "nettype", "netname", "descr", "owner"})
_REGISTRY = re.compile(
    r"RIPE N(?:CC|etwork Coordination)|(?:Asia Pacific|African|Latin American).*(?:Network Information|Regional"
    r"|Internet Addresses)|American Registry for Internet Numbers|Internet Assigned Numbers Authority"
    r"|NON-RIPE-NCC-MANAGED"
    r"|IANA(?:-.*)?$|(?:Allocated to|Administered by) (?:RIPE|APNIC|LACNIC|AFRINIC|ARIN)|(?:RIPE|APNIC|LACNIC|AFRINIC)"
    r"(?:-\d+|-ERX.*)?$|Early Registrations|Various Registries",
    re.IGNORECASE,
)

# Maximum number of blocks: every pair is compared. An answer has a dozen blocks, a contact's list some hundred.
_MAX_BLOCKS = 2_000


@dataclass(slots=True)
class _Registration:
    """A block of an answer.

    `announced` marks a route, which names the autonomous system that announces it (`origin`), not the owner. `registry`
    is the registry that owns the block, or its server; "" if the owner is not a registry.
    """

    line: Line
    networks: list[netaddr.IPNetwork]
    announced: bool = False
    origin: str = ""
    registry: str = ""
    first: int = field(init=False)  # addresses as numbers
    last: int = field(init=False)
    version: int = field(init=False)

    def __post_init__(self) -> None:
        self.first = min(int(network.first) for network in self.networks)
        self.last = max(int(network.last) for network in self.networks)
        self.version = int(self.networks[0].version)


def read(lines: Iterable[Line], report: ConversionReport) -> Imported:
    """The networks of the answer, merged to the fewest. Raises `IncompleteError`."""
    answer = _Answer(report)
    waiting = iter(lines)
    for line in waiting:
        if line.text.lstrip().startswith(("{", "[{")):
            report.take_each([line], lambda first: answer.take_document(first, waiting))
        else:
            report.take_each([line], answer.take)
    found = [*answer.blocks.values()]
    for block in found:
        if block.registry:
            report.lose(block.line, f"the block of a registry ({block.registry}); ask the registry about the address")
    found = [block for block in found if not block.registry]
    taken = [block for block in found if not _is_around(block, found, report)]
    report.taken += len(taken)
    networks = [network for registration in taken for network in registration.networks]
    merged = network_texts(netaddr.IPSet(networks))
    # After merging, a network may come from several lines, so all entries have the line of the first block.
    return Imported(entries=[ListEntry(Term("cidr", text), taken[0].line) for text in merged])


class _Answer:
    """The blocks of an answer, built line by line."""

    def __init__(self, report: ConversionReport) -> None:
        self.blocks: dict[tuple[int, int, int], _Registration] = {}
        self._report = report
        self._object: list[_Registration] = []  # the blocks that the next attributes are about
        self._is_arin = False
        self._refer = ""  # the server that IANA names for the next block

    def take(self, line: Line) -> bool:
        """Takes a line; returns False, because imported lines are only known at the end."""
        found = _read_line(line, self._report.on_host_bits(line))
        for registration in found:
            registration.registry = self._refer
            self._add(registration)
        if found:
            name = line.text.strip().lower()
            self._is_arin = name.startswith(("netrange", "cidr"))
            self._object = found if name.startswith("netrange") else [*self._object, *found]
            self._refer = ""
        elif (attribute := _ATTRIBUTE.fullmatch(line.text)) is not None:
            self._take_attribute(line, attribute["name"].lower(), attribute["value"].strip())
        elif not line.text.strip() and not self._is_arin:
            self._object = []  # an empty line ends an object; in ARIN's answers the owner follows it
        return False

    def _take_attribute(self, line: Line, name: str, value: str) -> None:
        if name == "refer":
            self._refer, self._object = value[:100], []
        elif name == "origin":
            for registration in self._object:
                registration.origin = value.upper()
        elif name == "referralserver" and value.lower().startswith("whois://"):
            self._set_registry(value[len("whois://") :])
        elif name == "referralserver" and self._object:
            self._report.note(
                line, f"{shown(value)} knows the customer to which an address of this block belongs; query it"
            )
        elif name in _OWNERS and _REGISTRY.search(value):
            self._set_registry(value)

    def _set_registry(self, registry: str) -> None:
        for registration in self._object:
            registration.registry = registration.registry or shown(registry[:100]).strip("'")

    def take_document(self, first: Line, following: Iterable[Line]) -> bool:
        """Takes an RDAP answer, which is one JSON document."""
        for fields in _networks_of(json_document(first, following)):
            self._add(_of_rdap(first, fields))
        return False

    def _add(self, new: _Registration) -> None:
        """Adds a block, unless the same block is known already; the owner's block replaces a route."""
        if any(network.prefixlen == 0 for network in new.networks):
            raise UnsupportedError("the whole Internet: the server has no answer for the address")
        key = new.version, new.first, new.last
        known = self.blocks.get(key)
        if known is None and len(self.blocks) == _MAX_BLOCKS:
            raise UnsupportedError(f"more than {_MAX_BLOCKS:,} blocks in a file; one file is one answer")
        if known is None or (known.announced and not new.announced):
            self.blocks.pop(key, None)
            self.blocks[key] = new


def _read_line(line: Line, on_host_bits: Callable[[], None]) -> list[_Registration]:
    if _REFERRED.search(line.text):
        nets = [match[1] for match in _NET.finditer(line.text)]
        if not nets and "NET/" in line.text:
            raise UnsupportedError("no network after NET/")
        return [_Registration(line, address_range(re.sub(r"\s", "", net), on_host_bits)) for net in nets]
    match = _FIELD.fullmatch(line.text)
    if match is None:
        return []
    name = (match["name"] or "").lower()
    # KRNIC adds the prefixes, `(/12+/11)`.
    value = match["value"].split("#")[0].partition("(")[0].strip()
    if name == "cidr":
        # ARIN repeats the networks of the NetRange above.
        return [_Registration(line, [network(text.strip(), on_host_bits) for text in value.split(",")])]
    return [_Registration(line, address_range(_complete(value), on_host_bits), announced=name.startswith("route"))]


def _complete(value: str) -> str:
    """Removes the blanks of a range, and adds the zero octets that some registries leave out (`179.6/16`)."""
    value = re.sub(r"\s", "", value)
    if re.fullmatch(r"\d+(?:\.\d+){0,2}/\d+", value):
        octets, _, prefix = value.partition("/")
        return octets + ".0" * (3 - octets.count(".")) + f"/{prefix}"
    return value


def _networks_of(document: Any) -> Iterator[dict[str, Any]]:
    """Yields the objects about networks: the document itself, or the results of a search in it."""
    waiting = [document]
    while waiting:
        found = waiting.pop()
        if isinstance(found, list):
            waiting += found
        elif isinstance(found, dict):
            if "startAddress" in found or "cidr0_cidrs" in found:
                yield found
            waiting += [value for key, value in found.items() if key.endswith(("Results", "networks"))]


def _of_rdap(line: Line, record: dict[str, Any]) -> _Registration:
    networks = []
    for cidr in record.get("cidr0_cidrs") or ():
        if isinstance(cidr, dict):
            prefix = cidr.get("v4prefix") or cidr.get("v6prefix")
            networks.append(network(f"{prefix}/{cidr.get('length')}"))
    if not networks:
        networks = address_range(f"{record.get('startAddress')}-{record.get('endAddress')}")
    name = str(record.get("name", ""))
    return _Registration(line, networks, registry=shown(name[:100]).strip("'") if _REGISTRY.search(name) else "")


def _is_around(outer: _Registration, found: list[_Registration], report: ConversionReport) -> bool:
    """Whether a block lies around another one; if so, reports the outer block."""
    for other in found:
        if other is outer or other.version != outer.version or (other.announced and not outer.announced):
            continue
        if outer.announced and other.announced and outer.origin == other.origin:
            continue  # the same system announces the block and a part of it
        inside = outer.first <= other.first and other.last <= outer.last
        overlaps = outer.first <= other.last and other.first <= outer.last
        if inside or (outer.announced and not other.announced and overlaps):
            what = "it announces more than" if outer.announced else "it is the block around"
            of = shown(", ".join(network_text(each) for each in other.networks[:3]))
            report.lose(outer.line, f"{what} {of} of line {other.line.number}, which is more specific about the owner")
            return True
    return False
