from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from policyd.exchange.importing import ImportFailedError, ImportForm, ImportOptions, import_files
from tests.exchange.answers import import_text

if TYPE_CHECKING:
    from pathlib import Path


def entries(format_name: str, text: str, options: ImportOptions | None = None) -> list[str]:
    result = import_text(format_name, text, options)
    assert result.shape is ImportForm.LIST
    written = [line for line in result.text.splitlines() if not line.startswith("#")]
    assert written == [term.value for term in result.entries]
    return written


def losses(format_name: str, text: str) -> list[tuple[int, str]]:
    return [(loss.line.number, loss.reason) for loss in import_text(format_name, text).report.in_order()]


# --- plain ------------------------------------------------------------------------------------------------------------


def test_plain_networks_and_ranges_with_surrounding_text_are_read() -> None:
    text = (
        "# head\n192.0.2.0/24\n198.51.100.1 - 198.51.100.6 ; range\n203.0.113.*\n[2001:db8::1]\n10.0.0.0/255.0.0.0\n"
        "1.2.3.4 2026-01-01 ZZ\n5.6.7.8,\n::ffff:9.9.9.0/120\n"
    )
    assert entries("plain", text) == [
        "192.0.2.0/24",
        "198.51.100.1",
        "198.51.100.2/31",
        "198.51.100.4/31",
        "198.51.100.6",
        "203.0.113.0/24",
        "2001:db8::1",
        "10.0.0.0/8",
        "1.2.3.4",
        "5.6.7.8",
        "9.9.9.0/24",
    ]


@pytest.mark.parametrize(
    ("attribute", "wanted"),
    [
        (
            None,
            {"hostname_suffix": ["b.example", ".c.example"], "sender": ["a@b.example"], "sender_domain": ["d.example"]},
        ),
        (
            "helo_name",
            {
                "helo_name_suffix": ["b.example", ".c.example"],
                "helo_name": ["a@b.example"],
                "sender_domain": ["d.example"],
            },
        ),
        ("sender", {"sender_domain": ["b.example", ".c.example", "d.example"], "sender": ["a@b.example"]}),
        ("recipient", {"recipient_domain": ["b.example", ".c.example", "d.example"], "recipient": ["a@b.example"]}),
    ],
)
def test_plain_names_are_compared_with_the_attribute(attribute: str | None, wanted: dict[str, list[str]]) -> None:
    text = "b.example\n*.c.example\na@b.example\n@d.example\n"
    result = import_text("plain", text, ImportOptions(attribute=attribute, shape=ImportForm.RULES))
    assert {name: list(values) for rule in result.rules for name, values in rule.match.items()} == wanted
    assert result.report.losses == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("192.0.2.010", "is not an address"),
        ("192.0.2.9-192.0.2.1", "it begins after its end"),
        ("192.0.2.1-2001:db8::1", "one end is IPv4, the other IPv6"),
        ("two words", "an entry is a single word"),
        ("not_a_name!", "is not a host name"),
        ("300.1.1.1", "is not an address"),
        ("10", "is not an address"),
        ("/(?=x)/", "RE2 has no look-around"),
    ],
)
def test_plain_lines_without_an_entry_are_reported(line: str, reason: str) -> None:
    ((number, found),) = losses("plain", f"192.0.2.7\n{line}\n")
    assert number == 2
    assert reason in found


def test_a_list_has_one_kind_of_entries_and_other_entries_are_reported() -> None:
    text = "192.0.2.1\nb.example\n192.0.2.2\na@b.example\n"
    options = ImportOptions(shape=ImportForm.LIST)
    assert entries("plain", text, options) == ["192.0.2.1", "192.0.2.2"]
    assert [loss.line.number for loss in import_text("plain", text, options).report.losses] == [2, 4]
    assert entries("plain", text, ImportOptions(condition="hostname_suffix")) == ["b.example"]


