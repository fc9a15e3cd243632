from __future__ import annotations

import contextlib
import csv
import io
import json
import subprocess
import tempfile
from typing import TYPE_CHECKING, Any

import netaddr
import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from policyd.config.problems import ConfigErrors
from policyd.exchange.exporting import NoSuchListError, export
from policyd.exchange.importing import ImportFailedError, ImportForm, ImportOptions
from policyd.exchange.model import ConversionReport, ExportOptions
from policyd.exchange.rules_yaml import scalar
from tests.examples import examples
from tests.exchange.answers import (
    TODAY,
    Mail,
    answer,
    client_keys,
    dotted_keys,
    first_value,
    import_text,
    load_text,
    mail_keys,
    postmap,
    ruleset,
)
from tests.requirements import require

if TYPE_CHECKING:
    from pathlib import Path

    from policyd.core.index import Ruleset

INCIDENT = """\
lists:
  red-speed: [27.100.28.0/23, 27.100.30.0/23, 119.82.8.0/21, 180.222.32.0/19]
  domains: [spam.example, ham.example]
rules:
  - name: partner
    match: {cidr: [180.222.51.40, '2001:db8:1::/48']}
    action: DUNNO
  - name: known-vps-customer
    match: {hostname: tk2-406-44074.vs.sakura.ne.jp}
    action: DUNNO
  - name: sakura-vps
    match: {hostname_suffix: vs.sakura.ne.jp}
    action: REJECT 5.7.1 Access denied
  - name: bulk-networks
    match: {cidr: [$red-speed, 203.142.214.0/24]}
    except: {cidr: 203.142.214.25}
    action: REJECT 5.7.1 Mail from {client_address} is not accepted here ({rule} {{id}})
  - name: v6
    match: {cidr: '2001:db8::/32'}
    action: DEFER 4.7.1 later
  - name: literal
    match: {sender_regex: '$$^'}
    action: REJECT
  - name: spam
    match: {sender_domain: $domains}
    except: {sender: postmaster@spam.example}
    action: REJECT no "spam"
  - name: watched
    match: {cidr: 198.51.100.0/24}
    action: REJECT
    mode: observe
  - name: old
    match: {cidr: 198.51.100.0/24}
    action: REJECT
    expires: 2026-01-01
  - name: ending
    match: {cidr: 203.0.113.0/24}
    action: REJECT
    expires: 2027-01-01
"""


def export_text(name: str, text: str, lists: tuple[str, ...] = (), **options: Any) -> tuple[str, ConversionReport]:
    return export(name, load_text(text), ExportOptions(**options), TODAY, lists)


# --- Answers ----------------------------------------------------------------------------------------------------------

NETWORKS = [
    "0.0.0.0/0",
    "192.0.2.0/24",
    "192.0.2.0/25",
    "192.0.2.64/27",
    "192.0.2.7",
    "192.0.0.0/16",
    "198.51.100.0/23",
    "::/0",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "2001:db8:1::5",
]
ADDRESSES = [
    "192.0.2.7",
    "192.0.2.70",
    "192.0.2.200",
    "192.0.9.9",
    "198.51.101.3",
    "203.0.113.1",
    "2001:db8:1::5",
    "2001:db8:1::6",
    "2001:db8:2::1",
    "2001:dead::1",
]
ACTIONS = ["DUNNO", "REJECT", "REJECT 5.7.1 no entry", "DEFER 4.7.1 later"]
NAMES = ["example", "b.example", "mail.b.example", "x.mail.b.example"]

some_networks = st.lists(st.sampled_from(NETWORKS), min_size=1, max_size=3, unique=True)


def rule(condition: str, values: list[str], exceptions: list[str], action: str) -> str:
    lines = [f"match: {{{condition}: [{', '.join(map(scalar, values))}]}}", f"action: {action}"]
    if exceptions:
        lines.append(f"except: {{{condition}: [{', '.join(map(scalar, exceptions))}]}}")
    return "".join(f"    {line}\n" for line in lines)


