"""Names that contain the client's own address: the documented forms, honest names, and a slow model."""

from __future__ import annotations

import string

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from policyd.config.public_suffixes import registrable_domains
from policyd.core.address import Address, parse_address
from policyd.core.identity import may_be_host
from policyd.core.public_suffix import RegistrableDomains
from policyd.tables.generic import is_generic
from tests.field.incidents import bulk_attempts, sakura_attempts

V4 = "203.0.113.7"
V6 = "2001:db8:12:34:5:6:7:89ab"
NIBBLES = "20010db800120034000500060007" + "89ab"


def generic(name: str, address: str) -> bool:
    parsed = parse_address(address.encode())
    assert parsed is not None
    return is_generic(name.encode(), parsed, registrable_domains())


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (V4, "host-203-0-113-7.example.net"),
        (V4, "ec2-203-0-113-7.compute-1.amazonaws.com"),
        (V4, "7.113.0.203.dyn.example.net"),
        (V4, "203.0.113.7.static.example.net"),
        (V4, "203000113007.pool.example.net"),
        (V4, "007113000203.pool.example.net"),
        (V4, "dyn-203000113007.example.net"),
        (V4, "cb007107.x.example.net"),
        (V4, "077100cb.x.example.net"),
        (V4, "ip-203-000-113-007.example.net"),
        (V4, "host7-113.0.203.example.co.uk"),
        (V4, "p203x0x113x7.example.ne.jp"),
        (V4, "x9-203-0-113-7-4.example.net"),
        ("::ffff:203.0.113.7", "host-203-0-113-7.example.net"),
        ("10.10.10.10", "10-10-10-10.example.net"),
        (V6, f"{NIBBLES}.pool.example.net"),
        (V6, f"x{NIBBLES[::-1]}.example.net"),
        (V6, ".".join(reversed(NIBBLES)) + ".ip6.example.net"),
        (V6, "2001-0db8-0012-0034-0005-0006-0007-89ab.dyn.example.net"),
        (V6, f"dyn-{NIBBLES[16:]}.example.net"),
        (V6, "ipv6-0005-0006-0007-89ab.example.net"),
        (V6, "-".join(reversed(NIBBLES[16:])) + ".example.net"),
    ],
)  # fmt: skip
def test_a_name_that_contains_the_address_is_generic(address: str, name: str) -> None:
    assert generic(name, address)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (V4, "mail7.example.net"),
        (V4, "tk2-406-44074.vs.sakura.ne.jp"),
        ("192.0.2.1", "203-0-113-7.example.net"),
        (V4, "203-0-113-77.example.net"),
        (V4, "1203-0-113-7.example.net"),
        (V4, "203-0-1-113-7.example.net"),  # the numbers are not consecutive
        (V4, "0-203-113-7.example.net"),
        (V4, "203-0-113.example.net"),
        (V4, "x203000113007.example.net"),  # not a whole run
        (V4, "acb007107.example.net"),
        (V4, "2030113007.example.net"),
        (V4, "203-0-113-7.net"),  # the address is in the registrable domain itself
        (V4, "203-0-113-7.co.uk"),
        (V4, "7.net"),
        (V4, "net"),
        (V4, "."),
        (V4, "203-0-113-7.exa mple.net"),  # not a host name
        (V6, f"{NIBBLES[:16]}.example.net"),
        (V6, f"{NIBBLES[17:]}.example.net"),
        (V6, "0005--0006-0007-89ab.example.net"),  # two separators
        (V6, "host-203-0-113-7.example.net"),
        ("2001:db8::1", "1.example.net"),
    ],
)
def test_other_names_are_not_generic(address: str, name: str) -> None:
    assert not generic(name, address)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        # The clients of the two incidents.
        ("49.212.201.177", "os3-305-42423.vs.sakura.ne.jp"),
        ("160.16.140.78", "tk2-406-44074.vs.sakura.ne.jp"),
        ("49.212.217.64", "www31290ue.sakura.ne.jp"),
        ("180.222.51.40", "gbc001.mag-r.net"),
        # Hosts of large providers that send or receive mail.
        ("209.85.128.65", "mail-wm1-f65.google.com"),
        ("142.250.27.27", "ra-in-f27.1e100.net"),
        ("40.107.22.52", "mail-am6eur05on2052.outbound.protection.outlook.com"),
        ("98.137.246.7", "sonic301-7.consmr.mail.gq1.yahoo.com"),
        ("66.163.188.146", "sonic305-21.consmr.mail.ne1.yahoo.com"),
        ("17.58.23.187", "pv50p00im-ztdg10012001.me.com"),
        ("212.227.126.130", "mout.kundenserver.de"),
        ("213.165.67.97", "mx00.gmx.net"),
        ("194.25.134.18", "mailout03.t-online.de"),
        ("54.240.8.29", "a8-29.smtp-out.amazonses.com"),
        ("54.240.27.187", "a27-187.smtp-out.us-west-2.amazonses.com"),
        ("167.89.12.34", "o1678912x34.outbound-mail.sendgrid.net"),
        ("198.2.128.5", "mail5.suw11.mcdlv.net"),
        ("185.70.40.136", "mail-40136.protonmail.ch"),
        ("103.168.172.145", "fout-a2-smtp.messagingengine.com"),
        ("77.238.176.99", "sonic306-37.consmr.mail.ir2.yahoo.com"),
    ],
)
def test_honest_mail_hosts_are_not_generic(address: str, name: str) -> None:
    assert not generic(name, address)


