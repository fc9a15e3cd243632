"""The restriction lists of each smtpd(8) service, as Postfix evaluates them, and the policy services that they ask.

A list is read into steps, with restriction classes replaced by their content. Access tables are not read, because their
answers depend on the mail.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from policyd.config.settings import InetAddress, UnixAddress
from policyd.tools.doctor.postfix_config import list_of, unbraced

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from policyd.tools.doctor.postfix_config import PostfixConfig, Service

# The lists in which a policy service can be asked (postconf(5)), in the order in which smtpd(8) evaluates them.
RESTRICTIONS = (
    "smtpd_client_restrictions",
    "smtpd_helo_restrictions",
    "smtpd_sender_restrictions",
    "smtpd_relay_restrictions",
    "smtpd_recipient_restrictions",
    "smtpd_data_restrictions",
    "smtpd_end_of_data_restrictions",
    "smtpd_etrn_restrictions",
)

# The lists that are evaluated for mail: all but that for ETRN.
_MAIL_RESTRICTIONS = RESTRICTIONS[:-1]

# Restrictions that end the list for every client.
FINAL = ("permit", "reject", "defer")

# Restrictions that refuse mail for domains which this host neither serves nor relays for.
RELAY_GUARDS = frozenset({"reject_unauth_destination", "defer_unauth_destination", "reject", "defer"})

# Ports and services (services(5)) for mail submission by users.
_SUBMISSION = frozenset({"submission", "submissions", "smtps", "587", "465"})

# Maximum depth of restriction classes that name each other.
_MAX_CLASS_DEPTH = 8

# Maximum number of restrictions in a list. If a class names another class several times, the number multiplies with
# each level.
_MAX_STEPS = 2000

# Restrictions that may let a stranger's mail through before a `reject` at the end of the list.
_MAY_PERMIT_STRANGERS = frozenset(
    {"permit", "permit_auth_destination", "permit_mx_backup", "check_recipient_access", "check_relay_domains"}
)

_LOOPBACK = re.compile(r"127\.[0-9.]+|::1|localhost", re.IGNORECASE)

# Restrictions followed by a word: a table, a domain of a DNS list, seconds, an endpoint.
_WITH_ARGUMENT = re.compile(
    r"check_(?!relay_domains)\w+|reject_(?:rbl|rhsbl)_\w+|permit_(?:dns|rhs)wl_\w+|sleep", re.ASCII
)


class Audience(Enum):
    """The clients that reach a service."""

    STRANGERS = "strangers"
    USERS = "users"
    THIS_HOST = "this host"


@dataclass(frozen=True, slots=True)
class Step:
    """A restriction in a list, in lower case, with its argument. `is_muted` means that it follows `warn_if_reject`."""

    name: str
    argument: str = ""
    is_muted: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One `check_policy_service` of one service.

    `written` is the endpoint as written. `address` is the address to which Postfix connects; None if the endpoint
    cannot be parsed. A unix path is as seen from outside the chroot. `before` and `after` are the other steps of the
    list.
    """

    service: Service
    parameter: str
    where: str
    written: str
    address: InetAddress | UnixAddress | None
    attributes: Mapping[str, str]
    is_muted: bool
    before: tuple[Step, ...]
    after: tuple[Step, ...]

    @property
    def names_before(self) -> frozenset[str]:
        """The names of the restrictions before this call."""
        return frozenset(step.name for step in self.before)


def is_smtpd(service: Service) -> bool:
    """Whether a service of master.cf accepts mail by SMTP. postscreen(8) passes clients to a service of type `pass`."""
    return service.command.rpartition("/")[2] == "smtpd" and service.kind in {"inet", "pass", "unix"}


def is_submission(service: Service) -> bool:
    """Whether a service is for mail submission by users."""
    return service.port in _SUBMISSION or service.overrides.get("smtpd_sasl_auth_enable", "").lower() == "yes"


