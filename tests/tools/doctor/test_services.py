"""Configurations that look right and are wrong, and others that look wrong and are right; postconf reads them all."""

from __future__ import annotations

import re
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from policyd.config.settings import Settings, UnixAddress
from policyd.tools.doctor.diagnosis import diagnose
from policyd.tools.doctor.endpoints import systemd_sockets
from policyd.tools.doctor.postfix_config import PostconfError, read_postfix, read_saved
from policyd.tools.doctor.restrictions import Audience
from tests.requirements import require
from tests.tools.doctor.test_doctor import diagnosis_of, findings, inet_daemon, queue, unix_daemon

if TYPE_CHECKING:
    from pathlib import Path

    from policyd.tools.doctor.diagnosis import Diagnosis

__all__ = ["queue"]  # a fixture

ASK = "check_policy_service { ENDPOINT, timeout=10s, default_action=DUNNO }"
FIRST = "permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination"
FIRST_WITHOUT_BLANKS = FIRST.replace(" ", "")
RIGHT = f"smtpd_sasl_auth_enable = yes\nsmtpd_recipient_restrictions = {FIRST}, {ASK}\n"
SMTP = "smtp inet n - n - - smtpd\n"
OTHER = b"action=DUNNO\n\n"


@pytest.fixture(autouse=True)
def _needs_postconf() -> None:
    require("postconf")


def diagnosis_with_servers(folder: Path, main: str, master: str = SMTP) -> Diagnosis:
    """Returns doctor's diagnosis of a configuration, with policyd at ENDPOINT and another service at OTHER."""
    with inet_daemon() as address, inet_daemon(OTHER) as other:
        main, master = (text.replace("ENDPOINT", str(address)).replace("OTHER", str(other)) for text in (main, master))
        return diagnosis_of(folder, main, Settings(listen=(address,)), master)


# --- Wrong configurations ---------------------------------------------------------------------------------------------

