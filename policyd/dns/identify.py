"""Forward-confirmed reverse DNS, without I/O: PTR and back (RFC 8601 section 3, `iprev`; RFC 1912 section 2.1).

The lookups are passed in: a real resolver, or a dict in tests. Every DNS answer leads to one of the four statuses.
Deadlines, TTLs and caching are left to the lookups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

from policyd.core.address import Address, reverse_name
from policyd.core.identity import NO_ADDRESS, Identity, Reason, Status, may_be_host

if TYPE_CHECKING:
    from collections.abc import Sequence

# Maximum number of forward lookups for one client. RFC 8601 section 3 recommends a limit, and RFC 7208 section 4.6.4
# sets this one for the same lookups in SPF.
MAX_TRIED = 10

# Maximum number of PTR names kept for a client, besides those looked up. A message of 64 KiB holds 4,000, a datagram
# some 40; and each request compares every name with the rules, at about 5 us a name.
MAX_CLAIMED = 256

# An answer of DNS: the names of PTR records in presentation form (RFC 1035 section 5.1), or the addresses of a name.
# Empty is a definite "none"; a reason means that there is no answer.
NamesAnswer: TypeAlias = tuple[bytes, ...] | Reason
AddressesAnswer: TypeAlias = tuple[Address, ...] | Reason


class IdentityLookups(Protocol):
    """The DNS lookups of `identify` for one client. They raise nothing: a failure is a `Reason`."""

    async def names(self, name: bytes) -> NamesAnswer:
        """Returns the PTR records at `name`."""

    async def addresses(self, names: Sequence[bytes], version: int) -> Sequence[AddressesAnswer]:
        """Returns the A (version 4) or AAAA (6) records of each name, in the same order, asked for at the same time."""


async def identify(address: Address | None, lookups: IdentityLookups) -> Identity:
    """Returns a client's identity from DNS; `seconds` stays 0.

    The forward lookups are of the client's own address family: an IPv4-mapped address is the IPv4 address. Invalid host
    names are claimed, but not looked up. The result includes everything learnt before a failure.
    """
    if address is None:
        return NO_ADDRESS
    answer = await lookups.names(reverse_name(address))
    if isinstance(answer, Reason):
        return Identity(Status.ERROR, reason=answer, names_known=False)
    names = sorted({fold_ptr_name(name) for name in answer})
    if not names:
        return Identity(Status.MISSING)
    tried = [name for name in names if may_be_host(name)][:MAX_TRIED]
    answers = await lookups.addresses(tried, address[0]) if tried else ()
    verified: list[bytes] = []
    failure: Reason | None = None
    for name, addresses in zip(tried, answers, strict=True):
        if isinstance(addresses, Reason):
            failure = failure or addresses
        elif address in addresses:
            verified.append(name)
    if len(names) > MAX_CLAIMED:
        names = sorted({*names[:MAX_CLAIMED], *tried})
    claimed = tuple(name for name in names if name not in verified)
    if verified:
        return Identity(Status.VERIFIED, tuple(verified), claimed)
    if failure is not None:
        return Identity(Status.ERROR, claimed=claimed, reason=failure)
    return Identity(Status.MISMATCH, claimed=claimed)


def fold_ptr_name(name: bytes) -> bytes:
    """Returns the form in which names from DNS are kept: lower case, without the trailing dot; the root is `.`."""
    return name.lower().removesuffix(b".") or b"."