def rules_file(rules: list[str]) -> str:
    return "rules:\n" + "".join(f"  - name: r{number}\n{rule}" for number, rule in enumerate(rules))


network_rules = st.builds(rule, st.just("cidr"), some_networks, st.just([]) | some_networks, st.sampled_from(ACTIONS))
rulesets_of_networks = st.lists(network_rules, min_size=1, max_size=5).map(rules_file)


def load_or_skip(text: str) -> Ruleset:
    """A generated ruleset. Skips the example if the loader refuses it, because a rule can never match."""
    try:
        return ruleset(text)
    except ConfigErrors:
        reject()


def export_without_losses(name: str, text: str, **options: Any) -> tuple[str, list[str]]:
    """The export and the notes in its report. No rule may be lost."""
    written, report = export_text(name, text, **options)
    assert report.losses == []
    return written, [note.reason for note in report.notes]


@settings(max_examples=examples(40), deadline=None)
@given(rulesets_of_networks)
@pytest.mark.parametrize(
    ("name", "import_name"),
    [("plain", "plain"), ("nftables", "nft"), ("iptables", "iptables-save"), ("rspamd-map", "rspamd-map")],
)
def test_an_exported_set_contains_exactly_the_rejected_addresses(name: str, import_name: str, text: str) -> None:
    rules = load_or_skip(text)
    written = [export_text(name, text)[0]]
    if name == "iptables":
        written.append(export_text(name, text, version=6)[0])
    wanted = [address for address in ADDRESSES if answer(rules, Mail(address)).startswith("REJECT")]
    blocked_addresses = netaddr.IPSet()
    for part in written:
        with contextlib.suppress(ImportFailedError):  # the set may be empty
            entries = import_text(import_name, part, ImportOptions(shape=ImportForm.LIST, condition="cidr")).entries
            blocked_addresses |= netaddr.IPSet(term.value for term in entries)
    assert [address for address in ADDRESSES if address in blocked_addresses] == wanted


@settings(max_examples=examples(40), deadline=None)
@given(rulesets_of_networks)
def test_a_cidr_table_answers_as_the_rules_do(text: str) -> None:
    require("postmap")
    rules = load_or_skip(text)
    written, _ = export_without_losses("postfix-cidr", text)
    found = postmap("cidr", written, ADDRESSES)
    for address in ADDRESSES:
        assert found.get(address, "DUNNO") == answer(rules, Mail(address)), (text, address)
    if "\t" not in written:
        return  # the exceptions of each rule cover all its networks, so there is nothing to import
    again = ruleset(import_text("postfix-cidr", written).text)
    for address in ADDRESSES:
        assert answer(again, Mail(address)) == answer(rules, Mail(address)), (text, address)


@settings(max_examples=examples(40), deadline=None)
@given(rulesets_of_networks)
def test_postscreen_rejects_the_same_clients_as_the_rules(text: str) -> None:
    require("postmap")
    rules = load_or_skip(text)
    found = postmap("cidr", export_text("postscreen-cidr", text)[0], ADDRESSES)
    rejected = [address for address in ADDRESSES if found.get(address) == "reject"]
    assert rejected == [address for address in ADDRESSES if answer(rules, Mail(address)).startswith("REJECT")]


OCTETS = [
    "192.0.2.0/24",
    "192.0.2.0/25",
    "192.0.2.64/27",
    "192.0.2.7",
    "192.0.0.0/16",
    "198.51.100.0/23",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "2001:db8:1::5",
]
names = st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True)
octets = st.lists(st.sampled_from(OCTETS), min_size=1, max_size=3, unique=True)
name_rules = st.builds(rule, st.just("hostname_suffix"), names, st.just([]) | names, st.sampled_from(ACTIONS))
octet_rules = st.builds(rule, st.just("cidr"), octets, st.just([]) | octets, st.sampled_from(ACTIONS))
# Rules about names come first, because an access table looks up names before addresses.
rulesets_of_clients = st.builds(
    lambda by_name, by_address: rules_file([*by_name, *by_address]),
    st.lists(name_rules, max_size=3),
    st.lists(octet_rules, min_size=1, max_size=3),
)


