"""Writes lines to a descriptor without ever waiting for its reader.

A regular file takes the lines of one loop iteration in a single append. Everything else (a pipe, a socket, a terminal)
gets each line in a separate, non-blocking write, and a line for which there is no room is lost. Writes return the
number of lost lines, and the caller reports them. A sink writes to a descriptor that it opens itself; the original may
be closed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class FileSink:
    """Appends to a regular file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = os.dup(descriptor)
        # Standard output may be a file without O_APPEND (`> file`), in which the lines of two processes would mix.
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | os.O_APPEND)
        self._torn = False  # the file ends in the middle of a line, because the disk was full
        self.error = ""  # the cause of the last loss

    def write(self, lines: Sequence[bytes]) -> int:
        """Appends the lines in one write. Returns how many were lost."""
        start = b"\n" if self._torn else b""
        block = start + b"".join(lines)
        try:
            written = os.write(self._descriptor, block)
        except OSError as error:
            self.error = os.strerror(error.errno or errno.EIO)
            return len(lines)
        if written == len(block):
            self._torn = False
            return 0
        self.error = os.strerror(errno.ENOSPC)  # the cause of a short write to a file
        self._torn = block[written - 1 : written] != b"\n" if written else self._torn
        return len(lines) - block.count(b"\n", len(start), written)

    def close(self) -> None:
        """Closes the descriptor."""
        os.close(self._descriptor)


class StreamSink:
    """Writes to a pipe, a socket, a terminal or another device, one line at a time, without waiting."""

    def __init__(self, descriptor: int) -> None:
        self._send, self._close = _sender(descriptor)
        self._rest = b""  # the rest of a partly written line
        self.error = ""  # the cause of the last loss

    def write(self, lines: Sequence[bytes]) -> int:
        """Writes each line, as far as there is room. Returns how many were lost."""
        lost = 0
        for line in lines:
            try:
                if self._rest:
                    self._rest = self._rest[self._send(self._rest) :]
                if self._rest:
                    self.error = _TOO_SLOW
                    lost += 1
                else:
                    self._rest = line[self._send(line) :]
            except BlockingIOError:
                self.error = _TOO_SLOW
                lost += 1
            except OSError as error:
                self.error = os.strerror(error.errno or errno.EIO)
                self._rest = b""  # a new reader must not begin in the middle of a line
                lost += 1
        return lost

    def close(self) -> None:
        """Closes the descriptor."""
        self._close()


_TOO_SLOW = "its reader is too slow"


def sink_for(descriptor: int) -> FileSink | StreamSink:
    """Returns the sink for the kind of file behind a descriptor. Raises OSError if it is closed."""
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return FileSink(descriptor)
    return StreamSink(descriptor)


def _sender(descriptor: int) -> tuple[Callable[[bytes], int], Callable[[], None]]:
    """Returns functions to write without blocking, and to close.

    O_NONBLOCK belongs to the open file, not to the descriptor, and standard output is shared with the shell and its
    other children; so it is never set on an inherited descriptor.
    """
    if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        connection = socket.socket(fileno=os.dup(descriptor))
        return (
            lambda line: connection.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL),
            connection.close,
        )
    try:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        own = os.open(f"/proc/self/fd/{descriptor}", flags)
    except OSError:  # another user's terminal, or no /proc: poll before each write instead
        own = os.dup(descriptor)
        writable = select.poll()
        writable.register(own, select.POLLOUT)

        def write_if_ready(line: bytes) -> int:
            if not writable.poll(0):
                raise BlockingIOError
            # A pipe that is writable takes PIPE_BUF bytes at once (pipe(7)).
            return os.write(own, line[: select.PIPE_BUF])

        return write_if_ready, lambda: os.close(own)
    return lambda line: os.write(own, line), lambda: os.close(own)
