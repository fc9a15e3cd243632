from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zstandard

from policyd.logs import files
from policyd.logs.files import LogError, in_order, read_blocks, rotated_set, total_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

LINES = [b"line %d of a log, of some length so that blocks fill" % number for number in range(20_000)]
TEXT = b"".join(line + b"\n" for line in LINES)

COMPRESSORS = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": partial(lzma.compress, preset=0),
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,  # as zstd(1) does
}


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def lines_of(*paths: Path | str) -> list[bytes]:
    return [line for block in read_blocks([str(path) for path in paths]) for line in block.lines]


@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
def test_a_log_is_read_whatever_its_compression_and_its_name(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    log = tmp_path / "maillog"
    log.write_bytes(compress(TEXT))
    assert lines_of(log) == LINES


@pytest.mark.parametrize("compress", [c for name, c in COMPRESSORS.items() if name != "plain"])
def test_concatenated_archives_are_one_log(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    log = tmp_path / "maillog.1"
    half = len(TEXT) // 2
    log.write_bytes(compress(TEXT[:half]) + compress(TEXT[half:]))
    assert lines_of(log) == LINES


@pytest.mark.parametrize("cut", [5, 1000], ids=["at the end", "in the middle"])
@pytest.mark.parametrize("compress", [c for name, c in COMPRESSORS.items() if name != "plain"])
def test_an_archive_that_was_cut_off_is_an_error_that_names_it(
    tmp_path: Path, compress: Callable[[bytes], bytes], cut: int
) -> None:
    log = tmp_path / "maillog.2.gz"
    log.write_bytes(compress(TEXT)[:-cut])
    with pytest.raises(LogError, match=r"maillog\.2\.gz: the compressed file is cut off"):
        lines_of(log)


@pytest.mark.parametrize("compress", [c for name, c in COMPRESSORS.items() if name != "plain"])
def test_a_damaged_archive_is_an_error_that_names_it(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    log = tmp_path / "maillog.2.gz"
    whole = bytearray(compress(os.urandom(3000) + TEXT))
    whole[len(whole) // 2 : len(whole) // 2 + 40] = b"\xff" * 40
    log.write_bytes(whole)
    with pytest.raises(LogError, match=r"maillog\.2\.gz: (the compressed file is damaged|is a binary file)") as caught:
        lines_of(log)
    assert "\n" not in str(caught.value)


def test_standard_input_is_a_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "piped"
    log.write_bytes(gzip.compress(TEXT))
    with log.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert lines_of("-") == LINES


def test_a_pipe_is_a_log_of_unknown_size() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"one\ntwo\n")
    os.close(writing)
    path = f"/dev/fd/{reading}"
    try:
        assert total_bytes([path]) is None
        assert lines_of(path) == [b"one", b"two"]
    finally:
        os.close(reading)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"one\ntwo", [b"one", b"two"]),
        (b"one\r\ntwo\r\n", [b"one", b"two"]),
        (b"one\r\ntwo\r", [b"one", b"two"]),
        (b"\xffone \x80\ntwo\xe3\x81", [b"\xffone \x80", b"two\xe3\x81"]),
    ],
)
def test_lines_end_with_lf_or_crlf_and_keep_all_other_bytes(tmp_path: Path, text: bytes, lines: list[bytes]) -> None:
    log = tmp_path / "maillog"
    log.write_bytes(text)
    assert lines_of(log) == lines


@pytest.mark.parametrize("size", range(1, 9))
def test_lines_do_not_depend_on_the_ends_of_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", size)
    log = tmp_path / "maillog"
    log.write_bytes(b"one\r\ntwo\n\nthree\r\n")
    assert lines_of(log) == [b"one", b"two", b"", b"three"]


def test_a_line_of_megabytes_is_read_in_pieces(tmp_path: Path) -> None:
    log = tmp_path / "maillog"
    log.write_bytes(b"x" * 3_000_000 + b"\nlast\n")
    lines = lines_of(log)
    assert max(map(len, lines)) <= 2 * files.MAX_LINE_BYTES
    assert lines[-1] == b"last"


