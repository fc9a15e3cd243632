"""Facts about a client that its request does not contain: the known ones, and those that a decision needs."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyd.core.dns_lists import ListAnswer
    from policyd.core.identity import Identity
    from policyd.core.owners import Owner

# The answers of DNS lists before any list has answered. Never mutated: an answer makes a new mapping.
NO_LISTS: Final[Mapping[str, ListAnswer]] = {}


class Greylisted(StrEnum):
    """The results of greylisting a client: the words of the decision log's `greylist=`."""

    NEW = "new"  # deferred: not seen before, or its first try was more than `retry_within` ago
    EARLY = "early"  # deferred: retried before `wait` was over
    PASSED = "passed"  # let through: retried in time; its network is known from now on
    KNOWN = "known"  # let through: its network has passed before
    UNKNOWN = "unknown"  # let through: it has no address, or is new here while the shared memory is unavailable

    @property
    def deferred(self) -> bool:
        """Whether the client is deferred."""
        return self is Greylisted.NEW or self is Greylisted.EARLY


class Facts(NamedTuple):
    """The known facts about a client. A missing fact is None; `lists` has only lists that have answered.

    If `owner` is None, the engine looks it up in the databases that the ruleset declares.
    """

    identity: Identity | None = None
    lists: Mapping[str, ListAnswer] = NO_LISTS
    owner: Owner | None = None
    counters: Mapping[str, int] | None = None  # values by name, without counters that do not count the request
    greylist: Greylisted | None = None


class Known(Protocol):
    """The facts that lookups use; any object with these attributes."""

    @property
    def identity(self) -> Identity | None:
        """The client's reverse DNS."""

    @property
    def owner(self) -> Owner | None:
        """The owner of the client's address."""


NOTHING_KNOWN: Final = Facts()


class Needs(NamedTuple):
    """Facts that are needed. As a result of `decide`: all missing facts that the remaining rules may need."""

    identity: bool = False
    lists: frozenset[str] = frozenset()  # names of DNS lists; lists of host names wait for the identity
    counters: bool = False
    greylist: bool = False
