"""Requests are the same in whatever pieces they arrive, and invalid input raises one clear error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.core.protocol import ATTRIBUTES, Layouts, ProtocolError, Request, RequestParser, encode_reply

TYPE = b"request=smtpd_access_policy\n"
POSTFIX = TYPE + b"protocol_state=RCPT\nclient_address=192.0.2.1\nsender=a=b@example.org\nsasl_username=\n\n"

values = st.binary(max_size=30).map(lambda value: value.replace(b"\n", b""))
names = st.sampled_from([name for name in ATTRIBUTES if name != "request"]) | st.sampled_from(["x", "new attribute"])
requests = st.lists(st.tuples(names, values), max_size=8)


def encode(lines: list[tuple[str, bytes]], request_at: int) -> bytes:
    parts = [name.encode() + b"=" + value + b"\n" for name, value in lines]
    parts.insert(request_at % (len(parts) + 1), TYPE)
    return b"".join(parts) + b"\n"


def parse_all(pieces: list[bytes], parser: RequestParser | None = None) -> list[dict[str, bytes]]:
    parser = parser or RequestParser()
    parsed = []
    for piece in pieces:
        parser.receive_data(piece)
        while (request := parser.next_request()) is not None:
            parsed.append(request.attributes())
    return parsed


@given(st.lists(st.tuples(requests, st.integers(0, 9)), min_size=1, max_size=4), st.data())
def test_requests_cut_into_any_pieces_are_the_same(
    sequence: list[tuple[list[tuple[str, bytes]], int]], data: st.DataObject
) -> None:
    stream = b"".join(encode(lines, at) for lines, at in sequence)
    want = [{**dict(lines), "request": b"smtpd_access_policy"} for lines, _ in sequence]
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert parse_all(pieces) == want
    assert parse_all([stream]) == want
    assert parse_all([stream[i : i + 1] for i in range(len(stream))]) == want


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_any_bytes_raise_only_the_parsers_own_error(pieces: list[bytes]) -> None:
    try:
        parse_all(pieces)
    except ProtocolError as error:
        assert str(error).isascii()
        assert str(error).isprintable()
        assert len(str(error)) < 400


def test_the_last_of_a_repeated_attribute_counts() -> None:
    (request,) = parse_all([TYPE + b"sender=one\nsender=two\n\n"])
    assert request["sender"] == b"two"


def test_a_known_layout_and_the_general_path_agree() -> None:
    parser = RequestParser()
    general, fast, glued = parse_all([POSTFIX, POSTFIX, POSTFIX + POSTFIX[:20], POSTFIX[20:]], parser)[:3]
    assert general == fast == glued
    assert fast["sender"] == b"a=b@example.org"
    assert fast["sasl_username"] == b""


def test_an_attribute_that_was_not_sent_is_empty() -> None:
    parser = RequestParser()
    parser.receive_data(POSTFIX)
    request = parser.next_request()
    assert request is not None
    assert request.get("helo_name") == b""
    assert request == Request.of(request.attributes())


@pytest.mark.parametrize(
    ("received", "message"),
    [
        (b"\n", "an empty request (no request=smtpd_access_policy)"),
        (b"sender=x\n\n", "a request without request=smtpd_access_policy"),
        (b"request=junk\n\n", "request='junk'; only request=smtpd_access_policy is served"),
        (b"request=\xff\n\n", "request='\\xff'; only request=smtpd_access_policy is served"),
        (TYPE + b"no equals sign\n\n", "a line that is not name=value: 'no equals sign'"),
        (TYPE + b"=value\n\n", "a line that is not name=value: '=value'"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\n", "a line that is not name=value: 'GET / HTTP/1.1\\r'"),
        (TYPE + b"x" * 100 + b"\n\n", "a line that is not name=value: '" + "x" * 60 + "'..."),
    ],
)
def test_an_invalid_request_is_refused(received: bytes, message: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_all([received])
    assert str(caught.value) == message


@pytest.mark.parametrize("piece", [1, 7, 1000])
@pytest.mark.parametrize("end", [b"", b"\n\n"])
def test_a_request_is_bounded_with_and_without_an_end(piece: int, end: bytes) -> None:
    stream = TYPE + b"sender=" + b"a" * 2000 + end
    parser = RequestParser(request_bytes=2000)
    with pytest.raises(ProtocolError, match="a request of more than 2000 bytes"):
        parse_all([stream[i : i + piece] for i in range(0, len(stream), piece)], parser)
    assert parser.pending <= 2000 + piece


@pytest.mark.parametrize("piece", [1, 2, 3, 100])
def test_a_request_of_exactly_the_limit_is_accepted_in_any_pieces(piece: int) -> None:
    request = TYPE + b"sender=" + b"a" * 100 + b"\n\n"
    pieces = [request[i : i + piece] for i in range(0, len(request), piece)]
    assert len(parse_all(pieces, RequestParser(len(request)))) == 1
    with pytest.raises(ProtocolError):
        parse_all(pieces, RequestParser(len(request) - 1))


def test_a_known_layout_accepts_a_request_of_exactly_the_limit() -> None:
    request = TYPE + b"sender=" + b"a" * 100 + b"\n\n"
    layouts = Layouts()
    assert len(parse_all([request, request], RequestParser(len(request), layouts))) == 2
    parser = RequestParser(len(request), layouts)
    with pytest.raises(ProtocolError):
        parse_all([request, request.replace(b"=a", b"=aa", 1)], parser)


def test_requests_beyond_the_limit_of_layouts_are_still_parsed() -> None:
    layouts = Layouts()
    for count in range(3, 30):
        order = [name for name in ATTRIBUTES if name != "request"][:count]
        request = TYPE + b"".join(name.encode() + b"=v\n" for name in order) + b"\n"
        (first, second) = parse_all([request, request], RequestParser(layouts=layouts))
        assert first == second == {"request": b"smtpd_access_policy", **dict.fromkeys(order, b"v")}
    assert layouts.learn([b"request", b"size"]) is None


def test_replies_end_with_an_empty_line_and_have_no_trailing_blank() -> None:
    assert encode_reply("DUNNO") == b"action=DUNNO\n\n"
    assert encode_reply("REJECT", b"5.7.1 Access denied") == b"action=REJECT 5.7.1 Access denied\n\n"
