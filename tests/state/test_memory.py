"""Counters and greylisting for requests: the engine, the process's memory, and a real server."""

from __future__ import annotations

import asyncio
import datetime
import signal
from typing import TYPE_CHECKING

import pytest

from policyd.config.load import load
from policyd.core.engine import Decision, Inquiry
from policyd.core.facts import NOTHING_KNOWN, Needs
from policyd.core.identity import Identity, Reason, Status
from policyd.core.protocol import Request
from policyd.core.reply import reply_text
from policyd.state.memory import Memory, uses_memory
from policyd.state.operations import Operation
from policyd.state.process import ProcessMemory
from tests.state.servers import PROGRAMS

if TYPE_CHECKING:
    from pathlib import Path

    from policyd.core.index import Ruleset
    from policyd.state.valkey import SharedMemory
    from tests.state.servers import StateServer

RULES = """
counters:
  mails-of-user: {count: requests, per: sasl_username, within: 1h, answered: DUNNO}
  doors: {count: distinct client_address, per: [client_network/20, recipient], within: 2h}
  data: {count: requests, per: client_address, within: 10m, where: {protocol_state: DATA}}
rules:
  - name: stolen-password
    match: {counter: mails-of-user > 3}
    action: DEFER 4.7.1 Too much mail from {sasl_username}, {count} ({id})
  - name: submission
    match: {sasl_username_regex: .}
    action: DUNNO
  - name: watched
    match: {counter: doors >= 2}
    action: REJECT
    mode: observe
  - name: many-doors
    match: {counter: [doors >= 4, data > 1], reverse_dns: [missing, mismatch]}
    action: REJECT 5.7.1 Mail from {client_address} is not accepted here ({count})
  - name: grey
    match: {reverse_dns: [missing, mismatch, error]}
    action: GREYLIST 4.7.1 Please try again ({id})
"""
TODAY = datetime.date(2026, 11, 29)
MISSING = Identity(Status.MISSING)
MISMATCH = Identity(Status.MISMATCH, claimed=(b"a.b.example",))
ERROR = Identity(Status.ERROR, reason=Reason.TIMEOUT, names_known=False)


@pytest.fixture
def ruleset(tmp_path: Path) -> Ruleset:
    return load_rules(tmp_path, RULES)


def load_rules(folder: Path, text: str) -> Ruleset:
    (folder / "rules.yaml").write_text(text)
    return load(None, str(folder / "rules.yaml")).ruleset


class Daemon:
    """Decides requests one after the other, as the daemon does, with a clock that the test sets."""

    def __init__(self, ruleset: Ruleset, shared: SharedMemory | None = None, keys: int = 1000) -> None:
        self.now = 1_800_000_000.0
        self.ruleset = ruleset
        self.memory = Memory(ProcessMemory(keys), shared, lambda inquiry: None, clock=lambda: self.now)

    async def decide(self, identity: Identity | None = MISSING, **attributes: str) -> Decision:
        request = Request.of(
            {
                name: value.encode()
                for name, value in ({"protocol_state": "RCPT", "client_address": "192.0.2.1"} | attributes).items()
            }
        )
        inquiry = Inquiry(self.ruleset, request, NOTHING_KNOWN, TODAY)
        note = self.memory.note(inquiry)
        assert note is not None
        while isinstance(decision := inquiry.decide(), Needs):
            if note.answer(inquiry, decision):
                continue
            if waiting := note.pending_calls(decision):
                await asyncio.wait(waiting)
                continue
            assert decision.identity
            assert identity is not None, "reverse DNS is needed, against the test's expectation"
            inquiry.learn_identity(identity)
        note.finish(decision)
        self.is_local = note.is_local
        return decision

    async def settle(self) -> None:
        """Waits until the server has stored the results of earlier decisions; requests do not wait for that."""
        assert self.memory.shared is not None
        await self.memory.shared.ask([Operation("get", b"policyd:nothing")])