def test_a_list_made_from_a_table_has_the_networks_that_it_blocks() -> None:
    table = "192.0.2.7 OK\n192.0.2.0/29 REJECT\n198.51.100.0/25 REJECT\n198.51.100.128/25 REJECT\n"
    assert entries("postfix-cidr", table, ImportOptions(shape=ImportForm.LIST)) == [
        "192.0.2.0/30",
        "192.0.2.4/31",
        "192.0.2.6",
        "198.51.100.0/24",
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("192-0-2-7.dyn.example.net\n1-800-example.com\n", ["192-0-2-7.dyn.example.net", "1-800-example.com"]),
        (
            "192.0.2.7-static.example.net\n2001-db8.example.net\n",
            ["192.0.2.7-static.example.net", "2001-db8.example.net"],
        ),
        ("192.0.2\n198.51.\n203.0.113.\n", ["192.0.2.0/24", "198.51.0.0/16", "203.0.113.0/24"]),
        ("192.0.2.0/24,spam\n198.51.100.7,a, b; c\n", ["192.0.2.0/24", "198.51.100.7"]),
        ('"2001:db8::/32","a reason"\n"203.0.113.9",\n', ["2001:db8::/32", "203.0.113.9"]),
        ("192.0.2.1/24\n2001:db8::1/32\n", ["192.0.2.0/24", "2001:db8::/32"]),
        ("/^mx[0-9]+\\.example\\.com$/\n/ab+c/i # c\n", [r"^mx[0-9]+\.example\.com$", "ab+c"]),
        ("abuse@\npostmaster@\n", ["^abuse@", "^postmaster@"]),
    ],
    ids=[
        "names that begin with digits",
        "names that begin like addresses",
        "octets",
        "reasons",
        "quoted reasons",
        "host bits",
        "expressions",
        "local parts",
    ],
)
def test_a_plain_list_has_entries_in_several_forms(text: str, wanted: list[str]) -> None:
    assert entries("plain", text) == wanted


def test_a_list_of_several_kinds_becomes_rules_so_that_nothing_is_lost() -> None:
    result = import_text("plain", "b.example\nc.example\n192.0.2.0/24\n")
    assert [rule.match for rule in result.rules] == [
        {"hostname_suffix": ("b.example", "c.example")},
        {"cidr": ("192.0.2.0/24",)},
    ]
    assert result.report.losses == []
    assert "--as list --condition NAME" in result.report.notes[0].reason


def test_mechanisms_of_spf_are_imported_as_networks() -> None:
    assert entries("plain", "ip4:192.0.2.0/24\nip6:2001:db8::/32\n+ip4:198.51.100.7\n") == [
        "192.0.2.0/24",
        "2001:db8::/32",
        "198.51.100.7",
    ]


def test_the_report_shortens_a_long_line() -> None:
    report = import_text("plain", f"192.0.2.1\n{'a' * 50_000} {'b' * 50_000}\n10.0.0.0/{'9' * 50_000}\n").report
    assert [len(message) < 600 for message in report.messages()] == [True, True]


@pytest.mark.parametrize("format_name", ["rspamd-map", "plain"])
def test_expressions_that_cannot_match_a_client_are_for_senders_or_reported(format_name: str) -> None:
    text = "/^mail\\.b\\.example$/i\n/viagra\\s/i\n/news@b\\.example/i\n/^Subject: win/i\n/\u914d\u9054/i\n"
    result = import_text(format_name, text)
    assert [rule.match for rule in result.rules] == [
        {"hostname_regex": (r"^mail\.b\.example$",)},
        {"sender_regex": (r"news@b\.example",)},
    ]
    assert [loss.line.number for loss in result.report.losses] == [2, 4, 5]
    assert {loss.reason.partition(";")[0] for loss in result.report.losses} == {"no host name can match it"}
    assert {note.reason.partition(",")[0].partition(";")[0] for note in result.report.notes} >= {
        "read as host names of clients",
        "only a mail address can match it",
    }
    found = import_text(format_name, text, ImportOptions(attribute="sender"))
    assert [loss.line.number for loss in found.report.losses] == [1, 2, 4, 5]
    hidden = losses(format_name, "192.0.2.1\n/a\u200db/i\n")
    assert hidden == [(2, "it has an invisible character (U+200D)")]


# --- spamhaus-drop ----------------------------------------------------------------------------------------------------


