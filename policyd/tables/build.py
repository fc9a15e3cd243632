"""Builds the tables of `policyd.core.tables` from lists of entries.

A number in a table stands for a combination of lists: a *mask*, an integer with a bit for each list that has the entry.
`policyd.core.hits` maps masks to conditions afterwards, so a table of the same lists serves other rules unchanged.
A *group* is a list, or several lists that share a bit because the same conditions use them.

Networks: each group becomes its *toggles*, the ascending addresses at which its coverage begins or ends. One sorted
pass over the toggles of all groups gives the ranges. Names go into the hash table in the order in which they come.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from policyd.core.ruleset import Kind
from policyd.core.tables import LongList, NameTable, Networks, RangeTable, Repetitions
from policyd.tables.index import BuiltTable

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

    from policyd.core.tables import Buffer, Entries, PlainEntries
    from policyd.tables.index import EntrySource

# Maximum number of combinations with a bit for each long list; above it, lists that the same conditions use share a
# bit. Many lists that overlap everywhere make a different combination for each range, and keeping a bit for each list
# would be useless.
MAX_COMBINATIONS = 4096

# Number of parts in which the toggles of all lists are sorted; only one part at a time consists of integer objects.
_PARTS = 64

# Number of names above which a table has at least four slots for each name. Smaller tables have at least sixteen, with
# fewer collisions.
_MANY_NAMES = 20_000


class TooManyCombinationsError(Exception):
    """A table would have more combinations than its limit."""


class Masks:
    """Numbers the combinations of lists. Number 0 is the mask 0: in no list."""

    def __init__(self, masks: Iterable[int] = (0,), limit: int | None = None) -> None:
        self.all = [*masks]
        self._limit = limit
        self._numbers = {mask: number for number, mask in reversed([*enumerate(self.all)])}

    def number(self, mask: int) -> int:
        """The number of a mask. Raises TooManyCombinationsError beyond the limit."""
        number = self._numbers.get(mask)
        if number is None:
            number = len(self.all)
            if self._limit is not None and number >= self._limit:
                raise TooManyCombinationsError
            self._numbers[mask] = number
            self.all.append(mask)
        return number


# --- Ranges -----------------------------------------------------------------------------------------------------------


class Toggles(NamedTuple):
    """Addresses at which the coverage of some networks begins (even places) or ends (odd places), by IP version."""

    v4: array[int]
    v6: list[int]


def toggles_of(networks: Iterable[Networks], repeated: Repetitions) -> Toggles:
    """The toggles of the union of these networks. Adds repetitions of a network to `repeated`."""
    found = Toggles(array("I"), [])
    collections = [*networks]
    _toggle(sorted(chain.from_iterable(collection.v4 for collection in collections)), 4, found.v4, repeated)
    _toggle(sorted(chain.from_iterable(collection.v6 for collection in collections)), 6, found.v6, repeated)
    return found


def _toggle(keys: list[int], version: int, toggles: array[int] | list[int], repeated: Repetitions) -> None:
    """Appends the toggles of `keys`: packed networks, sorted by first address, then from the widest to the narrowest.

    The end of the address space is not a toggle.
    """
    width, prefix_bits = (32, 6) if version == 4 else (128, 8)
    prefix_mask = (1 << prefix_bits) - 1
    sizes = [1 << width - length for length in range(width + 1)]
    append = toggles.append
    end = previous = -1
    for key in keys:
        first = key >> prefix_bits
        if first > end:
            if end >= 0:
                append(end)
            append(first)
            end = first + sizes[key & prefix_mask]
        else:
            if key == previous:
                repeated.add((version, key))
            end = max(end, first + sizes[key & prefix_mask])
        previous = key
    if 0 <= end < 1 << width:
        append(end)


def build_ranges(toggles: Sequence[Toggles], masks: Masks) -> list[Buffer]:
    """The parts of a RangeTable in which the group at place n has the bit 1 << n."""
    starts4, numbers4 = array("I"), array("I")
    _sweep([toggle.v4 for toggle in toggles], masks, starts4, numbers4)
    starts6: list[int] = []
    numbers6 = array("I")
    _sweep([toggle.v6 for toggle in toggles], masks, starts6, numbers6)
    return [count_before_blocks(starts4), starts4, numbers4, *halves(starts6), numbers6]


def _sweep(toggles: Sequence[Sequence[int]], masks: Masks, starts: array[int] | list[int], numbers: array[int]) -> None:
    """Appends disjoint ranges from 0 on; adjacent ranges with the same number are merged."""
    shift = len(toggles).bit_length()
    place_mask = (1 << shift) - 1
    bits = [1 << place for place in range(len(toggles))]
    known: dict[int, int] = {}  # mask -> number, so that most ranges cost no call
    done = [0] * len(toggles)
    begin = state = 0
    last = -1
    for limit in [*_limits(toggles), None]:
        events: list[int] = []
        for place, ascending in enumerate(toggles):
            first = done[place]
            done[place] = len(ascending) if limit is None else bisect_left(ascending, limit, first)
            events += [address << shift | place for address in ascending[first : done[place]]]
        events.sort()
        for event in events:
            address = event >> shift
            if address != begin:
                number = known.get(state)
                if number is None:
                    number = known[state] = masks.number(state)
                if number != last:
                    starts.append(begin)
                    numbers.append(number)
                    last = number
                begin = address
            state ^= bits[event & place_mask]
    number = masks.number(state)
    if number != last:
        starts.append(begin)
        numbers.append(number)


def _limits(toggles: Sequence[Sequence[int]]) -> list[int]:
    """Addresses that divide all toggles into parts of about the same size."""
    step = sum(map(len, toggles)) // (64 * _PARTS)
    if not step:
        return []
    samples = sorted(chain.from_iterable(toggle[::step] for toggle in toggles))
    return samples[:: max(len(samples) // _PARTS, 1)]


def count_before_blocks(starts: Sequence[int]) -> array[int]:
    """The number of starts before each block of 65,536 addresses, and before the end of the last block."""
    if len(starts) > 65536:
        return array("I", (bisect_left(starts, block << 16) for block in range(65537)))
    counts = array("I")
    for place, start in enumerate(starts):  # most rulesets have few, and a bisection for each block takes 10 ms
        counts.extend(array("I", (place,)) * ((start >> 16) + 1 - len(counts)))
    counts.extend(array("I", (len(starts),)) * (65537 - len(counts)))
    return counts


def halves(starts: Iterable[int]) -> tuple[array[int], array[int]]:
    """The upper and the lower halves of IPv6 addresses."""
    both = [*starts]
    return array("Q", (start >> 64 for start in both)), array("Q", (start & 0xFFFFFFFFFFFFFFFF for start in both))


# --- Names ------------------------------------------------------------------------------------------------------------


class NamesBuilder:
    """Builds a NameTable name by name. `expected` is the maximum number of names."""

    def __init__(self, expected: int, masks: Masks) -> None:
        self._masks = masks
        slots = 4 if expected > _MANY_NAMES else 16
        size = 4
        while size < slots * expected:
            size *= 2
        self._marks = bytearray(size)
        self._places = array("I", bytes(4)) * size
        self._ends = array("I", (0,))
        self._keys = bytearray()
        self._numbers = array("I")

    def add(self, names: Iterable[bytes], bit: int, repeated: Repetitions, dot: bytes = b"") -> None:
        """Adds the bit to the mask of each name. A name that already has the bit is put into `repeated`, after `dot`.

        Raises TooManyCombinationsError, and ValueError beyond 4 GiB of names.
        """
        masks, number_of = self._masks.all, self._masks.number
        marks, places, ends, keys, numbers = self._marks, self._places, self._ends, self._keys, self._numbers
        slot_mask = len(marks) - 1
        place, end = len(numbers), ends[-1]
        fresh = number_of(bit)
        for name in names:
            key_hash = hash(name)
            mark = key_hash >> 32 & 0x7F | 0x80
            slot = key_hash & slot_mask
            while found := marks[slot]:
                if found == mark:
                    there = places[slot]
                    if keys[ends[there] : ends[there + 1]] == name:
                        old = masks[numbers[there]]
                        if old & bit:
                            repeated.add(dot + name)
                        else:
                            numbers[there] = number_of(old | bit)
                        break
                slot = (slot + 1) & slot_mask
            else:
                marks[slot] = mark
                places[slot] = place
                place += 1
                end += len(name)
                if end > 0xFFFFFFFF:
                    raise ValueError("more than 4 GiB of names")
                keys += name
                ends.append(end)
                numbers.append(fresh)

    def parts(self) -> list[Buffer]:
        """The parts of the NameTable."""
        return [self._marks, self._places, self._ends, self._keys, self._numbers]

    def masks(self) -> list[int]:
        """The mask of each number; 0 for masks that names had only during building, so that no Hits are made of them.

        A name in 800 lists had 799 such masks, which stand for 400 lists on average.
        """
        in_use = set(self._numbers)
        return [mask if number in in_use else 0 for number, mask in enumerate(self._masks.all)]


# --- Tables of lists --------------------------------------------------------------------------------------------------


class ListTable(NamedTuple):
    """A table of long lists, and the mask that each number in it stands for (`BuiltTable` describes the bits)."""

    table: RangeTable | NameTable
    masks: list[int]
    keys: tuple[Hashable, ...]  # of the long list at each place


def group_by_users(sources: Iterable[EntrySource]) -> list[list[EntrySource]]:
    """Groups the sources that the same conditions use."""
    groups: dict[tuple[Kind, frozenset[int]], list[EntrySource]] = {}
    for source in sources:
        groups.setdefault((source.kind, source.users), []).append(source)
    return [*groups.values()]


def build_table(groups: Sequence[Sequence[EntrySource]], limit: int | None = None) -> tuple[list[Buffer], list[int]]:
    """The parts of the table of these groups, and its masks. Sets `repeated` of each long list that shares no bit.

    Raises TooManyCombinationsError beyond `limit`, ValueError if there are more than 4 GiB of names.
    """
    masks = Masks(limit=limit)
    if groups[0][0].kind is Kind.NETWORK:
        return build_ranges([*map(_toggles_of_group, groups)], masks), masks.all
    builder = NamesBuilder(sum(len(source.entries) for group in groups for source in group), masks)
    for place, group in enumerate(groups):
        for source in group:
            repeated = Repetitions()
            for block in blocks_of(source.entries):
                plain, dotted = split_dotted(block) if source.kind is Kind.DOMAIN else (block, ())
                builder.add(plain, 1 << 2 * place, repeated)
                builder.add(dotted, 2 << 2 * place, repeated, b".")
            if len(group) == 1:
                _set_repeated(source, repeated)
    return builder.parts(), builder.masks()


def build_list_table(subject: str, sources: Sequence[EntrySource]) -> ListTable:
    """Builds the table of long lists. No lists share a bit, so that the table serves other rules too.

    If that makes too many combinations, lists that the same conditions use share a bit after all.
    """
    del subject
    groups = [[source] for source in sources]
    try:
        parts, masks = build_table(groups, MAX_COMBINATIONS)
    except TooManyCombinationsError:
        groups = group_by_users(sources)
        parts, masks = build_table(groups)
    return ListTable(table_of(parts), masks, tuple(_key(group[0]) for group in groups))


def table_of(parts: Sequence[Buffer]) -> RangeTable | NameTable:
    """The table with these parts."""
    return RangeTable(*parts) if len(parts) == 6 else NameTable(*parts)


def split_dotted(names: Sequence[bytes]) -> tuple[Sequence[bytes], Sequence[bytes]]:
    """Returns the names without a leading dot; then the names that had one, with the dot removed."""
    if b"\n." not in b"\n" + b"\n".join(names):
        return names, ()
    plain = [name for name in names if not name.startswith(b".")]
    return plain, [name[1:] for name in names if name.startswith(b".")]


def _toggles_of_group(group: Sequence[EntrySource]) -> Toggles:
    collections: list[Networks] = []
    for source in group:
        collections += _networks(source.entries)
    repeated = Repetitions()
    toggles = toggles_of(collections, repeated)
    if len(group) == 1:
        _set_repeated(group[0], repeated)
    return toggles


def _networks(entries: Entries) -> Iterator[Networks]:
    for block in entries.read() if isinstance(entries, LongList) else (entries,):
        assert isinstance(block, Networks)
        yield block


def plain_entries(entries: Entries) -> PlainEntries:
    """The entries; those of a long list are read into one collection."""
    if not isinstance(entries, LongList):
        return entries
    networks = Networks()
    names: list[bytes] = []
    for block in entries.read():
        if isinstance(block, Networks):
            networks.extend(block)
        else:
            names += block
    return names or networks


def blocks_of(entries: Entries) -> Iterator[Sequence[Any]]:
    """The entries of a list that does not hold networks, a block at a time."""
    for block in entries.read() if isinstance(entries, LongList) else (entries,):
        assert not isinstance(block, Networks)
        yield block


def _set_repeated(source: EntrySource, repeated: Repetitions) -> None:
    if isinstance(source.entries, LongList):
        source.entries.repeated = repeated


def _key(source: EntrySource) -> Hashable:
    assert isinstance(source.entries, LongList)
    return source.entries.key


def build_tables(
    subject: str,
    sources: Sequence[EntrySource],
    make_list_table: Callable[[str, Sequence[EntrySource]], ListTable] = build_list_table,
) -> Iterator[BuiltTable]:
    """Yields the table of an attribute's long lists, if it has any, then that of its other entries, if it has any."""
    long = {source.entries.key: source for source in sources if isinstance(source.entries, LongList)}
    short = group_by_users(source for source in sources if not isinstance(source.entries, LongList))
    if long:
        made = make_list_table(subject, [*long.values()])
        yield BuiltTable(made.table, made.masks, [long.get(key) for key in made.keys])
    if short:
        parts, masks = build_table(short)
        yield BuiltTable(table_of(parts), masks, [group[0] for group in short])
