import os
import socket
import stat
from pathlib import Path

import pytest

from policyd.daemon.sinks import FileSink, StreamSink, sink_for

LINE = b"x" * 1000 + b"\n"


def test_a_full_pipe_loses_complete_lines_only() -> None:
    reader, writer = os.pipe()
    sink = sink_for(writer)
    lost = sum(sink.write([LINE]) for _ in range(1000))
    assert 900 < lost < 1000
    assert sink.error == "its reader is too slow"
    content = os.read(reader, 1 << 20)
    assert content == LINE * (1000 - lost)
    assert sink.write([b"next\n"]) == 0
    assert os.read(reader, 100) == b"next\n"
    sink.close()
    os.close(writer)
    os.close(reader)


def test_an_inherited_descriptor_stays_blocking() -> None:
    reader, writer = os.pipe()
    sink = sink_for(writer)
    sink.write([LINE])
    assert os.get_blocking(writer)
    for end in (reader, writer):
        os.close(end)
    sink.close()


def test_a_stream_socket_gets_the_rest_of_a_line_before_the_next_line() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with near, far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        sink = sink_for(near.fileno())
        long_line = b"y" * 200_000 + b"\n"
        assert sink.write([long_line, LINE]) == 1  # the first is partly written, and the second would interrupt it
        far.settimeout(10)
        read = b""
        while not read.endswith(b"\n"):
            read += far.recv(65536)
            sink.write([])
            if not read.endswith(b"\n"):
                sink.write([b"lost\n"])
        assert read.startswith(long_line)
        sink.close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_lines_for_a_reader_that_has_ended_are_lost(kind: socket.SocketKind) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, kind)
    with near:
        sink = sink_for(near.fileno())
        far.close()
        assert sink.write([LINE, LINE]) == 2
        assert sink.error
        sink.close()


def test_without_proc_a_pipe_is_polled_before_each_write(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise FileNotFoundError

    reader, writer = os.pipe()
    monkeypatch.setattr("policyd.daemon.sinks.os.open", refuse)
    sink = StreamSink(writer)
    lost = sum(sink.write([LINE]) for _ in range(1000))
    assert 900 < lost < 1000
    assert os.read(reader, 1 << 20) == LINE * (1000 - lost)
    sink.close()
    for end in (reader, writer):
        os.close(end)


def test_a_short_write_is_counted_and_the_next_line_starts_on_a_new_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    sink = sink_for(descriptor)
    os.close(descriptor)
    assert isinstance(sink, FileSink)
    write = os.write
    room = [7]

    def write_some(descriptor: int, block: bytes) -> int:
        written = write(descriptor, block[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr("policyd.daemon.sinks.os.write", write_some)  # a disk with room for seven bytes
    assert sink.write([b"one\n", b"two\n", b"three\n"]) == 2
    assert sink.error == "No space left on device"
    assert sink.write([b"four\n"]) == 1
    monkeypatch.undo()
    assert sink.write([b"five\n", b"six\n"]) == 0
    assert path.read_bytes() == b"one\ntwo\nfive\nsix\n"
    sink.close()


def test_a_device_is_written_as_a_stream() -> None:
    descriptor = os.open("/dev/null", os.O_WRONLY)
    assert stat.S_ISCHR(os.fstat(descriptor).st_mode)
    sink = sink_for(descriptor)
    assert isinstance(sink, StreamSink)
    assert sink.write([LINE]) == 0
    sink.close()
    os.close(descriptor)
