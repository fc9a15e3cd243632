"""Self-tests of DNS lists: their questions, the evaluation of answers, and when a list is out of use."""

from __future__ import annotations

import ipaddress
from random import Random
from typing import TYPE_CHECKING

import pytest

from policyd.config.dns_list import Ask
from policyd.core.address import parse_address
from policyd.core.identity import Reason
from policyd.dns.list_health import (
    MAX_RETRY_SECONDS,
    MAX_UNANSWERED,
    PROBE_SECONDS,
    TEST_SECONDS,
    TRIGGER_SECONDS,
    Due,
    ListHealth,
    Purpose,
    SelfTestOutcome,
    SelfTestResult,
    judge_self_test,
    self_test_questions,
)
from tests.dns.lists import dns_list

if TYPE_CHECKING:
    from policyd.config.dns_list import DnsList
    from policyd.dns.identify import AddressesAnswer

PASSED, UNANSWERED, WRONG = SelfTestOutcome


def answer(text: str) -> AddressesAnswer:
    """Returns an answer from its text: addresses, or a reason."""
    if text in set(Reason):
        return Reason(text)
    found = [parse_address(word.encode()) for word in text.split()]
    return tuple(address for address in found if address is not None)


def judge(zone: DnsList, listed: str, not_listed: str = "", *drawn: str) -> SelfTestResult:
    """Returns the result of a self-test with these answers; random entries are not listed by default."""
    questions = self_test_questions(zone, Random(1))
    texts = [listed, not_listed, *drawn, *[""] * 3]
    return judge_self_test(zone, {q: answer(text) for q, text in zip(questions, texts, strict=False)})


# --- Questions --------------------------------------------------------------------------------------------------------


def test_a_list_of_addresses_is_tested_with_two_fixed_and_three_random_addresses() -> None:
    questions = self_test_questions(dns_list(), Random(1))
    assert [q.name for q in questions[:2]] == ["2.0.0.127.zen.test", "1.0.0.127.zen.test"]
    assert [q.purpose for q in questions] == [Purpose.LISTED, Purpose.NOT_LISTED, *[Purpose.RANDOM] * 3]
    networks = ["192.0.2.0/24", "198.51.100.0/24", "240.0.0.0/4"]
    for question, network in zip(questions[2:], networks, strict=True):
        assert ipaddress.ip_address(question.entry) in ipaddress.ip_network(network)
        assert question.name == ".".join(reversed(question.entry.split("."))) + ".zen.test"


def test_random_addresses_differ_each_time() -> None:
    random = Random(1)
    assert self_test_questions(dns_list(), random)[4] != self_test_questions(dns_list(), random)[4]


def test_a_list_of_names_is_tested_with_test_invalid_and_two_labels_under_invalid() -> None:
    questions = self_test_questions(dns_list("dbl", ask=Ask.HELO_NAME, self_test="test"), Random(1))
    assert [q.entry for q in questions[:2]] == ["test", "invalid"]
    assert [q.name for q in questions[:2]] == ["test.dbl.test", "invalid.dbl.test"]
    assert len(questions) == 4
    assert len({q.entry for q in questions}) == 4
    assert all(q.entry.endswith(".invalid") for q in questions[2:])


def test_a_list_of_ipv6_is_tested_with_an_unconverted_mapped_address() -> None:
    questions = self_test_questions(dns_list(self_test="::ffff:127.0.0.2"), Random(1))
    zeros = ".".join("0" * 20)
    assert questions[0].name == f"2.0.0.0.0.0.f.7.f.f.f.f.{zeros}.zen.test"  # RFC 5782 section 5
    assert questions[1].name == f"1.0.0.0.0.0.f.7.f.f.f.f.{zeros}.zen.test"
    assert all(q.name.endswith("8.b.d.0.1.0.0.2.zen.test") for q in questions[2:])


def test_a_list_without_self_test_is_not_tested() -> None:
    assert self_test_questions(dns_list(self_test=""), Random(1)) == ()
    assert ListHealth(is_tested=False).due(1e9) is Due.NOTHING


# --- Results ----------------------------------------------------------------------------------------------------------

L = "127.0.0.2"


@pytest.mark.parametrize(
    ("answers", "outcome", "message"),
    [
        ((L,), PASSED, ""),
        (("127.0.99.0",), PASSED, ""),  # not one of the list's own codes, as with DNSWL
        ((L, "", L, L, ""), PASSED, ""),
        ((L, "", L, L, L), WRONG, "it lists everything"),
        ((L, "", "10.0.0.1", "10.0.0.1", "10.0.0.1"), PASSED, ""),  # unknown is not listed
        (("",), WRONG, "127.0.0.2 must be listed, and is not"),
        (("",), WRONG, "private-address: 127.0.0.0/8"),
        ((L, "127.0.0.2"), WRONG, "127.0.0.1 must not be listed, and is (127.0.0.2)"),
        ((L, "127.255.255.254"), WRONG, "127.0.0.1 must not be listed"),
        (
            ("127.255.255.254",),
            WRONG,
            "127.255.255.254: your resolver is a public one, and this list does not answer those",
        ),
        (("127.255.255.255",), WRONG, "127.255.255.255: too many questions"),
        (("127.0.0.2 127.255.255.250",), WRONG, "127.255.255.250: the key is disabled"),
        (("10.0.0.1",), WRONG, "10.0.0.1: an answer outside 127.0.0.0/8"),
        (("timeout",), UNANSWERED, "127.0.0.2: timeout"),
        (("servfail", "servfail", "servfail", "servfail", "servfail"), UNANSWERED, "127.0.0.2: servfail"),
        ((L, "refused"), UNANSWERED, "127.0.0.1: refused"),
        ((L, "", L, L, "malformed"), UNANSWERED, "malformed"),
        (("timeout", "127.0.0.2"), WRONG, "127.0.0.1 must not be listed"),  # one wrong answer is enough
    ],
)
def test_a_self_test_is_judged_by_its_definite_answers(
    answers: tuple[str, ...], outcome: SelfTestOutcome, message: str
) -> None:
    result = judge(dns_list(), *answers)
    assert result.outcome is outcome
    assert message in result.message


