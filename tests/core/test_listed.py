"""`listed` in the engine, against the plain evaluation of tests/naive.py, and with facts that arrive one by one."""

from __future__ import annotations

import datetime
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policyd.core.dns_lists import NOT_LISTED, ListAnswer, ListStatus, unknown
from policyd.core.engine import Decision, Inquiry, decide, decide_fully, trace
from policyd.core.facts import NOTHING_KNOWN, Facts, Needs
from policyd.core.identity import Identity, Status
from policyd.core.reply import reply_text
from tests import naive
from tests.core.build import build
from tests.core.test_engine import assert_trace_agrees, dns, identity_of, request_of, requests
from tests.examples import examples
from tests.naive import NO, UNKNOWN, YES, Listed, Lists

if TYPE_CHECKING:
    from policyd.core.index import Ruleset

TODAY = datetime.date(2026, 11, 21)
NAMES = ["zen", "psbl", "cop", "dbl"]
BY_HOSTNAME = frozenset({"dbl"})
ANSWERS = {
    YES: ListAnswer(ListStatus.LISTED, ("127.0.0.2",)),
    NO: NOT_LISTED,
    UNKNOWN: unknown("servfail"),
}

listed = st.builds(
    lambda of, at_least: Listed(tuple(of), min(at_least, len(of))),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
    st.integers(1, 3),
)
OTHERS: dict[str, st.SearchStrategy[Any]] = {
    "cidr": st.sampled_from([["10.0.0.0/8"], ["10.1.2.3"], ["0.0.0.0/0"]]),
    "helo_name": st.sampled_from([["a.example"], ["other.test", "example"]]),
    "protocol_state": st.sampled_from([["RCPT"], ["RCPT", "MAIL"]]),
    "hostname_suffix": st.sampled_from([["a.example"], ["test"]]),
    "reverse_dns": st.sampled_from([["verified"], ["missing", "mismatch"], ["error"]]),
}


def conditions(minimum: int) -> st.SearchStrategy[dict[str, Any]]:
    table = {"listed": listed, **OTHERS}
    chosen = st.lists(st.sampled_from(["listed", "listed", *OTHERS]), min_size=minimum, max_size=3, unique=True)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({name: table[name] for name in names}))


rules = st.lists(
    st.fixed_dictionaries(
        {
            "match": conditions(1),
            "except": conditions(0),
            "action": st.sampled_from(["REJECT 5.7.1 no {list}", "DEFER", "DUNNO", "DUNNO"]),
            "mode": st.sampled_from(["enforce", "enforce", "enforce", "observe"]),
            "expires": st.sampled_from([None, None, None, TODAY]),
        }
    ),
    max_size=8,
).map(lambda rule_list: [{"name": f"r{number}", **rule} for number, rule in enumerate(rule_list)])
hostname_lists = st.sampled_from([BY_HOSTNAME, frozenset[str]()])
answers = st.fixed_dictionaries({name: st.sampled_from([YES, NO, UNKNOWN]) for name in NAMES})


def facts_of(known: naive.Dns, list_answers: dict[str, str]) -> Facts:
    return Facts(identity_of(known), {name: ANSWERS[answer] for name, answer in list_answers.items()})


def summary(decision: Decision) -> tuple[object, ...]:
    return decision.verb, decision.rule_name, decision.observed, decision.downgraded


@settings(max_examples=examples(2000), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rules, st.sampled_from(["DUNNO", "REJECT"]), st.lists(st.tuples(requests, dns, answers), min_size=1, max_size=6))
def test_the_engine_agrees_with_the_plain_evaluation(
    rule_list: list[dict[str, Any]], default: str, cases: list[tuple[dict[str, str], naive.Dns, dict[str, str]]]
) -> None:
    ruleset = build(rule_list, default, hostname_lists=BY_HOSTNAME)
    for attributes, known, list_answers in cases:
        want = naive.decide(rule_list, default, attributes, known, TODAY, Lists(list_answers, BY_HOSTNAME))
        request, facts = request_of(attributes), facts_of(known, list_answers)
        got = decide_fully(ruleset, request, facts, TODAY)
        assert summary(got) == (want.verb, want.rule, want.observed, want.downgraded)
        without = decide(ruleset, request, NOTHING_KNOWN, TODAY)
        if isinstance(without, Decision):
            assert summary(without) == summary(got)
        assert_trace_agrees(got, trace(ruleset, request, facts, TODAY))


