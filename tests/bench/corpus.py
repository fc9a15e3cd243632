"""The benchmark's data: entries of lists, rulesets, and requests with the answer that each must get.

Each listed network, listed name and client is computed from a number. So a million entries need no memory, and all runs
use the same data. Strangers are clients on no list: a listed network has an even third octet and a stranger's address
an odd one; listed names and strangers' names have different numbers.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

# First octets of special addresses and of entries in the shipped ruleset, and all other first octets.
_SPECIAL = {10, 27, 100, 119, 124, 127, 169, 172, 180, 192, 198, 203}
_FIRST_OCTETS = [octet for octet in range(1, 224) if octet not in _SPECIAL]
_BLOCKS = len(_FIRST_OCTETS) << 15  # number of /24 networks with an even third octet; as many have an odd one
_SCATTER = 2_654_435_761  # a prime, so that multiples of it, modulo _BLOCKS, reach every block once

_PREFIXES = (24, 24, 24, 28, 28, 32, 32, 25)  # most networks in block lists are small
_IPV6_EVERY = 20  # one in this many networks is IPv6

_SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnprstvwyzq" for vowel in "aeiou"]
_ENDINGS = ("com", "net", "org", "co.jp", "de", "com.br", "ru", "info")
_STRANGERS = 50_000_000  # names with this number or above are on no list


class Client(NamedTuple):
    """One client and the verb of its right answer. Without a name, policyd must ask DNS."""

    address: str
    name: str
    expect: str


def _block(number: int) -> str:
    place = number * _SCATTER % _BLOCKS
    return f"{_FIRST_OCTETS[place >> 15]}.{place >> 7 & 255}.{(place & 127) << 1}"


def network(number: int, *, ipv6: bool = True) -> str:
    """The listed network with this number. Without `ipv6`, all of them are IPv4."""
    if ipv6 and number % _IPV6_EVERY == _IPV6_EVERY - 1:
        return f"{ipaddress.IPv6Address(0x2A00 << 112 | number << 80)}/48"
    return f"{_block(number)}.0/{_PREFIXES[number % len(_PREFIXES)]}"


def inside(network: str, number: int) -> str:
    """An address in a network, chosen by a number."""
    first, _, prefix = network.partition("/")
    if ":" in first:
        return str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(first)) + number))
    head, _, _ = first.rpartition(".")
    return f"{head}.{number % (1 << 32 - int(prefix))}"


def stranger(number: int) -> str:
    """An IPv4 address in no listed network."""
    head, _, even = _block(number).rpartition(".")
    return f"{head}.{int(even) + 1}.{number % 254 + 1}"


def numbered_address(number: int) -> str:
    """The IPv4 address with this number, below 1 << 30, in 64.0.0.0/2."""
    return f"{number >> 24 | 64}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def domain(number: int) -> str:
    """A domain, different for each number below 100,000,000."""
    scattered = number * _SCATTER % 100_000_000
    word = "".join(_SYLLABLES[scattered // 100**place % 100] for place in range(4))
    return f"{word}.{_ENDINGS[number % len(_ENDINGS)]}"


# A ruleset that every version of policyd understands. It needs no DNS for a client whose name Postfix has verified.
PLAIN_RULES = """\
lists:
  partners: [partner.example, relay.partner.example]
rules:
  - {name: partners, match: {cidr: [203.0.113.0/24, '2001:db8::/32']}, action: DUNNO}
  - {name: forged, match: {helo_name: [mail.field.example], hostname_suffix: $partners}, action: REJECT}
  - {name: bulk, match: {sender_domain: bulk.example, recipient: someone@bulk.example}, action: REJECT}
  - {name: numeric, match: {helo_name_regex: '^[0-9.]+$'}, action: DEFER}
  - name: dynamic
    match: {hostname_regex: ['^dyn-[0-9-]+\\.', '\\.pool\\.']}
    except: {hostname_suffix: $partners}
    action: DEFER

