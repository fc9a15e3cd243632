from __future__ import annotations

import contextlib
import email
import email.policy
import io
import json
import mailbox
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tools.decision_lines import line

if TYPE_CHECKING:
    from tests.cli.conftest import Run

DATA = Path(__file__).parents[1] / "data"
SHIPPED = Path(__file__).parents[2] / "config" / "rules.yaml"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "decisions.log"
    path.write_text(
        line(id="0A1B2C3D")
        + line("DUNNO", id="0A1B2C3E", rule="known-vps-customer", client="tk2-406-44074.vs.sakura.ne.jp[160.16.140.78]")
        + line("DUNNO", id="0A1B2C3F", rule="", client="unknown[192.0.2.1]").replace("rdns=verified ", "")
    )
    return path


@pytest.fixture
def config(log: Path) -> Path:
    path = log.with_name("policyd.yaml")
    path.write_text(f"rules: {SHIPPED}\ndecision_log: {{path: {log.name}}}\n")
    return path


# --- The log that is read -------------------------------------------------------------------------------------------


def test_without_a_log_the_log_in_the_settings_is_read(run: Run, config: Path, log: Path) -> None:
    log.with_name("decisions.log.1").write_text(line(id="OLDER000"))
    assert json.loads(run("stats", "-c", config, "--json").out)["decisions"] == 4
    assert run("lookup", "-c", config, "older000").status == 0
    assert len(run("tail", "-c", config, "--no-follow").out.splitlines()) == 3


@pytest.mark.parametrize(
    "command", [["stats"], ["tail"], ["lookup", "X"], ["report", "--suffix", "x", "--from", "a@b"]]
)
def test_without_log_and_settings_the_message_says_what_to_name(run: Run, command: list[str]) -> None:
    ended = run(*command)
    assert ended.status == 2
    assert "name the LOG, or the settings that name it with -c" in ended.err


def test_a_log_on_standard_output_cannot_be_read(run: Run, config: Path) -> None:
    config.write_text(f"rules: {SHIPPED}\n")
    ended = run("stats", "-c", config)
    assert ended.status == 2
    assert "journalctl -u policyd -o cat |" in ended.err


@pytest.mark.parametrize("command", [["stats"], ["tail", "--no-follow"], ["lookup", "X"]])
def test_a_missing_log_gives_a_one_line_error(run: Run, tmp_path: Path, command: list[str]) -> None:
    ended = run(*command, tmp_path / "nowhere.log")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == f"policyd: {tmp_path}/nowhere.log: no such file or directory\n"


# --- stats ----------------------------------------------------------------------------------------------------------


def test_stats_prints_tables(run: Run, log: Path) -> None:
    ended = run("stats", "--rules", SHIPPED, log)
    assert (ended.status, ended.err) == (0, "")
    assert "3 decisions from 2026-11-21T" in ended.out
    assert (
        "never matched: allowed-networks, blocked-networks, allowed-hosts, blocked-hosts, own-networks, forwarders"
        in ended.out
    )


def test_stats_can_be_a_page(run: Run, log: Path, tmp_path: Path) -> None:
    page = tmp_path / "stats.html"
    assert run("stats", "--html", page, log) == (0, "", "")
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert json.loads(run("stats", "--json", "--html", page, log).out)["decisions"] == 3


def test_an_unwritable_page_of_stats_is_an_error(run: Run, log: Path, tmp_path: Path) -> None:
    ended = run("stats", "--html", tmp_path, log)
    assert ended.status == 2
    assert ended.err == f"policyd: {tmp_path}: Is a directory\n"


@pytest.mark.parametrize(("since", "status"), [("2026-11-01", 0), ("2027-01-01", 1), ("soon", 2)])
def test_stats_counts_only_decisions_since_a_time(run: Run, log: Path, since: str, status: int) -> None:
    assert run("stats", "--since", since, log).status == status


def test_stats_refuses_a_mail_log(run: Run, tmp_path: Path) -> None:
    mail_log = tmp_path / "mail.log"
    mail_log.write_text("Nov 20 10:00:00 mx postfix/smtpd[1]: connect from unknown[192.0.2.1]\n")
    ended = run("stats", mail_log)
    assert ended.status == 2
    assert ended.err.startswith(f"policyd: {mail_log}: not a decision log")


