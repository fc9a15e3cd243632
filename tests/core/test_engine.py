"""The engine against the plain evaluation of tests/naive.py, over generated rulesets, requests and reverse DNS."""

import datetime
import pickle
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policyd.core.engine import Decision, Outcome, RuleTrace, decide, trace
from policyd.core.facts import NOTHING_KNOWN, Facts, Needs
from policyd.core.identity import Identity, Reason, Status, identity_from_postfix
from policyd.core.protocol import Request
from policyd.core.reply import reply_text
from policyd.core.ruleset import Verb
from tests import naive
from tests.core.build import action_of, build
from tests.examples import examples

TODAY = datetime.date(2026, 11, 21)

# Few values, so that entries nest, overlap and match.
NETWORKS = [
    "0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3", "10.1.2.4/30", "255.255.255.255",
    "::/0", "2001:db8::/32", "2001:db8:0:1::/64", "2001:db8:0:1::1", "2001:db8:0:1::/127", "ffff::/16",
]  # fmt: skip
ADDRESSES = [
    "10.1.2.3", "10.1.2.5", "10.2.0.0", "9.255.255.255", "0.0.0.0", "255.255.255.255", "::ffff:10.1.2.3",
    "2001:db8::1", "2001:db8:0:1::1", "2001:db8:0:1::2", "::", "ffff::1", "unknown", "fe80::1%eth0", "",
]  # fmt: skip
NAMES = ["a.example", "b.a.example", "c.b.a.example", "xa.example", "example", "other.test", "b.other.test"]
SUFFIXES = [*NAMES, ".a.example", ".example", ".other.test"]
EXPRESSIONS = [r"^b\.", "a", r"\.test$", "^$", ".", "x|other"]
MAILBOXES = ["u@a.example", "U@A.EXAMPLE", "v@b.a.example", "a@b@other.test", "root", "u@[10.1.2.3]", ""]
STATES = ["CONNECT", "MAIL", "RCPT", "DATA"]
LISTS = {"networks": NETWORKS[1:9], "names": SUFFIXES[2:7]}


def some(values: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True)


CONDITIONS = {
    "cidr": some([*NETWORKS, "$networks"]),
    "reverse_dns": some(["verified", "mismatch", "missing", "error"]),
    "hostname": some(NAMES),
    "hostname_suffix": some([*SUFFIXES, "$names"]),
    "hostname_regex": some(EXPRESSIONS),
    "helo_name": some(NAMES),
    "helo_name_suffix": some([*SUFFIXES, "$names"]),
    "helo_name_regex": some(EXPRESSIONS),
    "sender": some(["u@a.example", "<>", "root", "U@[10.1.2.3]"]),
    "sender_domain": some(SUFFIXES),
    "sender_regex": some(EXPRESSIONS),
    "recipient": some(["u@a.example", "root"]),
    "recipient_domain": some(SUFFIXES),
    "recipient_regex": some(EXPRESSIONS),
    "sasl_username": some(["", "u"]),
    "sasl_username_regex": some(EXPRESSIONS),
    "protocol_state": some(STATES),
}  # fmt: skip


def conditions(minimum: int) -> st.SearchStrategy[dict[str, list[str]]]:
    chosen = st.lists(st.sampled_from(list(CONDITIONS)), min_size=minimum, max_size=3, unique=True)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({name: CONDITIONS[name] for name in names}))


rules = st.lists(
    st.fixed_dictionaries(
        {
            "match": conditions(1),
            "except": conditions(0),
            "action": st.sampled_from(["REJECT", "REJECT 5.7.1 no", "DEFER", "DEFER_IF_PERMIT", "DUNNO", "DUNNO"]),
            "mode": st.sampled_from(["enforce", "enforce", "enforce", "observe"]),
            "expires": st.sampled_from([None, None, None, TODAY, TODAY + datetime.timedelta(1)]),
        }
    ),
    max_size=8,
).map(lambda rule_list: [{"name": f"r{number}", **rule} for number, rule in enumerate(rule_list)])

requests = st.fixed_dictionaries(
    {
        "client_address": st.sampled_from(ADDRESSES),
        "protocol_state": st.sampled_from(STATES),
        "helo_name": st.sampled_from([*NAMES, "A.Example.", ""]),
        "sender": st.sampled_from(MAILBOXES),
        "recipient": st.sampled_from(MAILBOXES),
        "sasl_username": st.sampled_from(["", "u", "U", "other"]),
    }
)

