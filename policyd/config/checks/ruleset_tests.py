"""Reads and runs the tests inside a ruleset: requests with the answer that each must get, run at every load.

They ask no DNS, and decide as if the top-level mode were `enforce`. Unless `given` has a date, they also decide as if
no rule had expired. A test that fails is an error: the ruleset does not do what its author expects.
"""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policyd.config.conditions import Form
from policyd.config.dates import parse_date
from policyd.config.entries import fold_entry, fold_owner
from policyd.config.entry_messages import explain_entry
from policyd.config.other_words import meant_given
from policyd.config.problems import Problem, did_you_mean, quoted
from policyd.config.yaml_tree import Mapping, Scalar, Sequence, describe
from policyd.core.address import parse_address
from policyd.core.dns_lists import NOT_LISTED, ListAnswer, ListStatus, unknown
from policyd.core.engine import Decision, Outcome, decide_fully, trace
from policyd.core.facts import Facts, Greylisted
from policyd.core.identity import NO_ADDRESS, Identity, Reason, Status, given_identity, with_claimed
from policyd.core.normalize import fold_name
from policyd.core.owners import NO_OWNER, Owner
from policyd.core.protocol import ATTRIBUTES, REQUEST_TYPE, Request
from policyd.core.reply import reply_text
from policyd.core.ruleset import DEFAULT_RULE, Subject, Verb
from policyd.memory.counting import first_counts

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from policyd.config.problems import Report
    from policyd.config.yaml_tree import Item, Node
    from policyd.core.engine import RuleTrace
    from policyd.core.index import Ruleset

TEST_KEYS = ("given", "expect", "rule", "text", "observed")

# Keys of `given` beside the attributes of a request.
GIVEN_DNS = ("hostname", "claimed", "reverse_dns")
GIVEN_LISTS = ("listed", "listed_unknown")
# Keys of `given` for the owner of the client's address; without them the address has no record, whatever the database
# says.
GIVEN_OWNER = ("asn", "asn_name", "country")
GIVEN_MEMORY = ("counter", "greylist")
GIVEN_KEYS = (*ATTRIBUTES, *GIVEN_DNS, *GIVEN_LISTS, *GIVEN_OWNER, *GIVEN_MEMORY, "date")
_NOT_ATTRIBUTES = frozenset({*GIVEN_DNS, *GIVEN_LISTS, *GIVEN_OWNER, *GIVEN_MEMORY})

# A day on which no rule has expired.
LONG_AGO = datetime.date.min

# The answers of a DNS list under `listed` and `listed_unknown`.
_LISTED = ListAnswer(ListStatus.LISTED, ("127.0.0.2",))
_LIST_UNKNOWN = unknown(Reason.SERVFAIL)

# The value of {id} in a test.
TEST_ID = b"00000000"


@dataclass(frozen=True, slots=True)
class RulesetTest:
    """One test. `rule`, `text` and `observed` are None if the test does not check them."""

    number: int  # from 1
    line: int
    column: int
    request: Request
    facts: Facts
    today: datetime.date
    expect: Verb
    rule: str | None
    text: str | None
    observed: frozenset[str] | None


def read_tests(
    node: Node,
    path: str,
    report: Report,
    *,
    rules: AbstractSet[str],
    dns_lists: AbstractSet[str] = frozenset(),
    counters: AbstractSet[str] = frozenset(),
) -> list[RulesetTest]:
    """Returns the well-formed tests; reports the problems of others.

    `rules`, `dns_lists` and `counters` are the existing names.
    """
    if not isinstance(node, Sequence):
        message = f"tests: expected a list of tests (given, expect), not {describe(node)}"
        report.add(Problem(path, node.line, node.column, message))
        return []
    tests = []
    for number, item in enumerate(node.items, 1):
        test = _Reader(number, path, report, rules=rules, dns_lists=dns_lists, counters=counters).read(item)
        if test is not None:
            tests.append(test)
    return tests