async def test_a_limit_for_a_user_counts_mails_that_were_let_through(ruleset: Ruleset) -> None:
    daemon = Daemon(ruleset)
    decisions = [await daemon.decide(None, sasl_username="Joe") for _ in range(6)]
    assert [decision.verb for decision in decisions] == ["DUNNO"] * 3 + ["DEFER"] * 3
    text = reply_text(decisions[-1], Request.of({"sasl_username": b"Joe"}), None, b"7Q4K2M9X")
    assert text == b"4.7.1 Too much mail from Joe, 4 (7Q4K2M9X)"
    assert (await daemon.decide(None, sasl_username="ann")).verb == "DUNNO"
    daemon.now += 3600
    assert (await daemon.decide(None, sasl_username="joe")).verb == "DUNNO"


async def test_many_addresses_of_one_network_are_one_mailer(ruleset: Ruleset) -> None:
    daemon = Daemon(ruleset)
    doors = [await daemon.decide(client_address=f"192.0.{n}.7", recipient="b@x", sender="a@y") for n in range(6)]
    assert [decision.rule_name for decision in doors] == ["grey"] * 3 + ["many-doors"] * 3
    assert [decision.counter_value for decision in doors[3:]] == [4, 5, 6]
    assert [decision.observed for decision in doors] == [()] + [("watched",)] * 5
    assert (await daemon.decide(client_address="192.0.16.7", recipient="b@x")).rule_name == "grey"
    assert (await daemon.decide(client_address="192.0.1.7", recipient="c@x")).rule_name == "grey"


async def test_requests_are_counted_at_rcpt_by_default(ruleset: Ruleset) -> None:
    daemon = Daemon(ruleset)
    for state in ("CONNECT", "MAIL", "RCPT", "DATA", "RCPT"):
        assert (await daemon.decide(protocol_state=state)).rule_name in {"grey", "default"}
    assert (await daemon.decide(protocol_state="DATA")).rule_name == "many-doors"


async def test_a_request_with_an_empty_key_is_not_counted_and_no_condition_holds(ruleset: Ruleset) -> None:
    daemon = Daemon(ruleset)
    for _ in range(10):
        decision = await daemon.decide(ERROR, client_address="unknown", recipient="b@x")
        assert decision.rule_name == "default"  # without an address, a retry could not be recognised


async def test_a_greylist_rule_acts_at_rcpt_and_answers_defer_if_permit(ruleset: Ruleset) -> None:
    daemon = Daemon(ruleset)
    assert (await daemon.decide(protocol_state="MAIL")).rule_name == "default"
    new = await daemon.decide()
    assert (new.verb, new.word, new.code, new.greylist) == ("DEFER_IF_PERMIT", "GREYLIST", "4.7.1", "new")
    daemon.now += 60
    assert (await daemon.decide()).greylist == "early"
    daemon.now += 300
    passed = await daemon.decide()
    assert (passed.rule_name, passed.greylist) == ("default", "passed")
    known = await daemon.decide(client_address="192.0.2.200", recipient="other@x")
    assert (known.rule_name, known.greylist) == ("default", "known")


async def test_an_observed_greylist_rule_remembers_too(tmp_path: Path) -> None:
    rules = "rules:\n- {name: g, match: {protocol_state: RCPT}, action: GREYLIST, mode: observe}\n"
    daemon = Daemon(load_rules(tmp_path, rules))
    assert (await daemon.decide()).observed == ("g",)
    daemon.now += 301
    assert (await daemon.decide()).greylist == "passed"
    assert (await daemon.decide()).observed == ()


async def test_a_network_that_has_passed_needs_no_reverse_dns(tmp_path: Path) -> None:
    rules = "rules:\n- {name: g, match: {helo_name: friend}, action: GREYLIST}\n"
    daemon = Daemon(load_rules(tmp_path, rules))
    assert (await daemon.decide(helo_name="friend")).greylist == "new"
    daemon.now += 301
    assert (await daemon.decide(helo_name="friend")).greylist == "passed"
    assert (await daemon.decide(None, helo_name="friend", recipient="other@x")).greylist == "known"


