from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd.exchange.importing import ImportOptions
from tests.examples import examples
from tests.exchange.answers import (
    ACTIONS,
    Mail,
    address_keys,
    answer,
    as_answer,
    client_keys,
    dotted_keys,
    first_value,
    import_text,
    mail_keys,
    name_keys,
    postmap,
    rules_of,
)
from tests.requirements import require

NAMES = ["example", "b.example", "mail.b.example", "x.mail.b.example", "c.example", "unknown"]
OCTETS = ["192", "192.0.2", "192.0.2.7", "192.0", "10", "2001:db8", "2001:db8:1", "2001:db8:1::5"]
MAIL = ["a@b.example", "a@", "b.example", "mail.b.example", "example", "<>", "z@mail.b.example", "z@"]

CLIENTS = [
    Mail(address, name)
    for address in ["192.0.2.7", "192.0.2.8", "192.0.3.1", "192.9.9.9", "10.1.1.1", "2001:db8:1::5", "2001:db8:1::6"]
    for name in ["x.mail.b.example", "y.b.example", "b.example", "c.example", "other.invalid", "unknown"]
]
SENDERS = [
    Mail(sender=address)
    for address in ["a@b.example", "z@b.example", "z@mail.b.example", "a@deep.mail.b.example", "a@other.invalid", "<>"]
]


def table_of(entries: dict[str, str]) -> str:
    return "".join(f"{key}\t{action}\n" for key, action in entries.items())


def tables(keys: list[str]) -> st.SearchStrategy[dict[str, str]]:
    return st.dictionaries(st.sampled_from(keys), st.sampled_from(ACTIONS), min_size=1, max_size=7)


@settings(max_examples=examples(100), deadline=None)
@given(tables(NAMES + OCTETS))
def test_clients_get_the_answers_of_postfix(entries: dict[str, str]) -> None:
    require("postmap")
    table = table_of(entries)
    rules = rules_of("postfix-access", table)
    found = postmap("texthash", table, [key for mail in CLIENTS for key in client_keys(mail)])
    for mail in CLIENTS:
        assert answer(rules, mail) == as_answer(first_value(found, client_keys(mail))), (table, mail)


@settings(max_examples=examples(100), deadline=None)
@given(tables(MAIL))
def test_senders_get_the_answers_of_postfix(entries: dict[str, str]) -> None:
    require("postmap")
    table = table_of(entries)
    rules = rules_of("postfix-access", table, attribute="sender")
    found = postmap("texthash", table, [key for mail in SENDERS for key in mail_keys(mail.sender)])
    for mail in SENDERS:
        assert answer(rules, mail) == as_answer(first_value(found, mail_keys(mail.sender))), (table, mail)


@settings(max_examples=examples(50), deadline=None)
@given(tables(NAMES[:-1]))
def test_helo_names_get_the_answers_of_postfix(entries: dict[str, str]) -> None:
    require("postmap")
    table = table_of(entries)
    rules = rules_of("postfix-access", table, attribute="helo_name")
    helos = ["x.mail.b.example", "b.example", "y.b.example", "other.invalid"]
    found = postmap("texthash", table, [key for helo in helos for key in name_keys(helo)])
    for helo in helos:
        assert answer(rules, Mail(helo=helo)) == as_answer(first_value(found, name_keys(helo))), (table, helo)


@settings(max_examples=examples(50), deadline=None)
@given(tables([*NAMES[:-1], *(f".{name}" for name in NAMES[:-1])]))
def test_with_dotted_keys_names_get_the_answers_of_postfix(entries: dict[str, str]) -> None:
    require("postmap")
    table = table_of(entries)
    rules = rules_of("postfix-access", table, dotted=True)
    names = ["x.mail.b.example", "mail.b.example", "b.example", "y.b.example", "c.example", "other.invalid"]
    found = postmap("texthash", table, [key for name in names for key in dotted_keys(name)])
    for name in names:
        assert answer(rules, Mail(name=name)) == as_answer(first_value(found, dotted_keys(name))), (table, name)