WRONG = {
    # A list in master.cf replaces that of main.cf.
    "recipient restrictions in master.cf": (
        RIGHT,
        f"smtp inet n - n - - smtpd -o smtpd_recipient_restrictions={FIRST_WITHOUT_BLANKS}\n26 inet n - n - - smtpd\n",
        (
            "master.cf: smtp inet: strangers reach this service, and it never asks policyd: its -o "
            "smtpd_recipient_restrictions replaces the value in main.cf"
        ),
    ),
    "recipient restrictions in master.cf behind postscreen": (
        RIGHT,
        (
            "smtp inet n - n - 1 postscreen\nsmtpd pass - - n - - smtpd\n"
            "  -o { smtpd_recipient_restrictions = permit_mynetworks, reject_unauth_destination }\n"
            "2525 inet n - n - - smtpd\n"
        ),
        "master.cf: smtpd pass: strangers reach this service, and it never asks policyd",
    ),
    "an empty list in master.cf": (
        RIGHT,
        "25 inet n - n - - smtpd\n  -o smtpd_recipient_restrictions=\n26 inet n - n - - smtpd\n",
        "master.cf: 25 inet: strangers reach this service, and it never asks policyd",
    ),
    "only the submission service asks": (
        f"smtpd_recipient_restrictions = {FIRST}\n",
        (
            f"{SMTP}submission inet n - n - - smtpd\n  -o smtpd_sasl_auth_enable=yes\n"
            f"  -o {{ smtpd_recipient_restrictions = {FIRST}, {ASK} }}\n"
        ),
        "master.cf: smtp inet: strangers reach this service, and it never asks policyd",
    ),
    # policyd is not asked, or its answer does not count.
    "permit_auth_destination": (
        RIGHT.replace("reject_unauth_destination", "permit_auth_destination, reject_unauth_destination"),
        SMTP,
        "permit_auth_destination is before check_policy_service: mail for your own domains passes",
    ),
    "permit_auth_destination and reject": (
        RIGHT.replace("reject_unauth_destination,", "permit_auth_destination, reject,"),
        SMTP,
        "reject is before check_policy_service, which is never reached",
    ),
    "permit_auth_destination in a class": (
        f"smtpd_restriction_classes = ours\nours = permit_auth_destination\n{RIGHT.replace(ASK, f'ours, {ASK}')}",
        SMTP,
        "permit_auth_destination is before",
    ),
    "warn_if_reject": (RIGHT.replace(ASK, f"warn_if_reject {ASK}"), SMTP, "warn_if_reject is before"),
    "warn_if_reject before a class": (
        (
            f"smtpd_restriction_classes = strangers\nstrangers = reject_unknown_sender_domain, {ASK}\n"
            f"smtpd_sasl_auth_enable = yes\nsmtpd_recipient_restrictions = {FIRST}, warn_if_reject strangers\n"
        ),
        SMTP,
        "warn_if_reject is before check_policy_service: Postfix logs what policyd refuses, and accepts it",
    ),
    "the list for ETRN": (
        f"smtpd_etrn_restrictions = permit_mynetworks, {ASK}\n",
        SMTP,
        "here policyd is asked about the command ETRN only",
    ),
    "defer_if_reject": (RIGHT.replace(ASK, f"defer_if_reject, {ASK}"), SMTP, "every REJECT is answered as a DEFER"),
    # policyd is asked before clients log in.
    "at CONNECT": (
        f"smtpd_delay_reject = no\nsmtpd_client_restrictions = permit_mynetworks, permit_sasl_authenticated, {ASK}\n",
        SMTP,
        "main.cf: smtpd_delay_reject: smtpd_delay_reject = no: policyd is asked at CONNECT",
    ),
    "at HELO": (
        f"smtpd_helo_restrictions = permit_mynetworks, permit_sasl_authenticated, {ASK}\n",
        "smtp inet n - n - - smtpd -o smtpd_delay_reject=no\n",
        "master.cf: smtp inet: -o smtpd_delay_reject: smtpd_delay_reject = no: policyd is asked at HELO",
    ),
    # The default action is unsafe.
    "an open relay": (
        (
            f"smtpd_relay_restrictions =\nsmtpd_recipient_restrictions = permit_mynetworks, permit_sasl_authenticated, "
            f"{ASK.replace('DUNNO', 'OK')}, reject_unauth_destination\n"
        ),
        SMTP,
        (
            "default_action=OK: while policyd does not run, this host is an open relay: reject_unauth_destination "
            "is not before check_policy_service, and smtpd_relay_restrictions is empty"
        ),
    ),
    "an open relay at an old compatibility_level": (
        (
            "compatibility_level = 0\nsmtpd_policy_service_default_action = permit\n"
            "smtpd_recipient_restrictions = permit_mynetworks, permit_sasl_authenticated, "
            "check_policy_service { ENDPOINT, timeout=10s }, reject_unauth_destination\n"
        ),
        SMTP,
        "default_action=permit: while policyd does not run, this host is an open relay",
    ),
    "an open relay by a numeric default_action": (
        (
            f"smtpd_recipient_restrictions =\nsmtpd_relay_restrictions = permit_mynetworks, permit_sasl_authenticated, "
            f"{ASK.replace('DUNNO', '250')}, defer_unauth_destination\n"
        ),
        SMTP,
        "default_action=250: while policyd does not run, this host is an open relay",
    ),
    "later restrictions are skipped": (
        RIGHT.replace("DUNNO", "OK").replace("}\n", "}, reject_rbl_client zen.example\n"),
        SMTP,
        "the restrictions after check_policy_service are skipped (reject_rbl_client)",
    ),
    "every client is permitted": (
        f"mynetworks = 127.0.0.0/8 0.0.0.0/0\n{RIGHT}",
        SMTP,
        "mynetworks has 0.0.0.0/0: permit_mynetworks lets every client through before policyd is asked",
    ),
    # Parameters that change answers.
    "soft_bounce": (f"soft_bounce = yes\n{RIGHT}", SMTP, "soft_bounce = yes: every REJECT is answered as a temporary"),
    "soft_bounce of a service": (
        RIGHT,
        "smtp inet n - n - - smtpd -o soft_bounce=yes\n",
        "master.cf: smtp inet: -o soft_bounce: soft_bounce = yes",
    ),
    "another reject code": (
        f"access_map_reject_code = 450\n{RIGHT}",
        SMTP,
        "access_map_reject_code = 450: every REJECT is answered with that code",
    ),
    "no lookups of names": (
        f"smtpd_peername_lookup = no\n{RIGHT}",
        SMTP,
        "smtpd_peername_lookup = no: Postfix sends client_name=unknown for every client",
    ),
    "no logins at port 25, logins at 587": (
        f"smtpd_sasl_auth_enable = no\nsmtpd_recipient_restrictions = permit_mynetworks, {ASK}\n",
        f"{SMTP}587 inet n - n - - smtpd -o smtpd_sasl_auth_enable=yes\n",
        "master.cf: 587 inet: smtpd_recipient_restrictions: users who submit their own mail are judged as strangers",
    ),
    # Another service is asked.
    "another policy service only": (
        f"smtpd_recipient_restrictions = {FIRST}, check_policy_service OTHER\n",
        SMTP,
        "Postfix never asks policyd: check_policy_service asks OTHER, where another program answers",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_wrong_configuration_has_exactly_its_finding(queue: Path, name: str) -> None:
    main, master, wanted = WRONG[name]
    found = findings(diagnosis_with_servers(queue, main, master))
    assert len(found) == 1, found
    shown = wanted.partition("OTHER")
    assert shown[0] in found[0]
    assert shown[2] in found[0]


# --- Right configurations ---------------------------------------------------------------------------------------------

NO_USERS = f"smtpd_recipient_restrictions = permit_mynetworks, reject_unauth_destination, {ASK}\n"
SOUND = {
    "no logins, and users at a service with its own lists": (
        f"smtpd_sasl_auth_enable = no\n{NO_USERS}",
        (
            f"{SMTP}submission inet n - n - - smtpd\n  -o smtpd_sasl_auth_enable=yes\n"
            "  -o { smtpd_recipient_restrictions = permit_sasl_authenticated, reject }\n"
        ),
    ),
    "no logins anywhere": (
        f"smtpd_sasl_auth_enable = no\n{NO_USERS}",
        SMTP,
    ),
    "logins not set in main.cf, and users at a closed service": (
        NO_USERS,
        (
            f"{SMTP}submissions inet n - n - - smtpd\n  -o smtpd_tls_wrappermode=yes\n  -o smtpd_sasl_auth_enable=yes\n"
            "  -o smtpd_client_restrictions=permit_sasl_authenticated,reject\n"
            "  -o smtpd_recipient_restrictions=\n"
        ),
    ),
    "another service that is down": (
        RIGHT.replace(ASK, f"check_policy_service inet:127.0.0.1:9, {ASK}, check_policy_service unix:private/spf"),
        SMTP,
    ),
    "another service that is up, without default_action": (
        RIGHT.replace(ASK, f"check_policy_service OTHER, {ASK}"),
        SMTP,
    ),
    "a filter that hands mail back": (
        RIGHT,
        (
            f"{SMTP}127.0.0.1:10025 inet n - n - - smtpd\n"
            "  -o { smtpd_recipient_restrictions = permit_mynetworks, reject }\n  -o smtpd_client_restrictions=\n"
        ),
    ),
    "a port for our own hosts": (
        RIGHT,
        (
            f"{SMTP}2525 inet n - n - - smtpd\n  -o smtpd_client_restrictions=permit_mynetworks,reject\n"
            "  -o smtpd_recipient_restrictions=permit_mynetworks,reject\n"
        ),
    ),
    "postscreen in front": (RIGHT, "smtp inet n - n - 1 postscreen\nsmtpd pass - - n - - smtpd\n"),
    "warn_if_reject before another restriction": (
        RIGHT.replace(ASK, f"warn_if_reject reject_unknown_client_hostname, {ASK}"),
        SMTP,
    ),
    "a permitting default_action without later restrictions": (RIGHT.replace("DUNNO", "OK"), SMTP),
    "a permitting default_action with relay restrictions": (
        (
            f"smtpd_sasl_auth_enable = yes\nsmtpd_relay_restrictions = {FIRST}\n"
            f"smtpd_recipient_restrictions = {FIRST.rpartition(',')[0]}, {ASK.replace('DUNNO', 'OK')}\n"
        ),
        SMTP,
    ),
    "client restrictions, delayed": (
        f"smtpd_sasl_auth_enable = yes\nsmtpd_client_restrictions = {FIRST.rpartition(',')[0]}, {ASK}\n",
        SMTP,
    ),
    "permit_auth_destination in another list": (
        f"smtpd_relay_restrictions = permit_auth_destination, reject\n{RIGHT}",
        SMTP,
    ),
    "a conditional value": (
        (
            f"enable_policy = yes\nlist = ${{enable_policy ? {{{FIRST}, {ASK}}} : {{{FIRST}}}}}\n"
            "smtpd_sasl_auth_enable = yes\nsmtpd_recipient_restrictions = $list\n"
        ),
        SMTP,
    ),
    "a service by address": (RIGHT, "[::]:25 inet n - n - - smtpd\n192.0.2.1:smtp inet n - n - - smtpd\n"),
}


@pytest.mark.parametrize("name", SOUND)
def test_working_configurations_have_no_findings(queue: Path, name: str) -> None:
    diagnosis = diagnosis_with_servers(queue, *SOUND[name])
    assert findings(diagnosis) == []
    assert any("strangers reach it, and it asks policyd in" in line for line in diagnosis.right)


def test_services_are_grouped_by_the_clients_that_reach_them(queue: Path) -> None:
    master = (
        "smtp inet n - n - - smtpd\nsmtpd pass - - n - - smtpd\n"
        "submission inet n - n - - smtpd\n465 inet n - n - - smtpd\n"
        "127.0.0.1:10025 inet n - n - - smtpd\n[::1]:10026 inet n - n - - smtpd\n"
        "127.0.0.1:10027 inet n - n - - smtpd -o smtpd_upstream_proxy_protocol=haproxy\n"
        "2525 inet n - n - - smtpd -o smtpd_relay_restrictions=permit_sasl_authenticated,reject\n"
        "2526 inet n - n - - smtpd -o { smtpd_recipient_restrictions = permit_auth_destination, reject }\n"
        "policy unix - n n - - spawn user=nobody argv=/bin/true\n"
    )
    audiences = {
        str(service.service): service.audience for service in diagnosis_with_servers(queue, RIGHT, master).services
    }
    assert audiences == {
        "smtp inet": Audience.STRANGERS,
        "smtpd pass": Audience.STRANGERS,
        "submission inet": Audience.USERS,
        "465 inet": Audience.USERS,
        "127.0.0.1:10025 inet": Audience.THIS_HOST,
        "[::1]:10026 inet": Audience.THIS_HOST,
        "127.0.0.1:10027 inet": Audience.STRANGERS,
        "2525 inet": Audience.USERS,
        "2526 inet": Audience.STRANGERS,
    }


def test_a_submission_service_without_reject_is_only_noted(queue: Path) -> None:
    master = f"{SMTP}submission inet n - n - - smtpd\n  -o {{ smtpd_recipient_restrictions = {FIRST} }}\n"
    diagnosis = diagnosis_with_servers(queue, RIGHT, master)
    assert findings(diagnosis) == []
    assert any("submission inet: strangers can send mail to your own domains" in line for line in diagnosis.notes)


def test_a_postfix_for_users_only_is_noted(queue: Path) -> None:
    master = "submission inet n - n - - smtpd -o smtpd_client_restrictions=permit_sasl_authenticated,reject\n"
    diagnosis = diagnosis_with_servers(queue, RIGHT, master)
    assert findings(diagnosis) == []
    assert any("no smtpd service is reached by strangers" in line for line in diagnosis.notes)
    assert not any("reached by strangers" in line for line in diagnosis_with_servers(queue, RIGHT).notes)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "LIST = permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination, ASK"),
        ("$mine, reject_unauth_destination", "LIST = $mine, reject_unauth_destination, ASK"),
        (
            "permit_mynetworks\n reject_unauth_destination\n check_helo_access pcre:/x\n reject",
            "LIST = permit_mynetworks reject_unauth_destination, ASK, check_helo_access pcre:/x reject",
        ),
        ("permit_mynetworks, reject", "ASK, in LIST after permit_mynetworks and permit_sasl_authenticated"),
    ],
)
def test_the_suggested_line_keeps_existing_restrictions(queue: Path, before: str, after: str) -> None:
    diagnosis = diagnosis_with_servers(queue, f"smtpd_recipient_restrictions = {before}\n" if before else "")
    line = re.sub(r"check_policy_service \{[^}]*\}", "ASK", diagnosis.findings[0].write)
    assert line.replace("smtpd_recipient_restrictions", "LIST") == after


