"""Opens a command's LOG files, and reads their lines in blocks, as bytes.

Promises: `-` is standard input; gzip, bzip2, xz and Zstandard are recognised by their first bytes, whatever the name;
the files of one rotated set come oldest first; at most one block and one line are in memory. A file that is missing, a
folder, unreadable, cut off or not text ends the reading with a `LogError` of one line. The readers of this package
interpret the lines.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import re
import stat
import sys
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import zstandard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

STANDARD_INPUT = "-"

# Bytes read at once: large enough to make the work for each block negligible, small enough for a progress bar to move.
BLOCK_BYTES = 256 * 1024

# Maximum bytes of a line; a longer line is cut there, because a file without line breaks would fill the memory.
# Postfix cuts its lines at 2 KiB; journald's JSON lines have a few KiB.
MAX_LINE_BYTES = 256 * 1024

# Compressed bytes given to Zstandard at once. A block of 4 bytes can expand to 128 KiB, so this limits the output from
# a hostile file to 64 MiB at a time.
_ZSTD_INPUT_BYTES = 2 * 1024

# Maximum share of control characters in the first block of a text file; a crash sometimes leaves NULs in a log. Tabs,
# line ends, form feeds and escapes are not counted.
_BINARY_SHARE = 0.02
_CONTROL = bytes(set(range(32)) - set(b"\t\n\r\f\x1b")) + b"\x7f"

_UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError)

# The suffixes that logrotate and newsyslog add: `.1`, `-20261121`, `-20261121-1763683200`, `.20261121`, and a
# compressor's suffix.
_ROTATED = re.compile(
    r"(?P<base>.+?)(?:\.(?P<number>\d{1,4})|[-.](?P<date>\d{8}(?:[-T.]?\d{2,10})?))?(?:\.(?:gz|bz2|xz|zst))?", re.DOTALL
)


class LogError(Exception):
    """A log that cannot be read. The message is one line that begins with the file's name."""


class NotTextError(LogError):
    """The file is binary."""


class LineBlock(NamedTuple):
    """Some whole lines of one file, in order: `text` ends with a line end, `lines` have no line ends.

    `name` is the file as the user named it, `first` is true for a file's first block, and `modified` is when the file
    was last written to (Unix seconds; for standard input, now), which dates timestamps without a year. `ended` is false
    if the file ends in the middle of the last of these lines.
    """

    name: str
    first: bool
    modified: float
    text: bytes
    ended: bool = True

    @property
    def lines(self) -> list[bytes]:
        """Returns the lines, which are split at each call."""
        lines = self.text.split(b"\n")
        lines.pop()
        return lines


def in_order(paths: Sequence[str]) -> list[str]:
    """Returns the same paths with the files of each rotated set together, oldest first.

    `mail.log mail.log.1 mail.log.2.gz` is one set, as is `mail.log mail.log-20261114 mail.log-20261107.gz`. Sets and
    single files keep the order in which they were first named.
    """
    sets: dict[str, list[tuple[tuple[int, int, str], str]]] = {}
    for path in paths:
        base, age = _place(path)
        sets.setdefault(base, []).append((age, path))
    return [path for members in sets.values() for _, path in sorted(members, key=lambda member: member[0])]


def rotated_set(path: str) -> list[str]:
    """Returns the file at `path` and its rotated files, oldest first.

    Raises `LogError` if none of them exists, or the folder cannot be read.
    """
    live = Path(path)
    try:
        names = os.listdir(live.parent)  # noqa: PTH208 - names are compared as text, without a Path for each
    except OSError as error:
        raise LogError(f"{path}: {_reason(error)}") from None
    found = [str(live.parent / name) for name in names if name.startswith(live.name) and _place(name)[0] == live.name]
    if not found:
        raise LogError(f"{path}: no such file; name the LOG, or set decision_log.path in policyd.yaml")
    return in_order(found)


def total_bytes(paths: Iterable[str]) -> int | None:
    """The total size of the files on disk, or None if a size is unknown (standard input, a pipe).

    Raises `LogError` for the first path that is not a readable file, so that a long run does not fail at its last LOG.
    """
    total: int | None = 0
    for path in paths:
        if path == STANDARD_INPUT:
            total = None
            continue
        try:
            status = os.stat(path)  # noqa: PTH116 - the path as typed
        except (OSError, ValueError) as error:
            raise LogError(f"{path}: {_reason(error)}") from None
        if stat.S_ISDIR(status.st_mode):
            raise LogError(f"{path}: is a folder; name the files in it")
        if not os.access(path, os.R_OK):
            raise LogError(f"{path}: permission denied; logs are often readable only for root and the group adm")
        if not stat.S_ISREG(status.st_mode):
            total = None
        elif total is not None:
            total += status.st_size
    return total