@settings(max_examples=examples(2000), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hostname_lists, rules, requests, dns, answers, st.permutations(["identity", *NAMES]))
def test_facts_learned_one_by_one_lead_to_the_same_decision(
    by_hostname: frozenset[str],
    rule_list: list[dict[str, Any]],
    attributes: dict[str, str],
    known: naive.Dns,
    list_answers: dict[str, str],
    order: list[str],
) -> None:
    ruleset = build(rule_list, hostname_lists=by_hostname)
    request, facts = request_of(attributes), facts_of(known, list_answers)
    want = summary(decide_fully(ruleset, request, facts, TODAY))
    assert facts.identity is not None
    inquiry = Inquiry(ruleset, request, NOTHING_KNOWN, TODAY)
    for _ in range(len(order) + 1):
        decision = inquiry.decide()
        if isinstance(decision, Decision):
            assert summary(decision) == want
            return
        assert decision.identity or decision.lists
        assert not (decision.identity and inquiry.identity is not None)
        assert decision.lists.isdisjoint(inquiry.lists)
        assert inquiry.identity is not None or decision.lists.isdisjoint(by_hostname)
        fact = next(
            candidate
            for candidate in order
            if candidate in decision.lists or (candidate == "identity" and decision.identity)
        )
        if fact == "identity":
            inquiry.learn_identity(facts.identity)
        else:
            inquiry.learn_lists({fact: facts.lists[fact]})
    pytest.fail("there is no decision although all facts are known")


@settings(max_examples=examples(2000), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hostname_lists, rules, requests, dns, answers)
def test_facts_that_may_be_needed_are_named_together(
    by_hostname: frozenset[str],
    rule_list: list[dict[str, Any]],
    attributes: dict[str, str],
    known: naive.Dns,
    list_answers: dict[str, str],
) -> None:
    """DNS lists that are asked for host names come after reverse DNS; all other facts are needed at once."""
    request, facts = request_of(attributes), facts_of(known, list_answers)
    assert facts.identity is not None
    inquiry = Inquiry(build(rule_list, hostname_lists=by_hostname), request, NOTHING_KNOWN, TODAY)
    rounds = 0
    while isinstance(needs := inquiry.decide(), Needs):
        rounds += 1
        assert rounds == 1 or needs.lists <= by_hostname
        if needs.identity:
            inquiry.learn_identity(facts.identity)
        inquiry.learn_lists({name: facts.lists[name] for name in needs.lists})
    assert rounds <= 2


@settings(max_examples=examples(100), deadline=None)
@given(rules, requests, dns, answers)
def test_a_ruleset_passed_to_another_process_decides_the_same(
    rule_list: list[dict[str, Any]], attributes: dict[str, str], known: naive.Dns, list_answers: dict[str, str]
) -> None:
    ruleset = build(rule_list, hostname_lists=BY_HOSTNAME)
    request, facts = request_of(attributes), facts_of(known, list_answers)
    passed = pickle.loads(pickle.dumps(ruleset, protocol=5))
    assert decide(passed, request, facts, TODAY) == decide(ruleset, request, facts, TODAY)


# --- Facts that are needed --------------------------------------------------------------------------------------------

CLIENT = {"client_address": "192.0.2.1", "protocol_state": "RCPT"}


def rule(name: str, action: str, match: dict[str, Any], exceptions: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"name": name, "match": match, "except": exceptions or {}, "action": action}


def needed_facts(ruleset: Ruleset, facts: Facts = NOTHING_KNOWN) -> set[str]:
    """The names of the lists that are needed, and `identity` if reverse DNS is needed."""
    decision = decide(ruleset, request_of(CLIENT), facts, TODAY)
    if isinstance(decision, Decision):
        return set()
    return {*decision.lists, *(["identity"] if decision.identity else [])}


ZEN = Listed(("zen",))
PSBL = Listed(("psbl",))


@pytest.mark.parametrize(
    ("rule_list", "wanted"),
    [
        ([rule("a", "REJECT", {"listed": ZEN})], {"zen"}),
        ([rule("a", "REJECT", {"listed": ZEN}, {"listed": PSBL})], {"zen", "psbl"}),
        ([rule("a", "REJECT", {"listed": ZEN}), rule("b", "REJECT", {"listed": PSBL})], {"zen", "psbl"}),
        ([rule("a", "REJECT", {"listed": ZEN, "hostname_suffix": ["a.example"]})], {"zen", "identity"}),
        ([rule("a", "REJECT", {"listed": Listed(("dbl",))})], {"identity"}),
        # The rule's other conditions do not hold.
        ([rule("a", "REJECT", {"listed": ZEN, "helo_name": ["other.test"]})], set()),
        ([rule("a", "REJECT", {"listed": ZEN}, {"cidr": ["192.0.2.0/24"]})], set()),
        # A rule above decides.
        ([rule("a", "DUNNO", {"cidr": ["192.0.2.0/24"]}), rule("b", "REJECT", {"listed": ZEN})], set()),
        # The rule in the middle decides, so the list of the rule below it is not needed.
        (
            [
                rule("a", "REJECT", {"listed": ZEN}),
                rule("b", "DUNNO", {"cidr": ["192.0.2.0/24"]}),
                rule("c", "REJECT", {"listed": PSBL}),
            ],
            {"zen"},
        ),
    ],
)
def test_a_list_is_needed_if_a_rule_that_could_decide_uses_it(
    rule_list: list[dict[str, Any]], wanted: set[str]
) -> None:
    assert needed_facts(build(rule_list, hostname_lists=BY_HOSTNAME)) == wanted


