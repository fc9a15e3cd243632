from __future__ import annotations

import datetime
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from policyd.config.load import load
from policyd.logs.transaction import MailOutcome, NameStatus, Observation
from policyd.tools.judge import Assumption, Judge
from policyd.tools.replay import replay as replay_module
from policyd.tools.replay.output import comparison_as_json, print_comparison, print_replay, replay_as_json
from policyd.tools.replay.replay import compare, replay, subjects_of
from tests.examples import examples

if TYPE_CHECKING:
    from policyd.core.index import Ruleset
    from policyd.tools.replay.replay import Replay

DATA = Path(__file__).parents[2] / "data"
SHIPPED = Path(__file__).parents[3] / "config" / "rules.yaml"
TODAY = datetime.date(2026, 11, 21)

INCIDENTS = [str(DATA / "maillog.sendmail"), str(DATA / "maillog.postfix")]


def ruleset_of(folder: Path, text: str, name: str = "rules.yaml") -> Ruleset:
    path = folder / name
    path.write_text(text)
    return load(rules_path=path).ruleset


def mail(
    number: int, client: str, *, sender: str = "a@b.example", to: str = "c@d.example", status: str = "sent"
) -> str:
    """A mail as Postfix logs it; `status` is the status of its delivery, or the text of its refusal."""
    head = "Nov 20 10:00:00 mx postfix"
    if status[0].isdigit():
        return (
            f"{head}/smtpd[{number}]: NOQUEUE: reject: RCPT from {client}: {status}; from=<{sender}> to=<{to}>"
            " proto=ESMTP helo=<h.example>\n"
        )
    queue_id = f"4jX2YG{number:04X}"
    return (
        f"{head}/smtpd[{number}]: {queue_id}: client={client}\n"
        f"{head}/qmgr[1]: {queue_id}: from=<{sender}>, size=1, nrcpt=1 (queue active)\n"
        + "".join(
            f"{head}/lmtp[2]: {queue_id}: to=<{recipient}>, relay=dovecot, delay=0, dsn=2.0.0, status={status} (ok)\n"
            for recipient in to.split()
        )
        + f"{head}/qmgr[1]: {queue_id}: removed\n"
    )


def log_of(folder: Path, *mails: str) -> list[str]:
    path = folder / "mail.log"
    path.write_text("".join(mails))
    return [str(path)]


def figures(found: Replay) -> dict[str, tuple[int, int, int, int]]:
    """By rule: mails, delivered, clients, sender domains."""
    return {
        f"{answer.rule}{' observed' if answer.observed else ''}": (
            tally.transactions,
            tally.delivered,
            len(tally.clients),
            len(tally.sender_domains),
        )
        for answer, tally in found.rules
    }


def printed(found: Replay) -> str:
    screen = io.StringIO()
    print_replay(Console(file=screen, width=240), found)
    return screen.getvalue()


RULES = """
rules:
  - name: customer
    match: {hostname: good.b.example}
    action: DUNNO
  - name: suffix
    match: {hostname_suffix: b.example}
    action: REJECT 5.7.1 No
  - name: tried
    match: {sender_domain: list.example}
    action: REJECT
    mode: observe
  - name: network
    match: {cidr: 192.0.2.0/24}
    action: DEFER
  - name: never
    match: {cidr: 203.0.113.0/24}
    action: REJECT
"""


def test_the_shipped_rules_refuse_the_incidents() -> None:
    found = replay(load(rules_path=SHIPPED).ruleset, INCIDENTS, TODAY)
    assert figures(found) == {
        "known-vps-customer": (1, 0, 1, 1),
        "sakura-vps": (26, 0, 25, 7),
        # The fourth and later tries of a mail from neighbouring addresses.
        "one-mail-many-doors observed": (2, 0, 2, 1),
        "bulk-mailer-networks": (7, 0, 6, 1),
        "default": (1, 0, 1, 1),
    }
    assert found.facts.refused_delivered == 0


