"""The Postfix policy delegation protocol, without I/O: bytes in, requests out; decisions in, bytes out.

https://www.postfix.org/SMTPD_POLICY_README.html: a request is lines `name=value`, each ended by LF, and an empty line;
an answer is `action=...` and an empty line. A `RequestParser` belongs to one connection. It looks for the empty line
before it parses attributes, so a request may arrive in pieces or together with the next. Values stay bytes: nothing
here decodes a client's text.

Postfix sends the same attributes in the same order in every request. For each such order (a *layout*) that was seen,
one expression finds, checks and extracts a request in a single pass; every other request takes the general path.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from policyd.core.address import parse_address

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import EllipsisType

    from policyd.core.address import Address

# Attributes of a policy request in the order in which Postfix 3.12 sends them
# (https://www.postfix.org/SMTPD_POLICY_README.html, smtpd_check.c).
ATTRIBUTES = (
    "request",
    "protocol_state",
    "protocol_name",
    "client_address",
    "client_name",
    "client_port",
    "reverse_client_name",
    "server_address",
    "server_port",
    "helo_name",
    "sender",
    "recipient",
    "recipient_count",
    "queue_id",
    "instance",
    "size",
    "etrn_domain",
    "stress",
    "sasl_method",
    "sasl_username",
    "sasl_sender",
    "ccert_subject",
    "ccert_issuer",
    "ccert_fingerprint",
    "ccert_pubkey_fingerprint",
    "encryption_protocol",
    "encryption_cipher",
    "encryption_keysize",
    "tls_sni",
    "policy_context",
    "compatibility_level",
    "mail_version",
)

# The states in which Postfix knows a sender; in other states an empty `sender` means nothing.
SENDER_STATES = frozenset({b"MAIL", b"RCPT", b"DATA", b"END-OF-MESSAGE"})

# The value of `request` in every request of this protocol.
REQUEST_TYPE = b"smtpd_access_policy"

# An attribute that Postfix never sends. A request with it asks for the version of policyd instead of a decision.
PROBE = b"policyd_probe"

# Maximum bytes of a request; bounds the memory of a connection. Postfix's requests stay below 10 KB: a sender,
# recipient or certificate subject has at most `line_length_limit` (2048) bytes.
REQUEST_BYTES = 65536

# Maximum number of layouts that get an expression. A Postfix server uses one or two; the limit keeps a client that
# varies the order of attributes from causing endless compiling. Other layouts take the general path: it is slower.
MAX_LAYOUTS = 16

_KNOWN = frozenset(name.encode() for name in ATTRIBUTES)


class ProtocolError(Exception):
    """The peer does not speak the protocol; close the connection. The message is printable ASCII."""


class ProbeReceived(Exception):  # noqa: N818 - not an error: the peer is `policyd doctor`, which asks for the version
    """A request with PROBE has arrived. The parser goes on with the next one."""


class Request:
    """The attributes of one request: `values` as bytes; `places` maps an attribute's name to the place of its value."""

    __slots__ = ("_address", "places", "values")

    def __init__(self, places: Mapping[str, int], values: Sequence[bytes]) -> None:
        self.places = places
        self.values = values
        self._address: Address | EllipsisType | None = ...  # not parsed yet

    @classmethod
    def of(cls, attributes: Mapping[str, bytes]) -> Request:
        """Makes a request from attributes instead of bytes."""
        return cls({name: place for place, name in enumerate(attributes)}, tuple(attributes.values()))

    def get(self, name: str) -> bytes:
        """Returns the value of an attribute; empty if Postfix did not send it."""
        place = self.places.get(name)
        return b"" if place is None else self.values[place]

    @property
    def address(self) -> Address | None:
        """The client's address, parsed once; None if `client_address` is not an address."""
        address = self._address
        if address is ...:
            address = self._address = parse_address(self.get("client_address"))
        return address

    def attributes(self) -> dict[str, bytes]:
        """Returns all attributes by name."""
        return {name: self.values[place] for name, place in self.places.items()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Request) and self.attributes() == other.attributes()

    __hash__ = None  # type: ignore[assignment] # its values may be mutable, and it is never a key

    def __repr__(self) -> str:
        return f"Request({self.attributes()!r})"


