"""Finds candidates for rules in a mail log, with evidence and collateral damage.

The evidence is mail that was refused or deferred for a reason about the client (see reasons.py), and not delivered
later. A log does not say which delivered mails were wanted, so none of them is evidence. Collateral damage is mail
delivered from the same place; it counts against a candidate, and its clients are proposed as exceptions. There are four
kinds of candidates:

- host names with a common suffix: the longest that nearly all of them share, below the public suffixes;
- blocks of addresses (see `policyd.tools.address_blocks`), among the clients that no suffix accounts for;
- autonomous systems, if the owners of the addresses are known (see `policyd.tools.owners`) and several suffixes or
  blocks lie in one system: a whole hoster is proposed only if no narrower candidate is enough;
- sender addresses of one shape (see `policyd.tools.suggest.sender_patterns`).

Memory is bounded: if a log has too many clients or senders, the rarest are forgotten, and their number is counted.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from policyd.config.public_suffixes import all_suffixes, registry_suffixes
from policyd.core.address import parse_address
from policyd.core.identity import may_be_host
from policyd.core.ruleset import Verb
from policyd.logs.maillog import MailLog, observations
from policyd.logs.transaction import MailOutcome, NameStatus
from policyd.tools.address_blocks import blocks, part_of
from policyd.tools.judge import COUNTS_AS_DELIVERED, Assumption, Judge
from policyd.tools.owners import owner_of, system_name
from policyd.tools.suggest.providers import provider_of
from policyd.tools.suggest.reasons import Reasons, is_evidence
from policyd.tools.suggest.sender_patterns import Shape, shape_of

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Collection, Iterable, Sequence

    from policyd.core.index import Ruleset
    from policyd.core.owners import Owner
    from policyd.logs.counts import LineCounts
    from policyd.logs.transaction import Observation

# Maximum number of clients, and of senders; each takes up to 1 KB. At a large site, fewer than this occur twice a week.
_MAX_KEPT = 100_000

# Maximum number of names, mails, reasons and clients that are kept of one client or sender; more add no information.
_MAX_NAMES = 4
_MAX_MAILS = 8
_MAX_REASONS = 8
_MAX_CLIENTS = 64

# Maximum number of deferred mails that are followed until they are delivered; the oldest is dropped first. A sender
# retries for five days.
_MAX_DEFERRED = 100_000

# Maximum number of reasons shown for a candidate, the most frequent first.
_SHOWN_REASONS = 3

# Minimum share of a suffix's refused clients that a longer suffix must have to replace it. A suffix or block lies in a
# system if at least this share of its refused clients does.
_NEARLY_ALL = 0.8

# Minimum number of suffixes and blocks in a system for proposing the system.
_MIN_PLACES = 2

# Maximum number of systems in a remark, the most frequent first.
_SHOWN_SYSTEMS = 3

# Minimum number of senders of one shape for a pattern, and of their refusals.
_MIN_SENDERS = 2
_MIN_REFUSALS = 3

# Maximum number of exceptions for a candidate. A candidate that needs more gets a remark instead.
_MAX_EXCEPTIONS = 20

# Maximum number of examples, and of providers, shown for a candidate.
_MAX_EXAMPLES = 3

# Number of refused mails that outweigh one delivered mail.
_COLLATERAL_WEIGHT = 10

# Sender addresses from which an expression can be made.
_ADDRESS = re.compile(rb"[!-~]+@[A-Za-z0-9.-]+")

# Private and special addresses, as (version, first, last): RFC 1122, 1918, 3927, 4193, 4291, 6598.
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
    """A mail to show as an example. `name` is empty if the client had none; `sender` is None if the log has none."""

    client_address: bytes
    name: bytes
    sender: bytes | None


def _example_of(seen: Observation) -> Example:
    return Example(seen.client_address, seen.names[0] if seen.names else b"", seen.sender)


class _MailCounts:
    """Counts mails of a client or a sender. Uses tuples, because an empty set takes 216 bytes."""

    __slots__ = ("delivered", "example", "first", "last", "reasons", "refused")

    def __init__(self, seen: Observation) -> None:
        self.refused = 0
        self.delivered = 0
        self.first = self.last = seen.time
        self.example = _example_of(seen)
        self.reasons: tuple[int, ...] = ()  # numbers of the reasons, one for each refused mail up to _MAX_REASONS

    def count(self, seen: Observation, reason: int) -> None:
        """Counts a mail; `reason` is 0 if the mail is not evidence."""
        if seen.outcome in COUNTS_AS_DELIVERED:
            self.delivered += 1
        elif reason:
            if not self.refused:
                self.example = _example_of(seen)
                self.first = seen.time
            self.refused += 1
            self.last = seen.time
            if len(self.reasons) < _MAX_REASONS:
                self.reasons += (reason,)

    def take_back(self) -> None:
        """Subtracts a deferred mail that was delivered later."""
        self.refused -= 1


class _Client(_MailCounts):
    __slots__ = ("address", "looked_up", "mails", "names", "owner", "verified")

    def __init__(self, seen: Observation, address: tuple[int, int], owner: Owner) -> None:
        super().__init__(seen)
        self.address = address
        self.owner = owner
        self.names: tuple[bytes, ...] = ()
        self.verified: tuple[bytes, ...] = ()
        self.mails: tuple[int, ...] = ()  # hashes of sender and recipient
        self.looked_up = False  # whether its name was looked up, so that a missing name is meaningful

    def see(self, seen: Observation, reason: int) -> None:
        self.count(seen, reason)
        self.looked_up |= seen.name_status is not NameStatus.NOT_LOOKED_UP
        for name in seen.names:
            if name not in self.names and len(self.names) < _MAX_NAMES and may_be_host(name):
                self.names += (name,)
                if seen.name_status is NameStatus.VERIFIED:
                    self.verified += (name,)
        if seen.sender is not None and seen.recipients and len(self.mails) < _MAX_MAILS:
            self.mails = _with_item(self.mails, hash((seen.sender, seen.recipients[0])))


class _Sender(_MailCounts):
    __slots__ = ("clients", "delivered_from")

    def __init__(self, seen: Observation) -> None:
        super().__init__(seen)
        self.clients: tuple[tuple[int, int], ...] = ()
        self.delivered_from: tuple[tuple[int, int], ...] = ()

    def see(self, seen: Observation, client: tuple[int, int], reason: int) -> None:
        self.count(seen, reason)
        if seen.outcome in COUNTS_AS_DELIVERED:
            if len(self.delivered_from) < _MAX_CLIENTS:
                self.delivered_from = _with_item(self.delivered_from, client)
        elif reason and len(self.clients) < _MAX_CLIENTS:
            self.clients = _with_item(self.clients, client)


_Item = TypeVar("_Item")


def _with_item(items: tuple[_Item, ...], item: _Item) -> tuple[_Item, ...]:
    return items if item in items else (*items, item)


_Key = TypeVar("_Key")
_Value = TypeVar("_Value", bound=_MailCounts)


class _BoundedDict(dict[_Key, _Value], Generic[_Key, _Value]):
    """A dict that drops its rarest entries when it is full."""

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
    """The refused and delivered mails of a candidate. Times are Unix seconds."""

    refused: int
    clients: int
    first: float | None
    last: float | None
    examples: list[Example]
    delivered: int
    delivered_clients: int
    reasons: list[tuple[int, str]] = field(default_factory=list)  # with the number of mails, most frequent first
    delivered_examples: list[Example] = field(default_factory=list)


class System(NamedTuple):
    """An autonomous system, and the number of a candidate's refused clients in it. The name may be empty."""

    asn: int
    name: str
    clients: int


