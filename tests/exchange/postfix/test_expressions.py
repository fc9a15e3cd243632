from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd.exchange import regex_subjects
from policyd.exchange.importing import ImportOptions
from policyd.exchange.model import MAX_TOO_LARGE
from tests.examples import examples
from tests.exchange.answers import Mail, answer, as_answer, first_value, import_text, postmap, rules_of, ruleset
from tests.requirements import require

TYPES = {"postfix-pcre": "pcre", "postfix-regexp": "regexp"}

PIECES = [
    "a",
    "b",
    "example",
    r"\.",
    ".",
    "^a",
    "b$",
    "[ab]",
    "[^a]",
    "(a|b)",
    "a*",
    "b+",
    "x?",
    "@",
    r"\.example$",
    "A",
]
ACTIONS = ["OK", "REJECT 5.7.1 no", "REJECT", "DEFER 4.7.1 later"]
SENDERS = ["a@b.example", "b@a.example", "x@example.com", "ab@ba.example", "A@B.EXAMPLE", "q@q.q"]

expressions = st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("".join)
lines = st.builds(
    lambda negated, expression, flags, action: [f"{negated}/{expression}/{flags} {action}"],
    st.sampled_from(["", "", "!"]),
    expressions,
    st.sampled_from(["", "", "i"]),
    st.sampled_from(ACTIONS),
)
blocks = st.builds(
    lambda expression, inner: [f"if !/{expression}/", *(line for each in inner for line in each), "endif"],
    expressions,
    st.lists(lines, min_size=1, max_size=2),
)
tables = st.lists(lines | blocks, min_size=1, max_size=4).map(
    lambda parts: "\n".join(line for part in parts for line in part) + "\n"
)


@pytest.mark.parametrize("format_name", TYPES)
@settings(max_examples=examples(60), deadline=None)
@given(table=tables)
def test_the_rules_answer_as_postfix_does(format_name: str, table: str) -> None:
    require("postmap")
    result = import_text(format_name, table, ImportOptions(attribute="sender"))
    assert result.report.losses == []
    rules = rules_of(format_name, table, attribute="sender")
    found = postmap(TYPES[format_name], table, SENDERS)
    for sender in SENDERS:
        assert answer(rules, Mail(sender=sender)) == as_answer(found.get(sender, "")), (table, sender)


CLIENT_TABLE = r"""
/^192\.0\.2\./          REJECT 5.7.1 by address
/^dyn[0-9]+\.b\.example$/ REJECT 5.7.1 by name
/unknown/               DEFER 4.7.25 no name
if /\.example$/
/^mail/                 OK
endif
!/\.example$/           REJECT 5.7.1 not ours
"""
CLASSES = """
/^[^.]*[0-9]{5}/ 450 looks dynamic
/[0-9]+-[0-9]+/ REJECT 5.7.1 two numbers
/^[0-9a-f]{4}:/ REJECT 5.7.1 IPv6
/[._-]7$/ REJECT 5.7.1 seven
"""
PRE_FILTER = """
if /dyn|dsl/
/^h[0-9]+\\.dyn\\.example\\.net$/ REJECT 5.7.1 implied
/^[0-9.]+.*example\\.com$/ REJECT 5.7.1 second condition
if !/static/
/dsl-[0-9]+/ DEFER 4.7.1 excepted
endif
endif
/^[0-9.]+example\\.com$/ DEFER 4.7.1 outside
"""
CLIENTS = [
    Mail(address, name)
    for address in ("192.0.2.1", "192.0.2.7", "2001:db8::7", "198.51.100.77")
    for name in (
        "unknown",
        "mail.b.example",
        "www.b.example",
        "dyn7.b.example",
        "h12345.example.net",
        "192.0.2.7.example.com",
        "1-2.example.net",
        "host.seven-7",
        "h7.dyn.example.net",
        "7.dsl.8.example.com",
        "7.8.example.com",
        "static.dsl-7.example.com",
        "dsl-77.example.com",
    )
]


