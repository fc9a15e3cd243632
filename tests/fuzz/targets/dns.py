"""DNS answers: records, and the identity computed from them.

c-ares parses the DNS message, and `policyd.dns.answers` gets its records. Here the records are lines `OWNER TYPE TTL
VALUE`, and every question gets all of them as its answer, as from a malicious server.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from policyd.core.address import parse_address, reverse_name
from policyd.core.identity import Identity, Status
from policyd.dns.answers import AAAA, MAX_SECONDS, PTR, A, RecordType, read_answer
from policyd.dns.identify import MAX_CLAIMED, MAX_TRIED, fold_ptr_name, identify

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from policyd.dns.identify import AddressesAnswer, NamesAnswer

CLIENTS = (b"192.0.2.1", b"2001:db8::1")
_TYPES = {"PTR": (PTR.number, "dname"), "CNAME": (5, "cname"), "A": (A.number, "addr"), "AAAA": (AAAA.number, "addr")}


class Answers:
    """Answers every question with the same records."""

    def __init__(self, records: list[SimpleNamespace]) -> None:
        self.records = records
        self.forward_lookups = 0

    async def names(self, name: bytes) -> NamesAnswer:
        answer: NamesAnswer = self._ask(name, PTR)
        return answer

    async def addresses(self, names: Sequence[bytes], version: int) -> list[AddressesAnswer]:
        self.forward_lookups += len(names)
        return [self._ask(name, A if version == 4 else AAAA) for name in names]

    def _ask(self, name: bytes, kind: RecordType) -> Any:
        found, ttl = read_answer(self.records, name.decode("ascii"), kind)
        assert ttl is None or ttl <= MAX_SECONDS
        return found


def answers(content: bytes, _folder: Path) -> None:
    """For any records, a client gets one of the four statuses with at most ten forward lookups, and a name verifies
    only if records lead from the client's address to it and back.
    """
    records = [record for line in content.decode("latin-1").split("\n") if (record := _record(line)) is not None]
    for client in CLIENTS:
        lookups = Answers(records)
        identity = _result_of(identify(parse_address(client), lookups))
        assert lookups.forward_lookups <= MAX_TRIED
        assert len(identity.verified) <= MAX_TRIED
        assert len(identity.claimed) <= MAX_CLAIMED + MAX_TRIED
        assert bool(identity.verified) == (identity.status is Status.VERIFIED)
        assert (identity.reason is not None) == (identity.status is Status.ERROR)
        assert list(identity.verified) == sorted(set(identity.verified))
        assert list(identity.claimed) == sorted(set(identity.claimed) - set(identity.verified))
        _check_verified(identity, client, records)


def _check_verified(identity: Identity, client: bytes, records: list[SimpleNamespace]) -> None:
    """Checks each verified name with a plain evaluation, which follows every CNAME from a name."""
    address = parse_address(client)
    assert address is not None
    claimed = {fold_ptr_name(name.encode()) for name in _reached(reverse_name(address).decode(), PTR.number, records)}
    for name in identity.verified:
        assert name in claimed
        found = _reached(name.decode("ascii"), (A if address[0] == 4 else AAAA).number, records)
        assert address in [parse_address(text.encode()) for text in found]


def _reached(name: str, number: int, records: list[SimpleNamespace]) -> list[str]:
    """The values of one type at a name and at all names that it is an alias of."""
    owners = {name}
    while more := {r.data.cname.lower() for r in records if r.type == 5 and r.name.lower() in owners} - owners:
        owners |= more
    return [r.value for r in records if r.type == number and r.name.lower() in owners]


def _record(line: str) -> SimpleNamespace | None:
    owner, _, rest = line.partition(" ")
    kind, _, rest = rest.partition(" ")
    ttl, _, value = rest.partition(" ")
    if kind not in _TYPES or not ttl.isascii() or not ttl.isdigit() or len(ttl) > 10:
        return None
    number, attribute = _TYPES[kind]
    if attribute == "addr" and parse_address(value.encode()) is None:
        return None  # c-ares formats addresses itself, so none that it passes on is invalid
    return SimpleNamespace(
        name=owner, type=number, ttl=int(ttl), value=value, data=SimpleNamespace(**{attribute: value})
    )


def _result_of(work: object) -> Identity:
    """The result of a coroutine that never waits."""
    assert asyncio.iscoroutine(work)
    try:
        work.send(None)
    except StopIteration as end:
        identity: Identity = end.value
        return identity
    raise AssertionError("the coroutine waited")
