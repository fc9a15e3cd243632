"""An imported firewall accepts the same clients as the kernel with that firewall."""

from __future__ import annotations

import pytest

from tests.exchange.answers import Mail, answer, rules_of
from tests.exchange.firewall.kernel import host
from tests.requirements import require

CLIENTS = [
    "192.0.2.1",
    "192.0.2.7",
    "192.0.2.130",
    "198.51.100.7",
    "203.0.113.5",
    "203.0.113.77",
    "100.64.0.1",
    "2001:db8::1",
    "2001:db8:1::7",
]

IPTABLES = {
    "host bits and another port": """
*filter
-A INPUT -i lo -j ACCEPT
-A INPUT ! -s 192.0.2.0/24 -p tcp -m tcp --dport 587 -j DROP
-A INPUT -s 192.0.2.1/25 -p tcp --dport 25 -j DROP
-A INPUT -s 203.0.113.0/24 -p tcp -m multiport ! --dports 465,587 -j REJECT
COMMIT
""",
    "one interface": """
*filter
-A INPUT -i wg0 -j ACCEPT
-A INPUT ! -i eth0 -s 192.0.2.0/24 -j DROP
-A INPUT -i eth+ -s 203.0.113.5/32 -j DROP
-A INPUT -i eth0 -s 198.51.100.0/24 -p tcp --dport 20:30 -j DROP
COMMIT
""",
    "chains for other ports": """
*filter
:f2b-sshd - [0:0]
:f2b-postfix - [0:0]
:unused - [0:0]
-A INPUT -p tcp -m multiport --dports 22 -j f2b-sshd
-A INPUT -p tcp -m multiport --dports 25,465,587 -j f2b-postfix
-A f2b-sshd -s 198.51.100.7/32 -j REJECT --reject-with icmp-port-unreachable
-A f2b-postfix -s 192.0.2.7/32 -j RETURN
-A f2b-postfix -s 192.0.2.0/24 -j REJECT --reject-with icmp-port-unreachable
-A unused -s 203.0.113.5 -j DROP
COMMIT
""",
    "each table decides separately": """
*raw
-A PREROUTING -s 203.0.113.5 -j ACCEPT
-A PREROUTING -s 203.0.113.0/24 -j DROP
COMMIT
*mangle
-A INPUT -s 198.51.100.7 -p tcp --dport 25 -j DROP
-A INPUT -s 192.0.2.0/24 -j ACCEPT
COMMIT
*filter
-A INPUT -s 203.0.113.0/24 -j ACCEPT
-A INPUT -s 192.0.2.7 -j DROP
COMMIT
""",
    "goto and nested jumps": """
*filter
:net - [0:0]
:mail - [0:0]
:last - [0:0]
-A INPUT -s 192.0.2.0/24 -g net
-A INPUT -p tcp --dport 25 -j mail
-A INPUT -s 100.64.0.0/10 -j DROP
-A net -s 192.0.2.128/25 -j DROP
-A net -s 192.0.2.7 -j mail
-A mail -s 203.0.113.5 -j ACCEPT
-A mail -j last
-A last -s 203.0.113.0/24 -j DROP
-A last -s 192.0.2.7 -m conntrack --ctstate NEW -j DROP
-A last ! -s 100.64.0.0/10 -j ACCEPT
COMMIT
""",
    "flags and protocols": """
*filter
-A INPUT -s 192.0.2.0/24 -p udp -j DROP
-A INPUT -s 198.51.100.0/24 -p tcp ! --syn -j DROP
-A INPUT -s 203.0.113.0/24 -p tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP
-A INPUT -s 100.64.0.0/10 -p tcp --tcp-flags ALL NONE -j DROP
-A INPUT -m iprange --src-range 192.0.2.5-192.0.2.9 -p tcp --dport 25 -j DROP
COMMIT
""",
}