def test_drop_lists_as_text_and_as_json_lines_give_the_same_list() -> None:
    text = "; Spamhaus DROP List 2026/11/21\n; Last-Modified: ...\n1.10.16.0/20 ; SBL256894\n2001:db8::/32 ; SBL1\n"
    json_lines = (
        '{"cidr":"1.10.16.0/20","sblid":"SBL256894","rir":"apnic"}\n{"cidr":"2001:db8::/32","sblid":"SBL1","rir":"ripe"}\n'
        '{"type":"metadata","timestamp":1763683200,"size":123,"records":2,"copyright":"(c)","terms":"..."}\n'
    )
    assert entries("spamhaus-drop", text) == entries("spamhaus-drop", json_lines) == ["1.10.16.0/20", "2001:db8::/32"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"cidr":"1.19.0.', "not a JSON object"),
        ('{"asn":213371,"rir":"ripe"}', "an AS number"),
        ('{"network":"1.2.3.0/24"}', "has no 'cidr'"),
        ('{"cidr":17}', "has no 'cidr'"),
        ("{" + '"a":{' * 5000, "not a JSON object"),
    ],
)
def test_drop_lines_without_a_network_are_reported(line: str, reason: str) -> None:
    ((number, found),) = losses("spamhaus-drop", f'1.10.16.0/20 ; SBL1\n{line}\n{{"type":"metadata"}}\n')
    assert number == 2
    assert reason in found


DROP = (
    '{"cidr":"1.10.16.0/20","sblid":"SBL256894","rir":"apnic"}\n{"cidr":"1.10.16.0/24","sblid":"SBL2","rir":"apnic"}\n'
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DROP + '{"cidr":"1.19.0.', "3: the file ends in the middle of the line"),
        (DROP, '2: the last record, {"type":"metadata",...}, is missing'),
        (DROP + '{"type":"metadata","records":1000}\n', "3: the list has 1,000 records, and 2 of them are in the file"),
        ("; DROP\n1.10.16.0/20 ; SBL1\n1.19.0.0/16 ; SB", "3: the file ends in the middle of the line"),
        ("; DROP\n1.10.16.0/20 ; SBL1\n1.19.0.0/1", "3: the file ends in the middle of the line"),
    ],
    ids=["in a record", "between records", "too few", "in a comment", "in a network"],
)
def test_an_incomplete_drop_list_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ImportFailedError) as caught:
        import_text("spamhaus-drop", text)
    assert reason in str(caught.value)
    assert caught.value.exit_status == 1


def test_two_complete_drop_lists_in_one_file_are_read_with_overlapping_networks() -> None:
    whole = DROP + '{"type":"metadata","records":2}'
    v6 = '{"cidr":"2001:db8::/32","sblid":"SBL3","rir":"ripencc"}\n{"type":"metadata","records":1}\n'
    assert entries("spamhaus-drop", f"{whole}\n{v6}") == ["1.10.16.0/20", "1.10.16.0/24", "2001:db8::/32"]
    assert entries("spamhaus-drop", whole) == ["1.10.16.0/20", "1.10.16.0/24"]


# --- whois ------------------------------------------------------------------------------------------------------------

RIPE = """\
% Information related to '185.0.0.0 - 185.0.5.255'
% Abuse contact for '185.0.0.0 - 185.0.5.255' is 'abuse@ripe.example'

inetnum:        185.0.0.0 - 185.0.5.255
netname:        EXAMPLE-NET
remarks:        CIDR: 0.0.0.0/0 is a remark

% Information related to '185.0.0.0/22AS64500'

route:          185.0.0.0/22
origin:         AS64500
"""
ARIN = """\
# start

NetRange:       198.51.0.0 - 198.51.127.255
CIDR:           198.51.0.0/17
NetName:        BIG-PROVIDER

# end
# start

NetRange:       198.51.100.0 - 198.51.100.191
CIDR:           198.51.100.0/25, 198.51.100.128/26
CustName:       Small Customer

# end
"""
APNIC = """\
% [whois.apnic.net]

inetnum:        203.0.113.0 - 203.0.113.255
inet6num:       2001:db8::/32
"""
JPNIC = """\
[ JPNIC database provides information regarding IP address and ASN. ]

Network Information:
a. [Network Number]             180.222.32.0/19
b. [Network Name]               EXAMPLE
g. [Organization]               Example Corporation
[Assigned Date]                 2009/05/18

Less Specific Info.
----------
Example Holdings
                     [Allocation]                                180.222.0.0/16
"""
REFERRED = """\
Group Contact Information: [JP00000000]
[Group Name]                    Example NOC
[Referred From]                 NET/27.100.28.0/22
[Referred From]                 NET/119.82.8.0-119.82.15.255
                                NET/119.82.152.0/22
                                NET/119.82.156.0/22
"""