default: DUNNO
"""

# --- Lists and rulesets -----------------------------------------------------------------------------------------------


def write_networks(path: Path, count: int, *, ipv6: bool = True) -> Path:
    """Writes a list file of networks."""
    with path.open("w") as file:
        file.writelines(f"{network(number, ipv6=ipv6)}\n" for number in range(count))
    return path


def write_domains(path: Path, count: int) -> Path:
    """Writes a list file of domains."""
    with path.open("w") as file:
        file.writelines(f"{domain(number)}\n" for number in range(count))
    return path


def with_lists(rules: str, networks: Path, domains: Path) -> str:
    """Appends two rules that reject clients on these lists."""
    return _extended(
        rules,
        lists=f"  listed-networks: {{file: {networks}}}\n  listed-domains: {{file: {domains}}}\n",
        rules=(
            "  - {name: listed-network, match: {cidr: $listed-networks}, action: 'REJECT 5.7.1 Access denied ({id})'}\n"
            "  - {name: listed-domain, match: {hostname_suffix: $listed-domains},"
            " action: 'REJECT 5.7.1 Access denied ({id})'}\n"
        ),
    )


def with_generic_names(rules: str, condition: str, names: Path) -> str:
    """Appends a rule that defers clients by this condition on a list."""
    return _extended(
        rules,
        lists=f"  generic-names: {{file: {names}}}\n",
        rules=(
            f"  - {{name: generic-name, match: {{{condition}: $generic-names}}, action: DEFER 4.7.1 Access denied}}\n"
        ),
    )


def with_dns_lists(rules: str, only_in: str = "") -> str:
    """Appends a rule that uses four DNS lists, on which no client is.

    With `only_in`, the rule applies in this protocol state only.
    """
    names = ("one", "two", "three", "four")
    fields = "codes: 127.0.0.2, self_test: no"
    definitions = "".join(f"  {name}: {{zone: {name}.list.example, {fields}}}\n" for name in names)
    state = f", protocol_state: {only_in}" if only_in else ""
    rule = f"  - {{name: listed, match: {{listed: [{', '.join(names)}]{state}}}, action: 'REJECT 5.7.1 by {{list}}'}}\n"
    return "dns_lists:\n" + definitions + _extended(rules, rules=rule)


def with_memory(rules: str, wait: str) -> str:
    """Appends rules with two counters and a greylist rule, which apply to every request.

    No client reaches the counters' limits. Greylisting delays a first attempt by `wait`. The ruleset's own tests are
    removed, because the greylist rule would defer their clients.
    """
    definitions = (
        "\ncounters:\n"
        "  of-network: {count: requests, per: client_network, within: 1h}\n"
        "  places: {count: distinct client_address, per: [client_network/20, recipient], within: 2h}\n"
    )
    more = (
        "  - {name: often, match: {counter: of-network > 100000000}, action: DEFER 4.7.1 too often}\n"
        "  - {name: many-places, match: {counter: places >= 256}, action: DEFER 4.7.1 too many}\n"
        "  - {name: grey, match: {reverse_dns: [missing, mismatch, verified]}, action: GREYLIST}\n"
    )
    rules = _extended(rules.partition("\ntests:")[0] + "\n", rules=more).replace("\ncounters:\n", definitions)
    return f"greylist: {{wait: {wait}}}\n{rules}"


def with_many_rules(rules: str, count: int) -> str:
    """Appends this number of rules, each with another network, suffix and exception."""
    return _extended(
        rules,
        rules="".join(
            f"  - name: own-{number}\n"
            f"    match: {{cidr: {network(number, ipv6=False)}, hostname_suffix: {domain(number)}}}\n"
            f"    except: {{hostname: good.{domain(number)}}}\n"
            "    action: REJECT 5.7.1 Access denied\n"
            for number in range(count)
        ),
    )


def _extended(ruleset: str, *, lists: str = "", rules: str) -> str:
    """Adds lines to the lists and rules of a ruleset whose keys come in the order `lists`, `rules`, `default`."""
    for key, lines in (("\nrules:", lists), ("\ndefault:", rules)):
        head, found, tail = ruleset.partition(key)
        assert found, f"the ruleset has no line that begins with {key.strip()!r}"
        ruleset = f"{head}\n{lines}{found}{tail}"
    return ruleset


# --- Expressions like those in lists of generic reverse DNS -----------------------------------------------------------

# Pairs of an expression and a name that it matches; {d} is the provider's domain, {o} are the address's octets.
_GENERIC = (
    (r"^\d{{1,3}}-\d{{1,3}}-\d{{1,3}}-\d{{1,3}}\.(dynamic|dyn|pool)\.{d}$", "{o[0]}-{o[1]}-{o[2]}-{o[3]}.dyn.{d}"),
    (r"^(host|ip|dsl)-?\d{{1,3}}(\.\d{{1,3}}){{3}}\.{d}$", "host-{o[3]}.{o[2]}.{o[1]}.{o[0]}.{d}"),
    (r"^ip[0-9a-f]{{8}}\.(adsl|cable)\.{d}$", "ip{o[0]:02x}{o[1]:02x}{o[2]:02x}{o[3]:02x}.adsl.{d}"),
    (r"^pool-(\d+-){{3}}\d+\.[a-z]{{3,8}}\.{d}$", "pool-{o[0]}-{o[1]}-{o[2]}-{o[3]}.north.{d}"),
    (r"^c-[0-9a-f]+-\d+\.(hsd1|ftth)\.[a-z]{{2}}\.{d}$", "c-{o[2]:x}{o[3]:x}-{o[1]}.ftth.ab.{d}"),
    (r"\.(dhcp|ppp|dialup)\d*\.{d}$", "u{o[3]}.{o[2]}.dhcp{o[1]}.{d}"),
    (r"^[a-z]+\d+\.static\.[a-z]+\.{d}$", "customer{o[2]}{o[3]}.static.west.{d}"),
    (r"^(\d{{1,3}}\.){{4}}(in-addr|rev)\.{d}$", "{o[3]}.{o[2]}.{o[1]}.{o[0]}.rev.{d}"),
)


def expression(number: int) -> str:
    """An expression for the host names that one provider gives its customers."""
    pattern, _ = _GENERIC[number % len(_GENERIC)]
    return pattern.format(d=domain(number).replace(".", r"\."))


def fitting_name(number: int, address: str) -> str:
    """A name that `expression(number)` matches, for the client with this IPv4 address."""
    _, name = _GENERIC[number % len(_GENERIC)]
    return name.format(d=domain(number), o=[int(octet) for octet in address.split(".")])


# --- Clients and their requests ---------------------------------------------------------------------------------------


def clients_of_lists(count: int, entries: int, *, ipv6: bool = True) -> Iterator[Client]:
    """Clients for `with_lists`: of every ten, one is in a listed network, one under a listed domain."""
    for number in range(count):
        entry = number // 10 * _SCATTER % entries
        match number % 10:
            case 3:
                address = inside(network(entry, ipv6=ipv6), number)
                yield Client(address, f"mail.{domain(_STRANGERS + number)}", "REJECT")
            case 7:
                yield Client(stranger(number), f"mail{number % 100}.{domain(entry)}", "REJECT")
            case _:
                yield Client(stranger(number), f"mail.{domain(_STRANGERS + number)}", "DUNNO")


def clients_of_rules(count: int, rules: int) -> Iterator[Client]:
    """Clients for `with_many_rules`. Of every ten, a rule rejects one and excepts one; one is only in a rule's
    network, one only under a rule's suffix; six are strangers.
    """
    for number in range(count):
        rule = number // 10 * _SCATTER % rules
        address, name = stranger(number), f"mail.{domain(_STRANGERS + number)}"
        listed_address, suffix = inside(network(rule, ipv6=False), number), domain(rule)
        match number % 10:
            case 1:
                yield Client(listed_address, f"mail.{suffix}", "REJECT")
            case 3:
                yield Client(listed_address, f"good.{suffix}", "DUNNO")
            case 5:
                yield Client(listed_address, name, "DUNNO")
            case 7:
                yield Client(address, f"mail.{suffix}", "DUNNO")
            case _:
                yield Client(address, name, "DUNNO")


def clients_of_expressions(count: int, expressions: int, expect: str) -> Iterator[Client]:
    """Clients, each with a name that one of the expressions matches."""
    for number in range(count):
        address = stranger(number)
        yield Client(address, fitting_name(number * _SCATTER % expressions, address), expect)


def clients_of_networks(count: int, entries: int) -> Iterator[Client]:
    """Clients for a list of IPv4 networks: of every ten, one is in a listed network; nine are strangers."""
    for number in range(count):
        name = f"mail.{domain(_STRANGERS + number)}"
        if number % 10 == 3:
            yield Client(inside(network(number // 10 * _SCATTER % entries, ipv6=False), number), name, "REJECT")
        else:
            yield Client(stranger(number), name, "DUNNO")


def strangers(count: int) -> Iterator[Client]:
    """Strangers with a name that Postfix has verified."""
    return (Client(stranger(number), f"mail.{domain(_STRANGERS + number)}", "DUNNO") for number in range(count))


def clients_without_names(count: int) -> Iterator[Client]:
    """Strangers whose names Postfix does not know."""
    return (Client(stranger(number), "", "DUNNO") for number in range(count))


# A request in the form that load.c reads: the verb of the right answer, and the attributes that Postfix 3.7 sends for a
# message from outside, over TLS.
_REQUEST = """\
expect={client.expect}
request=smtpd_access_policy
protocol_state=RCPT
protocol_name=ESMTP
client_address={client.address}
client_name={name}
client_port={port}
reverse_client_name={name}
server_address=192.0.2.10
server_port=25
helo_name={helo_name}
sender=user{number}@{helo_name}
recipient=someone@field.example
recipient_count=0
queue_id=
instance={number:x}.6740b2c1.5e3a.0
size={size}
etrn_domain=
stress=
sasl_method=
sasl_username=
sasl_sender=
ccert_subject=
ccert_issuer=
ccert_fingerprint=
ccert_pubkey_fingerprint=
encryption_protocol=TLSv1.3
encryption_cipher=TLS_AES_256_GCM_SHA384
encryption_keysize=256
policy_context=