def test_the_most_specific_key_decides_wherever_it_is_in_the_table() -> None:
    table = "192.0.2 REJECT wide\n192.0.2.7 OK\nexample REJECT\ngood.example OK\n"
    rules = rules_of("postfix-access", table)
    assert answer(rules, Mail("192.0.2.7")) == "DUNNO"
    assert answer(rules, Mail("192.0.2.8")) == "REJECT wide"
    assert answer(rules, Mail(name="mx.good.example")) == "DUNNO"
    assert answer(rules, Mail(name="bad.example")) == "REJECT"


def test_nested_keys_of_two_verdicts_become_two_rules() -> None:
    table = "".join(f"192.0.{octet} REJECT\n192.0.{octet}.1 OK\n" for octet in range(50))
    result = import_text("postfix-access", table)
    assert [(rule.verdict.action, rule.count) for rule in result.rules] == [("DUNNO", 50), ("REJECT", 50)]


@pytest.mark.parametrize(
    ("line", "options", "reason"),
    [
        ("10.0.0.0/8 REJECT", {}, "use a cidr: table"),
        ("192.0.2.256 REJECT", {}, "neither an address nor a prefix of an address"),
        ("192.00.2 REJECT", {}, "neither an address nor a prefix of an address"),
        ("exa$mple.com REJECT", {}, "is not a host name"),
        ("192.0.2.1", {}, "there is no action"),
        ("a@b.example REJECT", {"attribute": "client"}, "never uses a mail address"),
        ("198.51.100.2 REJECT again", {}, "the same key as in line 1"),
        ("@b.example REJECT", {"attribute": "sender"}, "no local part"),
        ("192.0.2.1 REJECT", {"attribute": "sender"}, "supported only in a table for clients"),
        ('"half quoted REJECT', {}, "begins with a quote"),
    ],
)
def test_an_unsupported_line_is_reported(line: str, options: dict[str, Any], reason: str) -> None:
    table = f"198.51.100.2 REJECT\n{line}\n" if not options else f"known.example REJECT\n{line}\n"
    result = import_text("postfix-access", table, ImportOptions(**options))
    assert [(loss.line.number, loss.line.text) for loss in result.report.losses] == [(2, line)]
    assert reason in result.report.losses[0].reason
    assert len(result.rules) == 1


def test_a_lost_line_leaves_no_note() -> None:
    result = import_text("postfix-access", "192.0.2.0/24 OK\n192.0.2.1 REJECT\n")
    assert [loss.line.number for loss in result.report.losses] == [1]
    assert not any("became DUNNO" in note.reason for note in result.report.notes)


def test_senders_among_clients_are_a_separate_table() -> None:
    table = "192.0.2.1 OK\nspam@b.example REJECT 5.7.1 spam\nspam@c.example OK\nspam@ REJECT 5.7.1 any\n"
    rules = rules_of("postfix-access", table)
    # A client that the table of clients lets through can still be refused because of the sender, as if main.cf had a
    # restriction for each table.
    assert answer(rules, Mail("192.0.2.1", sender="spam@b.example")) == "REJECT 5.7.1 spam"
    assert answer(rules, Mail("192.0.2.1", sender="spam@c.example")) == "DUNNO"
    assert answer(rules, Mail(sender="spam@d.example")) == "REJECT 5.7.1 any"


def test_with_a_delimiter_an_address_covers_its_extensions() -> None:
    rules = rules_of("postfix-access", "a@b.example REJECT\nz@ REJECT\n", attribute="recipient", delimiter="+")
    for recipient, wanted in {
        "a@b.example": "REJECT",
        "a+tag@b.example": "REJECT",
        "ab@b.example": "DUNNO",
        "z+tag@c.example": "REJECT",
        "zz@c.example": "DUNNO",
    }.items():
        assert answer(rules, Mail(recipient=recipient)) == wanted


def test_address_keys_are_those_of_postfix() -> None:
    assert address_keys("192.0.2.7") == ["192.0.2.7", "192.0.2", "192.0", "192"]
