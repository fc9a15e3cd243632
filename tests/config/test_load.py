"""Loading: all or nothing, exit statuses, the hash, and an error or a result for any file."""

from __future__ import annotations

import datetime
import hashlib
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policyd.config.conditions import CONDITIONS
from policyd.config.load import load
from policyd.config.problems import ConfigErrors, Severity
from policyd.core.protocol import ATTRIBUTES
from tests.examples import examples

CONFIG = Path(__file__).parents[2] / "config"
GOOD = "rules: [{name: a, match: {cidr: 192.0.2.1}, action: REJECT}]\n"


def test_the_shipped_configuration_loads_without_a_warning() -> None:
    loaded = load(CONFIG / "policyd.yaml", warnings_on=datetime.date(2026, 11, 21))
    assert loaded.warning_lines == ()
    assert loaded.ruleset.counts.rules == len(loaded.ruleset.rules) > 0
    assert all(rule.note for rule in loaded.ruleset.rules)


def test_without_settings_there_are_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules.yaml").write_text(GOOD)
    assert load().settings.rules == "rules.yaml"


@pytest.mark.parametrize(
    ("settings_text", "rules_text", "status", "count"),
    [
        (None, GOOD, 2, 1),
        ("{}", None, 2, 1),
        ("log_level: x\n", None, 2, 2),
        ("log_level: x\n", GOOD, 1, 1),
        ("", GOOD, 1, 1),
        ("{}", "", 1, 1),
        ("{}", "rules: [a]\n", 1, 1),
        ("log_level: x\ndns: y\n", "rules: [a, b]\n", 1, 4),
        ("a: [\n", "rules: [a]\n", 1, 1),
    ],
)
def test_an_unreadable_file_gives_the_status_2_and_a_wrong_file_1(
    settings_text: str | None, rules_text: str | None, status: int, count: int, tmp_path: Path
) -> None:
    """The exit status is 2 if a settings or rules file cannot be read. Problems of both files are reported together,
    unless the settings cannot be parsed: then the rules file is not known.
    """
    if settings_text is not None:
        (tmp_path / "policyd.yaml").write_text(settings_text)
    if rules_text is not None:
        (tmp_path / "rules.yaml").write_text(rules_text)
    with pytest.raises(ConfigErrors) as caught:
        load(tmp_path / "policyd.yaml")
    assert (caught.value.exit_status, len(caught.value.problems)) == (status, count), str(caught.value)


@pytest.mark.parametrize("which", ["policyd.yaml", "rules.yaml"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "FIFO"])
def test_a_folder_or_fifo_as_settings_or_rules_file_is_refused(which: str, make: Any, tmp_path: Path) -> None:
    (tmp_path / "policyd.yaml").write_text("{}")
    (tmp_path / "rules.yaml").write_text(GOOD)
    (tmp_path / which).unlink()
    make(tmp_path / which)
    with pytest.raises(ConfigErrors, match="cannot be read: it is a") as caught:
        load(tmp_path / "policyd.yaml")
    assert caught.value.exit_status == 2