@dataclass(slots=True)
class Candidate:
    """A possible rule: `condition: value`, with exceptions by condition."""

    condition: str
    value: str
    evidence: Evidence
    exceptions: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    systems: list[System] = field(default_factory=list)  # systems of its refused clients, the most frequent first

    @property
    def worthwhile(self) -> bool:
        """Whether fewer mails were delivered than refused; otherwise a rule does more harm than good."""
        return self.evidence.delivered < self.evidence.refused

    @property
    def score(self) -> float:
        """The number that ranks candidates: refused mails in relation to delivered mails, which would be lost."""
        return self.evidence.refused / (1 + _COLLATERAL_WEIGHT * self.evidence.delivered)


@dataclass(slots=True)
class Suggestions:
    """Candidates, the best first, and figures of the log."""

    candidates: list[Candidate]
    counts: LineCounts
    transactions: int = 0
    refused: int = 0
    covered: int = 0  # refused mails that the ruleset decides already; nothing is suggested for them
    private: int = 0  # refused mails from private addresses and from users who had logged in
    silent: int = 0  # refused mails whose reason is not about the client, or that were delivered later
    forgotten: int = 0  # rare clients and senders that were dropped
    unfollowed: int = 0  # deferred mails that were forgotten before they could be delivered
    has_systems: bool = False  # the system of at least one client is known

    @property
    def evidence(self) -> int:
        """Refused mails that count against their clients."""
        return self.refused - self.covered - self.private - self.silent


