"""One mail transaction as a log tells it, in the same form for every mail server.

Everything is bytes as the log has them, with escapes undone: nothing is said of their form, so escape them before they
go to a terminal, a page or a rule. A NamedTuple and not a dataclass, because one is made for every mail of the log and
a frozen dataclass takes four times as long to make.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from policyd.core.owners import NO_OWNER, Owner


class NameStatus(StrEnum):
    """How far the log tells the client's name."""

    VERIFIED = "verified"  # the name was checked both ways (FCrDNS)
    CLAIMED = "claimed"  # a PTR name that did not verify
    NONE = "none"  # a definite answer that there is no PTR record
    ERROR = "error"  # the look-up failed
    UNKNOWN = "unknown"  # the log does not say which: Postfix writes `unknown` for three of the above
    NOT_LOOKED_UP = "not looked up"  # the name was not asked for, as postscreen never does


class Outcome(StrEnum):
    """The result of a transaction."""

    DELIVERED = "delivered"  # to at least one recipient
    PASSED = "passed"  # let through by policyd or a filter; the log does not say what became of it
    DEFERRED = "deferred"
    REJECTED = "rejected"  # refused in the session, bounced, or discarded
    UNKNOWN = "unknown"  # the log ends, or the session did, before anything was decided


class Observation(NamedTuple):
    """One mail transaction.

    `time` is in Unix seconds, None if the line has no readable timestamp. `client_address` is in the form of
    the log, empty if it has none; `names` are lower case, without the trailing dot, all verified or all claimed as
    `name_status` says. `helo_name` is empty if the log does not tell it (Postfix logs it for refusals only).
    `sender` is None if the log tells none, and empty for the null sender. `by` is the program that decided, or the
    relay that answered, and `text` what it said. `log` is whose log it is: `postfix`, `sendmail` or `policyd`.
    """

    time: float | None
    client_address: bytes
    names: tuple[bytes, ...]
    name_status: NameStatus
    helo_name: bytes
    sender: bytes | None
    recipients: tuple[bytes, ...]
    sasl_username: bytes
    outcome: Outcome
    by: bytes
    text: bytes
    log: str
    lists: tuple[bytes, ...] = ()  # answers of DNS lists, as the decision log has them
    owner: Owner = NO_OWNER  # of the client's address, as the decision log has it; mail logs have none


# Recipients kept of one transaction: smtpd_recipient_limit is 1000 (postconf(5)), sendmail's default is higher but
# such mails are bulk whose first thousand say the same.
MAX_RECIPIENTS = 1000
