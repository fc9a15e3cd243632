"""Finds rules whose match cannot hold for any request.

Reports only what is certain; a match that passes may still never hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import re2

from policyd.config.conditions import PROTOCOL_STATES, STATES_WITHOUT_RECIPIENT
from policyd.config.problems import quoted
from policyd.core.address import parse_address
from policyd.core.identity import Status
from policyd.core.lookups import expression_options
from policyd.core.normalize import decode_for_expressions, domain_of, fold_name
from policyd.core.protocol import SENDER_STATES
from policyd.core.ruleset import Kind, Subject, Verb
from policyd.core.tables import LongList, Networks
from policyd.tables.build import plain_entries

if TYPE_CHECKING:
    from collections.abc import Callable

    from policyd.config.written import WrittenCondition

# Maximum number of exact values tried with a rule's other conditions, and of pairs of a value and an expression. A
# longer list is unlikely to be wrong as a whole; a pair takes 20 us, and hundreds of rules may share the list.
MAX_TRIED = 100


def why_impossible(verb: Verb | None, match: list[WrittenCondition]) -> tuple[WrittenCondition, str] | None:
    """Returns the condition at which an error points, and why the match cannot hold; None if no reason was found."""
    return _identity(verb, match) or _states(match) or _same_subject(match)


def _identity(verb: Verb | None, match: list[WrittenCondition]) -> tuple[WrittenCondition, str] | None:
    """Finds a condition on the host name beside a status without a host name."""
    named = next((condition for condition in match if condition.condition.subject == Subject.HOSTNAME), None)
    status = next((condition for condition in match if condition.condition.subject == Subject.REVERSE_DNS), None)
    if named is None or status is None:
        return None
    wanted = _entries(status)
    if not wanted:
        return None
    name = named.condition.name
    if verb is Verb.DUNNO and Status.VERIFIED not in wanted:
        return status, f"in a DUNNO rule {name} sees verified names only, and reverse_dns excludes 'verified'"
    if wanted <= {Status.MISSING}:
        return status, f"a client whose reverse DNS is missing has no name for {name} to compare"
    return None


def _states(match: list[WrittenCondition]) -> tuple[WrittenCondition, str] | None:
    """Finds a condition on the sender or recipient beside states in which Postfix does not send it."""
    state = next((condition for condition in match if condition.condition.name == "protocol_state"), None)
    if state is None:
        return None
    states = {entry.upper().decode("utf-8", "replace") for entry in _entries(state) if isinstance(entry, bytes)}
    if not states or not states <= set(PROTOCOL_STATES):
        return None  # a word that is not a state is reported elsewhere
    for condition in match:
        subject = condition.condition.subject
        if subject == "sender" and not any(name.encode() in SENDER_STATES for name in states):
            return state, f"{condition.condition.name} says something only in MAIL, RCPT, DATA and END-OF-MESSAGE"
        if subject == "recipient" and states <= STATES_WITHOUT_RECIPIENT:
            return state, f"{condition.condition.name} needs a recipient, which is not known before RCPT"
    return None


def _same_subject(match: list[WrittenCondition]) -> tuple[WrittenCondition, str] | None:
    """Finds exact values of an attribute that another condition on the attribute never accepts."""
    for exact in match:
        subject = exact.condition.subject
        if subject == Subject.HOSTNAME or exact.condition.kind not in {Kind.NAME, Kind.VALUE}:
            continue  # a client may have several host names, each of which satisfies a different condition
        others = [condition for condition in match if condition is not exact and condition.condition.subject == subject]
        if not others or any(isinstance(entries, LongList) for entries in exact.collections):
            continue
        values = _entries(exact)
        if not values or len(values) > MAX_TRIED:
            continue
        accepts = [_acceptor(exact.condition.kind, other, values) for other in others]
        if not any(_may_accept(value, accepts) for value in values):
            names = " and ".join(other.condition.name for other in others)
            shown = next(iter(exact.condition.values))
            return exact, f"no {exact.condition.name} such as {quoted(shown)} satisfies {names}"
    return None


Accepts: TypeAlias = "Callable[[bytes], bool]"


def _may_accept(value: bytes | str, accepts: list[Accepts]) -> bool:
    # Outside ASCII, and for A-labels, a request may carry the name in another form than the one compared here.
    if not isinstance(value, bytes) or not value.isascii() or b"xn--" in value:
        return True
    return all(accept(value) for accept in accepts)


def _acceptor(kind: Kind, other: WrittenCondition, values: set[bytes | str]) -> Accepts:
    """Returns a function that says whether another condition may hold for a value of a condition of this kind.

    The slow work is done here, once, not for each value.
    """
    match other.condition.kind:
        case Kind.NETWORK:
            return _network_acceptor(other, values)
        case Kind.DOMAIN:
            name_of = fold_name if kind is Kind.NAME else domain_of
            names = {name_of(value) for value in values if isinstance(value, bytes)}
            known = _entries_among({parent for name in names for parent in _covering(name)}, other)
            return lambda value: bool(name := name_of(value)) and not known.isdisjoint(_covering(name))
        case Kind.EXPRESSION if len(values) * len(_entries(other)) <= MAX_TRIED:
            return _expression_acceptor(kind, other)
        case _:
            return lambda _: True


def _expression_acceptor(kind: Kind, other: WrittenCondition) -> Accepts:
    options = expression_options()
    expressions = [re2.compile(entry, options) for entry in _entries(other)]

    def accepts(value: bytes) -> bool:
        # A name is compared without its trailing dot, but an expression sees it.
        values = [value, value + b"."] if kind is Kind.NAME else [b"" if value == b"<>" else value]
        texts = [decode_for_expressions(form).decode() for form in values]
        return any(expression.search(text) is not None for expression in expressions for text in texts)

    return accepts


def _network_acceptor(other: WrittenCondition, values: set[bytes | str]) -> Accepts:
    addresses = (parse_address(value) for value in values if isinstance(value, bytes))
    known = _entries_among(
        {network for address in addresses if address is not None for network in _networks_of(*address)}, other
    )

    def accepts(value: bytes) -> bool:
        address = parse_address(value)
        return address is not None and not known.isdisjoint(_networks_of(*address))

    return accepts


def _networks_of(version: int, address: int) -> set[tuple[int, int]]:
    """Returns all networks that contain an address, each as its IP version and the network as in `Networks`."""
    width, bits = (32, 6) if version == 4 else (128, 8)
    return {(version, (address >> width - n << width - n) << bits | n) for n in range(width + 1)}


def _covering(name: bytes) -> set[bytes]:
    """Returns all entries that a name satisfies, because it is the entry or lies under it."""
    labels = name.split(b".")
    parents = [b".".join(labels[start:]) for start in range(1, len(labels))]
    return {name, *parents, *(b"." + parent for parent in parents)}


def _entries_among(wanted: set[Any], other: WrittenCondition) -> set[Any]:
    """The names, or networks as in `_networks_of`, that are entries of a condition."""
    found: set[Any] = set()
    for collection in other.collections:
        for block in collection.read() if isinstance(collection, LongList) else (collection,):
            if isinstance(block, Networks):
                of_version = {version: {packed for v, packed in wanted if v == version} for version in (4, 6)}
                found |= {(4, packed) for packed in of_version[4].intersection(block.v4)}
                found |= {(6, packed) for packed in of_version[6].intersection(block.v6)}
            else:
                found |= wanted.intersection(block)
    return found


def _entries(written: WrittenCondition) -> set[bytes | str]:
    """Returns all entries of a condition that has no networks."""
    collections = map(plain_entries, written.collections)
    return {entry for collection in collections if not isinstance(collection, Networks) for entry in collection}
