from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from policyd.config.settings import Dns, InetAddress, Settings, UnixAddress
from policyd.core.protocol import ProbeReply
from policyd.tools.doctor.diagnosis import Diagnosis, diagnose
from policyd.tools.doctor.endpoints import QUESTION_ATTRIBUTES
from policyd.tools.doctor.policy_client import MAX_ANSWER_BYTES, AskError, ask
from policyd.tools.doctor.postfix_config import (
    PostconfError,
    list_of,
    parse_postfix,
    read_postfix,
    seconds_of,
    words_of,
)
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Iterator

RIGHT = (
    "permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination, "
    "check_policy_service {{ {endpoint}, timeout=10s, default_action=DUNNO }}"
)
POLICYD = ProbeReply("0.2.0", "3f9c2a1b", observes=False).encode()
MASTER = "smtp inet n - {chroot} - - smtpd\n"


@contextlib.contextmanager
def policy_server(listener: socket.socket, answer: bytes | None) -> Iterator[list[bytes]]:
    """Runs a server that gives every client the same answer, or none if `answer` is None; yields the requests."""
    requests: list[bytes] = []
    open_connections = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            open_connections.append(connection)
            request = b""
            while b"\n\n" not in request and (part := connection.recv(4096)):
                request += part
            requests.append(request)
            if answer is not None:
                with contextlib.suppress(OSError):  # the client closes after MAX_ANSWER_BYTES
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield requests
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for connection in open_connections:
            connection.close()


@contextlib.contextmanager
def inet_daemon(answer: bytes | None = POLICYD) -> Iterator[InetAddress]:
    listener = socket.create_server(("127.0.0.1", 0))
    address = InetAddress("127.0.0.1", listener.getsockname()[1])
    with policy_server(listener, answer):
        yield address


@contextlib.contextmanager
def unix_daemon(path: Path, mode: int = 0o666) -> Iterator[UnixAddress]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(mode)
    listener.listen()
    with policy_server(listener, POLICYD):
        yield UnixAddress(str(path))


@pytest.fixture
def queue() -> Iterator[Path]:
    """Postfix's queue directory: every user may enter it, and its path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="queue-") as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "private").mkdir(mode=0o755)
        yield Path(folder)


@pytest.fixture(autouse=True)
def _needs_postconf() -> None:
    require("postconf")


def diagnosis_of(folder: Path, main: str, settings: Settings, master: str = MASTER.format(chroot="y")) -> Diagnosis:
    """Returns doctor's diagnosis of a configuration, read by the real postconf."""
    configuration = folder / "postfix"
    configuration.mkdir(exist_ok=True)
    main_cf = configuration / "main.cf"
    main_cf.write_text(f"compatibility_level = 3.6\nqueue_directory = {folder}\nmail_owner = nobody\n{main}")
    os.utime(main_cf, (0, 0))  # postconf waits if a file is younger than a second: it may be incomplete
    (configuration / "master.cf").write_text(master)
    return diagnose(read_postfix(str(configuration)), settings, timeout=20.0)


def findings(diagnosis: Diagnosis) -> list[str]:
    return [f"{finding.where}: {finding.what} -> {finding.write}" for finding in diagnosis.findings]


def test_a_right_configuration_has_no_findings(queue: Path) -> None:
    with inet_daemon() as address:
        diagnosis = diagnosis_of(
            queue, f"smtpd_recipient_restrictions = {RIGHT.format(endpoint=address)}\n", Settings(listen=(address,))
        )
    assert findings(diagnosis) == []
    assert diagnosis.question is not None
    assert diagnosis.question.endpoint == address
    assert diagnosis.question.policyd == ("0.2.0", "3f9c2a1b", False)
    assert any("default_action" not in line and "DUNNO" in line for line in diagnosis.right)
    assert "master.cf: smtp inet: strangers reach it, and it asks policyd in smtpd_recipient_restrictions" in (
        diagnosis.right
    )


def test_the_question_names_no_mail_that_a_greylisting_service_could_remember() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with policy_server(listener, b"action=REJECT 5.7.1 no\n\n") as requests:
        answer = ask(InetAddress("127.0.0.1", listener.getsockname()[1]), QUESTION_ATTRIBUTES, 20.0)
    assert answer.content == b"action=REJECT 5.7.1 no"
    assert requests[0].startswith(b"request=smtpd_access_policy\nprotocol_state=CONNECT\n")
    assert b"\ninstance=policyd-doctor\npolicyd_probe=1\n\n" in requests[0]
    assert b"sender" not in requests[0]
    assert b"recipient" not in requests[0]