def test_a_class_that_only_access_tables_name_is_noted(queue: Path) -> None:
    main = f"smtpd_restriction_classes = asking\nasking = {ASK}\nsmtpd_recipient_restrictions = {FIRST}\n"
    diagnosis = diagnosis_with_servers(queue, main)
    assert "no check_policy_service anywhere" in findings(diagnosis)[0]
    assert any(
        "the class asking asks a policy service; access tables may send mail there" in note for note in diagnosis.notes
    )


def test_other_policy_services_are_named_and_not_judged(queue: Path) -> None:
    main = RIGHT.replace(
        ASK, f"check_policy_service {{ OTHER, timeout=1s }}, check_policy_service inet:127.0.0.1:9, {ASK}"
    )
    diagnosis = diagnosis_with_servers(queue, main)
    assert findings(diagnosis) == []
    notes = list(diagnosis.notes)
    assert [note.partition(" ")[2] for note in notes] == [
        "is not policyd; it is not judged",
        "gives no answer; it is not judged",
    ]


# --- The layout of the shipped systemd units --------------------------------------------------------------------------

SHIPPED = RIGHT.replace("ENDPOINT", "unix:private/policyd")


def test_a_stopped_systemd_socket_is_reported_without_advice_on_main_cf(queue: Path) -> None:
    (found,) = findings(diagnosis_of(queue, SHIPPED, Settings(), SMTP))
    assert found == (
        f"the socket {queue}/private/policyd: policyd.socket is not running, so the socket does not exist -> "
        "systemctl enable --now policyd.socket policyd.service"
    )


