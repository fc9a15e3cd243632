from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.exchange.answers import ACTIONS, Mail, answer, as_answer, import_text, postmap, read, rules_of
from tests.requirements import require

# A few nested and separate networks, so that lines of a table overlap.
NETWORKS = [
    "0.0.0.0/0",
    "192.0.2.0/24",
    "192.0.2.0/25",
    "192.0.2.128/25",
    "192.0.2.64/26",
    "192.0.2.7",
    "192.0.2.130",
    "198.51.100.0/24",
    "198.51.100.3",
    "::/0",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "2001:db8:1::5",
]
ADDRESSES = [
    "192.0.2.7",
    "192.0.2.70",
    "192.0.2.9",
    "192.0.2.130",
    "192.0.2.200",
    "198.51.100.3",
    "198.51.100.4",
    "203.0.113.1",
    "2001:db8::1",
    "2001:db8:1::5",
    "2001:db8:1::6",
    "2001:dead::1",
]

patterns = st.builds(
    lambda negated, network: f"{negated}{network}", st.sampled_from(["", "", "!"]), st.sampled_from(NETWORKS)
)
entries = st.builds(lambda pattern, action: [f"{pattern} {action}"], patterns, st.sampled_from(ACTIONS))
blocks = st.recursive(
    entries,
    lambda inner: st.builds(
        lambda pattern, lines: [f"if {pattern}", *(line for each in lines for line in each), "endif"],
        patterns,
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=6,
)
tables = st.lists(blocks, min_size=1, max_size=6).map(
    lambda parts: "\n".join(line for part in parts for line in part) + "\n"
)


@settings(max_examples=examples(150), deadline=None)
@given(tables)
def test_the_rules_answer_as_postfix_does(table: str) -> None:
    require("postmap")
    rows, report = read("postfix-cidr", table)
    if not rows.rows:
        return  # no address reaches any line, so all lines were reported
    rules = rules_of("postfix-cidr", table)
    found = postmap("cidr", table, ADDRESSES)
    for address in ADDRESSES:
        wanted = as_answer(found.get(address, ""))
        assert answer(rules, Mail(address)) == wanted, (table, address, [str(loss) for loss in report.losses])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("192.0.2.1/24 REJECT", "the network is 192.0.2.0/24"),
        ("192.0.2.010 REJECT", "is not an address"),
        ("192.0.2.0/33 REJECT", "is not a network"),
        ("192.0.2.0/24", "there is no action"),
        ("::ffff:192.0.2.1 REJECT", "write it as IPv4"),
        ("mail.example.com REJECT", "is not an address"),
        ("192.0.2.1 DISCARD", "DISCARD is not supported"),
        ("192.0.2.1 reject_unauth_destination", "keep it in main.cf"),
        ("192.0.2.1 DEFER_IF_REJECT", "DEFER_IF_REJECT is not supported"),
        ("endif", "without its if"),
    ],
)
def test_an_unsupported_line_is_reported_and_the_others_are_kept(line: str, reason: str) -> None:
    result = import_text("postfix-cidr", f"# a comment\n{line}\n198.51.100.1 REJECT\n")
    assert [(loss.line.number, loss.line.text) for loss in result.report.losses] == [(2, line)]
    assert reason in result.report.losses[0].reason
    assert [rule.match for rule in result.rules] == [{"cidr": ("198.51.100.1",)}]


def test_every_line_within_an_unreadable_if_is_reported() -> None:
    table = "if 192.0.2.1/24\n192.0.2.3 REJECT\nif 192.0.2.0/28\n192.0.2.4 REJECT\nendif\nendif\n198.51.100.1 REJECT\n"
    result = import_text("postfix-cidr", table)
    assert [loss.line.number for loss in result.report.losses] == [1, 2, 4]
    assert [rule.match for rule in result.rules] == [{"cidr": ("198.51.100.1",)}]


