"""The table of conditions: its rows, and the validity of its examples."""

from __future__ import annotations

import pytest

from policyd.config.conditions import CONDITIONS, KNOWN_VALUES, ConditionType
from policyd.config.entries import parse_entries
from policyd.core.protocol import ATTRIBUTES
from policyd.core.ruleset import Kind, Subject

# Conditions of the reference (docs/ruleset.md) with names of their own, each with its subject and kind.
NAMED = {
    "cidr": ("client_address", Kind.NETWORK),
    "reverse_dns": ("reverse_dns", Kind.STATUS),
    "listed": ("listed", Kind.LISTED),
    "counter": ("counter", Kind.COUNTER),
    "hostname": ("hostname", Kind.NAME),
    "hostname_suffix": ("hostname", Kind.DOMAIN),
    "hostname_regex": ("hostname", Kind.EXPRESSION),
    "helo_name": ("helo_name", Kind.NAME),
    "helo_name_suffix": ("helo_name", Kind.DOMAIN),
    "helo_name_regex": ("helo_name", Kind.EXPRESSION),
    "sender": ("sender", Kind.VALUE),
    "sender_regex": ("sender", Kind.EXPRESSION),
    "sender_domain": ("sender", Kind.DOMAIN),
    "recipient": ("recipient", Kind.VALUE),
    "recipient_domain": ("recipient", Kind.DOMAIN),
    "recipient_regex": ("recipient", Kind.EXPRESSION),
    "asn": ("asn", Kind.VALUE),
    "asn_name_regex": ("asn_name", Kind.EXPRESSION),
    "country": ("country", Kind.VALUE),
    "hostname_generic": ("hostname", Kind.GENERIC),
}


def test_each_attribute_without_a_named_condition_has_two() -> None:
    others = {name: (name, Kind.VALUE) for name in ATTRIBUTES if name not in NAMED}
    expressions = {f"{name}_regex": (name, Kind.EXPRESSION) for name in others}
    assert {
        name: (condition.subject, condition.kind) for name, condition in CONDITIONS.items()
    } == NAMED | others | expressions


def test_each_attribute_and_each_other_subject_has_a_condition() -> None:
    assert {condition.subject for condition in CONDITIONS.values()} == {*ATTRIBUTES, *Subject}


@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)
def test_each_condition_is_described_and_has_valid_examples(condition: ConditionType) -> None:
    assert condition.summary.endswith(".")
    assert parse_entries(condition.form, [example.encode() for example in condition.examples])[1] == []


def test_known_values_belong_to_conditions() -> None:
    assert set(KNOWN_VALUES) <= set(CONDITIONS)
