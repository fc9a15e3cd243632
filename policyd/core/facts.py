"""Facts about a client beyond its request: the known ones, and those that a decision needs."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyd.core.dns_lists import ListAnswer
    from policyd.core.identity import Identity
    from policyd.core.owners import Owner

# The answers of DNS lists if no list has been asked. Never mutated: an answer makes a new mapping.
NO_LISTS: Final[Mapping[str, ListAnswer]] = {}


class Greylisted(StrEnum):
    """The results of greylisting a client: the words of the decision log's `greylist=`."""

    NEW = "new"  # deferred: not seen before, or not within `retry_within`
    EARLY = "early"  # deferred: retried before `wait` was over
    PASSED = "passed"  # retried in time; its network is known from now on
    KNOWN = "known"  # from a network that has passed
    UNKNOWN = "unknown"  # let through: the shared memory is unavailable, and this process does not know the client

    @property
    def deferred(self) -> bool:
        """Whether the client is deferred."""
        return self is Greylisted.NEW or self is Greylisted.EARLY


class Facts(NamedTuple):
    """Facts known of a client beyond its request. A missing fact is None; `lists` has only lists that have answered.

    An `owner` that is not given is looked up in the databases of the ruleset, if it declares any.
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
    """The facts without which there is no decision: every fact that the remaining rules may need."""

    identity: bool = False
    lists: frozenset[str] = frozenset()  # names of DNS lists; lists of host names wait for the identity
    counters: bool = False
    greylist: bool = False
