"""A daemon and its clients: ordinary ones, ones that misbehave, and too many."""

import os
import resource
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.daemon.client import Client, request, unnamed
from tests.daemon.conftest import BULK, DNS_RULES, LATER, StartPolicyd, log_lines
from tests.field.waiting import until
from tests.name_server import NXDOMAIN, Reply, ScriptedServer, reverse

VPS = request(client_name="os3-305-42423.vs.sakura.ne.jp")


def send_fails(client: Client, content: bytes) -> bool | None:
    """Sends `content`; returns True if the server has closed the connection, otherwise None, as `until` expects."""
    try:
        client.send(content)
    except TimeoutError:
        return None
    except OSError:
        return True
    return None


def test_the_daemon_answers_by_the_rules_and_logs_each_decision(start_policyd: StartPolicyd, port: int) -> None:
    with start_policyd() as policyd, Client(port) as client:
        rejected = client.ask(VPS)
        assert client.ask(BULK) == LATER
        assert client.ask(request(helo_name="a.dynamic.example")) == "DUNNO"
        first, second, third = policyd.decisions(3)
    assert rejected == f"REJECT 5.7.1 no virtual servers (vps {first['id']})"
    assert (first["rule"], first["hostname"], first["reverse_dns"]) == (
        "vps",
        "os3-305-42423.vs.sakura.ne.jp",
        "verified",
    )
    assert (second["action"], second["reply"]) == ("DEFER", "4.7.1 later")
    assert third["observed"] == ["first-try"]
    assert "rule" not in third
    assert "reply" not in third


def test_a_ruleset_that_observes_answers_dunno_and_shows_its_decision(start_policyd: StartPolicyd, port: int) -> None:
    rules = "mode: observe\nrules: [{name: all, match: {cidr: 0.0.0.0/0}, action: REJECT}]"
    with start_policyd(rules) as policyd, Client(port) as client:
        assert client.ask(request()) == "DUNNO"
        (decision,) = policyd.decisions()
        (started,) = log_lines(policyd, " started: ")
        assert started.endswith(" s; mode: observe, so every answer is DUNNO")
        assert log_lines(policyd, "mode: observe is at the top of the rules: every answer is DUNNO")
        policyd.rules.write_text(rules.replace("0.0.0.0/0", "192.0.2.0/24"))
        assert " s; mode: observe, so every answer is DUNNO" in policyd.reload()
    assert (decision["action"], decision["would"], decision["rule"]) == ("DUNNO", "REJECT", "all")
    assert "reply" not in decision


# --- Framing ----------------------------------------------------------------------------------------------------------


def test_a_request_may_arrive_byte_by_byte_or_joined_to_others(start_policyd: StartPolicyd, port: int) -> None:
    with start_policyd(), Client(port) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in BULK:
            client.send(bytes([byte]))
        assert client.answer() == LATER
        client.send(BULK + request() + BULK[:30])
        assert [client.answer(), client.answer()] == [LATER, "DUNNO"]
        client.send(BULK[30:] + request() * 200)
        assert [client.answer() for _ in range(201)] == [LATER] + ["DUNNO"] * 200


@pytest.mark.parametrize(
    ("garbage", "complaint"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n\n\n", "a line that is not name=value: 'GET / HTTP/1.1"),
        (bytes(range(256)) * 4 + b"\n\n", "a line that is not name=value"),
        (b"\n", "an empty request"),
        (b"protocol_state=RCPT\n\n", "a request without request=smtpd_access_policy"),
        (b"request=junk\x1b[2J\n\n", "request='junk\\x1b[2J'; only request=smtpd_access_policy is served"),
        (b"request=smtpd_access_policy\nsender=" + b"x" * 70000, "a request of more than 65536 bytes"),
    ],
)
def test_an_invalid_request_gets_a_log_line_and_no_answer(
    start_policyd: StartPolicyd, port: int, garbage: bytes, complaint: str
) -> None:
    with start_policyd() as policyd, Client(port) as client, Client(port) as other:
        client.send(garbage)
        assert client.is_closed()
        (line,) = log_lines(policyd, "closed")
        assert complaint in line
        assert line.isprintable()
        assert other.ask(BULK) == LATER


def test_repeated_garbage_gets_a_line_a_second_with_a_count(start_policyd: StartPolicyd, port: int) -> None:
    with start_policyd() as policyd:
        began = time.monotonic()
        for _ in range(300):
            with Client(port) as client:
                client.send(b"\n\n")
                assert client.is_closed()
        log_lines(policyd, "times since the last such line")
        assert len(log_lines(policyd, "an empty request")) <= time.monotonic() - began + 2


def test_an_incomplete_request_times_out(start_policyd: StartPolicyd, port: int) -> None:
    limits = {"request_timeout": "300ms", "idle_timeout": "1h"}
    with start_policyd(limits=limits) as policyd, Client(port) as idle, Client(port) as silent, Client(port) as slow:
        silent.send(BULK[:30])
        until("the end of the slow connection, which sends all the time", lambda: send_fails(slow, b"x"))
        assert silent.is_closed()
        assert "a request has not arrived whole within" in log_lines(policyd, "closed")[0]
        assert idle.ask(BULK) == LATER


