"""Bytes from Postfix or any other client: requests, and their decisions."""

from __future__ import annotations

import datetime
import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from policyd.config.load import load
from policyd.core.engine import Decision, decide
from policyd.core.facts import Facts, Needs
from policyd.core.identity import Identity, Reason, Status, identity_from_postfix
from policyd.core.protocol import Layouts, ProtocolError, Request, RequestParser, encode_reply
from policyd.core.reply import reply_text
from policyd.core.ruleset import MAX_TEXT, Verb
from policyd.decision_log import reader as reading
from policyd.decision_log import writer as writing
from policyd.decision_log.record import MAX_LINE, NO_NAME, format_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policyd.core.index import Ruleset

# The parser's limit. It is small, so that short inputs reach it: more of these can be tried in a second.
REQUEST_BYTES = 128

# Maximum bytes of an input that is also parsed byte by byte; every input is parsed in pieces of many lengths.
BYTE_BY_BYTE = 48

TODAY = datetime.date(2026, 11, 21)

# Maximum bytes of an input for which the log cuts no value: a line has 4,096 bytes, and an escaped byte takes four.
UNCUT = 400


def parser(content: bytes, _folder: Path) -> None:
    """Any chunking of a stream gives the same requests and the same error at its end, within the limit of memory, and a
    request that is serialized and parsed again is the same.
    """
    whole, error = _parsed([content])
    assert (whole, error) == _parsed(_pieces(content, content or b"\0"))
    if len(content) <= BYTE_BY_BYTE:
        assert (whole, error) == _parsed(content[at : at + 1] for at in range(len(content)))
    assert error is None or (error.isascii() and error.isprintable() and len(error) < 400)
    written = [
        b"".join(b"%b=%b\n" % (name.encode("latin-1"), value) for name, value in attributes.items()) + b"\n"
        for attributes in whole
    ]
    assert _parsed([b"".join(written)]) == (whole, None)  # this also uses known layouts


def _parsed(pieces: Iterable[bytes]) -> tuple[list[dict[str, bytes]], str | None]:
    reader = RequestParser(REQUEST_BYTES, Layouts())
    requests = []
    try:
        for piece in pieces:
            reader.receive_data(piece)
            while (request := reader.next_request()) is not None:
                requests.append(request.attributes())
            assert reader.pending <= REQUEST_BYTES
    except ProtocolError as error:
        return requests, str(error)
    return requests, None


def _pieces(content: bytes, sizes: bytes) -> list[bytes]:
    """The content in pieces, whose lengths are derived from the content."""
    pieces = []
    at = turn = 0
    while at < len(content):
        size = 1 + sizes[turn % len(sizes)] % 29
        pieces.append(content[at : at + size])
        at += size
        turn += 1
    return pieces


# --- From a request to its answer and its line ------------------------------------------------------------------------

# Most placeholders, an exemption and a rejection by name, an observed rule, and a rule for a failure of DNS.
RULES = r"""
rules:
  - {name: seen, match: {helo_name_regex: '.'}, action: REJECT, mode: observe}
  - {name: let-in, match: {hostname_suffix: good.example}, action: DUNNO}
  - name: kept-out
    match: {hostname_regex: bad}
    except: {hostname: not.bad.example}
    action: REJECT 5.7.1 {hostname} {id}
  - {name: down, match: {reverse_dns: error}, action: 'DEFER 4.4.3 {client_address} {reverse_dns}'}
  - {name: sender, match: {sender_regex: '@'}, action: 'REJECT {sender} {{{recipient}}} {helo_name}'}
  - {name: plain, match: {protocol_state: MAIL}, action: REJECT 5.7.0}
default: 'DEFER_IF_PERMIT {rule}: {helo_name}'
"""


@lru_cache
def _ruleset() -> Ruleset:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rules.yaml"
        path.write_text(RULES)
        return load(None, path).ruleset


