"""The table of all conditions, for the loader, the JSON Schema, the checks and the tools.

Each row has a condition's name, its subject, its comparison, and the form of its values.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from policyd.core.protocol import ATTRIBUTES
from policyd.core.ruleset import Kind, Subject


class Form(Enum):
    """The form of a condition's values. A list is parsed once for all conditions of the same form."""

    NETWORK = "network"
    STATUS = "status"
    DNS_LIST = "DNS list"
    COUNTER = "comparison of a counter"
    HOST_NAME = "host name"
    DOMAIN = "domain"
    HELO_NAME = "HELO name"
    SENDER = "sender address"
    RECIPIENT = "recipient address"
    TEXT = "text"
    EXPRESSION = "expression"
    ASN = "AS number"
    COUNTRY = "country"
    YES = "value of hostname_generic"

    @property
    def has_table(self) -> bool:
        """Whether a long list of this form becomes a table, which is kept when the ruleset changes.

        Entries of these forms are networks or bytes.
        """
        return self in _WITH_TABLE


_WITH_TABLE = frozenset(
    {Form.NETWORK, Form.HOST_NAME, Form.DOMAIN, Form.HELO_NAME, Form.SENDER, Form.RECIPIENT, Form.TEXT}
)


@dataclass(frozen=True, slots=True)
class ConditionType:
    """One row of the table. Editors show `summary` and `examples`, which are in the JSON Schema."""

    name: str
    subject: str
    kind: Kind
    form: Form
    summary: str
    examples: tuple[str, ...] = ()


