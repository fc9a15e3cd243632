"""What a ruleset would have done to the mails in a log, and which of those were delivered in reality.

Promises: the decisions are the engine's own, one for each recipient where the ruleset looks at recipients; DNS is
never asked, the log's own word on the client's name is taken. What a log cannot tell is said in the report and not
guessed in silence: HELO of mails that were accepted, attributes that no log has, and which of three things `unknown`
stands for. Memory is bounded; so are the figures that would need more (`100,000+`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from policyd.core.engine import NeedsIdentity, decide
from policyd.core.identity import Identity, Reason, Status
from policyd.core.index import domain_of
from policyd.core.protocol import Request
from policyd.core.ruleset import Subject, Verb
from policyd.tools.maillog import LineCounts, MailLog, observations
from policyd.tools.observation import Observation, Outcome, Standing

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Sequence

    from policyd.core.engine import Decision
    from policyd.core.ruleset import Ruleset

# Decisions remembered, each for all that the ruleset looks at. Clients come back within hours, so a table that is
# emptied when it is full finds nearly as much as one that forgets the oldest, and costs nothing on the way. 50 MB.
_MAX_REMEMBERED = 65_536

# Different clients and sender domains counted over all rules, about 100 MB. Beyond it a rule's figure stays as it is.
_MAX_DISTINCT = 1_000_000

# Examples kept for each rule: enough to see whose mail it is.
_MAX_EXAMPLES = 3

# What a rule may look at, and the fields of an observation that tell it.
_TOLD_BY: dict[str, tuple[str, ...]] = {
    "request": (),
    "protocol_state": ("sender", "helo_name"),
    "client_address": ("client_address",),
    "client_name": ("names", "standing"),
    "reverse_client_name": ("names", "standing"),
    Subject.HOSTNAME: ("names", "standing"),
    Subject.REVERSE_DNS: ("names", "standing"),
    "helo_name": ("sender", "helo_name"),
    "sender": ("sender", "helo_name"),
    "recipient": ("recipients",),
    "sasl_username": ("sasl_username",),
}

_GOT_THROUGH = frozenset({Outcome.DELIVERED, Outcome.PASSED})


class Assumption(StrEnum):
    """What to take a client for of which the log says only `unknown`: Postfix writes that for all three."""

    MISSING = "missing"
    ERROR = "error"
    MISMATCH = "mismatch"


class _Distinct:
    """Counts different values, of all rules together at most `_MAX_DISTINCT`."""

    def __init__(self) -> None:
        self._left = _MAX_DISTINCT

    def add(self, seen: set[bytes], value: bytes) -> bool:
        """Whether the value is counted from now on, or was before."""
        if value in seen:
            return True
        if not self._left:
            return False
        self._left -= 1
        seen.add(value)
        return True


@dataclass(slots=True)
class Tally:
    """What was counted for one rule, or for one change from one answer to another."""

    transactions: int = 0
    delivered: int = 0  # in reality; of them `passed` are known only to have passed policyd
    passed: int = 0
    clients: set[bytes] = field(default_factory=set)
    sender_domains: set[bytes] = field(default_factory=set)
    uncounted: bool = False  # there are more clients and sender domains than could be counted
    examples: list[Observation] = field(default_factory=list)  # delivered ones first

    def add(self, seen: Observation, distinct: _Distinct) -> None:
        self.transactions += 1
        told = distinct.add(self.clients, seen.client_address)
        if seen.sender:
            told &= distinct.add(self.sender_domains, domain_of(seen.sender))
        if not told:
            self.uncounted = True
        if seen.outcome is Outcome.DELIVERED or seen.outcome is Outcome.PASSED:
            self.delivered += 1
            self.passed += seen.outcome is Outcome.PASSED
            if self.delivered <= _MAX_EXAMPLES:
                self.examples.insert(self.delivered - 1, seen)
                del self.examples[_MAX_EXAMPLES:]
        elif len(self.examples) < _MAX_EXAMPLES:
            self.examples.append(seen)


class Judge:
    """Decides observations under one ruleset, as it stands on `today` (UTC)."""

    def __init__(self, ruleset: Ruleset, today: datetime.date, assumption: Assumption, subjects: set[str]) -> None:
        self._ruleset = ruleset
        self._today = today
        self._assumption = assumption
        self._by_recipient = "recipient" in subjects
        fields = {field for subject in subjects for field in _TOLD_BY.get(subject, ())}
        places = sorted(Observation._fields.index(field) for field in fields)
        # What no rule looks at need not be the same for the decision to be: that is what makes a replay fast.
        self._key: Callable[[Observation], Any] = itemgetter(*places) if places else lambda _: None
        self._remembered: dict[Any, tuple[Decision, ...]] = {}

    def decisions(self, seen: Observation) -> tuple[Decision, ...]:
        """One for each recipient, or one for all where the ruleset does not look at them."""
        key = self._key(seen)
        decisions = self._remembered.get(key)
        if decisions is None:
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            recipients = seen.recipients if self._by_recipient and seen.recipients else seen.recipients[:1] or (b"",)
            identity = _identity(seen, self._assumption)
            decisions = tuple(self._decide(_request(seen, recipient), identity) for recipient in recipients)
            self._remembered[key] = decisions
        return decisions

    def _decide(self, request: Request, identity: Identity) -> Decision:
        decision = decide(self._ruleset, request, identity, self._today)
        assert not isinstance(decision, NeedsIdentity)  # it was given one
        return decision


def subjects_of(ruleset: Ruleset) -> set[str]:
    """What the rules look at: attributes of a request, `hostname`, `reverse_dns`."""
    return {condition.subject for rule in ruleset.rules for condition in (*rule.match, *rule.exceptions)}


def _request(seen: Observation, recipient: bytes) -> Request:
    """What Postfix would have asked. Without a sender it was refused before MAIL."""
    state = b"RCPT" if seen.sender is not None else b"HELO" if seen.helo_name else b"CONNECT"
    name = seen.names[0] if seen.names else b"unknown"
    return Request.of(
        {
            "request": b"smtpd_access_policy",
            "protocol_state": state,
            "client_address": seen.client_address,
            "client_name": name if seen.standing is Standing.VERIFIED else b"unknown",
            "reverse_client_name": name,
            "helo_name": seen.helo_name,
            "sender": seen.sender or b"",
            "recipient": recipient,
            "sasl_username": seen.sasl_username,
        }
    )


def _identity(seen: Observation, assumption: Assumption) -> Identity:
    match seen.standing:
        case Standing.VERIFIED:
            return Identity(Status.VERIFIED, tuple(sorted(seen.names)))
        case Standing.CLAIMED:
            return Identity(Status.MISMATCH, claimed=tuple(sorted(seen.names)))
        case Standing.NONE:
            return Identity(Status.MISSING)
        case Standing.ERROR:
            return _failed(seen.names)
        case Standing.UNKNOWN:
            return _failed(()) if assumption is Assumption.ERROR else Identity(Status(assumption))


def _failed(names: tuple[bytes, ...]) -> Identity:
    return Identity(Status.ERROR, claimed=tuple(sorted(names)), reason=Reason.SERVFAIL, names_known=bool(names))


@dataclass(slots=True)
class Answer:
    """What would have been said to some transactions, by which rule."""

    rule: str
    action: str
    observed: bool = False

    @property
    def refuses(self) -> bool:
        return self.action != Verb.DUNNO and not self.observed

    @property
    def lets_through(self) -> bool:
        return self.action == Verb.DUNNO and not self.observed


@dataclass(slots=True)
class Facts:
    """What is known of the logs that were read, and what they cannot tell."""

    counts: LineCounts = field(default_factory=LineCounts)
    transactions: int = 0
    delivered: int = 0
    first: float | None = None  # Unix seconds
    last: float | None = None
    assumed: int = 0  # transactions decided by what `unknown` was taken for
    assumption: Assumption = Assumption.MISSING
    no_helo: int = 0
    untold: tuple[str, ...] = ()  # attributes that the ruleset looks at and no log has
    writers: set[str] = field(default_factory=set)

    def add(self, seen: Observation) -> None:
        self.transactions += 1
        if seen.outcome is Outcome.DELIVERED or seen.outcome is Outcome.PASSED:
            self.delivered += 1
        if not seen.helo_name:
            self.no_helo += 1
        self.writers.add(seen.log)
        time = seen.time
        if time is not None:
            if self.first is None or time < self.first:
                self.first = time
            if self.last is None or time > self.last:
                self.last = time


@dataclass(slots=True)
class Replay:
    """What one ruleset would have done."""

    ruleset: Ruleset
    facts: Facts
    subjects: set[str]
    rules: list[tuple[Answer, Tally]]  # refused deliveries first
    refused_delivered: int  # delivered transactions that would have been refused
    unmatched: list[str]  # rules that decided nothing and observed nothing


@dataclass(slots=True)
class Comparison:
    """What one ruleset would have done differently from another."""

    ruleset: Ruleset
    old: Ruleset
    facts: Facts
    subjects: set[str]
    changes: list[tuple[Answer, Answer, Tally]]  # from, to; newly refused deliveries first
    changed: int  # transactions
    refused_delivered: int  # delivered, and refused by the new ruleset only


def replay(
    ruleset: Ruleset,
    paths: Sequence[str],
    today: datetime.date,
    *,
    assumption: Assumption = Assumption.MISSING,
    advance: Callable[[int], None] | None = None,
) -> Replay:
    """Runs the ruleset over the mails in these logs. Raises `LogError`."""
    subjects = subjects_of(ruleset)
    judge = Judge(ruleset, today, assumption, subjects)
    facts, log, distinct = _facts(subjects, assumption), MailLog(), _Distinct()
    tallies: dict[tuple[str, str, bool], Tally] = {}
    refused_delivered = 0

    def tally(rule: str, action: str, seen: Observation, *, observed: bool) -> None:
        key = (rule, action, observed)
        found = tallies.get(key)
        if found is None:
            found = tallies[key] = Tally()
        found.add(seen, distinct)

    actions = {rule.name: str(rule.action.verb) for rule in ruleset.rules}
    for batch in observations(paths, log, advance):
        for seen in batch:
            facts.add(seen)
            decisions = judge.decisions(seen)
            if len(decisions) == 1:
                hits = {(decisions[0].rule_name, decisions[0].verb): None}
            else:
                hits = {(decision.rule_name, decision.verb): None for decision in decisions}
            refused = False
            for rule, verb in hits:
                tally(rule, verb, seen, observed=False)
                refused |= verb is not Verb.DUNNO
            if decisions[0].observed or len(decisions) > 1:
                for name in dict.fromkeys(name for decision in decisions for name in decision.observed):
                    tally(name, actions[name], seen, observed=True)
            if refused and seen.outcome in _GOT_THROUGH:
                refused_delivered += 1
            if seen.standing is Standing.UNKNOWN and decisions[0].identity is not None:
                facts.assumed += 1
    facts.counts = log.counts
    rules = [(Answer(*key), found) for key, found in tallies.items()]
    order = {rule.name: rule.number for rule in ruleset.rules}
    rules.sort(
        key=lambda entry: (
            -entry[1].delivered if entry[0].refuses else 0,
            order.get(entry[0].rule, len(order)),
        )
    )
    matched = {answer.rule for answer, _ in rules}
    unmatched = [rule.name for rule in ruleset.rules if rule.name not in matched]
    return Replay(ruleset, facts, subjects, rules, refused_delivered, unmatched)


def compare(
    ruleset: Ruleset,
    old: Ruleset,
    paths: Sequence[str],
    today: datetime.date,
    *,
    assumption: Assumption = Assumption.MISSING,
    advance: Callable[[int], None] | None = None,
) -> Comparison:
    """Runs two rulesets over the same logs, and keeps what differs. Raises `LogError`."""
    subjects = subjects_of(ruleset) | subjects_of(old)
    new_judge, old_judge = Judge(ruleset, today, assumption, subjects), Judge(old, today, assumption, subjects)
    facts, log, distinct = _facts(subjects, assumption), MailLog(), _Distinct()
    tallies: dict[tuple[str, str, str, str], Tally] = {}
    changed = refused_delivered = 0
    for batch in observations(paths, log, advance):
        for seen in batch:
            facts.add(seen)
            after, before = new_judge.decisions(seen), old_judge.decisions(seen)
            if seen.standing is Standing.UNKNOWN and (after[0].identity or before[0].identity) is not None:
                facts.assumed += 1
            differing = {
                (was.rule_name, was.verb, now.rule_name, now.verb): None
                for was, now in zip(before, after, strict=True)
                if _said(was) != _said(now)
            }
            if not differing:
                continue
            changed += 1
            for key in differing:
                found = tallies.get(key)
                if found is None:
                    found = tallies[key] = Tally()
                found.add(seen, distinct)
            if seen.outcome in _GOT_THROUGH and any(
                was is Verb.DUNNO and now is not Verb.DUNNO for _, was, _, now in differing
            ):
                refused_delivered += 1
    facts.counts = log.counts
    changes = [
        (Answer(was_rule, was), Answer(now_rule, now), found)
        for (was_rule, was, now_rule, now), found in tallies.items()
    ]
    changes.sort(
        key=lambda change: (
            not (change[0].lets_through and change[1].refuses),
            -change[2].delivered,
            -change[2].transactions,
            change[1].rule,
        )
    )
    return Comparison(ruleset, old, facts, subjects, changes, changed, refused_delivered)


def _facts(subjects: set[str], assumption: Assumption) -> Facts:
    return Facts(assumption=assumption, untold=tuple(sorted(subjects - set(_TOLD_BY))))


def _said(decision: Decision) -> tuple[object, ...]:
    """What the client would be told, short of what is filled in."""
    rule = decision.rule_name if "rule" in decision.text[1::2] else ""
    return decision.verb, decision.code, decision.text, rule
