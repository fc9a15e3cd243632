"""Bulk parsing of entries: the fast and the slow path agree, and networks are valid as in ipaddress."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from policyd.config.conditions import Form
from policyd.config.entries import entry_keys, fold_entry, parse_entries
from policyd.config.entry_messages import explain_entry
from policyd.core.tables import Networks

NAME_FORMS = [Form.HOST_NAME, Form.DOMAIN, Form.HELO_NAME, Form.SENDER, Form.RECIPIENT, Form.TEXT]


@pytest.mark.parametrize(
    ("form", "written", "compared"),
    [
        (Form.HOST_NAME, "Mail.Example.COM.", [b"mail.example.com"]),
        (Form.HOST_NAME, "_dmarc.a_b.example", [b"_dmarc.a_b.example"]),
        (Form.HOST_NAME, "localhost", [b"localhost"]),
        (Form.HOST_NAME, "bücher.example", [b"xn--bcher-kva.example"]),
        (Form.HOST_NAME, "BÜCHER.Example.", [b"xn--bcher-kva.example"]),
        (Form.HOST_NAME, "faß.example", [b"xn--fa-hia.example"]),
        (Form.HOST_NAME, "日本。example", [b"xn--wgv71a.example"]),
        (Form.HOST_NAME, "1-2-3-4.example.com", [b"1-2-3-4.example.com"]),
        (Form.HOST_NAME, "4.3.2.1.in-addr.arpa", [b"4.3.2.1.in-addr.arpa"]),
        (Form.DOMAIN, ".Example.com", [b".example.com"]),
        (Form.DOMAIN, ".bücher.example", [b".xn--bcher-kva.example"]),
        (Form.DOMAIN, "no", [b"no"]),
        (Form.HELO_NAME, "YLMF-PC", [b"ylmf-pc"]),
        (Form.HELO_NAME, "[192.0.2.1]", [b"[192.0.2.1]"]),
        (Form.HELO_NAME, "[IPv6:2001:db8::1]", [b"[ipv6:2001:db8::1]"]),
        (Form.HELO_NAME, "192.0.2.1", [b"192.0.2.1"]),
        (Form.HELO_NAME, "a..b.", [b"a..b"]),
        (Form.HELO_NAME, "-", [b"-"]),
        (Form.SENDER, "<>", [b"<>"]),
        (Form.SENDER, "A@B.Example", [b"a@b.example"]),
        (Form.SENDER, "a b@c@d.example", [b"a b@c@d.example"]),
        (Form.SENDER, "x@[192.0.2.1]", [b"x@[192.0.2.1]"]),
        (Form.RECIPIENT, "root", [b"root"]),
        (Form.RECIPIENT, "a@bücher.example", ["a@bücher.example".encode(), b"a@xn--bcher-kva.example"]),
        (Form.TEXT, "", [b""]),
        (Form.TEXT, "MÜLLER", ["müller".encode()]),
        (Form.EXPRESSION, "^A.B$", ["^A.B$"]),
        (Form.STATUS, "missing", ["missing"]),
    ],
)
def test_an_entry_is_folded_for_comparison(form: Form, written: str, compared: list[bytes | str]) -> None:
    assert parse_entries(form, [written.encode()]) == (compared, [])


@pytest.mark.parametrize(
    ("written", "network"),
    [
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("192.0.2.1", "192.0.2.1/32"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("255.255.255.255/32", "255.255.255.255/32"),
        ("::", "::/128"),
        ("::/0", "::/0"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ("::ffff:c000:0200/120", "192.0.2.0/24"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::fffe:0:0/95", "::fffe:0:0/95"),
    ],
)
def test_a_network_is_parsed(written: str, network: str) -> None:
    networks, bad = parse_entries(Form.NETWORK, [written.encode()])
    assert isinstance(networks, Networks)
    assert bad == []
    wanted = Networks()
    parsed = ipaddress.ip_network(network)
    wanted.append(parsed.version, int(parsed.network_address), parsed.prefixlen)
    assert ([*networks.v4], [*networks.v6]) == ([*wanted.v4], [*wanted.v6])


@given(st.lists(st.from_regex(r"[0-9a-f:./]{1,20}", fullmatch=True) | st.ip_addresses().map(str), max_size=6))
def test_networks_are_valid_as_in_ipaddress_without_netmasks_and_leading_zeros(lines: list[str]) -> None:
    def is_network(line: str) -> bool:
        try:
            network = ipaddress.ip_network(line)
        except ValueError:
            return False
        # ipaddress accepts netmasks and leading zeros of a prefix length; Postfix does not.
        return "/" not in line or line.rpartition("/")[2] == str(network.prefixlen)

    _, bad = parse_entries(Form.NETWORK, [line.encode() for line in lines])
    assert bad == [place for place, line in enumerate(lines) if not is_network(line)]


texts = st.text("aB9-_.@[]<>*, üßǅ日\x7f\n\0", max_size=12)
lines = st.lists(st.one_of(texts.map(str.encode), st.binary(max_size=8), st.sampled_from([b"a.example", b"unknown."])))


@given(lines, st.sampled_from(NAME_FORMS))
def test_the_fast_and_the_slow_path_agree(written: list[bytes], form: Form) -> None:
    entries, bad = parse_entries(form, written)
    one_by_one = [fold_entry(form, line) for line in written]
    assert bad == [place for place, folded in enumerate(one_by_one) if not folded]
    assert entries == [name for folded in one_by_one for name in folded]


@given(lines, st.sampled_from(Form))
def test_every_refused_entry_is_explained_in_one_line(written: list[bytes], form: Form) -> None:
    _, bad = parse_entries(form, written)
    for place in bad:
        message = explain_entry(form, written[place])
        assert 0 < len(message) < 400


@example([b"9.."], Form.HELO_NAME)
@example([b"a.."], Form.DOMAIN)
@given(lines, st.sampled_from([Form.HOST_NAME, Form.DOMAIN, Form.HELO_NAME]))
def test_an_accepted_name_is_also_valid_in_its_compared_form(written: list[bytes], form: Form) -> None:
    entries, _ = parse_entries(form, written)
    assert not isinstance(entries, Networks)
    names = [entry for entry in entries if isinstance(entry, bytes)]
    again, bad = parse_entries(form, names)
    assert (again, bad) == (names, [])


def test_a_bad_line_among_many_is_found() -> None:
    many = [b"h%d.example.com" % number for number in range(10_000)]
    many[7_777] = b"not a name"
    many[9_999] = "bücher.example".encode()
    entries, bad = parse_entries(Form.DOMAIN, many)
    assert bad == [7_777]
    assert not isinstance(entries, Networks)
    assert len(entries) == 9_999
    assert entries[-1] == b"xn--bcher-kva.example"


@pytest.mark.parametrize("line", [b"\\pL{9}", b"\\pL{999}"], ids=["too large together", "too large alone"])
def test_expressions_beyond_the_size_of_an_index_are_refused(line: bytes) -> None:
    entries, bad = parse_entries(
        Form.EXPRESSION, [b"^a$", *[b"%d%b" % (number, line) for number in range(1000)], b"^b$"]
    )
    assert len(entries) + len(bad) == 1002
    assert len(entries) < 30
    assert bad[-1] == 1001
    assert explain_entry(Form.EXPRESSION, b"^b$").endswith("too large for RE2; shorten repetitions such as {1000}")


def test_many_plain_expressions_are_not_too_large() -> None:
    lines = [rb"^mail[0-9]+\.domain-%d\.example$" % number for number in range(20_000)]
    assert parse_entries(Form.EXPRESSION, lines) == ([line.decode() for line in lines], [])


def test_equivalent_entries_have_equal_keys() -> None:
    networks = [
        b"192.0.2.0/24",
        b"::ffff:192.0.2.0/120",
        b"2001:db8::/32",
        b"192.0.2.0",
        b"2001:0DB8::/32",
        b"192.0.2.0/32",
    ]
    keys = entry_keys(Form.NETWORK, networks)
    assert keys[0] == keys[1]
    assert keys[2] == keys[4]
    assert keys[3] == keys[5]
    assert len(set(keys)) == 3
    names = entry_keys(Form.SENDER, [b"A@b.example", b"a@B.example", "a@bücher.example".encode()])
    assert names[0] == names[1] != names[2]