# --- tail -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ([], ["0A1B2C3D", "0A1B2C3E", "0A1B2C3F"]),
        (["-n", "1"], ["0A1B2C3F"]),
        (["--action", "reject"], ["0A1B2C3D"]),
        (["--rule", "default"], ["0A1B2C3F"]),
        (["--rule", "default", "--rule", "sakura-vps"], ["0A1B2C3D", "0A1B2C3F"]),
        (["--client", "160.16.0.0/16"], ["0A1B2C3E"]),
    ],
)
def test_tail_shows_only_wanted_decisions(run: Run, log: Path, options: list[str], shown: list[str]) -> None:
    ended = run("tail", "--no-follow", "--json", *options, log)
    assert [json.loads(text)["id"] for text in ended.out.splitlines()] == shown
    assert run("tail", "--no-follow", *options, log).out == "".join(
        text
        for text in log.read_text().splitlines(keepends=True)
        if any(f"id={decision_id} " in text for decision_id in shown)
    )


def test_tail_reads_standard_input(run: Run, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with log.open() as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        assert len(run("tail", "-").out.splitlines()) == 3


@pytest.mark.parametrize("options", [["--action", "PERMIT"], ["--client", "x"], ["-n", "-1"]])
def test_tail_with_an_invalid_filter_is_wrong_usage(run: Run, log: Path, options: list[str]) -> None:
    assert run("tail", *options, log).status == 2


@pytest.mark.slow
def test_tail_follows_until_it_is_interrupted(log: Path) -> None:
    command = [sys.executable, "-m", "policyd", "tail", "-n", "0", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        deadline = time.monotonic() + 20
        appended = 0
        # tail may not have opened the log yet: write until it prints a line.
        while not _readable(process.stdout.fileno()):
            assert time.monotonic() < deadline
            appended += 1
            with log.open("a") as file:
                file.write(line(id=f"NEW{appended:05}"))
        assert "id=NEW" in process.stdout.readline()
        process.terminate()
        process.wait(20)


def _readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0.1)[0])


# --- lookup ---------------------------------------------------------------------------------------------------------


def test_lookup_shows_the_decision_and_todays_decision(run: Run, config: Path, log: Path) -> None:
    ended = run("lookup", "-c", config, "oa1b2c3d")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith(log.read_text().splitlines()[0])
    assert "hostname_suffix: os3-1-2.vs.sakura.ne.jp is under vs.sakura.ne.jp" in ended.out
    found = json.loads(run("lookup", "-c", config, "--json", "0A1B2C3D").out)
    assert (found[0]["logged"]["rule"], found[0]["today"]["rule"]) == ("sakura-vps", "sakura-vps")


def test_lookup_reports_if_todays_rules_need_dns(run: Run, config: Path) -> None:
    assert "Ask it now with: policyd explain" in run("lookup", "-c", config, "0A1B2C3F").out
    found = json.loads(run("lookup", "-c", config, "--json", "0A1B2C3F").out)
    assert found[0]["today"] == {"needs_reverse_dns": True}


def test_lookup_without_a_ruleset_shows_the_decision(run: Run, log: Path) -> None:
    assert run("lookup", "0A1B2C3D", log).out == log.read_text().splitlines(keepends=True)[0]
    assert json.loads(run("lookup", "--json", "0A1B2C3D", log).out)[0]["today"] is None


def test_lookup_of_an_unknown_id_fails(run: Run, log: Path) -> None:
    assert run("lookup", "NOTHERE0", log) == (1, "", f"policyd: no decision with the id NOTHERE0 in {log}\n")


BOUNCES = [
    "0A1B2C3D",
    "(0a1b2c3d)",
    "<c@d.example>: host mx.example[192.0.2.25] said: 550 5.7.1\n    Access rejected (OAIB2C3D) (in reply to RCPT TO)",
    "550 5.7.1 Recipient address rejected: id=0A1B2C3D.",
]