@pytest.mark.parametrize(
    ("answer", "networks"),
    [
        (RIPE, ["185.0.0.0/22", "185.0.4.0/23"]),
        (ARIN, ["198.51.100.0/25", "198.51.100.128/26"]),
        (APNIC, ["203.0.113.0/24", "2001:db8::/32"]),
        (JPNIC, ["180.222.32.0/19"]),
        (REFERRED, ["27.100.28.0/22", "119.82.8.0/21", "119.82.152.0/21"]),
        ("inetnum:     179.6/16\n", ["179.6.0.0/16"]),
        ("route:       192.0.2.0/24\nroute6: 2001:db8::/32\n", ["192.0.2.0/24", "2001:db8::/32"]),
        ("[IPネットワークアドレス]        192.0.2.0/25\n", ["192.0.2.0/25"]),
    ],
    ids=["ripe", "arin", "apnic", "jpnic", "referred", "zero octets left out", "routes", "japanese"],
)
def test_a_whois_answer_becomes_the_networks_that_it_is_about(answer: str, networks: list[str]) -> None:
    assert entries("whois", answer) == networks


def test_a_block_around_another_and_a_wider_route_are_reported() -> None:
    ((number, reason),) = losses("whois", ARIN)
    assert (number, reason.startswith("it is the block around '198.51.100.0/25, ")) == (3, True)
    ((number, reason),) = losses("whois", "inetnum: 192.0.2.0 - 192.0.2.255\nroute: 192.0.0.0/16\n")
    assert number == 2
    assert "announces more than '192.0.2.0/24' of line 1" in reason


@pytest.mark.parametrize(
    "line", ["inetnum: 0.0.0.0 - 255.255.255.255", "NetRange: 1.2.3.4 - nowhere", "[Referred From] NET/?"]
)
def test_a_whois_field_that_is_not_a_network_is_reported(line: str) -> None:
    assert [number for number, _ in losses("whois", f"{line}\ninetnum: 192.0.2.0 - 192.0.2.255\n")] == [1]


PROVIDER = "NetRange: 192.0.0.0 - 192.15.255.255\nCIDR: 192.0.0.0/12\nOrgName: A Provider\n"
KRNIC = """\
query : 1.208.0.1

# KOREAN(UTF8)

[ 네트워크 할당 정보 ]
IPv4주소           : 1.208.0.0 - 1.255.255.255 (/12+/11)
기관명             : A Provider

# ENGLISH

[ Network Information ]
IPv4 Address       : 1.208.0.0 - 1.208.0.255 (/24)
Organization Name  : A Customer
"""
TWNIC = "   Netname: EXAMPLE-NET\n   Netblock: 192.0.2.0/24\n\n   Administrator contact:\n"
RDAP = {
    "objectClassName": "ip network",
    "startAddress": "198.51.100.0",
    "endAddress": "198.51.100.191",
    "cidr0_cidrs": [{"v4prefix": "198.51.100.0", "length": 25}, {"v4prefix": "198.51.100.128", "length": 26}],
    "name": "CUSTOMER",
}
AROUND = {"objectClassName": "ip network", "startAddress": "198.51.0.0", "endAddress": "198.51.127.255", "name": "BIG"}


@pytest.mark.parametrize(
    ("answer", "networks"),
    [
        (PROVIDER + "\nnetwork:Class-Name:network\nnetwork:IP-Network:192.0.2.64/28\n", ["192.0.2.64/28"]),
        (PROVIDER + "network:IP-Network-Block:192.0.2.64 - 192.0.2.79\n", ["192.0.2.64/28"]),
        (KRNIC, ["1.208.0.0/24"]),
        ("IPv6 Address : 2001:db8:: - 2001:db8:ffff:ffff:ffff:ffff:ffff:ffff (/32)\n", ["2001:db8::/32"]),
        (TWNIC, ["192.0.2.0/24"]),
        ("Netblock: 192.0.2.0-192.0.2.127\n", ["192.0.2.0/25"]),
        (json.dumps(RDAP), ["198.51.100.0/25", "198.51.100.128/26"]),
        (json.dumps({"ipSearchResults": [AROUND, RDAP]}, indent=1), ["198.51.100.0/25", "198.51.100.128/26"]),
        (
            json.dumps({"startAddress": "2001:db8::", "endAddress": "2001:db8:0:ffff:ffff:ffff:ffff:ffff"}),
            ["2001:db8::/48"],
        ),
        ("route: 192.0.0.0/16\norigin: AS1\n\nroute: 192.0.2.0/24\norigin: AS1\n", ["192.0.0.0/16"]),
        ("route: 192.0.0.0/16\norigin: AS2\n\nroute: 192.0.2.0/24\norigin: AS1\n", ["192.0.2.0/24"]),
        ("refer: whois.ripe.net\n\ninetnum: 5.0.0.0 - 5.255.255.255\n\ninetnum: 5.0.0.0 - 5.0.3.255\n", ["5.0.0.0/22"]),
    ],
    ids=[
        "rwhois network",
        "rwhois range",
        "krnic",
        "krnic ipv6",
        "twnic",
        "twnic range",
        "rdap",
        "rdap search",
        "rdap without networks",
        "routes of one system",
        "routes of two systems",
        "iana and ripe",
    ],
)
def test_the_narrowest_block_of_an_answer_is_imported(answer: str, networks: list[str]) -> None:
    assert entries("whois", answer) == networks