class _Reader:
    """Reads one test."""

    def __init__(
        self,
        number: int,
        path: str,
        report: Report,
        *,
        rules: AbstractSet[str],
        dns_lists: AbstractSet[str],
        counters: AbstractSet[str],
    ) -> None:
        self._number = number
        self._path = path
        self._rules = rules
        self._dns_lists = dns_lists
        self._counters = counters
        self._report = report
        self._wrong = False

    def read(self, node: Node) -> RulesetTest | None:
        if not isinstance(node, Mapping):
            self._add(node, f"expected a test (given, expect), not {describe(node)}")
            return None
        for item in node:
            if item.key.text not in TEST_KEYS:
                self._unknown_key(item, TEST_KEYS)
        given = node.get("given")
        attributes: dict[str, bytes] = {}
        facts, today = Facts(Identity(Status.MISSING), owner=NO_OWNER), LONG_AGO
        if isinstance(given, Mapping):
            attributes, facts, today = self._read_given(given)
        elif given is None:
            self._add(node, "'given' is missing")
        else:
            self._add(given, f"given: expected attributes (key: value), not {describe(given)}")
        expect = self._read_expect(node)
        rule = self._read_rule(node)
        text = self._text(node.items["text"]) if "text" in node.items else None
        observed = None
        if "observed" in node.items:
            observed = frozenset(self._rule_name(value) for value in self._texts(node.items["observed"]))
        if self._wrong or expect is None:
            return None
        return RulesetTest(
            self._number,
            node.line,
            node.column,
            Request.of(attributes),
            facts,
            today,
            expect,
            rule,
            text,
            observed,
        )

    def _add(self, node: Node, message: str) -> None:
        self._wrong = True
        self._report.add(Problem(self._path, node.line, node.column, f"test {self._number}: {message}"))

    def _unknown_key(self, item: Item, known: tuple[str, ...]) -> None:
        key = item.key.text
        hint = (meant_given(key) if known is GIVEN_KEYS else "") or did_you_mean(key, known)
        if known is TEST_KEYS and not hint:
            hint = "; it belongs under given" if key in GIVEN_KEYS else f"; there are {', '.join(known)}"
        self._add(item.key, f"unknown key {quoted(key)}{hint}")

    def _text(self, item: Item) -> str:
        if isinstance(item.value, Scalar) and not item.value.missing:
            return item.value.text
        self._add(item.value, f"{item.key.text}: expected text, not {describe(item.value)}")
        return ""

    def _texts(self, item: Item) -> list[Scalar]:
        """One value or several."""
        nodes = item.value.items if isinstance(item.value, Sequence) else [item.value]
        texts = []
        for node in nodes:
            if isinstance(node, Scalar) and not node.missing:
                texts.append(node)
            else:
                self._add(node, f"{item.key.text}: expected text, not {describe(node)}")
        return texts

    def _rule_name(self, node: Scalar) -> str:
        if node.text not in self._rules:
            hint = did_you_mean(node.text, sorted(self._rules)) if self._report.room(self._path) else ""
            self._add(node, f"there is no rule {quoted(node.text)}{hint}")
        return node.text

    def _read_expect(self, node: Mapping) -> Verb | None:
        item = node.items.get("expect")
        if item is None:
            self._add(node, "'expect' is missing")
            return None
        word = self._text(item).upper()
        if word in Verb.__members__:
            return Verb[word]
        if word:
            hint = did_you_mean(word, Verb) or f"; it is one of {', '.join(Verb)}"
            self._add(item.value, f"expect: unknown action {quoted(word)}{hint}")
        return None

    def _read_rule(self, node: Mapping) -> str | None:
        item = node.items.get("rule")
        if item is None:
            return None
        name = self._text(item)
        if name == DEFAULT_RULE:
            return name
        return self._rule_name(item.value) if isinstance(item.value, Scalar) and name else None

    def _read_given(self, given: Mapping) -> tuple[dict[str, bytes], Facts, datetime.date]:
        attributes = {"request": REQUEST_TYPE, "protocol_state": b"RCPT"}
        today = LONG_AGO
        for item in given:
            key = item.key.text
            if key not in GIVEN_KEYS:
                self._unknown_key(item, GIVEN_KEYS)
            elif key == "date":
                today = self._read_date(item)
            elif key not in _NOT_ATTRIBUTES:
                text = self._text(item)
                attributes[key] = b"" if key == "sender" and text == "<>" else text.encode()
        facts = Facts(
            self._read_identity(given, attributes),
            self._read_lists(given),
            self._read_owner(given),
            self._read_counters(given),
            self._read_greylist(given),
        )
        return attributes, facts, today

    def _read_counters(self, given: Mapping) -> dict[str, int]:
        """Reads the values of counters; the value of any other counter is 1 for a request that it counts."""
        item = given.items.get("counter")
        if item is None:
            return {}
        if not isinstance(item.value, Mapping):
            self._add(item.value, f"counter: expected names with their values, not {describe(item.value)}")
            return {}
        values: dict[str, int] = {}
        for pair in item.value:
            name, text = pair.key.text, self._text(pair)
            if name not in self._counters:
                hint = did_you_mean(name, sorted(self._counters)) or "; define it under counters"
                self._add(pair.key, f"counter: counter {quoted(name)} is not defined{hint}")
            elif not text.isascii() or not text.isdigit():
                self._add(pair.value, f"counter: {quoted(text)} is not a number")
            else:
                values[name] = int(text[:12])
        return values

    def _read_greylist(self, given: Mapping) -> Greylisted:
        """Reads the result of greylisting; a client is new unless the test says otherwise."""
        item = given.items.get("greylist")
        if item is None:
            return Greylisted.NEW
        word = self._text(item)
        if word in set(Greylisted):
            return Greylisted(word)
        if word:
            hint = did_you_mean(word, Greylisted) or f"; it is one of {', '.join(Greylisted)}"
            self._add(item.value, f"greylist: unknown word {quoted(word)}{hint}")
        return Greylisted.NEW

    def _read_lists(self, given: Mapping) -> dict[str, ListAnswer]:
        """Reads the answers of DNS lists; a list that is not named answers *not listed*."""
        answers = dict.fromkeys(self._dns_lists, NOT_LISTED)
        answered: set[str] = set()
        for key, answer in (("listed", _LISTED), ("listed_unknown", _LIST_UNKNOWN)):
            item = given.items.get(key)
            if item is None:
                continue
            for node in self._texts(item):
                if node.text not in self._dns_lists:
                    hint = did_you_mean(node.text, sorted(self._dns_lists))
                    self._add(node, f"{key}: DNS list {quoted(node.text)} is not defined{hint}")
                elif node.text in answered:
                    self._add(node, f"{key}: {quoted(node.text)} has more than one answer")
                answered.add(node.text)
                answers[node.text] = answer
        return answers

    def _read_owner(self, given: Mapping) -> Owner:
        """Reads the owner that the databases would have found."""
        values = {key: self._text(given.items[key]) if key in given.items else "" for key in GIVEN_OWNER}
        for key, form in (("asn", Form.ASN), ("country", Form.COUNTRY)):
            if values[key]:
                folded = fold_owner(form, values[key])
                if folded is None:
                    self._add(given.items[key].value, f"{key}: {explain_entry(form, values[key].encode())}")
                values[key] = "" if folded is None else folded.decode()
        if values["asn_name"] and not values["asn"]:
            self._add(
                given.items["asn_name"].value, "asn_name: the name of a system needs its number; give asn as well"
            )
        return Owner(int(values["asn"] or 0), values["asn_name"], values["country"])

    def _read_date(self, item: Item) -> datetime.date:
        text = self._text(item)
        date = parse_date(text)
        if date is None and text:
            self._add(item.value, f"date: {quoted(text)} is not a date; write it as 2027-03-31")
        return date or LONG_AGO

    def _read_identity(self, given: Mapping, attributes: dict[str, bytes]) -> Identity:
        """Reads the identity that DNS would have given."""
        verified = self._read_names(given, "hostname")
        claimed = self._read_names(given, "claimed")
        status = Status.VERIFIED if verified else Status.MISMATCH if claimed else Status.MISSING
        item = given.items.get("reverse_dns")
        if item is None:
            address = attributes.get("client_address", b"")
            if status is Status.MISSING and address and parse_address(address) is None:
                return NO_ADDRESS
            return given_identity(status, verified=verified, claimed=claimed)
        word = self._text(item)
        if word not in set(Status):
            hint = did_you_mean(word, Status) or f"; it is one of {', '.join(Status)}"
            self._add(item.value, f"reverse_dns: unknown status {quoted(word)}{hint}")
            return given_identity(status, verified=verified, claimed=claimed)
        given_status = Status(word)
        if verified and given_status is not Status.VERIFIED:
            self._add(item.value, f"reverse_dns: a client with a verified hostname is verified, not {word}")
        elif claimed and given_status is Status.MISSING:
            self._add(item.value, "reverse_dns: a client that claims a name does not have the status missing")
        identity = given_identity(given_status, verified=verified, claimed=claimed)
        return with_claimed(identity, attributes.get("reverse_client_name", b""))

    def _read_names(self, given: Mapping, key: str) -> tuple[bytes, ...]:
        item = given.items.get(key)
        if item is None:
            return ()
        names: set[bytes] = set()
        for node in self._texts(item):
            folded = fold_entry(Form.HOST_NAME, node.text.encode())
            if folded:
                names.update(folded)
            elif key == "hostname":
                self._add(node, f"hostname: {explain_entry(Form.HOST_NAME, node.text.encode())}")
            else:
                names.add(fold_name(node.text.encode()))  # a PTR record can hold anything
        return tuple(sorted(names))