def test_a_connection_that_is_idle_too_long_is_closed(start_policyd: StartPolicyd, port: int) -> None:
    with start_policyd(limits={"idle_timeout": "1s"}), Client(port) as client:
        assert client.ask(BULK) == LATER
        assert client.is_closed()


def test_a_client_that_reads_no_answers_is_disconnected(start_policyd: StartPolicyd, tmp_path: Path) -> None:
    path = tmp_path / "socket"  # the kernel buffers less for a unix socket
    with start_policyd(listen=[f"unix:{path}"]) as policyd, Client(path) as client, Client(path) as other:
        until("the end of the connection", lambda: send_fails(client, VPS * 500))
        log_lines(policyd, "does not read its answers; closed")
        assert other.ask(BULK) == LATER


def test_a_client_that_resets_the_connection_affects_no_other(start_policyd: StartPolicyd, port: int) -> None:
    with start_policyd() as policyd, Client(port) as other:
        for _ in range(50):
            with Client(port) as client:
                client.send(VPS * 20 + VPS[:50])
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert other.ask(BULK) == LATER
    assert "bug" not in policyd.operational_log.read_text()


# --- Too many ---------------------------------------------------------------------------------------------------------


def test_five_thousand_connections_are_served_up_to_the_limit(start_policyd: StartPolicyd, port: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 5200:
        pytest.skip("RLIMIT_NOFILE is too low")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients: list[Client] = []
    try:
        with start_policyd(limits={"connections": 4096}) as policyd:
            began = time.monotonic()
            clients = [Client(port) for _ in range(5000)]
            for client in clients:
                with suppress(OSError):  # refused already
                    client.send(BULK)
            answers = []
            for client in clients:
                try:
                    answers.append(client.answer())
                except EOFError:
                    answers.append("refused")
            assert answers.count(LATER) == 4096
            assert answers.count("refused") == 904
            assert "refused: 4096 connections are open (limits.connections)" in log_lines(policyd, "refused")[0]
            assert len(log_lines(policyd, "refused")) <= time.monotonic() - began + 2  # a line a second, with a count
            clients[0].socket.close()
            assert until("a free connection", lambda: answer_or_none(port)) == LATER
    finally:
        for client in clients:
            client.socket.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def answer_or_none(port: int) -> str | None:
    with Client(port) as client:
        try:
            return client.ask(BULK)
        except (EOFError, OSError):
            return None


def test_few_descriptors_lower_the_limit_of_connections(start_policyd: StartPolicyd, port: int) -> None:
    with start_policyd(wrapper=["prlimit", "--nofile=80"]) as policyd:
        log_lines(policyd, "limits.connections is 4096, but descriptors suffice for 16 only")
        clients = [Client(port) for _ in range(20)]
        for client in clients[:16]:
            assert client.ask(BULK) == LATER
        log_lines(policyd, "refused: 16 connections are open")
        for client in clients:
            client.socket.close()


def test_without_a_free_descriptor_clients_wait_and_are_served_afterwards(
    start_policyd: StartPolicyd, port: int
) -> None:
    with start_policyd() as policyd, Client(port) as early:
        assert early.ask(BULK) == LATER
        _, hard = resource.prlimit(policyd.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(policyd.pid, resource.RLIMIT_NOFILE, (3, hard))
        with Client(port) as late:
            late.send(BULK)
            log_lines(policyd, "cannot accept: Too many open files; clients wait")
            assert early.ask(VPS).startswith("REJECT")
            resource.prlimit(policyd.pid, resource.RLIMIT_NOFILE, (hard, hard))
            assert late.answer() == LATER


# --- DNS --------------------------------------------------------------------------------------------------------------


def settings_for(server: ScriptedServer) -> dict[str, object]:
    return {"dns": {"servers": [server.address], "timeout": "20s"}}


def wait_for_question(server: ScriptedServer, address: str) -> None:
    until(f"a question about {address}", lambda: f"{reverse(address)} PTR" in server.asked or None)


SILENT = Reply(silent=True)
NOTHING = Reply(rcode=NXDOMAIN)


def test_requests_behind_one_that_waits_for_dns_are_answered_in_order(start_policyd: StartPolicyd, port: int) -> None:
    with ScriptedServer({}, otherwise=SILENT) as dns, start_policyd(DNS_RULES, **settings_for(dns)) as policyd:
        with Client(port) as waiting, Client(port) as other:
            waiting.send(unnamed("192.0.2.99") + request() + unnamed("192.0.2.98") + request()[:20])
            wait_for_question(dns, "192.0.2.99")
            waiting.send(request()[20:])
            assert other.ask(request()) == "DUNNO"  # no other client waits
            dns.break_silence(NOTHING)
            assert [waiting.answer() for _ in range(4)] == [
                "DEFER 4.7.25 no name",
                "DUNNO",
                "DEFER 4.7.25 no name",
                "DUNNO",
            ]
        (first, *_) = policyd.decisions(rule="unnamed", count=2)
    assert first["reverse_dns"] == "missing"
    assert first["dns_ms"] > 0
    assert first["ms"] >= first["dns_ms"]


def test_a_cached_client_is_answered_without_waiting(start_policyd: StartPolicyd, port: int) -> None:
    with ScriptedServer({}, otherwise=NOTHING) as dns, start_policyd(DNS_RULES, **settings_for(dns)) as policyd:
        with Client(port) as client:
            assert client.ask(unnamed("192.0.2.99")) == "DEFER 4.7.25 no name"
            asked = len(dns.asked)
            assert client.ask(unnamed("192.0.2.99")) == "DEFER 4.7.25 no name"
        first, second = policyd.decisions(2)
    assert "dns_ms" in first
    assert "dns_ms" not in second
    assert len(dns.asked) == asked


def test_a_client_that_goes_away_is_not_answered_and_not_logged(start_policyd: StartPolicyd, port: int) -> None:
    with ScriptedServer({}, otherwise=SILENT) as dns, start_policyd(DNS_RULES, **settings_for(dns)) as policyd:
        with Client(port) as client:
            client.send(unnamed("192.0.2.99") + request())
            wait_for_question(dns, "192.0.2.99")
        with Client(port) as other:
            other.send(unnamed("192.0.2.99", instance="other"))
            dns.break_silence(NOTHING)
            assert other.answer() == "DEFER 4.7.25 no name"
        assert [each["instance"] for each in policyd.decisions()] == ["other"]
    assert "bug" not in policyd.operational_log.read_text()


def test_data_sent_ahead_of_an_answer_are_bounded(start_policyd: StartPolicyd, port: int) -> None:
    with ScriptedServer({}, otherwise=SILENT) as dns, start_policyd(DNS_RULES, **settings_for(dns)) as policyd:
        with Client(port) as client:
            client.send(unnamed("192.0.2.99"))
            wait_for_question(dns, "192.0.2.99")
            client.send(request() * 300)  # some 75 kB
            assert client.is_closed()
        log_lines(policyd, "more than 65536 bytes sent ahead of an answer; closed")


def test_a_waiting_request_is_decided_by_the_ruleset_of_its_arrival(start_policyd: StartPolicyd, port: int) -> None:
    with ScriptedServer({}, otherwise=SILENT) as dns, start_policyd(DNS_RULES, **settings_for(dns)) as policyd:
        with Client(port) as client:
            client.send(unnamed("192.0.2.99"))
            wait_for_question(dns, "192.0.2.99")
            old = policyd.rules.read_text()
            policyd.rules.write_text(old.replace("no name", "still no name"))
            policyd.reload()
            client.send(unnamed("192.0.2.98"))
            dns.break_silence(NOTHING)
            assert client.answer() == "DEFER 4.7.25 no name"
            assert client.answer() == "DEFER 4.7.25 still no name"
        before, after = policyd.decisions(2)
    assert before["ruleset"] != after["ruleset"]


# --- The end ----------------------------------------------------------------------------------------------------------


def test_requests_in_flight_are_answered_before_the_end(start_policyd: StartPolicyd, port: int) -> None:
    with ScriptedServer({}, otherwise=SILENT) as dns:
        daemon = start_policyd(DNS_RULES, **settings_for(dns))
        with daemon as policyd, Client(port) as waiting, Client(port) as half, Client(port) as idle:
            waiting.send(unnamed("192.0.2.99"))
            half.send(request()[:40])
            assert idle.ask(request()) == "DUNNO"
            wait_for_question(dns, "192.0.2.99")
            os.kill(policyd.pid, signal.SIGTERM)
            assert idle.is_closed()
            with pytest.raises(ConnectionRefusedError):
                Client(port)
            dns.break_silence(NOTHING)
            half.send(request()[40:])
            assert half.answer() == "DUNNO"
            assert waiting.answer() == "DEFER 4.7.25 no name"
            policyd.stop()
        assert len(policyd.decisions(3)) == 3


def test_the_end_waits_only_a_limited_time_for_a_client(start_policyd: StartPolicyd, port: int) -> None:
    with start_policyd() as policyd, Client(port) as half:
        half.send(request()[:40])
        began = time.monotonic()
        policyd.stop()
        assert time.monotonic() - began > 4  # seconds; the end comes after five
        assert half.is_closed()
    log_lines(policyd, "1 connections did not end in time")


def test_sigint_ends_the_daemon(start_policyd: StartPolicyd) -> None:
    with start_policyd() as policyd:
        os.kill(policyd.pid, signal.SIGINT)
        log_lines(policyd, "ended")