def request_of(content: bytes) -> tuple[Request, Identity]:
    """Parses lines `name=value`. `verified=` and `claimed=` give a name of the client, `error=` the reason why DNS
    failed; all others are attributes of the request.
    """
    attributes: dict[str, bytes] = {}
    verified: set[bytes] = set()
    claimed: set[bytes] = set()
    reason: Reason | None = None
    for line in content.split(b"\n"):
        name, _, value = line.partition(b"=")
        match name:
            case b"verified" | b"claimed" if not value:
                pass  # DNS has no empty name; its root is `.`
            case b"verified":
                verified.add(value)
            case b"claimed":
                claimed.add(value)
            case b"error":
                reason = next((known for known in Reason if known.encode() == value), Reason.SERVFAIL)
            case _:
                attributes[name.decode("latin-1")] = value
    names = tuple(sorted(claimed - verified))
    if verified:
        identity = Identity(Status.VERIFIED, tuple(sorted(verified)), names)
    elif reason is not None:
        identity = Identity(Status.ERROR, (), names, reason, names_known=bool(names))
    else:
        identity = Identity(Status.MISMATCH if names else Status.MISSING, (), names)
    return Request.of(attributes), identity


def decision(content: bytes, _folder: Path) -> None:
    """For any request and DNS answers, the answer is one line of printable ASCII and an empty line, the fast and the
    general formatter give the same log line in each format, and the tools read the same values back.
    """
    request, identity = request_of(content)
    ruleset = _ruleset()
    for known in (identity_from_postfix(request), identity):
        decided = decide(ruleset, request, Facts(known), TODAY)
        if isinstance(decided, Needs):
            assert known is None
            continue
        assert isinstance(decided, Decision)
        _check_answer(request, decided, known, content)


def _check_answer(request: Request, decided: Decision, known: Identity | None, content: bytes) -> None:
    reply = b"" if decided.verb is Verb.DUNNO else reply_text(decided, request, known, b"7Q4K2M9X")
    assert len(reply) <= MAX_TEXT
    answer = encode_reply(decided.verb, reply)
    assert answer.endswith(b"\n\n")
    assert answer[:-2].decode("ascii").isprintable()
    entry = writing.DecisionEntry(
        b"2026-11-21T17:16:00.123+09:00",
        b"7Q4K2M9X",
        request,
        decided,
        known.hostname if known is not None else b"",
        reply,
        "3f9c2a1b",
        0.0118,
        0.0121,
    )
    text, json_line = writing.text_line(entry), writing.json_line(entry)
    for line in (text, json_line):
        assert len(line) <= MAX_LINE
        assert line.endswith(b"\n")
        assert line[:-1].decode("ascii").isprintable()
    at_once = entry._replace(dns_seconds=0.0)
    assert writing.text_line(at_once) == writing._fit_line(format_text, at_once)
    assert isinstance(json.loads(json_line), dict)
    from_text, from_json = reading.parse(text[:-1]), reading.parse(json_line[:-1])
    assert from_text is not None
    assert from_json is not None
    assert from_text.action == from_json.action == decided.verb.encode()
    if len(content) <= UNCUT:
        hostname = known.hostname if known is not None else b""
        _check_read_back(from_text, from_json, request, decided, hostname)


def _check_read_back(
    text: reading.LoggedDecision,
    json_line: reading.LoggedDecision,
    request: Request,
    decided: Decision,
    hostname: bytes,
) -> None:
    identity = decided.identity
    for name in ("protocol_state", "sender", "recipient", "helo_name", "sasl_username", "instance", "queue_id"):
        value = request.get(name)
        assert (getattr(text, name) or b"") == value, name
        assert (getattr(json_line, name) or b"") == value.decode("utf-8", "replace").encode(), name
    if b"[" not in hostname:  # `client=NAME[ADDRESS]`; no host name has one
        assert text.client_address == request.get("client_address")
        assert (text.hostname or NO_NAME) == (hostname or NO_NAME)
    claimed = identity.claimed if identity is not None else ()
    assert text.claimed == claimed
    assert json_line.claimed == tuple(name.decode("utf-8", "replace").encode() for name in claimed)
    assert text.rule_name == json_line.rule_name == decided.rule_name.encode()
    assert text.observed == json_line.observed == tuple(name.encode() for name in decided.observed)
    assert text.downgraded == json_line.downgraded == decided.downgraded
    assert text.reply == json_line.reply