# By the text of main.cf: a part of its only finding; empty if there is no finding.
MAIN_CF = {
    "": "no check_policy_service anywhere",
    "smtpd_recipient_restrictions = reject_unauth_destination, ASK": (
        "permit_mynetworks and permit_sasl_authenticated are not before"
    ),
    "smtpd_recipient_restrictions = ASK, permit_mynetworks": (
        "permit_mynetworks and permit_sasl_authenticated are not before"
    ),
    "smtpd_recipient_restrictions = permit_mynetworks ASK": "permit_sasl_authenticated is not before",
    "smtpd_sender_restrictions = permit_sasl_authenticated ASK": "permit_mynetworks is not before",
    "smtpd_recipient_restrictions = OURS, check_policy_service ENDPOINT": (
        "no default_action: while policyd does not run, every mail is answered 451 4.3.5"
    ),
    "smtpd_recipient_restrictions = OURS, check_policy_service { ENDPOINT, timeout=3s, default_action=DUNNO }": (
        "Postfix waits 3s for an answer, and policyd may wait 5 s for DNS"
    ),
    "smtpd_policy_service_timeout = 5\nsmtpd_recipient_restrictions = OURS, ASK": "Postfix waits 5",
    "smtpd_recipient_restrictions = OURS, check_policy_service { ENDPOINT, { default_action = REJECT later } }": (
        "default_action=REJECT later: while policyd does not run, every mail is rejected for good"
    ),
    "smtpd_recipient_restrictions = OURS, reject, ASK": "reject is before check_policy_service",
    # Right configurations.
    "smtpd_recipient_restrictions = OURS, ASK": "",
    "smtpd_policy_service_default_action = DUNNO\n"
    "smtpd_recipient_restrictions = OURS, check_policy_service ENDPOINT": "",
    "smtpd_restriction_classes = strangers\nstrangers = permit_sasl_authenticated, ASK\n"
    "smtpd_data_restrictions = permit_mynetworks, strangers": "",
    "ours = OURS\nasking = { ENDPOINT, default_action=DUNNO }\n"
    "smtpd_client_restrictions = $ours, check_policy_service ${asking}": "",
}
ABBREVIATED = {
    "OURS": "permit_mynetworks, permit_sasl_authenticated",
    "ASK": "check_policy_service { ENDPOINT, default_action=DUNNO }",
}


@pytest.mark.parametrize("main", MAIN_CF)
def test_main_cf_has_exactly_the_expected_finding(queue: Path, main: str) -> None:
    text = main
    for word, meaning in ABBREVIATED.items():
        text = text.replace(word, meaning)
    with inet_daemon() as address:
        written = text.replace("ENDPOINT", str(address))
        found = findings(diagnosis_of(queue, f"{written}\n", Settings(listen=(address,))))
    assert len(found) == bool(MAIN_CF[main]), found
    assert MAIN_CF[main] in "".join(found)


SUBMISSION = "submission inet n - y - - smtpd\n  -o syslog_name=postfix/submission\n  -o smtpd_sasl_auth_enable=yes\n"


@pytest.mark.parametrize(
    ("main", "overrides", "wanted"),
    [
        ("permit_mynetworks, check_policy_service {{ {endpoint}, default_action=DUNNO }}", "", 1),
        (
            "permit_mynetworks, check_policy_service {{ {endpoint}, default_action=DUNNO }}",
            "  -o { smtpd_recipient_restrictions = permit_sasl_authenticated, reject }\n",
            0,
        ),
        (
            "permit_mynetworks, check_policy_service {{ {endpoint}, default_action=DUNNO }}",
            "  -o smtpd_client_restrictions=permit_sasl_authenticated,reject\n",
            1,
        ),
        (RIGHT, "  -o smtpd_recipient_restrictions=$mua_restrictions\n", 0),
        (RIGHT, "", 0),
    ],
    ids=["no override", "right override", "override of another list", "override by a parameter", "right main.cf"],
)
def test_a_service_where_users_are_judged_as_strangers_is_reported(
    queue: Path, main: str, overrides: str, wanted: int
) -> None:
    with inet_daemon() as address:
        text = f"smtpd_recipient_restrictions = {main.format(endpoint=address)}\n"
        text += "mua_restrictions = permit_sasl_authenticated, reject\n"
        master = MASTER.format(chroot="y") + SUBMISSION + overrides
        found = findings(diagnosis_of(queue, text, Settings(listen=(address,)), master))
    assert len(found) == wanted, found
    if wanted:
        assert "master.cf: submission inet: smtpd_recipient_restrictions: users who submit their own mail" in found[0]
        assert "-o { smtpd_recipient_restrictions = permit_sasl_authenticated, reject }" in found[0]


