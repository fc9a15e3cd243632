"""Finds decisions in decision logs, and mails in mail logs: by client, owner, name, sender, recipient and time.

`every` yields them one by one; `policyd.tools.decisions.tally` counts the distinct values of one key. A line is parsed
only if it may match: a search for a few bytes skips most lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from policyd.core.normalize import domain_of, fold_name, fold_value
from policyd.decision_log.reader import LoggedDecision, as_text, parse_anywhere
from policyd.logs.either import Batch, batches
from policyd.logs.timestamps import LogClock, rfc3339
from policyd.logs.transaction import MailOutcome, NameStatus, Observation
from policyd.tools.decisions.networks import in_networks
from policyd.tools.display import shown
from policyd.tools.owners import owner_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import netaddr

    from policyd.core.index import Ruleset
    from policyd.core.owners import Owner

# Maximum number of addresses whose membership in the wanted networks is cached.
_MAX_REMEMBERED = 100_000

SearchedLine: TypeAlias = "LoggedDecision | Observation"


@dataclass(frozen=True, slots=True)
class Search:
    """Filter of a search; an empty field selects all. `since` (inclusive) and `until` (exclusive) are in Unix seconds.

    `suffix` has the form of `hostname_suffix`, and also finds claimed names. `sender` and `recipient` are an address,
    or a domain (which also finds addresses in domains under it); `<>` is the null sender. `asn` and `country` are those
    of the client's address, from the line or else from the databases of `ruleset`.
    """

    networks: tuple[netaddr.IPNetwork, ...] = ()
    suffix: str = ""
    sender: str = ""
    recipient: str = ""
    since: float | None = None
    until: float | None = None
    asn: int = 0
    country: str = ""
    ruleset: Ruleset | None = None

    @property
    def is_everything(self) -> bool:
        """Whether the search filters by time only."""
        return not (self.networks or self.suffix or self.sender or self.recipient or self.asn or self.country)

    def covers(self, time: float | None) -> bool:
        """Whether a time (Unix seconds) lies between `since` and `until`.

        An unknown time counts as between them only if neither is given.
        """
        if time is None:
            return self.since is None and self.until is None
        return (self.since is None or time >= self.since) and (self.until is None or time < self.until)


class Found(NamedTuple):
    """A found decision or mail (`source`) with the values that a search compares.

    `time` is in Unix seconds. `verified` says whether the first name is verified.
    """

    time: float | None
    client_address: bytes
    names: tuple[bytes, ...]
    verified: bool
    sender: bytes | None
    recipients: tuple[bytes, ...]
    source: SearchedLine


# --- One by one -------------------------------------------------------------------------------------------------------


def every(paths: Sequence[str], search: Search, advance: Callable[[int], None] | None = None) -> Iterator[Found]:
    """The matching decisions or mails, in the order of the logs. Raises `LogError`."""
    matcher = Matcher(search)
    clock = LogClock()
    for batch in batches(paths, advance):
        yield from found_in(batch, matcher, clock)


def found_in(batch: Batch, matcher: Matcher, clock: LogClock) -> Iterator[Found]:
    """Yields the matching decisions and mails of a batch."""
    for line in matcher.candidates(batch.text):
        decision = parse_anywhere(line)
        if decision is not None and not decision.is_probe:
            found = _of_decision(decision, clock)
            if matcher.matches(found):
                yield found
    for mail in batch.mails:
        found = _of_mail(mail)
        if matcher.matches(found):
            yield found


def _of_decision(decision: LoggedDecision, clock: LogClock) -> Found:
    return Found(
        clock.seconds(decision.time),
        decision.client_address,
        ((decision.hostname,) if decision.hostname else ()) + decision.claimed,
        bool(decision.hostname),
        decision.sender,
        (decision.recipient,) if decision.recipient else (),
        decision,
    )


def _of_mail(mail: Observation) -> Found:
    verified = mail.name_status is NameStatus.VERIFIED
    return Found(mail.time, mail.client_address, mail.names, verified, mail.sender, mail.recipients, mail)


class Matcher:
    """Decides whether decisions and mails match the search, and finds the lines that may match without parsing them."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._suffix = fold_name(search.suffix.encode("utf-8", "surrogateescape"))
        self._sender = _address_or_domain(search.sender)
        self._recipient = _address_or_domain(search.recipient)
        self._needle = self._longest_needle()
        self._remembered: dict[bytes, bool] = {}

    def candidates(self, text: bytes) -> Sequence[bytes]:
        """The lines of a decision log that may match."""
        needle = self._needle
        if needle and needle not in text.lower():
            return ()
        lines = text.split(b"\n")
        if needle:
            lines = [line for line in lines if needle in line.lower()]
        if self._search.networks:
            lines = [line for line in lines if self._may_be_in_networks(line)]
        return lines

    def matches(self, found: Found) -> bool:
        """Whether a decision or a mail matches."""
        search = self._search
        if not search.covers(found.time):
            return False
        if search.networks and not self._in_networks(found.client_address):
            return False
        if self._suffix and not is_under(found.names, self._suffix):
            return False
        if not self._matches_owner(found):
            return False
        if self._sender and not (found.sender is not None and _is_at(found.sender, self._sender)):
            return False
        return not self._recipient or any(_is_at(recipient, self._recipient) for recipient in found.recipients)

    def _matches_owner(self, found: Found) -> bool:
        search = self._search
        if not (search.asn or search.country):
            return True
        owner = owner_in(found.source, search.ruleset)
        return (not search.asn or owner.asn == search.asn) and (not search.country or owner.country == search.country)

    def _longest_needle(self) -> bytes:
        """The longest wanted text that every matching line contains, in either format; empty if there is none."""
        network = self._search.networks[0] if len(self._search.networks) == 1 else None
        address = str(network.ip).encode() if network is not None and str(network.cidr).endswith("/32") else b""
        unescaped = [  # neither format escapes these characters
            text
            for text in (self._suffix.lstrip(b"."), self._sender, self._recipient, address)
            if re.fullmatch(rb"[a-z0-9@._-]+", text)
        ]
        return max(unescaped, key=len, default=b"")

    def _may_be_in_networks(self, line: bytes) -> bool:
        client = _CLIENT.search(line)
        return client is None or self._in_networks(client[1] if client[1] is not None else client[2])

    def _in_networks(self, text: bytes) -> bool:
        known = self._remembered.get(text)
        if known is None:
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            known = self._remembered[text] = in_networks(text, self._search.networks)
        return known


