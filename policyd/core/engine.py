"""The decision on one request: `decide(ruleset, request, facts, today)`, or an `Inquiry` where facts come bit by bit.

The engine asks for facts instead of fetching them. Where a rule that could still decide needs a fact that is not
there, the answer is `Needs`, which names everything that this rule and those after it may still need; the caller gets
it, tells the `Inquiry`, and asks again.

A condition on the client's identity holds, does not hold, or is unknown, and two principles say which, whatever the
rules are. They turn on whether holding would let the client through: it does in the match of a DUNNO rule and in
the exceptions of any other, the *exempting* places.

1. A lie about its name can get a client blocked, never let through: in exempting places only verified names are
   seen; elsewhere the verified ones, or else every claimed one.
2. A temporary failure never causes a permanent reject: while reverse DNS is in error, a condition in an exempting
   place is unknown unless the PTR names are known and cannot satisfy it. What might have let the client through
   leaves a doubt, and a REJECT in doubt is answered DEFER; so is one that rests on the failure itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from policyd.core.facts import NOTHING_KNOWN, Facts, Needs
from policyd.core.identity import Identity, Status, identity_from_postfix, with_claimed
from policyd.core.lookups import StatusLookup
from policyd.core.ruleset import DEFAULT_RULE, Verb

if TYPE_CHECKING:
    import datetime

    from policyd.core.index import Pairs, Plan, RuleBucket, Ruleset
    from policyd.core.protocol import Request
    from policyd.core.ruleset import Action, Condition, Rule
    from policyd.core.tables import Hits


class Decision(NamedTuple):
    """What the ruleset says of one request.

    `rule` is None where the default decided. `verb`, `code` and `text` (a template, as in `Action`) are the decision,
    which Postfix is told unless `observing`, the top-level `mode: observe`, holds it back. `downgraded` says that the
    verb would be REJECT but for a failure of DNS. `observed` names the observed rules above that matched. `identity`
    is None if the decision did not need it.
    """

    verb: Verb
    rule: Rule | None
    code: str
    text: tuple[str, ...]
    observed: tuple[str, ...] = ()
    downgraded: bool = False
    identity: Identity | None = None
    observing: bool = False

    @property
    def action(self) -> Verb:
        """What Postfix is told."""
        return _DUNNO if self.observing else self.verb

    @property
    def rule_name(self) -> str:
        """The deciding rule's name, `default` for none."""
        return self.rule.name if self.rule is not None else DEFAULT_RULE


class Outcome(Enum):
    """What became of a rule or a condition."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"  # DNS failed: of a DUNNO rule, it might have let the client through
    IN_DOUBT = "in doubt"  # of any other rule: yes, but a failure of DNS had a part in it
    NEEDED = "needs facts"


# To look up a member of an Enum takes 0.1 us before Python 3.12, a tenth of what a rule takes; a name takes nothing.
_NOTHING: Final = Needs()
_YES: Final = Outcome.YES
_NO: Final = Outcome.NO
_UNKNOWN: Final = Outcome.UNKNOWN
_IN_DOUBT: Final = Outcome.IN_DOUBT
_NEEDED: Final = Outcome.NEEDED
_VERIFIED: Final = Status.VERIFIED
_ERROR: Final = Status.ERROR
_REJECT: Final = Verb.REJECT
_DUNNO: Final = Verb.DUNNO


@dataclass(frozen=True, slots=True)
class RuleTrace:
    """One rule of a trace: its outcome, and that of each condition of its match and of its exceptions.

    Every condition is looked at, also after the one that settles the rule.
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
    """Decides one request of which every fact is given: in a log, or in a test of the ruleset."""
    decision = decide(ruleset, request, facts, today)
    assert not isinstance(decision, Needs)
    return decision


def grounds(ruleset: Ruleset, request: Request, facts: Facts) -> tuple[object, ...]:
    """Returns all that a decision depends on, on one day: requests with equal grounds are decided alike.

    Few grounds stand for all the mails of a log, so that a replay decides each kind of mail once.
    """
    identity = facts.identity
    found = [lookup.find(request, identity) for lookup in ruleset.index.lookups]
    return (identity is None or (identity.status, identity.names_known), *found)