@settings(max_examples=examples(40), deadline=None)
@given(rulesets_of_clients)
def test_an_access_table_answers_as_the_rules_do(text: str) -> None:
    require("postmap")
    rules = load_or_skip(text)
    written, notes = export_without_losses("postfix-access", text)
    assume(not any("whatever the client's address" in note for note in notes))
    clients = [Mail(address, name) for address in ADDRESSES for name in ["a.x.mail.b.example", "b.example", "unknown"]]
    found = postmap("texthash", written, [key for client in clients for key in client_keys(client)])
    for client in clients:
        assert (first_value(found, client_keys(client)) or "DUNNO") == answer(rules, client), (text, written, client)


@settings(max_examples=examples(40), deadline=None)
@given(rulesets_of_clients)
def test_an_exported_access_db_can_be_imported_with_the_same_meaning(text: str) -> None:
    rules = load_or_skip(text)
    written, notes = export_without_losses("sendmail-access", text)
    assume(not any("whatever the client's address" in note for note in notes))
    again = ruleset(import_text("sendmail-access", written).text) if "Connect:" in written else ruleset("rules: []\n")
    for address in ADDRESSES:
        for name in ["a.x.mail.b.example", "b.example", "unknown"]:
            mail = Mail(address, name)
            assert answer(again, mail) == answer(rules, mail), (text, written, mail)


MORE_NAMES = [*NAMES, "y.example", "y.b.example", "z.x.mail.b.example"]
SUFFIXES = [*NAMES, ".example", ".b.example", ".mail.b.example"]
dotted_rules = st.builds(
    rule,
    st.just("hostname_suffix"),
    st.lists(st.sampled_from(SUFFIXES), min_size=1, max_size=2, unique=True),
    st.just([]) | st.lists(st.sampled_from(SUFFIXES), min_size=1, max_size=2, unique=True),
    st.sampled_from(ACTIONS),
) | st.builds(rule, st.just("hostname"), names, st.just([]), st.sampled_from(ACTIONS))


@settings(max_examples=examples(40), deadline=None)
@given(st.lists(dotted_rules, min_size=1, max_size=4).map(rules_file))
def test_a_dotted_access_table_answers_as_the_rules_do(text: str) -> None:
    require("postmap")
    rules = load_or_skip(text)
    written, _ = export_without_losses("postfix-access", text, dotted=True)
    found = postmap("texthash", written, [key for name in MORE_NAMES for key in dotted_keys(name)])
    for name in MORE_NAMES:
        assert (first_value(found, dotted_keys(name)) or "DUNNO") == answer(rules, Mail(name=name)), (
            text,
            written,
            name,
        )


MAILBOXES = ["a@b.example", "z@b.example", "a@mail.b.example"]
domains = st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True)
mailboxes = st.lists(st.sampled_from(MAILBOXES), min_size=1, max_size=2, unique=True)
sender_rules = st.builds(
    rule, st.just("sender_domain"), domains, st.just([]) | domains, st.sampled_from(ACTIONS)
) | st.builds(rule, st.just("sender"), mailboxes, st.just([]), st.sampled_from(ACTIONS))


@settings(max_examples=examples(40), deadline=None)
@given(st.lists(sender_rules, min_size=1, max_size=4).map(rules_file))
def test_an_access_table_of_senders_answers_as_the_rules_do(text: str) -> None:
    require("postmap")
    rules = load_or_skip(text)
    written, _ = export_without_losses("postfix-access", text, attribute="sender")
    senders = [*MAILBOXES, "q@b.example", "q@x.mail.b.example", "q@other.invalid"]
    found = postmap("texthash", written, [key for sender in senders for key in mail_keys(sender)])
    for sender in senders:
        mail = Mail(sender=sender)
        assert (first_value(found, mail_keys(sender)) or "DUNNO") == answer(rules, mail), (text, written, sender)


