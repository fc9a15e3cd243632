"""Words from logs and other systems, with policyd's word for each.

`did_you_mean` finds typing errors; these words do not resemble policyd's word, or resemble a wrong one.
"""

from __future__ import annotations

# Words for attributes of the policy protocol.
_ATTRIBUTES = {
    "client": "client_address",
    "client_ip": "client_address",
    "clientip": "client_address",
    "ip": "client_address",
    "ip_address": "client_address",
    "address": "client_address",
    "addr": "client_address",
    "remote_addr": "client_address",
    "peer": "client_address",
    "from": "sender",
    "mail_from": "sender",
    "mailfrom": "sender",
    "envelope_from": "sender",
    "to": "recipient",
    "rcpt": "recipient",
    "rcpt_to": "recipient",
    "envelope_to": "recipient",
    "helo": "helo_name",
    "ehlo": "helo_name",
    "helo_hostname": "helo_name",
    "state": "protocol_state",
    "stage": "protocol_state",
    "proto": "protocol_name",
    "login": "sasl_username",
    "user": "sasl_username",
    "username": "sasl_username",
    "auth": "sasl_username",
    "qid": "queue_id",
}

# Words for DNS answers, which are not attributes.
_NAMES = frozenset({"hostname", "host", "client_hostname", "verified", "claimed", "ptr", "fcrdns"})
_STATUS = frozenset({"rdns", "reverse_dns", "revdns", "iprev"})

# Words for conditions. The names of some conditions differ from those of the attributes that they compare.
_CONDITIONS = {
    **_ATTRIBUTES,
    **{word: "cidr" for word, attribute in _ATTRIBUTES.items() if attribute == "client_address"},
    **dict.fromkeys(_STATUS, "reverse_dns"),
    **dict.fromkeys(_NAMES, "hostname"),
    "network": "cidr",
    "net": "cidr",
    "networks": "cidr",
    "domain": "hostname_suffix",
    "suffix": "hostname_suffix",
    "from_domain": "sender_domain",
    "to_domain": "recipient_domain",
    "claimed": "hostname, which also uses claimed names if the rule blocks",
}


def meant_attribute(word: str) -> str:
    """Suggests the attribute of a request for an unknown word; empty if the word is not listed."""
    return _hint(_ATTRIBUTES.get(word.lower()))


def meant_given(word: str) -> str:
    """Suggests the key under `given` for an unknown word; empty if the word is not listed."""
    lower = word.lower()
    if lower in _STATUS:
        return _hint("reverse_dns")
    return _hint("hostname") if lower in _NAMES else meant_attribute(word)


def meant_option(word: str) -> str:
    """Suggests the option of `policyd explain` that replaces an answer of DNS; empty if the word is not listed."""
    lower = word.lower()
    if lower in _STATUS:
        return "; give an answer of DNS with --reverse-dns STATUS"
    if lower == "claimed":
        return "; give an answer of DNS with --reverse-dns mismatch --hostname NAME"
    return "; give an answer of DNS with --hostname NAME" if lower in _NAMES else ""


def meant_condition(word: str) -> str:
    """Suggests the condition for an unknown word; empty if the word is not listed."""
    lower = word.lower()
    for ending in ("_regex", ""):
        stem = lower.removesuffix(ending)
        meant = _CONDITIONS.get(stem)
        if meant is not None and lower.endswith(ending):
            return _hint(f"{meant}{ending}" if ending and meant != "cidr" else meant)
    return ""


def _hint(meant: str | None) -> str:
    return "" if meant is None else f"; did you mean '{meant}'?" if " " not in meant else f"; write {meant}"
