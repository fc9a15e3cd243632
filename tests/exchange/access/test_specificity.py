"""Exemptions of a table that is looked up before another table: they become exceptions of the rules below them."""

from tests.exchange.answers import Mail, answer, import_text, ruleset

# The chain `trusted` accepts 10.0.0.0/8 except 10.0.0.1, for which the table decides further below.
TWO_FIREWALL_TABLES = """\
*raw
:PREROUTING ACCEPT [0:0]
:trusted - [0:0]
-A PREROUTING -p tcp --dport 25 -j trusted
-A PREROUTING -s 10.0.0.1 -p tcp --dport 25 -j DROP
-A trusted -s 10.0.0.1 -j RETURN
-A trusted -s 10.0.0.0/8 -j ACCEPT
COMMIT
*filter
:INPUT ACCEPT [0:0]
-A INPUT -s 192.0.2.0/24 -p tcp --dport 25 -j DROP
COMMIT
"""

# Senders and clients in one table. Only some senders of l.example are exempt.
EXEMPT_BY_TWO_CONDITIONS = """\
{condition}
/@l\\.example$/ OK
endif
/@.*example$/ REJECT
/^host\\.example\\.com$/ REJECT
"""


def test_an_exempted_network_does_not_include_its_exceptions() -> None:
    rules = ruleset(import_text("iptables-save", TWO_FIREWALL_TABLES).text)
    found = {address: answer(rules, Mail(address)) for address in ("10.0.0.1", "10.0.0.2", "192.0.2.1", "198.51.100.1")}
    assert found == {"10.0.0.1": "REJECT", "10.0.0.2": "DUNNO", "192.0.2.1": "REJECT", "198.51.100.1": "DUNNO"}


def test_an_exemption_by_two_conditions_is_lost_and_exempts_no_other_sender() -> None:
    for condition in ("if /^owner-/", "if !/^owner-/"):
        result = import_text("postfix-pcre", EXEMPT_BY_TWO_CONDITIONS.format(condition=condition))
        assert [loss.line.number for loss in result.report.losses] == [2]
        assert result.lost_exemptions == 1
        assert "except" not in result.text