def test_a_name_that_is_excepted_for_any_address_is_noted() -> None:
    rules = [
        rule("hostname_suffix", ["example"], ["b.example"], "REJECT"),
        rule("cidr", ["192.0.2.0/24"], [], "REJECT"),
    ]
    written, report = export_text("postfix-access", rules_file(rules))
    assert "b.example\tDUNNO" in written
    assert ["whatever the client's address" in note.reason for note in report.notes].count(True) == 1


def test_csv_and_json_contain_each_rule_in_full() -> None:
    table = list(csv.DictReader(io.StringIO(export_text("csv", INCIDENT)[0])))
    rules = json.loads(export_text("json", INCIDENT)[0])["rules"]
    assert list(dict.fromkeys(row["rule"] for row in table)) == [rule["name"] for rule in rules]
    for rule in rules:
        rows = [row for row in table if row["rule"] == rule["name"]]
        for clause in ("match", "except"):
            values = [(row["condition"], row["value"]) for row in rows if row["clause"] == clause]
            assert values == [(name, value) for name, values_of in rule[clause].items() for value in values_of]
        assert {(row["action"], row["code"], row["text"], row["mode"]) for row in rows} == {
            (rule["action"], rule["code"], rule["text"], rule["mode"])
        }
    by_name = {rule["name"]: rule for rule in rules}
    assert by_name["bulk-networks"]["match"]["cidr"][:2] == ["27.100.28.0/23", "27.100.30.0/23"]
    assert by_name["literal"]["match"] == {"sender_regex": ["$^"]}
    assert by_name["watched"]["mode"] == "observe"
    assert by_name["ending"]["expires"] == "2027-01-01"


# --- Losses, notes and lists ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("plain", {"known-vps-customer", "sakura-vps", "v6", "literal", "spam", "watched", "old"}),
        ("nftables", {"known-vps-customer", "sakura-vps", "v6", "literal", "spam", "watched", "old"}),
        ("postscreen-cidr", {"known-vps-customer", "sakura-vps", "v6", "literal", "spam", "watched", "old"}),
        ("postfix-cidr", {"known-vps-customer", "sakura-vps", "literal", "spam", "watched", "old"}),
        ("postfix-access", {"literal", "spam", "watched", "old"}),
        ("sendmail-access", {"literal", "watched", "old"}),
        ("csv", set()),
        ("json", set()),
    ],
)
def test_each_rule_that_cannot_be_exported_is_reported_with_its_line(name: str, lost: set[str]) -> None:
    _, report = export_text(name, INCIDENT)
    assert {loss.line.text for loss in report.losses} == {f"rule {rule}" for rule in lost}
    places = {f"rule {rule.name}": rule.line for rule in load_text(INCIDENT).ruleset.rules}
    assert all(loss.line.number == places[loss.line.text] for loss in report.losses)


def test_networks_are_merged_and_exempted_addresses_are_left_out() -> None:
    rules = [rule("cidr", ["192.0.2.6"], [], "DUNNO"), rule("cidr", ["192.0.2.0/30", "192.0.2.4/30"], [], "REJECT")]
    assert export_text("plain", rules_file(rules))[0].splitlines()[1:] == ["192.0.2.0/30", "192.0.2.4/31", "192.0.2.7"]


def test_placeholders_in_a_text_become_dots_with_a_note() -> None:
    written, report = export_text("postfix-cidr", INCIDENT)
    assert "REJECT 5.7.1 Mail from ... is not accepted here (bulk-networks {id})" in written
    assert [note.reason for note in report.notes if "placeholders are not supported" in note.reason]


