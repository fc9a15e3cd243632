"""Patches a table of long lists if a few lists have changed, instead of building it again.

The old entries of changed lists, and the entries of unchanged lists, are read from the table. A patched table gives the
same answers as a table built from all lists. Its combinations may have different numbers, and names that no list has
any more stay in it with the number 0.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from policyd.core.ruleset import Kind
from policyd.core.tables import Networks, Repetitions
from policyd.tables.build import Toggles, blocks_of, count_before_blocks, halves, split_dotted, toggles_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from policyd.core.tables import Buffer, LongList, NameTable, RangeTable
    from policyd.tables.build import Masks
    from policyd.tables.index import EntrySource

# Minimum number of slots per key in a patched table of names; a table is built with at least four.
_MIN_SLOTS_PER_KEY = 3

# Maximum share of names that no list has any more, as 1/N.
_MAX_DEAD = 4

# Bits of half an IPv6 address.
_HALF = 64


class NotPatchableError(Exception):
    """The table has to be built again."""


class Difference(NamedTuple):
    """The numbers of entries added to and removed from a list. For networks, the ranges that they form are counted."""

    added: int
    removed: int


# --- Ranges -----------------------------------------------------------------------------------------------------------


def patch_ranges(
    table: RangeTable, masks: Masks, changes: Mapping[int, LongList]
) -> tuple[list[Buffer], dict[int, Difference]]:
    """Replaces lists: `changes` has the new content by the number of the list, which is its bit in a mask.

    Returns the parts of the patched table, and the differences.

    Adds new combinations to `masks`. Raises TooManyCombinationsError.
    """
    top, starts4, numbers4, high, low, numbers6 = table.parts
    new = {place: _toggles(changed) for place, changed in changes.items()}
    patched4, differences4 = _patch(starts4, numbers4, masks, {place: toggles.v4 for place, toggles in new.items()})
    starts6 = [upper << _HALF | lower for upper, lower in zip(high, low, strict=True)]
    patched6, differences6 = _patch(starts6, numbers6, masks, {place: toggles.v6 for place, toggles in new.items()})
    parts: list[Buffer] = [top, starts4, numbers4, high, low, numbers6]
    if patched4 is not None:
        starts, numbers = patched4
        parts[:3] = count_before_blocks(starts), array("I", starts), numbers
    if patched6 is not None:
        starts, numbers = patched6
        parts[3:] = *halves(starts), numbers
    differences = {
        place: Difference(*map(sum, zip(differences4[place], differences6[place], strict=True))) for place in changes
    }
    return parts, differences


def _toggles(changed: LongList) -> Toggles:
    return toggles_of((block for block in changed.read() if isinstance(block, Networks)), Repetitions())


def _patch(
    starts: Sequence[int], numbers: memoryview[int], masks: Masks, new: Mapping[int, Sequence[int]]
) -> tuple[tuple[Sequence[int], array[int]] | None, dict[int, Difference]]:
    """Returns the patched starts and numbers, or None if nothing changes; then the difference of each list."""
    flips: list[tuple[int, int]] = []
    differences = {}
    for place, toggles in new.items():
        old = _toggles_in(starts, numbers, masks, 1 << place)
        flips += [(address, 1 << place) for address in {*old} ^ {*toggles}]
        before, now = {*_ranges(old)}, {*_ranges(toggles)}
        differences[place] = Difference(len(now - before), len(before - now))
    return (_flip(starts, numbers, masks, sorted(flips)) if flips else None), differences


def _toggles_in(starts: Sequence[int], numbers: memoryview[int], masks: Masks, bit: int) -> list[int]:
    """The toggles of the list with this bit, read from the table."""
    has_bit = [1 if mask & bit else 0 for mask in masks.all]
    flags = bytes(map(has_bit.__getitem__, numbers))
    toggles = []
    for run in re.finditer(b"\x01+", flags):
        toggles.append(starts[run.start()])
        if run.end() < len(starts):
            toggles.append(starts[run.end()])
    return toggles


def _ranges(toggles: Sequence[int]) -> Iterable[tuple[int, int]]:
    return zip(toggles[::2], [*toggles[1::2], -1], strict=False)


def _flip(
    starts: Sequence[int], numbers: memoryview[int], masks: Masks, flips: Sequence[tuple[int, int]]
) -> tuple[Sequence[int], array[int]]:
    """Flips bits in ranges. `flips` has (address, bit). For each bit, the first flip begins a range, the second ends
    it, and so on.
    """
    is_v6 = not isinstance(starts, memoryview)
    new_starts: list[int] | array[int] = [] if is_v6 else array("I")
    new_numbers = array("I")
    flipped: dict[int, int] = {}  # old number -> new number, for the current `bits`
    bits = 0

    def emit(start: int, number: int) -> None:
        if bits:
            if number not in flipped:
                flipped[number] = masks.number(masks.all[number] ^ bits)
            number = flipped[number]
        if not new_numbers or new_numbers[-1] != number:
            new_starts.append(start)
            new_numbers.append(number)

    for (begin, bit), (end, _) in pairwise([(0, 0), *flips, (1 << 129, 0)]):
        bits ^= bit
        if begin == end:
            continue
        flipped.clear()
        first = bisect_right(starts, begin)
        last = bisect_left(starts, end, first)
        emit(begin, numbers[first - 1])
        if bits:
            for place in range(first, last):
                emit(starts[place], numbers[place])
        elif first < last:
            new_numbers.frombytes(numbers[first:last].cast("B"))  # four times as fast as extend
            if isinstance(new_starts, array):
                new_starts.frombytes(memoryview(starts)[first:last].cast("B"))  # type: ignore[arg-type] # any buffer will do
            else:
                new_starts += starts[first:last]
    return new_starts, new_numbers


# --- Names ------------------------------------------------------------------------------------------------------------


class NamesPatch(NamedTuple):
    """Changes that turn a copy of a table of names into the patched table."""

    numbers: array[int]  # of the names in the table
    added: dict[bytes, int]  # names to insert, with their numbers


def patch_names(
    table: NameTable, masks: Masks, changes: Mapping[int, EntrySource]
) -> tuple[NamesPatch, dict[int, Difference]]:
    """Finds the patch that replaces lists (`changes` as in `patch_ranges`), and the differences.

    Adds new combinations to `masks`. Raises NotPatchableError, TooManyCombinationsError.
    """
    _, _, ends, keys, old_numbers = table.parts
    numbers = array("I", old_numbers)
    added: dict[bytes, int] = {}  # with their masks
    differences = {}
    for place, source in changes.items():
        gained = lost = 0
        for bit, dotted in ((1 << 2 * place, False), (2 << 2 * place, True)):
            has_bit = [1 if mask & bit else 0 for mask in masks.all]
            flags = bytes(map(has_bit.__getitem__, numbers))
            old = {bytes(keys[ends[at] : ends[at + 1]]): at for at in map(re.Match.start, re.finditer(b"\x01", flags))}
            for name in _names(source, dotted=dotted):
                if old.pop(name, None) is not None:
                    continue
                at = _place_of(name, table)
                mask = masks.all[numbers[at]] if at >= 0 else added.get(name, 0)
                if mask & bit:
                    continue  # a repetition
                if at >= 0:
                    numbers[at] = masks.number(mask | bit)
                else:
                    added[name] = mask | bit
                gained += 1
            for at in old.values():
                numbers[at] = masks.number(masks.all[numbers[at]] & ~bit)
            lost += len(old)
        differences[place] = Difference(gained, lost)
    count = len(numbers) + len(added)
    if len(table.marks) < _MIN_SLOTS_PER_KEY * count or _MAX_DEAD * numbers.count(0) > count:
        raise NotPatchableError
    return NamesPatch(numbers, {name: masks.number(mask) for name, mask in added.items()}), differences


def _place_of(name: bytes, table: NameTable) -> int:
    """The place of a name among the names of a table, -1 if the table does not have it."""
    marks, places, ends, keys, _ = table.parts
    key_hash = hash(name)
    mark = key_hash >> 32 & 0x7F | 0x80
    slot = key_hash & table.mask
    while found := marks[slot]:
        at = places[slot]
        if found == mark and keys[ends[at] : ends[at + 1]] == name:
            return at
        slot = (slot + 1) & table.mask
    return -1


def _names(source: EntrySource, *, dotted: bool) -> Iterable[bytes]:
    for block in blocks_of(source.entries):
        plain, with_dot = split_dotted(block) if source.kind is Kind.DOMAIN else (block, ())
        yield from with_dot if dotted else plain


def names_parts(table: NameTable, patch: NamesPatch) -> list[list[Buffer]]:
    """The parts of the patched table, each in pieces. `insert_names` must still put the added names into slots."""
    marks, places, ends, keys, _ = table.parts
    added = patch.added
    more_ends = array("I")
    end = ends[-1]
    for name in added:
        end += len(name)
        more_ends.append(end)
    return [[marks], [places], [ends, more_ends], [keys, b"".join(added)], [patch.numbers, array("I", added.values())]]


def insert_names(marks: memoryview[int], places: memoryview[int], patch: NamesPatch) -> None:
    """Puts the added names into slots: `marks` and `places` are the first two parts of the patched table."""
    mask = len(marks) - 1
    for place, name in enumerate(patch.added, len(patch.numbers)):
        key_hash = hash(name)
        slot = key_hash & mask
        while marks[slot]:
            slot = (slot + 1) & mask
        marks[slot] = key_hash >> 32 & 0x7F | 0x80
        places[slot] = place