@pytest.mark.parametrize("format_name", TYPES)
@pytest.mark.parametrize("table", [CLIENT_TABLE, CLASSES, PRE_FILTER], ids=["client", "classes", "pre-filter"])
def test_the_name_of_a_client_is_looked_up_before_its_address_as_in_postfix(format_name: str, table: str) -> None:
    require("postmap")
    result = import_text(format_name, table)
    assert result.report.losses == []
    rules = ruleset(result.text)
    for mail in CLIENTS:
        found = postmap(TYPES[format_name], table, [mail.name, mail.address])
        wanted = as_answer(first_value(found, [mail.name, mail.address]))
        assert answer(rules, mail) == wanted, mail


def test_an_expression_of_classes_is_for_names_unless_it_can_match_an_address() -> None:
    result = import_text("postfix-regexp", "/^[^.]*[0-9]{5}/ 450 looks dynamic\n/[0-9]+$/ REJECT\n")
    assert [rule.match for rule in result.rules] == [
        {"hostname_regex": ("^[^.]*[0-9]{5}",)},
        {"hostname_regex": ("[0-9]+$",)},
        {"client_address_regex": ("[0-9]+$",)},
    ]


def test_the_assumed_attribute_is_noted() -> None:
    result = import_text("postfix-pcre", "/@spam\\.example$/ REJECT\n/^dyn/ REJECT\n/^news@/ REJECT\n")
    assert [rule.match for rule in result.rules] == [
        {"sender_regex": (r"@spam\.example$", "^news@")},
        {"hostname_regex": ("^dyn",)},
    ]
    noted = {note.reason.split(",")[0]: [line.number for line in note.lines] for note in result.report.notes}
    assert noted == {
        "only a mail address can match it": [1, 3],
        "read as names and addresses of clients; use --attribute if the table is for something else": [2],
    }
    with_attribute = import_text("postfix-pcre", "/^dyn/ REJECT\n", ImportOptions(attribute="client"))
    assert with_attribute.report.notes == []


@pytest.mark.parametrize("attribute", [None, "client"])
@pytest.mark.parametrize("pattern", ["^Subject:.*pills", "two words", "^X-Mailer: ", "!$"])
def test_an_expression_that_no_client_can_match_is_reported(pattern: str, attribute: str | None) -> None:
    table = f"/{pattern}/ REJECT\n/^dyn/ REJECT\n"
    result = import_text("postfix-pcre", table, ImportOptions(attribute=attribute))
    assert [(loss.line.number, loss.exempts) for loss in result.report.losses] == [(1, False)]
    assert "no name or address of a client can match it" in result.report.losses[0].reason


def test_a_line_that_cannot_match_within_its_if_is_reported() -> None:
    table = "if /dynamic/\n/^adsl\\.example\\.net$/ REJECT\n/^dynamic\\.example\\.net$/ REJECT\nendif\n"
    (loss,) = import_text("postfix-pcre", table).report.losses
    reason = "it can match a client's name, but not within the `if` around it"
    assert (loss.line.number, loss.reason) == (2, reason)


def test_lines_that_are_too_complex_to_analyse_are_noted_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    table = "".join(f"/(a|b)*a(a|b){{9}}[0-9]*(c|d)*c(c|d){{9}}{number}$/ REJECT\n" for number in range(8))
    table += r"/^mail\.example\.com$/ OK"
    examined = import_text("postfix-pcre", table)
    assert [note.reason for note in examined.report.notes if "too complex" in note.reason] == []
    monkeypatch.setattr(regex_subjects, "_FIRST_STEPS", 100_000)
    limited = import_text("postfix-pcre", table)
    again = import_text("postfix-pcre", table)
    (note,) = [note for note in limited.report.notes if "too complex to analyse" in note.reason]
    assert 3 <= note.count < 9
    assert limited.report.losses == []
    assert (limited.text, limited.report.taken) == (again.text, 9)
    assert answer(ruleset(limited.text), Mail(name="mail.example.com")) == "DUNNO"