def audience_of(postfix: PostfixConfig, service: Service) -> Audience:
    """Decides which clients reach a service, by its type, address, port, overrides and restriction lists."""
    if service.kind == "unix" or (
        service.kind == "inet"
        and _LOOPBACK.fullmatch(service.host)
        and not postfix.value("smtpd_upstream_proxy_protocol", service)
    ):
        return Audience.THIS_HOST
    if is_submission(service) or is_closed(postfix, service):
        return Audience.USERS
    return Audience.STRANGERS


def is_closed(postfix: PostfixConfig, service: Service) -> bool:
    """Whether some list of a service refuses every client that is neither in mynetworks nor logged in."""
    return any(_refuses_strangers(steps_of(postfix, service, name)) for name in _MAIL_RESTRICTIONS)


def _refuses_strangers(steps: Iterable[Step]) -> bool:
    for step in steps:
        if step.name in {"reject", "defer"} and not step.is_muted:
            return True
        if step.name in _MAY_PERMIT_STRANGERS:
            return False
    return False


def calls_of(postfix: PostfixConfig, service: Service) -> Iterator[Call]:
    """Every `check_policy_service` of a service, in the order of its lists."""
    for parameter in RESTRICTIONS:
        steps = steps_of(postfix, service, parameter)
        for place, step in enumerate(steps):
            if step.name == "check_policy_service" and step.argument:
                endpoint, *attributes = list_of(unbraced(step.argument)) or [""]
                yield Call(
                    service,
                    parameter,
                    postfix.where(parameter, service),
                    endpoint,
                    _address(postfix, service, endpoint),
                    dict(_attributes(attributes)),
                    step.is_muted,
                    tuple(steps[:place]),
                    tuple(steps[place + 1 :]),
                )


def classes_that_ask(postfix: PostfixConfig, service: Service) -> list[str]:
    """Restriction classes that ask a policy service, and that no list names; access tables may use them."""
    named = {word for name in RESTRICTIONS for word in list_of(postfix.value(name, service))}
    classes = list_of(postfix.value("smtpd_restriction_classes", service))
    return [
        name
        for name in classes
        if name not in named and "check_policy_service" in list_of(postfix.value(name, service).lower())
    ]


def steps_of(postfix: PostfixConfig, service: Service, parameter: str) -> list[Step]:
    """The steps of a restriction list for one service."""
    steps: list[Step] = []
    _collect(postfix, service, postfix.value(parameter, service), 0, steps, is_muted=False)
    return steps


def _collect(
    postfix: PostfixConfig, service: Service, value: str, depth: int, steps: list[Step], *, is_muted: bool
) -> None:
    """Appends the steps of a list or class. `warn_if_reject` mutes the next step, or every step of the next class."""
    classes = list_of(postfix.value("smtpd_restriction_classes", service))
    words = iter(list_of(value))
    mutes_next = is_muted
    for word in words:
        if len(steps) >= _MAX_STEPS:
            return
        name = word.lower()
        if name == "warn_if_reject":
            mutes_next = True
            continue
        if word in classes and depth < _MAX_CLASS_DEPTH:
            _collect(postfix, service, postfix.value(word, service), depth + 1, steps, is_muted=mutes_next)
        else:
            argument = next(words, "") if _WITH_ARGUMENT.fullmatch(name) else ""
            steps.append(Step(name, argument, mutes_next))
        mutes_next = is_muted


def _attributes(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        name, equals, value = unbraced(word).partition("=")
        if equals:
            yield name.strip(), value.strip()


def _address(postfix: PostfixConfig, service: Service, endpoint: str) -> InetAddress | UnixAddress | None:
    """The address to which Postfix connects: for `inet:host:port`, `inet:port` or `unix:path`; None if unreadable.

    A relative path is in the queue directory. So is an absolute path if the service runs in the chroot.
    """
    kind, _, rest = endpoint.partition(":")
    if kind == "unix" and rest:
        queue = postfix.value("queue_directory")
        inside = service.chroot or not rest.startswith("/")
        return UnixAddress(os.path.normpath(f"{queue}/{rest}") if inside else rest)
    if kind != "inet":
        return None
    host, _, port = rest.rpartition(":")
    try:
        number = int(port) if port.isdecimal() else socket.getservbyname(port, "tcp")
    except OSError:
        return None
    return InetAddress(host.strip("[]") or "localhost", number)