NFT = {
    "each base chain decides separately": """
table inet one {
  chain early { type filter hook input priority -10; ip saddr 203.0.113.0/24 accept; ip saddr 192.0.2.7 drop; }
  chain late { type filter hook input priority 10; ip saddr 203.0.113.5 drop; ip saddr 192.0.2.0/24 accept; }
}
table ip two {
  chain raw { type filter hook prerouting priority raw; ip saddr 198.51.100.0/24 drop; }
}
table ip6 three {
  chain in { type filter hook input priority filter; ip6 saddr 2001:db8::/48 drop; }
}
""",
    "statements": """
table inet t {
  counter bad { }
  set office { type ipv4_addr; flags interval; auto-merge; elements = { 192.0.2.0/25, 192.0.2.64/26 } }
  map verdicts { type ipv4_addr : verdict; elements = { 198.51.100.7 : drop, 203.0.113.77 : jump more } }
  set mail { type inet_service; flags interval; elements = { 20-30, 587 } }
  chain more { ip saddr 203.0.113.0/24 counter name "bad" drop; }
  chain in {
    type filter hook input priority filter; policy accept;
    ct state vmap { established : accept, related : accept, invalid : drop }
    ip saddr @office accept
    ip saddr 192.0.2.0/24 counter name "bad" drop
    tcp dport 20-30 ip saddr vmap { 203.0.113.5 : drop }
    tcp dport @mail ip saddr vmap @verdicts
    tcp dport vmap { 22 : drop, 25 : accept }
    ip saddr 100.64.0.0/10 drop
  }
}
""",
    "interfaces and versions": """
table inet t {
  chain net { ip saddr 203.0.113.5 accept; ip saddr 203.0.113.0/24 drop; }
  chain in {
    type filter hook input priority filter; policy accept;
    iifname "wg0" accept
    meta nfproto ipv6 tcp dport != 587 drop
    iifname vmap { "lo" : accept, "eth0" : jump net, "eth1" : drop }
    ip saddr { 192.0.2.0-192.0.2.9, 100.64.0.0/10 } tcp dport { 25, 587 } reject with tcp reset
  }
}
""",
    "negations": """
table inet t {
  chain in {
    type filter hook input priority filter; policy accept;
    tcp dport != { 25, 465 } drop
    ip6 saddr != 2001:db8:1::/48 tcp dport smtp drop
    ip saddr != { 192.0.2.0/24, 203.0.113.0/24 } meta l4proto tcp drop
    ip protocol udp ip saddr 192.0.2.1 drop
    ct state != new ip saddr 203.0.113.0/24 drop
  }
}
""",
}


def assert_same_answers(format_name: str, text: str, wanted: dict[str, bool]) -> None:
    rules = rules_of(format_name, text, interface="eth0")
    assert {client: answer(rules, Mail(client)) != "REJECT" for client in wanted} == wanted


@pytest.mark.parametrize("text", IPTABLES.values(), ids=IPTABLES)
def test_imported_iptables_rules_accept_the_same_clients(text: str) -> None:
    require("iptables-restore", "iptables-save", root=True)
    with host([client for client in CLIENTS if ":" not in client]) as filter_host:
        filter_host.run("iptables-restore", given=text)
        lets_in = filter_host.lets_in()
        saved = filter_host.run("iptables-save")
    assert set(lets_in.values()) == {True, False}
    assert_same_answers("iptables-save", text, lets_in)
    assert_same_answers("iptables-save", saved, lets_in)


@pytest.mark.parametrize("text", NFT.values(), ids=NFT)
def test_imported_nft_rules_accept_the_same_clients_as_text_and_as_json(text: str) -> None:
    require("nft", root=True)
    with host(CLIENTS) as filter_host:
        filter_host.run("nft", "-f", "-", given=text)
        lets_in = filter_host.lets_in()
        listed = filter_host.run("nft", "list", "ruleset")
        as_json = filter_host.run("nft", "-j", "list", "ruleset")
    assert set(lets_in.values()) == {True, False}
    assert_same_answers("nft", text, lets_in)
    assert_same_answers("nft", listed, lets_in)
    assert_same_answers("nft", as_json, lets_in)


SETS = """
create blocked hash:net family inet timeout 600 comment
add blocked 192.0.2.0/24 timeout 0 comment "a b"
add blocked 192.0.2.7 nomatch
add blocked 203.0.113.77 timeout 300
create new hash:net family inet timeout 600 comment
add new 198.51.100.7
add new 198.51.100.8
create six hash:net family inet6
add six 2001:db8:1::/48
create full hash:ip
add full 100.64.0.1
flush full
swap new blocked
swap blocked new
del new 198.51.100.8
rename new other
"""


@pytest.mark.parametrize("command", [("save",), ("list",)])
def test_imported_ipsets_block_the_same_clients(command: tuple[str]) -> None:
    require("ipset", "iptables", "ip6tables", root=True)
    with host(CLIENTS) as filter_host:
        filter_host.run("ipset", "restore", given=SETS)
        for program, name in (("iptables", "blocked"), ("iptables", "other"), ("ip6tables", "six")):
            filter_host.run(program, "-A", "INPUT", "-m", "set", "--match-set", name, "src", "-j", "DROP")
        lets_in = filter_host.lets_in()
        saved = filter_host.run("ipset", *command)
    assert set(lets_in.values()) == {True, False}
    for text in (SETS, saved):
        rules = rules_of("ipset", text)
        assert {client: answer(rules, Mail(client)) != "REJECT" for client in CLIENTS} == lets_in, text
