"""Generated rulesets and requests with many matches, for property tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from policyd.config.problems import Report
from policyd.config.rules_reader import read_rules
from policyd.core.identity import Identity, Reason, Status
from policyd.core.protocol import Request

if TYPE_CHECKING:
    from pathlib import Path

    from policyd.config.written import RulesFile

ADDRESSES = ["192.0.2.1", "192.0.2.129", "198.51.100.1", "::ffff:192.0.2.1", "2001:db8::1", "2001:db8:1::1", "unknown"]
NETWORKS = ["192.0.2.0/24", "192.0.2.0/25", "192.0.2.1", "0.0.0.0/0", "198.51.100.0/24", "2001:db8::/32", "2001:db8::1"]
NAMES = ["a.example", "b.a.example", "c.b.a.example", "xa.example", "d.test"]
DOMAINS = [*NAMES, ".a.example", ".b.a.example", "example", "test"]
SENDERS = ["x@a.example", "x@b.a.example", "y@d.test", "root", "<>"]
EXPRESSIONS = ["^b", r"\.example$", "x", "^$", "."]
STATUSES = [status.value for status in Status]
ACTIONS = ["REJECT", "DEFER", "DUNNO", "DEFER_IF_PERMIT"]
STATES = ["RCPT", "MAIL", "CONNECT", "DATA"]

VALUES: dict[str, list[str]] = {
    "cidr": NETWORKS,
    "reverse_dns": STATUSES,
    "hostname": NAMES,
    "hostname_suffix": DOMAINS,
    "hostname_regex": EXPRESSIONS,
    "helo_name": [*NAMES, "word"],
    "helo_name_suffix": DOMAINS,
    "helo_name_regex": EXPRESSIONS,
    "sender": SENDERS,
    "sender_domain": DOMAINS,
    "sender_regex": EXPRESSIONS,
    "recipient": SENDERS[:-1],
    "recipient_domain": DOMAINS,
    "protocol_state": STATES,
    "sasl_username": ["", "alice"],
    "sasl_username_regex": EXPRESSIONS,
    "client_address": ADDRESSES[:3],
}

# Groups of related conditions, and all conditions.
GROUPS: list[tuple[str, ...]] = [
    ("client_address", "cidr"),
    ("hostname", "hostname_suffix", "reverse_dns"),
    ("hostname_regex", "reverse_dns", "cidr"),
    ("helo_name", "helo_name_suffix", "helo_name_regex"),
    ("sender", "sender_domain", "sender_regex", "protocol_state"),
    ("recipient", "recipient_domain", "protocol_state"),
    ("sasl_username", "sasl_username_regex", "cidr"),
    tuple(VALUES),
]


@st.composite
def conditions(draw: st.DrawFn, names: st.SearchStrategy[str], least: int) -> dict[str, list[str]]:
    chosen = draw(st.lists(names, min_size=least, max_size=3, unique=True))
    return {name: draw(st.lists(st.sampled_from(VALUES[name]), min_size=1, max_size=3, unique=True)) for name in chosen}


@st.composite
def rulesets(draw: st.DrawFn) -> dict[str, Any]:
    """The tree of a rules file. Many rules have the conditions of an earlier rule and more, so they are covered."""
    some = st.sampled_from(draw(st.sampled_from(GROUPS)))
    rules: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 5))):
        match = draw(conditions(some, 1))
        extends: bool = draw(st.booleans())
        if rules and extends:
            earlier: dict[str, Any] = draw(st.sampled_from(rules))
            match |= earlier["match"]
        rule = {"name": f"r{number}", "match": match, "action": draw(st.sampled_from(ACTIONS))}
        if draw(st.integers(0, 4)) == 0:
            exceptions = draw(conditions(some, 0))
            rule |= {"except": exceptions} if exceptions else {}
            rule |= draw(
                st.sampled_from([{}, {"mode": "observe"}, {"expires": "2026-01-01"}, {"expires": "2030-01-01"}])
            )
        rules.append(rule)
    return {"rules": rules, "default": draw(st.sampled_from(["DUNNO", "REJECT"]))}


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Requests that Postfix could send: no sender before MAIL, no recipient before RCPT."""
    state = draw(st.sampled_from(STATES))
    sender = draw(st.sampled_from(SENDERS)) if state != "CONNECT" else ""
    recipient = draw(st.sampled_from(SENDERS)) if state in {"RCPT", "DATA"} else ""
    attributes = {
        "protocol_state": state,
        "client_address": draw(st.sampled_from(ADDRESSES)),
        "helo_name": draw(st.sampled_from([*NAMES, "word", "", "b.a.example.", "A.EXAMPLE"])),
        "sender": "" if sender == "<>" else sender,
        "recipient": "" if recipient == "<>" else recipient,
        "sasl_username": draw(st.sampled_from(["", "alice", "bob"])),
    }
    return Request.of({name: value.encode() for name, value in attributes.items()})


@st.composite
def identities(draw: st.DrawFn) -> Identity:
    status = draw(st.sampled_from(Status))
    names = st.lists(st.sampled_from([name.encode() for name in NAMES]), min_size=1, max_size=2, unique=True)
    some = tuple(sorted(draw(names)))
    match status:
        case Status.VERIFIED:
            return Identity(status, some, tuple(sorted(draw(names))))
        case Status.MISMATCH:
            return Identity(status, (), some)
        case Status.MISSING:
            return Identity(status)
        case _:
            known = draw(st.booleans())
            return Identity(status, (), some if known or draw(st.booleans()) else (), Reason.SERVFAIL, known)


def load_tree(tree: dict[str, Any], folder: Path) -> tuple[RulesFile, Report]:
    """Writes the tree to a rules file, and reads the file."""
    path = folder / "rules.yaml"
    path.write_text(json.dumps(tree))  # which is YAML
    report = Report()
    rules_file = read_rules(str(path), report)
    assert rules_file is not None
    return rules_file, report