def test_a_timeout_in_master_cf_is_checked(queue: Path) -> None:
    with inet_daemon() as address:
        asking = f"check_policy_service {{ {address}, default_action=DUNNO }}"
        main = f"smtpd_recipient_restrictions = permit_mynetworks, permit_sasl_authenticated, {asking}\n"
        master = MASTER.format(chroot="y") + "587 inet n - y - - smtpd\n  -o smtpd_policy_service_timeout=2s\n"
        found = findings(diagnosis_of(queue, main, Settings(listen=(address,), dns=Dns(timeout=4.0)), master))
    assert len(found) == 1
    assert "Postfix waits 2s" in found[0]
    assert "timeout=9s" in found[0]


def test_a_timeout_that_cannot_be_read_is_not_called_right(queue: Path) -> None:
    with inet_daemon() as address:
        main = f"smtpd_recipient_restrictions = {RIGHT.format(endpoint=address).replace('10s', '10x')}\n"
        diagnosis = diagnosis_of(queue, main, Settings(listen=(address,)))
    assert not any("Postfix waits" in line for line in diagnosis.right)


def test_an_endpoint_where_policyd_does_not_listen_is_reported_unless_policyd_answers(queue: Path) -> None:
    with inet_daemon() as address:
        main = f"smtpd_recipient_restrictions = {RIGHT.format(endpoint=address)}\n"
        diagnosis = diagnosis_of(queue, main, Settings())
        assert findings(diagnosis) == []
        assert any("which a socket from systemd replaces" in line for line in diagnosis.right)
    found = findings(diagnosis_of(queue, main, Settings()))
    assert len(found) == 2
    assert f"check_policy_service asks {address}, and policyd listens on inet:127.0.0.1:10040" in found[0]
    assert "did not answer: connection refused" in found[1]


def test_another_policy_service_is_not_judged(queue: Path) -> None:
    with inet_daemon() as address:
        right = RIGHT.format(endpoint=address)
        main = f"smtpd_recipient_restrictions = check_policy_service inet:127.0.0.1:9, {right}\n"
        assert findings(diagnosis_of(queue, main, Settings(listen=(address,)))) == []


@pytest.mark.parametrize(
    ("written", "listen"),
    [("inet:localhost:{port}", "127.0.0.1"), ("inet:{port}", "127.0.0.1"), ("inet:127.0.0.1:{port}", "0.0.0.0")],
)
def test_each_way_to_write_an_address_is_recognised(queue: Path, written: str, listen: str) -> None:
    with inet_daemon() as address:
        main = f"smtpd_recipient_restrictions = {RIGHT.format(endpoint=written.format(port=address.port))}\n"
        diagnosis = diagnosis_of(queue, main, Settings(listen=(InetAddress(listen, address.port),)))
    assert [text for text in findings(diagnosis) if "policyd listens" in text] == []


# --- The socket -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["unix:private/policyd", "unix:/private/policyd"])
def test_a_socket_in_the_chroot_is_right(queue: Path, written: str) -> None:
    main = f"smtpd_recipient_restrictions = {RIGHT.format(endpoint=written)}\n"
    with unix_daemon(queue / "private" / "policyd") as address:
        diagnosis = diagnosis_of(queue, main, Settings(listen=(address,)))
    assert findings(diagnosis) == []
    assert any("nobody may connect" in line for line in diagnosis.right)


def test_a_socket_outside_of_the_chroot_is_reported_with_the_path_inside(queue: Path) -> None:
    path = queue / "run" / "policyd"
    path.parent.mkdir(mode=0o755)
    main = f"smtpd_recipient_restrictions = {RIGHT.format(endpoint=f'unix:{path}')}\n"
    with unix_daemon(path) as address:
        found = findings(diagnosis_of(queue, main, Settings(listen=(address,))))
        without_chroot = diagnosis_of(queue, main, Settings(listen=(address,)), MASTER.format(chroot="n"))
    assert "outside of it" in found[0]
    assert f"policyd.yaml: listen: [unix:{queue}{path}]" in found[0]
    assert findings(without_chroot) == []


@pytest.mark.parametrize(
    ("mode", "folder_mode", "wanted"),
    [
        (0o600, 0o755, "nobody may not connect: owner root, group root, mode 0600"),
        (0o660, 0o755, 'socket_group: nogroup and socket_mode: "0660"'),
        (0o666, 0o700, "nobody may not enter"),
    ],
    ids=["wrong owner", "wrong group", "closed folder"],
)
def test_a_socket_that_postfix_may_not_use_is_reported(queue: Path, mode: int, folder_mode: int, wanted: str) -> None:
    require(root=True)
    main = f"smtpd_recipient_restrictions = {RIGHT.format(endpoint='unix:private/policyd')}\n"
    with unix_daemon(queue / "private" / "policyd", mode) as address:
        (queue / "private").chmod(folder_mode)
        (found,) = findings(diagnosis_of(queue, main, Settings(listen=(address,))))
    assert wanted in found


