"""Results of a load besides settings and ruleset: the files, their text, and an outline for comparisons.

The daemon keeps them while the ruleset is in force: `status` shows the files, `reload --data` loads the texts again,
and a reload reports the differences of two outlines.
"""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from policyd.config.dns_list import DnsList
    from policyd.core.public_suffix import RegistrableDomains

# Hexadecimal digits of a file's hash, as many as a ruleset's hash has.
HASH_DIGITS = 8


@dataclass(frozen=True, slots=True)
class LoadedFile:
    """A file as it was read: its hash (the first HASH_DIGITS of its SHA-256) and when it was last written (Unix
    seconds). `lists` are the lists that use a list file, `entries` the number of its entries. `hashed` says whether the
    ruleset's hash covers the file. `every` is the interval (seconds) at which a list is fetched, None for other files;
    `missing` says that it has not been fetched yet.
    """

    path: str
    kind: Literal["settings", "rules", "list"]
    hash: str
    modified: float
    lists: tuple[str, ...] = ()
    entries: int | None = None
    hashed: bool = True
    every: float | None = None
    missing: bool = False


def file_hash(content: bytes | memoryview) -> str:
    """Returns the hash of a file's bytes: the first HASH_DIGITS of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:HASH_DIGITS]


class Text:
    """A settings, rules or list file as it was loaded: its bytes, and when it was last written (Unix seconds).

    Pickled with its bytes out of band (protocol 5), so that the daemon uses them in place in the memory file.
    """

    __slots__ = ("_content", "modified")

    def __init__(self, content: bytes | memoryview | pickle.PickleBuffer, modified: float) -> None:
        self._content = memoryview(content)
        self.modified = modified

    @property
    def content(self) -> memoryview:
        """The bytes, without a copy."""
        return self._content

    def __bytes__(self) -> bytes:
        return bytes(self._content)

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        return Text, (pickle.PickleBuffer(self._content), self.modified)


class Data(NamedTuple):
    """The data that a ruleset needs besides its rules file, without the databases.

    `lists` has the list files by path, and `dns_lists` the DNS lists that rules use, with their keys. `domains` finds
    registrable domains by the list of public suffixes; None if no rule needs that.
    """

    lists: dict[str, Text]
    dns_lists: tuple[DnsList, ...] = ()
    domains: RegistrableDomains | None = None


class Texts(NamedTuple):
    """The settings file (None without one) and the rules file, as they were loaded.

    `data` is set if any entry of a list file will end, so that the daemon can drop ended entries without reading a
    file. A load of texts with `data` reads no file; its ruleset has no databases, because the caller keeps those in
    force; and it runs no test of the ruleset, because a failing test must not keep an ended entry in force.
    """

    settings: Text | None
    rules: Text
    data: Data | None = None


@dataclass(frozen=True, slots=True)
class Outline:
    """The comparable parts of a ruleset: digests of the rules (in order), of the lists and of the default action; the
    number of entries of each list; and whether the whole ruleset only observes.

    For lists whose tables were patched, `differences` has the numbers of entries added to and removed from the list in
    force at the time of the load; for lists of networks, the numbers of ranges. `databases` has the date and the hash
    of each kind, as a message shows them.
    """

    rules: dict[str, bytes]
    lists: dict[str, tuple[bytes, int]]
    default: bytes
    observe: bool
    differences: dict[str, tuple[int, int]] = field(default_factory=dict)
    databases: dict[str, str] = field(default_factory=dict)
