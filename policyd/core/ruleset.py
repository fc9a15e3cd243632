"""The parts of a ruleset that has been read and checked: rules, conditions, actions.

Everything here is frozen: a reload builds a new `policyd.core.index.Ruleset` and swaps one reference. `policyd.config`
has checked everything, and `policyd.core.engine` decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datetime


# The text added to a code without text. Postfix before 3.11 mishandles a reply that is only a code, and shows the text
# of an earlier reply.
DEFAULT_TEXT = "Access denied"

# Maximum bytes of a finished text. RFC 5321 section 4.5.3.1.5 allows a reply line of 512 octets, and Postfix needs some
# for the code, the client's name and address, and the restriction's name.
MAX_TEXT = 200

# The name that stands for `default` in place of a rule's name: in `{rule}`, in metrics and in a ruleset's tests.
DEFAULT_RULE = "default"


class Verb(StrEnum):
    """The verbs of actions: answers of access(5), and GREYLIST. `DUNNO` ends the ruleset without an opinion."""

    REJECT = "REJECT"
    DEFER = "DEFER"
    DEFER_IF_PERMIT = "DEFER_IF_PERMIT"
    GREYLIST = "GREYLIST"  # DEFER_IF_PERMIT until the client retries in time
    DUNNO = "DUNNO"


class Kind(Enum):
    """The kinds of comparison of a condition."""

    NETWORK = "network"  # the address lies in a network
    STATUS = "status"  # the reverse DNS status is one of these
    NAME = "name"  # a host name, exactly
    DOMAIN = "domain"  # a host name or a mail address's domain, or a name under it (leading dot: only under it)
    VALUE = "value"  # a mail address or any other attribute, exactly
    EXPRESSION = "expression"  # an RE2 expression matches anywhere in the text
    LISTED = "listed"  # at least a number of these DNS lists say *listed*
    GENERIC = "generic"  # the host name contains the client's own address
    COUNTER = "counter"  # a counter has reached a number


class Subject(StrEnum):
    """The subject of a condition that does not compare an attribute of the request."""

    HOSTNAME = "hostname"  # the client's host name, verified or claimed: policyd.core.engine says which is compared
    REVERSE_DNS = "reverse_dns"
    LISTED = "listed"  # the answers of DNS lists
    ASN = "asn"  # the autonomous system that announces the client's address
    ASN_NAME = "asn_name"
    COUNTRY = "country"
    COUNTER = "counter"  # counts of requests


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a rule: it holds if any of its values matches, `listed` if `at_least` of them do.

    `name` is the key as it is written (`hostname_suffix`), `subject` the attribute of the request that it looks at
    (`client_address`, `sender`, ...) or a `Subject`, and `values` the values as written, with lists as `$name`.
    `number` is unique in the ruleset; an `Index` answers a lookup with the numbers of the conditions that hold.
    """

    name: str
    subject: str
    kind: Kind
    values: tuple[str, ...]
    number: int
    at_least: int = 1  # of `listed`: the number of lists that must say *listed*

    @property
    def needs_facts(self) -> bool:
        """Whether the condition needs the client's reverse DNS or DNS lists."""
        return self.needs_identity or self.kind is Kind.LISTED

    @property
    def needs_identity(self) -> bool:
        """Whether the condition needs the client's reverse DNS."""
        return self.subject == Subject.HOSTNAME or self.subject == Subject.REVERSE_DNS  # noqa: PLR1714 - no set is built on each call


@dataclass(frozen=True, slots=True)
class Action:
    """The action of a rule, or of `default`.

    `code` is an enhanced status code (RFC 3463) or empty. `text` is the template in pieces: literal text at
    even places, names of placeholders at odd ones; empty for no text.
    """

    verb: Verb
    code: str = ""
    text: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `number` is its place in the ruleset, from 0; `line` where it begins in the rules file, from 1."""

    name: str
    number: int
    match: tuple[Condition, ...]
    exceptions: tuple[Condition, ...]
    action: Action
    observe: bool = False
    expires: datetime.date | None = None
    note: str = ""
    line: int = 0

    def expired(self, today: datetime.date) -> bool:
        """Returns whether the rule is skipped on `today` (a date in UTC)."""
        return self.expires is not None and today >= self.expires