@pytest.mark.parametrize("text", BOUNCES)
def test_a_bounce_may_be_pasted(run: Run, log: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("lookup", text, log) == (0, line(id="0A1B2C3D"), "")
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert run("lookup", "-", log) == (0, line(id="0A1B2C3D"), "")


def test_a_text_without_an_id_is_wrong_usage(run: Run, log: Path) -> None:
    ended = run("lookup", "450 4.7.1 try again later", log)
    assert (ended.status, ended.out) == (2, "")
    assert "there is no id in the text" in ended.err


# --- report ---------------------------------------------------------------------------------------------------------

REPORT = ("report", "--suffix", "vs.sakura.ne.jp", "--from", "postmaster@here.example")


def test_report_is_a_message(run: Run, log: Path, tmp_path: Path) -> None:
    on_screen = run(*REPORT, "--to", "abuse@there.example", log)
    assert (on_screen.status, on_screen.err) == (0, "")
    message = email.message_from_string(on_screen.out, policy=email.policy.default)
    assert message["Subject"] == "Abuse report: 1 refused mail from vs.sakura.ne.jp"
    assert "c@d.example" not in on_screen.out
    assert "c@d.example" in run(*REPORT, "--show-recipients", log).out
    written = tmp_path / "report.eml"
    assert run(*REPORT, "--output", written, log) == (0, "", "")
    assert email.message_from_bytes(written.read_bytes())["Subject"] == message["Subject"]
    assert run(*REPORT, "--output", written, log).err == f"policyd: {written}: exists already; name another file\n"


def test_reports_are_appended_to_a_mailbox(run: Run, log: Path, tmp_path: Path) -> None:
    box = tmp_path / "reports.mbox"
    for _ in range(2):
        assert run(*REPORT, "--mbox", box, log).status == 0
    with contextlib.closing(mailbox.mbox(box)) as messages:
        assert [message["From"] for message in messages] == ["postmaster@here.example"] * 2


def test_a_report_without_mails_fails(run: Run, log: Path) -> None:
    ended = run("report", "--network", "203.0.113.0/24", "--from", "a@b.example", log)
    assert ended == (1, "", f"policyd: nothing from 203.0.113.0/24 was refused in {log}\n")


@pytest.mark.parametrize(
    "options",
    [
        ["--from", "a@b"],
        ["--from", "a@b", "--suffix", "x", "--network", "192.0.2.0/24"],
        ["--from", "a@b", "--network", "x"],
        ["--from", "a@b\nBcc: c@d", "--suffix", "x"],
        ["--from", "nobody", "--suffix", "x"],
        ["--suffix", "x"],
        ["--from", "a@b", "--asn", "AS0x1"],
        ["--from", "a@b", "--asn", "4294967296"],
        ["--from", "a@b", "--country", "UK"],
        ["--from", "a@b", "--country", "JP", "--asn", "1"],
        ["--from", "a@b", "--suffix", "x", "-o", "y", "--mbox", "z"],
    ],
)
def test_report_with_wrong_options_is_wrong_usage(run: Run, log: Path, options: list[str]) -> None:
    assert run("report", *options, log).status == 2


def test_a_mail_log_is_enough_for_a_report(run: Run) -> None:
    ended = run("report", "--network", "180.222.51.0/24", "--from", "me@here.example", DATA / "maillog.postfix")
    assert (ended.status, ended.err) == (0, "")
    message = email.message_from_string(ended.out, policy=email.policy.default)
    assert message["Subject"] == "Abuse report: 7 refused mails from 180.222.51.0/24"
    text, feedback, _header = message.iter_parts()
    quoted = text.get_content()
    assert "DEFERRED client=unknown[180.222.51.40]" in quoted
    assert "xxxx@xxxx.xx.jp" not in ended.out
    assert "Incidents: 7" in feedback.as_string()


def test_a_report_from_a_mail_log_counts_the_refused_mails_among_all(run: Run) -> None:
    network = ("report", "--network", "192.0.2.0/24", "--from", "me@here.example")
    ended = run(*network, DATA / "maillog.shapes")
    message = email.message_from_string(ended.out, policy=email.policy.default)
    assert "refused mail" not in message["Subject"]
    text = next(iter(message.iter_parts())).get_content()
    assert "our mail server saw " in text
    assert ", and refused " in text