def test_an_unreadable_list_file_is_an_error_in_the_ruleset(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("lists: {l: {file: none.txt}}\n" + GOOD)
    with pytest.raises(
        ConfigErrors, match=r"rules\.yaml:1:19: list 'l': .*none\.txt cannot be read: No such file"
    ) as caught:
        load(rules_path=tmp_path / "rules.yaml")
    assert caught.value.exit_status == 1


@pytest.mark.parametrize(("name", "limit"), [("policyd.yaml", "1 MiB"), ("rules.yaml", "64 MiB"), ("l.txt", "256 MiB")])
@pytest.mark.slow
def test_a_file_that_is_too_long_is_refused(name: str, limit: str, tmp_path: Path) -> None:
    (tmp_path / "policyd.yaml").write_text("{}")
    (tmp_path / "rules.yaml").write_text("lists: {l: {file: l.txt}}\n" + GOOD)
    (tmp_path / "l.txt").write_text("x\n")
    os.truncate(tmp_path / name, 1 << 40)
    with pytest.raises(ConfigErrors, match=f"{name}.* is longer than {limit}") as caught:
        load(tmp_path / "policyd.yaml")
    assert caught.value.exit_status == 1


def test_the_hash_is_of_the_rules_file_and_each_list_file_in_order(tmp_path: Path) -> None:
    text = "lists:\n  b: {file: b.txt}\n  a: {file: sub/a.txt}\n  c: {file: b.txt}\n" + GOOD
    (tmp_path / "sub").mkdir()
    (tmp_path / "rules.yaml").write_text(text)
    (tmp_path / "b.txt").write_bytes(b"192.0.2.1\r\n")
    (tmp_path / "sub" / "a.txt").write_bytes(b"\xef\xbb\xbf# a\nx\n")
    wanted = hashlib.sha256(text.encode() + b"192.0.2.1\r\n" + b"\xef\xbb\xbf# a\nx\n").hexdigest()[:8]
    assert load(rules_path=tmp_path / "rules.yaml").ruleset.hash == wanted


def test_the_summary_counts_rules_and_entries(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(
        "lists: {l: [192.0.2.1, 198.51.100.0/24]}\n"
        "rules:\n"
        "  - {name: a, match: {cidr: [$l, 203.0.113.0/24]}, except: {cidr: $l}, action: REJECT}\n"
        "  - {name: b, match: {hostname: [a.example, b.example], sender_regex: x}, action: REJECT}\n"
    )
    loaded = load(rules_path=tmp_path / "rules.yaml")
    wanted = f"ruleset {loaded.ruleset.hash}: 2 rules, 3 networks, 2 names, 1 expression, "
    assert loaded.summary.startswith(wanted)


def test_a_repeated_problem_is_reported_once_and_problems_can_be_pickled(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(
        "lists: {l: [x y]}\n"
        "rules:\n"
        "  - {name: a, match: {hostname: $l}, except: {hostname: $l}, action: REJECT}\n"
        "  - {name: b, match: {hostname: $l}, action: REJECT}\n"
    )
    with pytest.raises(ConfigErrors) as caught:
        load(rules_path=tmp_path / "rules.yaml")
    (problem,) = caught.value.problems
    assert problem.severity is Severity.WRONG
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.problems, again.lines, str(again)) == (caught.value.problems, caught.value.lines, str(caught.value))


def test_no_control_character_of_a_file_reaches_a_message(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(
        'rules: [{name: "a\\n\\e[31m\\u202e", match: {cidr: "\\x07"}, action: REJECT}]\n'
    )
    with pytest.raises(ConfigErrors) as caught:
        load(rules_path=tmp_path / "rules.yaml")
    assert all(line.isprintable() for line in caught.value.lines)
    assert r"\n\x1b[31m\u202e" in caught.value.lines[0]


@pytest.mark.parametrize("text", ["{}: x\n", "rules: {}\n", "rules: [{{name: a, match: {{{}: x}}, action: x}}]\n"])
def test_a_word_of_a_megabyte_is_refused_quickly(text: str, tmp_path: Path) -> None:
    # YAML limits a key to 1,024 characters, unless `? ` begins it.
    (tmp_path / "rules.yaml").write_text(text.format("? " * ("{}: x" in text) + "x" * 1_000_000))
    started = time.process_time()
    with pytest.raises(ConfigErrors) as caught:
        load(rules_path=tmp_path / "rules.yaml")
    assert max(map(len, caught.value.lines)) < 1000
    assert time.process_time() - started < 10


# --- Arbitrary input --------------------------------------------------------------------------------------------------

keys = st.sampled_from(
    [
        *("rules", "lists", "tests", "default", "mode", "name", "match", "except", "action", "expires", "note"),
        *("given", "expect", "rule", "text", "observed", "file", "allow_empty", "hostname", "claimed", "reverse_dns"),
        "date",
        *CONDITIONS,
        *ATTRIBUTES,
    ]
)
texts = st.one_of(
    st.sampled_from(
        [
            *("", "a", "$l", "$$", "$", "192.0.2.1", "10.0.0.1/8", "::/0", "REJECT", "DUNNO", "OK"),
            "REJECT 5.7.1 {id}",
            *("observe", "missing", "2027-03-31", "<>", "a@b.example", ".example.com", "(", "^x", "unknown", "RCPT"),
        ]
    ),
    st.text(max_size=8),
)
trees = st.recursive(
    texts, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5), max_leaves=30
)
conditions = st.dictionaries(st.sampled_from([*CONDITIONS]), texts | st.lists(texts, max_size=3), max_size=3)
rules = st.fixed_dictionaries(
    {"name": texts, "match": conditions, "action": texts},
    optional={"except": conditions, "mode": texts, "expires": texts, "note": texts},
)
tests = st.fixed_dictionaries(
    {"given": st.dictionaries(keys, texts, max_size=4), "expect": texts}, optional={"rule": texts, "observed": texts}
)
rulesets = st.fixed_dictionaries(
    {"rules": st.lists(rules, max_size=4)},
    optional={
        "lists": st.dictionaries(st.just("l"), st.lists(texts, max_size=3)),
        "tests": st.lists(tests, max_size=3),
        "default": texts,
        "mode": texts,
    },
)


def load_anything(content: bytes, path: Path) -> None:
    """Loads the content, and checks the promises of the result or of ConfigErrors. Another exception fails the test."""
    path.write_bytes(content)
    try:
        loaded = load(rules_path=path, warnings_on=datetime.date(2026, 11, 21))
    except ConfigErrors as errors:
        assert errors.lines
        assert all(line.isprintable() and line.startswith(str(path)) for line in errors.lines)
        assert any(problem.severity is Severity.WRONG for problem in errors.problems)
    else:
        assert all(line.isprintable() for line in loaded.warning_lines)
        pickle.dumps((loaded.settings, loaded.ruleset))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300) | st.text(max_size=100).map(lambda text: f"rules: {text}".encode()))
