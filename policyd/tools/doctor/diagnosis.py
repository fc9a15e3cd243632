"""`policyd doctor`: what is wrong between Postfix and the daemon, and what to write instead.

Looks at what Postfix is told to do (restrictions as each smtpd(8) sees them, with its overrides in master.cf), compares
it with the daemon's settings and with the socket in the file system, and asks the daemon one question. Prints nothing
and changes nothing.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from policyd.config.settings import InetAddress, UnixAddress
from policyd.tools.doctor.policy_client import Answer, AskError, ask
from policyd.tools.doctor.postfix_config import list_of, seconds_of, unbraced

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from policyd.config.settings import Settings
    from policyd.tools.doctor.postfix_config import PostfixConfig, Service

# The lists in which a policy service can be asked (postconf(5)), in the order in which smtpd(8) goes through them.
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

# Whom a policy for strangers must not see.
_EXEMPTIONS = ("permit_mynetworks", "permit_sasl_authenticated")

# Services at which users hand in their own mail.
_SUBMISSION = frozenset({"submission", "submissions", "smtps", "587", "465"})

# Postfix waits one second and tries once more, so an answer at the last moment is too late.
_MARGIN = 1.0

# Restriction classes may name each other.
_CLASSES_DEEP = 8

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost", ""})
_ANYWHERE = frozenset({"0.0.0.0", "::"})  # noqa: S104 - recognised, not bound

# What doctor asks. The address is one for documentation (RFC 5737), the names cannot exist (RFC 2606).
QUESTION = {
    "request": "smtpd_access_policy",
    "protocol_state": "RCPT",
    "protocol_name": "ESMTP",
    "client_address": "192.0.2.1",
    "client_name": "unknown",
    "reverse_client_name": "unknown",
    "helo_name": "policyd-doctor.invalid",
    "sender": "policyd-doctor@sender.invalid",
    "recipient": "policyd-doctor@recipient.invalid",
    "instance": "policyd-doctor",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong: where, what, and what to write instead."""

    where: str
    what: str
    write: str