# --- Running them -----------------------------------------------------------------------------------------------------


def run_tests(tests: list[RulesetTest], ruleset: Ruleset, path: str, report: Report) -> None:
    """Reports each test that fails, with the decision it got and why."""
    enforced = dataclasses.replace(ruleset, observe=False)
    for test in tests:
        facts = test.facts
        if ruleset.counters:
            facts = facts._replace(
                counters={**first_counts(enforced, test.request, facts.owner), **(facts.counters or {})}
            )
        decision = decide_fully(enforced, test.request, facts, test.today)
        complaint = _complaint(test, decision)
        if complaint and report.room(path):
            traces = trace(enforced, test.request, facts, test.today)
            message = f"test {test.number} fails: {complaint}; {_why(test, decision, traces, ruleset)}"
            report.add(Problem(path, test.line, test.column, message))
        elif complaint:  # will not be shown, so the reason, which is slow to find, is not needed
            report.count_more(path, 1)


def _complaint(test: RulesetTest, decision: Decision) -> str:
    """Describes the first difference from what is expected; empty if there is none."""
    wrong_rule = test.rule is not None and test.rule != decision.rule_name
    if test.expect is not decision.word or wrong_rule:
        wanted = f"{test.expect}{_by(test.rule)}" if wrong_rule else str(test.expect)
        return f"expected {wanted}, got {decision.word}{_by(decision.rule_name)}"
    if test.text is not None:
        reply = reply_text(decision, test.request, test.facts.identity, TEST_ID).decode("ascii")
        if test.text not in reply:
            return f"expected a reply with {quoted(test.text)} in it, got {quoted(reply, 200)}"
    if test.observed is not None and test.observed != set(decision.observed):
        return f"expected observed {_names(test.observed)}, got {_names(decision.observed)}"
    return ""


