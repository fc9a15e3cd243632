"""The names of questions to a DNS list, and subjects that are never looked up."""

from __future__ import annotations

import pytest

from policyd.config.dns_list import Ask
from policyd.core.identity import Identity, Reason, Status
from policyd.core.protocol import Request
from policyd.dns.list_names import question, subjects
from tests.dns.lists import dns_list


def questions(ask: Ask, identity: Identity | None = None, **attributes: str) -> list[str]:
    """Returns the names that a list is asked for a request."""
    zone = dns_list(ask=ask)
    request = Request.of({key: value.encode() for key, value in {"protocol_state": "RCPT", **attributes}.items()})
    return [question(zone, subject) for subject in subjects(zone, request, identity)]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.99", "99.2.0.192.zen.test"),
        ("::ffff:192.0.2.99", "99.2.0.192.zen.test"),
        (
            "2001:db8:1:2:3:4:567:89ab",
            "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.zen.test",  # RFC 5782 section 2.4
        ),
    ],
)
def test_an_address_is_reversed_in_the_question(address: str, name: str) -> None:
    assert questions(Ask.CLIENT_ADDRESS, client_address=address) == [name]


NEVER_ASKED = [
    *("", "unknown", "fe80::1%eth0"),
    *("10.0.0.0", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.255.1", "100.64.0.1", "100.127.255.255"),
    *("127.0.0.1", "169.254.1.1", "::ffff:10.0.0.1", "fc00::1", "fdff::1", "fe80::1", "febf::1", "::1"),
]
NEXT_TO_PRIVATE = [
    *("9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "100.63.255.255"),
    *("100.128.0.0", "126.255.255.255", "128.0.0.0", "169.253.0.1", "169.255.0.0", "fbff::1", "fe00::1", "fec0::1"),
    "::2",
]


@pytest.mark.parametrize("address", NEVER_ASKED)
def test_private_and_invalid_addresses_are_never_looked_up_in_a_list(address: str) -> None:
    assert questions(Ask.CLIENT_ADDRESS, client_address=address) == []


@pytest.mark.parametrize("address", NEXT_TO_PRIVATE)
def test_addresses_next_to_private_networks_are_looked_up(address: str) -> None:
    assert len(questions(Ask.CLIENT_ADDRESS, client_address=address)) == 1


LONG = ".".join(["a" * 60] * 4)  # 243 characters, 252 with `.zen.test`; a name has at most 253
NAMES = [
    ("mail.example", ["mail.example.zen.test"]),
    ("MAIL.Example.", ["mail.example.zen.test"]),
    ("b\u00fccher.example", ["xn--bcher-kva.example.zen.test"]),
    ("under_score.example", ["under_score.example.zen.test"]),
    ("ylmf-pc", ["ylmf-pc.zen.test"]),
    (LONG, [f"{LONG}.zen.test"]),
    (LONG + "aa", []),
    ("", []),
    (".", []),
    ("[192.0.2.1]", []),
    ("192.0.2.1", []),
    ("12.34", []),
    ("a b.example", []),
    ("a..example", []),
    ("a" * 64 + ".example", []),
    ("bell\a.example", []),
]


@pytest.mark.parametrize(("name", "names"), NAMES)
def test_a_valid_helo_name_is_looked_up_in_its_idna_form(name: str, names: list[str]) -> None:
    assert questions(Ask.HELO_NAME, helo_name=name) == names


@pytest.mark.parametrize(
    ("sender", "state", "names"),
    [
        ("a@mail.example", "RCPT", ["mail.example.zen.test"]),
        ("a@b@mail.example", "MAIL", ["mail.example.zen.test"]),
        ("a@mail.example", "EHLO", []),
        ("", "RCPT", []),
        ("postmaster", "RCPT", []),
        ("a@[192.0.2.1]", "RCPT", []),
        ("a@192.0.2.1", "RCPT", []),
    ],
)
def test_the_domain_of_a_sender_is_looked_up(sender: str, state: str, names: list[str]) -> None:
    assert questions(Ask.SENDER_DOMAIN, sender=sender, protocol_state=state) == names


def test_verified_names_or_else_claimed_names_are_looked_up() -> None:
    verified = Identity(Status.VERIFIED, (b"a.example", b"b.example"), (b"c.example",))
    claimed = Identity(Status.MISMATCH, claimed=(b"192.0.2.1", b"c.example"))
    failed = Identity(Status.ERROR, reason=Reason.TIMEOUT, names_known=False)
    assert questions(Ask.HOSTNAME, verified) == ["a.example.zen.test", "b.example.zen.test"]
    assert questions(Ask.HOSTNAME, claimed) == ["c.example.zen.test"]
    assert questions(Ask.HOSTNAME, failed) == []


def test_at_most_ten_names_are_looked_up() -> None:
    names = tuple(b"n%03d.example" % number for number in range(200))
    assert questions(Ask.HOSTNAME, Identity(Status.MISMATCH, claimed=names)) == [
        f"n{number:03d}.example.zen.test" for number in range(10)
    ]
