from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Ended

    Run = Callable[..., Ended]

DATA = Path(__file__).parents[1] / "data"
SHIPPED = Path(__file__).parents[2] / "config" / "rules.yaml"
SENDMAIL, POSTFIX, SHAPES = DATA / "maillog.sendmail", DATA / "maillog.postfix", DATA / "maillog.shapes"

DELIVERED = (
    "Nov 20 10:00:00 mx postfix/smtpd[1]: 4jX2YG3z6mzJJKM: client=ik1-1-1.vs.sakura.ne.jp[192.0.2.1]\n"
    "Nov 20 10:00:00 mx postfix/qmgr[1]: 4jX2YG3z6mzJJKM: from=<a@b.example>, size=1, nrcpt=1 (queue active)\n"
    "Nov 20 10:00:00 mx postfix/lmtp[2]: 4jX2YG3z6mzJJKM: to=<c@d.example>, relay=local, dsn=2.0.0, status=sent (ok)\n"
    "Nov 20 10:00:00 mx postfix/qmgr[1]: 4jX2YG3z6mzJJKM: removed\n"
)


@pytest.fixture
def delivered(tmp_path: Path) -> Path:
    log = tmp_path / "mail.log"
    log.write_text(DELIVERED)
    return log


# --- replay ---------------------------------------------------------------------------------------------------------


def test_replay_over_the_incidents(run: Run) -> None:
    ended = run("replay", "--rules", SHIPPED, SENDMAIL, POSTFIX)
    assert (ended.status, ended.err) == (0, "")
    lines = {line.split()[0]: line.split() for line in ended.out.splitlines() if line}
    assert lines["sakura-vps"] == ["sakura-vps", "REJECT", "0", "26", "25", "7"]
    assert lines["bulk-mailer-networks"] == ["bulk-mailer-networks", "REJECT", "0", "7", "6", "1"]
    assert "No mail that was delivered would have been refused." in ended.out


def test_replay_for_programs(run: Run) -> None:
    ended = run("replay", "--json", "--rules", SHIPPED, SENDMAIL)
    assert json.loads(ended.out)["transactions"] == 28
    ended = run("replay", "--json", "--rules", SHIPPED, "--against", SHIPPED, SENDMAIL)
    assert json.loads(ended.out)["changed"] == 0


def test_replay_of_compressed_files_and_standard_input(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / "maillog.1.gz"
    packed.write_bytes(gzip.compress(SENDMAIL.read_bytes()))
    with POSTFIX.open() as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        ended = run("replay", "--json", "--rules", SHIPPED, packed, "-")
    assert json.loads(ended.out)["transactions"] == 35


@pytest.mark.parametrize(("allowed", "status"), [(0, 1), (1, 0), (2, 0)])
def test_replay_fails_when_more_delivered_mails_are_hit_than_allowed(
    run: Run, delivered: Path, allowed: int, status: int
) -> None:
    ended = run("replay", "--rules", SHIPPED, "--fail-if-delivered", allowed, delivered)
    assert ended.status == status
    assert ended.err == ("policyd: 1 delivered mail would have been refused; none is allowed\n" if status else "")
    assert "1 mail was delivered, and would have been refused:" in ended.out


def test_replay_against_fails_only_for_what_is_new(run: Run, delivered: Path, tmp_path: Path) -> None:
    lenient = tmp_path / "lenient.yaml"
    lenient.write_text("rules: []\n")
    check = ("--fail-if-delivered", "0", delivered)
    assert run("replay", "--rules", SHIPPED, "--against", SHIPPED, *check).status == 0
    assert run("replay", "--rules", lenient, "--against", SHIPPED, *check).status == 0
    assert run("replay", "--rules", SHIPPED, "--against", lenient, *check).status == 1


@pytest.mark.parametrize(
    ("make", "status", "message"),
    [
        (lambda path: None, 2, "no such file or directory"),
        (lambda path: path.mkdir(), 2, "is a folder; name the files in it"),
        (lambda path: path.write_bytes(bytes(1000)), 2, "is a binary file, no log"),
        (lambda path: path.write_bytes(gzip.compress(b"x" * 9999)[:-9]), 2, "the compressed file is cut off"),
        (lambda path: path.write_text("Dear Sir,\n"), 2, "no mail log: none of its 1 lines"),
        (lambda path: path.write_text(""), 1, "0 lines"),
        (lambda path: path.write_text("Nov 20 10:00:00 mx sshd[1]: hello\n"), 1, "1 line, 1 of other matters"),
    ],
    ids=["missing", "folder", "binary", "cut off", "letter", "empty", "no mail"],
)
def test_a_bad_log_ends_a_command_in_one_line(
    run: Run, tmp_path: Path, make: Callable[[Path], None], status: int, message: str
) -> None:
    log = tmp_path / "mail.log"
    make(log)
    ended = run("replay", "--rules", SHIPPED, log)
    assert ended.status == status
    assert ended.out == ""
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("policyd: ")
    assert str(log) in ended.err
    assert message in ended.err


def test_replay_without_a_log_is_wrong_usage(run: Run) -> None:
    assert run("replay", "--rules", SHIPPED).status == 2


def test_replay_with_a_bad_ruleset_says_what_is_wrong_with_it(run: Run, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules:\n  - {name: a, match: {cidr: x}, action: REJECT}\n")
    for arguments in (("--rules", rules), ("--rules", SHIPPED, "--against", rules)):
        ended = run("replay", *arguments, POSTFIX)
        assert ended.status == 1
        assert f"{rules}:2:" in ended.err


# --- suggest --------------------------------------------------------------------------------------------------------


def test_suggest_over_the_incidents_is_a_ruleset(run: Run, tmp_path: Path) -> None:
    ended = run("suggest", SENDMAIL, POSTFIX)
    assert (ended.status, ended.err) == (0, "")
    assert "match: {hostname_suffix: vs.sakura.ne.jp}" in ended.out
    assert "match: {cidr: 180.222.51.0/24}" in ended.out
    assert r"match: {sender_regex: '^rainbow\+err[a-z0-9]+@'}" in ended.out
    candidates = tmp_path / "candidates.yaml"
    candidates.write_text(ended.out)
    assert run("check", "--strict", "--rules", candidates).status == 0
    # Tried on the log it came from: only observed, so no delivered mail is hit.
    replayed = json.loads(run("replay", "--json", "--rules", candidates, SENDMAIL, POSTFIX).out)
    assert [(rule["rule"], rule["mode"], rule["transactions"]) for rule in replayed["rules"]] == [
        ("names-vs-sakura-ne-jp", "observe", 27),
        ("network-180-222-51-0-24", "observe", 7),
        ("senders-rainbow-err", "observe", 7),
        ("default", "enforce", 35),
    ]


def test_suggest_for_programs(run: Run) -> None:
    candidates = json.loads(run("suggest", "--json", "--limit", "1", SENDMAIL, POSTFIX).out)["candidates"]
    assert [(one["name"], one["match"]) for one in candidates] == [
        ("names-vs-sakura-ne-jp", {"hostname_suffix": "vs.sakura.ne.jp"})
    ]


def test_suggest_with_nothing_to_suggest_says_so(run: Run) -> None:
    ended = run("suggest", "--rules", SHIPPED, SENDMAIL, POSTFIX)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("policyd: nothing to suggest: 35 mails, 35 refused or deferred, 34 of these decided")