def test_exemptions_of_senders_do_not_exempt_clients() -> None:
    table = "/^<>$/ OK\n/^a@/ OK\n/@b\\.example$/ REJECT\n/^mail/ REJECT\n"
    rules = rules_of("postfix-pcre", table)
    assert answer(rules, Mail(name="mail.example", sender="<>")) == "REJECT"
    assert answer(rules, Mail(sender="a@b.example")) == "DUNNO"
    assert answer(rules, Mail(sender="c@b.example")) == "REJECT"


def test_lines_whose_ifs_a_rule_cannot_express_are_lost() -> None:
    table = "if /a/\n/b/ OK\nif /c/\n/d/ REJECT\nendif\nendif\n/x/ REJECT\n"
    result = import_text("postfix-pcre", table)
    assert [(loss.line.number, loss.exempts) for loss in result.report.losses] == [(2, True), (4, False)]


def test_an_exemption_with_a_text_after_it_is_kept() -> None:
    table = "/^a@/ OK our office\n/^b@/ permit # comment\n/^c@/ DUNNO ok\n/@/ REJECT\n"
    rules = rules_of("postfix-pcre", table, attribute="sender")
    assert [answer(rules, Mail(sender=f"{local}@d.example")) for local in "abcd"] == ["DUNNO"] * 3 + ["REJECT"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (r"/(?<!x)foo/ REJECT", "RE2 has no look-around"),
        (r"/(?!x)foo/ REJECT", "RE2 has no look-around"),
        (r"/(a)\1/ REJECT", "RE2 has no back references"),
        (r"/a++/ REJECT", "RE2 has no possessive quantifiers"),
        (r"/(?>a)/ REJECT", "RE2 has no atomic groups"),
        (r"/a{2000}/ REJECT", "RE2 cannot express it: invalid repetition size"),
        (r"/(a/ REJECT", "RE2 cannot express it"),
        (r"/a/q REJECT", "'q' is not a flag"),
        (r"/a REJECT", "the closing `/` is missing"),
        (r"/a/", "there is no action"),
        (r"/a/ REJECT $1", "is not a group"),
        (r"!/(a)/ REJECT $1", "is not a group"),
        ("example.com REJECT", "not a line of such a table"),
    ],
)
def test_an_unsupported_expression_is_reported_and_the_others_are_kept(line: str, reason: str) -> None:
    result = import_text("postfix-pcre", f"/kept/ REJECT\n{line}\n/also/ REJECT\n")
    assert [(loss.line.number, loss.line.text) for loss in result.report.losses] == [(2, line)]
    assert reason in result.report.losses[0].reason
    assert [rule.match for rule in result.rules] == [{"hostname_regex": ("kept", "also")}]


@pytest.mark.slow
def test_after_too_many_large_expressions_all_further_lines_are_lost() -> None:
    table = "/kept/ REJECT\n" + "/\\pL{999}/ REJECT\n" * (MAX_TOO_LARGE + 1) + "/also/ REJECT\n"
    result = import_text("postfix-pcre", table)
    assert [rule.match for rule in result.rules] == [{"hostname_regex": ("kept",)}]
    reasons = [(loss.line.number, loss.reason) for loss in result.report.losses]
    assert [number for number, _ in reasons] == list(range(2, MAX_TOO_LARGE + 4))
    assert all("RE2 cannot express it: pattern too large" in reason for _, reason in reasons[:MAX_TOO_LARGE])
    unseen = f"not read: {MAX_TOO_LARGE} expressions above it are too large for RE2"
    assert {reason for _, reason in reasons[MAX_TOO_LARGE:]} == {unseen}