def test_deferred_clients_are_blocked_only_with_the_option() -> None:
    text = rules_file([rule("cidr", ["192.0.2.0/25"], [], "DEFER"), rule("cidr", ["192.0.2.0/24"], [], "REJECT")])
    assert export_text("plain", text)[0].splitlines()[1:] == ["192.0.2.128/25"]
    assert export_text("plain", text, deferred=True)[0].splitlines()[1:] == ["192.0.2.0/24"]


def test_parts_of_a_ruleset_outside_its_rules_are_reported() -> None:
    rules = rules_file([rule("cidr", ["192.0.2.1"], [], "REJECT")])
    _, report = export_text("postfix-cidr", f"mode: observe\ndefault: REJECT go\n{rules}")
    assert [loss.line.text for loss in report.losses] == ["default REJECT go"]
    assert "the whole file is observed" in report.notes[0].reason


@pytest.mark.parametrize(
    ("name", "list_name", "attribute", "wanted"),
    [
        ("plain", "domains", "client", ["spam.example", "ham.example"]),
        ("postfix-access", "domains", "sender", ["spam.example\tREJECT", "ham.example\tREJECT"]),
        ("plain", "red-speed", "client", ["27.100.28.0/22", "119.82.8.0/21", "180.222.32.0/19"]),
    ],
)
def test_a_list_is_exported_for_the_condition_that_uses_it(
    name: str, list_name: str, attribute: str, wanted: list[str]
) -> None:
    assert export_text(name, INCIDENT, (list_name,), attribute=attribute)[0].splitlines()[1:] == wanted


def test_a_missing_list_is_an_error_that_names_the_existing_lists() -> None:
    with pytest.raises(NoSuchListError, match="there is no list 'blue'; there are: red-speed, domains"):
        export_text("plain", INCIDENT, ("blue",))


def test_the_kind_of_an_unused_list_is_guessed_from_its_entries() -> None:
    text = "lists: {a: [192.0.2.0/24, '2001:db8::1'], b: [b.example]}\nrules: []\n"
    assert export_text("plain", text, ("a",))[0].splitlines()[1:] == ["192.0.2.0/24", "2001:db8::1"]
    assert export_text("plain", text, ("b",))[0].splitlines()[1:] == ["b.example"]


@pytest.mark.parametrize(
    ("condition", "values", "wanted"),
    [
        ("hostname_suffix", ["b.example", ".c.example"], ["b.example", "*.c.example"]),
        ("hostname_regex", ["^a/b$", r"^c\/d$"], [r"/^a\/b$/i", r"/^c\/d$/i"]),
        ("sender", ["a@b.example"], ["a@b.example"]),
    ],
)
def test_an_rspamd_map_contains_names_and_expressions_in_its_own_form(
    condition: str, values: list[str], wanted: list[str]
) -> None:
    text = rules_file([rule(condition, values, [], "REJECT")])
    assert export_text("rspamd-map", text, condition=condition)[0].splitlines()[1:] == wanted
    assert export_text("rspamd-map", text)[0].splitlines()[1:] == wanted


def test_networks_that_an_access_table_cannot_express_are_reported() -> None:
    text = rules_file([rule("cidr", [network], [], "REJECT") for network in ("2000::/17", "2001:db8:0:0::/64")])
    _, report = export_text("postfix-access", text)
    assert ["keys; export a cidr: table" in loss.reason or "`::`" in loss.reason for loss in report.losses] == [
        True,
        True,
    ]


def test_counters_and_greylisting_are_reported_as_lost() -> None:
    rules = """
counters: {often: {count: requests, per: client_address, within: 1h}}
rules:
  - {name: often, match: {counter: often > 5, cidr: 192.0.2.0/24}, action: DEFER}
  - {name: grey, match: {cidr: 198.51.100.0/24}, action: GREYLIST}
  - {name: kept, match: {cidr: 203.0.113.0/24}, action: REJECT}
"""
    for name in ("plain", "csv", "json", "nftables"):
        text, report = export(name, load_text(rules), ExportOptions(), TODAY)
        assert "203.0.113.0/24" in text
        assert "192.0.2.0/24" not in text
        assert "198.51.100.0/24" not in text
        lost = [f"{loss.line.text} {loss.reason}" for loss in report.losses]
        assert any("rule often" in text and "uses counter" in text for text in lost)
        assert any("rule grey" in text and "uses GREYLIST" in text for text in lost)


