"""Replaces a file as a whole, so that a reader finds either the old or the new content."""

from __future__ import annotations

import os
import secrets
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def replace_file(path: Path, content: bytes, modified: float | None = None) -> None:
    """Replaces the file at `path`, or makes it. If `path` is a link, it stays a link, and its file is replaced.

    The content goes to a temporary file in the same folder, which is synchronised to disk and renamed. Owner, group and
    mode do not change. `modified` is the new modification time in Unix seconds, the current time by default. A pipe or
    a device (`/dev/stdout`) is written to directly. Raises OSError. A regular file is then unchanged, unless only the
    last step failed: synchronising its folder.
    """
    target = path.resolve()
    try:
        old = target.stat()
    except FileNotFoundError:
        old = None
    if old is not None and not stat.S_ISREG(old.st_mode):
        path.write_bytes(content)
        return
    temporary = beside(target, "new")
    # A new file gets the umask's mode; a replacement must never be readable by more users than the old file.
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666 if old is None else 0o600
    )
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(content)
            file.flush()
            if old is not None:
                made = os.fstat(descriptor)
                if (made.st_uid, made.st_gid) != (old.st_uid, old.st_gid):
                    os.fchown(descriptor, old.st_uid, old.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
            if modified is not None:
                os.utime(descriptor, (modified, modified))
            os.fsync(descriptor)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _synchronise_folder(target.parent)


def beside(path: Path, ending: str) -> Path:
    """Returns a new path for a temporary file in the folder of `path`, so that it can be renamed to `path`."""
    return path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.{ending}")


def _synchronise_folder(folder: Path) -> None:
    """Makes the rename survive a power failure; the file's content is already on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
