"""`policyd block` and `allow`: written entries, refusals, and a running daemon."""

from __future__ import annotations

import datetime
import re
import time
from pathlib import Path

import pytest

from policyd.config.files import UnreadableError
from policyd.config.load import load
from policyd.core.engine import decide
from policyd.core.facts import Facts, Needs
from policyd.core.protocol import Request
from policyd.fetch.by_hand import LocalLists, Side, comment_of
from policyd.fetch.guards import RefusedError, Rules
from tests.daemon.test_control import cli

SHIPPED = Path(__file__).parents[2] / "config" / "rules.yaml"
EXTRA = """
  - name: bulk
    match: {cidr: 203.0.113.0/24}
    action: REJECT
  - name: pool
    match: {hostname_suffix: pool.example}
    action: REJECT
  - name: forger
    match: {sender: spam@example.com}
    action: REJECT
"""


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    """The shipped ruleset with three more rules, and its lists in the test's folder."""
    text = SHIPPED.read_text().replace("/var/lib/policyd/lists/", "")
    text = text.replace("  # --- What must get through", f"{EXTRA}\n  # --- What must get through")
    (tmp_path / "rules.yaml").write_text(text)
    return Rules(str(tmp_path / "rules.yaml"), None)


def test_the_shipped_lists_are_empty_and_cause_no_lookup() -> None:
    ruleset = load(rules_path=SHIPPED).ruleset
    own = Request.of({"client_address": b"192.168.1.1", "request": b"smtpd_access_policy", "protocol_state": b"RCPT"})
    assert not isinstance(decide(ruleset, own, Facts(), datetime.date(2026, 11, 29)), Needs)


def test_an_entry_is_one_line_with_end_and_reason(rules: Rules, tmp_path: Path) -> None:
    lists = LocalLists(rules, Side.BLOCK)
    today = time.strftime("%Y-%m-%d", time.gmtime())
    end = time.time() + 600
    written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(end)))
    assert lists.add("9.9.9.0/24", end, comment_of("root", "bulk\nmail")) == (
        f"9.9.9.0/24  expires={written}  # {today} root: bulk mail"
    )
    lists.add("Bad.Example.", None, comment_of("root", ""))
    assert (tmp_path / "blocked-hosts.txt").read_text() == f"bad.example  # {today} root\n"
    (tmp_path / "blocked-networks.txt").chmod(0o640)
    lists.add("9.9.9.0/24", None, "again")
    assert (tmp_path / "blocked-networks.txt").read_text() == "9.9.9.0/24  # again\n"
    assert (tmp_path / "blocked-networks.txt").stat().st_mode & 0o777 == 0o640
    assert [(entry.what, entry.end) for entry in lists.entries()] == [("9.9.9.0/24", ""), ("bad.example", "")]
    assert lists.end("9.9.9.0/24") == "9.9.9.0/24"
    assert (tmp_path / "blocked-networks.txt").read_text() == ""
    with pytest.raises(RefusedError, match=r"9\.9\.9\.0/24 is not in list 'blocked-networks'"):
        lists.end("9.9.9.0/24")


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("8.0.0.0/7", "8.0.0.0/7 is larger than a /8"),
        ("2400::/18", "2400::/18 is larger than a /19"),
        ("192.168.1.1", "192.168.1.1 covers or lies in 192.168.0.0/16 of list 'own-networks'"),
        ("10.0.0.0/8", "10.0.0.0/8 covers or lies in 10.0.0.0/8 of list 'own-networks'"),
        ("9.9.9.1/24", "'9.9.9.1/24': "),
        ("a@b.example", "'a@b.example' is a mail address"),
        ("localhost", "'localhost' has no dot"),
        ("no name", "'no name': "),
        ("160.16.140.78", "the ruleset does not accept it: "),  # a test in the ruleset expects DUNNO for this client
    ],
)
def test_a_refused_block_changes_nothing(what: str, reason: str, rules: Rules, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=f"^{re.escape(reason)}"):
        LocalLists(rules, Side.BLOCK).add(what, None, "why")
    assert not (tmp_path / "blocked-networks.txt").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"rules.yaml", ".policyd.lock"}


