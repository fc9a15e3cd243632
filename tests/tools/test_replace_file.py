from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from policyd.tools.replace_file import replace_file
from tests.requirements import require

if TYPE_CHECKING:
    from pathlib import Path


def test_a_new_file_has_the_mode_that_the_umask_allows(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        replace_file(tmp_path / "list", b"a\n")
    finally:
        os.umask(old)
    assert (tmp_path / "list").read_bytes() == b"a\n"
    assert stat.S_IMODE((tmp_path / "list").stat().st_mode) == 0o640


def test_a_replacement_has_the_mode_and_owner_of_the_old_file(tmp_path: Path) -> None:
    require("sh", root=True)
    path = tmp_path / "list"
    path.write_text("old\n")
    path.chmod(0o604)
    os.chown(path, 1234, 2345)
    with path.open() as reader:
        replace_file(path, b"new\n")
        assert reader.read() == "old\n"
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 2345, 0o604)
    assert (path.read_text(), [*tmp_path.iterdir()]) == ("new\n", [path])


def test_a_link_stays_a_link_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    real = tmp_path / "folder" / "list"
    real.write_text("old\n")
    link = tmp_path / "link"
    link.symlink_to("folder/list")
    replace_file(link, b"new\n")
    assert (link.is_symlink(), real.read_text(), [*real.parent.iterdir()]) == (True, "new\n", [real])


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
    reader.start()
    replace_file(path, b"through\n")
    reader.join(10)
    assert (found, stat.S_ISFIFO(path.stat().st_mode)) == ([b"through\n"], True)


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "list"
    path.write_text("old\n")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("policyd.tools.replace_file.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new\n")
    assert (path.read_text(), [*tmp_path.iterdir()]) == ("old\n", [path])