def suggest(
    paths: Sequence[str],
    *,
    min_clients: int = 3,
    by_asn: bool = False,
    ruleset: Ruleset | None = None,
    today: datetime.date | None = None,
    advance: Callable[[int], None] | None = None,
) -> Suggestions:
    """Returns candidates from the mails in these logs.

    A suffix, a block or a system needs `min_clients` refused addresses. With a ruleset, mails that one of its rules
    decides, as of `today` (UTC), are left out, and its databases give the owners of addresses. With `by_asn`, clients
    are grouped by system instead of suffix and block. Raises `LogError`.
    """
    clients: _BoundedDict[tuple[int, int], _Client] = _BoundedDict()
    senders: _BoundedDict[bytes, _Sender] = _BoundedDict()
    log = MailLog()
    found = Suggestions([], log.counts)
    judge = None
    if ruleset is not None and today is not None:
        judge = Judge(ruleset, today, Assumption.MISSING, by_recipient=False)
    reasons = Reasons()
    deferred = _Deferred()
    for batch in observations(paths, log, advance):
        for seen in batch:
            found.transactions += 1
            refused = seen.outcome in {MailOutcome.REJECTED, MailOutcome.DEFERRED}
            found.refused += refused
            address = parse_address(seen.client_address)
            if address is None or seen.sasl_username or _is_private(*address):
                found.private += refused
                continue
            if judge is not None and _is_decided(judge, seen):
                found.covered += refused
                continue
            reason = reasons.number(seen.text) if refused and is_evidence(seen) else 0
            if refused and not reason:
                found.silent += 1
            client = clients.get(address)
            if client is None:
                clients.make_room()
                client = clients[address] = _Client(seen, address, owner_of(ruleset, seen.client_address, seen.owner))
            client.see(seen, reason)
            sender = None
            if seen.sender and _ADDRESS.fullmatch(seen.sender):
                sender = senders.get(seen.sender)
                if sender is None:
                    senders.make_room()
                    sender = senders[seen.sender] = _Sender(seen)
                sender.see(seen, address, reason)
            if reason and seen.outcome is MailOutcome.DEFERRED:
                deferred.add(seen, (client,) if sender is None else (client, sender))
            elif seen.outcome is MailOutcome.DELIVERED:
                found.silent += deferred.take_back(seen)
    found.forgotten = clients.forgotten + senders.forgotten
    found.unfollowed = deferred.forgotten
    found.has_systems = any(client.owner.asn for client in clients.values())
    group = _systems if by_asn else _places
    candidates = [*group(clients.values(), min_clients, reasons), *_patterns(senders, clients, reasons)]
    found.candidates = [candidate for candidate in candidates if candidate.worthwhile]
    found.candidates.sort(key=lambda ranked: (-ranked.score, -ranked.evidence.clients, ranked.value))
    return found


