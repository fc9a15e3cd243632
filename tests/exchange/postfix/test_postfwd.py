from __future__ import annotations

import itertools
import socket
from pathlib import Path

import pytest

from tests.bench import servers
from tests.exchange.answers import Mail, answer, attributes_of, import_text, rules_of

RULESET = r"""
# trusted networks
&&TRUSTED {
	client_address=10.0.0.0/8, 192.168.0.0/16
	client_address=2001:db8::5
};
&&DYNAMIC { client_name=\.dyn\.b\.example$ ; client_name=^unknown$; };

id=TRUST ; &&TRUSTED ; action=OK
id=DYN
	&&DYNAMIC
	helo_name!~^mail\.
	action=REJECT dynamic $$client_address by $$id ($$instance)
id=BOB; sender==bob@b.example; client_address=!!(192.0.2.0/24); action=550 5.7.1 not from {there}
id=WAYS; client_name==two.example; client_name=~^[0-9]+-two\.; action=REJECT two ways
id=MASK; client_address=198.51.100.1/24; action=450 4.7.1 masked
id=LIKE; recipient_domain=like.org; action=REJECT like
id=FROM; sender_domain=^from\.example$; action=REJECT from
id=RCPT; recipient_domain==closed.example; action=450 4.2.1 closed; \
id=NULL; sender=^<>$; helo_name==null.example; action=REJECT
action=dunno
"""


@pytest.mark.parametrize(
    ("mail", "wanted"),
    [
        (Mail("10.1.1.1", "x.dyn.b.example"), "DUNNO"),
        (Mail("2001:db8::5", "x.dyn.b.example"), "DUNNO"),
        (Mail("192.0.2.1", "x.dyn.b.example"), "REJECT dynamic 192.0.2.1 by DYN (...)"),
        (Mail("192.0.2.1", "x.dyn.b.example", helo="mail.b.example"), "DUNNO"),
        (Mail("192.0.2.1", "ok.example", sender="bob@b.example"), "DUNNO"),
        (Mail("192.0.3.1", "ok.example", sender="bob@b.example"), "REJECT 5.7.1 not from {there}"),
        (Mail("192.0.3.1", "ok.example", helo="null.example", sender="<>"), "REJECT"),
        (Mail("192.0.3.1", "ok.example", helo="null.example"), "DUNNO"),
        (Mail("192.0.3.1", "two.example"), "REJECT two ways"),
        (Mail("192.0.3.1", "7-two.example"), "REJECT two ways"),
        (Mail("192.0.3.1", "a.two.example"), "DUNNO"),
        (Mail("198.51.100.200", "ok.example"), "DEFER 4.7.1 masked"),
        (Mail("192.0.3.1", "ok.example", recipient="a@x.likeXorg.example"), "REJECT like"),
        (Mail("192.0.3.1", "ok.example", recipient="like.org@b.example"), "DUNNO"),
        (Mail("192.0.3.1", "ok.example", sender="a@from.example"), "REJECT from"),
        (Mail("192.0.3.1", "ok.example", sender="from.example@a.from.example"), "DUNNO"),
    ],
)
def test_the_rules_answer_as_postfwd_does(mail: Mail, wanted: str) -> None:
    ruleset = RULESET.replace("; \\\n", "\n")
    assert answer(rules_of("postfwd", ruleset), mail) == wanted


@pytest.mark.slow
def test_the_real_postfwd_gives_the_same_answers_for_all_combinations() -> None:
    if not Path(servers.POSTFWD).exists():
        pytest.skip("postfwd is not installed; CI does not need it, because the table above has its answers")
    ruleset = RULESET.replace("; \\\n", "\n")
    rules = rules_of("postfwd", ruleset)
    addresses = ["10.1.1.1", "192.168.3.4", "192.0.2.1", "192.0.3.1", "198.51.100.7", "2001:db8::5", "2001:db8::6"]
    names = ["x.dyn.b.example", "ok.example", "two.example", "7-two.example", "a.two.example", "unknown"]
    helos = ["mail.b.example", "null.example"]
    senders = ["bob@b.example", "z@from.example", "from.example@a.from.example", "<>"]
    recipients = ["a@closed.example", "a@b.example", "like.org@b.example", "a@x.like.org.example"]
    with servers.postfwd(ruleset, pinned=False) as server:
        port = int(server.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 30) as connection:
            for values in itertools.product(addresses, names, helos, senders, recipients):
                mail = Mail(*values)
                connection.sendall(request_of(mail))
                reply = b""
                while not reply.endswith(b"\n\n"):
                    reply += connection.recv(4096)
                verb = reply.decode().removeprefix("action=").split()[0].upper()
                wanted = {"OK": "DUNNO", "550": "REJECT", "450": "DEFER"}.get(verb, verb)
                assert answer(rules, mail).split()[0] == wanted, (mail, reply)