def test_no_name_in_the_logs_of_the_incidents_is_generic() -> None:
    attempts = sakura_attempts() + bulk_attempts()
    names = {
        (attempt.client_address, name)
        for attempt in attempts
        for name in (attempt.client_name, attempt.helo_name)
        if name
    }
    assert len(names) >= 30
    assert [pair for pair in names if generic(pair[1], pair[0])] == []


# Host names of MX records of large providers, with the address that each had; the last two are made up.
MX_HOSTS = """
    gmail-smtp-in.l.google.com 142.250.27.27
    alt1.aspmx.l.google.com 142.250.153.26
    outlook-com.olc.protection.outlook.com 52.101.8.49
    microsoft-com.mail.protection.outlook.com 52.101.40.26
    mta5.am0.yahoodns.net 67.195.204.74
    mta-gw.mail.yahoo.co.jp 182.22.12.119
    mx01.mail.icloud.com 17.57.154.33
    mx00.emig.gmx.net 212.227.15.9
    mx-ha03.web.de 213.165.67.104
    mx03.t-online.de 194.25.134.73
    mx01.kundenserver.de 212.227.15.41
    smtpin.rzone.de 81.169.145.97
    mx1.mail.ovh.net 188.165.47.122
    mx.vodafonemail.de 2.207.150.246
    smtp-in.orange.fr 80.12.26.32
    mx.laposte.net 160.92.124.147
    mx1.free.fr 212.27.48.6
    smtp-in.libero.it 213.209.1.129
    mx.seznam.cz 77.75.78.42
    mx.wp.pl 212.77.101.4
    mxs.mail.ru 94.100.180.31
    mx.yandex.ru 77.88.21.249
    mx1.qq.com 203.205.219.57
    mx1.163.com 117.135.210.10
    mx1.naver.com 125.209.238.137
    mx.nifty.com 106.153.226.1
    mail.protonmail.ch 185.205.70.128
    in1-smtp.messagingengine.com 103.168.172.216
    mx.zoho.com 204.141.33.44
    inbound-smtp.us-east-1.amazonaws.com 52.4.160.155
    mxa-00266c02.gslb.pphosted.com 148.163.156.1
    us-smtp-inbound-1.mimecast.com 207.211.30.221
    cluster5.us.messagelabs.com 67.219.246.100
    mx1.comcast.net 96.102.18.147
    ff-ip4-mx-vip1.prodigy.net 144.160.159.21
    aspmx2.googlemail.com 173.194.202.27
    mx1.simplelogin.co 185.97.41.243
    mx0a-001b2d01.pphosted.com 148.163.158.5
    d36-mx-2001.mail.example.com 203.0.113.36
    mx203.inbound-113.example.com 203.0.113.7
"""


