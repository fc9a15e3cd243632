"""Decides the mails in a log by a ruleset, and counts those that were actually delivered.

Promises: the decisions are the engine's own, one for each recipient if the ruleset uses recipients; DNS is never asked,
and the client's name comes from the log. The report says what a log lacks: HELO of accepted mails, attributes that no
log has, and the reason why a client is `unknown`. Memory is bounded; a figure that stopped at a limit ends in `+`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from policyd.config.garbage_collection import without_garbage_collection
from policyd.core.normalize import domain_of
from policyd.core.ruleset import Subject, Verb
from policyd.logs.counting import Distinct
from policyd.logs.counts import LineCounts
from policyd.logs.maillog import MailLog, observations
from policyd.logs.transaction import MailOutcome, NameStatus, Observation
from policyd.tools.judge import COUNTS_AS_DELIVERED, Assumption, Judge, ListAssumption
from policyd.tools.replay.waits import Waits

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Sequence

    from policyd.core.engine import Decision
    from policyd.core.index import Ruleset

# Maximum number of cached verdicts, 50 MB; the cache is emptied when it is full. A dozen rules need dozens of verdicts,
# but a very large ruleset may need more than this.
_MAX_REMEMBERED = 65_536

# Maximum number of different clients and sender domains of all rules together, about 100 MB. Figures stop there.
_MAX_DISTINCT = 1_000_000

_UNKNOWN = NameStatus.UNKNOWN

# Returns the folded domain of a sender; the cache takes 10 MB.
_domain_from = lru_cache(maxsize=65_536)(domain_of)

# Maximum number of examples for each rule.
_MAX_EXAMPLES = 3

# Subjects on which logs have facts.
_LOGGED = {
    "request",
    "protocol_state",
    "client_address",
    "client_name",
    "reverse_client_name",
    Subject.HOSTNAME,
    Subject.COUNTER,
    Subject.REVERSE_DNS,
    Subject.LISTED,
    Subject.ASN,
    Subject.ASN_NAME,
    Subject.COUNTRY,
    "helo_name",
    "sender",
    "recipient",
    "sasl_username",
}


# Subjects that need the owner of the client's address.
_OWNER_SUBJECTS = {Subject.ASN, Subject.ASN_NAME, Subject.COUNTRY}


@dataclass(slots=True)
class MailTally:
    """Counts mails of one rule, or of one change from one answer to another."""

    transactions: int = 0
    delivered: int = 0  # actually delivered, or `passed`
    passed: int = 0  # let through by policyd or a filter; the log does not show whether they were delivered
    clients: set[bytes] = field(default_factory=set)
    sender_domains: set[bytes] = field(default_factory=set)
    uncounted: bool = False  # more clients or sender domains than could be counted
    examples: list[Observation] = field(default_factory=list)  # delivered mails first

    def add(self, seen: Observation) -> None:
        self.transactions += 1
        if seen.outcome in COUNTS_AS_DELIVERED:
            self.delivered += 1
            self.passed += seen.outcome is MailOutcome.PASSED
            if self.delivered <= _MAX_EXAMPLES:
                self.examples.insert(self.delivered - 1, seen)
                del self.examples[_MAX_EXAMPLES:]
        elif len(self.examples) < _MAX_EXAMPLES:
            self.examples.append(seen)

    def add_origin(self, client: bytes, sender_domain: bytes, distinct: Distinct) -> None:
        if client not in self.clients:
            self.uncounted |= not distinct.add(self.clients, client)
        if sender_domain and sender_domain not in self.sender_domains:
            self.uncounted |= not distinct.add(self.sender_domains, sender_domain)


def subjects_of(ruleset: Ruleset) -> set[str]:
    """Returns the subjects of the rules: attributes of a request, and facts such as `hostname` or `asn`."""
    return {condition.subject for rule in ruleset.rules for condition in (*rule.match, *rule.exceptions)}


@dataclass(slots=True)
class RuleAnswer:
    """An answer that policyd would have given, and its rule."""

    rule: str
    action: Verb
    observed: bool = False

    @property
    def refuses(self) -> bool:
        return self.action is not Verb.DUNNO and not self.observed

    @property
    def lets_through(self) -> bool:
        return self.action is Verb.DUNNO and not self.observed


@dataclass(slots=True)
class LogFacts:
    """Figures about the mails in the logs, and about the facts that the logs lack."""

    counts: LineCounts = field(default_factory=LineCounts)
    transactions: int = 0
    delivered: int = 0
    changed: int = 0  # transactions that two rulesets answer differently; not for use with one ruleset
    refused_delivered: int = 0  # delivered mails that would have been refused; of two rulesets, by the new one only
    first: float | None = None  # Unix seconds
    last: float | None = None
    assumed: int = 0  # transactions whose decision depends on the assumption for `unknown`
    lists_assumed: int = 0  # transactions that needed a DNS list's answer that the log does not have
    list_assumption: ListAssumption = ListAssumption.UNKNOWN
    unjudged: int = 0  # transactions whose rule depends on a name that was not looked up
    assumption: Assumption = Assumption.MISSING
    no_helo: int = 0
    no_owner: int = 0  # transactions of clients without a record, if rules use systems or countries
    unlogged: tuple[str, ...] = ()  # attributes that the ruleset uses and no log has
    writers: set[str] = field(default_factory=set)

    def add(self, seen: Observation) -> None:
        self.transactions += 1
        self.delivered += seen.outcome in COUNTS_AS_DELIVERED
        self.no_helo += not seen.helo_name
        self.writers.add(seen.log)
        time = seen.time
        if time is not None:
            if self.first is None or time < self.first:
                self.first = time
            if self.last is None or time > self.last:
                self.last = time


@dataclass(slots=True)
class Replay:
    """The result for one ruleset."""

    ruleset: Ruleset
    facts: LogFacts
    subjects: set[str]
    rules: list[tuple[RuleAnswer, MailTally]]  # refused deliveries first
    unmatched: list[str]  # rules that matched no mail
    waits: Waits | None = None  # waits of greylisting; None if no rule greylists


@dataclass(slots=True)
class Comparison:
    """The differences between two rulesets."""

    ruleset: Ruleset
    old: Ruleset
    facts: LogFacts
    subjects: set[str]
    changes: list[tuple[RuleAnswer, RuleAnswer, MailTally]]  # old and new answer; newly refused deliveries first


def replay(
    ruleset: Ruleset,
    paths: Sequence[str],
    today: datetime.date,
    *,
    assumption: Assumption = Assumption.MISSING,
    list_assumption: ListAssumption = ListAssumption.UNKNOWN,
    advance: Callable[[int], None] | None = None,
) -> Replay:
    """Decides the mails in these logs by the ruleset. Raises `LogError`."""
    subjects = subjects_of(ruleset)
    by_recipient = "recipient" in subjects or ruleset.greylist is not None
    waits = Waits() if ruleset.greylist is not None else None
    judge = Judge(ruleset, today, assumption, by_recipient=by_recipient, list_assumption=list_assumption)
    verbs = {rule.name: rule.action.verb for rule in ruleset.rules}
    tallies: defaultdict[tuple[str, Verb, bool], MailTally] = defaultdict(MailTally)

    def verdict_on(seen: Observation) -> _Verdict:
        judged = judge.decisions(seen)
        if waits is not None:
            waits.add(seen, judge.recipients(seen), judged)
        decisions = [decision for decision in judged if decision is not None]
        hits = {(decision.rule_name, decision.verb, False) for decision in decisions}
        hits |= {(name, verbs[name], True) for decision in decisions for name in decision.observed}
        return _Verdict(
            tuple(tallies[hit] for hit in hits),
            any(decision.verb is not Verb.DUNNO for decision in decisions),
            seen.name_status is NameStatus.UNKNOWN and any(decision.identity is not None for decision in decisions),
            len(decisions) < len(judged),
            judge.lists_assumed,
        )

    facts = _facts(subjects, assumption, list_assumption)
    _run(paths, facts, judge.grounds, verdict_on, advance, has_owner=_owner_test(judge, subjects))
    order = {rule.name: rule.number for rule in ruleset.rules}
    rules = [(RuleAnswer(*hit), tally) for hit, tally in tallies.items()]
    rules.sort(key=lambda rule: (-rule[1].delivered if rule[0].refuses else 0, order.get(rule[0].rule, len(order))))
    matched = {name for name, _, _ in tallies}
    unmatched = [rule.name for rule in ruleset.rules if rule.name not in matched]
    return Replay(ruleset, facts, subjects, rules, unmatched, waits)


def compare(
    ruleset: Ruleset,
    old: Ruleset,
    paths: Sequence[str],
    today: datetime.date,
    *,
    assumption: Assumption = Assumption.MISSING,
    list_assumption: ListAssumption = ListAssumption.UNKNOWN,
    advance: Callable[[int], None] | None = None,
) -> Comparison:
    """Decides the mails by two rulesets, and keeps the differences. Raises `LogError`."""
    subjects = subjects_of(ruleset) | subjects_of(old)
    by_recipient = "recipient" in subjects
    new_judge = Judge(ruleset, today, assumption, by_recipient=by_recipient, list_assumption=list_assumption)
    old_judge = Judge(old, today, assumption, by_recipient=by_recipient, list_assumption=list_assumption)
    tallies: defaultdict[tuple[str, Verb, str, Verb], MailTally] = defaultdict(MailTally)

    def verdict_on(seen: Observation) -> _Verdict:
        judged = list(zip(old_judge.decisions(seen), new_judge.decisions(seen), strict=True))
        pairs = [(before, after) for before, after in judged if before is not None and after is not None]
        changes = {
            (before.rule_name, before.verb, after.rule_name, after.verb)
            for before, after in pairs
            if _reply_of(before) != _reply_of(after)
        }
        return _Verdict(
            tuple(tallies[change] for change in changes),
            any(before is Verb.DUNNO and after is not Verb.DUNNO for _, before, _, after in changes),
            seen.name_status is NameStatus.UNKNOWN
            and any(decision.identity is not None for pair in pairs for decision in pair),
            len(pairs) < len(judged),
            old_judge.lists_assumed or new_judge.lists_assumed,
        )

    def grounds(seen: Observation) -> object:
        pairs = {(old_judge.grounds(part), new_judge.grounds(part)) for part in _parts(seen, by_recipient=by_recipient)}
        return frozenset(pairs)

    facts = _facts(subjects, assumption, list_assumption)
    _run(paths, facts, grounds, verdict_on, advance, has_owner=_owner_test(new_judge, subjects))
    changes = [
        (RuleAnswer(before_rule, before), RuleAnswer(after_rule, after), tally)
        for (before_rule, before, after_rule, after), tally in tallies.items()
    ]
    changes.sort(
        key=lambda change: (
            not (change[0].lets_through and change[1].refuses),
            -change[2].delivered,
            -change[2].transactions,
            change[1].rule,
        )
    )
    return Comparison(ruleset, old, facts, subjects, changes)


class _Verdict(NamedTuple):
    """The result for a mail, cached for all mails with equal grounds."""

    tallies: tuple[MailTally, ...]  # the tallies that count the mail
    refuses: bool  # the mail would be refused; of two rulesets, by the new one only
    assumed: bool  # the result depends on the status assumed for `unknown`
    unjudged: bool  # the result depends on a name that was not looked up
    lists_assumed: bool  # the result needed a DNS list's answer that the log does not have


def _facts(subjects: set[str], assumption: Assumption, list_assumption: ListAssumption) -> LogFacts:
    return LogFacts(assumption=assumption, list_assumption=list_assumption, unlogged=tuple(sorted(subjects - _LOGGED)))


def _owner_test(judge: Judge, subjects: set[str]) -> Callable[[Observation], bool] | None:
    """Returns a function that says whether a client's owner is known; None if no rule uses systems or countries."""
    return None if subjects.isdisjoint(_OWNER_SUBJECTS) else judge.has_owner