def test_delivered_mails_that_would_have_been_refused_are_listed_first(tmp_path: Path) -> None:
    ruleset = ruleset_of(tmp_path, RULES)
    logs = log_of(
        tmp_path,
        mail(1, "x.b.example[198.51.100.1]", status="554 5.7.1 no"),
        mail(2, "x.b.example[198.51.100.2]", status="bounced"),
        mail(3, "mx.c.example[192.0.2.3]", sender="v1@list.example"),
        mail(4, "mx.c.example[192.0.2.4]", status="deferred"),
        mail(5, "good.b.example[198.51.100.5]"),
        mail(6, "mx.e.example[198.51.100.6]"),
    )
    found = replay(ruleset, logs, TODAY)
    assert figures(found) == {
        "network": (2, 1, 2, 2),
        "customer": (1, 1, 1, 1),
        "suffix": (2, 0, 2, 1),
        "tried observed": (1, 1, 1, 1),
        "default": (1, 1, 1, 1),
    }
    assert found.rules[0][0].rule == "network"
    assert found.facts.refused_delivered == 1
    assert found.unmatched == ["never"]
    text = printed(found).splitlines()
    assert "1 mail was delivered, and would have been refused:" in text[2]
    assert "mx.c.example[192.0.2.3]" in text[4]
    assert "<v1@list.example>" in text[4]
    assert any("no mail for: never" in line for line in text)


def test_a_recipient_rule_is_applied_to_each_recipient(tmp_path: Path) -> None:
    ruleset = ruleset_of(
        tmp_path,
        """
rules:
  - name: postmaster
    match: {recipient: postmaster@d.example}
    action: DUNNO
  - name: network
    match: {cidr: 192.0.2.0/24}
    action: REJECT
""",
    )
    found = replay(ruleset, log_of(tmp_path, mail(1, "x[192.0.2.1]", to="postmaster@d.example e@d.example")), TODAY)
    assert figures(found) == {"network": (1, 1, 1, 1), "postmaster": (1, 1, 1, 1)}
    assert found.facts.refused_delivered == 1


STATUSES = """
rules:
  - {name: missing, match: {reverse_dns: missing}, action: REJECT}
  - {name: mismatch, match: {reverse_dns: mismatch}, action: REJECT}
  - {name: error, match: {reverse_dns: error}, action: DEFER}
"""


@pytest.mark.parametrize("assumption", [*Assumption])
def test_the_assumption_for_unknown_is_applied_and_reported(tmp_path: Path, assumption: Assumption) -> None:
    ruleset = ruleset_of(tmp_path, STATUSES)
    found = replay(ruleset, log_of(tmp_path, mail(1, "unknown[192.0.2.1]")), TODAY, assumption=assumption)
    assert figures(found) == {str(assumption): (1, 1, 1, 1)}
    assert found.facts.assumed == 1
    assert f"so `{assumption}` was assumed" in printed(found)


@pytest.mark.parametrize(
    ("reason", "rule"),
    [("", "mismatch"), (": Name or service not known", "mismatch"), (": Temporary failure", "error")],
)
def test_no_status_is_assumed_for_a_name_that_did_not_verify(tmp_path: Path, reason: str, rule: str) -> None:
    warning = (
        f"Nov 20 10:00:00 mx postfix/smtpd[1]: warning: hostname x.b.example does not resolve to address"
        f" 192.0.2.1{reason}\n"
    )
    logs = log_of(tmp_path, warning, mail(1, "unknown[192.0.2.1]"))
    found = replay(ruleset_of(tmp_path, STATUSES), logs, TODAY)
    assert figures(found) == {rule: (1, 1, 1, 1)}
    assert found.facts.assumed == 0


def test_a_claimed_name_never_exempts_in_a_replay(tmp_path: Path) -> None:
    warning = (
        "Nov 20 10:00:00 mx postfix/smtpd[1]: warning: hostname good.b.example does not resolve to address 192.0.2.1\n"
    )
    logs = log_of(tmp_path, warning, mail(1, "unknown[192.0.2.1]"))
    assert figures(replay(ruleset_of(tmp_path, RULES), logs, TODAY)) == {"suffix": (1, 1, 1, 1)}


def test_the_null_sender_is_a_sender_and_a_missing_sender_is_not(tmp_path: Path) -> None:
    ruleset = ruleset_of(tmp_path, "rules:\n  - {name: null-sender, match: {sender: <>}, action: REJECT}\n")
    refused_at_once = (
        "Nov 20 10:00:00 mx postfix/smtpd[1]: NOQUEUE: reject: CONNECT from unknown[192.0.2.1]: 554 no; proto=SMTP\n"
    )
    logs = log_of(tmp_path, refused_at_once, mail(2, "x[192.0.2.2]", sender=""))
    assert figures(replay(ruleset, logs, TODAY)) == {"null-sender": (1, 1, 1, 0), "default": (1, 0, 1, 0)}


