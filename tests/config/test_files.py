"""Reading files: whole, once, and with a message for unreadable ones."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from policyd.config.files import OversizedError, UnreadableError, read_file

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(content := os.urandom(200_000))
    assert read_file(str(path), 1 << 20) == content
    assert read_file(str(path), 200_000) == content


def test_an_empty_file_is_read_as_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    assert read_file(str(tmp_path / "f"), 10) == b""


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "link").symlink_to("f")
    assert read_file(str(tmp_path / "link"), 10) == b"x"


def test_a_file_that_is_too_long_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: it has a size, but no content
    with pytest.raises(OversizedError, match="is longer than 1 MiB"):
        read_file(str(path), 1 << 20)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_nothing(path: Path) -> None:
    pass


def make_below_a_file(path: Path) -> None:
    path.parent.joinpath("g").touch()
    path.symlink_to("g/h")


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_folder, "cannot be read: it is a folder"),
        (make_fifo, "cannot be read: it is a FIFO"),
        (make_socket, "cannot be read: No such device or address"),
        (make_device, "cannot be read: it is a device"),
        (make_loop, "cannot be read: Too many levels of symbolic links"),
        (make_nothing, "cannot be read: No such file or directory"),
        (make_below_a_file, "cannot be read: Not a directory"),
    ],
)
def test_anything_but_a_regular_file_is_refused_at_once(
    make: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    make(tmp_path / "f")
    descriptors = open_descriptors()
    with pytest.raises(UnreadableError) as caught:
        read_file(str(tmp_path / "f"), 100)
    assert str(caught.value) == message
    assert open_descriptors() == descriptors


def test_a_file_without_read_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root can read everything; Debian's `nobody` cannot
    try:
        with pytest.raises(UnreadableError, match="cannot be read: Permission denied"):
            read_file(str(path), 100)
    finally:
        os.seteuid(user)


def test_an_invalid_file_name_is_refused() -> None:
    with pytest.raises(UnreadableError, match="null"):
        read_file("a\0b", 100)


def test_a_file_that_is_replaced_during_the_read_gives_the_old_content(tmp_path: Path) -> None:
    """The read gets all of the old content, although the file is replaced after its first part was read."""
    path = tmp_path / "f"
    path.write_bytes(b"old" * 100_000)
    real_read = os.read

    def read_and_replace(descriptor: int, size: int) -> bytes:
        part = real_read(descriptor, min(size, 1000))
        new = tmp_path / "new"
        if not new.exists() and part:
            new.write_bytes(b"new" * 100_000)
            os.link(new, tmp_path / "linked")
            (tmp_path / "linked").replace(path)
        return part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "read", read_and_replace)
        assert read_file(str(path), 1 << 20) == b"old" * 100_000
    assert read_file(str(path), 1 << 20) == b"new" * 100_000


def test_a_file_that_is_written_to_during_the_read_is_refused(tmp_path: Path) -> None:
    """The content may be half old and half new, for instance if `cp` writes a list during a reload."""
    path = tmp_path / "f"
    path.write_bytes(b"old" * 100_000)
    os.utime(path, ns=(0, 0))
    real_read = os.read

    def read_and_write(descriptor: int, size: int) -> bytes:
        part = real_read(descriptor, min(size, 1000))
        if path.stat().st_mtime_ns == 0:
            path.write_bytes(b"new" * 100_000)
        return part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "read", read_and_write)
        with pytest.raises(UnreadableError, match="was written to while it was read"):
            read_file(str(path), 1 << 20)


def test_a_fifo_with_a_writer_is_refused_without_waiting(tmp_path: Path) -> None:
    path = tmp_path / "f"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    refusals = []

    def read() -> None:
        try:
            read_file(str(path), 100)
        except UnreadableError as error:
            refusals.append(str(error))

    try:
        worker = threading.Thread(target=read, daemon=True)
        worker.start()
        worker.join(5)
        assert refusals == ["cannot be read: it is a FIFO"]
    finally:
        os.close(writer)
        os.close(reader)