# --- In use and out of use --------------------------------------------------------------------------------------------

PASS = SelfTestResult(PASSED, answered=5)
FAIL = SelfTestResult(WRONG, "why", answered=5)
SILENCE = SelfTestResult(UNANSWERED, "silent", unanswered=5)
HALF = SelfTestResult(UNANSWERED, "half silent", unanswered=2, answered=3)


def run(health: ListHealth, now: float, result: SelfTestResult) -> bool:
    """Runs a self-test that is due and ends at once; returns whether it took the list out of use or brought it back."""
    assert health.due(now) is Due.TEST
    return health.record_test(result, now)


def test_a_list_is_used_until_a_self_test_gets_a_wrong_answer() -> None:
    health = ListHealth(is_tested=True)
    assert health.usable
    assert health.due(0) is Due.TEST
    assert health.due(0) is Due.NOTHING  # one at a time
    assert health.record_test(FAIL, 1)
    assert not health.usable
    assert health.why == "why"


def test_a_list_in_use_is_tested_every_hour() -> None:
    health = ListHealth(is_tested=True)
    assert not run(health, 0, PASS)
    assert health.due(TEST_SECONDS - 1) is Due.NOTHING
    assert health.due(TEST_SECONDS) is Due.TEST


def test_a_list_out_of_use_is_tested_at_growing_intervals_until_it_passes() -> None:
    health = ListHealth(is_tested=True)
    run(health, 0, FAIL)
    now = 0.0
    for wait in (10, 20, 40, 80, 160, MAX_RETRY_SECONDS, MAX_RETRY_SECONDS):
        assert health.due(now + wait - 1) is Due.NOTHING
        now += wait
        assert not run(health, now, FAIL)  # its state does not change
    assert run(health, now + MAX_RETRY_SECONDS, PASS)
    assert health.usable
    assert health.why == ""
    run(health, now + MAX_RETRY_SECONDS + TEST_SECONDS, FAIL)
    assert health.due(now + MAX_RETRY_SECONDS + TEST_SECONDS + 10) is Due.TEST  # the intervals begin again


def test_an_unanswered_self_test_changes_nothing_until_ten_questions_in_a_row_went_unanswered() -> None:
    health = ListHealth(is_tested=True)
    assert not run(health, 0, SILENCE)
    assert health.usable
    assert run(health, 10, SILENCE)
    assert not health.usable


def test_a_partly_answered_self_test_never_takes_a_list_out_of_use() -> None:
    health = ListHealth(is_tested=True)
    now = 0.0
    for wait in (0, 10, 20, 40, 80, 160):
        now += wait
        run(health, now, HALF)
    assert health.usable


def test_ten_unanswered_questions_in_a_row_start_a_self_test() -> None:
    health = ListHealth(is_tested=True)
    run(health, 0, PASS)
    for _ in range(MAX_UNANSWERED - 1):
        assert not health.record_answer(Reason.TIMEOUT, 100, is_suspect=False)
    assert not health.record_answer((), 100, is_suspect=False)  # an answer, so the count begins again
    for _ in range(MAX_UNANSWERED - 1):
        assert not health.record_answer(Reason.SERVFAIL, 100, is_suspect=False)
    assert health.record_answer(Reason.TIMEOUT, 100, is_suspect=False)
    assert run(health, 100, SILENCE)


def test_a_refusal_starts_a_self_test_at_once_and_does_not_itself_take_the_list_out_of_use() -> None:
    health = ListHealth(is_tested=True)
    run(health, 0, PASS)
    assert health.record_answer(answer("127.255.255.254"), 100, is_suspect=True)
    assert health.usable
    run(health, 100, PASS)
    assert not health.record_answer(answer("127.255.255.254"), 101, is_suspect=True)  # too soon for another self-test
    assert health.due(101) is Due.NOTHING
    assert health.due(100 + TRIGGER_SECONDS) is Due.TEST


def test_a_silent_list_out_of_use_is_probed_and_tested_at_its_first_answer() -> None:
    health = ListHealth(is_tested=True)
    run(health, 0, SILENCE)
    run(health, 10, SILENCE)
    assert health.due(10 + PROBE_SECONDS) is Due.PROBE
    health.record_probe(Reason.TIMEOUT, 16)
    assert health.due(17) is Due.NOTHING
    assert health.due(20) is Due.TEST
    health.record_test(SILENCE, 25)
    assert health.due(30) is Due.PROBE
    health.record_probe(answer(L), 30)
    assert run(health, 30, PASS)


def test_a_list_out_of_use_because_of_its_answers_is_not_probed() -> None:
    health = ListHealth(is_tested=True)
    run(health, 0, FAIL)
    assert health.due(9) is Due.NOTHING