@pytest.mark.parametrize(
    "content",
    [b"\x7fELF\x02\x01\x01" + bytes(64), bytes(range(256)) * 20, "Aug  3 12:15:23 ulysses\n".encode("utf-16")],
    ids=["program", "all bytes", "UTF-16"],
)
def test_a_binary_file_is_refused(tmp_path: Path, content: bytes) -> None:
    log = tmp_path / "maillog"
    log.write_bytes(content)
    with pytest.raises(LogError, match="maillog: is a binary file, not a log"):
        lines_of(log)


def test_a_log_with_a_nul_from_a_crash_is_text(tmp_path: Path) -> None:
    log = tmp_path / "maillog"
    log.write_bytes(b"\0" * 20 + TEXT)
    assert len(lines_of(log)) == len(LINES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file or directory"),
        (lambda path: path.mkdir(), "is a folder; name the files in it"),
        (lambda path: path.symlink_to(path), "too many levels of symbolic links"),
    ],
    ids=["missing", "folder", "loop"],
)
def test_an_unreadable_path_is_refused_before_any_log_is_read(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    log = tmp_path / "maillog"
    make(log)
    with pytest.raises(LogError, match=f"^{log}: {message}"):
        total_bytes([str(log)])


def test_the_message_about_an_unreadable_file_has_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "maillog"
    log.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything
    with pytest.raises(LogError, match="maillog: permission denied; logs are often readable only for root"):
        total_bytes([str(log)])


def test_progress_is_counted_in_bytes_of_the_files(tmp_path: Path) -> None:
    plain, packed = tmp_path / "maillog", tmp_path / "maillog.1.gz"
    plain.write_bytes(TEXT)
    packed.write_bytes(gzip.compress(TEXT))
    steps: list[int] = []
    paths = [str(plain), str(packed)]
    for _ in read_blocks(paths, steps.append):
        pass
    assert sum(steps) == total_bytes(paths) == len(TEXT) + packed.stat().st_size
    assert len(steps) > 4


@pytest.mark.parametrize(
    ("named", "ordered"),
    [
        (
            ["mail.log", "mail.log.1", "mail.log.2.gz", "mail.log.10.gz"],
            "mail.log.10.gz mail.log.2.gz mail.log.1 mail.log",
        ),
        (["m-20261121.xz", "m", "m-20261114"], "m-20261114 m-20261121.xz m"),
        (["maillog.0.bz2", "maillog", "maillog.1.bz2"], "maillog.1.bz2 maillog.0.bz2 maillog"),
        (["b.log", "a.log", "b.log.1"], "b.log.1 b.log a.log"),
        (["-", "x.zst"], "- x.zst"),
        (["/var/log.1/mail", "/var/log.2/mail"], "/var/log.1/mail /var/log.2/mail"),
    ],
)
def test_a_rotated_set_is_read_oldest_first(named: list[str], ordered: str) -> None:
    assert in_order(named) == ordered.split()


def test_the_rotated_set_of_a_live_file_is_found(tmp_path: Path) -> None:
    for name in ("decisions.log", "decisions.log.1", "decisions.log.2.gz", "decisions.log.bak", "other.log.1"):
        (tmp_path / name).touch()
    found = [Path(path).name for path in rotated_set(str(tmp_path / "decisions.log"))]
    assert found == ["decisions.log.2.gz", "decisions.log.1", "decisions.log"]


@pytest.mark.parametrize("name", ["decisions.log", "nowhere/decisions.log"])
def test_a_missing_rotated_set_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(LogError, match="no such file"):
        rotated_set(str(tmp_path / name))


def test_a_reader_that_stops_early_closes_the_file(tmp_path: Path) -> None:
    log = tmp_path / "maillog"
    log.write_bytes(TEXT)
    before = open_files()
    blocks = read_blocks([str(log)])
    next(blocks)
    blocks.close()  # type: ignore[attr-defined] # it is a generator
    assert open_files() == before


@pytest.mark.slow
def test_blocks_of_zstandard_have_a_limited_size(tmp_path: Path) -> None:
    # 256 MiB in a few KiB, which must not be decompressed all at once.
    packed = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(packed, closefd=False) as writer:
        for _ in range(256):
            writer.write(b"x" * 1023 + b"\n" * 1025 + b"x" * (1024 * 1024 - 2048))
    log = tmp_path / "bomb.zst"
    log.write_bytes(packed.getvalue())
    longest = max(sum(map(len, block.lines)) for block in read_blocks([str(log)]))
    assert longest < 80 * 1024 * 1024
