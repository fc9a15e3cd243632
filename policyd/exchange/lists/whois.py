"""Saved answers of whois servers, import: RIPE, APNIC and AFRINIC (`inetnum`), ARIN (`NetRange`, `CIDR`), JPNIC
(`a. [Network Number]`), and JPNIC's list of what a contact answers for (`[Referred From] NET/...`).

One file is one answer, which often has more than one block in it: the block itself and those around it that it was cut
from. The narrowest are taken; what is around another is reported, so that nobody blocks a whole provider for one of its
customers. Ranges become the fewest networks.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from policyd.exchange.model import Entry, Imported, NoEqualError, Term, shown
from policyd.exchange.values import address_range, fewest, network, network_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    import netaddr

    from policyd.exchange.model import Line, Report

_FIELD = re.compile(
    r"\s*(?:(?P<name>inetnum|inet6num|NetRange|CIDR|route6?)\s*:"
    r"|(?:[a-z]\.\s*)?\[(?P<bracket>Network Number|IPネットワークアドレス)\])\s*(?P<value>.*)",
    re.IGNORECASE,
)
_REFERRED = re.compile(r"\[Referred From\]|(?<=\s)NET/|^NET/", re.IGNORECASE)
_NET = re.compile(r"NET/([0-9a-f.:]+(?:/\d+|\s*-\s*[0-9a-f.:]+)?)", re.IGNORECASE)


# Each block is compared with each other. An answer has a dozen; what a contact answers for may be some hundred.
_MAX_BLOCKS = 2_000


class _Registration(NamedTuple):
    line: Line
    networks: list[netaddr.IPNetwork]
    first: int
    last: int
    version: int
    announced: bool  # a route: who announces it, not whose it is


def read(lines: Iterable[Line], report: Report) -> Imported:
    """The networks that the answer is about, the fewest that are the same."""
    blocks: dict[tuple[int, int, int], _Registration] = {}

    def take(line: Line) -> bool:
        for registration in _read_line(line):
            _add(blocks, registration)
        return False  # what is taken is known at the end

    report.take_each(lines, take)
    found = [*blocks.values()]
    taken = [one for one in found if not _is_around(one, found, report)]
    report.taken += len(taken)
    networks = [one for registration in taken for one in registration.networks]
    # After merging, one network may stand for several lines; the first of the file stands for all.
    return Imported(entries=[Entry(Term("cidr", text), taken[0].line) for text in fewest(networks)])


def _read_line(line: Line) -> list[_Registration]:
    if _REFERRED.search(line.text):
        nets = [match[1] for match in _NET.finditer(line.text)]
        if not nets and "NET/" in line.text:
            raise NoEqualError("no network after NET/")
        return [_registration(line, address_range(re.sub(r"\s", "", net))) for net in nets]
    match = _FIELD.fullmatch(line.text)
    if match is None:
        return []
    name = (match["name"] or "").lower()
    value = match["value"].split("#")[0].strip()
    if name == "cidr":
        # ARIN names the networks of the NetRange above once more.
        return [_registration(line, [network(one.strip()) for one in value.split(",")])]
    return [_registration(line, address_range(_whole(value)), announced=name.startswith("route"))]


def _whole(value: str) -> str:
    """A range without blanks, or a network of which some registries leave out the octets that are 0 (`179.6/16`)."""
    value = re.sub(r"\s", "", value)
    if re.fullmatch(r"\d+(?:\.\d+){0,2}/\d+", value):
        octets, _, prefix = value.partition("/")
        return octets + ".0" * (3 - octets.count(".")) + f"/{prefix}"
    return value


def _registration(line: Line, networks: list[netaddr.IPNetwork], *, announced: bool = False) -> _Registration:
    first, last = min(one.first for one in networks), max(one.last for one in networks)
    if any(one.prefixlen == 0 for one in networks):
        raise NoEqualError("the whole Internet: the server has no answer for the address")
    return _Registration(line, networks, first, last, networks[0].version, announced)


def _add(blocks: dict[tuple[int, int, int], _Registration], new: _Registration) -> None:
    """Takes a block down, unless it says again what is there."""
    key = new.version, new.first, new.last
    known = blocks.get(key)
    if known is None and len(blocks) == _MAX_BLOCKS:
        raise NoEqualError(f"more than {_MAX_BLOCKS:,} blocks in a file; one file is one answer")
    if known is None or (known.announced and not new.announced):
        blocks.pop(key, None)
        blocks[key] = new


def _is_around(one: _Registration, found: list[_Registration], report: Report) -> bool:
    for other in found:
        if other is one or other.version != one.version or (other.announced and not one.announced):
            continue
        inside = one.first <= other.first and other.last <= one.last
        overlaps = one.first <= other.last and other.first <= one.last
        if inside or (one.announced and not other.announced and overlaps):
            what = "it announces more than" if one.announced else "it is the block around"
            of = shown(", ".join(network_text(each) for each in other.networks[:3]))
            report.lose(one.line, f"{what} {of} of line {other.line.number}, which says more closely whose that is")
            return True
    return False
