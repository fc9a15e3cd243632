"""Keeps tables of long lists for the next ruleset: in sealed memory files, each with a record of its content.

A load gets the tables of the ruleset in force. It uses each as it is, patches it, or builds it again, so its cost
depends on what has changed. Digests of the lists' bytes, never their dates, decide whether a table has the right
content. A table is built again if too much of it is unused or changed, or if it has too many patches or combinations.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from policyd.core.ruleset import Kind
from policyd.core.tables import LongList, RangeTable
from policyd.tables.build import (
    MAX_COMBINATIONS,
    ListTable,
    Masks,
    TooManyCombinationsError,
    build_list_table,
    build_table,
    table_of,
)
from policyd.tables.patch import NotPatchableError, insert_names, names_parts, patch_names, patch_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from policyd.core.tables import Buffer
    from policyd.tables.index import EntrySource
    from policyd.tables.patch import Difference

# Bytes of a cache line. Each array in a memory file begins at a multiple of this.
ALIGNMENT = 64

# Maximum number of patches of a table. After them it is built again, without the combinations and names that no list
# has any more.
MAX_PATCHES = 50

# Maximum share of entries in lists that have changed or that no rule uses any more, as 1/N.
_MAX_SHARE = 4

# The attribute that a table is for, and how its entries are compared.
Family: TypeAlias = 'tuple[str, Literal["networks", "values", "names"]]'


@dataclass(frozen=True, slots=True)
class KeptList:
    """A list at its place in a table."""

    key: Hashable
    path: str
    length: int


@dataclass(frozen=True, slots=True)
class Record:
    """Describes a memory file: the use of its table, its arrays (start, length in bytes), and what its numbers mean."""

    family: Family
    layout: tuple[tuple[int, int], ...]
    lists: tuple[KeptList, ...]
    masks: tuple[int, ...]
    patches: int = 0


class TableFile:
    """A table in a sealed memory file (memfd_create(2)). The descriptor stays open."""

    def __init__(self, descriptor: int, record: Record) -> None:
        self.descriptor = descriptor
        self.record = record
        self.memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        view = memoryview(self.memory)
        self.table = table_of([view[start : start + length] for start, length in record.layout])


def write_parts(
    parts: list[list[Buffer]], finish: Callable[[Sequence[memoryview[int]]], None] | None = None
) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Writes the parts of a table, each given in pieces, to a memory file. Returns its descriptor and layout.

    `parts` is emptied, so that each part is freed as soon as it is written. `finish` may change the parts in the file
    before it is sealed.
    """
    descriptor = os.memfd_create("policyd-table", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    layout = []
    place = 0
    parts.reverse()
    with os.fdopen(descriptor, "wb", buffering=0, closefd=False) as file:
        while parts:
            start = file.seek(-(-place // ALIGNMENT) * ALIGNMENT)
            for piece in parts.pop():
                view = memoryview(piece).cast("B")
                while view:
                    view = view[file.write(view) :]
            place = file.tell()
            layout.append((start, place - start))
        file.truncate(max(place, 1))  # an empty file cannot be mapped
    if finish is not None:
        with mmap.mmap(descriptor, 0) as memory, memoryview(memory) as whole, contextlib.ExitStack() as views:
            finish([views.enter_context(whole[start : start + length]) for start, length in layout])
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return descriptor, tuple(layout)


@dataclass(slots=True)
class TableStore:
    """The tables of the ruleset in force, and those of the new ruleset.

    `kept` has the former; `used` has the latter, in the order in which they were made. `differences` has the numbers of
    entries added to and removed from the changed lists of patched tables, by the path of the list.
    """

    kept: Sequence[TableFile] = ()
    used: list[TableFile] = field(default_factory=list)
    differences: dict[str, Difference] = field(default_factory=dict)

    def lengths(self) -> Mapping[Hashable, int]:
        """The number of entries of each list in a kept table. These lists need not be parsed."""
        return {kept_list.key: kept_list.length for file in self.kept for kept_list in file.record.lists}

    def reuse_summary(self) -> tuple[str, ...]:
        """Returns a line that says how many long lists have not changed; no line if all have."""
        before = {kept_list.key for file in self.kept for kept_list in file.record.lists}
        lists = {kept_list.key for file in self.used for kept_list in file.record.lists}
        again = len(lists & before)
        return (f"{again:,} of {len(lists):,} long lists as before",) if again else ()

    def make_list_table(self, subject: str, sources: Sequence[EntrySource]) -> ListTable:
        """The table of the long lists of an attribute: kept, patched or built."""
        family = _family(subject, sources[0].kind)
        old = next((file for file in self.kept if file.record.family == family), None)
        file = None if old is None else self._keep_or_patch(old, sources)
        if file is None:
            file = _build(family, sources)
        if file is None:
            return build_list_table(subject, sources)  # not worth keeping
        self.used.append(file)
        return ListTable(file.table, [*file.record.masks], tuple(kept_list.key for kept_list in file.record.lists))

    def _keep_or_patch(self, old: TableFile, sources: Sequence[EntrySource]) -> TableFile | None:
        record = old.record
        wanted = {_entries(source).key: source for source in sources}
        known = {kept_list.key for kept_list in record.lists}
        unused = [place for place, kept_list in enumerate(record.lists) if kept_list.key not in wanted]
        missing = [source for key, source in wanted.items() if key not in known]
        total = sum(kept_list.length for kept_list in record.lists)
        if not missing:
            return old if _MAX_SHARE * sum(record.lists[place].length for place in unused) <= total else None
        changes: dict[int, EntrySource] = {}
        lists = [*record.lists]
        by_path = {record.lists[place].path: place for place in unused}
        for source in missing:
            entries = _entries(source)
            place = by_path.pop(entries.path, len(lists))
            lists[place : place + 1] = [KeptList(entries.key, entries.path, len(entries))]
            changes[place] = source
        idle = sum(record.lists[place].length for place in unused if place not in changes)
        changed = sum(max(len(source.entries), _length(record, place)) for place, source in changes.items())
        if record.patches >= MAX_PATCHES or _MAX_SHARE * (idle + changed) > total:
            return None
        try:
            return self._patch(old, changes, tuple(lists))
        except (NotPatchableError, TooManyCombinationsError):
            return None

    def _patch(self, old: TableFile, changes: Mapping[int, EntrySource], lists: tuple[KeptList, ...]) -> TableFile:
        record = old.record
        masks = Masks(record.masks, MAX_COMBINATIONS)
        if isinstance(old.table, RangeTable):
            of_place = {place: _entries(source) for place, source in changes.items()}
            parts, differences = patch_ranges(old.table, masks, of_place)
            descriptor, layout = write_parts([[part] for part in parts])
        else:
            patch, differences = patch_names(old.table, masks, changes)
            descriptor, layout = write_parts(
                names_parts(old.table, patch), lambda views: insert_names(views[0], views[1].cast("I"), patch)
            )
        for place, difference in differences.items():
            if place < len(record.lists):
                self.differences[lists[place].path] = difference
        made = Record(record.family, layout, lists, tuple(masks.all), record.patches + 1)
        return TableFile(descriptor, made)


def _build(family: Family, sources: Sequence[EntrySource]) -> TableFile | None:
    """Builds a table in which no lists share a bit; None if that makes too many combinations."""
    try:
        parts, masks = build_table([[source] for source in sources], MAX_COMBINATIONS)
    except TooManyCombinationsError:
        return None
    pieces = [[part] for part in parts]
    del parts  # so that each part is freed after it is written
    descriptor, layout = write_parts(pieces)
    lists = (KeptList(entries.key, entries.path, len(entries)) for entries in map(_entries, sources))
    return TableFile(descriptor, Record(family, layout, tuple(lists), tuple(masks)))


def _family(subject: str, kind: Kind) -> Family:
    return subject, "networks" if kind is Kind.NETWORK else "values" if kind is Kind.VALUE else "names"


def _entries(source: EntrySource) -> LongList:
    assert isinstance(source.entries, LongList)
    return source.entries


def _length(record: Record, place: int) -> int:
    return record.lists[place].length if place < len(record.lists) else 0
