"""The decision on one request: `decide(ruleset, request, facts, today)`, or an `Inquiry` if facts arrive one by one.

The engine asks for facts instead of fetching them. If a rule that could still decide needs a missing fact, the result
is `Needs`: every fact that this rule and the rules after it may still need. The caller gets these facts, passes them
to the `Inquiry`, and calls `decide` again.

A condition on the client's identity holds, does not hold, or is unknown, by two principles that no rule can change.
A condition in the match of a DUNNO rule, or in the exceptions of any other rule, is *exempting*: if it holds, it lets
the client through.

1. A client that lies about its name can be blocked because of the lie, never let through. For an exempting condition
   only verified names count; for any other condition the verified names or, without any, every claimed name.
2. A temporary failure never causes a permanent reject. While reverse DNS has the status error, an exempting condition
   is unknown unless the PTR names are known and cannot satisfy it. DEFER is answered instead of REJECT if a rule might
   have let the client through, or if the REJECT is due to the failure.

A DNS list says *listed*, *not listed* or *unknown* (`policyd.core.dns_lists`). If its answer is unknown,
an exempting condition is unknown, and any other condition does not hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from policyd.core.dns_lists import ListAnswers, ListStatus
from policyd.core.facts import NO_LISTS, Facts, Greylisted, Needs
from policyd.core.identity import Identity, Status, identity_from_postfix, with_claimed
from policyd.core.lookups import CounterLookup, StatusLookup
from policyd.core.ruleset import DEFAULT_RULE, Kind, Verb

if TYPE_CHECKING:
    import datetime
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from policyd.core.dns_lists import ListAnswer
    from policyd.core.index import ListTerm, ListTerms, Pairs, Plan, RuleBucket, Ruleset
    from policyd.core.owners import Owner
    from policyd.core.protocol import Request
    from policyd.core.ruleset import Action, Condition, Rule
    from policyd.core.tables import Hits


class Decision(NamedTuple):
    """The ruleset's decision on one request.

    `rule` is None if the default decided. `verb`, `code` and `text` (a template, as in `Action`) are the decision,
    which Postfix receives unless `observing` (the top-level `mode: observe`). `downgraded` means that a DNS failure
    turned REJECT into DEFER. `observed` names the matching observed rules above the deciding one. `identity` is None if
    the decision did not need it. `lists` has the answers of DNS lists by name, and `listed_by` the first list because
    of which the deciding rule matched. `owner` is the owner of the client's address, None if the ruleset declares no
    database of networks. `greylist` is the result of greylisting, None if no rule tried it. `counter_value` is the
    value of the counter because of which the deciding rule matched.
    """

    verb: Verb
    rule: Rule | None
    code: str
    text: tuple[str, ...]
    observed: tuple[str, ...] = ()
    downgraded: bool = False
    identity: Identity | None = None
    observing: bool = False
    lists: Mapping[str, ListAnswer] = NO_LISTS
    listed_by: str = ""
    owner: Owner | None = None
    greylist: Greylisted | None = None
    counter_value: int | None = None

    @property
    def action(self) -> Verb:
        """The verb that Postfix receives."""
        return _DUNNO if self.observing else self.verb

    @property
    def word(self) -> str:
        """The verb, but GREYLIST instead of DEFER_IF_PERMIT if a greylist rule decided."""
        greylists = self.rule is not None and self.rule.action.verb is _GREYLIST
        return _GREYLIST if greylists else self.verb

    @property
    def rule_name(self) -> str:
        """The deciding rule's name, `default` for none."""
        return self.rule.name if self.rule is not None else DEFAULT_RULE


