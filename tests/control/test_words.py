"""Valid and invalid requests to the control socket, and an answer with a long text."""

from __future__ import annotations

import json

import pytest

from policyd.control.words import Command, ControlRequest, RequestError, encode_with_text, parse_request


@pytest.mark.parametrize(
    "request_",
    [
        ControlRequest(Command.STATUS),
        ControlRequest(Command.RELOAD, data=True),
        ControlRequest(Command.FORGET, what="mail.example.com"),
        ControlRequest(Command.STATUS, counter="c"),
        ControlRequest(Command.FORGET, what="a\nb", counter="c"),
        ControlRequest(Command.FORGET, what="192.0.2.1", greylist=True),
    ],
)
def test_a_request_is_read_back_as_it_was_written(request_: ControlRequest) -> None:
    line = request_.encode()
    assert line.endswith(b"\n")
    assert parse_request(line) == request_


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"status\n",
        b"{}\n",
        b"[]\n",
        b"7\n",
        b'{"command": "stop"}\n',
        b'{"command": ["status"]}\n',
        b'{"command": "status", "why": 1}\n',
        b'{"command": "reload", "data": 1}\n',
        b'{"command": "forget"}\n',
        b'{"command": "forget", "what": 7}\n',
        b'{"command": "status", "what": "x"}\n',
        b'{"command": "status", "counter": 7}\n',
        b'{"command": "status", "greylist": true}\n',
        b'{"command": "reload", "counter": "x"}\n',
        b'{"command": "forget", "counter": "x"}\n',
        b'{"command": "forget", "what": "x", "counter": "x", "greylist": true}\n',
        b"\xff\xfe\n",
        b"[" * 4000 + b"\n",
    ],
)
def test_an_invalid_request_is_refused(line: bytes) -> None:
    with pytest.raises(RequestError):
        parse_request(line)


def test_a_long_text_is_encoded_in_pieces_that_make_one_object() -> None:
    text = 'rules: # "quoted" \\ \t\r\n\u00e9\u2028\U0001f600' * 20_000
    pieces = [*encode_with_text({"ok": True}, "rules", memoryview(text.encode()))]
    assert len(pieces) > 5
    assert json.loads(b"".join(pieces)) == {"ok": True, "rules": text}
    assert b"\n" not in b"".join(pieces)[:-1]
