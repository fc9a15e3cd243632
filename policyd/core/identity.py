"""The client's identity as reverse DNS tells it: status, names, and the reason of an error."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Status(StrEnum):
    """The four answers to "who is this client?" (RFC 8601 section 3, `iprev`)."""

    VERIFIED = "verified"  # a PTR name of the address resolves back to it
    MISMATCH = "mismatch"  # there are PTR names, each tried got a definite answer, none resolves back
    MISSING = "missing"  # a definite answer that there is no PTR record
    ERROR = "error"  # a lookup failed or took too long: nothing definite is known


class Reason(StrEnum):
    """Why a status is `error`."""

    TIMEOUT = "timeout"  # too late, or no contact at all
    SERVFAIL = "servfail"
    REFUSED = "refused"  # the resolver's own code
    MALFORMED = "malformed"  # the DNS message, not a name: every other failure
    NO_ADDRESS = "no_address"  # `client_address` is no address, so there is nothing to look up


class Identity(NamedTuple):
    """What is known of a client. Names are lower case, without the trailing dot, as the bytes that DNS (or
    Postfix) gave: nothing is said of their form, so escape them before they go anywhere.

    `verified` is sorted and not empty exactly where the status is `verified`; `claimed` holds the PTR names that
    did not verify, sorted. `names_known` says, under `error`, that the PTR lookup succeeded, so that `claimed` is
    all of them. `seconds` is how long DNS was waited for.
    """

    status: Status
    verified: tuple[bytes, ...] = ()
    claimed: tuple[bytes, ...] = ()
    reason: Reason | None = None
    names_known: bool = True
    seconds: float = 0.0