def _by(rule: str | None) -> str:
    if rule is None:
        return ""
    return " by default" if rule == DEFAULT_RULE else f" by rule '{rule}'"


def _names(names: AbstractSet[str] | tuple[str, ...]) -> str:
    return ", ".join(sorted(names)) or "none"


def _why(test: RulesetTest, decision: Decision, traces: list[RuleTrace], ruleset: Ruleset) -> str:
    """Explains the decision: the rule that matched, and why the expected rule did not decide."""
    reasons = []
    wanted = next((each for each in traces if each.rule.name == test.rule), None)
    if test.rule not in {None, DEFAULT_RULE, decision.rule_name}:
        if wanted is not None:
            reasons.append(f"rule '{test.rule}' {_why_not(wanted, test.facts)}")
        else:
            line = next(rule.line for rule in ruleset.rules if rule.name == test.rule)
            reasons.append(f"rule '{test.rule}' is below it, at line {line}")
    if decision.rule is None:
        reasons.append("no rule matched")
        if test.rule is None and test.expect is not decision.word:
            reasons += [
                f"rule '{each.rule.name}' {_why_not(each, test.facts)}"
                for each in traces
                if each.rule.action.verb is test.expect and not each.rule.observe
            ][:3]
    else:
        deciding = traces[-1]
        held = [condition.name for condition, outcome in deciding.match if outcome is Outcome.YES]
        reasons.append(f"rule '{decision.rule.name}' (line {decision.rule.line}) matched: {', '.join(held)}")
    if decision.downgraded:
        reasons.append(f"a REJECT became a DEFER because {_failure(test.facts)}")
    return "; ".join(reasons)


def _why_not(rule_trace: RuleTrace, facts: Facts) -> str:
    """Explains why a rule did not decide."""
    if rule_trace.expired:
        return "has expired"
    if rule_trace.rule.observe and rule_trace.outcome is not Outcome.NO:
        return "only observes"
    failed = [condition for condition, outcome in rule_trace.match if outcome is Outcome.NO]
    if failed:
        exempts = rule_trace.rule.action.verb is Verb.DUNNO
        has_claimed = facts.identity is not None and bool(facts.identity.claimed)
        only_claimed = exempts and has_claimed and any(condition.subject == Subject.HOSTNAME for condition in failed)
        reason = " (a claimed name never exempts)" if only_claimed else ""
        return f"did not match: {', '.join(condition.name for condition in failed)} did not hold{reason}"
    excepted = [condition.name for condition, outcome in rule_trace.exceptions if outcome is Outcome.YES]
    if excepted:
        return f"was excepted: {', '.join(excepted)} held"
    return f"could not be decided, because {_failure(facts)}"


def _failure(facts: Facts) -> str:
    """Names the DNS answers that the test declares as failed."""
    silent = [name for name, answer in facts.lists.items() if answer.status is ListStatus.UNKNOWN]
    failed = facts.identity is not None and facts.identity.status is Status.ERROR
    what = ["reverse DNS has the status error"] if failed else []
    return " and ".join([*what, *(f"DNS list {quoted(name)} is unknown" for name in silent)])
