"""Checks a new copy of a list before it is put in place; a guard that refuses it gives the reason in one line."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from policyd.config.conditions import Form
from policyd.config.entries import parse_entries
from policyd.config.entry_messages import explain_entry
from policyd.core.address import format_address
from policyd.core.tables import Networks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from policyd.config.in_force import Text
    from policyd.config.list_sources import Source

# Minimum prefix length of a network in a list, by IP version: a larger network is refused.
MIN_PREFIX = {4: 8, 6: 19}

# Networks that never send mail over the Internet (RFC 6890, RFC 4193, RFC 4291).
RESERVED = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
)

# The IP version, and the first and last address as numbers.
Range = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules with which new copies are tested: those in force, or those of the file (`text` is None)."""

    path: str
    text: Text | None


class RefusedError(Exception):
    """A new copy of a list, or an entry of `policyd block` or `allow`, is refused; the message says why."""


def networks_of(entries: Iterable[str]) -> Networks:
    """The networks among entries; other entries are left out."""
    found, _ = parse_entries(Form.NETWORK, [entry.encode() for entry in entries])
    assert isinstance(found, Networks)
    return found


def ranges(networks: Networks) -> Iterator[tuple[Range, int]]:
    """Each network as a range, with its prefix length."""
    for packed in networks.v4:
        first, prefix = packed >> 6, packed & 63
        yield (4, first, first | ((1 << 32 - prefix) - 1)), prefix
    for packed in networks.v6:
        first, prefix = packed >> 8, packed & 255
        yield (6, first, first | ((1 << 128 - prefix) - 1)), prefix


class Protected:
    """Networks that no new entry may overlap, each with the name of the list that protects it."""

    def __init__(self, named: Iterable[tuple[str, Networks]]) -> None:
        self._ranges: list[tuple[Range, str, int]] = sorted(
            (network, name, prefix) for name, networks in named for network, prefix in ranges(networks)
        )
        # For each range: the IP version and the highest last address of this range and those before it, and the index
        # of the range with that address. A range may lie in a larger range further up.
        self._last: list[tuple[int, int, int]] = []
        best: tuple[int, int, int] | None = None
        for place, ((version, _, last), _, _) in enumerate(self._ranges):
            if best is None or (version, last) > best[:2]:
                best = version, last, place
            self._last.append(best)

    def meets(self, network: Range) -> str:
        """Finds a protected network that `network` covers or lies in. Returns it with the name of its list; empty if
        none.
        """
        version, first, last = network
        place = bisect_right(self._ranges, ((version, last, 1 << 128), "", 0)) - 1
        if place < 0:
            return ""
        found_version, found_last, found = self._last[place]
        if found_version != version or found_last < first:
            return ""
        (_, protected, _), name, prefix = self._ranges[found]
        return f"{shown(version, protected, prefix)} of {name}"


def shown(version: int, first: int, prefix: int) -> str:
    """A network as text."""
    return f"{format_address((version, first))}/{prefix}"


_RESERVED = Protected([("the reserved networks", networks_of(RESERVED))])


def check_networks(networks: Networks, protected: Protected, *, allow_reserved: bool) -> None:
    """Refuses networks that are too large, reserved (unless allowed) or protected. Raises RefusedError."""
    for network, prefix in ranges(networks):
        version, first, _ = network
        if prefix < MIN_PREFIX[version]:
            raise RefusedError(f"{shown(version, first, prefix)} is larger than a /{MIN_PREFIX[version]}")
        if not allow_reserved and (reserved := _RESERVED.meets(network)):
            raise RefusedError(f"{shown(version, first, prefix)} covers or lies in {reserved} (allow_reserved)")
        if meets := protected.meets(network):
            raise RefusedError(f"{shown(version, first, prefix)} covers or lies in {meets} (never)")


def check_names(names: Iterable[str], protected: Sequence[tuple[str, str]]) -> None:
    """Refuses names that cover or lie under a protected name; `protected` has pairs of a list's name and
    a protected name. Raises RefusedError.
    """
    written_names = {name.strip(".").lower(): name for name in names}
    for list_name, raw in protected:
        name = raw.strip(".").lower()
        labels = name.split(".")
        for start in range(len(labels)):
            if (over := ".".join(labels[start:])) in written_names:
                raise RefusedError(f"{written_names[over]} covers or lies in {raw} of list '{list_name}' (never)")
    protected_names = {raw.strip(".").lower(): (list_name, raw) for list_name, raw in protected}
    for name, written in written_names.items():
        labels = name.split(".")
        for start in range(len(labels)):
            if (found := protected_names.get(".".join(labels[start:]))) is not None:
                raise RefusedError(f"{written} covers or lies in {found[1]} of list '{found[0]}' (never)")


def check_amount(new: set[Any], old: set[Any], source: Source) -> None:
    """Refuses a copy with too few entries, or too many changes from the copy in force. Raises RefusedError."""
    if len(new) < source.min_entries:
        raise RefusedError(f"has {len(new):,} entries, fewer than min_entries {source.min_entries:,}")
    came, went = len(new - old), len(old - new)
    if old and came + went > source.max_change * len(old):
        share = 100 * (came + went) / len(old)
        raise RefusedError(
            f"changes {share:.0f}% of {len(old):,} entries (+{came:,} -{went:,}), more than max_change "
            f"{100 * source.max_change:.0f}%"
        )


def first_wrong(form: Form, lines: list[str]) -> str:
    """Explains the first invalid line; empty if every line is an entry."""
    raw = [line.encode() for line in lines]
    _, bad = parse_entries(form, raw)
    return f"'{lines[bad[0]][:80]}': {explain_entry(form, raw[bad[0]])}" if bad else ""