"""


def write_requests(path: Path, clients: Iterable[Client]) -> Path:
    """Writes a file of requests for load.c, one for each client."""
    with path.open("w") as file:
        file.writelines(
            _REQUEST.format(
                client=client,
                name=client.name or "unknown",
                helo_name=client.name or "mail.example",
                number=number,
                port=1024 + number % 60000,
                size=1000 + number % 100_000,
            )
            for number, client in enumerate(clients)
        )
    return path


def write_clients(path: Path, clients: Iterable[Client]) -> Path:
    """Writes a file of clients for mail.c."""
    with path.open("w") as file:
        file.writelines(f"{client.address} {client.name}\n" for client in clients)
    return path


_MAIL_LOG = """\
Nov 21 {time} mx postfix/smtpd[2839]: connect from {client.name}[{client.address}]
Nov 21 {time} mx postfix/smtpd[2839]: {queue_id}: client={client.name}[{client.address}]
Nov 21 {time} mx postfix/cleanup[2841]: {queue_id}: message-id=<{number}@{client.name}>
Nov 21 {time} mx postfix/qmgr[2831]: {queue_id}: from=<user{number}@{client.name}>, size=4711, nrcpt=1 (queue active)
Nov 21 {time} mx postfix/smtpd[2839]: disconnect from {client.name}[{client.address}] ehlo=1 mail=1 rcpt=1 data=1 \
quit=1 commands=5
Nov 21 {time} mx postfix/local[2842]: {queue_id}: to=<someone@field.example>, relay=local, delay=0.1, \
delays=0.06/0.01/0/0.03, dsn=2.0.0, status=sent (delivered to maildir)
Nov 21 {time} mx postfix/qmgr[2831]: {queue_id}: removed
"""
MAIL_LOG_LINES = _MAIL_LOG.count("\n")  # for one mail

LOG_START = 1_790_000_000  # Unix time of the first line of a log with generated dates


def write_mail_log(path: Path, clients: Iterable[Client]) -> Path:
    """Writes a mail log of Postfix: one delivered mail from each client, ten mails a second."""
    with path.open("w") as file:
        for number, client in enumerate(clients):
            seconds = number // 10
            time = f"{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
            file.write(_MAIL_LOG.format(client=client, number=number, queue_id=f"{0x10000 + number:X}5A2", time=time))
    return path
