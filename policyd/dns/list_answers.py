"""The meaning of a DNS list's answer: listed, not listed, or unknown with the reason.

Pure. The rules are those of docs/dns-lists.md, "Three answers"; RFC 5782 section 2.1 reserves 127.0.0.0/8 for answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyd.core.address import format_address
from policyd.core.dns_lists import NOT_LISTED, OUTSIDE_127, REFUSED_BY_LIST, ListAnswer, ListStatus, unknown
from policyd.core.identity import Reason

if TYPE_CHECKING:
    from policyd.config.dns_list import DnsList
    from policyd.dns.identify import AddressesAnswer

# Maximum number of addresses of an answer that are kept and logged. A list answers with an address for each of its
# parts that has an entry; the largest public list has nine parts.
MAX_SHOWN = 16

# Refusals of every list (https://www.spamhaus.org/faqs/dnsbl-usage/): 127.255.255.0/24, by its first 24 bits, and the
# answer of Spamhaus's DBL to a question for an address.
_REFUSALS_24 = 127 << 16 | 255 << 8 | 255
_NOT_FOR_ADDRESSES = 127 << 24 | 1 << 8 | 255

# Refusals of some lists (127.0.0.1: URIBL, SURBL; 127.0.0.255: DNSWL), but entries of others: `codes` decides.
_LIKELY_REFUSALS = (127 << 24 | 1, 127 << 24 | 255)

# Meanings of 127.255.255.X, as defined by Spamhaus and adopted by other lists.
REFUSALS = {
    250: "the key is disabled; renew it at the list's operator",
    251: "the key is not accepted, because it is used by others or in another way than was agreed",
    252: "the zone is misspelled; correct `zone`",
    253: "your address or resolver is excluded by this list",
    254: "your resolver is a public one, and this list does not answer those; "
    "run a resolver of your own, or get a key from the list's operator",
    255: "too many questions came from your resolver; get a key or a copy of the zone from the list's operator",
}


def read_list_answer(dns_list: DnsList, answer: AddressesAnswer) -> ListAnswer:
    """Returns the list's answer, given the A records of a name or the reason why the lookup failed."""
    if isinstance(answer, Reason):
        return unknown(str(answer))
    if not answer:
        return NOT_LISTED
    listed = False
    reason = ""
    for version, number in answer:
        found = _meaning(dns_list, number) if version == 4 else OUTSIDE_127
        listed |= found is ListStatus.LISTED
        if isinstance(found, str):
            reason = reason or found
    if not listed and not reason:
        return NOT_LISTED
    shown = tuple(format_address(address) for address in sorted(answer)[:MAX_SHOWN])
    return ListAnswer(ListStatus.LISTED, shown) if listed else unknown(reason, shown)


def _meaning(dns_list: DnsList, number: int) -> ListStatus | str:
    """Returns the meaning of one address: a status, or the reason why it is unknown."""
    if number >> 24 != 127:
        return OUTSIDE_127
    if number >> 8 == _REFUSALS_24 or number == _NOT_FOR_ADDRESSES:
        return REFUSED_BY_LIST
    if any(code.matches(number) for code in dns_list.refused):
        return REFUSED_BY_LIST
    if any(code.matches(number) for code in dns_list.codes):
        return ListStatus.LISTED
    return REFUSED_BY_LIST if number in _LIKELY_REFUSALS else ListStatus.NOT_LISTED


def is_refusal(dns_list: DnsList, answer: AddressesAnswer) -> bool:
    """Whether an answer contains a refusal, whatever else it contains."""
    if isinstance(answer, Reason):
        return False
    return any(version == 4 and _meaning(dns_list, number) == REFUSED_BY_LIST for version, number in answer)


def is_suspect(dns_list: DnsList, answer: AddressesAnswer) -> bool:
    """Whether an answer requires a self-test: it contains a refusal, or an address outside 127.0.0.0/8."""
    if isinstance(answer, Reason):
        return False
    return any(version != 4 or isinstance(_meaning(dns_list, number), str) for version, number in answer)


def explain_refusal(address: str) -> str:
    """Explains an address that is a refusal or lies outside 127.0.0.0/8, and what to do about it."""
    if address.startswith("127.255.255.") and (last := int(address.rpartition(".")[2])) in REFUSALS:
        return REFUSALS[last]
    if address == "127.0.1.255":
        return "a list of names was asked for an address; set `ask` to hostname, helo_name or sender_domain"
    if not address.startswith("127."):
        return "an answer outside 127.0.0.0/8: the resolver rewrites answers, or the zone was abandoned"
    return "the list does not answer you; see its operator's terms of use"