def read_blocks(
    paths: Iterable[str], advance: Callable[[int], None] | None = None, longest: int = MAX_LINE_BYTES
) -> Iterator[LineBlock]:
    """Yields the lines of all files in blocks, file after file; a line of more than `longest` bytes is cut there.

    `advance` is called with the number of bytes read (compressed, if the file is) since the last call, for files of
    known size. Raises `LogError`.
    """
    for path in paths:
        yield from _read_file(path, advance or _ignore, longest)


def _ignore(_count: int) -> None:
    """Discards progress reports."""


def _read_file(path: str, advance: Callable[[int], None], longest: int) -> Iterator[LineBlock]:
    try:
        with io.BufferedReader(_open(path), BLOCK_BYTES) as file:
            modified = time.time() if path == STANDARD_INPUT else os.fstat(file.fileno()).st_mtime
            has_size = file.seekable()
            first = True
            reported = 0
            for text, ended in _whole_lines(_decompressed(file), path, longest):
                yield LineBlock(path, first, modified, text, ended)
                first = False
                if has_size:
                    position = file.raw.tell()
                    advance(position - reported)
                    reported = position
    except _UNREADABLE as error:
        raise LogError(f"{path}: {_reason(error)}") from None


def _open(path: str) -> io.FileIO:
    if path == STANDARD_INPUT:
        return io.FileIO(sys.stdin.fileno(), closefd=False)
    return io.FileIO(path)


def _decompressed(file: io.BufferedReader[io.FileIO]) -> Iterator[bytes]:
    """Yields blocks of the content, decompressed according to its first bytes (RFC 1952, RFC 8878; bzip2 and xz)."""
    magic = file.peek(6)[:6]
    if magic.startswith(b"\x1f\x8b"):
        return _plain(gzip.GzipFile(fileobj=file))
    if re.match(rb"BZh[1-9]", magic):
        return _plain(bz2.BZ2File(file))
    if magic.startswith(b"\xfd7zXZ\x00"):
        return _plain(lzma.LZMAFile(file))
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return _zstandard(file)
    return _plain(file)


def _plain(file: BinaryIO | io.BufferedIOBase) -> Iterator[bytes]:
    while block := file.read(BLOCK_BYTES):
        yield block


def _zstandard(file: BinaryIO | io.BufferedIOBase) -> Iterator[bytes]:
    """Yields decompressed blocks, without the library's `stream_reader`, which accepts a truncated file as complete."""
    frame = None
    while piece := file.read(_ZSTD_INPUT_BYTES):
        while piece:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            if block := frame.decompress(piece):
                yield block
            piece = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame = None
    if frame is not None:
        raise EOFError


def _whole_lines(blocks: Iterator[bytes], path: str, longest: int) -> Iterator[tuple[bytes, bool]]:
    """Yields the text in blocks of whole lines, each with whether its last line is complete; a file that is being
    written may end in the middle of a line.
    """
    rest = b""
    first = True
    for block in blocks:
        if first:
            _refuse_binary(block, path)
            first = False
        text = rest + block
        if b"\r" in text:  # searching for one byte is five times as fast as for two
            text = text.replace(b"\r\n", b"\n")
        end = text.rfind(b"\n") + 1
        text, rest = text[:end], text[end:]
        if len(rest) > longest:
            # The rest of the line becomes a separate line, which no reader recognises.
            text += rest[:longest] + b"\n"
            rest = b""
        if text:
            yield text, True
    if rest:
        yield rest.removesuffix(b"\r") + b"\n", False


def _refuse_binary(block: bytes, path: str) -> None:
    if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise NotTextError(
            f"{path}: is a binary file, not a log; if it is UTF-16 text, convert it with `iconv -f UTF-16 -t UTF-8`"
        )
    if len(block) - len(block.translate(None, _CONTROL)) > len(block) * _BINARY_SHARE:
        raise NotTextError(f"{path}: is a binary file, not a log")


def _place(path: str) -> tuple[str, tuple[int, int, str]]:
    """Returns the live file's name, and a key that sorts a rotated set with the oldest first and the live file last."""
    match = _ROTATED.fullmatch(path)
    if match is None or path == STANDARD_INPUT:
        return path, (2, 0, "")
    if match["number"] is not None:
        return match["base"], (1, -int(match["number"]), "")
    if match["date"] is not None:
        return match["base"], (0, 0, match["date"])
    return match["base"], (2, 0, "")


def _reason(error: Exception) -> str:
    """Returns the cause of an error, for the end of a line that begins with the file's name."""
    if isinstance(error, EOFError):
        return "the compressed file is cut off; copy it again, or leave it out"
    if isinstance(error, gzip.BadGzipFile | lzma.LZMAError | zlib.error | zstandard.ZstdError):
        return f"the compressed file is damaged ({error})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    if isinstance(error, OSError):
        return f"the compressed file is damaged ({error})"  # bz2 raises OSError with only a text
    return str(error)
