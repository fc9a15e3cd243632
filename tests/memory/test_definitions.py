"""The key under which a request is counted."""

import pickle

import pytest

from policyd.core.address import parse_address
from policyd.core.protocol import Request
from policyd.memory.definitions import MAX_KEY_BYTES, Answered, CounterDefinition, KeyPart, bounded, network_of

RCPT = {
    "protocol_state": b"RCPT",
    "client_address": b"::ffff:192.0.2.77",
    "sender": b"Joe@Example.ORG",
    "recipient": b"a@B.example",
    "sasl_username": b"Joe",
}


def key(per: tuple[KeyPart, ...], asn: bytes = b"AS64500", **attributes: bytes) -> bytes | None:
    counter = CounterDefinition("c", None, per, 3600)
    return counter.make_key(Request.of(RCPT | attributes), asn) or None


@pytest.mark.parametrize(
    ("part", "want"),
    [
        (KeyPart("client_address"), b"192.0.2.77"),
        (KeyPart("client_network"), b"192.0.2.0/24"),
        (KeyPart("client_network", (20, 48)), b"192.0.0.0/20"),
        (KeyPart("sender"), b"joe@example.org"),
        (KeyPart("sender_domain"), b"example.org"),
        (KeyPart("recipient_domain"), b"b.example"),
        (KeyPart("sasl_username"), b"joe"),
        (KeyPart("asn"), b"AS64500"),
        (KeyPart("helo_name"), None),
    ],
)
def test_the_value_of_a_part_is_normalized(part: KeyPart, want: bytes | None) -> None:
    assert key((part,)) == want


def test_an_empty_part_leaves_the_request_uncounted() -> None:
    assert key((KeyPart("sender"), KeyPart("helo_name"))) is None
    assert key((KeyPart("client_network"),), client_address=b"unknown") is None
    assert key((KeyPart("asn"),), asn=b"") is None


def test_the_null_sender_is_a_sender() -> None:
    assert key((KeyPart("sender"),), sender=b"") == b"<>"
    assert key((KeyPart("sender"),), sender=b"", protocol_state=b"CONNECT") is None


def test_an_ipv6_client_is_counted_by_its_network() -> None:
    assert key((KeyPart("client_network"),), client_address=b"2001:db8:1:2:3::4") == b"2001:db8:1:2::/64"
    assert key((KeyPart("client_network", (20, 48)),), client_address=b"2001:db8:1:2:3::4") == b"2001:db8:1::/48"


@pytest.mark.parametrize("prefix", [8, 15, 16, 17, 20, 23, 24, 25, 32])
@pytest.mark.parametrize(
    "address", ["0.0.0.0", "192.0.2.77", "203.0.255.255", "::ffff:198.51.100.9", "2001:db8::1.2.3.4"]
)
def test_networks_of_any_length_have_the_same_text_as_network_of(prefix: int, address: str) -> None:
    parsed = parse_address(address.encode())
    assert parsed is not None
    prefixes = (prefix, 48)
    assert key((KeyPart("client_network", prefixes),), client_address=address.encode()) == network_of(parsed, prefixes)


def test_a_definition_that_has_counted_can_be_passed_to_another_process() -> None:
    counter = CounterDefinition("c", KeyPart("recipient"), (KeyPart("client_network", (20, 64)), KeyPart("sender")), 60)
    assert counter.make_key(Request.of(RCPT), b"")
    assert counter.make_value is not None
    passed = pickle.loads(pickle.dumps(counter))
    assert passed == counter
    assert passed.make_key(Request.of(RCPT), b"") == b"192.0.0.0/20\njoe@example.org"


def test_different_keys_stay_different() -> None:
    per = (KeyPart("sender"), KeyPart("recipient"))
    assert key(per, sender=b"a b", recipient=b"c") != key(per, sender=b"a", recipient=b"b c")


def test_long_keys_are_bounded_and_stay_different() -> None:
    first, second = b"x" * 60000 + b"1", b"x" * 60000 + b"2"
    assert len(bounded(first)) <= MAX_KEY_BYTES
    assert bounded(first) != bounded(second)
    assert bounded(b"x" * MAX_KEY_BYTES) == b"x" * MAX_KEY_BYTES


def test_a_fingerprint_changes_with_the_definition() -> None:
    definitions = [
        CounterDefinition("c", None, (KeyPart("sender"),), 3600),
        CounterDefinition("d", None, (KeyPart("sender"),), 3600),
        CounterDefinition("c", KeyPart("sender"), (KeyPart("sender"),), 3600),
        CounterDefinition("c", None, (KeyPart("sender"), KeyPart("recipient")), 3600),
        CounterDefinition("c", None, (KeyPart("client_network", (20, 64)),), 3600),
        CounterDefinition("c", None, (KeyPart("client_network"),), 3600),
        CounterDefinition("c", None, (KeyPart("sender"),), 60),
        CounterDefinition("c", None, (KeyPart("sender"),), 3600, Answered.DUNNO),
        CounterDefinition("c", None, (KeyPart("sender"),), 3600, where=("protocol_state: DATA",)),
    ]
    assert len({definition.fingerprint for definition in definitions}) == len(definitions)
    assert definitions[0].fingerprint == CounterDefinition("c", None, (KeyPart("sender"),), 3600).fingerprint
