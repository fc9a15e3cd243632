"""The self-test of a DNS list (RFC 5782 section 5), and whether the list is in use.

Pure: time and randomness are passed in, and the caller asks the questions. A list is in use until a self-test gets a
wrong answer, or gets no answer when MAX_UNANSWERED questions in a row have had none. Only a self-test takes a list out
of use and brings it back (docs/dns-lists.md, "Self-test" and "Out of use").
"""

from __future__ import annotations

from enum import Enum
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from policyd.core.address import format_address
from policyd.core.dns_lists import ListStatus
from policyd.core.identity import Reason
from policyd.dns.list_answers import explain_refusal, is_refusal, read_list_answer
from policyd.dns.list_names import reversed_address

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from policyd.config.dns_list import DnsList
    from policyd.core.address import Address
    from policyd.dns.identify import AddressesAnswer

# Seconds between two self-tests of a list that is in use.
TEST_SECONDS = 3600.0

# Seconds before the first repeated self-test of a list that is out of use, or whose self-test was not completely
# answered; doubled each time, up to MAX_RETRY_SECONDS.
RETRY_SECONDS = 10.0
MAX_RETRY_SECONDS = 300.0

# Seconds between two questions for the test entry of a list that was taken out of use because it was silent: the first
# answer starts a self-test, so a list that answers again is soon back in use.
PROBE_SECONDS = 5.0

# Questions in a row without an answer after which an unanswered self-test takes a list out of use.
MAX_UNANSWERED = 10

# Minimum seconds between self-tests that answers for requests start: a list that refuses sometimes, but passes its
# self-test, must not be tested with every mail.
TRIGGER_SECONDS = 5.0

# Documentation networks (RFC 5737, RFC 3849) and reserved space (RFC 1112): no list has a reason to list all of it.
_RANDOM_V4 = ((192 << 24 | 2 << 8, 8), (198 << 24 | 51 << 16 | 100 << 8, 8), (240 << 24, 28))
_RANDOM_V6 = 0x20010DB8 << 96

# Letters of the random labels in the self-test of a list of names, and their number in a label: 26 ** 12 labels.
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_LABEL_LENGTH = 12


class Purpose(Enum):
    """The expected answer to a question of a self-test."""

    LISTED = "listed"
    NOT_LISTED = "not listed"
    RANDOM = "not all of these listed"


class SelfTestQuestion(NamedTuple):
    """One question of a self-test: the name to ask for, and the entry as a message shows it."""

    name: str
    entry: str
    purpose: Purpose


def self_test_questions(dns_list: DnsList, random: Random) -> tuple[SelfTestQuestion, ...]:
    """Returns the questions of one self-test, the one for the test entry first; none for a list that is not tested."""
    if not dns_list.self_test:
        return ()
    if not dns_list.takes_addresses:
        labels = ["".join(random.choices(_LETTERS, k=_LABEL_LENGTH)) for _ in range(2)]
        entries = [(dns_list.self_test, Purpose.LISTED), ("invalid", Purpose.NOT_LISTED)]
        entries += [(f"{label}.invalid", Purpose.RANDOM) for label in labels]
        return tuple(SelfTestQuestion(f"{entry}.{dns_list.zone}", entry, purpose) for entry, purpose in entries)
    must, must_not, drawn = _test_addresses(dns_list.self_test, random)
    addresses = [(must, Purpose.LISTED), (must_not, Purpose.NOT_LISTED)]
    addresses += [(address, Purpose.RANDOM) for address in drawn]
    return tuple(
        SelfTestQuestion(f"{reversed_address(*address)}.{dns_list.zone}", format_address(address), purpose)
        for address, purpose in addresses
    )


def _test_addresses(entry: str, random: Random) -> tuple[Address, Address, list[Address]]:
    """Returns the address that must be listed, the address that must not be listed, and three addresses that must not
    all be listed.

    An IPv6 entry makes it a test of IPv6: `::ffff:127.0.0.2` is looked up as an IPv6 address, not as 127.0.0.2.
    """
    if ":" not in entry:
        drawn = [(4, start | random.getrandbits(bits)) for start, bits in _RANDOM_V4]
        return (4, int(ip_address(entry))), (4, 127 << 24 | 1), drawn
    drawn = [(6, _RANDOM_V6 | random.getrandbits(96)) for _ in range(3)]
    return (6, int(ip_address(entry))), (6, 0xFFFF << 32 | 127 << 24 | 1), drawn


class SelfTestOutcome(Enum):
    """The result of a self-test."""

    PASSED = "passed"  # every question has a right answer
    UNANSWERED = "unanswered"  # no answer is wrong, but not every question has an answer
    WRONG = "wrong"  # a definite answer is wrong


class SelfTestResult(NamedTuple):
    """The outcome of one self-test. `message` says why it did not pass and what to do, without the list's name."""

    outcome: SelfTestOutcome
    message: str = ""
    unanswered: int = 0  # questions
    answered: int = 0


