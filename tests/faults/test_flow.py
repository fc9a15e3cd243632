"""Tests of the flow itself: it passes without a fault, and detects wrong behaviour."""

from __future__ import annotations

import socketserver
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.faults.conftest import SECONDS
from tests.faults.flow import Flow
from tests.faults.world import DnsState, World, distorted, nothing_known
from tests.field.waiting import until
from tests.name_server import SERVFAIL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.conftest import Setting


def test_without_a_fault_every_answer_is_right_and_logged(setting: Setting) -> None:
    with setting.daemon() as policyd:
        with setting.flow("no fault; one reload") as flow:
            flow.go_on(SECONDS)
            setting.use_edition(policyd, 1)
            flow.fault_is_over()
        assert flow.compare(policyd.decisions(flow.row.answered))


@contextmanager
def failing_flow(words: str) -> Iterator[None]:
    """Requires that the flow in the block fails with these words."""
    with pytest.raises(AssertionError, match=words):
        yield


def test_a_server_that_lets_every_client_through_is_detected() -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Dunno) as server:
        server.block_on_close = False
        threading.Thread(target=server.serve_forever).start()
        with failing_flow("not one of"), Flow("", World(), server.server_address[1]) as flow:
            flow.wait_for(50)
        server.shutdown()


class Dunno(socketserver.StreamRequestHandler):
    """Answers DUNNO to every request."""

    def handle(self) -> None:
        for line in self.rfile:
            if line == b"\n":
                self.wfile.write(b"action=DUNNO\n\n")


def test_a_ruleset_that_should_not_be_in_force_is_detected(setting: Setting) -> None:
    with setting.daemon() as policyd, failing_flow("edition 2"), Flow("", setting.world, setting.port) as flow:
        setting.use_edition(policyd, 2)
        with setting.world.edition.changing(3):
            pass  # the world expects edition 3, but the daemon has not reloaded
        flow.wait_for(50)


def test_an_error_while_dns_works_is_detected(setting: Setting) -> None:
    # The failure is not in the world's history, so the world expects none.
    setting.world.zone.state = DnsState(distorted(rcode=SERVFAIL), nothing_known)
    with setting.daemon(), failing_flow(r"4\.4\.3"), Flow("", setting.world, setting.port) as flow:
        flow.wait_for_clients(20)


def test_an_unexpected_failure_is_detected(setting: Setting) -> None:
    with setting.daemon() as policyd, failing_flow("cannot connect"), Flow("", setting.world, setting.port) as flow:
        policyd.stop()
        until("a failure", lambda: any("cannot connect" in each.failure for each in flow.attempts) or None)


def test_a_missing_line_of_the_decision_log_is_detected(setting: Setting) -> None:
    with setting.daemon() as policyd:
        with Flow("", setting.world, setting.port, exhausts=True) as flow:
            flow.wait_for(10)
        logged = policyd.decisions(flow.row.answered)
    with failing_flow("1 answers are not in the log"):
        flow.compare(logged[1:])
