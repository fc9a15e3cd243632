"""Facts about a client that do not stand in its request: what is known of them, and what is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from policyd.core.identity import Identity


class Facts(NamedTuple):
    """What is known of a client beyond its request; None for what is not known yet."""

    identity: Identity | None = None


NOTHING_KNOWN: Final = Facts()


class Needs(NamedTuple):
    """The facts without which there is no decision: everything that the rules from there on may need."""

    identity: bool = False
