"""Decides whether a refusal is evidence against the client, and numbers the reasons.

An unknown user, a full mailbox, greylisting or a busy server are not reasons about the client: they affect a large
provider as well as a spammer. Sources: RFC 3463 for the classes of enhanced status codes; the texts of Postfix,
sendmail, Dovecot and the common greylisting daemons.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from policyd.logs.transaction import MailOutcome
from policyd.tools.display import shown

if TYPE_CHECKING:
    from policyd.logs.transaction import Observation

# Maximum number of reasons; a text that differs from mail to mail must not fill memory.
_MAX_REASONS = 1000

# Maximum number of characters of a reason that are shown.
_MAX_LENGTH = 80

# Programs that refuse in the session, beside sendmail's rulesets (`check_...`) and Postfix's `header_checks` and
# `body_checks`. Any other name is a relay, which refuses the mail later.
_SESSION = frozenset({b"smtpd", b"milter", b"postscreen", b"cleanup", b"proxy", b"policyd", b"sendmail"})

# Near relays: none (as for discard(8)), this host, or a filter on this host or in a private network.
_NEAR_RELAY = re.compile(rb"none$|(?:local|[^\[]*\[(?:127\.|10\.|192\.168\.|172\.(?:1[6-9]|2\d|3[01])\.|::1\]))")

_STATUS = re.compile(rb"(?:discarded: )?(?P<code>[245]\d\d)?[ -]?(?P<dsn>[245]\.\d{1,3}\.\d{1,3})?")

# RFC 3463 section 3: the codes about the recipient's address, the mailbox, the mail system, the network and the
# message. The codes about policy (7) and about the sender's address (1.7 and 1.8) are not among them.
_ABOUT_OTHERS = re.compile(rb"[45]\.(?:1\.(?:1|2|3|4|5|6|10)|[2346]\.\d+|5\.3)$")

# Texts of refusals that say nothing about the client.
_SAYS_NOTHING = re.compile(
    rb"user unknown|unknown (?:user|recipient|address|local|mailbox)"
    rb"|no such (?:user|recipient|mailbox|address|person|local)|invalid (?:recipient|mailbox|user|address)"
    rb"|(?:user|recipient|mailbox|account|address) [^;]{0,40}?"
    rb"(?:not found|n.t exist|not exist|not known|disabled|inactive|suspended|unavailable|unknown|full)"
    rb"|undeliverable|unverified|address verification|quota|mailbox full"
    rb"|insufficient (?:system |disk )?(?:storage|space)"
    rb"|gr[ea]y-?list|postgrey|(?:try|come back|retry)[a-z ]{0,12} (?:again|later|in )"
    rb"|too many (?:connections|concurrent|errors|recipients|hops|messages)|(?:rate|concurrency|connection) limit"
    rb"|ports (?:are )?busy|service currently unavailable|server busy"
    rb"|temporar(?:y|ily)[a-z ]{0,30}(?:fail|error|unavail)"
    rb"|configuration (?:error|problem)|local (?:error|problem)|internal error|lookup (?:failure|error)"
    rb"|(?:message|size)[a-z ]{0,30}(?:too (?:big|large)|exceed)|timed out|mail loop|queue file write error",
    re.IGNORECASE,
)

# A refusal with one of these texts is about the client, unless it is about greylisting or a limit (below).
_ABOUT_CLIENT = re.compile(rb"cannot find your (?:reverse )?hostname|client host rejected|blocked using", re.IGNORECASE)

# Greylisting and limits are not about the client.
_GREYLISTED_OR_LIMITED = re.compile(rb"gr[ea]y-?list|postgrey|too many|\blimit", re.IGNORECASE)


def is_evidence(seen: Observation) -> bool:
    """Returns whether a mail was refused or deferred for a reason that is about its client."""
    if seen.outcome not in {MailOutcome.REJECTED, MailOutcome.DEFERRED}:
        return False
    text = seen.text
    in_session = seen.by in _SESSION or seen.by.startswith(b"check_") or seen.by.endswith(b"_checks")
    if not in_session and (seen.outcome is MailOutcome.DEFERRED or _NEAR_RELAY.match(seen.by) is None):
        return False  # the answer is about this host, or about a server that cannot be reached
    if seen.by == b"policyd" or _ABOUT_CLIENT.search(text) is not None:
        return not text.startswith(b"421") and _GREYLISTED_OR_LIMITED.search(text) is None
    status = _STATUS.match(text)
    assert status is not None  # every part is optional
    if seen.outcome is MailOutcome.DEFERRED and not text[status.end() :].strip(b" ;."):
        return False  # `4.7.1` of a greylisting milter, without a text
    about_others = status["dsn"] is not None and _ABOUT_OTHERS.match(status["dsn"]) is not None
    return not about_others and status["code"] != b"421" and _SAYS_NOTHING.search(text) is None


class Reasons:
    """Numbers the reasons of refusals: their texts without addresses and other parts that vary."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._texts: list[str] = ["other reasons"]

    def number(self, text: bytes) -> int:
        """Returns the number of a text's reason; 0 if there are too many reasons."""
        key = _plain(text)
        number = self._numbers.get(key)
        if number is None:
            if len(self._texts) > _MAX_REASONS:
                return 0
            number = self._numbers[key] = len(self._texts)
            self._texts.append(shown(key)[:_MAX_LENGTH] or "no reason in the log")
        return number

    def text(self, number: int) -> str:
        """Returns a reason as printable ASCII."""
        return self._texts[number]


_VARYING = re.compile(
    rb"<[^<>]*>(?:\.\.\.)?:? ?|,? ?\[[0-9A-Fa-f:.]+\]|\(?\b[0-9A-HJKMNP-TV-Z]{8}\b\)?|https?://\S+"
    rb"|\b(?:\d{1,3}\.){3}\d{1,3}\b|, id=\S+"
)


def _plain(text: bytes) -> bytes:
    return b" ".join(_VARYING.sub(b"", text).split()).rstrip(b" ;,-")
