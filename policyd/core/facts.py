"""Facts about a client that do not stand in its request: what is known of them, and what is needed."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyd.core.dns_lists import ListAnswer
    from policyd.core.identity import Identity
    from policyd.core.owners import Owner

# What DNS lists say of a client if none has been asked. Never changed: an answer makes a new mapping.
NO_LISTS: Final[Mapping[str, ListAnswer]] = {}


class Greylisted(StrEnum):
    """The results of greylisting a client: the words of the decision log's `greylist=`."""

    NEW = "new"  # deferred: never seen, or too long ago
    EARLY = "early"  # deferred: came again before its time
    PASSED = "passed"  # came again in time; its network is known from now on
    KNOWN = "known"  # from a network that has passed
    UNKNOWN = "unknown"  # let by: the shared memory is away, and this process does not know the client

    @property
    def deferred(self) -> bool:
        """Whether the client is told to come again."""
        return self is Greylisted.NEW or self is Greylisted.EARLY


class Facts(NamedTuple):
    """Facts known of a client beyond its request: None, or no answer of a list, for what is not known yet.

    An `owner` that is not given is looked up in the databases of the ruleset, if it declares any.
    """

    identity: Identity | None = None
    lists: Mapping[str, ListAnswer] = NO_LISTS
    owner: Owner | None = None
    counters: Mapping[str, int] | None = None  # values by name; a counter that does not count the request is not there
    greylist: Greylisted | None = None


class Known(Protocol):
    """Anything that holds what is known of a client: what lookups look at."""

    @property
    def identity(self) -> Identity | None:
        """The client's reverse DNS."""

    @property
    def owner(self) -> Owner | None:
        """The owner of the client's address."""


NOTHING_KNOWN: Final = Facts()


class Needs(NamedTuple):
    """The facts without which there is no decision: everything that the rules from there on may need."""

    identity: bool = False
    lists: frozenset[str] = frozenset()  # names of DNS lists; those asked by host name once the identity is known
    counters: bool = False
    greylist: bool = False
