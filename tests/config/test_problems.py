"""Problems: one line for each, the limit for each file, and suggestions."""

from __future__ import annotations

import pytest

from policyd.config.problems import MAX_PROBLEMS, ConfigErrors, Problem, Report, Severity, counted, did_you_mean, quoted


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (Problem("r.yaml", 3, 7, "it is wrong", "a"), "r.yaml:3:7: rule 'a': it is wrong"),
        (Problem("r.yaml", 3, 7, "it is wrong"), "r.yaml:3:7: it is wrong"),
        (Problem("r.yaml", 0, 0, "cannot be read"), "r.yaml: cannot be read"),
        (Problem("r.yaml", 1, 1, "hm", "a", Severity.WARNING), "r.yaml:1:1: warning: rule 'a': hm"),
        (Problem("r.yaml", 1, 1, "a\nb\x1b[0m\u202e"), "r.yaml:1:1: a\\nb\\x1b[0m\\u202e"),
        (Problem("r.yaml", 1, 1, "m" * 1501, "n" * 81), f"r.yaml:1:1: rule '{'n' * 77}...': {'m' * 1497}..."),
    ],
)
def test_a_problem_is_one_line(problem: Problem, line: str) -> None:
    assert str(problem) == line


def test_problems_are_grouped_by_file_and_sorted_by_line() -> None:
    report = Report()
    for path, line in (("b", 2), ("a", 9), ("b", 1), ("a", 1)):
        report.add(Problem(path, line, 1, "x"))
    assert [*report.lines()] == ["b:1:1: x", "b:2:1: x", "a:1:1: x", "a:9:1: x"]


def test_a_hundred_problems_of_a_file_are_kept_and_the_others_counted() -> None:
    report, other = Report(), Report()
    for line in range(1, 151):
        report.add(Problem("many", line, 1, "x"))
    report.add(Problem("few", 1, 1, "x"))
    report.count_more("many", 1_000)
    other.extend(report)
    other.add(Problem("many", 1, 1, "y"))
    assert report.room("many") == 0
    assert report.room("few") == MAX_PROBLEMS - 1
    assert [*report.lines()][99:] == ["many:100:1: x", "many: and 1,050 more problems", "few:1:1: x"]
    assert "many: and 1,051 more problems" in [*other.lines()]
    assert len(ConfigErrors(report).problems) == 101


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("hostname_sufix", ["hostname", "hostname_suffix"], "; did you mean 'hostname_suffix'?"),
        ("reject", ["REJECT"], "; did you mean 'REJECT'?"),
        ("client", ["recipient", "client_address"], "; did you mean 'client_address'?"),
        ("xyzzy", ["hostname"], ""),
        ("", ["hostname"], ""),
        ("r\u00e9ject" * 20, ["REJECT"], ""),
        ("reject-299", [f"rejects-{number}" for number in range(1000)], "; did you mean 'rejects-299'?"),
        ("rejects-30", [f"x-{number}" for number in range(300)] + ["rejects-300"], "; did you mean 'rejects-300'?"),
    ],
)
def test_a_similar_word_is_suggested(word: str, known: list[str], hint: str) -> None:
    assert did_you_mean(word, known) == hint


def test_a_long_piece_of_a_file_is_cut() -> None:
    assert quoted("x" * 80) == f"'{'x' * 80}'"
    assert quoted("x" * 81) == f"'{'x' * 77}...'"


@pytest.mark.parametrize(
    ("number", "nouns", "text"),
    [(1, ("mail",), "1 mail"), (0, ("mail",), "0 mails"), (2000, ("address", "addresses"), "2,000 addresses")],
)
def test_numbers_have_the_right_plural(number: int, nouns: tuple[str, ...], text: str) -> None:
    assert counted(number, *nouns) == text