async def test_under_a_top_level_observe_counters_use_the_decision_that_was_not_sent(tmp_path: Path) -> None:
    daemon = Daemon(load_rules(tmp_path, "mode: observe\n" + RULES))
    decisions = [await daemon.decide(None, sasl_username="joe") for _ in range(5)]
    assert [decision.verb for decision in decisions] == ["DUNNO"] * 3 + ["DEFER"] * 2
    assert {decision.action for decision in decisions} == {"DUNNO"}


def test_only_a_ruleset_that_counts_or_greylists_uses_memory(tmp_path: Path) -> None:
    assert not uses_memory(load_rules(tmp_path, "rules: []\n"))
    assert not uses_memory(load_rules(tmp_path, "counters: {}\nrules: []\n"))
    assert uses_memory(load_rules(tmp_path, RULES))


# --- With a server --------------------------------------------------------------------------------------------------


needs_server = pytest.mark.skipif(not PROGRAMS, reason="needs Debian's redis-server or valkey-server")


@needs_server
async def test_two_daemons_share_counters_and_greylisting(ruleset: Ruleset, server: StateServer) -> None:
    first, second = Daemon(ruleset, server.memory()), Daemon(ruleset, server.memory())
    verbs = []
    for daemon in (first, second, first, second, first):
        verbs.append((await daemon.decide(None, sasl_username="joe")).verb)
        await daemon.settle()
    assert verbs == ["DUNNO"] * 3 + ["DEFER"] * 2
    assert (await first.decide()).greylist == "new"
    await first.settle()
    second.now += 301
    assert (await second.decide()).greylist == "passed"
    await second.settle()
    first.now += 302
    assert (await first.decide(recipient="other@x")).greylist == "known"
    assert not first.is_local
    for daemon in (first, second):
        assert daemon.memory.shared is not None
        await daemon.memory.shared.close()


@needs_server
async def test_a_network_that_comes_often_is_written_once_a_second(ruleset: Ruleset, server: StateServer) -> None:
    daemon = Daemon(ruleset, server.memory())
    await daemon.decide()
    daemon.now += 301
    assert (await daemon.decide()).greylist == "passed"
    for wait in (0, 0.5, 0.5, 0.2):
        daemon.now += wait
        assert (await daemon.decide(recipient="other@x")).greylist == "known"
        await daemon.settle()
        assert server.command("get", "policyd:g:network:192.0.2.0/24").strip() == str(int(daemon.now))
    assert "calls=3," in server.command("info", "commandstats").partition("cmdstat_set:")[2]
    assert daemon.memory.shared is not None
    await daemon.memory.shared.close()


@pytest.mark.slow
@needs_server
async def test_a_frozen_server_delays_no_mail_and_defers_no_unknown_client(
    ruleset: Ruleset, server: StateServer
) -> None:
    daemon = Daemon(ruleset, server.memory(0.05))
    assert (await daemon.decide()).greylist == "new"
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    loop = asyncio.get_running_loop()
    for number in range(6):
        began = loop.time()
        decision = await daemon.decide(client_address=f"203.0.{number}.9", sender="other@y")
        assert loop.time() - began < 1  # a wide limit, for busy machines; `make faults` checks 0.1 s
        assert (decision.rule_name, decision.greylist, daemon.is_local) == ("default", "unknown", True)
    assert (await daemon.decide()).greylist == "early"  # this process itself has deferred the client
    server.process.send_signal(signal.SIGCONT)
    assert daemon.memory.shared is not None
    for _ in range(100):
        if daemon.memory.shared.is_up:
            break
        await asyncio.sleep(0.05)
    decision = await daemon.decide(client_address="203.0.200.9", sender="third@y")
    assert (decision.greylist, daemon.is_local) == ("new", False)
    await daemon.memory.shared.close()
