from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from policyd.exchange import exporting, importing

if TYPE_CHECKING:
    from tests.cli.conftest import Run

SHIPPED = Path(__file__).parents[2] / "config" / "rules.yaml"

TABLE = "192.0.2.7 OK\n192.0.2.0/24 REJECT 5.7.1 no\n198.51.100.1/24 REJECT\n"
RULES = """\
# Imported from clients.cidr (postfix-cidr): 2 taken, 1 lost.
rules:
  - name: clients-1
    match: {cidr: 192.0.2.7}
    action: DUNNO
    note: 'line 1 of clients.cidr'

  - name: clients-2
    match: {cidr: 192.0.2.0/24}
    action: REJECT 5.7.1 no
    note: 'line 2 of clients.cidr'
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "clients.cidr"
    path.write_text(TABLE)
    return path


def test_import_writes_rules_that_check_accepts_and_reports_losses(run: Run, table: Path, tmp_path: Path) -> None:
    ended = run("import", "postfix-cidr", table)
    assert (ended.status, ended.out) == (0, RULES)
    lost, noted, summary = ended.err.splitlines()
    assert lost.startswith(f"{table}:3: lost: '198.51.100.1/24 REJECT': the address has bits set beyond the prefix")
    assert noted.startswith(f"{table}:1: note: OK became DUNNO")
    assert summary == "policyd: 2 taken, 1 lost"
    rules = tmp_path / "rules.yaml"
    assert run("import", "postfix-cidr", table, "-o", rules).out == ""
    assert rules.read_text() == RULES
    assert run("check", "--rules", rules).status == 0


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_import_reads_standard_input(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str]
) -> None:
    path = tmp_path / "drop"
    path.write_text("; DROP\n1.10.16.0/20 ; SBL1\n")
    with path.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        ended = run("import", "spamhaus-drop", *arguments)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines()[-1] == "1.10.16.0/20"
    assert "standard input" in ended.out


def test_import_as_json_writes_everything_to_standard_output(run: Run, table: Path) -> None:
    ended = run("import", "postfix-cidr", "--json", table)
    printed = json.loads(ended.out)
    assert (printed["text"], len(printed["lost"]), ended.err) == (RULES, 1, "")


def test_strict_fails_after_a_loss(run: Run, table: Path) -> None:
    assert run("import", "postfix-cidr", "--strict", table).status == 1
    table.write_text("192.0.2.0/24 REJECT\n")
    assert run("import", "postfix-cidr", "--strict", table).status == 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("import", "postfix-cidr", "no-such-file"), 2, "policyd: no-such-file: no such file or directory"),
        (("import", "nonsense", "x"), 2, "'nonsense' is not one of 'plain'"),
        (("import", "plain", "--action", "PERMIT", "x"), 2, "Invalid value for '--action'"),
        (("export", "nftables", "--name", "x;y"), 2, "Invalid value for '--name'"),
        (("export", "csv", "--rules", "no-such-file"), 2, "no-such-file: cannot be read"),
        (("export", "plain", "--rules", SHIPPED, "--list", "nothing"), 1, "there is no list 'nothing'"),
        (("export", "plain", "--rules", SHIPPED, "-o", "/no/such/folder/x"), 2, "/no/such/folder/x: cannot be written"),
    ],
)
def test_an_error_has_a_message_and_a_status_but_no_traceback(
    run: Run, arguments: tuple[str], status: int, message: str
) -> None:
    ended = run(*arguments)
    assert (ended.status, ended.out) == (status, "")
    assert message in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err


def test_an_option_sets_the_action_for_the_entries_of_a_list(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("192.0.2.1\n")
    ended = run("import", "plain", "--as", "rules", "--action", "DEFER 4.7.1 {client_address}", path)
    assert "    action: 'DEFER 4.7.1 {client_address}'\n" in ended.out


def test_export_of_the_shipped_rules(run: Run) -> None:
    ended = run("export", "postfix-cidr", "--rules", SHIPPED)
    assert ended.status == 0
    assert "27.100.28.0/22\tREJECT" in ended.out
    assert all(": lost: " in line or ": note: " in line for line in ended.err.splitlines())
    assert run("export", "postfix-cidr", "--rules", SHIPPED, "--strict").status == 1


def test_an_export_without_any_result_fails(run: Run, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules:\n- name: a\n  match: {helo_name: x}\n  action: REJECT\n")
    ended = run("export", "ipset", "--rules", rules)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.splitlines()[-1] == f"policyd: {rules}: nothing in it can be expressed in the format ipset"


def test_an_export_can_be_imported_again(run: Run, tmp_path: Path) -> None:
    table = tmp_path / "table.cidr"
    run("export", "postfix-cidr", "--rules", SHIPPED, "-o", table)
    ended = run("import", "postfix-cidr", table)
    assert (ended.status, ended.err) == (0, "")
    assert "27.100.28.0/22" in ended.out


def test_the_help_names_every_format(run: Run) -> None:
    printed = run("import", "--help").out
    assert [name for name in importing.IMPORT_FORMATS if name not in printed] == []
    printed = run("export", "--help").out
    assert [name for name in exporting.EXPORT_FORMATS if name not in printed] == []


EXEMPTING = "192.0.2.7 my_class\n192.0.2.0/24 REJECT\n"


def test_an_output_is_not_written_if_a_block_was_kept_without_its_exemption(
    run: Run, table: Path, tmp_path: Path
) -> None:
    table.write_text(EXEMPTING)
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules: []\n")
    ended = run("import", "postfix-cidr", table, "-o", rules)
    assert (ended.status, ended.out, rules.read_text()) == (1, "", "rules: []\n")
    summary, refused = ended.err.splitlines()[-2:]
    assert summary.startswith("policyd: 1 taken, 1 lost, 1 of them exemptions from blocks that were kept")
    assert refused == f"policyd: {rules} was not written. Repair the lines that were lost, or use --force."
    assert run("import", "postfix-cidr", table, "-o", rules, "--force").status == 0
    assert "192.0.2.0/24" in rules.read_text()


@pytest.mark.parametrize("option", [(), ("--json",)])
def test_standard_output_gets_the_result_despite_lost_exemptions(run: Run, table: Path, option: tuple[str]) -> None:
    table.write_text(EXEMPTING)
    ended = run("import", "postfix-cidr", table, *option)
    assert (ended.status, "192.0.2.0/24" in ended.out) == (1, True)
    assert ended.err.splitlines()[-1] == "policyd: Repair the lines that were lost, or use --force."
    assert run("import", "postfix-cidr", table, "--force", *option).status == 0


def test_a_truncated_download_leaves_the_list_unchanged(run: Run, tmp_path: Path) -> None:
    half, kept = tmp_path / "drop.json", tmp_path / "drop.txt"
    half.write_text('{"cidr":"1.10.16.0/20"}\n{"cidr":"1.19.0.')
    kept.write_text("1.19.0.0/16\n")
    ended = run("import", "spamhaus-drop", half, "-o", kept, "--force")
    assert (ended.status, kept.read_text(), sorted(tmp_path.iterdir())) == (1, "1.19.0.0/16\n", [half, kept])
    assert (
        ended.err
        == f"policyd: {half}:2: the file ends in the middle of the line; nothing was imported; get the file again\n"
    )


def test_losses_are_reported_even_without_any_result(run: Run, table: Path) -> None:
    table.write_text("192.0.2.1/24 REJECT\n192.0.2.2 DISCARD\n")
    ended = run("import", "postfix-cidr", table)
    assert (ended.status, ended.out) == (1, "")
    assert [line.partition(": lost: ")[0] for line in ended.err.splitlines()[:-1]] == [f"{table}:1", f"{table}:2"]
    assert ended.err.splitlines()[-1] == f"policyd: {table}: nothing of the format postfix-cidr could be read"


def test_the_entries_of_an_unused_list_are_exported_or_reported(run: Run, tmp_path: Path) -> None:
    entries = tmp_path / "list.txt"
    rules = tmp_path / "rules.yaml"
    rules.write_text("lists: {x: {file: list.txt}}\nrules: [{name: a, match: {helo_name: y}, action: REJECT}]\n")
    entries.write_text("192-0-2-7.dyn.example.net\n1-800-example.com\n")
    ended = run("export", "plain", "--rules", rules, "--list", "x", "--condition", "hostname_suffix")
    assert (ended.status, ended.out.splitlines()[1:]) == (0, ["192-0-2-7.dyn.example.net", "1-800-example.com"])
    entries.write_text("192.0.2.0/24\n192.0.2.1/24\nb.example\n")
    ended = run("export", "plain", "--rules", rules, "--list", "x")
    assert (ended.status, ended.out.splitlines()[1:]) == (0, ["192.0.2.0/24"])
    assert len(ended.err.splitlines()) == 2