some_names = st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True).map(sorted).map(tuple)
any_names = st.just(()) | some_names
dns = st.one_of(
    st.builds(naive.Dns, st.just("verified"), some_names, any_names),
    st.builds(naive.Dns, st.just("mismatch"), st.just(()), some_names),
    st.just(naive.Dns("missing")),
    st.builds(naive.Dns, st.just("error"), st.just(()), some_names, st.just(value=True)),
    st.builds(naive.Dns, st.just("error"), st.just(()), any_names, st.just(value=False)),
)


def identity_of(known: naive.Dns) -> Identity:
    verified, claimed = (tuple(name.encode() for name in names) for names in (known.verified, known.claimed))
    reason = Reason.TIMEOUT if known.status == "error" else None
    return Identity(Status(known.status), verified, claimed, reason, known.names_known)


def request_of(attributes: dict[str, str]) -> Request:
    return Request.of({name: value.encode() for name, value in attributes.items()})


@settings(max_examples=examples(2000), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rules, st.sampled_from(["DUNNO", "REJECT"]), st.lists(st.tuples(requests, dns), min_size=1, max_size=6))
def test_the_engine_agrees_with_the_plain_evaluation(
    rule_list: list[dict[str, Any]], default: str, cases: list[tuple[dict[str, str], naive.Dns]]
) -> None:
    ruleset = build(rule_list, default, LISTS)
    spelled_out = [
        rule | {part: {c: spell_out(values) for c, values in rule[part].items()} for part in ("match", "except")}
        for rule in rule_list
    ]
    for attributes, known in cases:
        want = naive.decide(spelled_out, default, attributes, known, TODAY)
        request, identity = request_of(attributes), identity_of(known)
        got = decide(ruleset, request, Facts(identity), TODAY)
        assert isinstance(got, Decision)
        assert (got.verb, got.rule_name, got.observed, got.downgraded) == (
            want.verb,
            want.rule,
            want.observed,
            want.downgraded,
        )
        assert (got.identity is not None) == want.dns_needed
        without = decide(ruleset, request, NOTHING_KNOWN, TODAY)
        assert without == (Needs(identity=True) if want.dns_needed else got)
        assert_trace_agrees(got, trace(ruleset, request, Facts(identity), TODAY))


def spell_out(values: list[str]) -> list[str]:
    return [entry for value in values for entry in (LISTS[value[1:]] if value.startswith("$") else [value])]


def assert_trace_agrees(decision: Decision, traces: list[RuleTrace]) -> None:
    observed = tuple(
        traced.rule.name
        for traced in traces
        if traced.rule.observe and traced.outcome in {Outcome.YES, Outcome.IN_DOUBT}
    )
    assert observed == decision.observed
    if decision.rule is not None:
        assert traces[-1].rule is decision.rule
    enforcing = [traced for traced in traces if not traced.rule.observe]
    doubt = any(traced.outcome is Outcome.UNKNOWN for traced in enforcing) or (
        decision.rule is not None and traces[-1].outcome is Outcome.IN_DOUBT
    )
    verb = (decision.rule.action.verb if decision.rule is not None else None) or Verb.REJECT
    if verb is Verb.REJECT and decision.verb is not Verb.DUNNO:
        assert decision.downgraded == doubt


@settings(max_examples=examples(200), deadline=None)
@given(rules, requests, dns)
def test_a_ruleset_passed_to_another_process_decides_the_same(
    rule_list: list[dict[str, Any]], attributes: dict[str, str], known: naive.Dns
) -> None:
    ruleset = build(rule_list, "DUNNO", LISTS)
    buffers: list[pickle.PickleBuffer] = []
    packed = pickle.dumps(ruleset, protocol=5, buffer_callback=buffers.append)
    passed = pickle.loads(packed, buffers=[memoryview(buffer.raw().tobytes()) for buffer in buffers])
    request, identity = request_of(attributes), identity_of(known)
    want = decide(ruleset, request, Facts(identity), TODAY)
    assert decide(passed, request, Facts(identity), TODAY) == want
    assert decide(pickle.loads(pickle.dumps(ruleset, protocol=4)), request, Facts(identity), TODAY) == want