@pytest.mark.parametrize(
    ("value", "list_answers", "wanted"),
    [
        (Listed(("zen", "psbl", "cop")), {"psbl": YES}, set()),  # one answer is enough
        (Listed(("zen", "psbl", "cop")), {"psbl": NO}, {"zen", "cop"}),
        (Listed(("zen", "psbl", "cop"), 2), {"psbl": YES}, {"zen", "cop"}),
        (Listed(("zen", "psbl", "cop"), 2), {"psbl": YES, "cop": YES}, set()),
        (
            Listed(("zen", "psbl", "cop"), 2),
            {"psbl": NO, "cop": UNKNOWN},
            set(),
        ),  # at most one of the lists can say *listed*, so the rule cannot match
        (Listed(("zen", "psbl", "cop"), 3), {"psbl": NO}, set()),
    ],
)
def test_the_decision_is_given_as_soon_as_no_answer_can_change_it(
    value: Listed, list_answers: dict[str, str], wanted: set[str]
) -> None:
    facts = Facts(None, {name: ANSWERS[answer] for name, answer in list_answers.items()})
    assert needed_facts(build([rule("a", "REJECT", {"listed": value})]), facts) == wanted


def test_the_first_rule_that_waits_for_a_list_is_not_skipped() -> None:
    rule_list: list[dict[str, Any]] = [
        {"name": "cop", "match": {"protocol_state": ["MAIL"], "listed": Listed(("cop",), 1)}, "action": "REJECT"},
        {"name": "zen", "match": {"listed": Listed(("zen",), 1)}, "action": "REJECT 5.7.1 zen"},
        {"name": "client", "match": {"cidr": ["10.0.0.0/8"], "helo_name": ["a.example"]}, "action": "REJECT"},
        {"name": "both", "match": {"listed": Listed(("cop", "zen"), 1)}, "action": "REJECT"},
    ]
    request = request_of({"client_address": "10.1.2.3", "protocol_state": "RCPT", "helo_name": "a.example"})
    needs = decide(build(rule_list), request, NOTHING_KNOWN, TODAY)
    assert isinstance(needs, Needs)
    assert "zen" in needs.lists


def test_if_the_list_settles_the_rule_reverse_dns_is_not_needed_and_vice_versa() -> None:
    ruleset = build([rule("a", "REJECT", {"listed": ZEN, "hostname_suffix": ["a.example"]})])
    assert needed_facts(ruleset, Facts(None, {"zen": NOT_LISTED})) == set()
    assert needed_facts(ruleset, Facts(Identity(Status.MISSING))) == set()


@pytest.mark.slow
def test_ten_thousand_rules_with_listed_are_not_tried_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rule_list = [rule(f"r{n}", "REJECT", {"listed": ZEN, "protocol_state": ["RCPT"]}) for n in range(10_000)]
    ruleset = build(rule_list)
    tries = 0
    original = Inquiry._try

    def count_and_try(self: Inquiry, *arguments: Any) -> Any:
        nonlocal tries
        tries += 1
        return original(self, *arguments)

    monkeypatch.setattr(Inquiry, "_try", count_and_try)
    assert needed_facts(ruleset) == {"zen"}
    assert tries < 10
    decision = decide(ruleset, request_of(CLIENT), Facts(None, {"zen": NOT_LISTED}), TODAY)
    assert isinstance(decision, Decision)
    assert decision.rule is None
    assert tries < 20


# --- {list} -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "list_answers", "text"),
    [
        (Listed(("zen", "psbl")), {"zen": YES, "psbl": YES}, "zen"),
        (Listed(("psbl", "zen")), {"zen": YES, "psbl": YES}, "psbl"),
        (Listed(("psbl", "zen")), {"zen": YES, "psbl": NO}, "zen"),
        (Listed(("psbl", "zen", "cop"), 2), {"zen": YES, "psbl": UNKNOWN, "cop": YES}, "zen"),
    ],
)
def test_the_placeholder_list_names_the_rules_first_list_that_says_listed(
    value: Listed, list_answers: dict[str, str], text: str
) -> None:
    ruleset = build([rule("a", "REJECT 5.7.1 listed by {list}", {"listed": value})])
    request = request_of(CLIENT)
    decision = decide_fully(ruleset, request, Facts(None, {n: ANSWERS[a] for n, a in list_answers.items()}), TODAY)
    assert reply_text(decision, request, None, b"ID") == f"5.7.1 listed by {text}".encode()


def test_the_placeholder_list_is_unknown_in_a_rule_without_listed_and_causes_no_lookup() -> None:
    ruleset = build([rule("a", "REJECT 5.7.1 {list}", {"cidr": ["192.0.2.1"]})])
    request = request_of(CLIENT)
    decision = decide_fully(ruleset, request, NOTHING_KNOWN, TODAY)
    assert reply_text(decision, request, None, b"ID") == b"5.7.1 unknown"
