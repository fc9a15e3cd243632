"""Reads lines of the decision log, also those that the daemon writes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.core.engine import Decision
from policyd.core.identity import Identity, Reason, Status
from policyd.core.protocol import Request
from policyd.core.ruleset import Verb
from policyd.decision_log.reader import LoggedDecision, as_json, as_text, parse, parse_anywhere
from policyd.decision_log.writer import DecisionEntry, json_line, text_line

TEXT = (
    b"2026-11-21T17:16:00.123+09:00 REJECT id=7Q4K2M9X rule=sakura-vps"
    b" client=os3-305-42423.vs.sakura.ne.jp[49.212.201.177] rdns=verified"
    b" lists=zen:127.0.0.2+127.0.0.9,dnswl:-,psbl:?timeout state=RCPT from=<a@b.example>"
    b" to=<c@d.example> helo=<x.example> instance=2839.653c0bf7.6e7e.2 observed=first-try,second ruleset=3f9c2a1b"
    b' dns_ms=11.8 ms=12.1 reply="5.7.1 Access denied"'
)
JSON = {
    "time": "2026-11-21T17:16:00.123+09:00",
    "action": "REJECT",
    "id": "7Q4K2M9X",
    "rule": "sakura-vps",
    "client_address": "49.212.201.177",
    "hostname": "os3-305-42423.vs.sakura.ne.jp",
    "reverse_dns": "verified",
    "lists": {"zen": "127.0.0.2+127.0.0.9", "dnswl": "-", "psbl": "?timeout"},
    "protocol_state": "RCPT",
    "sender": "a@b.example",
    "recipient": "c@d.example",
    "helo_name": "x.example",
    "instance": "2839.653c0bf7.6e7e.2",
    "observed": ["first-try", "second"],
    "ruleset": "3f9c2a1b",
    "dns_ms": 11.8,
    "ms": 12.1,
    "reply": "5.7.1 Access denied",
}
DECISION = LoggedDecision(
    time=b"2026-11-21T17:16:00.123+09:00",
    action=b"REJECT",
    would=b"",
    id=b"7Q4K2M9X",
    rule=b"sakura-vps",
    client_address=b"49.212.201.177",
    hostname=b"os3-305-42423.vs.sakura.ne.jp",
    asn=0,
    asn_name=b"",
    country=b"",
    claimed=(),
    reverse_dns=b"verified",
    lists=(b"zen:127.0.0.2+127.0.0.9", b"dnswl:-", b"psbl:?timeout"),
    dns_error=b"",
    downgraded=False,
    protocol_state=b"RCPT",
    sender=b"a@b.example",
    recipient=b"c@d.example",
    helo_name=b"x.example",
    sasl_username=b"",
    instance=b"2839.653c0bf7.6e7e.2",
    queue_id=b"",
    observed=(b"first-try", b"second"),
    greylist=b"",
    memory=b"",
    ruleset=b"3f9c2a1b",
    dns_ms=11.8,
    ms=12.1,
    reply=b"5.7.1 Access denied",
)


def parse_decision(line: bytes) -> LoggedDecision:
    decision = parse(line)
    assert decision is not None
    return decision


@pytest.mark.parametrize("line", [TEXT, json.dumps(JSON).encode()], ids=["text", "json"])
def test_both_formats_give_the_same_decision(line: bytes) -> None:
    assert parse(line) == DECISION


def test_under_a_top_level_observe_a_line_has_both_actions() -> None:
    decision = parse_decision(
        b"2026-11-21T17:16:00.123Z DUNNO would=REJECT id=7Q4K2M9X client=unknown[192.0.2.1] state=RCPT"
    )
    assert (decision.action, decision.would, decision.decided) == (b"DUNNO", b"REJECT", b"REJECT")
    assert (decision.hostname, decision.rule_name) == (b"", b"default")


def test_the_bytes_of_a_client_are_read_back_unchanged() -> None:
    decision = parse_decision(
        rb"2026-11-21T17:16:00.123Z DUNNO id=7Q4K2M9X client=unknown[2001:db8::1] claimed=a\x20b.example,c.example"
        rb" rdns=error dns_error=servfail state=RCPT from=<\x22a\x20b\x22@c.example> to=<d\x3ce\x3e@f>"
        rb" helo=<\xe3\x81\x82>"
    )
    assert decision.claimed == (b"a b.example", b"c.example")
    assert decision.sender == b'"a b"@c.example'
    assert decision.recipient == b"d<e>@f"
    assert decision.helo_name == "あ".encode()
    assert (decision.client_address, decision.dns_error) == (b"2001:db8::1", b"servfail")


@pytest.mark.parametrize(("state", "sender"), [("RCPT", b""), ("MAIL", b""), ("CONNECT", None), ("HELO", None)])
def test_an_empty_sender_is_the_null_sender_only_in_states_with_a_sender(state: str, sender: bytes | None) -> None:
    text = f"2026-11-21T17:16:00.123Z DUNNO id=7Q4K2M9X client=unknown[192.0.2.1] state={state}"
    fields = {"time": "2026-11-21T17:16:00Z", "action": "DUNNO", "protocol_state": state}
    assert parse_decision(text.encode()).sender == sender
    assert parse_decision(json.dumps(fields).encode()).sender == sender


def test_the_words_of_a_truncated_reply_are_not_fields() -> None:
    decision = parse_decision(TEXT.partition(b"Access")[0] + b"x client=evil.example[192.0.2.9] rule=other id=00000000")
    assert decision._replace(reply=b"") == DECISION._replace(reply=b"")


def test_a_key_inside_another_word_is_not_a_key() -> None:
    assert parse_decision(TEXT.replace(b" id=", b" .id=x id=").replace(b" rule=", b" x-rule=y rule=")) == DECISION


@pytest.mark.parametrize(("written", "read"), [(-1, None), (-0.0, 0.0), (1e15, None), (0.25, 0.25), ("1", None)])
def test_invalid_milliseconds_are_ignored(written: object, read: float | None) -> None:
    assert parse_decision(json.dumps({**JSON, "ms": written}).encode()).ms == read


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"action": "OK", "time": "2026-11-21T17:16:00Z"}',
        b'{"action": ["REJECT"], "time": 3}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        TEXT[:40],
        TEXT.replace(b"REJECT", b"PERMIT"),
        TEXT.replace(b" client=", b" clint="),
        b"Aug  3 12:15:23 ulysses postfix/smtpd[9105]: connect from unknown[192.0.2.1]",
    ],
)
def test_any_other_line_is_not_a_decision(line: bytes) -> None:
    assert parse(line) is None


@pytest.mark.parametrize("cut", range(75, len(TEXT)))
def test_a_truncated_line_keeps_its_complete_values(cut: int) -> None:
    decision = parse(TEXT[:cut])
    if decision is not None:
        assert (decision.id, decision.rule) == (DECISION.id, DECISION.rule)


@pytest.mark.parametrize(
    ("words", "asn", "country"),
    [
        (b"asn=9371 country=JP", 9371, b"JP"),
        (b"asn=4294967295", 4294967295, b""),
        (b"country=JP", 0, b"JP"),
        (b"asn=4294967296", 0, b""),
        (b"asn=AS9371", 0, b""),
        (b"asn=99999999999999999999999", 0, b""),
        (b"asn=-1", 0, b""),
    ],
)
def test_the_system_and_the_country_are_read_back(words: bytes, asn: int, country: bytes) -> None:
    decision = parse_decision(b"2026-11-21T17:16:00.123Z REJECT client=x[1] %b state=RCPT" % words)
    assert (decision.asn, decision.country) == (asn, country)
    assert parse_decision(as_text(decision).encode()) == decision


@pytest.mark.parametrize(
    ("value", "asn"), [(9371, 9371), (0, 0), (-1, 0), (2**32, 0), (True, 0), ("9371", 0), (1.5, 0)]
)
def test_a_system_in_json_must_be_a_number(value: object, asn: int) -> None:
    decision = parse_decision(json.dumps(JSON | {"asn": value, "asn_name": "Example", "country": "JP"}).encode())
    assert (decision.asn, decision.asn_name, decision.country) == (asn, b"Example", b"JP")
    assert as_json(decision).get("asn", 0) == asn


def test_quotes_at_the_ends_of_a_reply_are_kept() -> None:
    decision = parse_decision(
        rb'2026-11-21T17:16:00.123Z REJECT client=x[1] observed=a,b\x2cc reply="\x22no\x22, she said\x22"'
    )
    assert decision.reply == b'"no", she said"'
    assert decision.observed == (b"a", b"b,c")
    assert parse_decision(as_text(decision).encode()) == decision


def test_json_with_an_invalid_time_is_not_a_decision() -> None:
    assert parse(json.dumps(JSON | {"time": "2026-11-21T17:16:00 tomorrow"}).encode()) is None


def test_values_of_the_wrong_type_in_json_are_ignored() -> None:
    decision = parse_decision(
        json.dumps(
            JSON | {"ms": "fast", "dns_ms": 1e300, "claimed": [1, "x"], "observed": "y", "sender": None}
        ).encode()
    )
    assert (decision.ms, decision.dns_ms, decision.claimed, decision.observed) == (None, None, (b"x",), ())


def test_a_lone_surrogate_in_json_is_replaced() -> None:
    assert (
        parse_decision(b'{"action": "DUNNO", "time": "2026-11-21T17:16:00Z", "helo_name": "\\ud800"}').helo_name == b"?"
    )


@given(st.binary(max_size=300))
def test_no_line_raises_an_exception(rest: bytes) -> None:
    parse(rest)
    parse(TEXT[:50] + rest)
    parse(b'{"action": "REJECT", "time": "2026-11-21T17:16:00Z", ' + rest)


# --- Lines within other logs ----------------------------------------------------------------------------------------


def test_decisions_are_found_within_other_logs() -> None:
    syslog = b"Nov 21 17:16:00 mx policyd[12]: "
    journal = json.dumps({"SYSLOG_IDENTIFIER": "policyd", "MESSAGE": TEXT.decode()}).encode()
    for line in (TEXT, syslog + TEXT, syslog + json.dumps(JSON).encode(), journal):
        assert parse_anywhere(line) == DECISION
    for line in (b"", b"{", b'{"MESSAGE": 3}', b'{"MESSAGE": "x"}', syslog, b"x policyd[1]: y"):
        assert parse_anywhere(line) is None


# --- Lines of the daemon --------------------------------------------------------------------------------------------

short_bytes = st.binary(max_size=30)
# With `dns.trust_postfix`, policyd does not check client_name, and the program that sends it need not be Postfix.
names = st.one_of(st.sampled_from([b"a.example", b"a[192.0.2.1]"]), st.binary(min_size=1, max_size=30)).filter(
    b"unknown".__ne__
)


@given(
    st.fixed_dictionaries(
        dict.fromkeys(
            ("client_address", "sender", "recipient", "helo_name", "sasl_username", "instance", "queue_id"), short_bytes
        )
    ),
    st.sampled_from([b"RCPT", b"CONNECT", b"MAIL"]),
    st.one_of(
        st.none(),
        st.builds(lambda name: Identity(Status.VERIFIED, (name,)), names),
        st.builds(
            lambda names: Identity(Status.MISMATCH, (), tuple(names)),
            st.lists(st.binary(min_size=1, max_size=30), max_size=3),  # DNS has no empty name: the root is `.`
        ),
        st.just(Identity(Status.ERROR, (), (), Reason.SERVFAIL, names_known=False)),
    ),
    st.booleans(),
)
def test_lines_of_the_daemon_are_read_back(
    attributes: dict[str, bytes], state: bytes, identity: Identity | None, observe: bool
) -> None:
    request = Request.of(attributes | {"protocol_state": state})
    decision = Decision(
        Verb.REJECT, None, "5.7.1", ("No",), ("a", "b"), downgraded=False, identity=identity, observing=observe
    )
    hostname = identity.hostname if identity is not None else b""
    entry = DecisionEntry(
        b"2026-11-21T17:16:00.123+09:00",
        b"7Q4K2M9X",
        request,
        decision,
        hostname,
        b'5.7.1 No "quotes" <x>',
        "3f9c2a1b",
        0.0118,
        0.0121,
    )
    read = parse_decision(text_line(entry).removesuffix(b"\n"))
    for name, value in attributes.items():
        if name == "sender" and not value and state == b"CONNECT":
            assert read.sender is None
        else:
            assert getattr(read, name) == value
    assert (read.action, read.would) == ((b"DUNNO", b"REJECT") if observe else (b"REJECT", b""))
    assert read.hostname == hostname
    assert read.claimed == (identity.claimed if identity is not None else ())
    assert read.reply == b'5.7.1 No "quotes" <x>'
    assert (read.observed, read.dns_ms, read.ms) == ((b"a", b"b"), 11.8, 12.1)
    # The decision that was read makes the same line of text, and the same JSON, in which invalid UTF-8 is replaced.
    assert as_text(read).encode() == text_line(entry).removesuffix(b"\n")
    assert as_json(read) == json.loads(json_line(entry))