def _places(clients: Collection[_Client], min_clients: int, reasons: Reasons) -> list[Candidate]:
    """Returns suffixes, blocks, and the systems with several of them."""
    suffixes, accounted_for = _suffixes(clients, min_clients, reasons)
    rest = [client for client in clients if client.address not in accounted_for]
    places = [*suffixes, *_networks(rest, min_clients, reasons)]
    wide = _with_several_places((candidate for candidate in places if candidate.worthwhile), min_clients)
    return [*places, *_systems([client for client in clients if client.owner.asn in wide], min_clients, reasons)]


class _Deferred:
    """Deferred mails by sender and recipient, with the counters that they were added to."""

    def __init__(self) -> None:
        self._counted: dict[int, list[tuple[_MailCounts, ...]]] = {}
        self.forgotten = 0

    def add(self, seen: Observation, counted: tuple[_MailCounts, ...]) -> None:
        for mail in _mails_of(seen)[:1]:
            if len(self._counted) >= _MAX_DEFERRED and mail not in self._counted:
                self.forgotten += 1
                del self._counted[next(iter(self._counted))]
            tries = self._counted.setdefault(mail, [])
            if len(tries) < _MAX_CLIENTS:
                tries.append(counted)

    def take_back(self, seen: Observation) -> int:
        """Removes the deferred tries of a delivered mail from the counters; returns their number."""
        tries = [counted for mail in _mails_of(seen) for counted in self._counted.pop(mail, ())]
        for client_and_sender in tries:
            for counts in client_and_sender:
                counts.take_back()
        return len(tries)


def _mails_of(seen: Observation) -> list[int]:
    return [hash((seen.sender, recipient)) for recipient in seen.recipients] if seen.sender is not None else []


def _is_private(version: int, address: int) -> bool:
    return any(version == v and first <= address <= last for v, first, last in _PRIVATE)


def _is_decided(judge: Judge, seen: Observation) -> bool:
    """Returns whether a rule decides this mail, or a default that is not DUNNO."""
    decision = judge.decisions(seen)[0]
    return decision is not None and (decision.rule is not None or decision.verb is not Verb.DUNNO)


# --- Host names -----------------------------------------------------------------------------------------------------


def _suffixes(
    clients: Iterable[_Client], min_clients: int, reasons: Reasons
) -> tuple[list[Candidate], set[tuple[int, int]]]:
    """Returns candidates, and the addresses of the clients that they account for."""
    under: defaultdict[str, dict[str, _Client]] = defaultdict(dict)  # names by registrable domain
    for client in clients:
        for name in client.names:
            text = name.decode("ascii")
            domain = registry_suffixes().privatesuffix(text)
            if domain is not None and domain != text:
                under[domain][text] = client
    found: list[Candidate] = []
    accounted_for: set[tuple[int, int]] = set()
    for domain, names in under.items():
        left = dict(names)
        while (suffix := _narrowest(domain, left, min_clients)) and may_be_host(suffix.encode()):
            members = _distinct(client for name, client in names.items() if name.endswith("." + suffix))
            candidate = Candidate("hostname_suffix", suffix, _evidence(members, reasons))
            _add_systems(candidate, members)
            _propose_exceptions(candidate, [client for client in members if client.delivered])
            if all_suffixes().is_public(suffix):
                candidate.remarks.append("unrelated customers have names under this suffix")
            _mark_providers(candidate, [suffix, *names])
            if candidate.worthwhile:
                found.append(candidate)
                accounted_for |= {client.address for client in members}
            left = {name: client for name, client in left.items() if not name.endswith("." + suffix)}
    return found, accounted_for


