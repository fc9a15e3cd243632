"""Reads answers of DNS: the records of one type that a name has, or the reason why nothing is known.

Every message gives one or the other. `answer_to` and `settled_answer` read a query of aiodns, `read_answer` records.
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

# Seconds that an answer is kept at most (ruleset.md, "Reverse DNS").
MAX_SECONDS = 3600

# Records of one answer above which the event loop gets a turn before the answer is read.
MANY_RECORDS = 256


class Record(Protocol):
    """A resource record as aiodns gives it. Names are in presentation form, without the trailing dot."""

    name: str
    type: int
    ttl: int
    data: Any  # with `dname` (PTR), `addr` (A, AAAA) or `cname`


class RecordType(NamedTuple):
    """A type of record: its name, its number, and how its data become what `policyd.core.identity` takes."""

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

# How c-ares says that a lookup brought nothing; all that is not here is malformed.
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
    asked: asyncio.Future[Any], name: str, kind: RecordType
) -> tuple[tuple[Any, ...] | Reason, int | None]:
    """As `read_answer`, for a query under way (`policyd.dns.channels.Channel.ask`)."""
    try:
        records = (await asked).answer
    except DNSError as error:
        return _FAILURES.get(error.args[0], Reason.MALFORMED), None
    if len(records) > MANY_RECORDS:
        await asyncio.sleep(0)
    return read_answer(records, name, kind)


def settled_answer(
    asked: asyncio.Future[Any], name: str, kind: RecordType
) -> tuple[tuple[Any, ...] | Reason, int | None]:
    """As `read_answer`, for a query that has ended; of a long answer only the first MANY_RECORDS records are read."""
    if asked.cancelled():
        return Reason.TIMEOUT, None
    error = asked.exception()
    if isinstance(error, DNSError):
        return _FAILURES.get(error.args[0], Reason.MALFORMED), None
    return read_answer(asked.result().answer[:MANY_RECORDS], name, kind)


def read_answer(answer: Sequence[Record], name: str, kind: RecordType) -> tuple[tuple[Any, ...] | Reason, int | None]:
    """Reads the records of one type that a name has, and the smallest TTL of the chain that leads to them.

    `answer` is the answer section of a message that c-ares takes for a success. What belongs to another name is
    ignored. The chain of aliases (RFC 1034 section 3.6.2) is followed as far as the message has it; one that leads to
    no such record is a definite "none", without a TTL. A loop, and a message that says nothing of the name (it has
    no record at all if the response code is one that c-ares does not know), are malformed.
    """
    records: dict[str, list[Record]] = {}
    aliases: dict[str, Record] = {}
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