def _run(
    paths: Sequence[str],
    facts: LogFacts,
    grounds: Callable[[Observation], object],
    verdict_on: Callable[[Observation], _Verdict],
    advance: Callable[[int], None] | None,
    *,
    has_owner: Callable[[Observation], bool] | None,
) -> None:
    """Counts every mail, in the facts and in the tallies of its verdict. Mails with equal grounds share a verdict."""
    log, distinct = MailLog(), Distinct(_MAX_DISTINCT)
    remembered: dict[object, _Verdict] = {}
    with without_garbage_collection():
        for batch in observations(paths, log, advance):
            for seen in batch:
                facts.add(seen)
                if has_owner is not None and not has_owner(seen):
                    facts.no_owner += 1
                key = grounds(seen), seen.name_status is _UNKNOWN
                verdict = remembered.get(key)
                if verdict is None:
                    if len(remembered) >= _MAX_REMEMBERED:
                        remembered.clear()
                    verdict = remembered[key] = verdict_on(seen)
                tallies, refuses, assumed, unjudged, lists_assumed = verdict
                if tallies:
                    facts.changed += 1
                    sender_domain = _domain_from(seen.sender[seen.sender.rfind(b"@") :]) if seen.sender else b""
                    for tally in tallies:
                        tally.add(seen)
                        tally.add_origin(seen.client_address, sender_domain, distinct)
                facts.assumed += assumed
                facts.unjudged += unjudged
                facts.lists_assumed += lists_assumed
                if refuses and seen.outcome in COUNTS_AS_DELIVERED:
                    facts.refused_delivered += 1
    facts.counts = log.counts


def _parts(seen: Observation, *, by_recipient: bool) -> list[Observation]:
    """Splits a mail into one for each recipient, if rules use recipients."""
    if not by_recipient or len(seen.recipients) < 2:
        return [seen]
    return [seen._replace(recipients=(recipient,)) for recipient in seen.recipients]


def _reply_of(decision: Decision) -> tuple[object, ...]:
    """Returns a key for the answer to the client. Of the placeholders' values, only the rule's name is in the key."""
    rule = decision.rule_name if "rule" in decision.text[1::2] else ""
    return decision.verb, decision.code, decision.text, rule
