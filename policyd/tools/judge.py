"""Decides the transactions of a log by a ruleset, as the daemon would have."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeAlias

from policyd.core.dns_lists import NOT_LISTED, unknown
from policyd.core.engine import Decision, Inquiry
from policyd.core.facts import NOTHING_KNOWN, Facts, Needs
from policyd.core.identity import Identity, Status, given_identity
from policyd.core.lookups import ExpressionLookup
from policyd.core.owners import NO_OWNER
from policyd.core.protocol import REQUEST_TYPE, Request
from policyd.decision_log.lists import parse_answers
from policyd.logs.transaction import MailOutcome, NameStatus, Observation
from policyd.state.memory import Memory, client_domain, uses_memory
from policyd.state.process import ProcessMemory
from policyd.tools.owners import owner_of

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Iterable, Sequence

    from policyd.core.index import Ruleset
    from policyd.core.lookups import Lookup
    from policyd.core.tables import Hits

    Find: TypeAlias = Callable[[Request, Facts], Hits]

# Maximum number of keys of counters and greylisting in a replay, 400 MB; a busy month has about as many.
_MAX_KEYS = 1_000_000

# Maximum number of recipients for which the matching expressions are cached, 15 MB.
_MAX_RECIPIENTS = 65_536

# Outcomes that count as delivered.
COUNTS_AS_DELIVERED = frozenset({MailOutcome.DELIVERED, MailOutcome.PASSED})


class Assumption(StrEnum):
    """The assumed status of a client whose name is `unknown` in the log.

    Postfix writes `unknown` for all three, and policyd also if no rule needed the name.
    """

    MISSING = "missing"
    ERROR = "error"
    MISMATCH = "mismatch"


class ListAssumption(StrEnum):
    """The assumed answer of a DNS list if the log does not have it."""

    UNKNOWN = "unknown"
    NOT_LISTED = "not-listed"


_NOT_IN_LOG = unknown("not_in_log")

# Before Python 3.12, looking up an Enum member takes 0.1 us; a global name is free.
_VERIFIED: Final = Status.VERIFIED
_VERIFIED_NAME: Final = NameStatus.VERIFIED
_NOT_LOOKED_UP: Final = NameStatus.NOT_LOOKED_UP

# Status of a client, by the status of its name in the log.
_STATUSES = {
    NameStatus.VERIFIED: Status.VERIFIED,
    NameStatus.CLAIMED: Status.MISMATCH,
    NameStatus.NONE: Status.MISSING,
    NameStatus.ERROR: Status.ERROR,
}


class OwnerSource(StrEnum):
    """The source of a client's system and country."""

    DATABASE = "database"  # the databases that the ruleset declares
    LOG = "log"  # the decision log, with the databases' answers at that time


class Judge:
    """Decides the mails of a log by one ruleset, as of `today` (UTC).

    With `by_recipient`, a mail to several recipients is decided for each of them. Owners of addresses come from the
    databases of the ruleset or, if it was loaded without them, from the log.
    """

    def __init__(
        self,
        ruleset: Ruleset,
        today: datetime.date,
        assumption: Assumption,
        *,
        by_recipient: bool,
        list_assumption: ListAssumption = ListAssumption.UNKNOWN,
    ) -> None:
        self._ruleset = ruleset
        self._today = today
        self._assumption = assumption
        self._by_recipient = by_recipient
        self._nameless = {name_status: Facts(_identity(name_status, ())) for name_status in _STATUSES} | {
            NameStatus.NOT_LOOKED_UP: NOTHING_KNOWN,
            NameStatus.UNKNOWN: Facts(given_identity(Status(assumption))),
        }
        self._list_answer = NOT_LISTED if list_assumption is ListAssumption.NOT_LISTED else _NOT_IN_LOG
        self._finds = [_finder(lookup) for lookup in ruleset.index.lookups]
        self._now = 0.0
        self._memory: Memory | None = None  # memory of earlier requests, with the log's own time
        if uses_memory(ruleset):
            self._memory = Memory(ProcessMemory(_MAX_KEYS), None, client_domain, clock=lambda: self._now)
        self.lists_assumed = False  # whether the last decisions needed an assumed answer of a DNS list

    def decisions(self, seen: Observation) -> list[Decision | None]:
        """One decision for each recipient, or one for all of them.

        A decision is None if it depends on the client's name, and the name was not looked up.
        """
        self.lists_assumed = False
        if seen.time is not None:
            self._now = seen.time
        facts = self._facts(seen)
        return [self._decide(_request(seen, recipient), facts) for recipient in self.recipients(seen)]

    def grounds(self, seen: Observation) -> object:
        """Returns a key for a cache: mails with equal keys get the same decisions, whatever the order of recipients."""
        facts = self._facts(seen)
        recipients = self.recipients(seen)
        if self._memory is not None and self._depends_on_earlier(seen, recipients, facts):
            return object()
        if len(recipients) == 1:
            return _request_grounds(self._ruleset, _request(seen, recipients[0]), facts, self._finds)
        return frozenset(
            _request_grounds(self._ruleset, _request(seen, recipient), facts, self._finds) for recipient in recipients
        )

    def _depends_on_earlier(self, seen: Observation, recipients: Sequence[bytes], facts: Facts) -> bool:
        """Returns whether the decisions depend on earlier mails, so that they cannot be cached."""
        if self._ruleset.greylist is not None:
            return True
        inquiries = (Inquiry(self._ruleset, _request(seen, recipient), facts, self._today) for recipient in recipients)
        return any(inquiry.matching_counters() for inquiry in inquiries)

    def recipients(self, seen: Observation) -> tuple[bytes, ...]:
        """Returns the recipients for which decisions are made; one empty recipient if the log has none."""
        return seen.recipients if self._by_recipient and seen.recipients else seen.recipients[:1] or (b"",)

    def _facts(self, seen: Observation) -> Facts:
        name_status, names = seen.name_status, seen.names
        if name_status is _VERIFIED_NAME and len(names) == 1:
            facts = Facts(Identity(_VERIFIED, names))
        elif not names or name_status not in _STATUSES:
            facts = self._nameless[name_status]
        else:
            facts = Facts(_identity(name_status, names))
        if seen.lists:
            facts = facts._replace(lists=parse_answers(seen.lists))
        if seen.owner is not NO_OWNER and self._ruleset.owners is None:
            facts = facts._replace(owner=seen.owner)
        return facts

    def has_owner(self, seen: Observation) -> bool:
        """Returns whether the system or the country of a client is known."""
        logged = seen.owner if self._ruleset.owners is None else NO_OWNER
        return owner_of(self._ruleset, seen.client_address, logged) != NO_OWNER

    def _decide(self, request: Request, facts: Facts) -> Decision | None:
        inquiry = Inquiry(self._ruleset, request, facts, self._today)
        note = self._memory.note(inquiry) if self._memory is not None else None
        while isinstance(decision := inquiry.decide(), Needs):
            if decision.lists:
                self.lists_assumed = True
                inquiry.learn_lists(dict.fromkeys(decision.lists, self._list_answer))
            elif note is None or not note.answer(inquiry, decision):
                return None
        if note is not None:
            note.finish(decision)
        return decision