def test_a_systemd_socket_that_was_left_behind_is_reported(queue: Path) -> None:
    path = queue / "private" / "policyd"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    path.chmod(0o666)
    (found,) = findings(diagnosis_of(queue, SHIPPED, Settings(), SMTP))
    assert found.startswith(f"unix:{path}: policyd.socket is not running: connection refused -> systemctl enable --now")


def test_a_systemd_socket_without_a_daemon_is_reported(queue: Path) -> None:
    path = queue / "private" / "policyd"
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.bind(str(path))
        path.chmod(0o666)
        waiting.listen()
        configuration = queue / "postfix"
        diagnosis_of(queue, "", Settings(), SMTP)
        main_cf = configuration / "main.cf"
        main_cf.write_text(f"queue_directory = {queue}\nmail_owner = nobody\ncompatibility_level = 3.6\n{SHIPPED}")
        (found,) = findings(diagnose(read_postfix(str(configuration)), Settings(), timeout=0.2))
    assert "policyd.socket is running, but policyd is not: no answer within 0.2 s -> systemctl status" in found


def test_a_running_daemon_behind_a_systemd_socket_is_right(queue: Path) -> None:
    with unix_daemon(queue / "private" / "policyd"):
        diagnosis = diagnosis_of(queue, SHIPPED, Settings(), SMTP)
    assert findings(diagnosis) == []
    assert any("which a socket from systemd replaces" in line for line in diagnosis.right)


