"""`policyd doctor`: finds what is wrong between Postfix and the daemon, and suggests what to change.

Finds the smtpd(8) services that strangers reach, and checks that each asks policyd, at a place where the answer counts,
with a safe timeout and default_action. Compares Postfix with the daemon's settings and with the socket in the file
system, and asks the daemon for its version. Prints nothing and changes nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policyd.config.settings import UnixAddress
from policyd.tools.doctor.endpoints import Question, ask_version, for_main_cf, is_expected, is_shipped_socket
from policyd.tools.doctor.postfix_config import list_of, seconds_of
from policyd.tools.doctor.restrictions import (
    FINAL,
    RELAY_GUARDS,
    Audience,
    Call,
    audience_of,
    calls_of,
    classes_that_ask,
    is_closed,
    is_smtpd,
    is_submission,
    steps_of,
)
from policyd.tools.doctor.socket_access import obstacle

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from policyd.config.settings import InetAddress, Settings
    from policyd.tools.doctor.postfix_config import PostfixConfig, Service

# Restrictions that usually belong before policyd, with the clients that they let through.
_EXEMPTIONS = {"permit_mynetworks": "your own hosts", "permit_sasl_authenticated": "your authenticated users"}

# Seconds that the question to policyd may take beyond `dns.timeout`. policyd 0.1 decides the question like mail, so it
# may ask DNS first.
_EXTRA_SECONDS = 2.0

# Timeout in seconds for a service that is probably not policyd.
_STRANGE_SERVICE_SECONDS = 3.0

# Restriction lists that are evaluated before a client logs in and names a sender if smtpd_delay_reject = no, with their
# stage.
_EARLY_STAGES = {"smtpd_client_restrictions": "CONNECT", "smtpd_helo_restrictions": "HELO"}

_RELAY_LISTS = ("smtpd_relay_restrictions", "smtpd_recipient_restrictions")

_RECIPIENT = "smtpd_recipient_restrictions"

_START_SOCKET = "systemctl enable --now policyd.socket policyd.service"
_LOOK_AT_SERVICE = "systemctl status policyd.service, journalctl -u policyd"


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem: its place, a description, and what to write or do instead."""

    where: str
    what: str
    write: str