# The client's address in a line, in both formats. Client text cannot look like it, because one format escapes blanks
# and the other quotes. Only a reply may look like it; the first match counts, and a reply is at the end of the line.
_CLIENT = re.compile(rb' client=[^\[ ]*\[([^\] ]*)\]|"client_address":\s?"([^"]*)"')


def owner_in(source: SearchedLine, ruleset: Ruleset | None) -> Owner:
    """Returns the owner of the client, from the line or else from the databases of a ruleset."""
    logged = source.owner
    return logged if logged.asn or logged.country else owner_of(ruleset, source.client_address, logged)


def is_under(names: Sequence[bytes], suffix: bytes) -> bool:
    """Whether a name is the folded suffix or lies under it; with a leading dot, only whether it lies under it."""
    bare = suffix.lstrip(b".")
    return any(name.endswith(b"." + bare) or (name == bare and bare == suffix) for name in map(fold_name, names))


def _address_or_domain(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    if raw.removeprefix(b"<").removesuffix(b">").count(b"@"):
        return fold_value(raw.removeprefix(b"<").removesuffix(b">"))
    return raw if raw == b"<>" else fold_name(raw)


def _is_at(address: bytes, wanted: bytes) -> bool:
    if wanted == b"<>":
        return not address
    if b"@" in wanted.lstrip(b"@"):
        return fold_value(address) == wanted
    domain, wanted = domain_of(address), wanted.lstrip(b"@.")
    return domain == wanted or domain.endswith(b"." + wanted)


# --- As lines ---------------------------------------------------------------------------------------------------------


def is_refused(source: SearchedLine) -> bool:
    """Whether the mail was refused, permanently or temporarily, or would have been without `mode: observe`."""
    if isinstance(source, LoggedDecision):
        return source.decided != b"DUNNO"
    return source.outcome in {MailOutcome.REJECTED, MailOutcome.DEFERRED}


def time_of(source: SearchedLine) -> str:
    """The time of the decision or mail, in RFC 3339."""
    return shown(source.time) if isinstance(source, LoggedDecision) else rfc3339(source.time)


def as_line(source: SearchedLine) -> str:
    """Returns a decision in the text format of the decision log, or a mail in a similar form: printable ASCII."""
    if isinstance(source, LoggedDecision):
        return as_text(source)
    name = shown(source.names[0]) if source.names and source.name_status is NameStatus.VERIFIED else "unknown"
    words = [rfc3339(source.time), source.outcome.upper(), f"client={name}[{shown(source.client_address)}]"]
    if source.names and source.name_status is not NameStatus.VERIFIED:
        words.append(f"claimed={','.join(map(_word, source.names))}")
    if source.sender is not None:
        words.append(f"from=<{_word(source.sender)}>")
    words += [f"to=<{_word(recipient)}>" for recipient in source.recipients]
    if source.helo_name:
        words.append(f"helo=<{_word(source.helo_name)}>")
    if source.by:
        words.append(f"by={_word(source.by)}")
    if source.text:
        words.append(f'reply="{shown(source.text).replace(chr(34), chr(92) + "x22")}"')
    return " ".join(words)


def _word(value: bytes) -> str:
    """Escapes blanks, quotes and angle brackets, as in the decision log."""
    return re.sub(r"[ \"'<>]", lambda found: f"\\x{ord(found[0]):02x}", shown(value))


def mail_as_json(mail: Observation) -> dict[str, Any]:
    """Returns a mail as a JSON object; the keys are those of the decision log if it has them."""
    fields: dict[str, Any] = {
        "time": rfc3339(mail.time) if mail.time is not None else None,
        "outcome": str(mail.outcome),
        "client_address": shown(mail.client_address) or None,
        "hostname": shown(mail.names[0]) if mail.names and mail.name_status is NameStatus.VERIFIED else "unknown",
        "claimed": [shown(name) for name in mail.names] if mail.name_status is not NameStatus.VERIFIED else None,
        "sender": shown(mail.sender) if mail.sender is not None else None,
        "recipients": [shown(recipient) for recipient in mail.recipients] or None,
        "helo_name": shown(mail.helo_name) or None,
        "sasl_username": shown(mail.sasl_username) or None,
        "by": shown(mail.by) or None,
        "reply": shown(mail.text) or None,
    }
    return {key: value for key, value in fields.items() if value is not None and value != []}
