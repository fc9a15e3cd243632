from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from policyd.config.actions import parse_action
from policyd.core.ruleset import MAX_TEXT, Verb
from policyd.exchange.model import REJECT, Imported, Line, Row, Term, Verdict, blocking, shown, without_placeholders
from policyd.exchange.rules_yaml import Names, fits_list_file, list_file, rules, rules_yaml
from tests.exchange.answers import ruleset

printable = st.text(
    st.characters(exclude_categories=["C", "Z"], include_characters=" "), min_size=1, max_size=30
).filter(lambda text: text.isprintable() and text.strip() == text)


def line(number: int) -> Line:
    return Line("a table", number, "")


@given(st.lists(printable, min_size=1, max_size=6), printable)
def test_the_loader_reads_any_written_value_back(values: list[str], name: str) -> None:
    terms = tuple(Term("sasl_username", value) for value in values)
    text = rules_yaml(
        rules(Imported(rows=[Row(line(1), terms, REJECT, name=name)]), Names("n"), REJECT), f"{name}\n{name}"
    )
    (rule,) = ruleset(text).rules
    written = [value.removeprefix("$") if value.startswith("$$") else value for value in rule.match[0].values]
    assert written == list(dict.fromkeys(values))


@given(st.sampled_from([Verb.REJECT, Verb.DEFER, Verb.DEFER_IF_PERMIT]), st.text(max_size=300))
def test_any_text_becomes_an_action_that_the_loader_accepts(verb: Verb, text: str) -> None:
    verdict = blocking(verb, text)
    action = parse_action(verdict.action)
    assert action.verb is verb
    assert len(action.text) <= 1  # no placeholder
    assert len(f"{action.code} {''.join(action.text)}") <= MAX_TEXT + len("Access denied: ")


@given(st.text(max_size=40))
def test_the_braces_of_a_text_are_kept(text: str) -> None:
    verdict = blocking(Verb.REJECT, f"x {text}")
    plain = "".join(character if " " <= character <= "~" else "?" for character in " ".join(f"x {text}".split()))
    assert without_placeholders(verdict.text, {}) == plain.rstrip()


@given(st.text(max_size=300))
def test_text_from_a_file_is_always_escaped_in_messages(text: str) -> None:
    assert shown(text).isprintable()


@given(st.lists(printable, min_size=1, max_size=5, unique=True))
def test_a_list_file_is_read_back_as_it_was_written(values: list[str]) -> None:
    fitting = [value for value in values if fits_list_file(value)]
    written = list_file([Term("sasl_username", value) for value in fitting], "a heading\nof two lines")
    read = []
    for row in written.split("\n"):
        before = row
        for mark in (" #", " ;", "\t#", "\t;"):
            before = before.partition(mark)[0]
        if before.strip() and not before.startswith(("#", ";")):
            read.append(before.strip())
    assert read == fitting


def test_names_are_unique_and_valid() -> None:
    names = Names("my table!", taken={"my-table-1"})
    assert [names.next(), names.next("default"), names.next("R 1"), names.next("R 1"), names.next("***")] == [
        "my-table-2",
        "default-2",
        "R-1",
        "R-1-2",
        "my-table-3",
    ]


def test_rows_with_their_own_name_stay_separate_rules() -> None:
    rows = [Row(line(n), (Term("cidr", f"192.0.2.{n}"),), REJECT, name=f"R{n}") for n in (1, 2)]
    assert [rule.name for rule in rules(Imported(rows=rows), Names("n"), REJECT)] == ["R1", "R2"]


def test_rows_with_different_exceptions_or_verdicts_stay_separate_rules() -> None:
    rows = [
        Row(line(1), (Term("cidr", "192.0.2.0/24"),), REJECT),
        Row(line(2), (Term("cidr", "198.51.100.0/24"),), REJECT, (Term("cidr", "198.51.100.1"),)),
        Row(line(3), (Term("cidr", "203.0.113.0/24"),), Verdict(Verb.REJECT, "5.7.1", "no")),
    ]
    assert [len(rule.exceptions) for rule in rules(Imported(rows=rows), Names("n"), REJECT)] == [0, 1, 0]


def test_no_rows_give_an_empty_ruleset() -> None:
    assert ruleset(rules_yaml([], "nothing")).rules == ()


def test_names_are_unique_even_if_thousands_of_rules_have_the_same_name() -> None:
    names = Names("t", taken=["spam-3"])
    made = [names.next("spam") for _ in range(50_000)]  # takes minutes if each name is compared with all before it
    assert made[:4] == ["spam", "spam-2", "spam-4", "spam-5"]
    assert len({*made}) == len(made)
    assert names.next("default") == "default-2"
    assert names.next() == "t-1"
