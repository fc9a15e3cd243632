"""`lists=`: answers of DNS lists, written and read back, in both formats."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.core.dns_lists import NEVER_ASKED, NOT_LISTED, ListAnswer, ListStatus, unknown
from policyd.decision_log.lists import format_answers, parse_answers
from policyd.decision_log.reader import parse
from policyd.decision_log.record import format_text
from policyd.decision_log.writer import _fit_line, json_line, text_line
from tests.decision_log.test_writer import entry

ANSWERS = {
    "zen": ListAnswer(ListStatus.LISTED, ("127.0.0.2", "127.0.0.9")),
    "dnswl": NOT_LISTED,
    "psbl": unknown("timeout"),
    "dqs": NEVER_ASKED,
}

answers = st.dictionaries(
    st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True),
    st.one_of(
        st.just(NOT_LISTED),
        st.builds(unknown, st.sampled_from(["timeout", "servfail", "refused_by_list", "outside_127", "out_of_use"])),
        st.lists(st.integers(1, 9), min_size=1, max_size=3).map(
            lambda codes: ListAnswer(ListStatus.LISTED, tuple(f"127.0.0.{code}" for code in codes))
        ),
    ),
    max_size=5,
)


def test_lists_are_logged_in_both_formats() -> None:
    logged = entry()
    logged = logged._replace(decision=logged.decision._replace(lists=ANSWERS))
    line = text_line(logged)
    assert b" rdns=verified lists=dnswl:-,psbl:?timeout,zen:127.0.0.2+127.0.0.9 state=RCPT " in line
    assert json.loads(json_line(logged))["lists"] == {"dnswl": "-", "psbl": "?timeout", "zen": "127.0.0.2+127.0.0.9"}


def test_lists_that_were_not_asked_are_not_logged() -> None:
    logged = entry()
    logged = logged._replace(decision=logged.decision._replace(lists={"dqs": NEVER_ASKED}))
    assert b"lists=" not in text_line(logged)
    assert "lists" not in json.loads(json_line(logged))


@given(answers)
def test_written_answers_are_read_back(list_answers: dict[str, ListAnswer]) -> None:
    assert parse_answers(format_answers(list_answers)) == list_answers
    logged = entry()
    logged = logged._replace(decision=logged.decision._replace(lists=list_answers))
    for line in (text_line(logged), json_line(logged), text_line(logged._replace(reply=b""))):
        decision = parse(line.rstrip(b"\n"))
        assert decision is not None
        assert parse_answers(decision.lists) == list_answers


@given(answers)
def test_the_fast_and_the_general_way_make_the_same_line(list_answers: dict[str, ListAnswer]) -> None:
    logged = entry()
    logged = logged._replace(decision=logged.decision._replace(lists=list_answers))
    assert text_line(logged) == _fit_line(format_text, logged)


@pytest.mark.parametrize("word", [b"", b":", b"zen", b"zen:", b":-", b"...", b"\xff:-"])
def test_words_of_another_form_are_skipped(word: bytes) -> None:
    read = parse_answers([word, b"zen:-"])
    assert read["zen"] == NOT_LISTED
    assert len(read) <= 2


def test_a_line_with_many_lists_is_bounded_and_read_up_to_its_cut() -> None:
    list_answers = {f"list{number:03d}": NOT_LISTED for number in range(2000)}
    logged = entry()
    logged = logged._replace(decision=logged.decision._replace(lists=list_answers))
    for line in (text_line(logged), json_line(logged)):
        assert len(line) <= 4096
        decision = parse(line.rstrip(b"\n"))
        assert decision is not None
        assert len(parse_answers(decision.lists)) > 10