@dataclass(frozen=True, slots=True)
class Examined:
    """One smtpd(8) service: the clients that reach it, and the lists in which policyd's answer counts."""

    service: Service
    audience: Audience
    asks_in: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The findings of doctor. `right` has a line for each check that passed, `notes` lines for information.

    `question` is doctor's own question to policyd, or to the service in its place; None if nothing was asked.
    """

    findings: tuple[Finding, ...]
    right: tuple[str, ...]
    notes: tuple[str, ...]
    services: tuple[Examined, ...]
    question: Question | None

    @property
    def observes(self) -> bool:
        """Whether the running daemon said that its ruleset only observes."""
        policyd = self.question.policyd if self.question is not None else None
        return policyd is not None and policyd.observes


def diagnose(
    postfix: PostfixConfig,
    settings: Settings,
    timeout: float | None = None,
    *,
    sockets: Sequence[InetAddress | UnixAddress] = (),
    user_counters: Sequence[str] = (),
) -> Diagnosis:
    """Runs every check of Postfix, the socket and the daemon.

    `timeout` limits the question to policyd, in seconds; if None, it is a little more than `dns.timeout`. `sockets` are
    those of an installed policyd.socket, which replace `listen`. `user_counters` are the counters that count only
    requests of authenticated users.
    """
    timeout = timeout or settings.dns.timeout + _EXTRA_SECONDS
    return _Doctor(postfix, settings, timeout, tuple(sockets), tuple(user_counters)).examine()


@dataclass(slots=True)
class _Doctor:
    """One run of doctor. Collects findings and lines, each once."""

    postfix: PostfixConfig
    settings: Settings
    timeout: float
    sockets: tuple[InetAddress | UnixAddress, ...]
    user_counters: tuple[str, ...]
    findings: dict[Finding, None] = field(default_factory=dict)
    right: dict[str, None] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    questions: dict[InetAddress | UnixAddress, Question] = field(default_factory=dict)

    def examine(self) -> Diagnosis:
        services = [service for service in self.postfix.services if is_smtpd(service)]
        calls = [call for service in services for call in calls_of(self.postfix, service)]
        ours = self._ours(calls)
        examined = tuple(self._examined(service, ours) for service in services)
        if not ours:
            self._find_no_call(calls, services)
        else:
            for candidate in examined:
                self._check_service(candidate, ours)
        if not any(candidate.audience is Audience.STRANGERS for candidate in examined):
            self.notes["master.cf: no smtpd service is reached by strangers, whom policyd is meant to judge"] = None
        for call in {(call.where, call.address): call for call in reversed(ours)}.values():
            self._check_chroot(call)
        for call in ours:
            self._check_order(call)
            self._check_effect(call)
            self._check_timeout(call)
            self._check_default_action(call)
        if self.user_counters and ours:
            self._check_user_counters(ours)
        question = self._question_to_show(ours)
        if not self.postfix.is_saved:
            self._check_connection(ours, question)
        return Diagnosis(tuple(self.findings), tuple(self.right), tuple(self.notes), examined, question)

    def find(self, where: str, what: str, write: str) -> None:
        self.findings[Finding(where, what, write)] = None

    def approve(self, what: str) -> None:
        self.right[what] = None

    # --- The calls that ask policyd --------------------------------------------------------------------------------

    @property
    def _listen_addresses(self) -> tuple[InetAddress | UnixAddress, ...]:
        return self.sockets or self.settings.listen

    def _ours(self, calls: Iterable[Call]) -> list[Call]:
        """Returns the calls that ask policyd, and makes a note of each other call.

        If no call asks policyd, returns the calls that name its socket, but look for it in the chroot.
        """
        ours: list[Call] = []
        others: list[Call] = []
        for call in calls:
            (ours if self._is_ours(call) else others).append(call)
        if not ours:
            outside = [call for call in others if self._is_outside_chroot(call)]
            if outside:
                ours = outside
                others = [call for call in others if call not in outside]
        for call in others:
            what = "is not policyd" if self._is_other_program(call) else "gives no answer"
            what = "is not where policyd listens" if self.postfix.is_saved else what
            self.notes[f"{call.written} {what}; it is not judged"] = None
        return ours

    def _is_ours(self, call: Call) -> bool:
        if call.address is None:
            return False
        expected = is_expected(call.address, self.postfix, self.settings, self.sockets)
        if self.postfix.is_saved:
            return expected
        question = self._ask(call.address, self.timeout if expected else _STRANGE_SERVICE_SECONDS)
        return expected or question.policyd is not None

    def _is_outside_chroot(self, call: Call) -> bool:
        """Whether a call names policyd's socket, but looks for it in the chroot."""
        path = call.written.removeprefix("unix:")
        return (
            isinstance(call.address, UnixAddress)
            and call.address.path != path
            and UnixAddress(path) in (*self.settings.listen, *self.sockets)
        )

    def _is_other_program(self, call: Call) -> bool:
        """Whether a program answered at the address of a call that does not ask policyd."""
        question = self.questions.get(call.address) if call.address is not None else None
        return question is not None and question.answer is not None

    def _ask(self, endpoint: InetAddress | UnixAddress, timeout: float) -> Question:
        if endpoint not in self.questions:
            self.questions[endpoint] = ask_version(endpoint, timeout)
        return self.questions[endpoint]

    def _question_to_show(self, ours: Sequence[Call]) -> Question | None:
        """Returns the question to show: to an address that Postfix asks, or else to one where policyd listens."""
        if self.postfix.is_saved:
            return None
        endpoints = [call.address for call in ours if call.address is not None]
        questions = [self._ask(endpoint, self.timeout) for endpoint in endpoints or self._listen_addresses[:1]]
        # If there are several questions, one that policyd did not answer is shown, because it is the problem.
        return next((question for question in questions if question.policyd is None), questions[0])

    def _find_no_call(self, calls: Sequence[Call], services: Sequence[Service]) -> None:
        """Reports that no service of Postfix asks policyd."""
        endpoint = for_main_cf(self._listen_addresses[0], self.postfix)
        asking = f"check_policy_service {{ {endpoint}, timeout=10s, default_action=DUNNO }}"
        classes = dict.fromkeys(name for service in services for name in classes_that_ask(self.postfix, service))
        if classes:
            self.notes[
                f"main.cf: the class {' and '.join(classes)} asks a policy service; access tables may send mail there, "
                "and are not read"
            ] = None
        if not calls:
            self.find(
                f"main.cf: {_RECIPIENT}",
                "no check_policy_service anywhere: Postfix never asks policyd",
                self._with_call(asking),
            )
            return
        asked = ", ".join(dict.fromkeys(call.written for call in calls))
        listened = ", ".join(str(address) for address in self._listen_addresses)
        if all(self._is_other_program(call) for call in calls):
            what = f"Postfix never asks policyd: check_policy_service asks {asked}, where another program answers"
        else:
            what = f"check_policy_service asks {asked}, and policyd listens on {listened}"
        self.find(calls[0].where, what, f"{asking}, after reject_unauth_destination")

    def _with_call(self, asking: str) -> str:
        """Returns the line for main.cf that asks policyd, with the restrictions that main.cf has already."""
        before, destination, behind = self.postfix.parameters.get(_RECIPIENT, "").partition("reject_unauth_destination")
        if destination:
            behind = behind.lstrip(" ,")
            return f"{_RECIPIENT} = {before}{destination}, {asking}{', ' if behind else ''}{behind}"
        if before:
            return f"{asking}, in {_RECIPIENT} after permit_mynetworks and permit_sasl_authenticated"
        return f"{_RECIPIENT} = permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination, {asking}"

    # --- One service ------------------------------------------------------------------------------------------------

    def _examined(self, service: Service, ours: Iterable[Call]) -> Examined:
        asks_in = tuple(
            dict.fromkeys(call.parameter for call in ours if call.service is service and not _is_void(call))
        )
        return Examined(service, audience_of(self.postfix, service), asks_in)

    def _check_service(self, examined: Examined, ours: Sequence[Call]) -> None:
        """Checks that a service asks policyd if strangers reach it. Notes a service for users that admits strangers."""
        service = examined.service
        if examined.audience is Audience.THIS_HOST:
            return
        if examined.audience is Audience.USERS:
            if not examined.asks_in and not is_closed(self.postfix, service):
                self.notes[
                    f"master.cf: {service}: strangers can send mail to your own domains here, and policyd is not "
                    "asked; permit_sasl_authenticated, reject would admit your users only"
                ] = None
        elif examined.asks_in:
            self.approve(
                f"master.cf: {service}: strangers reach it, and it asks policyd in {', '.join(examined.asks_in)}"
            )
        elif not any(call.service is service for call in ours):
            replaced = [name for name in dict.fromkeys(call.parameter for call in ours) if name in service.overrides]
            parameter = replaced[0] if replaced else ours[0].parameter
            how = f": its -o {' and -o '.join(replaced)} replaces the value in main.cf" if replaced else ""
            others = (*(step.name for step in steps_of(self.postfix, service, parameter)), "check_policy_service ...")
            self.find(
                f"master.cf: {service}",
                f"strangers reach this service, and it never asks policyd{how}",
                f"-o {{ {parameter} = {', '.join(others)} }}",
            )

    # --- One check_policy_service -----------------------------------------------------------------------------------

    def _check_chroot(self, call: Call) -> None:
        """Checks whether Postfix looks for the socket where policyd makes it."""
        if isinstance(call.address, UnixAddress) and self._is_outside_chroot(call):
            self.find(
                call.where,
                f"{call.service} runs in the chroot and looks for the socket at {call.address.path}, but policyd makes "
                f"{call.written.removeprefix('unix:')}, outside of it",
                f"policyd.yaml: listen: [unix:{call.address.path}]",
            )

    def _check_order(self, call: Call) -> None:
        """Checks whether policyd is reached, and which clients are let through before it."""
        for step in call.before:
            if step.name in FINAL and not step.is_muted:
                self.find(
                    call.where,
                    f"{step.name} is before check_policy_service, which is never reached",
                    f"put check_policy_service before {step.name}",
                )
                break
        else:
            if "permit_auth_destination" in call.names_before:
                self.find(
                    call.where,
                    "permit_auth_destination is before check_policy_service: mail for your own domains passes, "
                    "and policyd is never asked about it",
                    "reject_unauth_destination instead of permit_auth_destination",
                )
        # To count users, such a service asks policyd before permit_sasl_authenticated. The ruleset lets users through.
        feeds_counters = bool(self.user_counters) and is_submission(call.service) and self._is_about_users(call)
        if call.parameter != "smtpd_etrn_restrictions" and not feeds_counters:
            self._check_exemptions(call)

    def _check_exemptions(self, call: Call) -> None:
        logins = self._logins(call.service)
        missing = [name for name in _EXEMPTIONS if name not in call.names_before]
        if not logins:
            missing = [name for name in missing if name != "permit_sasl_authenticated"]
        if "permit_sasl_authenticated" in missing and is_submission(call.service):
            self.find(
                f"master.cf: {call.service}: {call.parameter}",
                "users who submit their own mail are judged as strangers: permit_sasl_authenticated is not "
                "before check_policy_service",
                f"-o {{ {call.parameter} = permit_sasl_authenticated, reject }}",
            )
        elif missing:
            others = [step.name for step in call.before if step.name not in _EXEMPTIONS]
            is_for_later = logins == "later" and "permit_sasl_authenticated" in missing
            later = ", as soon as they may log in (smtpd_sasl_auth_enable)" if is_for_later else ""
            self.find(
                call.where,
                f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not before "
                f"check_policy_service: {' and '.join(_EXEMPTIONS[name] for name in missing)} are judged as strangers"
                f"{later}",
                f"{call.parameter} = {', '.join((*_EXEMPTIONS, *others))}, check_policy_service ...",
            )
        else:
            present = [name for name in _EXEMPTIONS if name in call.names_before]
            verb = "are" if len(present) > 1 else "is"
            self.approve(f"{call.where}: {' and '.join(present)} {verb} before check_policy_service")

    def _check_user_counters(self, ours: Sequence[Call]) -> None:
        """Checks whether a service asks policyd about authenticated users, so that the counters of users count."""
        feeding = [call for call in ours if self._is_about_users(call)]
        several = len(self.user_counters) > 1
        names = f"counter{'s' if several else ''} {', '.join(self.user_counters)}"
        for call in feeding:
            self.approve(
                f"{call.where}: asks policyd about authenticated users, whom {names} {'count' if several else 'counts'}"
            )
        if not feeding:
            self.find(
                f"rules.yaml: {names}",
                f"{'count' if several else 'counts'} by sasl_username, and no service asks policyd about authenticated "
                "users: permit_sasl_authenticated lets them through before policyd is asked, or they log in at a "
                "service that does not ask it",
                "master.cf, in the submission service: -o { smtpd_recipient_restrictions = "
                f"check_policy_service {ours[0].written}, permit_sasl_authenticated, reject }}",
            )

    def _is_about_users(self, call: Call) -> bool:
        """Whether a call asks policyd about authenticated users."""
        logs_in = bool(self._logins(call.service)) or is_submission(call.service)
        return logs_in and "permit_sasl_authenticated" not in call.names_before and not _is_void(call)

    def _logins(self, service: Service) -> str:
        """Whether users log in at a service: `yes`, `later`, or empty for no.

        `later` means that smtpd_sasl_auth_enable is not set for the service, and is not `yes` for any other service.
        """
        name = "smtpd_sasl_auth_enable"
        if self.postfix.value(name, service).lower() == "yes":
            return "yes"
        elsewhere = any(
            self.postfix.value(name, service).lower() == "yes" for service in self.postfix.services if is_smtpd(service)
        )
        return "" if elsewhere or self.postfix.is_set(name, service) else "later"

    def _check_effect(self, call: Call) -> None:
        """Checks settings that change the effect of policyd's answers, or prevent it."""
        service, value = call.service, self.postfix.value
        if call.is_muted:
            self.find(
                call.where,
                "warn_if_reject is before check_policy_service: Postfix logs what policyd refuses, and accepts it",
                "remove warn_if_reject; to observe only, write mode: observe in the ruleset",
            )
        if call.parameter == "smtpd_etrn_restrictions":
            self.find(
                call.where,
                "here policyd is asked about the command ETRN only, not about mail",
                "check_policy_service in smtpd_recipient_restrictions",
            )
        if "defer_if_reject" in call.names_before:
            self.find(
                call.where,
                "defer_if_reject is before check_policy_service: every REJECT is answered as a DEFER",
                "remove defer_if_reject, or put it into another list",
            )
        stage = _EARLY_STAGES.get(call.parameter)
        if stage is not None and value("smtpd_delay_reject", service).lower() == "no":
            self.find(
                self.postfix.where("smtpd_delay_reject", service),
                f"smtpd_delay_reject = no: policyd is asked at {stage}, before clients log in, so users are judged as "
                "strangers, and no rule on sender or recipient holds",
                "smtpd_delay_reject = yes, or check_policy_service in smtpd_recipient_restrictions",
            )
        if value("soft_bounce", service).lower() == "yes":
            self.find(
                self.postfix.where("soft_bounce", service),
                "soft_bounce = yes: every REJECT is answered as a temporary error, and clients come back for days",
                "soft_bounce = no",
            )
        if not value("access_map_reject_code", service).startswith("5"):
            self.find(
                self.postfix.where("access_map_reject_code", service),
                f"access_map_reject_code = {value('access_map_reject_code', service)}: every REJECT is answered with "
                "that code, which is not a permanent error",
                "access_map_reject_code = 554",
            )
        if value("smtpd_peername_lookup", service).lower() == "no":
            self.find(
                self.postfix.where("smtpd_peername_lookup", service),
                "smtpd_peername_lookup = no: Postfix sends client_name=unknown for every client, so rules on "
                "client_name and reverse_client_name never match, and every client costs policyd a lookup",
                "smtpd_peername_lookup = yes",
            )
        all_hosts = [text for text in list_of(value("mynetworks", service)) if text in {"0.0.0.0/0", "[::]/0", "::/0"}]
        if all_hosts and "permit_mynetworks" in call.names_before:
            self.find(
                self.postfix.where("mynetworks", service),
                f"mynetworks has {all_hosts[0]}: permit_mynetworks lets every client through before policyd is asked",
                "mynetworks with your own networks only",
            )

    def _check_timeout(self, call: Call) -> None:
        """Checks whether Postfix waits long enough for an answer."""
        written = call.attributes.get("timeout", self.postfix.value("smtpd_policy_service_timeout", call.service))
        timeout, needed = seconds_of(written), self.settings.dns.timeout
        if timeout is not None and timeout <= needed:
            self.find(
                call.where,
                f"Postfix waits {written} for an answer, and policyd may wait {needed:g} s for DNS (dns.timeout) "
                "before it gives one",
                f"timeout={int(needed + 5)}s in the braces after check_policy_service",
            )
        elif timeout is not None:
            self.approve(f"{call.where}: Postfix waits {written}, longer than dns.timeout ({needed:g} s)")

    def _check_default_action(self, call: Call) -> None:
        """Checks what Postfix does if policyd does not answer."""
        name = "smtpd_policy_service_default_action"
        action = call.attributes.get("default_action", "")
        if not action and self.postfix.is_set(name, call.service):
            action = self.postfix.value(name, call.service)
        down = "while policyd does not run"
        if not action:
            self.find(
                call.where,
                f"no default_action: {down}, every mail is answered "
                f"{self.postfix.value(name, call.service) or '451 4.3.5 Server configuration problem'}",
                f"check_policy_service {{ {call.written}, timeout=10s, default_action=DUNNO }}",
            )
        elif re.match(r"reject\b|5\d\d|5\.\d", action, re.IGNORECASE):
            self.find(
                call.where,
                f"default_action={action}: {down}, every mail is rejected for good",
                "default_action=DUNNO, or default_action=DEFER",
            )
        elif re.match(r"(ok|permit|relay)\b|\d+$", action, re.IGNORECASE) and self._relays(call):
            self.find(
                call.where,
                f"default_action={action}: {down}, this host is an open relay: reject_unauth_destination is not "
                f"before check_policy_service{self._no_other_guard(call)}",
                "reject_unauth_destination before check_policy_service, and default_action=DUNNO",
            )
        elif re.match(r"(ok|permit|relay)\b|\d+$", action, re.IGNORECASE) and call.after:
            self.find(
                call.where,
                f"default_action={action}: {down}, the restrictions after check_policy_service are skipped "
                f"({', '.join(dict.fromkeys(step.name for step in call.after))})",
                "default_action=DUNNO",
            )
        else:
            self.approve(f"{call.where}: without an answer Postfix does {action}")

    def _relays(self, call: Call) -> bool:
        """Whether a permit in place of policyd's answer would make the host an open relay."""
        if call.parameter not in _RELAY_LISTS or RELAY_GUARDS & call.names_before:
            return False
        (other,) = (name for name in _RELAY_LISTS if name != call.parameter)
        return not RELAY_GUARDS.intersection(step.name for step in steps_of(self.postfix, call.service, other))

    def _no_other_guard(self, call: Call) -> str:
        if call.parameter == "smtpd_relay_restrictions":
            return ""
        empty = not steps_of(self.postfix, call.service, "smtpd_relay_restrictions")
        return f", and smtpd_relay_restrictions {'is empty' if empty else 'does not have it'}"

    # --- The socket and the daemon ----------------------------------------------------------------------------------

    def _check_connection(self, ours: Sequence[Call], question: Question | None) -> None:
        """Checks whether Postfix can connect, and whether policyd answers."""
        missing: set[InetAddress | UnixAddress] = set()
        for address in dict.fromkeys(call.address for call in ours):
            if isinstance(address, UnixAddress) and self._check_socket(address, ours):
                missing.add(address)
        if question is None or question.endpoint in missing:
            return
        where = str(question.endpoint)
        if question.answer is None:
            if self._is_of_systemd(question.endpoint):
                what, write = f"policyd.socket is not running: {question.error}", _START_SOCKET
                if question.error.startswith("no answer"):
                    what, write = f"policyd.socket is running, but policyd is not: {question.error}", _LOOK_AT_SERVICE
            else:
                what = f"the daemon did not answer: {question.error}"
                write = "start policyd (systemctl status policyd), or find out which other program listens there"
            self.find(where, what, write)
        elif not re.fullmatch(rb"action=\S[^\n]*", question.answer.content):
            what = "the program that answers there does not speak the policy protocol"
            self.find(where, what, "find out which program listens there (ss -lptn, ss -lpx)")
        elif question.policyd is None:
            what = "the program that answers there is another policy service, or a policyd older than 0.2.0"
            self.find(where, what, "restart policyd, or find out which program listens there (ss -lptn, ss -lpx)")
        elif question.endpoint not in self._listen_addresses and any(
            call.address == question.endpoint for call in ours
        ):
            listened = ", ".join(str(address) for address in self._listen_addresses)
            self.approve(
                f"{where} answers; policyd.yaml says listen: [{listened}], which a socket from systemd replaces"
            )

    def _is_of_systemd(self, endpoint: InetAddress | UnixAddress) -> bool:
        """Whether policyd.socket makes this socket, not policyd itself."""
        if endpoint in self.sockets:
            return True
        return endpoint not in self.settings.listen and is_shipped_socket(endpoint, self.postfix)

    def _check_socket(self, address: UnixAddress, ours: Sequence[Call]) -> bool:
        """Reports an obstacle for smtpd(8), which runs as mail_owner. Returns whether the socket is missing.

        A socket outside the chroot counts as missing; `_check_chroot` reports it.
        """
        if any(call.address == address and self._is_outside_chroot(call) for call in ours):
            return True
        owner = self.postfix.value("mail_owner") or "postfix"
        found = obstacle(address.path, owner)
        if found is None:
            self.approve(f"the socket {address.path}: {owner} may connect")
            return False
        if found.is_missing and self._is_of_systemd(address):
            self.find(
                f"the socket {address.path}",
                "policyd.socket is not running, so the socket does not exist",
                _START_SOCKET,
            )
        else:
            self.find(f"the socket {address.path}", found.what, found.write)
        return found.is_missing


def _is_void(call: Call) -> bool:
    """Whether policyd's answer to a call never counts for mail."""
    names = call.names_before
    is_over = any(step.name in FINAL and not step.is_muted for step in call.before)
    return is_over or call.is_muted or "permit_auth_destination" in names or call.parameter == "smtpd_etrn_restrictions"