def test_two_expressions_on_one_attribute_are_reported_unless_one_is_a_domain() -> None:
    table = "if /foo/\n/bar/ REJECT\n/@b\\.example$/ REJECT\nendif\n"
    result = import_text("postfix-pcre", table, ImportOptions(attribute="sender"))
    assert [loss.line.number for loss in result.report.losses] == [2]
    assert "write them as one expression" in result.report.losses[0].reason
    assert result.rules[0].match == {"sender_domain": ("b.example",), "sender_regex": ("foo",)}
    assert result.rules[0].exceptions == {"sender_domain": (".b.example",)}


def test_substitutions_become_dots_with_a_note() -> None:
    result = import_text(
        "postfix-pcre", "/^(.*)-outgoing@(.*)$/ 550 Use ${1}@$(2), not $1 for $$5\n", ImportOptions(attribute="sender")
    )
    assert [rule.verdict.action for rule in result.rules] == ["REJECT Use ...@..., not ... for $5"]
    assert [note.reason for note in result.report.notes] == [
        "$1, $2 and so on are not supported: the text has `...` in their place"
    ]


def test_an_expression_for_the_null_sender_becomes_the_condition_sender() -> None:
    result = import_text("postfix-pcre", "/^<>$/ REJECT\n", ImportOptions(attribute="sender"))
    assert result.rules[0].match == {"sender": ("<>",)}
    rules = rules_of("postfix-pcre", "/^<>$/ REJECT\n", attribute="sender")
    assert answer(rules, Mail(sender="<>")) == "REJECT"
    noted = import_text("postfix-pcre", "/^$/ REJECT\n", ImportOptions(attribute="sender"))
    assert "the null sender" in noted.report.notes[0].reason


@pytest.mark.parametrize(
    ("pattern", "flags", "written"),
    [
        ("a b # c", "x", "ab#c"),
        ("foo", "A", "^(?:foo)"),
        (r"\Qa.b\E", "", r"\Qa.b\E"),
        (r"[\h_]\Z", "", r"[ \t_]\z"),
        (r"a\_b", "", "a_b"),
        ("foo", "ims", "(?-i:foo)"),
        ("[[:alpha:]]", "", "[[:alpha:]]"),
    ],
)
def test_perl_is_converted_to_re2(pattern: str, flags: str, written: str) -> None:
    result = import_text("postfix-pcre", f"/{pattern}/{flags} REJECT\n", ImportOptions(attribute="sender"))
    assert result.rules[0].match == {"sender_regex": (written,)}


@pytest.mark.parametrize(
    ("pattern", "written"),
    [
        (r"\d+", "d+"),
        (r"[\d]", r"[\\d]"),
        ("[]a]", r"[\]a]"),
        (r"\<foo\>", r"\bfoo\b"),
        (r"a\.b\@c", r"a\.b\@c"),
        ("[[:digit:]]{2}", "[[:digit:]]{2}"),
    ],
)
def test_posix_is_converted_to_re2(pattern: str, written: str) -> None:
    result = import_text("postfix-regexp", f"/{pattern}/ REJECT\n", ImportOptions(attribute="sender"))
    assert result.rules[0].match == {"sender_regex": (written,)}


@pytest.mark.parametrize("pattern", ["a+?b", r"(a)\1", "[[=a=]]", "(?i)a", "[a"])
def test_posix_syntax_with_another_meaning_in_re2_is_reported(pattern: str) -> None:
    result = import_text("postfix-regexp", f"/{pattern}/ REJECT\n/kept/ REJECT\n", ImportOptions(attribute="sender"))
    assert [loss.line.number for loss in result.report.losses] == [1]


def test_an_expression_may_have_another_delimiter_or_an_escaped_one() -> None:
    result = import_text("postfix-pcre", "~a/b~ REJECT\n/a\\/b/ REJECT\n", ImportOptions(attribute="sender"))
    assert result.rules[0].match == {"sender_regex": ("a/b", r"a\/b")}