def test_an_expired_rule_is_skipped(tmp_path: Path) -> None:
    ruleset = ruleset_of(tmp_path, RULES.replace("action: DEFER", "action: DEFER\n    expires: 2026-11-21"))
    logs = log_of(tmp_path, mail(1, "x[192.0.2.1]"))
    assert list(figures(replay(ruleset, logs, TODAY))) == ["default"]
    assert list(figures(replay(ruleset, logs, TODAY - datetime.timedelta(1)))) == ["network"]


def test_mails_that_passed_in_policyds_own_log_count_as_delivered(tmp_path: Path) -> None:
    log = tmp_path / "decisions.log"
    log.write_text(
        "2026-11-20T10:00:00.000Z DUNNO id=7Q4K2M9X client=x.b.example[192.0.2.1] rdns=verified state=RCPT from=<a@b>"
        " to=<c@d> helo=<h> ruleset=3f9c2a1b\n"
    )
    found = replay(ruleset_of(tmp_path, RULES), [str(log)], TODAY)
    assert found.facts.refused_delivered == 1
    assert found.rules[0][1].passed == 1
    assert "such mails are counted as delivered" in printed(found)


@pytest.mark.parametrize(
    ("condition", "note"),
    [
        ("size_regex: '[0-9]{7}'", "no log has `size`"),
        ("helo_name: x.example", "1 mail: the log has no HELO"),
    ],
)
def test_facts_that_a_log_lacks_are_reported(tmp_path: Path, condition: str, note: str) -> None:
    ruleset = ruleset_of(tmp_path, f"rules:\n  - {{name: r, match: {{{condition}}}, action: REJECT}}\n")
    assert note in printed(replay(ruleset, log_of(tmp_path, mail(1, "x[192.0.2.1]")), TODAY))


# --- Two rulesets ---------------------------------------------------------------------------------------------------


def test_only_mails_with_different_answers_are_shown(tmp_path: Path) -> None:
    old = ruleset_of(tmp_path, RULES, "old.yaml")
    new = ruleset_of(
        tmp_path,
        RULES.replace("192.0.2.0/24", "198.51.100.0/24").replace("name: suffix", "name: renamed").replace("No", "No!"),
        "new.yaml",
    )
    logs = log_of(
        tmp_path,
        mail(1, "x.b.example[203.0.113.1]"),  # another text
        mail(2, "mx.c.example[192.0.2.3]"),  # refused by the old ruleset only
        mail(3, "mx.c.example[198.51.100.4]"),  # refused by the new ruleset only
        mail(4, "mx.c.example[203.0.113.9]"),  # refused by both in the same way
        mail(5, "mx.c.example[10.0.0.9]"),  # refused by neither
    )
    found = compare(new, old, logs, TODAY)
    assert [
        (before.rule, before.action, after.rule, after.action, tally.transactions, tally.delivered)
        for before, after, tally in found.changes
    ] == [
        ("default", "DUNNO", "network", "DEFER", 1, 1),
        ("network", "DEFER", "default", "DUNNO", 1, 1),
        ("suffix", "REJECT", "renamed", "REJECT", 1, 1),
    ]
    assert (found.facts.changed, found.facts.refused_delivered) == (3, 1)
    screen = io.StringIO()
    print_comparison(Console(file=screen, width=240), found)
    assert "1 mail was delivered, and would now be refused:" in screen.getvalue()
    assert comparison_as_json(found)["changes"][0]["to"] == {"rule": "network", "action": "DEFER", "mode": "enforce"}


def test_a_ruleset_does_not_differ_from_itself(tmp_path: Path) -> None:
    ruleset = load(rules_path=SHIPPED).ruleset
    found = compare(ruleset, ruleset, [*INCIDENTS, str(DATA / "maillog.shapes")], TODAY)
    assert (found.changes, found.facts.changed) == ([], 0)
    screen = io.StringIO()
    print_comparison(Console(file=screen, width=240), found)
    assert "the same answer" in screen.getvalue()


def test_another_rule_with_the_same_answer_is_a_difference_only_if_the_answer_names_it(tmp_path: Path) -> None:
    text = "rules:\n  - {name: NAME, match: {cidr: 192.0.2.0/24}, action: 'REJECT 5.7.1 TEXT'}\n"
    logs = log_of(tmp_path, mail(1, "x[192.0.2.1]"))

    def changed(answer: str) -> int:
        old = ruleset_of(tmp_path, text.replace("NAME", "a").replace("TEXT", answer), "old.yaml")
        new = ruleset_of(tmp_path, text.replace("NAME", "b").replace("TEXT", answer), "new.yaml")
        return compare(new, old, logs, TODAY).facts.changed

    assert changed("no") == 0
    assert changed("no ({rule})") == 1


