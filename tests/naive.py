"""Evaluates a ruleset in the plainest way, straight from the ruleset reference.

It has no index and shares no code with policyd: it tries every rule in order, and computes every condition from its
values. Tests compare the engine with it, and the daemon under load and faults.

A rule is `{"name", "match", "except", "action", "mode", "expires"}`. Its conditions are those of a rules file, but
every value is a list of strings. `Dns` is a client's reverse DNS.
"""

import datetime
import ipaddress
import re
from dataclasses import dataclass
from typing import Any

YES, NO, UNKNOWN = "yes", "no", "unknown"


@dataclass(frozen=True)
class Dns:
    status: str = "missing"
    verified: tuple[str, ...] = ()
    claimed: tuple[str, ...] = ()
    names_known: bool = True


@dataclass(frozen=True)
class Answer:
    verb: str
    rule: str
    observed: tuple[str, ...]
    downgraded: bool
    dns_needed: bool


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if "%" in text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address


def network_of(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    network = ipaddress.ip_network(text)
    if network.version == 6 and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
        return ipaddress.ip_network((int(network.network_address.ipv4_mapped), network.prefixlen - 96))
    return network


def is_under(name: str, suffix: str) -> bool:
    if suffix.startswith("."):
        return name.endswith(suffix)
    return name == suffix or name.endswith("." + suffix)


def name_holds(kind: str, name: str, value: str) -> bool:
    if not name:
        return False
    if kind == "":
        return name == value
    if kind == "suffix":
        return is_under(name, value)
    return re.search(value, name, re.IGNORECASE) is not None


def folded(name: str) -> str:
    return name.lower().removesuffix(".")


def plain_holds(condition: str, values: list[str], request: dict[str, str]) -> bool:
    """Whether a condition that needs no DNS holds."""
    if condition == "cidr":
        address = address_of(request.get("client_address", ""))
        return address is not None and any(
            address.version == network.version and address in network for network in map(network_of, values)
        )
    attribute, kind = condition, ""
    for suffix in ("regex", "suffix", "domain"):
        if condition.endswith("_" + suffix):
            attribute, kind = condition.removesuffix("_" + suffix), suffix
    text = request.get(attribute, "")
    if attribute == "sender" and request.get("protocol_state") not in {"MAIL", "RCPT", "DATA", "END-OF-MESSAGE"}:
        return False
    if attribute == "recipient" and not text:
        return False
    if kind == "regex":
        return any(re.search(value, text, re.IGNORECASE) for value in values)
    if kind == "domain":
        domain = text.rpartition("@")[2] if "@" in text else ""
        if not domain or domain.startswith("["):
            return False
        return any(is_under(folded(domain), folded(value)) for value in values)
    if attribute == "helo_name":
        return any(name_holds(kind, folded(text), folded(value)) for value in values)
    if attribute == "sender" and not text:
        text = "<>"
    return text.lower() in [value.lower() for value in values]


def dns_holds(condition: str, values: list[str], dns: Dns, *, exempting: bool) -> str:
    if condition == "reverse_dns":
        if dns.status != "error" or not exempting or "error" in values:
            return YES if dns.status in values else NO
        possible = {"verified", "mismatch"} if dns.names_known else {"verified", "mismatch", "missing"}
        return UNKNOWN if possible & set(values) else NO
    kind = condition.removeprefix("hostname").removeprefix("_")
    seen = dns.verified if dns.verified or exempting else dns.claimed
    if dns.status == "error" and exempting:
        if dns.names_known and not any(name_holds(kind, n, v) for n in dns.claimed for v in values):
            return NO
        return UNKNOWN
    return YES if any(name_holds(kind, name, value) for name in seen for value in values) else NO


def one_list_holds(name: str, lists: "Lists", dns: Dns, *, exempting: bool) -> str:
    """Whether `listed` holds for one list, where it lets clients through (`exempting`) or blocks them."""
    answer = lists.answers[name]
    if name not in lists.by_hostname or dns.status == "verified":
        return answer
    if dns.status == "error":
        if not dns.claimed or (exempting and not dns.names_known):
            return UNKNOWN
        return UNKNOWN if exempting and answer == YES else answer
    return answer if dns.claimed and not exempting else NO


def listed_holds(value: "Listed", lists: "Lists", dns: Dns, *, exempting: bool) -> tuple[str, bool]:
    """Whether the condition `listed` holds, and whether that rests on names that could not be verified."""
    answers = {name: one_list_holds(name, lists, dns, exempting=exempting) for name in value.of}
    listed = [name for name in value.of if answers[name] == YES]
    sure = [name for name in listed if name not in lists.by_hostname or dns.status != "error"]
    if len(listed) >= value.at_least:
        return YES, len(sure) < value.at_least
    unknown = [name for name in value.of if answers[name] == UNKNOWN]
    return (UNKNOWN if exempting and len(listed) + len(unknown) >= value.at_least else NO), False


@dataclass(frozen=True)
class Listed:
    """A value of `listed`: the DNS lists, and how many of them must list the client."""

    of: tuple[str, ...]
    at_least: int = 1


@dataclass(frozen=True)
class Lists:
    """The answer of each DNS list (yes, no or unknown), and the lists that policyd asks about host names."""

    answers: dict[str, str]
    by_hostname: frozenset[str] = frozenset()


def needs_dns(condition: str) -> bool:
    return condition == "reverse_dns" or condition.startswith("hostname")


def decide(
    rules: list[dict[str, Any]],
    default: str,
    request: dict[str, str],
    dns: Dns,
    today: datetime.date,
    lists: Lists | None = None,
) -> Answer:
    lists = lists or Lists({})
    observed: list[str] = []
    dns_needed = doubt_above = False
    for rule in rules:
        verb = rule["action"].split()[0]
        exempting = verb == "DUNNO"
        if rule.get("expires") and today >= rule["expires"]:
            continue
        match, exceptions = dict(rule["match"]), dict(rule.get("except", {}))
        match_listed, except_listed = match.pop("listed", None), exceptions.pop("listed", None)
        if not all(plain_holds(c, values, request) for c, values in match.items() if not needs_dns(c)):
            continue
        if any(plain_holds(c, values, request) for c, values in exceptions.items() if not needs_dns(c)):
            continue
        matched = [dns_holds(c, v, dns, exempting=exempting) for c, v in match.items() if needs_dns(c)]
        excepted = [dns_holds(c, v, dns, exempting=not exempting) for c, v in exceptions.items() if needs_dns(c)]
        by_name = bool(matched)
        if match_listed:
            in_list, unverified = listed_holds(match_listed, lists, dns, exempting=exempting)
            matched.append(in_list)
            by_name = by_name or unverified
        dns_needed = dns_needed or bool(matched or excepted)
        if except_listed:
            out_list, unverified = listed_holds(except_listed, lists, dns, exempting=not exempting)
            if out_list == YES and not unverified:
                continue
            excepted.append(out_list)
        if NO in matched:
            continue
        doubt = UNKNOWN in matched or UNKNOWN in excepted or bool(dns.status == "error" and by_name and not exempting)
        if YES in excepted:
            if not (exempting and dns.status == "error"):
                continue
            doubt = True
        if rule.get("mode") == "observe":
            if not (exempting and doubt):
                observed.append(rule["name"])
            continue
        if exempting and doubt:
            doubt_above = True
            continue
        downgraded = verb == "REJECT" and (doubt or doubt_above)
        return Answer("DEFER" if downgraded else verb, rule["name"], tuple(observed), downgraded, dns_needed)
    downgraded = default == "REJECT" and doubt_above
    return Answer("DEFER" if downgraded else default, "default", tuple(observed), downgraded, dns_needed)