@pytest.mark.parametrize(
    ("table", "note"),
    [
        ("192.0.2.1 OK\n192.0.2.2 REJECT\n", "OK became DUNNO"),
        ("192.0.2.1 12345\n192.0.2.2 REJECT\n", "Postfix treats a number without text as OK"),
        ("192.0.2.1 HOLD\n192.0.2.0/24 REJECT\n", "the mail is not held"),
        ("192.0.2.1 521 go\n", "does not hang up"),
        ("192.0.2.1 551 go\n", "Postfix itself chooses the reply code"),
        ("if 192.0.2.0/24\n192.0.2.1 REJECT\n", "has no endif"),
    ],
)
def test_a_difference_in_detail_is_noted(table: str, note: str) -> None:
    result = import_text("postfix-cidr", table)
    assert result.report.losses == []
    assert [note in difference.reason for difference in result.report.notes] == [True]


def test_lines_of_one_verdict_become_one_rule() -> None:
    result = import_text(
        "postfix-cidr", "192.0.2.1 OK\n192.0.2.0/24 REJECT a\n198.51.100.0/24 REJECT a\n2001:db8::/32 REJECT b\n"
    )
    assert [(rule.match["cidr"], rule.verdict.action) for rule in result.rules] == [
        (("192.0.2.1",), "DUNNO"),
        (("192.0.2.0/24", "198.51.100.0/24"), "REJECT a"),
        (("2001:db8::/32",), "REJECT b"),
    ]


def test_a_hold_without_a_blocking_line_below_it_is_left_out() -> None:
    result = import_text("postfix-cidr", "192.0.2.0/24 REJECT\n198.51.100.1 HOLD\n")
    assert [rule.verdict.action for rule in result.rules] == ["REJECT"]


def test_a_line_that_begins_with_a_blank_continues_the_line_before_it() -> None:
    result = import_text("postfix-cidr", "192.0.2.0/24\n  REJECT 5.7.1 go\n# in between\n\n\taway\n")
    assert [rule.verdict.action for rule in result.rules] == ["REJECT 5.7.1 go away"]
    assert result.rules[0].first.number == 1


@pytest.mark.parametrize("format_name", ["postfix-cidr", "postfix-pcre"])
def test_nested_ifs_are_read_up_to_a_limit(format_name: str) -> None:
    pattern = "192.0.2.0/24" if format_name == "postfix-cidr" else "/./"
    opened, closed = f"if {pattern}\n", "endif\n"
    deep = import_text(format_name, f"{opened * 17}{pattern} REJECT\n{closed * 17}{pattern} DEFER\n")
    assert {rule.verdict.action for rule in deep.rules} == {"DEFER"}
    reasons = [(loss.line.number, loss.reason) for loss in deep.report.losses]
    assert (17, "more than 16 `if` within each other; all lines up to its endif are lost, too") in reasons
    assert (18, "the `if` around it is lost") in reasons


def test_text_after_an_exemption_is_ignored_as_in_postfix() -> None:
    require("postmap")
    table = "192.0.2.7 OK our office\n192.0.2.8 permit # comment\n192.0.2.9 RELAY x\n192.0.2.0/24 REJECT\n"
    rules = rules_of("postfix-cidr", table)
    assert [answer(rules, Mail(f"192.0.2.{host}")) for host in (7, 8, 9, 10)] == ["DUNNO"] * 3 + ["REJECT"]
    assert postmap("cidr", table, ["192.0.2.7"])["192.0.2.7"] == "OK our office"


@pytest.mark.parametrize(
    ("table", "lost_exemptions"),
    [
        ("192.0.2.7 permit_mynetworks\n192.0.2.0/24 REJECT\n", 1),
        ("192.0.2.0/24 REJECT\n198.51.100.7 my_class\n", 0),  # no line below it blocks
        ("192.0.2.7 reject_unauth_destination\n192.0.2.0/24 REJECT\n", 0),
        ("192.0.2.7/24 OK\n192.0.2.0/24 REJECT\n", 0),  # Postfix skips the first line as well
        ("if 192.0.2.1/24\n192.0.2.7 DUNNO\nendif\n192.0.2.0/24 REJECT\n", 1),
        ("192.0.2.7 my_class\n192.0.2.8 HOLD\n", 0),  # no line blocks
    ],
)
def test_lost_exemptions_above_a_blocking_line_are_counted(table: str, lost_exemptions: int) -> None:
    assert import_text("postfix-cidr", table).lost_exemptions == lost_exemptions
