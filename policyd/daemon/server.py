"""Connections: bytes in, decisions out.

Each connection is a thin asyncio `Protocol` around the parser of `policyd.core.protocol`. A request that needs no DNS
is decided, answered and logged inside `data_received`, without a task or an await. A request that needs DNS is answered
by a callback when the facts have been found; requests that arrive on its connection during this time wait in order. The
ruleset in force when a request arrived decides it, even if another is loaded in the meantime.

Promises that no connection is closed because of a reload; that everything a client can grow is bounded; and that a
bug costs one connection, with a traceback in the operational log and no answer, which is what the protocol asks for
(https://www.postfix.org/SMTPD_POLICY_README.html). Listening is left to `policyd.daemon.listeners`.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

from policyd import __version__
from policyd.config.dates import utc_today
from policyd.core.engine import Inquiry
from policyd.core.facts import NOTHING_KNOWN, Needs
from policyd.core.protocol import Layouts, ProbeReceived, ProbeReply, ProtocolError, RequestParser, encode_reply
from policyd.core.reply import reply_text
from policyd.core.ruleset import Verb
from policyd.core.throttle import MessageThrottle
from policyd.daemon.decision_ids import DecisionIds
from policyd.decision_log.writer import DecisionEntry, Timestamps, json_line, text_line
from policyd.state.memory import uses_memory

if TYPE_CHECKING:
    import socket

    from policyd.config.settings import Settings
    from policyd.core.engine import Decision
    from policyd.core.index import Ruleset
    from policyd.daemon.counters import Counters
    from policyd.daemon.decision_log_file import DecisionLogFile
    from policyd.dns.facts import FactFinder
    from policyd.state.memory import Memory

_log = logging.getLogger(__name__)

# Makes an Entry in half the time of its constructor, which is written in Python.
_new: Final = tuple.__new__

_DUNNO: Final = Verb.DUNNO  # a member of an Enum takes 0.1 us to look up before Python 3.12

# Bytes of unread answers before a client is disconnected. An answer has at most 225 bytes, and Postfix waits for each
# before it asks again; a client that leaves so many bytes unread will never read them.
UNREAD_ANSWERS = 65536

# Minimum seconds between two log lines of the same kind about clients and bugs: a flood must not fill the log.
COMPLAINT_SECONDS = 1.0


class Server:
    """Holds what all connections share: the ruleset in force, the limits, the log and the counters."""

    def __init__(
        self,
        ruleset: Ruleset,
        settings: Settings,
        facts: FactFinder,
        memory: Memory,
        decision_log: DecisionLogFile,
        *,
        counters: Counters,
        max_connections: int,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.counters = counters
        self.decision_log = decision_log
        self.memory = memory
        self.ids = DecisionIds()
        self.timestamps = Timestamps()
        self.layouts = Layouts()
        self.connections: set[Connection] = set()
        self.turn_begun = False  # a request has been answered in this turn of the event loop
        self.unsent: list[Connection] = []  # connections with answers to send at the end of the turn
        self.draining = False
        self._drained = asyncio.Event()
        self._attaching: set[asyncio.Task[None]] = set()
        self._max_connections = max_connections
        self._complaints: dict[str, MessageThrottle] = {}
        self.use(ruleset, settings, facts)

    def use(self, ruleset: Ruleset, settings: Settings, facts: FactFinder) -> None:
        """Uses these for every later request; no connection is closed."""
        self.ruleset = ruleset
        self.remembers = uses_memory(ruleset)
        self.facts = facts
        self.line = json_line if settings.decision_log.format == "json" else text_line
        self.trust_postfix = settings.dns.trust_postfix
        self.limits = settings.limits
        self.min_timeout = min(settings.limits.idle_timeout, settings.limits.request_timeout)
        self.today = utc_today()

    @property
    def max_connections(self) -> int:
        """The limit of open connections: the setting, or a lower one if there are too few descriptors."""
        return min(self.limits.connections, self._max_connections)

    def accept(self, accepted: socket.socket, peer: str) -> None:
        """Takes a connection that a listener has accepted, or closes it if the limit is reached."""
        limit = self.max_connections
        if len(self.connections) >= limit:
            accepted.close()
            self.counters.refused += 1
            self.complain("refused", f"{peer}: refused: {limit} connections are open (limits.connections)")
            return
        self.counters.accepted += 1
        connection = Connection(self, peer)
        self.connections.add(connection)
        task = self.loop.create_task(self._attach(connection, accepted))
        self._attaching.add(task)  # the loop itself keeps tasks by weak references only
        task.add_done_callback(self._attaching.discard)

    def end_turn(self) -> None:
        """Sends the answers deferred to the end of this loop iteration; their log lines have been written."""
        self.turn_begun = False
        unsent, self.unsent = self.unsent, []
        for connection in unsent:
            connection.send()

    def sweep(self, now: float) -> None:
        """Does the work that is due once a second: notes the date, closes connections whose timeouts have passed, and
        logs problems that were held back.

        `now` is on the monotonic clock. One pass over all connections takes less than a timer for each: 0.1 ms for
        1,000 of them.
        """
        self.today = utc_today()
        before = now - self.min_timeout
        for connection in [each for each in self.connections if each.since < before]:
            connection.check(now)
        for complaint in self._complaints.values():
            line = complaint.due_line(now)
            if line is not None:
                _log.warning("%s", line)

    def complain(self, kind: str, message: str, *, bug: bool = False) -> None:
        """Logs a problem with a client or a bug: at most one line a second of each kind, with a count."""
        complaint = self._complaints.setdefault(kind, MessageThrottle(COMPLAINT_SECONDS))
        if (line := complaint.line_for(message, monotonic())) is not None:
            _log.log(logging.ERROR if bug else logging.WARNING, "%s", line, exc_info=bug)

    async def drain(self) -> None:
        """Closes each connection as soon as it has no request in flight. Returns when none is left."""
        self.draining = True
        for connection in list(self.connections):
            connection.close_if_idle()
        if self.connections:
            await self._drained.wait()

    def lose(self, connection: Connection) -> None:
        """Forgets a connection that has ended."""
        self.connections.discard(connection)
        if self.draining and not self.connections:
            self._drained.set()

    def abort(self) -> None:
        """Ends every connection at once."""
        for connection in list(self.connections):
            connection.abort()

    async def _attach(self, connection: Connection, accepted: socket.socket) -> None:
        try:
            await self.loop.connect_accepted_socket(lambda: connection, accepted)
        except Exception:  # noqa: BLE001 - the boundary of the accept
            accepted.close()
            self.lose(connection)
            self.counters.bugs += 1
            self.complain("bug", f"{connection.peer}: a bug in policyd, please report it; closed", bug=True)


class Connection(asyncio.Protocol):
    """One connection of one Postfix process."""

    __slots__ = (
        "_closing",
        "_parser",
        "_partial",
        "_server",
        "_transport",
        "_unsent",
        "_waits",
        "peer",
        "since",
    )

    def __init__(self, server: Server, peer: str) -> None:
        self._server = server
        self.peer = peer
        self._parser = RequestParser(server.limits.request_bytes, server.layouts)
        self._transport: asyncio.Transport | None = None
        self._waits = False  # a request waits for DNS, and later requests wait behind it
        self._partial = False  # a part of a request has arrived
        self._closing = False
        self._unsent: list[bytes] = []  # answers to send at the end of the turn
        self.since = monotonic()  # time of the first byte of the incomplete request or, without one, of the last answer

    # --- The event loop calls these ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection has been made."""
        transport = self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass
        try:
            transport.set_write_buffer_limits(high=UNREAD_ANSWERS)
        except Exception:  # noqa: BLE001 - the boundary of the accept; uvloop would leave the connection open, unread
            self._fail()
        if self._closing:
            transport.abort()

    def data_received(self, received: bytes) -> None:
        """The fast path: decides everything that needs no DNS."""
        arrived = monotonic()
        if not self._partial:
            self.since = arrived
        try:
            self._parser.receive_data(received)
            if not self._waits:
                self._answer_requests(arrived)
            elif self._parser.pending > (limit := self._server.limits.request_bytes):
                self._close_on_violation(ProtocolError(f"more than {limit} bytes sent ahead of an answer"))
        except ProtocolError as error:
            self._close_on_violation(error)
        except Exception:  # noqa: BLE001 - the boundary of the fast path
            self._fail()

    def pause_writing(self) -> None:
        """Called if the client does not read its answers; closes the connection."""
        self._server.complain("unread", f"{self.peer}: does not read its answers; closed")
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client or this daemon has closed the connection."""
        self._closing = True
        self._server.lose(self)

    # --- The server calls these -------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Closes the connection if its timeout has passed. While a request waits for DNS, only the deadline of the
        lookups applies.
        """
        limits, age = self._server.limits, now - self.since
        if self._waits:
            return
        if self._partial and age > limits.request_timeout:
            self._server.counters.timeouts += 1
            self._server.complain("slow", f"{self.peer}: a request has not arrived whole within {age:.1f} s; closed")
            self.abort()
        elif not self._partial and age > limits.idle_timeout:
            _log.debug("%s: idle for %.0f s; closed", self.peer, age)
            self.close_if_idle()

    def close_if_idle(self) -> None:
        """Closes the connection unless a request is in flight."""
        if not self._waits and not self._partial and self._transport is not None:
            self.send()
            self._closing = True
            self._transport.close()

    def send(self) -> None:
        """Sends the answers kept for the end of the turn."""
        unsent, self._unsent = self._unsent, []
        if unsent and not self._closing:
            assert self._transport is not None
            self._transport.write(b"".join(unsent))

    def abort(self) -> None:
        """Closes the connection, even with a request in flight."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    # --- One request ------------------------------------------------------------------------------------------------

    def _answer_requests(self, arrived: float) -> None:
        """Answers the complete requests in order, up to one that needs DNS."""
        server = self._server
        next_request = self._parser.next_request
        while not self._closing:
            try:
                request = next_request()
            except ProbeReceived:
                self._answer_probe()
                continue
            if request is None:
                break
            inquiry = Inquiry(server.ruleset, request, NOTHING_KNOWN, server.today, trust_postfix=server.trust_postfix)
            if server.remembers:
                server.memory.note(inquiry)
            decision = inquiry.decide()
            if isinstance(decision, Needs):
                decision = server.facts.decide_with_known(inquiry, decision)
            if isinstance(decision, Needs):
                self._waits = True
                found = server.facts.find(inquiry, decision)
                found.add_done_callback(partial(self._answer_later, inquiry, arrived, monotonic()))
                return
            self._answer(inquiry, decision, arrived=arrived, dns_seconds=0.0)
            self.since = arrived
        self._partial = self._parser.pending > 0
        if server.draining:
            self.close_if_idle()

    def _answer_probe(self) -> None:
        """Answers a probe of `policyd doctor`. No log line and no count, because nothing was decided."""
        ruleset = self._server.ruleset
        reply = ProbeReply(__version__, ruleset.hash, ruleset.observe).encode()
        if self._unsent:
            self._unsent.append(reply)
        else:
            assert self._transport is not None
            self._transport.write(reply)

    def _answer_later(self, inquiry: Inquiry, arrived: float, began: float, found: asyncio.Future[Decision]) -> None:
        """The slow path, after DNS has answered. The ruleset in force when the request arrived decides."""
        self._waits = False
        if self._closing:
            return
        try:
            now = monotonic()
            self._answer(inquiry, found.result(), arrived=arrived, dns_seconds=now - began)
            self.since = now
            self._answer_requests(now)
        except ProtocolError as error:
            self._close_on_violation(error)
        except Exception:  # noqa: BLE001 - the boundary of the slow path
            self._fail()

    def _answer(self, inquiry: Inquiry, decision: Decision, *, arrived: float, dns_seconds: float) -> None:
        """Sends, logs and counts one decision.

        The first answer of a turn of the event loop goes out at once, so a single request does not wait for the log.
        Further answers go out together at the turn's end, because a system call that wakes a Postfix process takes
        longer than a decision.
        """
        server = self._server
        decision_id = next(server.ids)
        request, identity, memory = inquiry.request, inquiry.identity, inquiry.memory
        action = _DUNNO if decision.observing else decision.verb
        reply = b"" if action is _DUNNO else reply_text(decision, request, identity, decision_id)
        at_once = not server.turn_begun
        if at_once:
            assert self._transport is not None
            self._transport.write(encode_reply(action, reply))
        if memory is not None:
            memory.finish(decision)
        seconds = monotonic() - arrived
        fields = (
            server.timestamps.now(),
            decision_id,
            request,
            decision,
            identity.verified[0] if identity is not None and identity.verified else b"",
            reply,
            inquiry.ruleset.hash,
            dns_seconds,
            seconds,
            memory is not None and memory.is_local,
        )
        entry = _new(DecisionEntry, fields)
        server.decision_log.append(server.line(entry))
        server.counters.decided(action, decision, seconds)
        if at_once:
            server.turn_begun = True
            server.loop.call_soon(server.end_turn)  # after the log lines of this turn have been written
        else:
            if not self._unsent:
                server.unsent.append(self)
            self._unsent.append(encode_reply(action, reply))

    # --- When something is wrong ------------------------------------------------------------------------------------

    def _close_on_violation(self, error: ProtocolError) -> None:
        """Handles a protocol violation: logs one line and closes, because no answer is possible."""
        self._server.counters.protocol_errors += 1
        self._server.complain("protocol", f"{self.peer}: {error}; closed")
        self.abort()

    def _fail(self) -> None:
        """Handles a bug: logs the traceback and closes without an answer; Postfix asks again, then uses its
        default_action.
        """
        self._server.counters.bugs += 1
        self._server.complain("bug", f"{self.peer}: a bug in policyd, please report it; closed", bug=True)
        self.abort()