def _narrowest(domain: str, names: dict[str, _Client], min_clients: int) -> str | None:
    """Returns the longest suffix with nearly all refused clients of a domain; None if the clients are too few."""
    refused = {name: client.address for name, client in names.items() if client.refused > 0}
    if len(set(refused.values())) < min_clients:
        return None
    suffix = domain
    while True:
        clients: defaultdict[str, set[tuple[int, int]]] = defaultdict(set)  # by longer suffix
        for name, address in refused.items():
            labels = name[: -len(suffix) - 1].rsplit(".", 1)
            if len(labels) == 2:  # a name directly under the suffix is a host, not a longer suffix
                clients[f"{labels[1]}.{suffix}"].add(address)
        total = len(set(refused.values()))
        longer = max(clients, key=lambda longer_suffix: len(clients[longer_suffix]), default=None)
        if longer is None or len(clients[longer]) < max(min_clients, _NEARLY_ALL * total):
            return suffix
        suffix = longer
        refused = {name: address for name, address in refused.items() if name.endswith("." + suffix)}


# --- Addresses ------------------------------------------------------------------------------------------------------


def _networks(clients: Sequence[_Client], min_clients: int, reasons: Reasons) -> list[Candidate]:
    members: defaultdict[tuple[int, int], list[_Client]] = defaultdict(list)
    for client in clients:
        members[part_of(*client.address)].append(client)
    refused = {part: sum(client.refused > 0 for client in found) for part, found in members.items()}
    found = []
    for block in blocks({part: count for part, count in refused.items() if count}, min_clients):
        inside = [client for part in block.part_numbers() for client in members.get((block.version, part), ())]
        candidate = Candidate("cidr", str(block), _evidence(inside, reasons))
        _add_systems(candidate, inside)
        _propose_exceptions(candidate, [client for client in inside if client.delivered])
        tries = Counter(mail for client in inside for mail in client.mails)
        again = sum(count > 1 for count in tries.values())
        if again:
            candidate.remarks.append(
                f"{again:,} of the mails {'was' if again == 1 else 'were'} retried from another address of this"
                f" network; up to {max(tries.values())} addresses for one mail"
            )
        refused_clients = [client for client in inside if client.refused > 0]
        if not_looked_up := sum(not client.looked_up for client in refused_clients):
            candidate.remarks.append(
                f"postscreen refused {not_looked_up:,} of the clients without looking up their names"
            )
        elif not any(client.names for client in refused_clients):
            candidate.remarks.append("none of the refused clients had a name")
        _mark_providers(candidate, [name.decode("ascii") for client in inside for name in client.verified])
        found.append(candidate)
    return found


# --- Autonomous systems ---------------------------------------------------------------------------------------------


def _with_several_places(places: Iterable[Candidate], min_clients: int) -> set[int]:
    """Returns the systems in which several suffixes or blocks lie.

    A suffix or block lies in a system if nearly all of its refused clients do.
    """
    count: Counter[int] = Counter()
    for candidate in places:
        for system in candidate.systems[:1]:
            if system.clients >= max(min_clients, _NEARLY_ALL * candidate.evidence.clients):
                count[system.asn] += 1
    return {asn for asn, number in count.items() if number >= _MIN_PLACES}


def _systems(clients: Iterable[_Client], min_clients: int, reasons: Reasons) -> list[Candidate]:
    """Returns a candidate for each system with enough refused clients."""
    members: defaultdict[int, list[_Client]] = defaultdict(list)
    for client in clients:
        if client.owner.asn:
            members[client.owner.asn].append(client)
    found = []
    for asn, inside in members.items():
        if sum(client.refused > 0 for client in inside) < min_clients:
            continue
        candidate = Candidate("asn", f"AS{asn}", _evidence(inside, reasons))
        delivered = sorted((client for client in inside if client.delivered), key=lambda member: -member.delivered)
        candidate.evidence.delivered_examples = [client.example for client in delivered[:_MAX_EXAMPLES]]
        _add_systems(candidate, inside)
        _propose_exceptions(candidate, delivered)
        _mark_providers(candidate, [name.decode("ascii") for client in inside for name in client.verified])
        found.append(candidate)
    return found