def test_any_bytes_load_or_are_refused(content: bytes, tmp_path: Path) -> None:
    load_anything(content, tmp_path / "rules.yaml")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(300))
@given(tree=trees | st.dictionaries(keys, trees, max_size=5) | rulesets)
def test_any_tree_loads_or_is_refused(tree: Any, tmp_path: Path) -> None:
    load_anything(yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).encode(), tmp_path / "rules.yaml")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | st.lists(texts).map(lambda lines: "\n".join(lines).encode()))
def test_any_list_file_loads_or_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes(content)
    conditions = ", ".join(
        f"{name}: $l" for name in ("cidr", "hostname_suffix", "sender", "helo_name", "sasl_username")
    )
    (tmp_path / "rules.yaml").write_text(
        f"lists: {{l: {{file: l.txt}}}}\nrules: [{{name: a, match: {{{conditions}}}, action: REJECT}}]\n"
    )
    try:
        load(rules_path=tmp_path / "rules.yaml", warnings_on=datetime.date(2026, 11, 21))
    except ConfigErrors as errors:
        assert all(line.isprintable() for line in errors.lines)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | trees.map(lambda tree: yaml.safe_dump({"dns": tree, "listen": tree}).encode()))
def test_any_settings_load_or_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "policyd.yaml").write_bytes(content)
    (tmp_path / "rules.yaml").write_text("rules: []\n")
    try:
        load(tmp_path / "policyd.yaml", tmp_path / "rules.yaml")
    except ConfigErrors as errors:
        assert all(line.isprintable() for line in errors.lines)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, (CONFIG / "rules.yaml").stat().st_size))
def test_a_truncated_ruleset_loads_or_is_refused(cut: int, tmp_path: Path) -> None:
    """A file cut anywhere raises only the loader's exception. (A cut between two rules leaves a valid file.)"""
    load_anything((CONFIG / "rules.yaml").read_bytes()[:cut], tmp_path / "rules.yaml")