def test_the_suggestion_names_a_socket_in_the_queue_directory_by_its_relative_path(queue: Path) -> None:
    """Postfix would look for an absolute path in the chroot."""
    with unix_daemon(queue / "private" / "policyd") as address:
        (found,) = findings(diagnosis_of(queue, "", Settings(listen=(address,)), SMTP))
    assert "check_policy_service { unix:private/policyd, timeout=10s" in found


def test_a_service_of_master_cf_with_the_name_policyd_is_not_policyd(queue: Path) -> None:
    master = f"{SMTP}policyd unix - n n - 0 spawn user=nobody argv=/usr/bin/policyd-spf\n"
    found = findings(diagnosis_of(queue, SHIPPED, Settings(), master))
    assert "check_policy_service asks unix:private/policyd, and policyd listens on inet:127.0.0.1:10040" in found[0]


def test_the_sockets_of_an_installed_unit_replace_listen(queue: Path, tmp_path: Path) -> None:
    units = tmp_path / "etc/systemd/system"
    (units / "policyd.socket.d").mkdir(parents=True)
    (units / "policyd.socket").write_text("[Socket]\nListenStream=/var/spool/postfix/private/policyd\n")
    assert systemd_sockets(str(tmp_path)) == (UnixAddress("/var/spool/postfix/private/policyd"),)
    path = queue / "private" / "judge"
    (units / "policyd.socket.d" / "override.conf").write_text(
        f"[Socket]\nListenStream=\nListenStream={path}\nListenStream=127.0.0.1:10040\nListenStream=10041\n"
    )
    sockets = systemd_sockets(str(tmp_path))
    assert [str(socket) for socket in sockets] == [f"unix:{path}", "inet:127.0.0.1:10040", "inet:[::]:10041"]
    configuration = queue / "postfix"
    diagnosis_of(queue, RIGHT.replace("ENDPOINT", "unix:private/judge"), Settings(), SMTP)
    (found,) = findings(diagnose(read_postfix(str(configuration)), Settings(), sockets=sockets))
    assert "policyd.socket is not running" in found
    assert systemd_sockets(str(tmp_path / "nowhere")) == ()


# --- Saved configurations ---------------------------------------------------------------------------------------------