def judge_self_test(dns_list: DnsList, answers: Mapping[SelfTestQuestion, AddressesAnswer]) -> SelfTestResult:
    """Judges the answers of one self-test."""
    for question, answer in answers.items():
        if not isinstance(answer, Reason) and (wrong := _why_wrong(dns_list, question, answer)):
            return SelfTestResult(SelfTestOutcome.WRONG, wrong, answered=len(answers))
    drawn = {q.entry: answer for q, answer in answers.items() if q.purpose is Purpose.RANDOM}
    if all(read_list_answer(dns_list, answer).status is ListStatus.LISTED for answer in drawn.values()):
        message = f"it lists everything: {', '.join(drawn)} are listed; the zone was abandoned or is broken"
        return SelfTestResult(SelfTestOutcome.WRONG, message, answered=len(answers))
    silent = [(question, answer) for question, answer in answers.items() if isinstance(answer, Reason)]
    if silent:
        question, reason = silent[0]
        message = f"{question.entry}: {reason}: no answer; look at the resolver, and at the list's own page"
        return SelfTestResult(SelfTestOutcome.UNANSWERED, message, len(silent), len(answers) - len(silent))
    return SelfTestResult(SelfTestOutcome.PASSED, answered=len(answers))


def _why_wrong(dns_list: DnsList, question: SelfTestQuestion, answer: tuple[Address, ...]) -> str:
    """Returns why a definite answer is wrong; empty if it is right."""
    shown = "+".join(format_address(address) for address in sorted(answer)[:4])
    if question.purpose is Purpose.LISTED:
        if not answer:
            return (
                f"{question.entry} must be listed, and is not: the zone is misspelled, was closed, or has another test "
                "entry (`self_test`); or the resolver drops such answers (unbound: private-address: 127.0.0.0/8)"
            )
        if is_refusal(dns_list, answer):
            return next(
                f"{format_address(address)}: {explain_refusal(format_address(address))}"
                for address in sorted(answer)
                if is_refusal(dns_list, (address,))
            )
        if not any(version == 4 and number >> 24 == 127 for version, number in answer):
            return f"{shown}: {explain_refusal(shown)}"
    elif question.purpose is Purpose.NOT_LISTED and answer:
        return f"{question.entry} must not be listed, and is ({shown}); the zone was abandoned or is broken"
    return ""


# --- Health -----------------------------------------------------------------------------------------------------------


class Due(Enum):
    """The question that is due now."""

    NOTHING = "nothing"
    PROBE = "probe"  # only the test entry
    TEST = "test"  # a self-test


class ListHealth:
    """Whether one list is in use, and when it is tested next. Times are seconds of a monotonic clock."""

    def __init__(self, *, is_tested: bool) -> None:
        self.usable = True
        self.why = ""  # why it is out of use
        self.last_test: SelfTestOutcome | None = None
        self.tested_at: float | None = None  # the end of the last self-test
        self._is_tested = is_tested
        self._next_test = 0.0
        self._next_probe = 0.0
        self._silent = False  # the last self-test had questions without an answer, and no wrong answer
        self._retry = RETRY_SECONDS
        self._unanswered = 0  # questions in a row
        self._under_way = False

    def due(self, now: float) -> Due:
        """Returns the question to ask now. The caller asks it, then calls `record_test` or `record_probe`."""
        if not self._is_tested or self._under_way:
            return Due.NOTHING
        if now >= self._next_test:
            self._under_way = True
            return Due.TEST
        if self._silent and not self.usable and now >= self._next_probe:
            self._under_way = True
            return Due.PROBE
        return Due.NOTHING

    def record_answer(self, answer: AddressesAnswer, now: float, *, is_suspect: bool) -> bool:
        """Takes the answer to a request's question; returns whether a self-test is now due.

        `is_suspect` means that the answer has a refusal, or an address outside 127.0.0.0/8.
        """
        if isinstance(answer, Reason):
            self._unanswered += 1
            is_suspect = self._unanswered >= MAX_UNANSWERED
        else:
            self._unanswered = 0
        if not is_suspect or not self.usable or not self._is_tested or self._under_way:
            return False
        after = 0.0 if self.tested_at is None else self.tested_at + TRIGGER_SECONDS
        self._next_test = min(self._next_test, max(now, after))
        return self._next_test <= now

    def record_probe(self, answer: AddressesAnswer, now: float) -> None:
        """Takes the answer to a probe."""
        self._under_way = False
        self._next_probe = now + PROBE_SECONDS
        if not isinstance(answer, Reason):
            self._next_test = now

    def record_test(self, result: SelfTestResult, now: float) -> bool:
        """Takes the result of a self-test; returns whether it took the list out of use or brought it back."""
        self._under_way = False
        self.last_test, self.tested_at = result.outcome, now
        was_usable = self.usable
        self._unanswered = result.unanswered if result.answered else self._unanswered + result.unanswered
        match result.outcome:
            case SelfTestOutcome.PASSED:
                self.usable, self.why, self._silent = True, "", False
                self._retry = RETRY_SECONDS
                self._next_test = now + TEST_SECONDS
                return not was_usable
            case SelfTestOutcome.WRONG:
                self.usable, self._silent = False, False
            case SelfTestOutcome.UNANSWERED:
                self._silent = True
                if self._unanswered >= MAX_UNANSWERED:
                    self.usable = False
        if not self.usable:
            self.why = result.message
        if was_usable and not self.usable:
            self._retry = RETRY_SECONDS
        self._next_test = now + self._retry
        self._next_probe = now + PROBE_SECONDS
        self._retry = min(2 * self._retry, MAX_RETRY_SECONDS)
        return was_usable and not self.usable