class Layouts:
    """The layouts of requests seen so far, shared by the parsers of one server."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[bytes, ...], _Layout] = {}

    def learn(self, names: Sequence[bytes]) -> _Layout | None:
        """Returns the layout with these attribute names in this order; None if it does not get an expression."""
        key = tuple(names)
        layout = self._layouts.get(key)
        if layout is None and len(self._layouts) < MAX_LAYOUTS and len(set(key)) == len(key) and _KNOWN.issuperset(key):
            layout = self._layouts[key] = _Layout(key)
        return layout


class _Layout:
    """The expression for one order of attributes. `.` is every byte except LF, and groups are possessive."""

    __slots__ = ("match", "places")

    def __init__(self, names: tuple[bytes, ...]) -> None:
        lines = (
            b"request=(%b)\n" % REQUEST_TYPE if name == b"request" else b"%b=(.*+)\n" % re.escape(name)
            for name in names
        )
        self.match = re.compile(b"".join(lines) + b"\n").match
        self.places = {name.decode("ascii"): place for place, name in enumerate(names)}


class RequestParser:
    """Turns the bytes of one connection into requests.

    Call `receive_data` with the bytes that arrived, then `next_request` until it returns None: more bytes are needed.
    After a `ProtocolError` the parser cannot be used any more.
    """

    __slots__ = ("_buffer", "_layout", "_layouts", "_request_bytes", "_searched", "_start")

    def __init__(self, request_bytes: int = REQUEST_BYTES, layouts: Layouts | None = None) -> None:
        self._request_bytes = request_bytes
        self._layouts = layouts if layouts is not None else Layouts()
        self._layout: _Layout | None = None
        self._buffer: bytes | bytearray = b""
        self._start = 0  # where the next request begins in the buffer
        self._searched = 0  # no empty line before this place

    @property
    def pending(self) -> int:
        """The number of bytes that have not been returned as requests yet."""
        return len(self._buffer) - self._start

    def receive_data(self, received: bytes) -> None:
        """Takes bytes as they arrive."""
        if self._start == len(self._buffer):
            self._buffer = received  # usually one whole request: no copy
            self._start = self._searched = 0
            return
        if not isinstance(self._buffer, bytearray):
            self._buffer = bytearray(self._buffer)  # grows in place, however small the pieces are
        if self._start:
            del self._buffer[: self._start]
            self._searched -= self._start
            self._start = 0
        self._buffer += received

    def next_request(self) -> Request | None:
        """Returns the next request, or None if it is still incomplete.

        Raises ProtocolError if it is not a request (too long, a line without `=`, another type), and ProbeReceived for
        a probe of `policyd doctor`.
        """
        buffer, start = self._buffer, self._start
        if start == len(buffer):
            return None
        if self._layout is not None and buffer.endswith(b"\n\n"):
            match = self._layout.match(buffer, start)
            if match is not None and match.end() - start <= self._request_bytes:
                self._start = self._searched = match.end()
                return Request(self._layout.places, match.groups())
        if buffer[start] == 0x0A:
            raise ProtocolError("an empty request (no request=smtpd_access_policy)")
        # One byte back: the first of the two line ends may have been the last byte of an earlier read.
        end = buffer.find(b"\n\n", max(start, self._searched - 1))
        # Without an empty line, at least two more bytes must arrive, or one if the last line is complete.
        earliest_end = end + 2 if end >= 0 else len(buffer) + (1 if buffer[-1] == 0x0A else 2)
        if earliest_end - start > self._request_bytes:
            raise ProtocolError(f"a request of more than {self._request_bytes} bytes")
        if end < 0:
            self._searched = len(buffer)
            return None
        self._start = self._searched = end + 2
        return self._parse(bytes(buffer[start:end]))

    def _parse(self, block: bytes) -> Request:
        """Parses a request with any attributes in any order. Of a repeated attribute the last counts."""
        names = []
        values = {}
        for line in block.split(b"\n"):
            name, separator, value = line.partition(b"=")
            if not separator or not name:
                raise ProtocolError(f"a line that is not name=value: {_excerpt(line)}")
            names.append(name)
            values[name] = value
        request_type = values.get(b"request")
        if request_type is None:
            raise ProtocolError("a request without request=smtpd_access_policy")
        if request_type != REQUEST_TYPE:
            raise ProtocolError(f"request={_excerpt(request_type)}; only request=smtpd_access_policy is served")
        if PROBE in values:
            raise ProbeReceived
        self._layout = self._layouts.learn(names)
        return Request.of({name.decode("latin-1"): value for name, value in values.items()})


_NO_OPINION = b"action=DUNNO\n\n"  # most answers


def encode_reply(verb: str, text: bytes = b"") -> bytes:
    """Returns the answer to one request. `text` is printable ASCII that begins with its code, if it has one."""
    if verb == "DUNNO" and not text:
        return _NO_OPINION
    return b"action=%b %b\n\n" % (verb.encode(), text) if text else b"action=%b\n\n" % verb.encode()


class ProbeReply(NamedTuple):
    """policyd's answer to a probe: its version; the hash of the ruleset in force; whether the ruleset only observes."""

    version: str
    ruleset: str
    observes: bool

    def encode(self) -> bytes:
        """The answer to a probe. Every policy client understands its action."""
        mode = "observe" if self.observes else "enforce"
        return f"action=DUNNO policyd {self.version} ruleset={self.ruleset} mode={mode}\n\n".encode("ascii")


_PROBE_REPLY = re.compile(rb"action=DUNNO policyd ([!-~]{1,40}) ruleset=([0-9a-f]{1,64}) mode=(enforce|observe)")


def parse_probe_reply(content: bytes) -> ProbeReply | None:
    """Parses an answer to a probe, given without its empty line; returns None if it is not policyd's."""
    match = _PROBE_REPLY.fullmatch(content)
    if match is None:
        return None
    return ProbeReply(match[1].decode("ascii"), match[2].decode("ascii"), match[3] == b"observe")


def _excerpt(value: bytes) -> str:
    """Returns the beginning of a client's bytes, printable, for a message."""
    excerpt = repr(value[:60])[1:]
    return excerpt if len(value) <= 60 else excerpt + "..."
