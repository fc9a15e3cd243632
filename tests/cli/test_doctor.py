from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from policyd.core.protocol import ProbeReply
from tests.requirements import require
from tests.tools.doctor.test_doctor import inet_daemon

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Run

PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"


@pytest.fixture
def postfix(tmp_path: Path) -> Callable[[str], Path]:
    require("postconf")

    def write(restrictions: str) -> Path:
        main_cf = tmp_path / "main.cf"
        main_cf.write_text(f"compatibility_level = 3.6\nsmtpd_recipient_restrictions = {restrictions}\n")
        os.utime(main_cf, (0, 0))
        (tmp_path / "master.cf").write_text("smtp inet n - y - - smtpd\n")
        return tmp_path

    return write


def test_doctor_lists_passed_checks_and_shows_the_answer(run: Run, postfix: Callable[[str], Path]) -> None:
    with inet_daemon() as address:
        asking = f"check_policy_service {{ {address}, timeout=10s, default_action=DUNNO }}"
        folder = postfix(f"permit_mynetworks, permit_sasl_authenticated, {asking}")
        (folder / "policyd.yaml").write_text(f"listen: ['{address}']\n")
        ended = run("doctor", "--postfix", folder, "-c", folder / "policyd.yaml")
    assert (ended.status, ended.err) == (0, "")
    assert f"asked  {address}: action=DUNNO policyd 0.2.0 ruleset=3f9c2a1b mode=enforce after " in ended.out
    assert ended.out.splitlines()[-1] == "nothing is wrong"


def test_doctor_numbers_problems_and_suggests_lines(run: Run, postfix: Callable[[str], Path]) -> None:
    with inet_daemon() as address:
        ended = run("doctor", "--postfix", postfix(f"check_policy_service {address}"))
    assert (ended.status, ended.err) == (1, "")
    assert "1. main.cf: smtpd_recipient_restrictions\n" in ended.out
    assert (
        "   write: smtpd_recipient_restrictions = permit_mynetworks, permit_sasl_authenticated, check_policy_service"
        in (ended.out)
    )
    assert ended.out.splitlines()[-1] == "2 problems found"


def test_doctor_as_json(run: Run, postfix: Callable[[str], Path]) -> None:
    with inet_daemon() as address:
        ended = run("doctor", "--json", "--postfix", postfix(f"check_policy_service {address}"))
    printed = json.loads(ended.out)
    assert ended.status == 1
    assert [set(finding) for finding in printed["findings"]] == [{"where", "what", "write"}] * 2
    assert (printed["question"]["endpoint"], printed["question"]["answer"]) == (
        str(address),
        "action=DUNNO policyd 0.2.0 ruleset=3f9c2a1b mode=enforce",
    )
    assert printed["services"] == [
        {"service": "smtp inet", "reached_by": "strangers", "asks_in": ["smtpd_recipient_restrictions"]}
    ]


def test_doctor_without_a_readable_configuration_fails(run: Run, tmp_path: Path) -> None:
    require("postconf")
    ended = run("doctor", "--postfix", tmp_path / "nowhere")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("policyd: postconf -c ")
    assert "Traceback" not in ended.err
    settings = tmp_path / "policyd.yaml"
    settings.write_text("listne: []\n")
    ended = run("doctor", "-c", settings)
    assert (ended.status, ended.out) == (1, "")
    assert "did you mean 'listen'?" in ended.err


def test_a_ruleset_that_only_observes_is_noted(run: Run, postfix: Callable[[str], Path], tmp_path: Path) -> None:
    observing = ProbeReply("0.2.0", "3f9c2a1b", observes=True).encode()
    with inet_daemon(observing) as address:
        asking = f"check_policy_service {{ {address}, timeout=10s, default_action=DUNNO }}"
        folder = postfix(f"permit_mynetworks, permit_sasl_authenticated, {asking}")
        settings = tmp_path / "policyd.yaml"
        settings.write_text(f"listen: ['{address}']\n")
        ended = run("doctor", "--postfix", folder, "-c", settings)
        as_json = json.loads(run("doctor", "--postfix", folder, "-c", settings, "--json").out)
    assert ended.status == 0
    assert f"note   policyd at {address}: mode: observe, so every mail gets DUNNO" in ended.out
    assert as_json["mode"] == "observe"
    # A daemon that is down cannot report the mode, but its rules file has it.
    (tmp_path / "rules.yaml").write_text("mode: observe\nrules: []\n")
    ended = run("doctor", "--postfix", folder, "-c", settings)
    assert f"note   {tmp_path / 'rules.yaml'}: mode: observe" in ended.out
    (tmp_path / "rules.yaml").write_text("mode: enforce\nrules: []\n")
    assert "mode: observe" not in run("doctor", "--postfix", folder, "-c", settings).out


def test_a_saved_configuration_is_judged_without_asking(run: Run, tmp_path: Path) -> None:
    main, master = tmp_path / "main", tmp_path / "master"
    main.write_text(
        "smtpd_recipient_restrictions = permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination, "
        "check_policy_service { inet:policyd:10040, timeout=10s, default_action=DUNNO }\n"
    )
    master.write_text("smtp       inet  n       -       y       -       -       smtpd\n")
    ended = run("doctor", "--postconf", main, "--master", master)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines()[-2:] == [
        "asked  nothing: the configuration is from another system",
        "nothing is wrong",
    ]
    assert json.loads(run("doctor", "--postconf", main, "--master", master, "--json").out)["question"] is None
    for options in (
        ["--postconf", main],
        ["--master", master],
        ["--postconf", main, "--master", master, "--postfix", "."],
    ):
        ended = run("doctor", *options)
        assert (ended.status, ended.out) == (2, "")
        assert "--postconf and --master" in ended.err
    ended = run("doctor", "--postconf", master, "--master", main)
    assert (ended.status, "has no line NAME = VALUE" in ended.err) == (2, True)


def test_the_page_shows_what_doctor_prints(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("postconf")
    page = PAGE.read_text()
    for name, content in re.findall(r"`([\w.]+)`:\n\n```(?:text|yaml)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(content)
    (tmp_path / "rules.yaml").write_text("rules: []\n")
    os.utime(tmp_path / "main.cf", (0, 0))
    monkeypatch.chdir(tmp_path)
    (shown,) = re.findall(r"^\$ policyd doctor (.*?)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert run("doctor", *shown[0].split()).out == shown[1]


def test_an_old_database_is_a_finding(run: Run, postfix: Callable[[str], Path], tmp_path: Path) -> None:
    with inet_daemon() as address:
        asking = f"check_policy_service {{ {address}, timeout=10s, default_action=DUNNO }}"
        folder = postfix(f"permit_mynetworks, permit_sasl_authenticated, {asking}")
        (tmp_path / "asn.csv").write_text("192.0.2.0,192.0.2.255,64496\n")
        os.utime(tmp_path / "asn.csv", (1_700_000_000, 1_700_000_000))
        (tmp_path / "rules.yaml").write_text("databases: {asn: asn.csv}\nrules: []\n")
        (folder / "policyd.yaml").write_text(f"listen: ['{address}']\nrules: {tmp_path}/rules.yaml\n")
        ended = run("doctor", "--postfix", folder, "-c", folder / "policyd.yaml")
    assert ended.status == 1
    assert f"1. {tmp_path}/asn.csv\n   the asn database is dated 2023-11-14, " in ended.out
    assert ended.out.splitlines()[-1] == "1 problem found"