def request_of(mail: Mail) -> bytes:
    return "".join(f"{name}={value}\n" for name, value in attributes_of(mail).items()).encode() + b"\n"


def test_each_id_becomes_a_valid_name_of_a_single_rule() -> None:
    result = import_text(
        "postfwd", "id=R 1/x; client_address=192.0.2.1; action=REJECT\nid=R 1/x; sender==a@b.example; action=REJECT\n"
    )
    assert [rule.name for rule in result.rules] == ["R-1-x", "R-1-x-2"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("id=R; rbl=zen.spamhaus.org; action=REJECT", "a DNS lookup"),
        ("id=R; sender_mx_addrs=192.0.2.0/24; action=REJECT", "a DNS lookup"),
        ("id=R; time=08:00:00-17:00:00; action=REJECT", "the time of day"),
        ("id=R; score=5.0; action=REJECT", "scores"),
        ("id=R; size=>1000000; action=REJECT", "numbers are compared"),
        ("id=R; client_name=^(?!mx); action=REJECT", "RE2 has no look-around"),
        ("id=R; client_name=!!$$helo_name; action=REJECT", "cannot be compared with each other"),
        ("id=R; client_address=file:/etc/postfwd/list; action=REJECT", "import it as plain"),
        ("id=R; &&NOWHERE; action=REJECT", "is not defined above"),
        ("id=R; client_address=192.0.2.1; action=jump(R2)", "jump() is not supported"),
        ("id=R; client_address=192.0.2.1; action=rate(sender/2/60/REJECT)", "rate() is not supported"),
        ("id=R; client_address=192.0.2.1; action=note(seen)", "note() only logs"),
        ("id=R; client_address=192.0.2.1", "there is no action"),
        ("id=R; client_address=192.0.2.1,; action=REJECT", "an address is missing before or after a comma"),
        ("id=R; nonsense; action=REJECT", "is not an item"),
        ("id=R; colour==red; action=REJECT", "is not an attribute that Postfix sends"),
        ("id=R; sender=!!(a); sender=!!(b); action=REJECT", "either would be enough"),
        ("id=R; client_address=192.0.2.1; client_address=~^10; action=REJECT", "compared in two ways"),
        ("id=R; reverse_client_name=good; action=DUNNO", "may not let mail through"),
        ("id=R; sender_localpart=bob; action=REJECT", "write it for the whole address"),
    ],
)
def test_an_unsupported_rule_is_reported_and_the_others_are_kept(line: str, reason: str) -> None:
    result = import_text("postfwd", f"id=A; client_address=192.0.2.7; action=REJECT\n{line}\n")
    assert [(loss.line.number, reason in loss.reason) for loss in result.report.losses] == [(2, True)]
    assert [rule.name for rule in result.rules] == ["A"]


def test_a_macro_that_names_itself_is_refused() -> None:
    result = import_text("postfwd", "&&A { &&B; };\n&&B { sender=x; };\n&&A { &&A; };\nid=R; &&B; action=REJECT\n")
    assert {loss.line.number for loss in result.report.losses} == {1, 3}
    grown = "&&A { sender=x; };\n" + "".join("&&A { &&A; &&A; };\n" for _ in range(40)) + "id=R; &&A; action=REJECT\n"
    assert import_text("postfwd", "id=Z; sender=z; action=REJECT\n" + grown).report.losses
