"""Reads DNS answers: the records of one type that a name has, or the reason of a failure.

Every message gives records or a reason. `answer_to` waits for a query of aiodns, `settled_answer` takes a query that
has ended; both leave the records to `read_answer`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from aiodns.error import (
    ARES_ECANCELLED,
    ARES_ECONNREFUSED,
    ARES_EDESTRUCTION,
    ARES_ENODATA,
    ARES_ENOTFOUND,
    ARES_EREFUSED,
    ARES_ESERVFAIL,
    ARES_ETIMEOUT,
    DNSError,
)

from policyd.core.address import Address, parse_address
from policyd.core.identity import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Maximum seconds that an answer is cached (ruleset.md, "Reverse DNS").
MAX_SECONDS = 3600

# Number of records above which the event loop gets a turn before the answer is read.
MANY_RECORDS = 256


class ResourceRecord(Protocol):
    """A resource record as aiodns gives it. Names are in presentation form, without the trailing dot."""

    name: str
    type: int
    ttl: int
    data: Any  # with `dname` (PTR), `addr` (A, AAAA) or `cname`


class RecordType(NamedTuple):
    """A type of record: its name, its number, and the conversion of its data for `policyd.core.identity`."""

    name: str
    number: int
    read: Callable[[Any], Any]


def _read_name(found: Any) -> bytes:
    name: str = found.dname
    return name.encode()


def _read_address(found: Any) -> Address | None:
    address: str = found.addr
    return parse_address(address.encode())


# RFC 1035 section 3.2.2, RFC 3596 section 2.1.
_CNAME = 5
PTR = RecordType("PTR", 12, _read_name)
A = RecordType("A", 1, _read_address)
AAAA = RecordType("AAAA", 28, _read_address)

# Meanings of c-ares's errors; every other error means malformed.
_FAILURES: dict[int, tuple[()] | Reason] = {
    ARES_ENODATA: (),
    ARES_ENOTFOUND: (),  # NXDOMAIN
    ARES_ESERVFAIL: Reason.SERVFAIL,
    ARES_EREFUSED: Reason.REFUSED,
    ARES_ETIMEOUT: Reason.TIMEOUT,
    ARES_ECONNREFUSED: Reason.TIMEOUT,  # a closed port, and every other failure of a socket
    ARES_ECANCELLED: Reason.TIMEOUT,  # the channel was closed
    ARES_EDESTRUCTION: Reason.TIMEOUT,
}


async def answer_to(
    query: asyncio.Future[Any], name: str, kind: RecordType
) -> tuple[tuple[Any, ...] | Reason, int | None]:
    """Waits for a query (the future of `Channel.ask`) and reads its answer, as `read_answer` does."""
    try:
        records = (await query).answer
    except DNSError as error:
        return _FAILURES.get(error.args[0], Reason.MALFORMED), None
    if len(records) > MANY_RECORDS:
        await asyncio.sleep(0)
    return read_answer(records, name, kind)


def settled_answer(
    query: asyncio.Future[Any], name: str, kind: RecordType
) -> tuple[tuple[Any, ...] | Reason, int | None]:
    """Reads the answer of a finished query, as `read_answer` does; of a long answer only the first MANY_RECORDS
    records.
    """
    if query.cancelled():
        return Reason.TIMEOUT, None
    error = query.exception()
    if isinstance(error, DNSError):
        return _FAILURES.get(error.args[0], Reason.MALFORMED), None
    return read_answer(query.result().answer[:MANY_RECORDS], name, kind)


def read_answer(
    answer: Sequence[ResourceRecord], name: str, kind: RecordType
) -> tuple[tuple[Any, ...] | Reason, int | None]:
    """Reads the records of one type that a name has, and the smallest TTL of these and of the aliases before them.

    `answer` is the answer section of a message that c-ares reports as a success. Records of other names are ignored.
    The chain of aliases (RFC 1034 section 3.6.2) is followed within the message; a chain that leads to no such record
    is a definite "none", without a TTL. A loop and a message without any record for the name are malformed (c-ares
    reports an unknown response code as a success without records).
    """
    records: dict[str, list[ResourceRecord]] = {}
    aliases: dict[str, ResourceRecord] = {}
    for record in answer:
        if record.type == kind.number:
            records.setdefault(record.name.lower(), []).append(record)
        elif record.type == _CNAME:
            aliases[record.name.lower()] = record
    ttl = MAX_SECONDS
    followed: set[str] = set()
    while name not in records:
        alias = aliases.get(name)
        if alias is None:
            return ((), None) if followed else (Reason.MALFORMED, None)
        if name in followed:
            return Reason.MALFORMED, None
        followed.add(name)
        ttl = min(ttl, alias.ttl)
        name = alias.data.cname.lower()
    found = records[name]
    return tuple([kind.read(record.data) for record in found]), min(ttl, *[record.ttl for record in found])