@dataclass(frozen=True, slots=True)
class Question:
    """The question that was asked: over which endpoint, and the answer or why there is none."""

    endpoint: InetAddress | UnixAddress
    answer: Answer | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What doctor found; `right` says, in a line each, what is as it should be."""

    findings: tuple[Finding, ...]
    right: tuple[str, ...]
    question: Question


@dataclass(frozen=True, slots=True)
class Call:
    """One `check_policy_service` as one service sees it.

    `written` is the endpoint as it is written, `address` where Postfix connects (a unix path as it is called outside of
    the chroot), None where that cannot be read. `before` are the restrictions in front of it.
    """

    service: Service
    parameter: str
    written: str
    address: InetAddress | UnixAddress | None
    attributes: Mapping[str, str]
    before: tuple[str, ...]

    @property
    def where(self) -> str:
        """The file that says it, and of master.cf the service."""
        if self.parameter in self.service.overrides:
            return f"master.cf: {self.service}: -o {self.parameter}"
        return f"main.cf: {self.parameter}"


def diagnose(postfix: PostfixConfig, settings: Settings, timeout: float | None = None) -> Diagnosis:
    """Everything doctor has to say. `timeout` in seconds bounds the question; None: a little more than DNS may take."""
    calls = [call for service in postfix.services if _is_smtpd(service) for call in _calls(postfix, service)]
    ours = [call for call in calls if call.address is not None and _is_listened_at(call.address, settings)]
    endpoints = [call.address for call in ours or calls if call.address is not None] or list(settings.listen)
    question = _ask(endpoints[0], timeout if timeout is not None else settings.dns.timeout + 2 * _MARGIN)
    notes = _Notes()
    if not calls:
        notes.find(
            "main.cf: smtpd_recipient_restrictions",
            "no check_policy_service anywhere: Postfix never asks policyd",
            f"smtpd_recipient_restrictions = permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination, "
            f"check_policy_service {{ {settings.listen[0]}, timeout=10s, default_action=DUNNO }}",
        )
    elif not ours:
        _check_address(calls, settings, question, notes)
    for call in ours or calls:
        _check_order(call, notes)
        _check_limits(postfix, settings, call, notes)
        _check_default_action(postfix, call, call.written if ours else str(settings.listen[0]), notes)
    for address in dict.fromkeys(call.address for call in ours or calls):
        if isinstance(address, UnixAddress):
            _check_socket(postfix, address, notes)
    _check_answer(question, notes)
    return Diagnosis(tuple(notes.findings), tuple(notes.right), question)


class _Notes:
    """Collects findings, and what is right; each once."""

    def __init__(self) -> None:
        self.findings: dict[Finding, None] = {}
        self.right: dict[str, None] = {}

    def find(self, where: str, what: str, write: str) -> None:
        self.findings[Finding(where, what, write)] = None

    def approve(self, what: str) -> None:
        self.right[what] = None


# --- What Postfix is told ---------------------------------------------------------------------------------------------


def _is_smtpd(service: Service) -> bool:
    """Whether strangers or users hand in mail there; `pass` is what postscreen(8) hands on."""
    return service.command.rpartition("/")[2] == "smtpd" and service.kind in {"inet", "pass", "unix"}


def _calls(postfix: PostfixConfig, service: Service) -> Iterator[Call]:
    for parameter in RESTRICTIONS:
        words = list(_restrictions(postfix, service, postfix.value(parameter, service), 0))
        for place, word in enumerate(words[:-1]):
            if word.lower() == "check_policy_service":
                endpoint, *attributes = list_of(unbraced(words[place + 1])) or [""]
                yield Call(
                    service,
                    parameter,
                    endpoint,
                    _address(postfix, service, endpoint),
                    dict(_attributes(attributes)),
                    tuple(one.lower() for one in words[:place]),
                )


def _restrictions(postfix: PostfixConfig, service: Service, value: str, depth: int) -> Iterator[str]:
    """The words of a restriction list; the name of a restriction class stands for what is in it."""
    classes = list_of(postfix.value("smtpd_restriction_classes", service))
    for word in list_of(value):
        if word in classes and depth < _CLASSES_DEEP:
            yield from _restrictions(postfix, service, postfix.value(word, service), depth + 1)
        else:
            yield word


def _attributes(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        name, equals, value = unbraced(word).partition("=")
        if equals:
            yield name.strip(), value.strip()


def _address(postfix: PostfixConfig, service: Service, endpoint: str) -> InetAddress | UnixAddress | None:
    """Where Postfix connects: `inet:host:port`, `inet:port`, or `unix:path`, a relative one in the queue directory, an
    absolute one under it too if the service runs in the chroot."""
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


def _is_listened_at(address: InetAddress | UnixAddress, settings: Settings) -> bool:
    return any(_same(address, listened) for listened in settings.listen)


def _same(asked: InetAddress | UnixAddress, listened: InetAddress | UnixAddress) -> bool:
    if isinstance(asked, UnixAddress) and isinstance(listened, UnixAddress):
        return os.path.realpath(asked.path) == os.path.realpath(listened.path)
    if isinstance(asked, UnixAddress) or isinstance(listened, UnixAddress):
        return False
    if asked.port != listened.port:
        return False
    if listened.host in _ANYWHERE or asked.host == listened.host:
        return True
    return "localhost" in {asked.host, listened.host} and {asked.host, listened.host} <= _LOOPBACK


# --- What is wrong in it ----------------------------------------------------------------------------------------------


def _check_address(calls: list[Call], settings: Settings, question: Question, notes: _Notes) -> None:
    """Postfix asks somebody, but not where the settings say that policyd listens."""
    listened = ", ".join(str(address) for address in settings.listen)
    for call in calls:
        path = call.written.removeprefix("unix:")
        if isinstance(call.address, UnixAddress) and call.address.path != path and UnixAddress(path) in settings.listen:
            notes.find(
                call.where,
                f"{call.service} runs in the chroot and looks for the socket at {call.address.path}, but policyd makes "
                f"{path}, outside of it",
                f"policyd.yaml: listen: [unix:{call.address.path}]",
            )
            return
    if question.answer is not None:
        notes.approve(
            f"{question.endpoint} answers; policyd.yaml says listen: [{listened}], which a socket from systemd replaces"
        )
        return
    asked = ", ".join(dict.fromkeys(call.written for call in calls))
    notes.find(
        calls[0].where,
        f"check_policy_service asks {asked}, and policyd listens on {listened}",
        f"check_policy_service {{ {settings.listen[0]}, timeout=10s, default_action=DUNNO }}",
    )


def _check_order(call: Call, notes: _Notes) -> None:
    """Who is let through before policyd is asked."""
    missing = [name for name in _EXEMPTIONS if name not in call.before]
    final = next((name for name in ("permit", "reject", "defer") if name in call.before), None)
    if final is not None:
        notes.find(
            call.where,
            f"{final} stands before check_policy_service, which is never reached",
            f"put check_policy_service before {final}",
        )
    if "permit_sasl_authenticated" in missing and _is_submission(call.service):
        notes.find(
            f"master.cf: {call.service}: {call.parameter}",
            "users who hand in their own mail are judged as strangers: permit_sasl_authenticated does not stand before "
            "check_policy_service",
            f"-o {{ {call.parameter} = permit_sasl_authenticated, reject }}",
        )
    elif missing:
        notes.find(
            call.where,
            f"{' and '.join(missing)} {'do' if len(missing) > 1 else 'does'} not stand before check_policy_service: "
            f"{' and '.join(_WHO[name] for name in missing)} are judged as strangers",
            f"{call.parameter} = {', '.join((*_EXEMPTIONS, *_others(call.before)))}, check_policy_service ...",
        )
    else:
        notes.approve(f"{call.where}: {' and '.join(_EXEMPTIONS)} stand before check_policy_service")


def _others(before: Iterable[str]) -> list[str]:
    return [word for word in before if word not in _EXEMPTIONS]


def _is_submission(service: Service) -> bool:
    return service.name.rpartition(":")[2] in _SUBMISSION or service.overrides.get("smtpd_sasl_auth_enable") == "yes"


def _check_limits(postfix: PostfixConfig, settings: Settings, call: Call, notes: _Notes) -> None:
    """How long Postfix waits."""
    written = call.attributes.get("timeout", postfix.value("smtpd_policy_service_timeout", call.service))
    timeout, needed = seconds_of(written), settings.dns.timeout
    if timeout is not None and timeout <= needed:
        notes.find(
            call.where,
            f"Postfix waits {written} for an answer, and policyd may wait {needed:g} s for DNS (dns.timeout) before it "
            "gives one",
            f"timeout={int(needed + 5)}s in the braces after check_policy_service",
        )
    else:
        notes.approve(f"{call.where}: Postfix waits {written}, longer than dns.timeout ({needed:g} s)")


def _check_default_action(postfix: PostfixConfig, call: Call, endpoint: str, notes: _Notes) -> None:
    """What Postfix does when nobody answers."""
    name = "smtpd_policy_service_default_action"
    set_here = name in postfix.explicit or name in call.service.overrides
    action = call.attributes.get("default_action", postfix.value(name, call.service) if set_here else "")
    if not action:
        notes.find(
            call.where,
            "no default_action: while policyd does not run, every mail is answered "
            f"{postfix.value(name, call.service) or '451 4.3.5 Server configuration problem'}",
            f"check_policy_service {{ {endpoint}, timeout=10s, default_action=DUNNO }}",
        )
    elif re.match(r"reject|5\d\d", action, re.IGNORECASE):
        notes.find(
            call.where,
            f"default_action={action}: while policyd does not run, every mail is rejected for good",
            "default_action=DUNNO, or default_action=DEFER",
        )
    else:
        notes.approve(f"{call.where}: without an answer Postfix does {action}")


_WHO = {"permit_mynetworks": "your own hosts", "permit_sasl_authenticated": "your authenticated users"}


# --- The socket and the daemon ----------------------------------------------------------------------------------------


def _check_socket(postfix: PostfixConfig, address: UnixAddress, notes: _Notes) -> None:
    """Whether smtpd(8), which runs as mail_owner, can connect."""
    where, path = f"the socket {address.path}", Path(address.path)
    try:
        status = path.stat()
    except FileNotFoundError:
        notes.find(where, "it is not there", f"start policyd, with listen: [{address}] or with policyd.socket")
        return
    except OSError as error:
        notes.find(where, f"it cannot be looked at: {(error.strerror or '').lower()}", "run policyd doctor as root")
        return
    if not stat.S_ISSOCK(status.st_mode):
        notes.find(where, "it is no socket", f"remove {path}, and restart policyd")
        return
    owner = postfix.value("mail_owner") or "postfix"
    try:
        user = pwd.getpwnam(owner)
    except KeyError:
        notes.find("main.cf: mail_owner", f"there is no user {owner}", "mail_owner = postfix")
        return
    groups = {user.pw_gid, *(group.gr_gid for group in grp.getgrall() if owner in group.gr_mem)}
    closed = next(
        (one for one in reversed(path.parents) if not _may(one.stat(), user.pw_uid, groups, stat.S_IXOTH)), None
    )
    if closed is not None:
        notes.find(where, f"{owner} may not enter {closed}", f"chmod o+x {closed}, or put the socket elsewhere")
    elif not _may(status, user.pw_uid, groups, stat.S_IWOTH):
        group = grp.getgrgid(user.pw_gid).gr_name
        notes.find(
            where,
            f"{owner} may not connect: owner {_user(status.st_uid)}, group {_group(status.st_gid)}, "
            f"mode {stat.S_IMODE(status.st_mode):04o}",
            f'policyd.yaml: socket_group: {group} and socket_mode: "0660"; with systemd the same in policyd.socket '
            f"(SocketGroup={group}, SocketMode=0660)",
        )
    else:
        notes.approve(f"{where}: {owner} may connect")


def _may(status: os.stat_result, uid: int, groups: set[int], bit: int) -> bool:
    """Whether a user has a permission, of which `bit` is the one for others (path_resolution(7))."""
    if uid == 0:
        return True
    shift = 6 if status.st_uid == uid else 3 if status.st_gid in groups else 0
    return bool(status.st_mode & bit << shift)


def _user(uid: int) -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def _group(gid: int) -> str:
    with contextlib.suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return str(gid)


def _ask(endpoint: InetAddress | UnixAddress, timeout: float) -> Question:
    try:
        return Question(endpoint, ask(endpoint, QUESTION, timeout))
    except AskError as error:
        return Question(endpoint, None, str(error))


def _check_answer(question: Question, notes: _Notes) -> None:
    if question.answer is None:
        write = "start policyd (systemctl status policyd), or see what else listens there"
        notes.find(str(question.endpoint), f"the daemon gave no answer: {question.error}", write)
    elif not re.fullmatch(rb"action=\S[^\n]*", question.answer.content):
        what = "what answers there speaks another protocol than a policy service"
        notes.find(str(question.endpoint), what, "see which program listens there (ss -lptn, ss -lpx)")
