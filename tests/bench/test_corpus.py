"""Checks the benchmark's requests: every client must get the answer that `expect=` gives for its request."""

from __future__ import annotations

import datetime
import ipaddress
from typing import TYPE_CHECKING

import pytest
import re2
from hypothesis import given
from hypothesis import strategies as st

from policyd.config.load import load
from policyd.core.engine import Decision, decide
from policyd.core.facts import Facts
from policyd.core.identity import identity_from_postfix
from policyd.core.protocol import RequestParser
from tests.bench import corpus
from tests.bench.bench import EXPRESSIONS, Bench, Scale

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tests.bench.corpus import Client

NUMBERS = st.integers(0, 1_999_999)


@given(NUMBERS, NUMBERS)
def test_a_stranger_is_in_no_listed_network(number: int, stranger: int) -> None:
    network = ipaddress.ip_network(corpus.network(number))
    assert ipaddress.ip_address(corpus.stranger(stranger)) not in network


@given(NUMBERS, NUMBERS)
def test_a_listed_client_is_in_its_network(number: int, client: int) -> None:
    network = corpus.network(number)
    assert ipaddress.ip_address(corpus.inside(network, client)) in ipaddress.ip_network(network)


@given(NUMBERS, NUMBERS)
def test_networks_and_domains_are_all_different(first: int, second: int) -> None:
    assert (corpus.network(first) == corpus.network(second)) == (first == second)
    assert (corpus.domain(first) == corpus.domain(second)) == (first == second)


@given(NUMBERS, NUMBERS)
def test_a_generic_name_fits_its_expression(number: int, client: int) -> None:
    assert re2.search(corpus.expression(number), corpus.fitting_name(number, corpus.stranger(client)))


def with_lists(bench: Bench) -> tuple[str, Iterable[Client]]:
    return bench.rules_with_lists(1000), corpus.clients_of_lists(2000, 1000)


def with_ten_entries(bench: Bench) -> tuple[str, Iterable[Client]]:
    return bench.rules_with_lists(10), corpus.clients_of_lists(2000, 10)


def with_networks(bench: Bench) -> tuple[str, Iterable[Client]]:
    return bench.rules_with_lists(1000, ipv6=False), corpus.clients_of_networks(2000, 1000)


def with_many_rules(bench: Bench) -> tuple[str, Iterable[Client]]:
    return corpus.with_many_rules(bench.shipped, 200), corpus.clients_of_rules(2000, 200)


def with_expressions(bench: Bench) -> tuple[str, Iterable[Client]]:
    rules = corpus.with_generic_names(bench.shipped, "hostname_regex", bench.expressions())
    return rules, corpus.clients_of_expressions(2000, EXPRESSIONS, "DEFER")


def with_suffixes_of_the_same_names(bench: Bench) -> tuple[str, Iterable[Client]]:
    rules = corpus.with_generic_names(bench.shipped, "hostname_suffix", bench.domains(EXPRESSIONS))
    return rules, corpus.clients_of_expressions(2000, EXPRESSIONS, "DEFER")


def without_expressions(bench: Bench) -> tuple[str, Iterable[Client]]:
    return bench.shipped, corpus.clients_of_expressions(2000, EXPRESSIONS, "DUNNO")


def with_strangers(bench: Bench) -> tuple[str, Iterable[Client]]:
    return bench.rules_with_lists(1000), corpus.strangers(2000)


@pytest.mark.parametrize(
    "case",
    [
        with_lists,
        with_ten_entries,
        with_networks,
        with_many_rules,
        with_expressions,
        with_suffixes_of_the_same_names,
        without_expressions,
        with_strangers,
    ],
)
def test_every_client_gets_the_expected_answer(
    case: Callable[[Bench], tuple[str, Iterable[Client]]], tmp_path: Path
) -> None:
    text, clients = case(Bench(Scale(), tmp_path, tools={}))
    rules = tmp_path / "rules.yaml"
    rules.write_text(text)
    ruleset = load(None, str(rules)).ruleset
    blocks = corpus.write_requests(tmp_path / "requests", clients).read_bytes().split(b"\n\n")[:-1]
    assert len(blocks) == 2000
    answers = set()
    for block in blocks:
        expect, _, request = block.partition(b"\n")
        parser = RequestParser()
        parser.receive_data(request + b"\n\n")
        parsed = parser.next_request()
        assert parsed is not None
        decision = decide(ruleset, parsed, Facts(identity_from_postfix(parsed), counters={}), datetime.date(2026, 1, 1))
        assert isinstance(decision, Decision)
        assert expect == b"expect=" + decision.verb.encode(), request
        answers.add(decision.verb)
    assert answers