# --- Real programs ----------------------------------------------------------------------------------------------------


def run(*command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)


def assert_accepted(*command: str, trivial: str, written: str) -> None:
    """Asserts that the real program accepts the export. Skips the test if it does not accept a trivial file."""
    probe = run(*command, given=trivial)
    if probe.returncode:
        pytest.skip(f"{command[0]} does not work on this kernel: {probe.stderr.strip()[:200]}")
    ran = run(*command, given=written)
    assert (ran.returncode, ran.stderr) == (0, ""), written


WITH_ALL = "rules:\n- name: a\n  match: {cidr: [0.0.0.0/0, '::/0']}\n  except: {cidr: 10.0.0.0/8}\n  action: REJECT\n"
NOTHING = "rules:\n- name: a\n  match: {cidr: 192.0.2.1}\n  action: DUNNO\n"


@pytest.mark.parametrize("text", [INCIDENT, WITH_ALL, NOTHING], ids=["incident", "all", "nothing"])
def test_nft_accepts_the_set(text: str) -> None:
    require("nft", root=True)
    trivial = "table inet probe {\nset s {\ntype ipv4_addr\nflags interval\nelements = { 192.0.2.0/24 }\n}\n}\n"
    assert_accepted(
        "nft", "--check", "-f", "-", trivial=trivial, written=export_text("nftables", text, deferred=True)[0]
    )


@pytest.mark.parametrize("text", [INCIDENT, WITH_ALL, NOTHING], ids=["incident", "all", "nothing"])
@pytest.mark.parametrize(("program", "version"), [("iptables-restore", 4), ("ip6tables-restore", 6)])
def test_iptables_restore_accepts_the_chain(text: str, program: str, version: int) -> None:
    require(program, root=True)
    trivial = "*filter\n:policyd-probe - [0:0]\nCOMMIT\n"
    written, _ = export_text("iptables", text, version=version, deferred=True)
    assert_accepted(program, "--test", "--noflush", trivial=trivial, written=written)


@pytest.mark.parametrize("text", [INCIDENT, WITH_ALL, NOTHING], ids=["incident", "all", "nothing"])
def test_ipset_restores_the_sets_twice(text: str) -> None:
    """Uses a separate network namespace, so that the machine's sets do not change."""
    require("ipset", "unshare", root=True)
    written = export_text("ipset", text, deferred=True)[0]
    script = "ipset restore && ipset list -output save"
    probe = run("unshare", "--net", "sh", "-c", script, given="create probe hash:net\n")
    if probe.returncode:
        pytest.skip(f"ipset does not work on this kernel: {probe.stderr.strip()[:200]}")
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(written)
        file.flush()
        twice = f"ipset restore -file {file.name} && ipset restore -file {file.name} && ipset list -output save"
        ran = run("unshare", "--net", "sh", "-c", twice)
    assert (ran.returncode, ran.stderr) == (0, "")
    members = {line.split()[2] for line in ran.stdout.splitlines() if line.startswith("add policyd")}
    wanted = {line.split()[2] for line in written.splitlines() if line.startswith("add ")}
    assert members == wanted


@pytest.mark.parametrize("name", ["postfix-access", "postfix-cidr", "postscreen-cidr"])
def test_postfix_reads_the_table_without_a_warning(name: str, tmp_path: Path) -> None:
    require("postmap")
    path = tmp_path / "table"
    path.write_text(export_text(name, INCIDENT)[0])
    if name == "postfix-access":
        ran = run("postmap", f"hash:{path}")
    else:
        ran = run("postmap", "-q", "192.0.2.1", f"cidr:{path}")
    assert ran.stderr == ""