def _request_grounds(ruleset: Ruleset, request: Request, facts: Facts, finds: Iterable[Find]) -> tuple[object, ...]:
    """Returns everything that a decision depends on, on one day: requests with equal grounds get equal decisions.

    The mails of a log have few different grounds, so a replay decides once for each. `finds` has the result of
    `_finder` for each of the ruleset's lookups.
    """
    identity = facts.identity
    if facts.owner is None and ruleset.owners is not None:
        facts = facts._replace(owner=ruleset.owners.find(request))
    found = [find(request, facts) for find in finds]
    known = identity is None or (identity.status, identity.names_known)
    if not ruleset.index.needs.lists:
        return (known, *found)
    lists = frozenset((name, answer.status) for name, answer in facts.lists.items())
    return (known, lists, identity is not None and bool(identity.claimed), *found)


def _finder(lookup: Lookup) -> Find:
    """Returns a lookup's `find`, or a faster function if the lookup compares an attribute with expressions.

    Such lookups take most of a replay's time.
    """
    place = _PLACES.get(lookup.subject) if isinstance(lookup, ExpressionLookup) else None
    if place is None or not isinstance(lookup, ExpressionLookup):
        return lookup.find
    general, find = lookup.find, lookup.table.find
    if lookup.subject == "recipient":  # a log has the same recipients many times
        find = lru_cache(maxsize=_MAX_RECIPIENTS)(find)

    def find_in_value(request: Request, facts: Facts) -> Hits:
        value = request.values[place]  # the request is from `_request`, so its values are in the order of `_PLACES`
        return find(value) if value else general(request, facts)

    return find_in_value


# Positions of the attributes in a request from `_request`.
_PLACES = {
    name: place
    for place, name in enumerate(
        (
            "request",
            "protocol_state",
            "client_address",
            "client_name",
            "reverse_client_name",
            "helo_name",
            "sender",
            "recipient",
            "sasl_username",
        )
    )
}


def _request(seen: Observation, recipient: bytes) -> Request:
    """Returns the request that Postfix would have sent. A mail without a sender was refused before MAIL."""
    sender, names, helo_name = seen.sender, seen.names, seen.helo_name
    state = b"RCPT" if sender is not None else b"HELO" if helo_name else b"CONNECT"
    if names:
        claimed = names[0]
        verified = claimed if seen.name_status is _VERIFIED_NAME else b"unknown"
    else:
        verified = claimed = b"" if seen.name_status is _NOT_LOOKED_UP else b"unknown"
    return Request(
        _PLACES,
        (
            REQUEST_TYPE,
            state,
            seen.client_address,
            verified,
            claimed,
            helo_name,
            sender or b"",
            recipient,
            seen.sasl_username,
        ),
    )


def _identity(name_status: NameStatus, names: tuple[bytes, ...]) -> Identity:
    status = _STATUSES[name_status]
    if status is Status.VERIFIED:
        return given_identity(status, verified=names)
    return given_identity(status, claimed=names)