def test_an_unreadable_list_is_named(rules: Rules, tmp_path: Path) -> None:
    (tmp_path / "blocked-networks.txt").mkdir()
    with pytest.raises(UnreadableError, match=r"/blocked-networks\.txt cannot be read: it is a folder$"):
        LocalLists(rules, Side.BLOCK).entries()


def test_an_allowed_client_is_not_blocked(rules: Rules) -> None:
    LocalLists(rules, Side.ALLOW).add("9.9.9.7", None, "customer")
    with pytest.raises(RefusedError, match=r"lies in 9\.9\.9\.7/32 of list 'allowed-networks'"):
        LocalLists(rules, Side.BLOCK).add("9.9.9.0/24", None, "why")


def test_a_ruleset_without_the_lists_gets_the_lines_to_add(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("rules: []\n")
    with pytest.raises(RefusedError) as caught:
        LocalLists(Rules(str(path), None), Side.BLOCK).add("9.9.9.7", None, "why")
    lines = str(caught.value).splitlines()
    assert lines[2] == (
        "    blocked-networks: {file: /var/lib/policyd/lists/blocked-networks.txt, allow_empty: yes, local: yes}"
    )
    path.write_text("\n".join(line[2:] for line in lines[1:]) + "\n")
    load(rules_path=path)


DECISIONS = """\
2026-11-29T10:00:00.000Z REJECT rule=bulk client=mail.example.net[203.0.113.9] sender=<a@b.example> recipient=<c@d.example> id=AAAAAAA1
2026-11-29T10:00:00.000Z REJECT rule=pool client=h1.pool.example[192.0.2.7] sender=<a@b.example> recipient=<c@d.example> id=AAAAAAA2
2026-11-29T10:00:00.000Z REJECT rule=pool client=unknown[192.0.2.8] claimed=h2.pool.example sender=<a@b.example> recipient=<c@d.example> id=AAAAAAA3
2026-11-29T10:00:00.000Z REJECT rule=forger client=h.example[192.0.2.9] sender=<spam@example.com> recipient=<c@d.example> id=AAAAAAA4
2026-11-29T10:00:00.000Z DUNNO rule=default client=h.example[192.0.2.9] sender=<x@example.com> recipient=<c@d.example> id=AAAAAAA5
"""  # noqa: E501 - a log's lines


@pytest.mark.slow
def test_allow_accepts_the_id_of_a_decision(rules: Rules, tmp_path: Path) -> None:
    (tmp_path / "decisions.log").write_text(DECISIONS)
    (tmp_path / "policyd.yaml").write_text("rules: rules.yaml\ndecision_log: {path: decisions.log}\n")
    by_network = cli(tmp_path, "allow", "AAAAAAA1")
    by_name = cli(tmp_path, "allow", "AAAAAAA2", "--for", "ever", "--why", "customer called")
    by_address = cli(tmp_path, "allow", "AAAAAAA3")
    assert by_network.stdout.startswith("allowed: 203.0.113.9  expires="), by_network.stderr
    assert re.fullmatch(r"allowed: h1\.pool\.example  # \S+ \S+: customer called\n", by_name.stdout)
    assert by_address.stdout.startswith("allowed: 192.0.2.8  expires=")
    by_sender = cli(tmp_path, "allow", "AAAAAAA4")
    assert (by_sender.returncode, by_sender.stdout) == (1, "")
    assert by_sender.stderr == (
        "policyd: rule 'forger' refuses a sender, and anyone can forge a sender: change the rule, or allow the "
        "client itself: policyd allow 192.0.2.9\n"
    )
    assert cli(tmp_path, "allow", "AAAAAAA5").stderr == "policyd: that decision let the client through\n"
    assert cli(tmp_path, "allow", "ZZZZZZZZ").stderr == "policyd: no decision has the id ZZZZZZZZ\n"
    assert cli(tmp_path, "block", "h.example", "--for", "soon").returncode == 2
    assert len(cli(tmp_path, "allow", "--list").stdout.splitlines()) == 3
    assert Path(rules.path).exists()
