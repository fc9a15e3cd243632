"""Facts about a client that do not stand in its request: what is known of them, and what is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyd.core.dns_lists import ListAnswer
    from policyd.core.identity import Identity
    from policyd.core.owners import Owner

# What DNS lists say of a client if none has been asked. Never changed: an answer makes a new mapping.
NO_LISTS: Final[Mapping[str, ListAnswer]] = {}


class Facts(NamedTuple):
    """What is known of a client beyond its request: None, or no answer of a list, for what is not known yet.

    An `owner` that is not given is looked up in the databases of the ruleset, if it declares any.
    """

    identity: Identity | None = None
    lists: Mapping[str, ListAnswer] = NO_LISTS
    owner: Owner | None = None


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
