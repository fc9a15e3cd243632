"""`policyd check`, `explain` and `schema`, run as commands."""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # each test starts policyd as a program

RULES = """\
lists:
  bulk: {file: bulk.txt}
rules:
  - name: customer
    match: {hostname: tk2-406-44074.vs.sakura.ne.jp}
    action: DUNNO
  - name: vps
    match: {hostname_suffix: vs.sakura.ne.jp}
    action: REJECT 5.7.1 No mail from {hostname} ({rule})
    note: the February incident
  - name: bulk
    match: {cidr: [$bulk, 203.142.214.0/24]}
    except: {cidr: 203.142.214.25}
    action: REJECT 5.7.1 No mail from {client_address}
  - name: watched
    match: {sender_regex: '^rainbow'}
    action: REJECT
    mode: observe
  - name: over
    match: {cidr: 198.51.100.0/24}
    action: REJECT
    expires: 2020-01-01
  - name: nameless
    match: {reverse_dns: missing}
    action: DEFER 4.7.25 cannot find your hostname
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rules.yaml").write_text(RULES)
    (tmp_path / "bulk.txt").write_text("# networks\n" + "".join(f"10.{n}.0.0/16\n" for n in range(200)))
    return tmp_path


def policyd(folder: Path, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "COLUMNS": "80", "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-m", "policyd", *arguments]
    return subprocess.run(
        command, cwd=folder, input=stdin, capture_output=True, timeout=60, env=environment, check=False
    )


def explain_as_json(folder: Path, *arguments: str) -> dict[str, Any]:
    done = policyd(folder, "explain", "--rules", "rules.yaml", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    explanation: dict[str, Any] = json.loads(done.stdout)
    return explanation


def test_check_prints_the_summary_of_the_load(folder: Path) -> None:
    done = policyd(folder, "check", "--rules", "rules.yaml")
    assert done.returncode == 0
    assert b": 6 rules, 203 networks, 2 names, 1 expression," in done.stdout
    assert b"rules.yaml:22:5: warning: rule 'over'" in done.stderr


def test_strict_turns_warnings_into_exit_status_1(folder: Path) -> None:
    assert policyd(folder, "check", "--rules", "rules.yaml", "--strict").returncode == 1


def test_a_wrong_ruleset_gives_exit_status_1_and_one_line_for_each_error(folder: Path) -> None:
    (folder / "rules.yaml").write_text(RULES.replace("hostname_suffix", "hostname_sufix").replace("REJECT", "REJCT", 1))
    done = policyd(folder, "check", "--rules", "rules.yaml")
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert done.stdout == b""
    assert lines[0] == (
        "rules.yaml:8:13: rule 'vps': unknown condition 'hostname_sufix'; did you mean 'hostname_suffix'?"
    )
    assert lines[1].startswith("rules.yaml:9:13: rule 'vps': ")
    assert lines[2].startswith("rules.yaml:22:5: warning: rule 'over': expired on 2020-01-01, so it is skipped")
    assert len(lines) == 3


def test_check_says_how_many_tests_passed(folder: Path) -> None:
    assert policyd(folder, "check", "--rules", "rules.yaml").stdout.endswith(b" s; no tests\n")
    given = "given: {client_address: 10.1.2.3}, expect: REJECT"
    (folder / "rules.yaml").write_text(f"{RULES}tests: [{{{given}}}]\n")
    assert policyd(folder, "check", "--rules", "rules.yaml").stdout.endswith(b" s; 1 test passed\n")
    (folder / "rules.yaml").write_text(f"{RULES}tests: [{{{given}}}, {{{given}, rule: bulk}}]\n")
    assert policyd(folder, "check", "--rules", "rules.yaml").stdout.endswith(b" s; 2 tests passed\n")


def test_a_list_can_be_checked_before_it_is_moved_into_place(folder: Path) -> None:
    new = folder / "bulk.txt.new"
    new.write_text("198.51.100.0/24\n203.0.113.7/24\n")
    done = policyd(folder, "check", "--rules", "rules.yaml", "--list", "bulk=bulk.txt.new")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"bulk.txt.new:2:1: rule 'bulk': cidr: list 'bulk': '203.0.113.7/24' has host bits set" in done.stderr
    new.write_text("198.51.100.0/24\n")
    done = policyd(folder, "check", "--rules", "rules.yaml", "--list", "bulk=bulk.txt.new")
    assert done.returncode == 0
    assert b": 6 rules, 4 networks, " in done.stdout
    assert b": 6 rules, 203 networks, " in policyd(folder, "check", "--rules", "rules.yaml").stdout


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        ("bulk=absent.txt", 1, "absent.txt cannot be read"),
        ("blk=bulk.txt", 2, "'blk' is not a list that is read from a file; did you mean 'bulk'?"),
        ("bulk", 2, "'bulk' is not NAME=FILE"),
        ("bulk=", 2, "'bulk=' is not NAME=FILE"),
    ],
)
def test_a_wrong_list_option_gives_a_one_line_error(folder: Path, given: str, status: int, message: str) -> None:
    done = policyd(folder, "check", "--rules", "rules.yaml", "--list", given)
    assert (done.returncode, done.stdout) == (status, b"")
    assert message in done.stderr.decode().splitlines()[0]


def test_quiet_prints_warnings_but_no_notices_and_no_summary(folder: Path) -> None:
    done = policyd(folder, "check", "--rules", "rules.yaml", "--quiet")
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.count(b"warning: rule 'over'") == 1
    (folder / "rules.yaml").write_text("mode: observe\n" + RULES.replace("expires: 2020-01-01", "note: x"))
    done = policyd(folder, "check", "--rules", "rules.yaml", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_strict_passes_with_notices(folder: Path) -> None:
    soon = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=7)
    (folder / "rules.yaml").write_text("mode: observe\n" + RULES.replace("2020-01-01", str(soon)))
    done = policyd(folder, "check", "--rules", "rules.yaml", "--strict")
    assert done.returncode == 0
    assert b"notice: rule 'over': expires on " in done.stderr
    assert b"rules.yaml:1:1: notice: mode: observe: everything is decided and logged, and every answer is DUNNO\n" in (
        done.stderr
    )
    assert b" s; mode: observe, so every answer is DUNNO; no tests\n" in done.stdout


@pytest.mark.parametrize("arguments", [["check"], ["explain", "client_address=192.0.2.1"]])
def test_a_rules_file_that_cannot_be_read_is_exit_status_2(folder: Path, arguments: list[str]) -> None:
    done = policyd(folder, *arguments, "--rules", "absent.yaml")
    assert done.returncode == 2
    assert done.stderr == b"absent.yaml: cannot be read: No such file or directory\n"


def test_a_list_file_that_cannot_be_read_is_an_error_in_the_ruleset(folder: Path) -> None:
    (folder / "bulk.txt").unlink()
    done = policyd(folder, "check", "--rules", "rules.yaml")
    assert done.returncode == 1
    assert b"rules.yaml:2:" in done.stderr


def test_explain_shows_the_decision_the_rules_and_the_matching_entry(folder: Path) -> None:
    done = policyd(folder, "explain", "--rules", "rules.yaml", "client_address=10.77.1.2", "--hostname", "a.example")
    assert done.returncode == 0
    assert done.stdout.decode() == (
        "REJECT       5.7.1 No mail from 10.77.1.2\n"
        "rule         bulk  (rules.yaml:11)\n"
        "client       a.example[10.77.1.2]\n"
        "reverse DNS  verified  a.example  [as given]\n"
        "\n"
        "1  customer  no      hostname: a.example is not tk2-406-44074.vs.sakura.ne.jp\n"
        "2  vps       no      hostname_suffix: a.example is not under vs.sakura.ne.jp\n"
        "3  bulk      REJECT  cidr: 10.77.1.2 is in 10.77.0.0/16  (bulk.txt:79)\n"
    )


def test_explain_says_that_a_claimed_name_never_exempts(folder: Path) -> None:
    options = ["client_address=192.0.2.1", "--reverse-dns", "mismatch", "--hostname", "tk2-406-44074.vs.sakura.ne.jp"]
    done = policyd(folder, "explain", "--rules", "rules.yaml", *options)
    assert b"tk2-406-44074.vs.sakura.ne.jp is only claimed, and a claimed name never exempts" in done.stdout


def test_explain_as_json_is_complete(folder: Path) -> None:
    got = explain_as_json(folder, "client_address=198.51.100.7", "sender=rainbow@x.example", "--reverse-dns", "missing")
    assert (got["action"], got["reply"], got["rule"]) == ("DEFER", "4.7.25 cannot find your hostname", "nameless")
    assert got["observed"] == ["watched"]
    assert got["dns"]["reverse_dns"] == "missing"
    outcomes = {rule["name"]: (rule["outcome"], rule["expired"]) for rule in got["rules"]}
    assert outcomes == {
        "customer": ("no", False),
        "vps": ("no", False),
        "bulk": ("no", False),
        "watched": ("yes", False),
        "over": ("no", True),
        "nameless": ("yes", False),
    }
    assert got["rules"][3]["match"] == [
        {
            "condition": "sender_regex",
            "values": ["^rainbow"],
            "outcome": "yes",
            "seen": ["rainbow@x.example"],
            "entry": {"text": "^rainbow", "file": "rules.yaml", "line": 16},
        }
    ]


@pytest.mark.parametrize(
    ("options", "action", "rule", "downgraded"),
    [
        (["--hostname", "tk2-406-44074.vs.sakura.ne.jp"], "DUNNO", "customer", False),
        (["--reverse-dns", "mismatch", "--hostname", "tk2-406-44074.vs.sakura.ne.jp"], "REJECT", "vps", False),
        (["--reverse-dns", "error", "--hostname", "tk2-406-44074.vs.sakura.ne.jp"], "DEFER", "vps", True),
        (["client_name=x.vs.sakura.ne.jp"], "REJECT", "vps", False),
        (["client_name=unknown", "--reverse-dns", "missing"], "DEFER", "nameless", False),
        (["client_address=203.142.214.25", "--hostname", "a.example"], "DUNNO", "default", False),
        (["client_address=203.142.214.26", "--reverse-dns", "error"], "DEFER", "bulk", True),
    ],
)
def test_explain_uses_options_in_place_of_dns(
    folder: Path, options: list[str], action: str, rule: str, downgraded: bool
) -> None:
    got = explain_as_json(folder, "client_address=192.0.2.1", *options)
    assert (got["action"], got["rule"], got["downgraded"]) == (action, rule, downgraded)


def test_explain_reads_a_request_as_postfix_sends_it(folder: Path) -> None:
    request = b"request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=203.142.214.9\nclient_name=a.example\n"
    for end in (b"\n", b""):
        done = policyd(folder, "explain", "--rules", "rules.yaml", stdin=request + end)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(b"REJECT       5.7.1 No mail from 203.142.214.9\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clent_address=1"], "unknown attribute 'clent_address'; did you mean 'client_address'?"),
        (["hostname=a.example"], "unknown attribute 'hostname'; give an answer of DNS with --hostname NAME"),
        (["client_address=1", "rdns=missing"], "unknown attribute 'rdns'; give an answer of DNS with --reverse-dns"),
        (["claimed=a.example"], "give an answer of DNS with --reverse-dns mismatch --hostname NAME"),
        (["client_ip=192.0.2.1"], "unknown attribute 'client_ip'; did you mean 'client_address'?"),
        (["from=a@b.example"], "unknown attribute 'from'; did you mean 'sender'?"),
        (["To=a@b.example"], "unknown attribute 'To'; did you mean 'recipient'?"),
        (["helo=a.example"], "unknown attribute 'helo'; did you mean 'helo_name'?"),
        (["192.0.2.1"], "'192.0.2.1' is not NAME=VALUE, for example client_address=192.0.2.1"),
        (["client_address=1", "--reverse-dns", "verified"], "--reverse-dns verified needs a --hostname"),
        (["client_address=1", "--reverse-dns", "missing", "--hostname", "a"], "--hostname: such a client has no name"),
        (["client_address=1", "--reverse-dns", "gone"], "'gone' is not one of"),
        (["client_address=1", "--listed", "zen"], "--listed zen: write LIST=ANSWER, such as zen=127.0.0.4"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_status_2(folder: Path, arguments: list[str], message: str) -> None:
    done = policyd(folder, "explain", "--rules", "rules.yaml", *arguments)
    assert done.returncode == 2
    assert message in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_an_invalid_request_on_standard_input_is_exit_status_2(folder: Path) -> None:
    done = policyd(folder, "explain", "--rules", "rules.yaml", stdin=b"hello\n")
    assert done.returncode == 2
    assert b"standard input: a line that is not name=value: 'hello'" in done.stderr


def test_text_of_a_client_is_escaped(folder: Path) -> None:
    attributes = [
        "client_address=203.142.214.9",
        "helo_name=a\x1b[31m\nb",
        "sender=\u202ex@a.example",
        "sasl_username=\udcff",
    ]
    done = policyd(folder, "explain", "--rules", "rules.yaml", "--hostname", "a.example", *attributes)
    assert done.returncode == 0, done.stderr
    assert b"helo         a\\x1b[31m\\nb\n" in done.stdout
    assert b"from         \\u202ex@a.example\n" in done.stdout
    assert b"login        \\xff\n" in done.stdout


def test_under_observe_the_answer_is_dunno_and_the_decision_is_shown(folder: Path) -> None:
    (folder / "rules.yaml").write_text("mode: observe\n" + RULES)
    got = explain_as_json(folder, "client_address=203.142.214.9", "--hostname", "a.example")
    assert (got["action"], got["would"], got["rule"]) == ("DUNNO", "REJECT", "bulk")


@pytest.mark.parametrize(("file", "key"), [("rules", "rules"), ("settings", "listen")])
def test_schema_is_a_json_schema(folder: Path, file: str, key: str) -> None:
    done = policyd(folder, "schema", file)
    assert done.returncode == 0, done.stderr
    schema = json.loads(done.stdout)
    assert "$schema" in schema
    assert key in schema["properties"]
