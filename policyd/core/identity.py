"""The client's identity: the status of its reverse DNS, its names, the reason of an error.

`policyd.dns.identify` looks up the identity; with `dns.trust_postfix`, it is taken from Postfix's attributes.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from policyd.core.normalize import fold_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policyd.core.protocol import Request


class Status(StrEnum):
    """The four answers to "who is this client?" (RFC 8601 section 3, `iprev`)."""

    VERIFIED = "verified"  # a PTR name of the address resolves back to it
    MISMATCH = "mismatch"  # there are PTR names; each that was tried got a definite answer, none resolves back
    MISSING = "missing"  # a definite answer that there is no PTR record
    ERROR = "error"  # a lookup failed or took too long: nothing definite is known


class Reason(StrEnum):
    """The reason of a status `error`."""

    TIMEOUT = "timeout"  # too late, or no contact
    SERVFAIL = "servfail"
    REFUSED = "refused"  # the resolver's own code
    MALFORMED = "malformed"  # a malformed DNS message (names may have any form), or any other failure
    NO_ADDRESS = "no_address"  # `client_address` is not an address, so there is nothing to look up


class Identity(NamedTuple):
    """The names and the status of a client. Names are bytes in lower case, without the trailing dot. They come from DNS
    or Postfix, and may contain anything: escape them before they are printed.

    `verified` is sorted, and empty unless the status is `verified`; `claimed` holds the PTR names that did not verify,
    sorted. `names_known` says, under `error`, that the PTR lookup succeeded, so that `claimed` has all PTR names.
    `seconds` is the time that the lookup took.
    """

    status: Status
    verified: tuple[bytes, ...] = ()
    claimed: tuple[bytes, ...] = ()
    reason: Reason | None = None
    names_known: bool = True
    seconds: float = 0.0

    @property
    def hostname(self) -> bytes:
        """The verified name, the first of several; empty if there is none."""
        return self.verified[0] if self.verified else b""


# A client without an address: there is nothing to look up.
NO_ADDRESS = Identity(Status.ERROR, reason=Reason.NO_ADDRESS, names_known=False)


_LABEL = rb"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rb"(?!.{254})(?![0-9.]*\Z)%b(?:\.%b)*" % (_LABEL, _LABEL))


def may_be_host(name: bytes) -> bool:
    """Returns whether a host can have this folded name (RFC 1123 section 2.1, underscores allowed).

    Not host names: an address, the root, digits only, the `unknown` that Postfix writes for a missing name, and a name
    with an escape.
    """
    return name != b"unknown" and _HOST.fullmatch(name) is not None


def given_identity(
    status: Status,
    *,
    verified: Iterable[bytes] = (),
    claimed: Iterable[bytes] = (),
    reason: Reason | None = None,
) -> Identity:
    """Makes an identity from a status and folded names, which a log, a ruleset's test or the command line gives.

    For `error` the reason is `servfail` unless given, and the claimed names, if any, count as all PTR names.
    """
    names, others = tuple(sorted(verified)), tuple(sorted(claimed))
    if status is not Status.ERROR:
        return Identity(status, names, others)
    return Identity(status, (), others, reason or Reason.SERVFAIL, names_known=bool(others))


def identity_from_postfix(request: Request) -> Identity | None:
    """Returns the identity with `client_name`, which Postfix has verified; None if it is `unknown` (smtpd_peer.c)."""
    name = request.get("client_name")
    if name == b"unknown" or not name:
        return None
    name = fold_name(name)
    return Identity(Status.VERIFIED, (name,)) if name else None


def with_claimed(identity: Identity, claimed: bytes) -> Identity:
    """Returns the identity; if its PTR lookup failed, with `claimed` (`reverse_client_name`) as its claimed name."""
    if identity.names_known or not claimed or claimed == b"unknown":
        return identity
    name = fold_name(claimed)
    return identity._replace(claimed=(name,)) if name else identity