def _add_systems(candidate: Candidate, members: Iterable[_Client]) -> None:
    """Adds the systems of a candidate's refused clients, if known, and a remark that names them."""
    refused = [client for client in members if client.refused > 0]
    count = Counter(client.owner.asn for client in refused if client.owner.asn)
    names = {client.owner.asn: client.owner.asn_name for client in refused}
    candidate.systems = [System(asn, names[asn], clients) for asn, clients in count.most_common()]
    if not candidate.systems:
        return
    parts = [
        f"{system_name(system.asn, system.name)} ({system.clients:,})" for system in candidate.systems[:_SHOWN_SYSTEMS]
    ]
    if len(candidate.systems) > _SHOWN_SYSTEMS:
        parts.append(f"{len(candidate.systems) - _SHOWN_SYSTEMS:,} more")
    if without := len(refused) - count.total():
        parts.append(f"no system known ({without:,})")
    candidate.remarks.append(f"clients by system: {', '.join(parts)}")


# --- Senders --------------------------------------------------------------------------------------------------------


def _patterns(
    senders: dict[bytes, _Sender], clients: dict[tuple[int, int], _Client], reasons: Reasons
) -> list[Candidate]:
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
            refused = [sender for _, sender in group if sender.refused > 0]
            if len(refused) < _MIN_SENDERS or sum(sender.refused for sender in refused) < _MIN_REFUSALS:
                continue
            evidence = _evidence([sender for _, sender in group], reasons)
            evidence.clients = len({client for sender in refused for client in sender.clients})
            delivered_from = {client for _, sender in group for client in sender.delivered_from}
            evidence.delivered_clients = len(delivered_from)
            candidate = Candidate("sender_regex", shape.expression(domain), evidence)
            candidate.remarks.append(f"{len(refused):,} different senders")
            _mark_providers(candidate, [domain] if domain else [domain for domain, _ in group])
            _propose_exceptions(candidate, [clients[key] for key in delivered_from if key in clients])
            found.append(candidate)
    return found


# --- Evidence and collateral ----------------------------------------------------------------------------------------


def _distinct(clients: Iterable[_Client]) -> list[_Client]:
    return list({client.address: client for client in clients}.values())


def _evidence(members: Sequence[_MailCounts], reasons: Reasons) -> Evidence:
    """Adds up the counts of clients. If `members` are senders, the caller corrects the numbers of clients."""
    refused = [member for member in members if member.refused > 0]
    most_refused = sorted(refused, key=lambda member: -member.refused)
    texts: Counter[int] = Counter()
    for member in refused:
        # The kept reasons of a member represent all of its refused mails.
        for number, count in Counter(member.reasons).items():
            texts[number] += round(member.refused * count / len(member.reasons))
    return Evidence(
        refused=sum(member.refused for member in refused),
        clients=len(refused),
        first=min((member.first for member in refused if member.first is not None), default=None),
        last=max((member.last for member in refused if member.last is not None), default=None),
        examples=[member.example for member in most_refused[:_MAX_EXAMPLES]],
        delivered=sum(member.delivered for member in members),
        delivered_clients=sum(member.delivered > 0 for member in members),
        reasons=[(count, reasons.text(number)) for number, count in texts.most_common(_SHOWN_REASONS) if count],
    )


def _mark_providers(candidate: Candidate, names: Iterable[str]) -> None:
    """Adds a remark to a candidate that belongs to a large mail provider."""
    providers = sorted({provider for name in names if (provider := provider_of(name)) is not None})
    if providers:
        candidate.remarks.append(
            f"{', '.join(providers[:_MAX_EXAMPLES])}: a large mail provider, whose other users' mail would be refused"
            " as well; block single senders instead"
        )


def _propose_exceptions(candidate: Candidate, delivered: Sequence[_Client]) -> None:
    """Proposes exceptions for clients with delivered mail: by verified name, otherwise by address."""
    names = sorted({min(client.verified).decode("ascii") for client in delivered if client.verified})
    addresses = sorted({client.example.client_address.decode("ascii") for client in delivered if not client.verified})
    if len(names) + len(addresses) > _MAX_EXCEPTIONS:
        candidate.remarks.append(
            f"mail was delivered from {len(names) + len(addresses):,} clients in it: too many to list as exceptions"
        )
        return
    if names:
        candidate.exceptions["hostname"] = names
    if addresses:
        candidate.exceptions["cidr"] = addresses