def test_no_name_of_a_large_providers_mx_is_generic() -> None:
    pairs = [line.split() for line in MX_HOSTS.split("\n") if line.strip()]
    assert [name for name, address in pairs if generic(name, address)] == []


# --- A slow model: the documented rules, one character at a time -----------------------------------------------------

DIGITS = set(string.digits)
WORD = DIGITS | set(string.ascii_lowercase)


def runs(text: str, members: set[str]) -> list[str]:
    found, current = [], ""
    for character in text + "\n":
        if character in members:
            current += character
        else:
            if current:
                found.append(current)
            current = ""
    return found


def contains_nibbles(text: str, nibbles: str) -> bool:
    """Whether a text contains the nibbles in order, with at most one separator between two of them."""

    def from_here(place: int, left: str) -> bool:
        if not left:
            return True
        if place < len(text) and text[place] == left[0] and from_here(place + 1, left[1:]):
            return True
        separated = place + 1 < len(text) and text[place] not in WORD and text[place + 1] == left[0]
        return len(left) < len(nibbles) and separated and from_here(place + 2, left[1:])

    return any(from_here(place, nibbles) for place in range(len(text)))


def model(labels: str, address: Address) -> bool:
    version, number = address
    if version == 6:
        whole = f"{number:032x}"
        return any(contains_nibbles(labels, part) for part in (whole, whole[::-1], whole[16:], whole[16:][::-1]))
    octets = [number >> shift & 255 for shift in (24, 16, 8, 0)]
    for order in (octets, octets[::-1]):
        numbers = [int(run) for run in runs(labels, DIGITS)]
        if any(numbers[place : place + 4] == order for place in range(len(numbers))):
            return True
        words = runs(labels, WORD)
        if "".join(f"{octet:03}" for octet in order) in words or "".join(f"{octet:02x}" for octet in order) in words:
            return True
    return False


def pieces_of_names(address: Address) -> st.SearchStrategy[str]:
    """Pieces of names: the address in forms that providers use, correct or almost correct, and other texts."""
    version, number = address
    if version == 4:
        octets = [number >> shift & 255 for shift in (24, 16, 8, 0)]
        forms = [
            separator.join(part.format(octet) for octet in order)
            for separator in ("-", ".", "x", "")
            for part in ("{}", "{:03}", "{:02x}")
            for order in (octets, octets[::-1], octets[1:], [*octets[:3], octets[3] ^ 1])
        ]
    else:
        whole = f"{number:032x}"
        parts = (whole, whole[16:], whole[17:], whole[:16], f"{number ^ 1:032x}"[16:])
        forms = [
            separator.join(piece)
            for part in parts
            for ordered in (part, part[::-1])
            for separator, piece in (("", ordered), (".", ordered), ("-", ordered), ("--", ordered))
        ]
        forms += ["-".join(part[place : place + 4] for place in range(0, len(part), 4)) for part in parts]
    return st.sampled_from(forms) | st.text("0123456789abcdefx-.", max_size=8)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Address, str]:
    address: Address = draw(
        st.tuples(st.just(4), st.integers(0, 2**32 - 1)) | st.tuples(st.just(6), st.integers(2**112, 2**128 - 1))
    )
    return address, "".join(draw(st.lists(pieces_of_names(address), min_size=1, max_size=3)))


ALWAYS_EXAMPLE_NET = RegistrableDomains(lambda _name: "example.net")


@given(cases())
@example(((4, 0xCB007107), "host-203-0-113-7"))
def test_the_slow_model_gives_the_same_result(case: tuple[Address, str]) -> None:
    address, labels = case
    name = f"{labels}.example.net".encode()
    assume(may_be_host(name))
    assert is_generic(name, address, ALWAYS_EXAMPLE_NET) == model(f"{labels}.", address)