def saved_output(folder: Path, main: str, master: str) -> tuple[str, str]:
    """Returns two files with the output of postconf -n and postconf -M."""
    diagnosis_of(folder, main, Settings(), master)
    paths = []
    for option in ("-n", "-M"):
        path = folder / f"postconf{option}"
        path.write_bytes(subprocess.check_output(["postconf", "-c", str(folder / "postfix"), option]))
        paths.append(str(path))
    return paths[0], paths[1]


@pytest.mark.parametrize("name", [*(name for name in WRONG if "OTHER" not in "".join(WRONG[name])), *SOUND])
def test_a_saved_configuration_gets_the_findings_of_the_running_one(queue: Path, name: str) -> None:
    main, master, *_ = WRONG[name] if name in WRONG else SOUND[name]
    main, master = (text.replace("ENDPOINT", "inet:10040").replace("OTHER", "inet:10023") for text in (main, master))
    diagnosis = diagnose(read_saved(*saved_output(queue, main, master)), Settings())
    found = findings(diagnosis)
    assert diagnosis.question is None
    assert len(found) == len(WRONG[name][2:] if name in WRONG else ()), found
    if name in WRONG:
        assert WRONG[name][2] in found[0]


def test_a_saved_configuration_may_have_another_host_or_folder_for_policyd(queue: Path) -> None:
    main = RIGHT.replace("ENDPOINT", "inet:policyd:10040")
    assert findings(diagnose(read_saved(*saved_output(queue, main, SMTP)), Settings())) == []
    main = RIGHT.replace("ENDPOINT", "unix:/sockets/policyd.sock")
    settings = Settings(listen=(UnixAddress("/srv/mail/policyd.sock"),))
    assert findings(diagnose(read_saved(*saved_output(queue, main, SMTP)), settings)) == []
    main = RIGHT.replace("ENDPOINT", "inet:policyd:10050")
    (found,) = findings(diagnose(read_saved(*saved_output(queue, main, SMTP)), Settings()))
    assert "check_policy_service asks inet:policyd:10050, and policyd listens on inet:127.0.0.1:10040" in found


def test_main_cf_and_master_cf_may_be_given_instead_of_saved_output(queue: Path) -> None:
    main = queue / "main.cf"
    master = queue / "master.cf"
    main.write_text(
        "# a comment\nsmtpd_sasl_auth_enable=yes\nsmtpd_recipient_restrictions=permit_mynetworks,\n"
        "# a comment within\n   permit_sasl_authenticated\n   reject_unauth_destination\n\n"
        "   check_policy_service { inet:127.0.0.1:10040, timeout=10s, default_action=DUNNO }\n"
    )
    master.write_text(
        "# service type\nsmtp      inet  n       -       y       -       -       smtpd\n"
        "#submission inet n - y - - smtpd\nsmtps inet n - y - - smtpd\n  -o smtpd_tls_wrappermode=yes\n"
        "  -osmtpd_recipient_restrictions=permit_sasl_authenticated,reject\n"
    )
    diagnosis = diagnose(read_saved(str(main), str(master)), Settings())
    assert findings(diagnosis) == []
    assert [str(service.service) for service in diagnosis.services] == ["smtp inet", "smtps inet"]
    assert diagnosis.services[1].asks_in == ()


def test_the_output_of_postconf_without_n_may_be_given(queue: Path) -> None:
    postconf, master = saved_output(
        queue, RIGHT.replace(", default_action=DUNNO", "").replace("ENDPOINT", "inet:10040"), SMTP
    )
    with open(postconf, "wb") as file:  # noqa: PTH123 - a path as text
        subprocess.run(["postconf", "-c", str(queue / "postfix")], stdout=file, check=True)
    (found,) = findings(diagnose(read_saved(postconf, master), Settings()))
    assert "no default_action: while policyd does not run, every mail is answered 451 4.3.5" in found


def test_a_file_that_is_not_saved_output_gets_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "main").write_text("soft_bounce = no\n")
    with pytest.raises(PostconfError, match=r"empty: has no line NAME = VALUE; save it with: postconf -n > "):
        read_saved(str(tmp_path / "empty"), str(tmp_path / "main"))
    with pytest.raises(PostconfError, match=r"main: has no service; save it with: postconf -M > "):
        read_saved(str(tmp_path / "main"), str(tmp_path / "main"))
    with pytest.raises(PostconfError, match=r"absent: no such file or directory"):
        read_saved(str(tmp_path / "absent"), str(tmp_path / "main"))