# --- Caches and limits ----------------------------------------------------------------------------------------------

names = st.sampled_from([(), (b"good.b.example",), (b"x.b.example",), (b"x.c.example", b"good.b.example")])
observed_mails = st.builds(
    Observation,
    time=st.just(1.0),
    client_address=st.sampled_from([b"192.0.2.1", b"198.51.100.1", b"::ffff:192.0.2.7", b"", b"2001:db8::1"]),
    names=names,
    name_status=st.sampled_from([*NameStatus]),
    helo_name=st.sampled_from([b"", b"x.b.example"]),
    sender=st.sampled_from([None, b"", b"v1@list.example", b"a@b"]),
    recipients=st.lists(st.sampled_from([b"c@d.example", b"postmaster@d.example"]), max_size=2).map(tuple),
    sasl_username=st.sampled_from([b"", b"joe"]),
    outcome=st.sampled_from([*MailOutcome]),
    by=st.just(b""),
    text=st.just(b""),
    log=st.just("postfix"),
)


@pytest.fixture(scope="module")
def rulesets(tmp_path_factory: pytest.TempPathFactory) -> list[Ruleset]:
    folder = tmp_path_factory.mktemp("rulesets")
    conditions = [
        "cidr: 192.0.2.0/24",
        "hostname: good.b.example",
        "hostname_suffix: b.example",
        "reverse_dns: [mismatch, error]",
        "helo_name_suffix: b.example",
        "sender: <>",
        "sender_domain: list.example",
        "recipient_regex: ^postmaster@",
        "sasl_username: ''",
        "protocol_state: RCPT",
        "client_name: unknown",
        "reverse_client_name_regex: example",
    ]
    texts = [RULES, STATUSES]
    texts += [f"rules:\n  - {{name: r{i}, match: {{{c}}}, action: REJECT}}\n" for i, c in enumerate(conditions)]
    return [ruleset_of(folder, text) for text in texts]


def answers(judge: Judge, seen: Observation) -> set[tuple[str, ...]]:
    return {(d.verb, d.rule_name, *d.observed) if d is not None else () for d in judge.decisions(seen)}


@settings(max_examples=examples(60), deadline=None)
@given(seen=st.lists(observed_mails, max_size=25))
def test_mails_with_equal_grounds_get_equal_decisions(rulesets: list[Ruleset], seen: list[Observation]) -> None:
    for ruleset in rulesets:
        subjects = subjects_of(ruleset)
        judge = Judge(ruleset, TODAY, Assumption.MISSING, by_recipient="recipient" in subjects)
        judge_by_recipient = Judge(ruleset, TODAY, Assumption.MISSING, by_recipient=True)
        remembered: dict[object, set[tuple[str, ...]]] = {}
        for mail_seen in seen:
            decided = answers(judge, mail_seen)
            assert remembered.setdefault(judge.grounds(mail_seen), decided) == decided
            assert decided == answers(judge_by_recipient, mail_seen)


def test_a_full_cache_does_not_change_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ruleset, logs = load(rules_path=SHIPPED).ruleset, [*INCIDENTS, str(DATA / "maillog.shapes")]
    before = replay_as_json(replay(ruleset, logs, TODAY))
    monkeypatch.setattr(replay_module, "_MAX_REMEMBERED", 2)
    assert replay_as_json(replay(ruleset, logs, TODAY)) == before


def test_figures_of_a_log_with_very_many_clients_stop_at_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "_MAX_DISTINCT", 50)
    mails = [mail(number, f"x[192.0.2.{number}]", sender=f"a@{number}.example") for number in range(100)]
    found = replay(ruleset_of(tmp_path, RULES), log_of(tmp_path, *mails), TODAY)
    mails_seen, _, clients, domains = figures(found)["network"]
    assert (mails_seen, clients, domains) == (100, 25, 25)
    text = printed(found)
    assert "25+" in text
    assert "counting stopped" in text
    result: dict[str, Any] = json.loads(json.dumps(replay_as_json(found)))
    assert result["rules"][0]["uncounted"] is True


def test_no_client_text_reaches_a_terminal_raw(tmp_path: Path) -> None:
    log = tmp_path / "mail.log"
    log.write_bytes(mail(1, "x[192.0.2.1]", sender="[red]\x1b[31m\u202e@b.example").encode())
    found = replay(ruleset_of(tmp_path, RULES), [str(log)], TODAY)
    text = printed(found)
    assert r"<[red]\x1b[31m\xe2\x80\xae@b.example>" in text
    assert text.isprintable() or text.replace("\n", "").isprintable()
