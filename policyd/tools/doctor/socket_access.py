"""Checks whether Postfix may connect to a unix socket: the file, its owner and mode, and every folder above it."""

from __future__ import annotations

import contextlib
import grp
import pwd
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import os


class Obstacle(NamedTuple):
    """The reason why a socket cannot be used, and what to do. `is_missing` means that the path does not exist."""

    what: str
    write: str
    is_missing: bool = False


def obstacle(path_of_socket: str, owner: str) -> Obstacle | None:
    """Returns the obstacle for `owner`, the user of smtpd(8); None if there is no obstacle."""
    path = Path(path_of_socket)
    try:
        status = path.stat()
    except FileNotFoundError:
        return Obstacle(
            "it is not there", f"start policyd, with listen: [unix:{path}] or with policyd.socket", is_missing=True
        )
    except OSError as error:
        return Obstacle(f"it cannot be examined: {(error.strerror or '').lower()}", "run policyd doctor as root")
    if not stat.S_ISSOCK(status.st_mode):
        return Obstacle("the path exists and is not a socket", f"remove {path}, and restart policyd")
    try:
        user = pwd.getpwnam(owner)
    except KeyError:
        return Obstacle(f"mail_owner = {owner}, and there is no such user", "mail_owner = postfix, in main.cf")
    return _denial(path, status, user)


def _denial(path: Path, status: os.stat_result, user: pwd.struct_passwd) -> Obstacle | None:
    """The folder that the user may not enter, or the socket without write permission; None if there is neither."""
    owner = user.pw_name
    groups = {user.pw_gid, *(group.gr_gid for group in grp.getgrall() if owner in group.gr_mem)}
    closed = next(
        (folder for folder in reversed(path.parents) if not _may(folder.stat(), user.pw_uid, groups, stat.S_IXOTH)),
        None,
    )
    if closed is not None:
        return Obstacle(f"{owner} may not enter {closed}", f"chmod o+x {closed}, or put the socket elsewhere")
    if _may(status, user.pw_uid, groups, stat.S_IWOTH):
        return None
    group = grp.getgrgid(user.pw_gid).gr_name
    return Obstacle(
        f"{owner} may not connect: owner {_user(status.st_uid)}, group {_group(status.st_gid)}, "
        f"mode {stat.S_IMODE(status.st_mode):04o}",
        f'policyd.yaml: socket_group: {group} and socket_mode: "0660"; with systemd the same in policyd.socket '
        f"(SocketGroup={group}, SocketMode=0660)",
    )


def _may(status: os.stat_result, uid: int, groups: set[int], bit: int) -> bool:
    """Whether a user has a permission; `bit` is its bit for others (path_resolution(7))."""
    if uid == 0:
        return True
    shift = 6 if status.st_uid == uid else 3 if status.st_gid in groups else 0
    return bool(status.st_mode & bit << shift)


def _user(uid: int) -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def _group(gid: int) -> str:
    with contextlib.suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return str(gid)