class Outcome(Enum):
    """The result of trying a rule or a condition."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"  # DNS failed; without the failure, the DUNNO rule or exempting condition might hold
    IN_DOUBT = "in doubt"  # yes, but perhaps no without the DNS failure
    NEEDED = "needs facts"


# Before Python 3.12, looking up an Enum member takes 0.1 us, a tenth of the cost of a rule; a global name is free.
_NOTHING: Final = Needs()
_NO_NAMES: Final = frozenset[str]()
_YES: Final = Outcome.YES
_NO: Final = Outcome.NO
_UNKNOWN: Final = Outcome.UNKNOWN
_IN_DOUBT: Final = Outcome.IN_DOUBT
_NEEDED: Final = Outcome.NEEDED
_VERIFIED: Final = Status.VERIFIED
_ERROR: Final = Status.ERROR
_REJECT: Final = Verb.REJECT
_DUNNO: Final = Verb.DUNNO
_GREYLIST: Final = Verb.GREYLIST
_KNOWN: Final = Greylisted.KNOWN
_LISTED: Final = ListStatus.LISTED
_NOT_LISTED: Final = ListStatus.NOT_LISTED
_NOT_KNOWN: Final = ListStatus.UNKNOWN

# Makes a named tuple in half the time of its constructor, which is written in Python.
_new: Final = tuple.__new__

# Outcomes of a rule that may still turn a REJECT into a DEFER.
_OPEN: Final = (_UNKNOWN, _NEEDED)

# Precedence of outcomes when two parts of a rule are combined.
_RANKS: Final = {outcome: rank for rank, outcome in enumerate((_YES, _IN_DOUBT, _UNKNOWN, _NEEDED, _NO))}


def _worse(first: Outcome, other: Outcome) -> Outcome:
    """Combines the outcomes of two parts of a rule."""
    if first is other or other is _YES:
        return first
    return other if first is _YES or _RANKS[first] < _RANKS[other] else first


@dataclass(frozen=True, slots=True)
class RuleTrace:
    """One rule of a trace: its outcome, and that of each condition of its match and of its exceptions.

    Every condition is checked, also after the outcome is clear.
    """

    rule: Rule
    outcome: Outcome
    expired: bool
    match: tuple[tuple[Condition, Outcome], ...]
    exceptions: tuple[tuple[Condition, Outcome], ...]


def decide(ruleset: Ruleset, request: Request, facts: Facts, today: datetime.date) -> Decision | Needs:
    """Decides one request; `today` is the date in UTC."""
    return Inquiry(ruleset, request, facts, today).decide()


def decide_fully(ruleset: Ruleset, request: Request, facts: Facts, today: datetime.date) -> Decision:
    """Decides a request for which a log or a test of the ruleset gives all facts."""
    decision = decide(ruleset, request, facts, today)
    assert not isinstance(decision, Needs)
    return decision


def trace(ruleset: Ruleset, request: Request, facts: Facts, today: datetime.date) -> list[RuleTrace]:
    """Returns each rule from the top to the deciding one, with its outcome, for `explain`.

    The trace ends early at a rule that needs a missing fact.
    """
    return Inquiry(ruleset, request, facts, today).trace()


class Inquiry:
    """One request under one ruleset, until its decision.

    It begins with the facts that are known. Until all necessary facts are known, `decide` returns those that it needs,
    and the caller passes them to the `learn_` methods. Then `decide` returns the decision.
    """

    __slots__ = (
        "_counter_lookup", "_doubt", "_found", "_identity_from", "_index", "_lookups", "_needs", "_observed",
        "_today", "_trusts_postfix", "_waiting", "counters", "greylist", "identity", "is_network_known", "lists",
        "memory", "owner", "request", "ruleset",
    )  # fmt: skip

    def __init__(
        self,
        ruleset: Ruleset,
        request: Request,
        facts: Facts,
        today: datetime.date,
        *,
        trust_postfix: bool = False,
    ) -> None:
        """With `trust_postfix` (the setting `dns.trust_postfix`), the identity is taken from Postfix's attributes."""
        self.ruleset = ruleset
        self.request = request
        self._index = index = ruleset.index
        self._lookups, self._counter_lookup = index.lookups, index.counter_lookup
        # The identity is kept even if the decision does not need it; `Decision.identity` is None then.
        self.identity, self.lists, self.owner, self.counters, self.greylist = facts
        if self.owner is None and ruleset.owners is not None:
            self.owner = ruleset.owners.find(request)
        self.is_network_known = False  # the client's network has passed greylisting
        self.memory: Any = None  # the note that `policyd.state.memory` makes of the request
        self._today = today
        self._trusts_postfix = trust_postfix
        if trust_postfix:
            self.identity = identity_from_postfix(request)
        self._found: list[Hits | None] = [None] * len(self._lookups)

    def learn_identity(self, identity: Identity) -> None:
        """Takes the client's reverse DNS. With `trust_postfix`, Postfix's name replaces PTR names that are unknown."""
        if self._trusts_postfix:
            identity = with_claimed(identity, self.request.get("reverse_client_name"))
        self.identity = identity

    def learn_lists(self, answers: Mapping[str, ListAnswer]) -> None:
        """Takes answers of DNS lists, by the list's name. The mapping must not be changed afterwards."""
        self.lists = {**self.lists, **answers} if self.lists else answers

    def learn_counters(self, values: Mapping[str, int]) -> None:
        """Takes the values of counters, by name; counters that do not count the request are left out."""
        self.counters = values
        if self._counter_lookup >= 0:
            self._found[self._counter_lookup] = None

    def matching_counters(self) -> list[Any]:
        """Returns the definitions of the counters that count the request."""
        is_rcpt = self.request.get("protocol_state") == b"RCPT"
        found = []
        all_conditions = self._index.counter_conditions
        for (_, definition, any_state), conditions in zip(self.ruleset.counters, all_conditions, strict=True):
            if (is_rcpt or any_state) and (not conditions or self._fits(conditions, ())):
                found.append(definition)
        return found

    def _start(self) -> None:
        self._observed: tuple[str, ...] = ()
        self._doubt = False  # a DUNNO rule above might have let the client through
        self._identity_from: int | None = None  # the first rule that needed the identity
        self._needs = _NOTHING
        self._waiting: dict[int, AbstractSet[str]] = {}  # the DNS lists that a rule waits for

    def decide(self) -> Decision | Needs:
        """Tries the candidate rules in order. A lookup is made when its first rule has its turn."""
        self._start()
        pending: list[int] = []  # candidate rules not yet tried, the next rule last
        for first, lookup, needs_facts, bucket in self._index.buckets:
            while pending and pending[-1] < first:
                settled = self._settle(pending.pop())
                if settled is not None:
                    return settled
            candidates = self._candidates(bucket) if needs_facts else self._find(lookup).rules
            if candidates:
                pending = sorted({*pending, *candidates}, reverse=True) if pending else list(candidates[::-1])
        while pending:
            settled = self._settle(pending.pop())
            if settled is not None:
                return settled
        return self._decision(None, self.ruleset.default, in_doubt=False)

    def trace(self) -> list[RuleTrace]:
        """Tries the rules from the top to the deciding one, each with all of its conditions."""
        self._start()
        traces = []
        for rule in self.ruleset.rules:
            lets_through = rule.action.verb is _DUNNO
            match = tuple((c, self._holds_condition(c, exempting=lets_through)) for c in rule.match)
            exceptions = tuple((c, self._holds_condition(c, exempting=not lets_through)) for c in rule.exceptions)
            expired = rule.expired(self._today)
            if expired or any(outcome is _NO for _, outcome in match):
                outcome = _NO
            else:
                outcome = self._try(rule, self._index.plans[rule.number])
                if rule.action.verb is _GREYLIST and outcome is not _NO:
                    outcome = self._try_greylist(rule, outcome)
            traces.append(RuleTrace(rule, outcome, expired, match, exceptions))
            decided = outcome in {_YES, _IN_DOUBT} and not rule.observe
            if decided or outcome is _NEEDED:
                break
        return traces

    def _settle(self, number: int) -> Decision | Needs | None:
        """Tries one rule: returns the decision, or None to go on.

        Once a fact is needed, the rules below are tried only for the facts that they may need.
        """
        rule = self.ruleset.rules[number]
        if rule.expires is not None and rule.expired(self._today):
            return None
        plan = self._index.plans[number]
        missing = self._waiting.get(number) if self._waiting else None
        outcome = self._try(rule, plan) if missing is None else _NEEDED
        if rule.action.verb is _GREYLIST and outcome is not _NO:
            outcome = self._try_greylist(rule, outcome)
        if outcome is _NO:
            return None
        if outcome is _NEEDED:
            if missing is None:
                missing = _NO_NAMES
                if plan.lists is not None:
                    missing = self._missing_lists(plan.lists, exempting=rule.action.verb is _DUNNO)
            self._need(plan, missing)
            return self._needs if self._needs_everything() else None
        if rule.observe:
            if outcome is not _UNKNOWN:
                self._observed += (rule.name,)
            return None
        if outcome is _UNKNOWN:
            self._doubt = True
            return None
        return self._decision(rule, rule.action, in_doubt=outcome is _IN_DOUBT)

    def _need(self, plan: Plan, lists: AbstractSet[str]) -> None:
        """Adds the facts that a rule waits for to the needed facts; `lists` are the DNS lists among them."""
        identity, needed, counters, greylist = self._needs
        if self.identity is None:
            identity = identity or bool(plan.match_identity or plan.exceptions_identity)
            if self._index.hostname_lists and lists:
                by_hostname = lists & self._index.hostname_lists
                identity = identity or bool(by_hostname)
                lists = lists - by_hostname
        self._needs = _new(Needs, (identity, needed | lists if lists else needed, counters, greylist))

    def _missing_lists(self, terms: ListTerms, *, exempting: bool) -> AbstractSet[str]:
        """The DNS lists that a rule with these conditions waits for."""
        if terms.waits_for_all and not self.lists:
            return terms.names
        missing: set[str] = set()
        for term in terms.match:
            if self._holds_term(term, exempting=exempting) is _NEEDED:
                missing.update(self._unanswered(term, exempting=exempting))
        for term in terms.exceptions:
            if self._holds_term(term, exempting=not exempting) is _NEEDED:
                missing.update(self._unanswered(term, exempting=not exempting))
        return missing

    def _unanswered(self, term: ListTerm, *, exempting: bool) -> list[str]:
        if not term.by_hostname:
            lists = self.lists
            return [name for name in term.names if name not in lists]
        return [name for name in term.names if self._list_status(name, exempting=exempting) is None]

    def _needs_everything(self) -> bool:
        """Whether every fact that the rules below can need is already needed."""
        identity, lists_needed, counters, greylist = self._needs
        any_identity, lists_used, any_counters, any_greylist = self._index.needs
        if len(lists_needed) != len(lists_used) and not self.lists and not self._index.hostname_lists:
            return False
        if identity is not (any_identity and self.identity is None):
            return False
        if counters is not (any_counters and self.counters is None):
            return False
        if greylist is not (any_greylist and self.greylist is None):
            return False
        if len(lists_needed) == len(lists_used):
            return True
        return lists_needed == lists_used.difference(
            self.lists, self._index.hostname_lists if self.identity is None else ()
        )

    def _decision(self, rule: Rule | None, action: Action, *, in_doubt: bool) -> Decision | Needs:
        if self._needs is not _NOTHING:
            return self._needs
        verb, code = action.verb, action.code
        downgraded = verb is _REJECT and (in_doubt or self._doubt)
        if downgraded:
            verb = Verb.DEFER
            code = code.replace("5", "4", 1)
        needed_from = self._identity_from
        needed = needed_from is not None and (rule is None or needed_from <= rule.number)
        count = None
        if verb is _GREYLIST:
            verb = Verb.DEFER_IF_PERMIT
        if self.counters and rule is not None:
            count = self._count(rule)
        fields = (
            verb,
            rule,
            code,
            action.text,
            self._observed,
            downgraded,
            self.identity if needed else None,
            self.ruleset.observe,
            self.lists,
            self._listed_by(rule) if rule is not None and self.lists else "",
            self.owner,
            self.greylist,
            count,
        )
        return _new(Decision, fields)

    def _count(self, rule: Rule) -> int | None:
        """The value of the first counter because of which the rule matches."""
        lookup = self._index.lookups[self._index.counter_lookup] if self._index.counter_lookup >= 0 else None
        if isinstance(lookup, CounterLookup) and self.counters is not None:
            for condition in rule.match:
                if condition.kind is Kind.COUNTER:
                    return lookup.value_of(condition.number, self.counters)
        return None

    # --- Candidate rules --------------------------------------------------------------------------------------------

    def _candidates(self, bucket: RuleBucket) -> tuple[int, ...]:
        """Candidate rules of a bucket that needs the identity or DNS lists."""
        if bucket.lookup < 0:
            return self._candidates_by_answers(bucket) if self.lists else self._candidates_before_answers(bucket)
        if self._needs.identity and self._index.needs_only_dns and not bucket.lists:
            return ()  # nothing else can be needed for these rules
        first = bucket.first if bucket.surely_needed else self._first_open(bucket.rules)
        if first is None:
            return ()
        if self.identity is None:
            return tuple(sorted({first, *self._waiting_for_lists(bucket)})) if bucket.lists else (first,)
        if self._identity_from is None or first < self._identity_from:
            self._identity_from = first
        found = self._find(bucket.lookup).rules
        if self.identity.status is _ERROR and not self._doubt:
            # A DUNNO rule may be unknown although no name finds it; one such rule is enough.
            unknown = self._first_unknown(bucket.exempting)
            if unknown is not None and unknown not in found:
                return tuple(sorted((*found, unknown)))
        return found

    def _candidates_before_answers(self, bucket: RuleBucket) -> tuple[int, ...]:
        """Candidate rules filed under `listed` while no list has answered: those that wait."""
        if len(bucket.rules) > 1:
            return self._waiting_for_lists(bucket) if self._any_fits(bucket.rules) else ()
        missing = self._waits_for(bucket.rules[0])
        if missing:
            self._waiting[bucket.rules[0]] = missing
        return bucket.rules if missing else ()

    def _candidates_by_answers(self, bucket: RuleBucket) -> tuple[int, ...]:
        """Candidate rules filed under `listed`: for a list without an answer, the first rule that waits for it; for a
        list that says *listed*, all rules filed under it; for one that says *unknown*, its first unknown DUNNO rule.
        """
        lists, hostname_lists = self.lists, self._index.hostname_lists
        if isinstance(lists, ListAnswers) and lists.none_listed and len(lists) == len(self._index.needs.lists):
            return ()  # most requests
        candidates: set[int] = set()
        is_answered = True
        for each in bucket.lists:
            name = each.name
            answer = lists.get(name)
            status = answer.status if answer is not None else None
            if hostname_lists and name in hostname_lists:
                is_answered = False  # perhaps answered only for exempting conditions, or only for others
                status = self._list_status(name, exempting=True)
                if self._list_status(name, exempting=False) is _LISTED:
                    status = _LISTED
            if status is _NOT_LISTED:
                continue
            if status is None:
                is_answered = False
            elif status is _LISTED:
                candidates.update(each.filed)
            elif not self._doubt:
                unknown = self._first_unknown(each.exempting)
                if unknown is not None:
                    candidates.add(unknown)
        if not is_answered:
            candidates.update(self._waiting_for_lists(bucket))
        return tuple(sorted(candidates)) if candidates else ()

    def _waiting_for_lists(self, bucket: RuleBucket) -> tuple[int, ...]:
        """For each DNS list without an answer, the first rule that waits for it; in order."""
        lists, hostname_lists = self.lists, self._index.hostname_lists
        waits_for: dict[int, AbstractSet[str]] = {}  # by rule; empty for a rule that does not wait
        named: dict[str, int] = {}  # lists that the rules so far wait for, with the first of these rules
        for name, users, _, _ in bucket.lists:
            if name in lists and name not in hostname_lists:
                continue
            first = named.get(name)
            for number in users:
                if first is not None and number >= first:
                    break
                missing = waits_for.get(number)
                if missing is None:
                    missing = waits_for[number] = self._waits_for(number)
                if name in missing:
                    self._waiting[number] = missing
                    for list_name in missing:
                        if named.get(list_name, number) >= number:
                            named[list_name] = number
                    break
        return tuple(sorted(filter(waits_for.get, waits_for)))

    def _any_fits(self, numbers: tuple[int, ...]) -> bool:
        """Whether the conditions of one of these rules hold, as far as they need no facts."""
        plans = self._index.plans
        for number in numbers:  # noqa: SIM110 - a generator would cost more than the loop
            if self._fits(plans[number].match, plans[number].exceptions):
                return True
        return False

    def _waits_for(self, number: int) -> AbstractSet[str]:
        """The DNS lists that a rule waits for; none if it is settled."""
        rule, plan = self.ruleset.rules[number], self._index.plans[number]
        terms = plan.lists
        if terms is None or (rule.expires is not None and rule.expired(self._today)):
            return _NO_NAMES
        if terms.waits_for_all and not self.lists and self.identity is None:
            return terms.names if self._fits(plan.match, plan.exceptions) else _NO_NAMES
        if self._try(rule, plan) is not _NEEDED:
            return _NO_NAMES
        return self._missing_lists(terms, exempting=rule.action.verb is _DUNNO)

    def _first_open(self, numbers: tuple[int, ...]) -> int | None:
        """The first of these rules that is not ruled out without the client's identity."""
        rules, plans = self.ruleset.rules, self._index.plans
        for number in numbers:
            rule, plan = rules[number], plans[number]
            if rule.expired(self._today) or not self._fits(plan.match, plan.exceptions):
                continue
            if plan.lists is None or self._try_lists(plan.lists, exempting=rule.action.verb is _DUNNO) is not _NO:
                return number
        return None

    def _first_unknown(self, numbers: tuple[int, ...]) -> int | None:
        """The first of these rules that is unknown because DNS failed, or waits for a fact."""
        rules, plans = self.ruleset.rules, self._index.plans
        for number in numbers:
            rule = rules[number]
            if not rule.expired(self._today) and self._try(rule, plans[number]) in _OPEN:
                return number
        return None

    # --- Whether a rule matches -------------------------------------------------------------------------------------

    def _try(self, rule: Rule, plan: Plan) -> Outcome:
        """Tries a candidate rule: the condition under which it is filed holds, or needs facts."""
        if not self._fits(plan.match, plan.exceptions):
            return _NO
        if plan.lists is None:
            return self._try_names(rule, plan)
        # A list's answer may settle the rule without the names, or the names may settle it without the list.
        outcome = self._try_lists(plan.lists, exempting=rule.action.verb is _DUNNO)
        return outcome if outcome is _NO else _worse(outcome, self._try_names(rule, plan))

    def _try_names(self, rule: Rule, plan: Plan) -> Outcome:
        """Tries a rule's conditions on the client's identity."""
        if not plan.match_identity and not plan.exceptions_identity:
            if plan.lists is None or self.identity is None or not plan.lists.by_hostname:
                return _YES
            if self._identity_from is None or rule.number < self._identity_from:
                self._identity_from = rule.number
            return _YES
        if self.identity is None:
            return _NEEDED
        if self._identity_from is None or rule.number < self._identity_from:
            self._identity_from = rule.number
        if self.identity.status is _VERIFIED:
            # For most clients all names are known and verified, so the two principles do not apply.
            return _YES if self._fits(plan.match_identity, plan.exceptions_identity) else _NO
        return self._try_identity(plan, exempting=rule.action.verb is _DUNNO)

    def _fits(self, match: Pairs, exceptions: Pairs) -> bool:
        """Whether all of these conditions and none of these exceptions hold."""
        for lookup, number in match:
            if number not in self._find(lookup).conditions:
                return False
        for lookup, number in exceptions:  # noqa: SIM110 - a generator would cost more than the loop
            if number in self._find(lookup).conditions:
                return False
        return True

    def _try_identity(self, plan: Plan, *, exempting: bool) -> Outcome:
        """Tries a rule's conditions on the client's identity, by the two principles."""
        unknown = False
        for lookup, number in plan.match_identity:
            holds = self._holds(lookup, number, exempting=exempting)
            if holds is _NO:
                return _NO
            unknown |= holds is _UNKNOWN
        failed = self.identity is not None and self.identity.status is _ERROR
        for lookup, number in plan.exceptions_identity:
            holds = self._holds(lookup, number, exempting=not exempting)
            if holds is _YES:
                # Without the failure, this DUNNO rule might have let the client through.
                return _UNKNOWN if exempting and failed else _NO
            unknown |= holds is _UNKNOWN
        if exempting:
            return _UNKNOWN if unknown else _YES
        return _IN_DOUBT if unknown or (failed and plan.match_identity) else _YES

    def _try_greylist(self, rule: Rule, outcome: Outcome) -> Outcome:
        """Tries a greylist rule whose conditions hold, or may hold: the rule matches if the client must wait."""
        if self.request.get("protocol_state") != b"RCPT":
            return _NO
        if outcome is _NEEDED:
            return outcome
        if self.greylist is None and self.is_network_known:
            self.greylist = _KNOWN
        if self.greylist is None:
            self._needs = self._needs._replace(greylist=True, identity=self._needs.identity or self.identity is None)
            return _NEEDED
        if self.identity is not None and (self._identity_from is None or rule.number < self._identity_from):
            self._identity_from = rule.number
        return outcome if self.greylist is not _KNOWN and self.greylist.deferred else _NO

    # --- DNS lists --------------------------------------------------------------------------------------------------

    def _try_lists(self, terms: ListTerms, *, exempting: bool) -> Outcome:
        """Tries a rule's conditions on DNS lists."""
        if terms.waits_for_all and not self.lists:
            return _NEEDED
        outcome = _YES
        for term in terms.match:
            holds = self._holds_term(term, exempting=exempting)
            if holds is _NO:
                return _NO
            outcome = _worse(outcome, holds)
        for term in terms.exceptions:
            holds = self._holds_term(term, exempting=not exempting)
            if holds is _YES:
                return _NO
            if holds is _IN_DOUBT:
                # Without the failure of reverse DNS, this DUNNO rule might have let the client through.
                holds = _UNKNOWN
            if holds is not _NO:
                outcome = _worse(outcome, holds)
        return outcome if exempting or outcome is not _UNKNOWN else _IN_DOUBT

    def _holds_term(self, term: ListTerm, *, exempting: bool) -> Outcome:
        """Whether enough of the lists say *listed*; in doubt if that depends on names that could not be verified."""
        listed = of_claimed_names = missing = unknown = 0
        failed = term.by_hostname and self.identity is not None and self.identity.status is _ERROR
        lists = self.lists
        for name in term.names:
            if term.by_hostname:
                status = self._list_status(name, exempting=exempting)
            else:
                answer = lists.get(name)
                status = answer.status if answer is not None else None
            missing += status is None
            unknown += status is _NOT_KNOWN
            if status is _LISTED:
                of_claimed_names += failed and name in self._index.hostname_lists
                listed += 1
        sure = listed - of_claimed_names
        if sure >= term.at_least:
            return _YES
        if listed + missing + (unknown if exempting else 0) < term.at_least:
            return _NO
        if missing:
            return _NEEDED
        return _IN_DOUBT if listed >= term.at_least else _UNKNOWN

    def _list_status(self, name: str, *, exempting: bool) -> ListStatus | None:
        """Returns a list's status for a condition; None before the list has answered or the names are looked up."""
        answer = self.lists.get(name)
        status = answer.status if answer is not None else None
        if name not in self._index.hostname_lists:
            return status
        identity = self.identity
        if identity is None or identity.status is _VERIFIED:
            return status if identity is not None else None
        if identity.status is not _ERROR:
            # For an exempting condition a claimed name counts for nothing.
            return _NOT_LISTED if exempting or not identity.claimed else status
        if not identity.claimed or (exempting and not identity.names_known):
            return _NOT_KNOWN
        # For an exempting condition, a name whose lookup failed may still turn out to be verified.
        return _NOT_KNOWN if exempting and status is _LISTED else status

    def _listed_by(self, rule: Rule) -> str:
        """The name of the first list in the rule's match that says *listed*; empty if there is none."""
        terms = self._index.plans[rule.number].lists
        if terms is not None:
            for term in terms.match:
                for name in term.names:
                    if self._list_status(name, exempting=False) is _LISTED:
                        return name
        return ""

    # --- One condition ----------------------------------------------------------------------------------------------

    def _holds_condition(self, condition: Condition, *, exempting: bool) -> Outcome:
        if condition.kind is Kind.LISTED:
            return self._holds_term(self._index.list_terms[condition.number], exempting=exempting)
        lookup = self._index.lookup_of[condition.number]
        if not condition.needs_identity:
            return _YES if condition.number in self._find(lookup).conditions else _NO
        if self.identity is None:
            return _NEEDED
        return self._holds(lookup, condition.number, exempting=exempting)

    def _holds(self, lookup: int, number: int, *, exempting: bool) -> Outcome:
        """Whether a condition on the identity holds, by the two principles."""
        identity = self.identity
        assert identity is not None
        satisfied = number in self._find(lookup).conditions
        if not exempting or identity.status is _VERIFIED:
            return _YES if satisfied else _NO
        table = self._index.lookups[lookup]
        if isinstance(table, StatusLookup):
            if satisfied or identity.status is not _ERROR:
                return _YES if satisfied else _NO
            # Known PTR names will turn out verified or mismatched, never missing.
            could_be = (_VERIFIED, Status.MISMATCH)
            possible = not identity.names_known or any(number in table.hits[s].conditions for s in could_be)
        else:
            possible = identity.status is _ERROR and (satisfied or not identity.names_known)
        return _UNKNOWN if possible else _NO

    def _find(self, lookup: int) -> Hits:
        """Returns the hits of a lookup, which is made at most once."""
        found = self._found[lookup]
        if found is None:
            if lookup == self._counter_lookup:
                return self._find_counters(lookup)
            found = self._found[lookup] = self._lookups[lookup].find(self.request, self)
        return found

    def _find_counters(self, lookup: int) -> Hits:
        """Returns the hits of counters. While their values are missing, notes the need; then every condition holds."""
        table = self._index.lookups[lookup]
        assert isinstance(table, CounterLookup)
        if self.counters is None:
            if not self._needs.counters:  # usually they are needed already, and a new tuple takes a microsecond
                self._needs = self._needs._replace(counters=True)
            return table.everything
        found = self._found[lookup] = table.of_values(self.counters)
        return found