@pytest.mark.parametrize(
    "answer",
    [
        "refer: whois.ripe.net\n\ninetnum: 5.0.0.0 - 5.255.255.255\norganisation: RIPE NCC\nstatus: ALLOCATED\n",
        "inetnum: 41.0.0.0 - 41.255.255.255\norganisation: AFRINIC\nstatus: ALLOCATED\n\nwhois: whois.afrinic.net\n",
        "NetRange: 5.0.0.0 - 5.255.255.255\nCIDR: 5.0.0.0/8\nNetType: Allocated to RIPE NCC\n",
        "NetRange: 1.0.0.0 - 1.255.255.255\n\nOrgName: x\nReferralServer: whois://whois.apnic.net\n",
        "inetnum: 3.0.0.0 - 4.255.255.255\nnetname: NON-RIPE-NCC-MANAGED-ADDRESS-BLOCK\n",
        json.dumps(AROUND | {"name": "APNIC-1"}),
    ],
    ids=["iana and its referral", "iana", "arin's type", "arin's referral", "ripe's placeholder", "rdap"],
)
def test_a_block_of_a_registry_is_not_imported(answer: str) -> None:
    with pytest.raises(ImportFailedError) as caught:
        import_text("whois", answer)
    assert caught.value.report is not None
    assert {"the block of a registry" in loss.reason for loss in caught.value.report.losses} == {True}


def test_the_registrys_block_does_not_affect_the_customers() -> None:
    customer = "inetnum: 203.0.113.0 - 203.0.113.255\nnetname: CUSTOMER\n\n"
    around = "inetnum: 203.0.0.0 - 203.255.255.255\ndescr: Asia Pacific Network Information Centre\n"
    assert entries("whois", customer + around) == entries("whois", around + "\n" + customer) == ["203.0.113.0/24"]


def test_an_answer_in_iso_2022_jp_is_read(tmp_path: Path) -> None:
    path = tmp_path / "jpnic"
    path.write_bytes("a. [IPネットワークアドレス]     192.0.2.0/25\nb. [ネットワーク名]  例\n".encode("iso2022_jp"))
    assert import_files("whois", [str(path)], ImportOptions()).entries[0].value == "192.0.2.0/25"
    path.write_bytes("[組織名] 例\na. [Network Number] 198.51.100.0/24\n".encode("iso2022_jp"))
    assert import_files("whois", [str(path)], ImportOptions()).entries[0].value == "198.51.100.0/24"


def test_a_truncated_rdap_answer_is_refused() -> None:
    with pytest.raises(ImportFailedError, match="not a whole JSON document"):
        import_text("whois", json.dumps(RDAP)[:-20])


@pytest.mark.slow
def test_at_most_2000_blocks_of_a_whois_file_are_imported() -> None:
    blocks = [
        f"inetnum: 10.{number >> 8}.{number & 255}.0 - 10.{number >> 8}.{number & 255}.7" for number in range(2002)
    ]
    result = import_text("whois", "\n".join(blocks) + "\n")
    assert len(result.entries) == 2000
    assert [loss.line.number for loss in result.report.losses] == [2001, 2002]


# --- postgrey ---------------------------------------------------------------------------------------------------------


