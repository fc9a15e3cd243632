"""`dns_lists:` of a ruleset: definitions, keys, and their errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from policyd.config.dns_list import Ask, DnsList
from policyd.config.dns_lists import WrittenDnsList, read_dns_lists
from policyd.config.known_zones import known_zone
from policyd.config.problems import Report
from policyd.config.yaml_tree import Mapping, parse_yaml

if TYPE_CHECKING:
    from pathlib import Path


def read(text: str, path: str = "rules.yaml") -> tuple[dict[str, WrittenDnsList], list[str]]:
    """The lists that a text defines, and the problems with it."""
    report = Report()
    root = parse_yaml(f"dns_lists:\n  {text}\n".encode(), path, report)
    assert isinstance(root, Mapping)
    node = root.get("dns_lists")
    assert node is not None
    return read_dns_lists(node, path, report), [*report.lines()]


def good(text: str, path: str = "rules.yaml") -> DnsList:
    """The only list of a text without problems."""
    lists, problems = read(text, path)
    assert problems == []
    (written,) = lists.values()
    assert written.definition is not None
    return written.definition


def test_a_list_of_addresses_has_the_usual_defaults() -> None:
    zen = good("zen: {zone: Zen.Spamhaus.org., codes: '127.0.0.[2..11]'}")
    assert (zen.name, zen.zone, zen.ask, zen.self_test) == ("zen", "zen.spamhaus.org", Ask.CLIENT_ADDRESS, "127.0.0.2")
    assert zen.refused == ()


@pytest.mark.parametrize(
    ("fields", "self_test"),
    [
        ("zone: zen.test", "127.0.0.2"),
        ("zone: zen.test, self_test: 192.0.2.1", "192.0.2.1"),
        ("zone: zen.test, self_test: '::ffff:127.0.0.2'", "::ffff:127.0.0.2"),
        ("zone: zen.test, self_test: '2001:DB8::1'", "2001:db8::1"),
        ("zone: zen.test, self_test: no", ""),
        ("zone: zen.test, self_test: false", ""),
        ("zone: zen.test, self_test: yes", "127.0.0.2"),
        ("zone: zen.test, self_test: true", "127.0.0.2"),
        ("zone: dbl.test, ask: sender_domain", "test"),
        ("zone: dbl.test, ask: helo_name, self_test: DBLtest.com", "dbltest.com"),
        ("zone: dbl.spamhaus.org, ask: hostname", "dbltest.com"),
        ("zone: dbl.spamhaus.org, ask: hostname, self_test: test", "test"),
    ],
)
def test_the_entry_of_the_self_test_is_an_address_or_a_name(fields: str, self_test: str) -> None:
    assert good(f"x: {{{fields}, codes: 127.0.0.2}}").self_test == self_test


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ("zone: list.dnswl.org", ["127.0.0.255", "127.0.10.3"]),
        ("zone: list.dnswl.org, refused: 127.0.10.3", ["127.0.10.3"]),
        ("zone: black.uribl.com, ask: hostname", ["127.0.0.1"]),
        ("zone: zen.test", []),
        ("zone: zen.test, refused: [127.0.0.9, '127.0.1.[0..9]']", ["127.0.0.9", "127.0.1.[0..9]"]),
    ],
)
def test_known_zones_have_default_refusals_that_the_list_can_replace(fields: str, refused: list[str]) -> None:
    assert [code.text for code in good(f"x: {{{fields}, codes: 127.0.0.2}}").refused] == refused


def test_a_zone_with_letters_outside_ascii_is_queried_in_its_xn_form() -> None:
    assert good("x: {zone: b\u00fccher.example, codes: 127.0.0.2}").zone == "xn--bcher-kva.example"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x: zen.spamhaus.org", "2:6: DNS list 'x': expected a definition (zone, codes), not text"),
        ("x: {codes: 127.0.0.2}", "2:6: DNS list 'x': 'zone' is missing"),
        ("x: {zone: zen.test}", "2:6: DNS list 'x': 'codes' is missing"),
        ("x: {zone: zen.test, codes: [], ask: helo_name}", "codes: the list is empty"),
        ("x: {zone: zen.test, codes: 127.0.0.300}", "codes: '127.0.0.300': '300' is not a number"),
        ("x: {zone: zen.test, codes: 10.0.0.2}", "codes: can never match"),
        ("x: {zone: zen.test, codes: 127.255.255.254}", "codes: can never match"),
        ("x: {zone: zen.test, codes: 127.0.0.2, refused: 127.0.0.2}", "codes: can never match"),
        ("x: {zone: zen.test, codes: 127.0.0.2, refused: nonsense}", "refused: 'nonsense' is not a code"),
        ("x: {zone: 'a b.test', codes: 127.0.0.2}", "zone: 'a b.test' is not the name of a zone"),
        ("x: {zone: 192.0.2.1, codes: 127.0.0.2}", "zone: '192.0.2.1' is not the name of a zone"),
        (f"x: {{zone: {'a.' * 95}test, codes: 127.0.0.2}}", "is not the name of a zone"),
        ("x: {zone: '', codes: 127.0.0.2}", "zone: expected the name of a zone, not ''"),
        ("x: {zone: zen.test, codes: 127.0.0.2, ask: client_adress}", "did you mean 'client_address'?"),
        ("x: {zone: zen.test, codes: 127.0.0.2, ask: recipient}", "it is one of client_address, hostname"),
        ("x: {zone: zen.test, code: 127.0.0.2}", "unknown key 'code'; did you mean 'codes'?"),
        (
            "x: {zone: zen.test, codes: 127.0.0.2, self_test: mail.example}",
            "self_test: 'mail.example' is not an address",
        ),
        ("x: {zone: zen.test, codes: 127.0.0.2, ask: helo_name, self_test: 127.0.0.2}", "is not a name"),
        ("x: {zone: '{key}.zen.test', codes: 127.0.0.2}", "zone: {key} needs `key_file`"),
        ("'x y': {zone: zen.test, codes: 127.0.0.2}", "2:3: DNS list 'x y': this is not a name for a list"),
    ],
)
def test_each_mistake_has_its_message(text: str, problem: str) -> None:
    lists, problems = read(text)
    assert problem in "\n".join(problems)
    assert all(written.definition is None for written in lists.values())


def test_the_section_must_be_a_mapping() -> None:
    assert read("- zen.test")[1] == [
        "rules.yaml:2:3: dns_lists: expected names with their definitions, not a list",
    ]


# --- Keys -------------------------------------------------------------------------------------------------------------

KEY = "s3cr3tk3ys3cr3tk3ys3cr3tk3"
KEYED = "dqs: {zone: '{key}.zen.dq.spamhaus.net', key_file: dqs.key, codes: 127.0.0.2}"


def write_key(folder: Path, content: str = f"{KEY}\nthe second line\n", mode: int = 0o640) -> str:
    file = folder / "dqs.key"
    file.write_text(content)
    file.chmod(mode)
    return str(folder / "rules.yaml")


def test_a_key_is_the_first_line_of_its_file_and_is_not_shown(tmp_path: Path) -> None:
    dqs = good(KEYED, write_key(tmp_path))
    assert dqs.zone == f"{KEY}.zen.dq.spamhaus.net"
    assert dqs.shown_zone == "{key}.zen.dq.spamhaus.net"
    assert KEY not in repr(dqs)


@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        (f"{KEY}\n", 0o644, "key_file: every user of this host can read"),
        (f"{KEY}\n", 0o602, "chmod o-rwx"),
        ("", 0o600, "is empty"),
        ("\n" + KEY, 0o600, "is empty"),
        (f"{KEY} {KEY}\n", 0o600, "is not a key"),
        (f"{KEY}..{KEY}\n", 0o600, "is not a key"),
        (f"{KEY}$\n", 0o600, "is not a key"),
        (KEY * 3, 0o600, "is not a key"),
        (".".join([KEY] * 8), 0o600, "longer than a name can be"),
    ],
)
def test_a_key_that_cannot_be_used_is_not_quoted(tmp_path: Path, content: str, mode: int, problem: str) -> None:
    _, problems = read(KEYED, write_key(tmp_path, content, mode))
    (message,) = problems
    assert problem in message
    assert KEY not in message


def test_the_message_names_a_missing_key_file(tmp_path: Path) -> None:
    _, problems = read(KEYED, str(tmp_path / "rules.yaml"))
    assert f"key_file: {tmp_path}/dqs.key cannot be read: No such file or directory" in problems[0]


def test_an_unused_key_is_an_error(tmp_path: Path) -> None:
    _, problems = read("x: {zone: zen.test, key_file: dqs.key, codes: 127.0.0.2}", write_key(tmp_path))
    assert "key_file: the zone has no {key} in it" in problems[0]


def test_a_key_in_the_rules_file_is_not_shown() -> None:
    lists, _ = read(f"x: {{zone: {KEY}.zen.dq.spamhaus.net, codes: 127.0.0.2}}")
    definition = lists["x"].definition
    assert definition is not None
    assert definition.shown_zone == "{key}.zen.dq.spamhaus.net"
    assert lists["x"].exposes_key


# --- Known zones ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "is_list_of_names"),
    [
        ("zen.spamhaus.org", False),
        ("dbl.spamhaus.org", True),
        ("k3y.zen.dq.spamhaus.net", False),
        ("k3y.dbl.dq.spamhaus.net", True),
        ("multi.surbl.org", True),
        ("spamhaus.org.evil.example", None),
        ("notspamhaus.org", None),
    ],
)
def test_a_zone_has_the_facts_of_its_longest_known_parent(zone: str, is_list_of_names: bool | None) -> None:
    known = known_zone(zone)
    assert (known and known.lists_names) is is_list_of_names