def test_a_socket_of_postfixs_group_is_right(queue: Path) -> None:
    require(root=True)
    main = f"smtpd_recipient_restrictions = {RIGHT.format(endpoint='unix:private/policyd')}\n"
    with unix_daemon(queue / "private" / "policyd", 0o660) as address:
        shutil.chown(address.path, group="nogroup")
        assert findings(diagnosis_of(queue, main, Settings(listen=(address,)))) == []


def test_a_missing_socket_or_a_file_in_its_place_is_reported(queue: Path) -> None:
    main = f"smtpd_recipient_restrictions = {RIGHT.format(endpoint='unix:private/policyd')}\n"
    settings = Settings(listen=(UnixAddress(f"{queue}/private/policyd"),))
    assert "it is not there" in findings(diagnosis_of(queue, main, settings))[0]
    (queue / "private" / "policyd").write_text("")
    assert "the path exists and is not a socket" in findings(diagnosis_of(queue, main, settings))[0]


# --- The question -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (None, "no answer within 0.3 s"),
        (b"", "closed without an answer"),
        (b"action=DUN", "the answer is cut off"),
        (b"x" * (MAX_ANSWER_BYTES + 5000), "more than 16 KiB of answer"),
    ],
    ids=["silent", "closed", "cut off", "too long"],
)
def test_a_missing_or_broken_answer_is_reported_with_its_reason(answer: bytes | None, wanted: str) -> None:
    with inet_daemon(answer) as address, pytest.raises(AskError, match=wanted):
        ask(address, QUESTION_ATTRIBUTES, 0.3 if answer is None else 20.0)


def test_a_program_that_is_not_a_policy_service_is_reported(queue: Path) -> None:
    with inet_daemon(b"220 mail.example ESMTP\r\n\n\n") as address:
        main = f"smtpd_recipient_restrictions = {RIGHT.format(endpoint=address)}\n"
        found = findings(diagnosis_of(queue, main, Settings(listen=(address,))))
    assert ["does not speak the policy protocol" in text for text in found] == [True]


# --- Reading postconf -------------------------------------------------------------------------------------------------


def test_a_configuration_that_postconf_refuses_gets_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(PostconfError, match="No such file or directory"):
        read_postfix(str(tmp_path / "nowhere"))
    with pytest.raises(PostconfError, match="no-such-postconf: no such program"):
        read_postfix(str(tmp_path), "no-such-postconf")
    with pytest.raises(PostconfError, match="permission denied"):
        read_postfix(str(tmp_path), str(tmp_path))


def test_services_and_their_overrides_are_read() -> None:
    postfix = parse_postfix(
        "compatibility_level = 0\nqueue_directory = /q\na = $b\nb = x\n",
        "a = $b\n",
        "smtp inet n - - - - smtpd -o { a = 1, 2 } -o b=3 -v -o\n"
        "[::1]:587 inet n - n - - /usr/sbin/smtpd\nshort line\n",
    )
    first, second = postfix.services
    assert (first.name, first.chroot, dict(first.overrides)) == ("smtp", True, {"a": "1, 2", "b": "3"})
    assert (second.name, second.chroot, second.command) == ("[::1]:587", False, "/usr/sbin/smtpd")
    assert (postfix.value("a"), postfix.value("a", first), postfix.value("none")) == ("x", "1, 2", "")
    assert postfix.explicit == {"a"}


def test_expanding_parameters_that_name_each_other_ends() -> None:
    postfix = parse_postfix("a = $b $b\nb = x$(c)\nc = ${a}\nd = $$5\ne = $e$e$e$e$e$e$e$e\n", "", "")
    assert [len(postfix.value(name)) <= 64 * 1024 for name in "ae"] == [True, True]
    assert postfix.value("d") == "$5"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b,c", ["a", "b,c"]),
        ("a { b, { c } } d", ["a", "{ b, { c } }", "d"]),
        ("{ a", ["{ a"]),
        ("a } b", ["a", "}", "b"]),
        ("", []),
    ],
)
def test_braces_keep_words_together(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_lists_and_times_are_parsed() -> None:
    assert list_of("a, b\n c,,d") == ["a", "b", "c", "d"]
    times = {"10s": 10, "5": 5, "2m": 120, "1h": 3600, "x": None}
    assert {text: seconds_of(text) for text in times} == times
