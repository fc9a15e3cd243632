# ruff: noqa: E501, ISC004 - log lines as programs write them

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from policyd.logs import maillog

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Run

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


def test_replay_as_json(run: Run) -> None:
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
def test_replay_fails_if_too_many_delivered_mails_are_refused(
    run: Run, delivered: Path, allowed: int, status: int
) -> None:
    ended = run("replay", "--rules", SHIPPED, "--fail-if-delivered", allowed, delivered)
    assert ended.status == status
    assert ended.err == ("policyd: 1 delivered mail would have been refused; none is allowed\n" if status else "")
    assert "1 mail was delivered, and would have been refused:" in ended.out


def test_replay_against_fails_only_for_new_refusals(run: Run, delivered: Path, tmp_path: Path) -> None:
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
        (lambda path: path.write_bytes(bytes(1000)), 2, "is a binary file, not a log"),
        (
            lambda path: path.write_text("Nov 20 10:00:00 mx sshd[1]: hello\n", encoding="utf-16"),
            2,
            "if it is UTF-16 text, convert it with",
        ),
        (lambda path: path.write_bytes(gzip.compress(b"x" * 9999)[:-9]), 2, "the compressed file is cut off"),
        (lambda path: path.write_text("Dear Sir,\n"), 2, "not a mail log: none of its 1 lines"),
        (lambda path: path.write_text(""), 1, "0 lines"),
        (lambda path: path.write_text("Nov 20 10:00:00 mx sshd[1]: hello\n"), 1, "1 line, 1 of other matters"),
    ],
    ids=["missing", "folder", "binary", "utf-16", "cut off", "letter", "empty", "no mail"],
)
def test_a_bad_log_gives_a_one_line_error(
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


def test_replay_with_a_bad_ruleset_prints_its_errors(run: Run, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules:\n  - {name: a, match: {cidr: x}, action: REJECT}\n")
    for arguments in (("--rules", rules), ("--rules", SHIPPED, "--against", rules)):
        ended = run("replay", *arguments, POSTFIX)
        assert ended.status == 1
        assert f"{rules}:2:" in ended.err


# --- suggest --------------------------------------------------------------------------------------------------------


def test_suggest_writes_a_ruleset_for_the_incidents(run: Run, tmp_path: Path) -> None:
    ended = run("suggest", SENDMAIL, POSTFIX)
    assert (ended.status, ended.err) == (0, "")
    assert "match: {hostname_suffix: vs.sakura.ne.jp}" in ended.out
    assert "match: {cidr: 180.222.51.0/24}" in ended.out
    assert r"match: {sender_regex: '^rainbow\+err[a-z0-9]+@'}" in ended.out
    candidates = tmp_path / "candidates.yaml"
    candidates.write_text(ended.out)
    assert run("check", "--strict", "--rules", candidates).status == 0
    # The rules only observe, so they refuse no mail of the same log.
    replayed = json.loads(run("replay", "--json", "--rules", candidates, SENDMAIL, POSTFIX).out)
    assert [(rule["rule"], rule["mode"], rule["transactions"]) for rule in replayed["rules"]] == [
        ("names-vs-sakura-ne-jp", "observe", 27),
        ("network-180-222-51-0-24", "observe", 7),
        ("senders-rainbow-err", "observe", 7),
        ("default", "enforce", 35),
    ]


def test_suggest_as_json(run: Run) -> None:
    candidates = json.loads(run("suggest", "--json", "--limit", "1", SENDMAIL, POSTFIX).out)["candidates"]
    assert [(candidate["name"], candidate["match"]) for candidate in candidates] == [
        ("names-vs-sakura-ne-jp", {"hostname_suffix": "vs.sakura.ne.jp"})
    ]


def test_suggest_reports_that_there_is_nothing_to_suggest(run: Run) -> None:
    ended = run("suggest", "--rules", SHIPPED, SENDMAIL, POSTFIX)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("policyd: nothing to suggest: 35 mails, 35 refused or deferred, 34 of these decided")


# --- Logs that earlier versions misread -----------------------------------------------------------------------------


def log_file(folder: Path, *lines: str) -> Path:
    log = folder / "mail.log"
    log.write_text("\n".join(lines) + "\n")
    return log


def refusal(number: int, client: str, text: str, *, state: str = "RCPT", to: str = "b@example.net") -> str:
    return (
        f"Jan  5 10:00:01 mx postfix/smtpd[{number}]: NOQUEUE: reject: {state} from {client}: {text};"
        f" from=<a@example.com> to=<{to}> proto=ESMTP helo=<h.example.com>"
    )


# Clients of a large mail provider.
PROVIDER = [f"mail-ed{n}-f41.google.com[209.85.208.{n}]" for n in range(1, 6)]


@pytest.mark.parametrize(
    "text",
    [
        "550 5.1.1 <jon@example.net>: Recipient address rejected: User unknown in virtual mailbox table",
        "550 <jon@example.net>: Recipient address rejected: User unknown in local recipient table",
        "450 4.1.1 <jon@example.net>: Recipient address rejected: unverified address: Address verification in progress",
        "550 5.1.1 <jon@example.net>: Recipient address rejected: undeliverable address: host mx[192.0.2.1] said: 550 no",
        "552 5.2.2 <jon@example.net>: Recipient address rejected: Mailbox is full",
        "452 4.2.2 <jon@example.net>: Recipient address rejected: Quota exceeded (mailbox for user is full)",
        "450 4.2.0 <jon@example.net>: Recipient address rejected: Greylisted, see http://postgrey.example/help",
        "451 4.7.1 Greylisting in action, please come back later",
        "4.7.1  ",
        "451",
        "450 4.7.1 <jon@example.net>: Recipient address rejected: Policy restriction; try again later",
        "421 4.7.0 mx.example.net Error: too many connections from 209.85.208.41",
        "450 4.7.1 Error: too much mail from 209.85.208.41: too many messages",
        "451 4.3.5 Server configuration problem",
        "451 4.3.0 <a@example.com>: Temporary lookup failure",
        "452 4.3.1 Insufficient system storage",
        "552 5.3.4 Message size exceeds fixed limit",
        "450 4.3.2 Service currently unavailable",
    ],
)
def test_suggest_ignores_refusals_that_are_not_about_the_client(run: Run, tmp_path: Path, text: str) -> None:
    log = log_file(tmp_path, *(refusal(n, client, text) for n, client in enumerate(PROVIDER)))
    ended = run("suggest", log)
    assert (ended.status, ended.out) == (1, "")
    assert (
        "nothing to suggest: 5 mails, 5 refused or deferred, 5 of these have a reason that is not about the client"
        in ended.err
    )
    assert "--min-clients" not in ended.err


def test_suggest_ignores_bounces_by_other_servers(run: Run, tmp_path: Path) -> None:
    log = log_file(
        tmp_path,
        *(
            f"Jan  5 10:00:0{n} mx postfix/smtpd[{n}]: AAA{n}: client={client}\n"
            f"Jan  5 10:00:0{n} mx postfix/smtp[9]: AAA{n}: to=<b@elsewhere.example>, relay=mx.elsewhere.example"
            "[203.0.113.1]:25, delay=1, dsn=5.7.1, status=bounced (host said: 554 5.7.1 your server is listed)"
            for n, client in enumerate(PROVIDER)
        ),
    )
    assert run("suggest", log).status == 1


def test_suggest_ignores_mail_that_was_delivered_later(run: Run, tmp_path: Path) -> None:
    deferred = "450 4.7.25 Client host rejected: cannot find your hostname"
    lines = [refusal(n, client, deferred, to=f"b{n}@example.net") for n, client in enumerate(PROVIDER)]
    assert run("suggest", log_file(tmp_path, *lines)).status == 0
    later = [
        # The provider tries again from its other hosts.
        f"Jan  5 10:20:0{n} mx postfix/smtpd[{n}]: AAA{n}: client={PROVIDER[(n + 1) % 5]}\n"
        f"Jan  5 10:20:0{n} mx postfix/qmgr[{n}]: AAA{n}: from=<a@example.com>, size=1, nrcpt=1 (queue active)\n"
        f"Jan  5 10:20:0{n} mx postfix/local[9]: AAA{n}: to=<b{n}@example.net>, relay=local, dsn=2.0.0, status=sent (ok)"
        for n in range(5)
    ]
    ended = run("suggest", log_file(tmp_path, *lines, *later))
    assert (ended.status, ended.out) == (1, "")
    assert "5 of these have a reason that is not about the client" in ended.err


def test_suggest_shows_reasons_and_marks_a_large_mail_provider(run: Run, tmp_path: Path) -> None:
    text = "554 5.7.1 <b@example.net>: Relay access denied"
    listed = "554 5.7.1 Service unavailable; Client host [209.85.208.9] blocked using bl.example; https://bl.example/q"
    lines = [refusal(n, client, text) for n, client in enumerate(PROVIDER)]
    lines.append(refusal(9, "mail-ed9-f41.google.com[209.85.208.9]", listed))
    ended = run("suggest", log_file(tmp_path, *lines))
    assert "match: {hostname_suffix: google.com}" in ended.out
    assert "  # google.com: a large mail provider, whose other users' mail would be refused as well" in ended.out
    assert "  # 5 for: 554 5.7.1 Relay access denied\n" in ended.out
    assert "  # 1 for: 554 5.7.1 Service unavailable; Client host blocked using bl.example\n" in ended.out
    as_json = json.loads(run("suggest", "--json", log_file(tmp_path, *lines)).out)
    assert as_json["candidates"][0]["reasons"][0] == {"mails": 5, "text": "554 5.7.1 Relay access denied"}


@pytest.mark.parametrize(
    ("client", "sender"),
    [("h{n}.mail.protection.outlook.com", "a@example.com"), ("unknown", "news{n}@gmail.com")],
    ids=["under a provider's name", "senders of a provider"],
)
def test_every_candidate_of_a_large_mail_provider_has_a_remark(
    run: Run, tmp_path: Path, client: str, sender: str
) -> None:
    lines = [
        refusal(n, f"{client.format(n=n)}[198.{n}.100.7]", "554 5.7.1 no").replace("a@example.com", sender.format(n=n))
        for n in range(1, 6)
    ]
    candidates = json.loads(run("suggest", "--json", log_file(tmp_path, *lines)).out)["candidates"]
    assert len(candidates) == 1
    assert any("a large mail provider" in remark for remark in candidates[0]["remarks"])


def test_suggest_reports_private_clients(run: Run, tmp_path: Path) -> None:
    lines = [refusal(n, f"printer{n}.lan[192.168.1.{n}]", "554 5.7.1 no") for n in (1, 2)]
    ended = run("suggest", log_file(tmp_path, *lines))
    assert ended.status == 1
    assert "2 mails, 2 refused or deferred, 2 of these from private addresses" in ended.err
    assert "--min-clients" not in ended.err


def test_suggest_notes_that_postscreen_looks_up_no_names(run: Run, tmp_path: Path) -> None:
    lines = [
        f"Jan  5 10:00:01 mx postfix/postscreen[11]: NOQUEUE: reject: RCPT from [198.51.100.{n}]:1111: 550 5.7.1 Service"
        f" unavailable; client [198.51.100.{n}] blocked using bl.example; from=<a@example.com>, to=<x@example.net>,"
        " proto=ESMTP, helo=<h1.example.org>"
        for n in range(1, 5)
    ]
    ended = run("suggest", log_file(tmp_path, *lines))
    assert "match: {cidr: 198.51.100.0/29}" in ended.out or "match: {cidr: 198.51.100.0/24}" in ended.out
    assert "postscreen refused 4 of the clients without looking up their names" in ended.out
    assert "had a name" not in ended.out


def test_replay_does_not_treat_clients_of_postscreen_as_nameless(run: Run, tmp_path: Path) -> None:
    line = (
        "Jan  5 10:00:01 mx postfix/postscreen[11]: NOQUEUE: reject: RCPT from [198.51.100.7]:1111: 550 5.7.1 no;"
        " from=<a@example.com>, to=<x@example.net>, proto=ESMTP, helo=<h1.example.org>"
    )
    ended = run("replay", "--rules", SHIPPED, log_file(tmp_path, line))
    assert "1 mail: postscreen refused the client without looking up its name" in ended.out
    assert "REJECT" not in ended.out
    by_network = tmp_path / "rules.yaml"
    by_network.write_text("rules:\n  - {name: network, match: {cidr: 198.51.100.0/24}, action: REJECT}\n")
    found = json.loads(run("replay", "--json", "--rules", by_network, log_file(tmp_path, line)).out)
    assert [(rule["rule"], rule["transactions"]) for rule in found["rules"]] == [("network", 1)]
    assert found["unjudged"] == 0


def test_replay_judges_users_of_sendmail_as_authenticated(run: Run, tmp_path: Path) -> None:
    log = log_file(
        tmp_path,
        "Jan  5 10:00:01 mx sm-mta[201]: AUTH=server, relay=[198.51.100.7], authid=joe, mech=PLAIN, bits=0",
        "Jan  5 10:00:02 mx sm-mta[201]: 605A00aa000201: from=<joe@example.net>, size=900, class=0, nrcpts=1,"
        " msgid=<1@example.net>, proto=ESMTPSA, daemon=MSA, relay=[198.51.100.7]",
        "Jan  5 10:00:03 mx sm-mta[202]: 605A00aa000201: to=<b@example.com>, delay=00:00:01, xdelay=00:00:01,"
        " mailer=esmtp, pri=31000, relay=mail.example.com. [192.0.2.10], dsn=2.0.0, stat=Sent (ok)",
    )
    found = json.loads(run("replay", "--json", "--rules", SHIPPED, log).out)
    assert [(rule["rule"], rule["delivered"]) for rule in found["rules"]] == [("authenticated", 1)]


def test_replay_counts_every_mail_of_a_log_with_two_timestamps_a_line(run: Run, tmp_path: Path) -> None:
    lines = []
    for n in range(400):
        time = f"{10 + n // 60}:{n % 60:02d}"
        head = f"2026-01-05T10:{time}.123456789Z Jan  5 10:{time} mx postfix"
        lines += [
            f"{head}/smtpd[101]: 4AB1CD{n:04X}: client=ik1-1-1.vs.sakura.ne.jp[192.0.2.10]",
            f"{head}/qmgr[90]: 4AB1CD{n:04X}: from=<a@example.com>, size=900, nrcpt=1 (queue active)",
            f"{head}/local[103]: 4AB1CD{n:04X}: to=<b@example.net>, relay=local, delay=1, delays=1/0/0/0, dsn=2.0.0,"
            " status=sent (delivered to mailbox)",
        ]
    log = log_file(tmp_path, *lines)
    assert json.loads(run("replay", "--json", "--rules", SHIPPED, log).out)["delivered"] == 400
    ended = run("replay", "--rules", SHIPPED, "--fail-if-delivered", "0", log)
    assert (ended.status, ended.err) == (1, "policyd: 400 delivered mails would have been refused; none is allowed\n")


def test_replay_fails_if_lines_were_left_out(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maillog, "_MAX_HOSTS", 2)
    log = log_file(tmp_path, *(refusal(n, "a[192.0.2.1]", "554 no").replace(" mx ", f" mx{n} ") for n in range(3)))
    ended = run("replay", "--rules", SHIPPED, "--fail-if-delivered", "0", log)
    assert ended.status == 2
    assert ended.err.startswith("policyd: 0 delivered mails would have been refused, and there may be more: 1 lines")
    assert "the log has more hosts than are read" in ended.out
    assert run("replay", "--rules", SHIPPED, log).status == 0


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("[05/Jan/2026] mx|postfix/smtpd|104|NOQUEUE: reject", 2),
        ("Jan  5 10:05:01 mx postfix smtpd 104 NOQUEUE reject", 1),
    ],
)
def test_unreadable_lines_are_quoted_with_advice(run: Run, tmp_path: Path, line: str, status: int) -> None:
    for command in (("replay", "--rules", SHIPPED), ("suggest",)):
        ended = run(*command, log_file(tmp_path, line))
        assert ended.status == status
        assert f"begins with '{line[:50]}" in ended.err
        for way in ("grep -h", "--no-log-prefix", "journalctl -o short"):
            assert way in ended.err


def test_replay_quotes_an_unreadable_line_among_others(run: Run, tmp_path: Path) -> None:
    ended = run("replay", "--rules", SHIPPED, log_file(tmp_path, refusal(1, "a[192.0.2.1]", "554 no"), "\x1b]0;hi"))
    assert "note: 1 line in no known form, as '?]0;hi'" in ended.out


@pytest.mark.parametrize("command", [("stats",), ("lookup", "7Q4K2M9X"), ("tail", "--no-follow")])
def test_commands_for_the_decision_log_name_the_commands_for_a_mail_log(
    run: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    ended = run(*command, log_file(tmp_path, refusal(1, "a[192.0.2.1]", "554 no")))
    assert ended.status != 0
    assert "it is a mail log, which `policyd replay` and `policyd suggest` read" in ended.err
    assert ended.out == ""
