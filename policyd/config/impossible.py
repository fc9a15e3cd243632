"""Whether a rule's match can hold for any request at all: one that cannot is a mistake, not a rule.

Only what is certain is said; a match that this passes may still never come true.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import re2

from policyd.config.conditions import PROTOCOL_STATES, STATES_WITHOUT_RECIPIENT
from policyd.config.problems import quoted
from policyd.core.address import parse_address
from policyd.core.identity import Status
from policyd.core.index import (
    Networks,
    decode_for_expressions,
    domain_of,
    expression_options,
    fold_name,
)
from policyd.core.ruleset import SENDER_STATES, Kind, Subject, Verb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policyd.config.ruleset import WrittenCondition

# Combinations of exact values with other conditions are tried one by one up to here; nobody writes a long list of
# addresses and means none of them.
MAX_TRIED = 1000


def why_impossible(verb: Verb | None, match: list[WrittenCondition]) -> tuple[WrittenCondition, str] | None:
    """The condition to point at, and why the match cannot hold together with it; None if it may."""
    return _identity(verb, match) or _states(match) or _same_subject(match)


def _identity(verb: Verb | None, match: list[WrittenCondition]) -> tuple[WrittenCondition, str] | None:
    """A host name, and a status under which there is none to see."""
    named = next((one for one in match if one.condition.subject == Subject.HOSTNAME), None)
    status = next((one for one in match if one.condition.subject == Subject.REVERSE_DNS), None)
    if named is None or status is None:
        return None
    wanted = _entries(status)
    if not wanted:
        return None
    name = named.condition.name
    if verb is Verb.DUNNO and Status.VERIFIED not in wanted:
        return status, f"in a DUNNO rule {name} sees verified names only, and reverse_dns excludes 'verified'"
    if wanted <= {Status.MISSING}:
        return status, f"a client whose reverse DNS is missing has no name that {name} could see"
    return None


def _states(match: list[WrittenCondition]) -> tuple[WrittenCondition, str] | None:
    """A sender or recipient, in states that have none."""
    state = next((one for one in match if one.condition.name == "protocol_state"), None)
    if state is None:
        return None
    states = {entry.upper().decode("utf-8", "replace") for entry in _entries(state) if isinstance(entry, bytes)}
    if not states or not states <= set(PROTOCOL_STATES):
        return None  # what is no state is a problem of its own
    for one in match:
        subject = one.condition.subject
        if subject == "sender" and not any(name.encode() in SENDER_STATES for name in states):
            return state, f"{one.condition.name} says something only in MAIL, RCPT, DATA and END-OF-MESSAGE"
        if subject == "recipient" and states <= STATES_WITHOUT_RECIPIENT:
            return state, f"there is no recipient yet for {one.condition.name} to see"
    return None


def _same_subject(match: list[WrittenCondition]) -> tuple[WrittenCondition, str] | None:
    """Exact values of an attribute, none of which another condition on the attribute accepts."""
    for exact in match:
        subject = exact.condition.subject
        if subject == Subject.HOSTNAME or exact.condition.kind not in {Kind.NAME, Kind.VALUE}:
            continue  # a client may have several names, each of which satisfies another condition
        others = [one for one in match if one is not exact and one.condition.subject == subject]
        values = _entries(exact)
        if not others or not values or len(values) > MAX_TRIED:
            continue
        if not any(_may_accept(value, exact, others) for value in values):
            names = " and ".join(one.condition.name for one in others)
            shown = next(iter(exact.condition.values))
            return exact, f"no {exact.condition.name} such as {quoted(shown)} satisfies {names}"
    return None


def _may_accept(value: bytes | str, exact: WrittenCondition, others: list[WrittenCondition]) -> bool:
    # Outside ASCII, and for A-labels, a request may carry the name in another form than the one compared here.
    if not isinstance(value, bytes) or not value.isascii() or b"xn--" in value:
        return True
    return all(_accepts(value, exact.condition.kind, other) for other in others)


def _accepts(value: bytes, kind: Kind, other: WrittenCondition) -> bool:
    match other.condition.kind:
        case Kind.NETWORK:
            address = parse_address(value)
            return address is not None and _in_networks(*address, other)
        case Kind.DOMAIN:
            name = fold_name(value) if kind is Kind.NAME else domain_of(value)
            return bool(name) and _is_under(name, _entries(other))
        case Kind.EXPRESSION:
            # A name is compared without its trailing dot, but an expression sees it.
            texts = [value, value + b"."] if kind is Kind.NAME else [b"" if value == b"<>" else value]
            return any(_finds(expression, text) for expression in _entries(other) for text in texts)
        case _:
            return True


def _finds(expression: bytes | str, text: bytes) -> bool:
    written = expression if isinstance(expression, str) else expression.decode()
    return re2.search(written, decode_for_expressions(text).decode(), expression_options()) is not None


def _in_networks(version: int, number: int, other: WrittenCondition) -> bool:
    for networks in other.collections:
        if not isinstance(networks, Networks):
            continue
        if version == 4:
            if any(number >> 32 - (one & 63) == (one >> 6) >> 32 - (one & 63) for one in networks.v4):
                return True
        elif any(number >> 128 - (one & 255) == (one >> 8) >> 128 - (one & 255) for one in networks.v6):
            return True
    return False


def _is_under(name: bytes, domains: Iterable[bytes | str]) -> bool:
    known = set(domains)
    if name in known:
        return True
    labels = name.split(b".")
    parents = (b".".join(labels[start:]) for start in range(1, len(labels)))
    return any(parent in known or b"." + parent in known for parent in parents)


def _entries(written: WrittenCondition) -> set[bytes | str]:
    return {entry for collection in written.collections if not isinstance(collection, Networks) for entry in collection}
