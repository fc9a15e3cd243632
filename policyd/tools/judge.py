"""Judges transactions of a log by a ruleset: the decision that the daemon would have given."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from policyd.core.engine import Decision, decide
from policyd.core.facts import NOTHING_KNOWN, Facts, Needs
from policyd.core.identity import Identity, Status, told_identity
from policyd.core.protocol import Request
from policyd.logs.transaction import Observation, Outcome, Standing

if TYPE_CHECKING:
    import datetime

    from policyd.core.index import Ruleset

# The mails that somebody would miss.
GOT_THROUGH = frozenset({Outcome.DELIVERED, Outcome.PASSED})


class Assumption(StrEnum):
    """What to take a client for of which the log says only `unknown`: Postfix writes that for all three."""

    MISSING = "missing"
    ERROR = "error"
    MISMATCH = "mismatch"


class Judge:
    """Decides observations under one ruleset, as it stands on `today` (UTC).

    With `by_recipient`, a mail to several is decided for each of them.
    """

    def __init__(self, ruleset: Ruleset, today: datetime.date, assumption: Assumption, *, by_recipient: bool) -> None:
        self._ruleset = ruleset
        self._today = today
        self._assumption = assumption
        self._by_recipient = by_recipient

    def decisions(self, seen: Observation) -> list[Decision | None]:
        """One decision for each recipient, or one for all of them.

        None: the decision depends on the client's name, which was not looked up.
        """
        recipients = seen.recipients if self._by_recipient and seen.recipients else seen.recipients[:1] or (b"",)
        identity = _identity(seen, self._assumption)
        facts = Facts(identity) if identity is not None else NOTHING_KNOWN
        return [self._decide(_request(seen, recipient), facts) for recipient in recipients]

    def _decide(self, request: Request, facts: Facts) -> Decision | None:
        decision = decide(self._ruleset, request, facts, self._today)
        return None if isinstance(decision, Needs) else decision


def _request(seen: Observation, recipient: bytes) -> Request:
    """What Postfix would have asked. Without a sender it was refused before MAIL."""
    state = b"RCPT" if seen.sender is not None else b"HELO" if seen.helo_name else b"CONNECT"
    name = seen.names[0] if seen.names else b"" if seen.standing is Standing.NOT_LOOKED_UP else b"unknown"
    return Request.of(
        {
            "request": b"smtpd_access_policy",
            "protocol_state": state,
            "client_address": seen.client_address,
            "client_name": b"unknown" if seen.names and seen.standing is not Standing.VERIFIED else name,
            "reverse_client_name": name,
            "helo_name": seen.helo_name,
            "sender": seen.sender or b"",
            "recipient": recipient,
            "sasl_username": seen.sasl_username,
        }
    )


# The status of a client by what the log says of its name.
_STATUSES = {
    Standing.VERIFIED: Status.VERIFIED,
    Standing.CLAIMED: Status.MISMATCH,
    Standing.NONE: Status.MISSING,
    Standing.ERROR: Status.ERROR,
}


def _identity(seen: Observation, assumption: Assumption) -> Identity | None:
    if seen.standing is Standing.NOT_LOOKED_UP:
        return None
    status = _STATUSES.get(seen.standing)
    if status is None:
        return told_identity(Status(assumption))
    if status is Status.VERIFIED:
        return told_identity(status, verified=seen.names)
    return told_identity(status, claimed=seen.names)
