"""Computes how long mails would have waited for greylisting, from the tries in a log.

A mail is a sender and a recipient. It waits from its first deferred try to the try that passes. If the log has no such
try, there are two cases. A mail that was delivered at once has an unknown wait, which depends on the retry interval of
the sending server. Any other mail counts as one that never came back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policyd.core.facts import Greylisted
from policyd.logs.counting import mail_key
from policyd.tools.judge import COUNTS_AS_DELIVERED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policyd.core.engine import Decision
    from policyd.logs.transaction import Observation

# Maximum number of mails that are followed, some 100 MB.
_MAX_MAILS = 500_000


@dataclass(slots=True)
class _Mail:
    first: float | None  # Unix seconds of the first deferred try
    delivered: bool = False  # the log shows a delivery, at the first try or later
    is_back: bool = False  # a later try would have passed greylisting


@dataclass(slots=True)
class Waits:
    """The mails that greylisting would have deferred.

    `longest` is the longest known wait in seconds; None if the log has no try that passes after a wait.
    """

    longest: float | None = None
    uncounted: bool = False  # more mails than could be followed
    _mails: dict[int, _Mail] = field(default_factory=dict)

    @property
    def deferred(self) -> int:
        """Mails that would have been deferred."""
        return len(self._mails)

    @property
    def delivered(self) -> int:
        """Deferred mails that were delivered, at once or later."""
        return sum(mail.delivered for mail in self._mails.values())

    @property
    def never_back(self) -> int:
        """Deferred mails that were not delivered, and for which the log shows no retry after the wait."""
        return sum(not (mail.delivered or mail.is_back) for mail in self._mails.values())

    def add(self, seen: Observation, recipients: Sequence[bytes], decisions: Sequence[Decision | None]) -> None:
        """Follows one transaction; `decisions` has the decision for each recipient."""
        for recipient, decision in zip(recipients, decisions, strict=True):
            if decision is None or decision.greylist is None:
                continue
            key = mail_key(seen.sender or b"", recipient)
            mail = self._mails.get(key)
            if decision.greylist.deferred:
                if mail is None:
                    if len(self._mails) >= _MAX_MAILS:
                        self.uncounted = True
                        continue
                    mail = self._mails[key] = _Mail(seen.time)
            elif mail is None:
                continue
            elif not mail.is_back:
                mail.is_back = True
                if decision.greylist is Greylisted.PASSED and seen.time is not None and mail.first is not None:
                    self.longest = max(self.longest or 0.0, seen.time - mail.first)
            mail.delivered |= seen.outcome in COUNTS_AS_DELIVERED
