"""One mail transaction from a log, in the same form for every mail server.

Values are the log's bytes, with escapes undone. They may contain anything, so escape them before they go to a terminal,
a page or a rule. An Observation is a NamedTuple and not a dataclass, because each mail of a log makes one, and an
instance of a frozen dataclass takes four times as long to make.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from policyd.core.owners import NO_OWNER, Owner


class NameStatus(StrEnum):
    """Status of the client's name according to a log."""

    VERIFIED = "verified"  # the name was checked both ways (FCrDNS)
    CLAIMED = "claimed"  # the PTR name did not verify
    NONE = "none"  # DNS answered that there is no PTR record
    ERROR = "error"  # the lookup failed
    UNKNOWN = "unknown"  # the log does not say which: Postfix writes `unknown` for three of the above
    NOT_LOOKED_UP = "not looked up"  # the name was not looked up; postscreen never looks it up


class MailOutcome(StrEnum):
    """The result of a transaction."""

    DELIVERED = "delivered"  # to at least one recipient
    PASSED = "passed"  # let through by policyd or a filter; the final outcome is not in the log
    DEFERRED = "deferred"
    REJECTED = "rejected"  # refused in the session, bounced, or discarded
    UNKNOWN = "unknown"  # the log or the session ended before a decision


class Observation(NamedTuple):
    """One mail transaction.

    `time` is in Unix seconds, None if the line has no readable timestamp. `client_address` is in the form of the log,
    empty if it has none; `names` are lower case, without the trailing dot, all verified or all claimed as `name_status`
    says. `helo_name` is empty if the log does not have it (Postfix logs it only for refusals). `sender` is None if the
    log has none, and empty for the null sender. `by` is the program or check that decided, or the relay that answered,
    and `text` its answer. `log` is the log's program: `postfix`, `sendmail` or `policyd`.
    """

    time: float | None
    client_address: bytes
    names: tuple[bytes, ...]
    name_status: NameStatus
    helo_name: bytes
    sender: bytes | None
    recipients: tuple[bytes, ...]
    sasl_username: bytes
    outcome: MailOutcome
    by: bytes
    text: bytes
    log: str
    lists: tuple[bytes, ...] = ()  # answers of DNS lists, as the decision log has them
    owner: Owner = NO_OWNER  # from the decision log; mail logs have none


# Maximum number of recipients kept of one transaction: smtpd_recipient_limit is 1000 (postconf(5)). sendmail's default
# is higher, but the first thousand recipients of such bulk mail are enough.
MAX_RECIPIENTS = 1000
