"""Finds a decision by its id, and makes its request and identity again, so that today's ruleset can decide them.

A postmaster reads the id in a bounce (`{id}` in a reply). The client's reverse DNS is taken from the log; DNS is not
asked. The request lacks attributes that the log does not have.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from policyd.core.identity import Identity, Reason, Status, given_identity
from policyd.core.protocol import REQUEST_TYPE, Request
from policyd.logs.decisions import DecisionCounts, decisions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from policyd.decision_log.reader import LoggedDecision

# Crockford's base 32 (https://www.crockford.com/base32.html) reads these letters as digits: people confuse them.
_ALIASES = bytes.maketrans(b"ILO", b"110")

# An id in a text; it is not part of a longer word.
_ID = re.compile(r"(?<![0-9A-Za-z])[0-9A-TV-Z]{8}(?![0-9A-Za-z])", re.IGNORECASE)
_ID_IN_PARENTHESES = re.compile(r"\(([0-9A-TV-Z]{8})\)", re.IGNORECASE)


def ids_in(text: str) -> list[str]:
    """Finds possible ids in a pasted text: words of eight characters. If some are in parentheses, returns only these.

    If the text is a single word, it counts as an id in any form. Words such as `rejected` have the form of an id, and
    are also returned: a search for them finds nothing.
    """
    text = text.strip()
    found = _ID_IN_PARENTHESES.findall(text) or _ID.findall(text)
    return [*dict.fromkeys(found or ([text] if len(text.split()) == 1 else []))]


def find(
    ids: Sequence[str], paths: Sequence[str], advance: Callable[[int], None] | None = None
) -> list[LoggedDecision]:
    """The decisions with one of these ids, in any spelling that Crockford's base 32 allows. Raises `LogError`."""
    wanted = {_canonical(text.encode("utf-8", "replace")) for text in ids}
    return [
        decision
        for batch in decisions(paths, DecisionCounts(), advance)
        for decision in batch
        if _canonical(decision.id) in wanted
    ]


def _canonical(decision_id: bytes) -> bytes:
    return decision_id.upper().translate(_ALIASES)


def request_of(decision: LoggedDecision) -> Request:
    """Returns the request of a decision, with the attributes that the log has."""
    attributes = {
        "request": REQUEST_TYPE,
        "protocol_state": decision.protocol_state,
        "client_address": decision.client_address,
        "client_name": decision.hostname or b"unknown",
        "reverse_client_name": decision.hostname or (decision.claimed[0] if decision.claimed else b"unknown"),
        "helo_name": decision.helo_name,
        "sender": decision.sender or b"",
        "recipient": decision.recipient,
        "sasl_username": decision.sasl_username,
        "instance": decision.instance,
        "queue_id": decision.queue_id,
    }
    return Request.of({name: value for name, value in attributes.items() if value})


# `verified` is left out, because it needs a host name.
_STATUSES = {status.value.encode(): status for status in Status if status is not Status.VERIFIED}
_REASONS = {reason.value.encode(): reason for reason in Reason}


def identity_of(decision: LoggedDecision) -> Identity | None:
    """Returns the client's identity from the log; None if the decision did not need it."""
    if decision.hostname:
        return given_identity(Status.VERIFIED, verified=(decision.hostname,), claimed=decision.claimed)
    status, reason = _STATUSES.get(decision.reverse_dns), _REASONS.get(decision.dns_error)
    return given_identity(status, claimed=decision.claimed, reason=reason) if status is not None else None