def _table() -> dict[str, ConditionType]:
    name, domain, value, expression = Kind.NAME, Kind.DOMAIN, Kind.VALUE, Kind.EXPRESSION
    rows = [
        ConditionType(
            "cidr",
            "client_address",
            Kind.NETWORK,
            Form.NETWORK,
            "The client's address lies in this network (IPv4 or IPv6; a bare address is a network of one).",
            ("203.142.214.0/24", "2001:db8::/32"),
        ),
        ConditionType(
            "reverse_dns",
            Subject.REVERSE_DNS,
            Kind.STATUS,
            Form.STATUS,
            "The client's reverse DNS is verified, mismatch, missing or error.",
            ("missing",),
        ),
        ConditionType(
            "listed",
            Subject.LISTED,
            Kind.LISTED,
            Form.DNS_LIST,
            "This DNS list, a name under dns_lists, says *listed*; with {at_least: N, of: [...]} N of them do.",
            ("zen",),
        ),
        ConditionType(
            "counter",
            Subject.COUNTER,
            Kind.COUNTER,
            Form.COUNTER,
            "A counter, a name under counters, has reached a number; the request itself is included.",
            ("mails-of-user > 300", "doors >= 4"),
        ),
        ConditionType(
            "hostname",
            Subject.HOSTNAME,
            name,
            Form.HOST_NAME,
            "The client's host name is exactly this.",
            ("mail.example.com",),
        ),
        ConditionType(
            "hostname_suffix",
            Subject.HOSTNAME,
            domain,
            Form.DOMAIN,
            "The client's host name is this domain or lies under it; with a leading dot, only under it.",
            ("example.com", ".example.com"),
        ),
        ConditionType(
            "hostname_regex",
            Subject.HOSTNAME,
            expression,
            Form.EXPRESSION,
            "The expression (RE2, case-insensitive) is found in the client's host name.",
            (r"^dyn[0-9]+\.",),
        ),
        ConditionType(
            "helo_name",
            "helo_name",
            name,
            Form.HELO_NAME,
            "The HELO or EHLO argument is exactly this: a name, a word, or an address literal.",
            ("ylmf-pc", "[192.0.2.1]"),
        ),
        ConditionType(
            "helo_name_suffix",
            "helo_name",
            domain,
            Form.DOMAIN,
            "The HELO or EHLO argument is this domain or lies under it; with a leading dot, only under it.",
            ("example.com",),
        ),
        ConditionType(
            "helo_name_regex",
            "helo_name",
            expression,
            Form.EXPRESSION,
            "The expression is found in the HELO or EHLO argument.",
            ("^user$",),
        ),
        ConditionType(
            "sender",
            "sender",
            value,
            Form.SENDER,
            "The envelope sender is exactly this; '<>' is the null sender.",
            ("news@example.com", "<>"),
        ),
        ConditionType(
            "sender_domain",
            "sender",
            domain,
            Form.DOMAIN,
            "The envelope sender's domain is this domain or lies under it; with a leading dot, only under it.",
            ("example.com",),
        ),
        ConditionType(
            "sender_regex",
            "sender",
            expression,
            Form.EXPRESSION,
            "The expression is found in the envelope sender, which is empty for the null sender.",
            (r"^rainbow\+err[a-z0-9]+@",),
        ),
        ConditionType(
            "recipient",
            "recipient",
            value,
            Form.RECIPIENT,
            "The envelope recipient is exactly this.",
            ("postmaster@example.com",),
        ),
        ConditionType(
            "recipient_domain",
            "recipient",
            domain,
            Form.DOMAIN,
            "The recipient's domain is this domain or lies under it; with a leading dot, only under it.",
            ("example.com",),
        ),
        ConditionType(
            "recipient_regex",
            "recipient",
            expression,
            Form.EXPRESSION,
            "The expression is found in the envelope recipient.",
            ("^(postmaster|abuse)@",),
        ),
    ]
    rows += [
        ConditionType(
            "asn",
            Subject.ASN,
            value,
            Form.ASN,
            "The client's address is announced by this autonomous system (needs databases: asn).",
            ("AS64496", "64496"),
        ),
        ConditionType(
            "asn_name_regex",
            Subject.ASN_NAME,
            expression,
            Form.EXPRESSION,
            "The expression is found in the name of the client's autonomous system (needs databases: asn).",
            ("hosting",),
        ),
        ConditionType(
            "country",
            Subject.COUNTRY,
            value,
            Form.COUNTRY,
            "The client's network is in this country: two letters, ISO 3166-1 (needs databases: country).",
            ("JP",),
        ),
        ConditionType(
            "hostname_generic",
            Subject.HOSTNAME,
            Kind.GENERIC,
            Form.YES,
            "The client's host name contains the client's own address, as a provider's generated names do.",
            ("yes",),
        ),
    ]
    described = {row.name for row in rows}
    for attribute in ATTRIBUTES:
        if attribute not in described:
            equality = f"Postfix's attribute {attribute} equals this; '' if it was not sent or is empty."
            rows.append(ConditionType(attribute, attribute, value, Form.TEXT, equality))
            found = f"The expression is found in Postfix's attribute {attribute}."
            rows.append(ConditionType(f"{attribute}_regex", attribute, expression, Form.EXPRESSION, found))
    return {row.name: row for row in rows}


CONDITIONS = _table()

# Conditions that may block but must not let mail through (the first principle), each with the reason.
UNPROVEN = {
    "reverse_client_name": "the owner of an address can give it any name",
    "reverse_client_name_regex": "the owner of an address can give it any name",
    "asn_name_regex": "the registrant of a system chooses its name",
    "hostname_generic": "the owner of an address can give it a name with the address in it",
}

# The database that a condition needs.
DATABASE_OF = {"asn": "asn", "asn_name_regex": "asn", "country": "country"}

# Subjects that anyone can forge: an exemption that rests on these alone also exempts spammers.
FORGEABLE_SUBJECTS = frozenset({"sender", "helo_name"})

# The values of protocol_state that Postfix sends (smtpd_check.c).
PROTOCOL_STATES = (
    "CONNECT",
    "HELO",
    "EHLO",
    "MAIL",
    "RCPT",
    "DATA",
    "END-OF-MESSAGE",
    "VRFY",
    "ETRN",
    "XCLIENT",
)
# Attributes with a known set of values: any other value is a typing error.
KNOWN_VALUES = {"protocol_state": PROTOCOL_STATES, "request": ("smtpd_access_policy",)}
# States without a recipient.
STATES_WITHOUT_RECIPIENT = frozenset({"CONNECT", "HELO", "EHLO", "MAIL", "ETRN", "XCLIENT"})
