"""What to block, as a mail log shows it: candidates with their evidence and their collateral.

Evidence is what was refused or deferred by whomever: a log does not say which of the delivered mails were wanted, so
nothing is suggested for their sake. Collateral is what was delivered from the same place; it speaks against a
candidate, and the clients it came from are proposed as exceptions. Three things are looked for:

- host names with a common suffix, as narrow as still holds nearly all of them (public suffix list);
- blocks of addresses (see `policyd.tools.address_blocks`), among the clients that no suffix accounts for;
- sender addresses of one shape (see `policyd.tools.suggest.sender_patterns`).

Memory is bounded: where a log has more clients or senders than are kept, those seen least are forgotten, and counted.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from policyd.config.public_suffixes import all_suffixes, registries
from policyd.core.address import parse_address
from policyd.core.identity import may_be_host
from policyd.core.ruleset import Verb
from policyd.logs.maillog import LineCounts, MailLog, observations
from policyd.logs.transaction import Outcome, Standing
from policyd.tools.address_blocks import blocks, part_of
from policyd.tools.judge import GOT_THROUGH, Assumption, Judge
from policyd.tools.suggest.sender_patterns import Shape, shape_of

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Iterable, Sequence

    from policyd.core.index import Ruleset
    from policyd.logs.transaction import Observation

# Clients, and senders, kept; each takes up to 1 KB. A week of a large site has fewer that come twice.
_MAX_KEPT = 100_000

# Names, mails and clients kept of one client or sender: more of them say nothing more.
_MAX_NAMES = 4
_MAX_MAILS = 8
_MAX_CLIENTS = 64

# A suffix gives way to a longer one that holds at least this share of its clients.
_NEARLY_ALL = 0.8

# Senders of one shape, before it is called a pattern, and refusals of theirs.
_LEAST_SENDERS = 2
_LEAST_REFUSALS = 3

# Exceptions proposed for one candidate. One that needs more is too wide, and says so.
_MAX_EXCEPTIONS = 20

_MAX_EXAMPLES = 3

# A delivered mail speaks against a candidate as much as this many refused ones speak for it.
_COLLATERAL_WEIGHT = 10

# Senders that can stand in an expression.
_ADDRESS = re.compile(rb"[!-~]+@[A-Za-z0-9.-]+")

# Addresses that are nobody's on the Internet, as (version, first, last): RFC 1122, 1918, 3927, 4193, 4291, 6598.
_PRIVATE = (
    (4, 0x0A000000, 0x0AFFFFFF),
    (4, 0x64400000, 0x647FFFFF),
    (4, 0x7F000000, 0x7FFFFFFF),
    (4, 0xA9FE0000, 0xA9FEFFFF),
    (4, 0xAC100000, 0xAC1FFFFF),
    (4, 0xC0A80000, 0xC0A8FFFF),
    (6, 1, 1),
    (6, 0xFC << 120, (0xFE << 120) - 1),
    (6, 0xFE80 << 112, (0xFEC0 << 112) - 1),
)


class Example(NamedTuple):
    """One refused mail. `name` is empty where the client had none; `sender` as in an `Observation`."""

    client_address: bytes
    name: bytes
    sender: bytes | None


def _example_of(seen: Observation) -> Example:
    return Example(seen.client_address, seen.names[0] if seen.names else b"", seen.sender)


class _Counted:
    """What is counted of a client or a sender. There are many, and an empty set takes 216 bytes: so, tuples."""

    __slots__ = ("delivered", "example", "first", "last", "refused")

    def __init__(self, seen: Observation) -> None:
        self.refused = 0
        self.delivered = 0
        self.first = self.last = seen.time
        self.example = _example_of(seen)

    def count(self, seen: Observation) -> None:
        if seen.outcome in GOT_THROUGH:
            self.delivered += 1
            return
        if seen.outcome is Outcome.UNKNOWN:
            return
        if not self.refused:
            self.example = _example_of(seen)
            self.first = seen.time
        self.refused += 1
        self.last = seen.time


class _Client(_Counted):
    __slots__ = ("address", "mails", "names", "verified")

    def __init__(self, seen: Observation, address: tuple[int, int]) -> None:
        super().__init__(seen)
        self.address = address
        self.names: tuple[bytes, ...] = ()
        self.verified: tuple[bytes, ...] = ()
        self.mails: tuple[int, ...] = ()  # hashes of sender and recipient

    def see(self, seen: Observation) -> None:
        self.count(seen)
        for name in seen.names:
            if name not in self.names and len(self.names) < _MAX_NAMES and may_be_host(name):
                self.names += (name,)
                if seen.standing is Standing.VERIFIED:
                    self.verified += (name,)
        if seen.sender is not None and seen.recipients and len(self.mails) < _MAX_MAILS:
            self.mails = _with(self.mails, hash((seen.sender, seen.recipients[0])))


class _Sender(_Counted):
    __slots__ = ("clients", "delivered_from")

    def __init__(self, seen: Observation) -> None:
        super().__init__(seen)
        self.clients: tuple[tuple[int, int], ...] = ()
        self.delivered_from: tuple[tuple[int, int], ...] = ()

    def see(self, seen: Observation, client: tuple[int, int]) -> None:
        self.count(seen)
        if seen.outcome in GOT_THROUGH:
            if len(self.delivered_from) < _MAX_CLIENTS:
                self.delivered_from = _with(self.delivered_from, client)
        elif len(self.clients) < _MAX_CLIENTS:
            self.clients = _with(self.clients, client)


_Item = TypeVar("_Item")


def _with(items: tuple[_Item, ...], item: _Item) -> tuple[_Item, ...]:
    return items if item in items else (*items, item)


_Key = TypeVar("_Key")
_Value = TypeVar("_Value", bound=_Counted)


class _Kept(dict[_Key, _Value], Generic[_Key, _Value]):
    """A dict that forgets, when it is full, what was seen least."""

    forgotten = 0

    def make_room(self) -> None:
        if len(self) < _MAX_KEPT:
            return
        often = 1
        while len(self) > _MAX_KEPT // 2:
            for key in [key for key, counted in self.items() if counted.refused + counted.delivered <= often]:
                del self[key]
                self.forgotten += 1
            often *= 2


@dataclass(slots=True)
class Evidence:
    """What speaks for a candidate and what against it. Times are Unix seconds."""

    refused: int
    clients: int
    first: float | None
    last: float | None
    examples: list[Example]
    delivered: int
    delivered_clients: int


@dataclass(slots=True)
class Candidate:
    """A rule worth considering: `condition: value`, with exceptions by condition."""

    condition: str
    value: str
    evidence: Evidence
    exceptions: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def worthwhile(self) -> bool:
        """Whether less was delivered than refused; else a rule does more harm than good, whatever its exceptions."""
        return self.evidence.delivered < self.evidence.refused

    @property
    def score(self) -> float:
        """By which candidates are ranked: refused mails, divided by what would be lost."""
        return self.evidence.refused / (1 + _COLLATERAL_WEIGHT * self.evidence.delivered)


@dataclass(slots=True)
class Suggestions:
    """Candidates, the best first, and what they rest on."""

    candidates: list[Candidate]
    counts: LineCounts
    transactions: int = 0
    refused: int = 0
    covered: int = 0  # refused mails that the ruleset decides already, so that nothing is suggested for them
    forgotten: int = 0  # clients and senders, seen too seldom to be kept


def suggest(
    paths: Sequence[str],
    *,
    least_clients: int = 3,
    ruleset: Ruleset | None = None,
    today: datetime.date | None = None,
    advance: Callable[[int], None] | None = None,
) -> Suggestions:
    """Candidates from the mails in these logs.

    A suffix or a block needs `least_clients` addresses that were refused. With a ruleset, mails that one of its rules
    decides, as of `today` (UTC), are left out. Raises `LogError`.
    """
    clients: _Kept[tuple[int, int], _Client] = _Kept()
    senders: _Kept[bytes, _Sender] = _Kept()
    log = MailLog()
    found = Suggestions([], log.counts)
    judge = None
    if ruleset is not None and today is not None:
        judge = Judge(ruleset, today, Assumption.MISSING, by_recipient=False)
    for batch in observations(paths, log, advance):
        for seen in batch:
            found.transactions += 1
            address = parse_address(seen.client_address)
            if address is None or seen.sasl_username or _is_private(*address):
                continue
            refused = seen.outcome in {Outcome.REJECTED, Outcome.DEFERRED}
            found.refused += refused
            if judge is not None and _is_decided(judge, seen):
                found.covered += refused
                continue
            client = clients.get(address)
            if client is None:
                clients.make_room()
                client = clients[address] = _Client(seen, address)
            client.see(seen)
            if seen.sender and _ADDRESS.fullmatch(seen.sender):
                sender = senders.get(seen.sender)
                if sender is None:
                    senders.make_room()
                    sender = senders[seen.sender] = _Sender(seen)
                sender.see(seen, address)
    found.forgotten = clients.forgotten + senders.forgotten
    suffixes, accounted_for = _suffixes(clients.values(), least_clients)
    rest = [client for client in clients.values() if client.address not in accounted_for]
    candidates = [*suffixes, *_networks(rest, least_clients), *_patterns(senders, clients)]
    found.candidates = [one for one in candidates if one.worthwhile]
    found.candidates.sort(key=lambda one: (-one.score, -one.evidence.clients, one.value))
    return found


def _is_private(version: int, address: int) -> bool:
    return any(version == v and first <= address <= last for v, first, last in _PRIVATE)


def _is_decided(judge: Judge, seen: Observation) -> bool:
    """Whether a rule, and not the default, decides this mail."""
    decision = judge.decisions(seen)[0]
    return decision.rule is not None or decision.verb is not Verb.DUNNO


# --- Host names -----------------------------------------------------------------------------------------------------


def _suffixes(clients: Iterable[_Client], least: int) -> tuple[list[Candidate], set[tuple[int, int]]]:
    """Candidates, and the clients that they account for."""
    under: defaultdict[str, dict[str, _Client]] = defaultdict(dict)  # names by registrable domain
    for client in clients:
        for name in client.names:
            text = name.decode("ascii")
            domain = registries().privatesuffix(text)
            if domain is not None and domain != text:
                under[domain][text] = client
    found: list[Candidate] = []
    accounted_for: set[tuple[int, int]] = set()
    for domain, names in under.items():
        left = dict(names)
        while (suffix := _narrowest(domain, left, least)) and may_be_host(suffix.encode()):
            members = _distinct(client for name, client in names.items() if name.endswith("." + suffix))
            candidate = Candidate("hostname_suffix", suffix, _evidence(members))
            _propose_exceptions(candidate, [client for client in members if client.delivered])
            if all_suffixes().is_public(suffix):
                candidate.remarks.append("customers who do not know each other have names under this suffix")
            if candidate.worthwhile:
                found.append(candidate)
                accounted_for |= {client.address for client in members}
            left = {name: client for name, client in left.items() if not name.endswith("." + suffix)}
    return found, accounted_for


def _narrowest(domain: str, names: dict[str, _Client], least: int) -> str | None:
    """The longest suffix in a domain that holds nearly all of its refused clients; None if these are too few."""
    refused = {name: client.address for name, client in names.items() if client.refused}
    if len(set(refused.values())) < least:
        return None
    suffix = domain
    while True:
        holds: defaultdict[str, set[tuple[int, int]]] = defaultdict(set)
        for name, address in refused.items():
            labels = name[: -len(suffix) - 1].rsplit(".", 1)
            if len(labels) == 2:  # a name right under the suffix is a host, no longer suffix
                holds[f"{labels[1]}.{suffix}"].add(address)
        everyone = len(set(refused.values()))
        longer = max(holds, key=lambda one: len(holds[one]), default=None)
        if longer is None or len(holds[longer]) < max(least, _NEARLY_ALL * everyone):
            return suffix
        suffix = longer
        refused = {name: address for name, address in refused.items() if name.endswith("." + suffix)}


# --- Addresses ------------------------------------------------------------------------------------------------------


def _networks(clients: Sequence[_Client], least: int) -> list[Candidate]:
    members: defaultdict[tuple[int, int], list[_Client]] = defaultdict(list)
    for client in clients:
        members[part_of(*client.address)].append(client)
    refused = {part: sum(client.refused > 0 for client in found) for part, found in members.items()}
    found = []
    for block in blocks({part: count for part, count in refused.items() if count}, least):
        inside = [client for part in block.part_keys() for client in members.get((block.version, part), ())]
        candidate = Candidate("cidr", str(block), _evidence(inside))
        _propose_exceptions(candidate, [client for client in inside if client.delivered])
        tries = Counter(mail for client in inside for mail in client.mails)
        again = sum(count > 1 for count in tries.values())
        if again:
            candidate.remarks.append(
                f"{again:,} of the mails {'was' if again == 1 else 'were'} tried again from another address in it,"
                f" one from {max(tries.values())} addresses"
            )
        if not any(client.names for client in inside if client.refused):
            candidate.remarks.append("none of the refused clients had a name")
        found.append(candidate)
    return found


# --- Senders --------------------------------------------------------------------------------------------------------


def _patterns(senders: dict[bytes, _Sender], clients: dict[tuple[int, int], _Client]) -> list[Candidate]:
    shapes: defaultdict[Shape, list[tuple[str, _Sender]]] = defaultdict(list)
    for address, sender in senders.items():
        local, _, domain = address.decode("ascii").rpartition("@")
        if (shape := shape_of(local)) is not None:
            shapes[shape].append((domain.lower(), sender))
    found = []
    for shape, members in shapes.items():
        if shape.distinctive:
            groups = {"": members}
        else:
            by_domain: defaultdict[str, list[tuple[str, _Sender]]] = defaultdict(list)
            for domain, sender in members:
                by_domain[domain].append((domain, sender))
            groups = by_domain
        for domain, group in groups.items():
            refused = [sender for _, sender in group if sender.refused]
            if len(refused) < _LEAST_SENDERS or sum(sender.refused for sender in refused) < _LEAST_REFUSALS:
                continue
            evidence = _evidence([sender for _, sender in group])
            evidence.clients = len({client for sender in refused for client in sender.clients})
            delivered_from = {client for _, sender in group for client in sender.delivered_from}
            evidence.delivered_clients = len(delivered_from)
            candidate = Candidate("sender_regex", shape.expression(domain), evidence)
            candidate.remarks.append(f"{len(refused):,} different senders")
            _propose_exceptions(candidate, [clients[one] for one in delivered_from if one in clients])
            found.append(candidate)
    return found


# --- Evidence and collateral ----------------------------------------------------------------------------------------


def _distinct(clients: Iterable[_Client]) -> list[_Client]:
    return list({client.address: client for client in clients}.values())


def _evidence(members: Sequence[_Counted]) -> Evidence:
    refused = [one for one in members if one.refused]
    often = sorted(refused, key=lambda one: -one.refused)
    return Evidence(
        refused=sum(one.refused for one in refused),
        clients=len(refused),
        first=min((one.first for one in refused if one.first is not None), default=None),
        last=max((one.last for one in refused if one.last is not None), default=None),
        examples=[one.example for one in often[:_MAX_EXAMPLES]],
        delivered=sum(one.delivered for one in members),
        delivered_clients=sum(one.delivered > 0 for one in members),
    )


def _propose_exceptions(candidate: Candidate, delivered: Sequence[_Client]) -> None:
    """The clients that mail was delivered from; by name where it verified, since a claimed name exempts nobody."""
    names = sorted({min(client.verified).decode("ascii") for client in delivered if client.verified})
    addresses = sorted({client.example.client_address.decode("ascii") for client in delivered if not client.verified})
    if len(names) + len(addresses) > _MAX_EXCEPTIONS:
        candidate.remarks.append(
            f"mail was delivered from {len(names) + len(addresses):,} clients in it: too many to except one by one"
        )
        return
    if names:
        candidate.exceptions["hostname"] = names
    if addresses:
        candidate.exceptions["cidr"] = addresses
