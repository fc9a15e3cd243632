"""Lines of the decision log, as text and as JSON."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.core.engine import Decision
from policyd.core.identity import Identity, Reason, Status
from policyd.core.owners import NO_OWNER, Owner
from policyd.core.protocol import Request
from policyd.core.ruleset import Action, Rule, Verb
from policyd.decision_log.record import MAX_LINE, format_text
from policyd.decision_log.writer import DecisionEntry, Timestamps, _fit_line, json_line, text_line
from tests.local_time import local_time

RULE = Rule("sakura-vps", 3, (), (), Action(Verb.REJECT, "5.7.1", ("Access denied",)))

REQUEST = {
    "request": b"smtpd_access_policy",
    "protocol_state": b"RCPT",
    "client_address": b"49.212.201.177",
    "client_name": b"os3-305-42423.vs.sakura.ne.jp",
    "helo_name": b"x.example",
    "sender": b"a@b.example",
    "recipient": b"c@d.example",
    "queue_id": b"",
    "instance": b"2839.653c0bf7.6e7e.2",
    "sasl_username": b"",
}
VERIFIED = Identity(Status.VERIFIED, (b"os3-305-42423.vs.sakura.ne.jp",))


def entry(
    *,
    action: str = "REJECT",
    hostname: bytes = b"os3-305-42423.vs.sakura.ne.jp",
    reply: str = "5.7.1 Access denied",
    dns_seconds: float = 0.0,
    seconds: float = 0.00004,
    rule: Rule | None = RULE,
    observed: tuple[str, ...] = (),
    downgraded: bool = False,
    identity: Identity | None = VERIFIED,
    verb: Verb = Verb.REJECT,
    owner: Owner | None = None,
    **attributes: bytes,
) -> DecisionEntry:
    """Returns an entry for a rejected client, with these fields changed."""
    decision = Decision(
        verb, rule, "5.7.1", ("Access denied",), observed, downgraded, identity, action != verb, owner=owner
    )
    request = Request.of(REQUEST | attributes)
    return DecisionEntry(
        b"2026-11-21T17:16:00.123+09:00",
        b"7Q4K2M9X",
        request,
        decision,
        hostname,
        reply.encode(),
        "3f9c2a1b",
        dns_seconds,
        seconds,
    )


TIMESTAMP = "2026-11-21T17:16:00.123+09:00"


@pytest.mark.parametrize(
    ("logged", "text"),
    [
        (
            entry(observed=("first-try",), dns_seconds=0.0118, seconds=0.0121),
            (
                "REJECT id=7Q4K2M9X rule=sakura-vps client=os3-305-42423.vs.sakura.ne.jp[49.212.201.177] rdns=verified "
                "state=RCPT from=<a@b.example> to=<c@d.example> helo=<x.example> instance=2839.653c0bf7.6e7e.2 "
                'observed=first-try ruleset=3f9c2a1b dns_ms=11.8 ms=12.1 reply="5.7.1 Access denied"'
            ),
        ),
        (
            entry(),
            (
                "REJECT id=7Q4K2M9X rule=sakura-vps client=os3-305-42423.vs.sakura.ne.jp[49.212.201.177] rdns=verified "
                "state=RCPT from=<a@b.example> to=<c@d.example> helo=<x.example> instance=2839.653c0bf7.6e7e.2 "
                'ruleset=3f9c2a1b ms=0.0 reply="5.7.1 Access denied"'
            ),
        ),
        (
            entry(action="DUNNO", verb=Verb.DUNNO, rule=None, identity=None, hostname=b"", reply="", sender=b""),
            (
                "DUNNO id=7Q4K2M9X client=unknown[49.212.201.177] state=RCPT from=<> to=<c@d.example> helo=<x.example> "
                "instance=2839.653c0bf7.6e7e.2 ruleset=3f9c2a1b ms=0.0"
            ),
        ),
        (
            entry(action="DUNNO", reply="", observed=("a", "b")),
            (
                "DUNNO would=REJECT id=7Q4K2M9X rule=sakura-vps client=os3-305-42423.vs.sakura.ne.jp[49.212.201.177] "
                "rdns=verified state=RCPT from=<a@b.example> to=<c@d.example> helo=<x.example> "
                "instance=2839.653c0bf7.6e7e.2 observed=a,b ruleset=3f9c2a1b ms=0.0"
            ),
        ),
        (
            entry(owner=Owner(9371, "Example <Internet>", "JP")),
            (
                "REJECT id=7Q4K2M9X rule=sakura-vps client=os3-305-42423.vs.sakura.ne.jp[49.212.201.177] asn=9371 "
                "country=JP rdns=verified state=RCPT from=<a@b.example> to=<c@d.example> helo=<x.example> "
                'instance=2839.653c0bf7.6e7e.2 ruleset=3f9c2a1b ms=0.0 reply="5.7.1 Access denied"'
            ),
        ),
        (
            entry(owner=Owner(4294967295), queue_id=b"4Kx"),
            (
                "REJECT id=7Q4K2M9X rule=sakura-vps client=os3-305-42423.vs.sakura.ne.jp[49.212.201.177] "
                "asn=4294967295 rdns=verified state=RCPT from=<a@b.example> to=<c@d.example> helo=<x.example> "
                "instance=2839.653c0bf7.6e7e.2 queue_id=4Kx ruleset=3f9c2a1b ms=0.0 "
                'reply="5.7.1 Access denied"'
            ),
        ),
        (
            entry(owner=NO_OWNER, action="DUNNO", verb=Verb.DUNNO, rule=None, reply=""),
            (
                "DUNNO id=7Q4K2M9X client=os3-305-42423.vs.sakura.ne.jp[49.212.201.177] rdns=verified "
                "state=RCPT from=<a@b.example> to=<c@d.example> helo=<x.example> instance=2839.653c0bf7.6e7e.2 "
                "ruleset=3f9c2a1b ms=0.0"
            ),
        ),
        (
            entry(
                action="DEFER",
                verb=Verb.DEFER,
                downgraded=True,
                hostname=b"",
                identity=Identity(Status.ERROR, (), (b"a.example", b"b,c.example"), Reason.SERVFAIL),
                dns_seconds=0.00001,
                reply='4.7.1 "no" \\ <x>',
                sasl_username=b"anna b",
                queue_id=b"4Kx",
            ),
            (
                "DEFER id=7Q4K2M9X rule=sakura-vps client=unknown[49.212.201.177] claimed=a.example,b\\x2cc.example "
                "rdns=error dns_error=servfail downgraded=true state=RCPT from=<a@b.example> to=<c@d.example> "
                "helo=<x.example> sasl_username=anna\\x20b instance=2839.653c0bf7.6e7e.2 queue_id=4Kx ruleset=3f9c2a1b "
                'dns_ms=0.0 ms=0.0 reply="4.7.1 \\x22no\\x22 \\x5c <x>"'
            ),
        ),
        (
            entry(
                protocol_state=b"CONNECT",
                sender=b"",
                recipient=b"",
                helo_name=b"",
                instance=b"",
                client_address=b"",
                hostname=b"",
                identity=None,
                rule=None,
            ),
            ('REJECT id=7Q4K2M9X client=unknown[] state=CONNECT ruleset=3f9c2a1b ms=0.0 reply="5.7.1 Access denied"'),
        ),
        (
            entry(helo_name="grüße \u202e<'\\\n".encode() + b"\xff\x00\x7f", protocol_state=b"DATA", recipient=b""),
            (
                "REJECT id=7Q4K2M9X rule=sakura-vps client=os3-305-42423.vs.sakura.ne.jp[49.212.201.177] rdns=verified "
                "state=DATA from=<a@b.example> "
                "helo=<gr\\xc3\\xbc\\xc3\\x9fe\\x20\\xe2\\x80\\xae\\x3c\\x27\\x5c\\x0a\\xff\\x00\\x7f> "
                'instance=2839.653c0bf7.6e7e.2 ruleset=3f9c2a1b ms=0.0 reply="5.7.1 Access denied"'
            ),
        ),
    ],
)
def test_the_text_format_is_as_documented(logged: DecisionEntry, text: str) -> None:
    assert text_line(logged).decode() == f"{TIMESTAMP} {text}\n"


def test_json_has_the_documented_keys() -> None:
    logged = entry(
        observed=("first-try",),
        dns_seconds=0.0118,
        seconds=0.0121,
        identity=Identity(Status.ERROR, (), (b"a.example", b"b\xff"), Reason.TIMEOUT),
        hostname=b"",
        sasl_username="ü\x7f\u202e".encode(),
        queue_id=b"4Kx",
    )
    line = json_line(logged)
    assert json.loads(line) == {
        "time": TIMESTAMP,
        "action": "REJECT",
        "id": "7Q4K2M9X",
        "rule": "sakura-vps",
        "client_address": "49.212.201.177",
        "hostname": "unknown",
        "claimed": ["a.example", "b\ufffd"],
        "reverse_dns": "error",
        "dns_error": "timeout",
        "protocol_state": "RCPT",
        "sender": "a@b.example",
        "recipient": "c@d.example",
        "helo_name": "x.example",
        "sasl_username": "ü\x7f\u202e",
        "instance": "2839.653c0bf7.6e7e.2",
        "queue_id": "4Kx",
        "observed": ["first-try"],
        "ruleset": "3f9c2a1b",
        "dns_ms": 11.8,
        "ms": 12.1,
        "reply": "5.7.1 Access denied",
    }
    assert re.fullmatch(rb"[ -~]+\n", line)


def test_json_has_the_system_as_a_number_and_its_name() -> None:
    fields = json.loads(json_line(entry(owner=Owner(9371, "Example Internet \u00fc\u202e", "JP"))))
    assert (fields["asn"], fields["asn_name"], fields["country"]) == (9371, "Example Internet \u00fc\u202e", "JP")
    keys = list(fields)
    assert keys[keys.index("hostname") + 1 :][:3] == ["asn", "asn_name", "country"]
    assert {"asn", "asn_name", "country"}.isdisjoint(json.loads(json_line(entry(owner=NO_OWNER))))


def test_the_null_sender_is_logged_and_an_unknown_sender_is_not() -> None:
    assert json.loads(json_line(entry(sender=b"")))["sender"] == ""
    assert "sender" not in json.loads(json_line(entry(sender=b"", protocol_state=b"HELO")))


# --- Bytes from clients and DNS ------------------------------------------------------------------------------------

from_outside = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [b"", b"RCPT", b"HELO", b"a@b.example", b"x" * 5000, b"\xff" * 3000, "𝄞".encode() * 2000, b"\\" * 900]
    ),
)
names = st.lists(from_outside.filter(bool), max_size=4).map(tuple)
identities = st.one_of(
    st.none(),
    st.builds(
        Identity,
        st.sampled_from(Status),
        names,
        st.one_of(names, st.just((b"n.example",) * 4000)),
        st.sampled_from([None, *Reason]),
    ),
)
owners = st.one_of(
    st.none(),
    st.builds(
        Owner, st.sampled_from([0, 1, 9371, 2**32 - 1]), st.text(max_size=200), st.sampled_from(["", "JP", "US"])
    ).map(lambda owner: owner if owner.asn else owner._replace(asn_name="")),
)
printable = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=200)


@st.composite
def entries(draw: st.DrawFn) -> DecisionEntry:
    verb = draw(st.sampled_from(Verb))
    return entry(
        action=draw(st.sampled_from([str(verb), "DUNNO"])),
        verb=verb,
        rule=draw(st.sampled_from([None, RULE, replace(RULE, name="n" * 5000)])),
        identity=draw(identities),
        owner=draw(owners),
        hostname=draw(from_outside.filter(bool)),
        reply=draw(printable),
        observed=tuple(draw(st.lists(st.text("abc-", min_size=1, max_size=9), max_size=3)))
        * draw(st.sampled_from([1, 900])),
        downgraded=draw(st.booleans()),
        dns_seconds=draw(st.sampled_from([0.0, 0.00001, 4.2])),
        **dict[str, Any]((name, draw(from_outside)) for name in REQUEST),
    )


QUOTED = re.compile(r'(?:[^ "]|"[^"]*")+')


@given(entries())
def test_any_bytes_make_one_line_of_text_that_can_be_split_at_blanks_outside_quotes(logged: DecisionEntry) -> None:
    line = text_line(logged)
    assert re.fullmatch(rb"[ -~]+\n", line)
    assert len(line) <= MAX_LINE
    text = line.decode().removesuffix("\n")
    words = QUOTED.findall(text)
    assert " ".join(words) == text
    keys = [word.partition("=")[0] for word in words[2:]]
    assert len(keys) == len(set(keys))
    fields = {
        key for key in json.loads(json_line(logged)) if key not in {"time", "action", "client_address", "asn_name"}
    }
    full_names = {
        "from": "sender",
        "to": "recipient",
        "helo": "helo_name",
        "rdns": "reverse_dns",
        "state": "protocol_state",
    }
    assert {full_names.get(key, key) if key != "client" else "hostname" for key in keys} == fields


@given(entries())
def test_any_bytes_make_one_line_of_json_with_the_same_values(logged: DecisionEntry) -> None:
    line = json_line(logged)
    assert re.fullmatch(rb"[ -~]+\n", line)
    assert len(line) <= MAX_LINE
    fields = json.loads(line)
    for name in ("sender", "recipient", "helo_name", "instance", "queue_id", "sasl_username", "client_address"):
        value = logged.request.get(name).decode("utf-8", "replace")
        shown = fields.get(name, "")
        assert shown == value or (shown.endswith("...") and value.startswith(shown[:-3]))


@given(entries())
def test_the_fast_and_the_general_way_make_the_same_line(logged: DecisionEntry) -> None:
    assert text_line(logged) == _fit_line(format_text, logged)


@given(st.binary(max_size=80))
def test_a_value_can_be_read_back_from_its_escapes(value: bytes) -> None:
    word = next(w for w in text_line(entry(helo_name=value + b"!")).split() if w.startswith(b"helo="))
    escaped = word.removeprefix(b"helo=<").removesuffix(b">")
    assert re.sub(rb"\\x(..)", lambda found: bytes.fromhex(found[1].decode()), escaped) == value + b"!"


def test_only_long_values_are_cut_and_end_in_dots() -> None:
    logged = entry(helo_name=b"\xff" * 60000)
    text = text_line(logged).decode()
    assert "\\xff..." in text
    assert "\\x..." not in text
    assert text.endswith('reply="5.7.1 Access denied"\n')
    fields = json.loads(json_line(logged))
    assert fields["helo_name"].endswith("\ufffd...")
    assert fields["reply"] == "5.7.1 Access denied"


# --- Time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "seconds", "timestamp"),
    [
        ("Asia/Tokyo", 1795248960.123, "2026-11-21T17:16:00.123+09:00"),
        ("UTC", 1795248960.9999, "2026-11-21T08:16:00.999+00:00"),
        ("America/St_Johns", 1795248960.0, "2026-11-21T04:46:00.000-03:30"),
        ("Europe/Berlin", 1792889999.5, "2026-10-25T02:59:59.500+02:00"),  # just before summer time ends
        ("Europe/Berlin", 1792890000.5, "2026-10-25T02:00:00.500+01:00"),
    ],
)
def test_a_timestamp_is_local_time_with_its_offset(zone: str, seconds: float, timestamp: str) -> None:
    with local_time(zone):
        assert Timestamps(lambda: seconds).now().decode() == timestamp


def test_timestamps_follow_a_clock_that_is_set_back() -> None:
    clock = iter([1000.0014, 1000.0016, 1000.002, 999.5])
    timestamps = Timestamps(lambda: next(clock))
    assert [timestamps.now()[20:23] for _ in range(4)] == [b"001", b"001", b"002", b"500"]
