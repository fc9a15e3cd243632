"""The text of an answer: the template of an action, filled in for one request."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from policyd.core.owners import NO_OWNER
from policyd.core.ruleset import DEFAULT_TEXT, MAX_TEXT, Verb

if TYPE_CHECKING:
    from policyd.core.engine import Decision
    from policyd.core.identity import Identity
    from policyd.core.protocol import Request

# Codes that Postfix would parse at the front of a text (RFC 3463 section 2; RFC 5321 section 4.2).
_CODE = re.compile(r"[245](\.[0-9]{1,3}\.[0-9]{1,3}|[0-9]{2})(?![0-9])")

_UNSAFE = re.compile(r"[^ -~]")


def reply_text(decision: Decision, request: Request, identity: Identity | None, decision_id: bytes) -> bytes:
    """Returns the code and text of an answer: printable ASCII, at most MAX_TEXT bytes; empty if there is neither.

    `identity` is the client's identity, even if the decision did not need it. In a client's text, `?` replaces
    everything that is not printable ASCII. If the text begins like a code, which Postfix would parse, a code of policyd
    is put in front.
    """
    if not decision.code and not decision.text:
        return b""
    if decision.code and len(decision.text) == 1:  # no placeholder
        return f"{decision.code} {decision.text[0]}"[:MAX_TEXT].rstrip().encode("ascii")
    text = "".join(
        piece if place % 2 == 0 else _fill(piece, decision, request, identity, decision_id)
        for place, piece in enumerate(decision.text)
    )
    code = decision.code
    if not code and _CODE.match(text):
        code = "5.7.1" if decision.verb is Verb.REJECT else "4.7.1"  # as Postfix does by default (access(5))
    return f"{code} {text or DEFAULT_TEXT}".lstrip()[:MAX_TEXT].rstrip().encode("ascii")


def _fill(name: str, decision: Decision, request: Request, identity: Identity | None, decision_id: bytes) -> str:
    match name:
        case "list":
            return decision.listed_by or "unknown"
        case "rule":
            return decision.rule_name
        case "id":
            return decision_id.decode("ascii")
        case "reverse_dns":
            return decision.identity.status if decision.identity is not None else "unknown"
        case "hostname":
            value = identity.hostname if identity is not None else b""
        case "count":
            value = b"%d" % decision.counter_value if decision.counter_value is not None else b""
        case "asn" | "country":
            owner = decision.owner or NO_OWNER
            return (owner.country if name == "country" else f"AS{owner.asn}" if owner.asn else "") or "unknown"
        case _:
            value = request.get(name)
    return _UNSAFE.sub("?", value.decode("utf-8", "replace")) or "unknown"
