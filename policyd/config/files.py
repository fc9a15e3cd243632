"""Reads a whole file, or says why it cannot be read.

Each file is opened once and read through that descriptor, so a file that is replaced during the read gives either the
old or the new content. A file that is written to during the read is refused: its content may be mixed.
"""

from __future__ import annotations

import os
import stat

# Maximum bytes of a rules file: 10,000 rules take 2 MB, a million entries in the file itself 30 MB.
MAX_RULES_BYTES = 64 << 20

# Maximum bytes of a settings file: the shipped file has 4 KB, most of it comments.
MAX_SETTINGS_BYTES = 1 << 20

# Maximum bytes of a list file: ten million names are about this long.
MAX_LIST_BYTES = 256 << 20

# Windows editors begin a file in UTF-8 with these bytes.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class UnreadableError(Exception):
    """The file cannot be read. The message says why, without the file's name."""


class ListChangedError(UnreadableError):
    """A list file that is read a second time in a load has changed, or cannot be read any more. `path` is the file."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


class OversizedError(Exception):
    """The file is longer than the limit. The message says so."""


def read_file(path: str, limit: int) -> bytes:
    """The bytes of a regular file, as `read_dated` reads them."""
    return read_dated(path, limit)[0]


def read_dated(path: str, limit: int) -> tuple[bytes, float]:
    """The bytes of a regular file, and when it was last written (Unix seconds).

    Raises OversizedError if the file is longer than `limit` bytes, and UnreadableError. Never waits: a FIFO is refused
    like everything that is not a regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL in the name
        raise UnreadableError(f"cannot be read: {error}") from error
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            kind = next((name for is_kind, name in _KINDS if is_kind(before.st_mode)), "not a regular file")
            raise UnreadableError(f"cannot be read: it is {kind}")
        content = _read_up_to(descriptor, limit + 1, before.st_size)
        after = os.fstat(descriptor)
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise OversizedError(f"is longer than {limit >> 20} MiB")
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise UnreadableError("was written to while it was read; write a new file and rename it over the old one")
    return content, after.st_mtime


def _read_up_to(descriptor: int, limit: int, size: int) -> bytes:
    # An empty read is the end of the file: any other read may return fewer bytes than requested.
    parts = []
    missing = limit
    while missing and (part := os.read(descriptor, min(missing, max(size + 1, 65536)))):
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