@settings(max_examples=examples(300), deadline=None)
@given(rules, st.dictionaries(st.sampled_from(["client_address", "helo_name", "sender", "recipient", "sasl_username"]),
                              st.binary(max_size=400)), dns)  # fmt: skip
def test_no_bytes_that_a_client_sends_can_make_the_engine_fail(
    rule_list: list[dict[str, Any]], attributes: dict[str, bytes], known: naive.Dns
) -> None:
    request = Request.of({"protocol_state": b"RCPT", **attributes})
    decision = decide(build(rule_list, "DUNNO", LISTS), request, Facts(identity_of(known)), TODAY)
    assert isinstance(decision, Decision)
    text = reply_text(decision, request, None, b"7Q4K2M9X")
    assert len(text) <= 200
    assert text.isascii()


REJECT_ALL = {"name": "all", "match": {"cidr": ["0.0.0.0/0"]}, "action": "REJECT 5.7.1 no"}
CLIENT = {"client_address": "192.0.2.1", "protocol_state": "RCPT"}


def decide_client(rule_list: list[dict[str, Any]], known: naive.Dns) -> Decision:
    decision = decide(build(rule_list), request_of(CLIENT), Facts(identity_of(known)), TODAY)
    assert isinstance(decision, Decision)
    return decision


@pytest.mark.parametrize(
    ("known", "verb"),
    [
        (naive.Dns("verified", ("a.example",)), "DUNNO"),
        (naive.Dns("mismatch", (), ("a.example",)), "REJECT"),
        (naive.Dns("missing"), "REJECT"),
        (naive.Dns("error", (), ("a.example",)), "DEFER"),
        (naive.Dns("error", (), ("b.test",)), "REJECT"),
        (naive.Dns("error", (), (), names_known=False), "DEFER"),
    ],
)
def test_a_claimed_name_never_exempts_and_a_failure_never_rejects(known: naive.Dns, verb: str) -> None:
    above = {"name": "customer", "match": {"hostname": ["a.example"]}, "action": "DUNNO"}
    assert decide_client([above, REJECT_ALL], known).verb == verb
    excepted = REJECT_ALL | {"except": {"hostname": ["a.example"]}}
    assert decide_client([excepted], known).verb == verb


def test_the_code_of_a_downgraded_reject_is_temporary() -> None:
    decision = decide_client(
        [REJECT_ALL | {"match": {"reverse_dns": ["error"]}}], naive.Dns("error", names_known=False)
    )
    assert (decision.verb, decision.code, decision.downgraded) == ("DEFER", "4.7.1", True)


def test_postfixs_verified_name_is_trusted_and_unknown_is_not_a_name() -> None:
    assert identity_from_postfix(Request.of({"client_name": b"A.Example."})) == Identity(
        Status.VERIFIED, (b"a.example",)
    )
    assert identity_from_postfix(Request.of({"client_name": b"unknown"})) is None
    assert identity_from_postfix(Request.of({})) is None


@pytest.mark.parametrize(
    ("action", "want"),
    [
        ("REJECT", ""),
        ("REJECT 5.7.1", "5.7.1 Access denied"),
        ("REJECT no {sender}", "no a?b@example.org"),
        (
            "REJECT 5.7.1 {client_address} {hostname} {reverse_dns} {rule} {id}",
            "5.7.1 192.0.2.1 unknown unknown all ID",
        ),
        ("REJECT {helo_name}", "5.7.1 550 5.1.1 evil"),
        ("DEFER {helo_name}", "4.7.1 550 5.1.1 evil"),
        ("REJECT {recipient} x", "unknown x"),
    ],
)
def test_client_text_in_a_reply_is_harmless(action: str, want: str) -> None:
    attributes = {**CLIENT, "sender": "a\nb@example.org", "helo_name": "550 5.1.1 evil"}
    request = request_of(attributes)
    decision = decide(build([REJECT_ALL | {"action": action}]), request, NOTHING_KNOWN, TODAY)
    assert isinstance(decision, Decision)
    assert reply_text(decision, request, None, b"ID").decode() == want


def test_a_long_text_is_cut() -> None:
    decision = Decision(Verb.REJECT, None, "5.7.1", action_of("REJECT 5.7.1 " + "x" * 300).text)
    assert len(reply_text(decision, Request.of({}), None, b"ID")) == 200