def test_postgreys_clients_are_exempted() -> None:
    names = "# head\nb.example\n192-0-2-7.example # why\n/^mx\\d+\\.c\\.example$/\n"
    text = f"{names}192.0.2\n198.51.100.0/25\n203.0\n2001:db8::/32\n"
    result = import_text("postgrey", text)
    assert [(rule.match, rule.verdict.action) for rule in result.rules] == [
        ({"hostname_suffix": ("b.example", "192-0-2-7.example")}, "DUNNO"),
        ({"hostname_regex": (r"^mx\d+\.c\.example$",)}, "DUNNO"),
        ({"cidr": ("192.0.2.0/24", "198.51.100.0/25", "203.0.0.0/24", "2001:db8::/32")}, "DUNNO"),
    ]
    assert "postgrey reads two octets as a /24 network: 203.0.0.0/24" in {note.reason for note in result.report.notes}
    assert entries("postgrey", "192.0.2.1\n203.0.113.9 # x\n") == ["192.0.2.1", "203.0.113.9"]


def test_postgreys_recipients_are_exempted_with_their_extensions() -> None:
    text = "# recipients\npostmaster@\na@b.example\nc.example\n/^list-.*@d\\.example$/\n"
    expressions = (r"^postmaster(\+[^@]+)?@", r"^a(\+[^@]+)?@b\.example$", r"^list-.*@d\.example$")
    # Without the option `attribute`, an entry with `@` shows that the list is for recipients.
    for options in (ImportOptions(attribute="recipient"), ImportOptions()):
        result = import_text("postgrey", text, options)
        assert [(rule.match, rule.verdict.action) for rule in result.rules] == [
            ({"recipient_regex": expressions}, "DUNNO"),
            ({"recipient_domain": ("c.example",)}, "DUNNO"),
        ]
        assert result.report.taken == 4
        assert any(note.reason.startswith("mail to these recipients passes") for note in result.report.notes)


# --- rspamd-map -------------------------------------------------------------------------------------------------------

MAP = r"""
# a map
192.0.2.0/24 5.0
[2001:db8::1]
"b.example"
*.c.example   # a glob
mx?.d*.example
/^dyn\d+\./i 2.0
/Case\.d/
a@b.example
@d.example
"""


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ("cidr", ["192.0.2.0/24", "2001:db8::1"]),
        ("hostname", ["b.example"]),
        ("hostname_suffix", [".c.example"]),
        ("hostname_regex", [r"^mx.\.d.*\.example$", r"^dyn\d+\.", r"(?-i:Case\.d)"]),
        ("sender", ["a@b.example"]),
        ("sender_domain", ["d.example"]),
    ],
)
def test_an_rspamd_map_has_keys_of_several_kinds(condition: str, wanted: list[str]) -> None:
    assert entries("rspamd-map", MAP, ImportOptions(condition=condition)) == wanted


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a@b.example -3", "a negative score lets mail through"),
        ("/(?=x)/", "RE2 has no look-around"),
        ("/x/q", "is not a flag"),
        ("mx[0-9].example", "a glob with brackets"),
        ('"half', "begins with a quote"),
    ],
)
def test_unsupported_keys_of_an_rspamd_map_are_reported(line: str, reason: str) -> None:
    ((number, found),) = losses("rspamd-map", f"192.0.2.7\n{line}\n")
    assert number == 2
    assert reason in found


def test_names_that_begin_with_digits_are_names_in_an_rspamd_map() -> None:
    text = "192-0-2-7.dyn.example.net 5\n1-800-example.com\n"
    assert entries("rspamd-map", text) == ["192-0-2-7.dyn.example.net", "1-800-example.com"]


def test_a_negative_score_is_reported_as_a_lost_exemption() -> None:
    result = import_text("rspamd-map", "mail.example.com -3\nb.example 4\n")
    assert result.lost_exemptions == 1


def test_an_expression_that_a_list_file_reads_as_a_comment_is_reported() -> None:
    result = import_text("rspamd-map", "/a #b/i\n/c/i\n/;d/i\n", ImportOptions(condition="hostname_regex"))
    assert [term.value for term in result.entries] == ["c"]
    assert [loss.line.number for loss in result.report.losses] == [1, 3]


def test_the_assumed_attribute_of_a_map_of_names_is_noted() -> None:
    assumed = "read as host names of clients; use --attribute if the list is for something else"
    assert [note.reason for note in import_text("rspamd-map", "b.example\nc.example\n").report.notes] == [assumed]
    assert [note.reason for note in import_text("rspamd-map", "192.0.2.1\n").report.notes] == []
    with_attribute = import_text("rspamd-map", "b.example\n", ImportOptions(attribute="client"))
    assert with_attribute.report.notes == []