def trace(ruleset: Ruleset, request: Request, facts: Facts, today: datetime.date) -> list[RuleTrace]:
    """Returns each rule from the top to the deciding one, with its outcome: what `explain` shows.

    It ends at the first rule that needs a fact which is not given.
    """
    return Inquiry(ruleset, request, facts, today).trace()


class Inquiry:
    """One request under one ruleset, on its way to a decision.

    It begins with the facts that are there (`begin`: what Postfix says), and ends when `decide` returns a decision.
    Until then `decide` returns what it needs, and `learn_identity` takes it.
    """

    __slots__ = (
        "_doubt",
        "_found",
        "_identity_from",
        "_index",
        "_needs",
        "_observed",
        "_today",
        "_trusts_postfix",
        "identity",
        "request",
        "ruleset",
    )

    def __init__(
        self,
        ruleset: Ruleset,
        request: Request,
        facts: Facts,
        today: datetime.date,
        *,
        trust_postfix: bool = False,
    ) -> None:
        self.ruleset = ruleset
        self.request = request
        self._index = ruleset.index
        self.identity = facts.identity  # what is known of it, whether or not the decision needs it
        self._today = today
        self._trusts_postfix = trust_postfix
        self._found: list[Hits | None] = [None] * len(self._index.lookups)

    @classmethod
    def begin(cls, ruleset: Ruleset, request: Request, today: datetime.date, *, trust_postfix: bool) -> Inquiry:
        """Begins with what the request itself says; `trust_postfix` as in the settings (`dns.trust_postfix`)."""
        identity = identity_from_postfix(request) if trust_postfix else None
        inquiry = cls(ruleset, request, NOTHING_KNOWN, today, trust_postfix=trust_postfix)
        inquiry.identity = identity
        return inquiry

    def learn_identity(self, identity: Identity) -> None:
        """Takes the client's reverse DNS. If its PTR names could not be had, the name that Postfix found stands in."""
        if self._trusts_postfix:
            identity = with_claimed(identity, self.request.get("reverse_client_name"))
        self.identity = identity

    def decide_with(self, identity: Identity) -> Decision:
        """Decides with the client's reverse DNS, where nothing else was needed."""
        self.learn_identity(identity)
        decision = self.decide()
        assert not isinstance(decision, Needs)
        return decision

    def _start(self) -> None:
        self._observed: tuple[str, ...] = ()
        self._doubt = False  # a DUNNO rule above might have let the client through
        self._identity_from: int | None = None  # the first rule that needed the identity
        self._needs = _NOTHING

    def decide(self) -> Decision | Needs:
        """Tries, in order, the rules that lookups bring up; a lookup is made when the first rule that it could
        bring up has its turn."""
        self._start()
        pending: list[int] = []  # rules brought up and not yet tried, the next one last
        for bucket in self._index.buckets:
            while pending and pending[-1] < bucket.first:
                settled = self._settle(pending.pop())
                if settled is not None:
                    return settled
            brought_up = self._bring_up(bucket) if bucket.needs_identity else self._find(bucket.lookup).rules
            if brought_up:
                pending = sorted({*pending, *brought_up}, reverse=True) if pending else list(brought_up[::-1])
        while pending:
            settled = self._settle(pending.pop())
            if settled is not None:
                return settled
        return self._decision(None, self.ruleset.default, in_doubt=False)

    def trace(self) -> list[RuleTrace]:
        """Tries every rule from the top, each with all of its conditions."""
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
            traces.append(RuleTrace(rule, outcome, expired, match, exceptions))
            decided = outcome in {_YES, _IN_DOUBT} and not rule.observe
            if decided or outcome is _NEEDED:
                break
        return traces

    def _settle(self, number: int) -> Decision | Needs | None:
        """Tries one rule: the decision if it is the one, None to go on.

        Once a fact is needed, the rules below are only tried for the facts that they may need as well.
        """
        rule = self.ruleset.rules[number]
        if rule.expires is not None and rule.expired(self._today):
            return None
        outcome = self._try(rule, self._index.plans[number])
        if outcome is _NO:
            return None
        if outcome is _NEEDED:
            self._needs = Needs(identity=True)
            return self._needs if self._needs == self._index.needs else None
        if rule.observe:
            if outcome is not _UNKNOWN:
                self._observed += (rule.name,)
            return None
        if outcome is _UNKNOWN:
            self._doubt = True
            return None
        return self._decision(rule, rule.action, in_doubt=outcome is _IN_DOUBT)

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
        return Decision(
            verb,
            rule,
            code,
            action.text,
            self._observed,
            downgraded,
            self.identity if needed else None,
            self.ruleset.observe,
        )

    # --- Which rules come up ----------------------------------------------------------------------------------------

    def _bring_up(self, bucket: RuleBucket) -> tuple[int, ...]:
        """The rules that are worth trying because of a lookup that needs the identity."""
        first = bucket.first if bucket.surely_needed else self._first_open(bucket.rules)
        if first is None:
            return ()
        if self.identity is None:
            return (first,)
        if self._identity_from is None or first < self._identity_from:
            self._identity_from = first
        found = self._find(bucket.lookup).rules
        if self.identity.status is _ERROR and not self._doubt:
            # A DUNNO rule that no name brings up may be unknown all the same; one such rule is enough.
            unknown = self._first_unknown(bucket.exempting)
            if unknown is not None and unknown not in found:
                return tuple(sorted((*found, unknown)))
        return found

    def _first_open(self, numbers: tuple[int, ...]) -> int | None:
        """The first of these rules that only the identity can settle."""
        rules, plans = self.ruleset.rules, self._index.plans
        for number in numbers:
            plan = plans[number]
            if not rules[number].expired(self._today) and self._fits(plan.match, plan.exceptions):
                return number
        return None

    def _first_unknown(self, numbers: tuple[int, ...]) -> int | None:
        """The first of these rules that is unknown because reverse DNS failed."""
        rules, plans = self.ruleset.rules, self._index.plans
        for number in numbers:
            rule = rules[number]
            if not rule.expired(self._today) and self._try(rule, plans[number]) is _UNKNOWN:
                return number
        return None

    # --- Whether a rule matches -------------------------------------------------------------------------------------

    def _try(self, rule: Rule, plan: Plan) -> Outcome:
        """What becomes of a rule that came up: the condition under which it is filed holds, or needs the identity."""
        if not self._fits(plan.match, plan.exceptions):
            return _NO
        if not plan.match_identity and not plan.exceptions_identity:
            return _YES
        if self.identity is None:
            return _NEEDED
        if self._identity_from is None or rule.number < self._identity_from:
            self._identity_from = rule.number
        if self.identity.status is _VERIFIED:
            # All is known and true, for most clients: the two principles have nothing to say.
            return _YES if self._fits(plan.match_identity, plan.exceptions_identity) else _NO
        return self._try_identity(plan, exempting=rule.action.verb is _DUNNO)

    def _fits(self, match: Pairs, exceptions: Pairs) -> bool:
        """Whether the lookups find all of these conditions, and none of these exceptions."""
        for lookup, number in match:
            if number not in self._find(lookup).conditions:
                return False
        for lookup, number in exceptions:  # noqa: SIM110 - a generator would cost more than the loop
            if number in self._find(lookup).conditions:
                return False
        return True

    def _try_identity(self, plan: Plan, *, exempting: bool) -> Outcome:
        """What becomes of a rule whose other conditions are settled in its favour."""
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
                # But for the failure, this DUNNO rule might have let the client through.
                return _UNKNOWN if exempting and failed else _NO
            unknown |= holds is _UNKNOWN
        if exempting:
            return _UNKNOWN if unknown else _YES
        return _IN_DOUBT if unknown or (failed and plan.match_identity) else _YES

    def _holds_condition(self, condition: Condition, *, exempting: bool) -> Outcome:
        lookup = self._index.lookup_of[condition.number]
        if not condition.needs_identity:
            return _YES if condition.number in self._find(lookup).conditions else _NO
        if self.identity is None:
            return _NEEDED
        return self._holds(lookup, condition.number, exempting=exempting)

    def _holds(self, lookup: int, number: int, *, exempting: bool) -> Outcome:
        """Whether a condition on the identity holds: the two principles."""
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
        """What a lookup finds, made at most once."""
        found = self._found[lookup]
        if found is None:
            found = self._found[lookup] = self._index.lookups[lookup].find(self.request, self.identity)
        return found


# --- The text of an answer --------------------------------------------------------------------------------------------
