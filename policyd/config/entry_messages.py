"""Error messages for entries that `policyd.config.entries` refuses, with suggestions.

This may be slow (netaddr, idna), because it runs only for wrong entries.
"""

from __future__ import annotations

import re

import idna
import netaddr

from policyd.config.comparison import why_not_comparison
from policyd.config.conditions import Form
from policyd.config.countries import MEANT
from policyd.config.entries import (
    MAX_ASN,
    MAX_EXPRESSION,
    MAX_HOST_NAME,
    MAX_LABEL,
    ExpressionError,
    compile_expression,
    fold_entry,
    parse_entries,
)
from policyd.config.problems import did_you_mean, quoted
from policyd.core.identity import Status

# Maximum characters of a text that gets a suggestion, which would be as long. A name has at most 253 characters, a mail
# address 254 (RFC 5321 section 4.5.3.1.3, erratum 1690).
MAX_EXPLAINED = 400


def explain_entry(form: Form, line: bytes) -> str:  # noqa: PLR0911, PLR0912 - one message for each form and fault
    """Explains why `parse_entries` refused a line, and suggests what to write instead."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"{quoted(line.decode('utf-8', 'replace'))} is not UTF-8 (byte 0x{line[error.start]:02x})"
    control = re.search(r"[\x00-\x1f\x7f]", text)
    if control and form is not Form.EXPRESSION:
        return f"{quoted(text)} has a control character (U+{ord(control.group()):04X}) in it"
    if not text:
        return _explain_empty(form)
    if len(text) > MAX_EXPLAINED and form is not Form.EXPRESSION:
        return f"{quoted(text)} is not {_with_article(form)}: it has {len(text):,} characters"
    values = [value for value in re.split(r"[,\s]+", text) if value]
    if len(values) > 1 and form is not Form.EXPRESSION and not parse_entries(form, [v.encode() for v in values])[1]:
        return (
            f"{quoted(text)} is not one value; write a list, [{', '.join(values)}], or write one value per "
            "line in a list file"
        )
    match form:
        case Form.NETWORK:
            return _explain_network(text)
        case Form.STATUS:
            hint = did_you_mean(text, Status) or f"; it is one of {', '.join(Status)}"
            return f"{quoted(text)} is not a status of reverse DNS{hint}"
        case Form.DNS_LIST:
            return f"{quoted(text)} is not the name of a DNS list; give the names that are defined under dns_lists"
        case Form.COUNTER:
            return why_not_comparison(text)
        case Form.EXPRESSION:
            return _explain_expression(text)
        case Form.ASN:
            return _explain_asn(text)
        case Form.COUNTRY:
            return _explain_country(text)
        case Form.YES:
            return f"{quoted(text)} is not a value of hostname_generic; 'yes' is the only one, or leave it out"
        case Form.SENDER | Form.RECIPIENT:
            return _explain_address(form, text)
        case _:
            return _explain_name(form, text)


def _explain_empty(form: Form) -> str:
    match form:
        case Form.SENDER:
            return "'' is not a mail address; the null sender is written '<>'"
        case Form.EXPRESSION:
            return "the expression is empty, so it would be found in everything; '^$' is found where there is nothing"
        case Form.HELO_NAME:
            return "'' is not a HELO name; for a client that gave none write helo_name_regex: '^$'"
        case _:
            return f"'' is not {_with_article(form)}"


def _with_article(form: Form) -> str:
    return f"{'an' if form is Form.ASN else 'a'} {form.value}"


def _explain_network(text: str) -> str:  # noqa: PLR0911 - one message for each mistake
    address, slash, length = text.partition("/")
    bare = address.strip("[]")
    if bare != address and netaddr.valid_ipv6(bare):
        return f"{quoted(text)} is not a network; write it without brackets: '{bare}{slash}{length}'"
    if "%" in address:
        meant = f"{address.partition('%')[0]}{slash}{length}"
        return f"{quoted(text)} has a zone id, which no client_address has; write '{meant}'"
    if "-" in text:
        return f"{quoted(text)} is a range, not a network{_range_as_networks(text)}"
    octets = address.rstrip(".").split(".")
    if all(re.fullmatch("[0-9]{1,3}", octet) for octet in octets):
        if len(octets) < 4:
            padded = ".".join(str(int(octet)) for octet in octets) + ".0" * (4 - len(octets))
            return f"{quoted(text)} is not a whole address; did you mean '{padded}/{length or 8 * len(octets)}'?"
        plain = ".".join(str(int(octet)) for octet in octets)
        if plain != address and netaddr.valid_ipv4(plain, netaddr.INET_PTON):
            meant = f"{plain}{slash}{length}"
            return f"{quoted(text)} has leading zeros, which some read as octal; did you mean '{meant}'?"
    if not (netaddr.valid_ipv4(address, netaddr.INET_PTON) or netaddr.valid_ipv6(address)):
        hint = "; names go into hostname or hostname_suffix" if re.search("[g-zG-Z]", text) else ""
        return f"{quoted(text)} is neither an IPv4 nor an IPv6 network{hint}"
    try:
        network = netaddr.IPNetwork(text)
    except (netaddr.AddrFormatError, ValueError):
        longest = 128 if ":" in address else 32
        return f"{quoted(text)} has no valid prefix length (0 to {longest})"
    if network.ip.is_ipv4_mapped() and network.prefixlen < 96:
        meant = f"; did you mean '{network.ip.ipv4()}/{length}'?" if network.prefixlen <= 32 else ""
        return f"{quoted(text)} is an IPv4-mapped address with a prefix length below 96{meant}"
    if network.ip != network.network:
        alone = f"for the one address write '{network.ip}'"
        return f"{quoted(text)} has host bits set; did you mean '{network.cidr}'? ({alone})"
    return f"{quoted(text)} is not written as a network; did you mean '{network.cidr}'?"


def _range_as_networks(text: str) -> str:
    first, _, last = text.partition("-")
    try:
        networks = netaddr.iprange_to_cidrs(first.strip(), last.strip())
    except (netaddr.AddrFormatError, ValueError, TypeError, IndexError):  # TypeError: one IPv4, one IPv6
        return "; write it as networks"
    shown = [str(network) for network in networks]
    return f"; write {', '.join(shown)}" if len(shown) <= 4 else f"; it takes {len(shown)} networks"


def _explain_expression(text: str) -> str:
    if len(text.encode()) > MAX_EXPRESSION:
        return f"{quoted(text)} is longer than an expression may be ({MAX_EXPRESSION:,} bytes)"
    try:
        compile_expression(text)
    except ExpressionError as error:
        reason = str(error)
        hint = ""
        if reason.startswith(("invalid perl operator: (?", "invalid escape sequence: \\")) and re.search(
            r"\(\?<?[=!]|\\[1-9]", text
        ):
            hint = " (RE2 has no look-ahead, look-behind or back-references: they are what makes matching slow)"
        elif text.startswith("*"):
            hint = f"; an expression is not a shell pattern; did you mean {quoted(_as_expression(text))}?"
        return f"{quoted(text)} is not an expression that RE2 can compile: {quoted(reason)[1:-1]}{hint}"
    return (
        f"{quoted(text)} and the expressions before it are together too large for RE2; "
        "shorten repetitions such as {1000}"
    )


def _as_expression(pattern: str) -> str:
    """Converts a shell pattern such as `*.example.com` to an expression."""
    return f"{pattern.lstrip('*').replace('.', chr(92) + '.')}$"


def _explain_asn(text: str) -> str:
    digits = re.fullmatch(r"(?:AS[ N]?)?\s*([0-9]+)", text, re.IGNORECASE)
    if digits is None:
        hint = "; names go into asn_name_regex" if re.fullmatch(r"[A-Za-z][A-Za-z0-9 .,-]+", text) else ""
        return f"{quoted(text)} is not an AS number, such as AS9371 or 9371{hint}"
    number = int(digits[1]) if len(digits[1]) <= 10 else MAX_ASN + 1
    if not 1 <= number <= MAX_ASN:
        return f"{quoted(text)} is not an AS number: they go from 1 to {MAX_ASN}"
    return f"{quoted(text)} is not written as an AS number; did you mean 'AS{number}'?"


def _explain_country(text: str) -> str:
    meant = MEANT.get(text.upper())
    if meant is not None:
        return f"{quoted(text)} is not the code in databases; write '{meant}'"
    if re.fullmatch("[A-Za-z]{2}", text):
        return f"{quoted(text)} is not a country of ISO 3166-1"
    return f"{quoted(text)} is not a country; write the two letters of ISO 3166-1, such as JP"


def _explain_address(form: Form, text: str) -> str:  # noqa: PLR0911 - one message for each mistake
    recipient = form is Form.RECIPIENT
    domain_condition = "recipient_domain" if recipient else "sender_domain"
    if text == "<>" and recipient:
        return "'<>' is the null sender, not a recipient"
    if text.startswith("<") and text.endswith(">"):
        return f"{quoted(text)} has angle brackets; write {quoted(text[1:-1])}"
    local, at, domain = text.rpartition("@")
    if not at:
        if "." in text:
            domain = text.lstrip("*")
            return f"{quoted(text)} has no '@'; for every address of a domain write {domain_condition}: {domain}"
        return f"{quoted(text)} is not a mail address"
    if local in {"", "*"} and domain:
        return f"{quoted(text)} has no local part; for every address of a domain write {domain_condition}: {domain}"
    if not domain:
        expression = f"{'recipient' if recipient else 'sender'}_regex: '^{local}@'"
        return f"{quoted(text)} has no domain; for a local part at any domain write {expression}"
    return f"{quoted(text)} is not a mail address"


def _explain_name(form: Form, text: str) -> str:  # noqa: PLR0911, PLR0912 - one message for each mistake
    name = text.removeprefix(".") if form is Form.DOMAIN else text
    if form is Form.HELO_NAME:
        if len(text) > MAX_HOST_NAME:
            return f"{quoted(text)} is longer than {MAX_HOST_NAME} characters"
        if text.endswith(".."):
            return f"{quoted(text)} is not a HELO name: it ends in more than one dot"
        return (
            f"{quoted(text)} is not a HELO name: it contains a blank, a comma or a character that UTS 46 does not allow"
        )
    if name.rstrip(".").lower() == "unknown":
        return "'unknown' is what Postfix writes for no host name; use reverse_dns: missing, mismatch or error"
    if (
        netaddr.valid_ipv4(name.strip("[]"), netaddr.INET_PTON)
        or netaddr.valid_ipv6(name.strip("[]"))
        or re.fullmatch("[0-9A-Fa-f.:]+/[0-9]+", name)
    ):
        return f"{quoted(text)} is an address or a network, not a host name; use cidr"
    if "@" in name:
        return (
            f"{quoted(text)} is a mail address, not a host name or domain{_domain_hint(form, name.rpartition('@')[2])}"
        )
    if name.startswith("*"):
        bare = name.lstrip("*.")
        meant = f"hostname_suffix: .{bare}" if form is Form.HOST_NAME else f".{bare}"
        return f"{quoted(text)} is not a host name: '*' is not a wildcard here; for names under {bare} write '{meant}'"
    if form is Form.HOST_NAME and name.startswith("."):
        return f"{quoted(text)} is not a host name; for names under a domain write hostname_suffix: {name}"
    if len(name) > MAX_HOST_NAME:
        return f"{quoted(text)} is longer than a host name can be ({MAX_HOST_NAME} characters)"
    labels = name.removesuffix(".").split(".")
    if "" in labels:
        return (
            f"{quoted(text)} is not a host name: it has an empty label"
            f"{_domain_hint(form, '.'.join(filter(None, labels)))}"
        )
    long = next((label for label in labels if len(label) > MAX_LABEL), None)
    if long:
        return f"{quoted(text)} is not a host name: {quoted(long)} is longer than {MAX_LABEL} characters"
    if labels[-1].isdecimal():
        return f"{quoted(text)} is not a host name: it ends in a number, as only addresses do"
    if not text.isascii():
        try:
            idna.encode(name, uts46=True)
        except (idna.IDNAError, UnicodeError) as error:
            return f"{quoted(text)} is not a host name: {error}"
    odd = re.search(r"[^A-Za-z0-9_.-]", name)
    if odd:
        return f"{quoted(text)} is not a host name: '{odd.group()}' cannot be in one"
    return f"{quoted(text)} is not a host name: a label cannot begin or end with '-'"


def _domain_hint(form: Form, meant: str) -> str:
    return f"; did you mean '{meant}'?" if fold_entry(form, meant.encode()) else ""
