"""Listening sockets: `inet:HOST:PORT`, `unix:/path`, and those that systemd passes in.

Promises that a unix socket has its owner, group and mode before a connection is possible; that a socket which another
process serves is never replaced; and that clients wait in the kernel's queue if descriptors run out.

uvloop's own `create_server` is not used, because it silently replaces a live unix socket, silently drops connections
when descriptors run out, and stops listening after any other error of accept(2).
"""

from __future__ import annotations

import errno
import fcntl
import grp
import ipaddress
import logging
import os
import pwd
import resource
import socket
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from policyd.config.settings import InetAddress, UnixAddress

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Mapping

    from policyd.config.settings import Settings

    Accepted = Callable[[socket.socket, str], None]
    Complain = Callable[[str, str], None]

_log = logging.getLogger(__name__)

# Maximum number of connections in the kernel's queue. Several hundred smtpd processes may connect at the same moment;
# the kernel lowers this to net.core.somaxconn (listen(2)).
BACKLOG = 4096

# Maximum number of connections accepted in one turn of the event loop, so that a flood does not delay requests.
ACCEPTS_A_TURN = 64

# Seconds from an accept(2) that failed, for instance for lack of descriptors, to the next.
RETRY_SECONDS = 0.1

# Descriptors that Postfix's connections leave free: for listeners, logs, DNS, metrics, the control socket and files.
SPARE_DESCRIPTORS = 64

# sd_listen_fds(3): the first descriptor passed.
_FIRST_PASSED = 3

# The name of the control socket among those that systemd passes (FileDescriptorName= in policyd-control.socket).
CONTROL_NAME = "control"


class ListenError(Exception):
    """A listener cannot be opened. The message is for the administrator."""


class Listener:
    """One listening socket. `name` is its form in the settings (`inet:127.0.0.1:10040`).

    `path` is the file of a unix socket that the daemon has made; `close` removes it.
    """

    def __init__(self, listening: socket.socket, name: str, path: Path | None = None) -> None:
        listening.settimeout(0)
        if listening.family != socket.AF_UNIX:
            # An answer is a single small packet. Accepted connections inherit the option.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.name = name
        self._socket = listening
        self._path = path
        self._file = path.stat() if path is not None else None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._retry: asyncio.TimerHandle | None = None

    @property
    def is_reachable_from_elsewhere(self) -> bool:
        """Whether other hosts may connect."""
        return self._socket.family != socket.AF_UNIX and not is_loopback(self._socket.getsockname()[0])

    def start(self, loop: asyncio.AbstractEventLoop, accepted: Accepted, complain: Complain) -> None:
        """Accepts connections from now on. Calls `accepted` with each and a description of its peer, and `complain`
        with the kind and the text of a problem.
        """
        self._loop = loop
        self._accepted = accepted
        self._complain = complain
        loop.add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Stops accepting. A socket that systemd passed keeps queueing connections for the next process."""
        if self._retry is not None:
            self._retry.cancel()
        elif self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        if self._path is not None and self._file is not None:
            try:
                if os.path.samestat(self._path.stat(), self._file):  # not the socket of a successor
                    self._path.unlink()
            except FileNotFoundError:
                pass  # another process has removed it
            except OSError as error:
                _log.warning("%s: cannot remove the socket: %s", self.name, error.strerror)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                accepted, address = self._socket.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue  # the client has already closed
            except OSError as error:
                self._pause(error)
                return
            accepted.settimeout(0)
            self._accepted(accepted, _endpoint(address) if address else self.name)

    def _pause(self, error: OSError) -> None:
        """Leaves new clients in the kernel's queue for a moment; retrying at once would take all of the CPU."""
        assert self._loop is not None
        self._complain("accept", f"{self.name}: cannot accept: {error.strerror}; clients wait")
        self._loop.remove_reader(self._socket.fileno())
        self._retry = self._loop.call_later(RETRY_SECONDS, self._resume)

    def _resume(self) -> None:
        assert self._loop is not None
        self._retry = None
        self._loop.add_reader(self._socket.fileno(), self._accept)


class Listeners(NamedTuple):
    """The listeners for Postfix, and the control socket, if systemd has passed one."""

    postfix: list[Listener]
    control: Listener | None


def open_listeners(settings: Settings, environment: Mapping[str, str]) -> Listeners:
    """Returns the sockets that systemd has passed or, if it has passed none for Postfix, opens those of the settings.

    A socket named CONTROL_NAME (FileDescriptorName= in its unit) is the control socket. Raises ListenError, with
    nothing left open.
    """
    listeners: list[Listener] = []
    control = None
    try:
        for descriptor, name in _passed_descriptors(environment):
            listener = _adopt(descriptor)
            listeners.append(listener)
            if name == CONTROL_NAME:
                control = listener
        if control is not None:
            listeners.remove(control)
        if not listeners:
            for address in settings.listen:
                if isinstance(address, UnixAddress):
                    mode, owner, group = settings.socket_mode, settings.socket_owner, settings.socket_group
                    listeners.append(_listen_unix(address, mode=mode, owner=owner, group=group))
                else:
                    listeners.extend(_listen_inet(address))
    except ListenError:
        for listener in listeners:
            listener.close()
        if control is not None:
            control.close()
        raise
    return Listeners(listeners, control)


def open_control(path: str, group: str | None) -> Listener:
    """Opens the control socket at a path: for the daemon's user only, or for a group as well. Raises ListenError."""
    mode = 0o600 if group is None else 0o660
    try:
        return _listen_unix(UnixAddress(path), mode=mode, group=group, setting="control_group")
    except ListenError as error:
        raise ListenError(f"control: {error}") from None


def raise_descriptor_limit() -> int:
    """Raises RLIMIT_NOFILE to its hard limit. Returns the number of connections for which there are descriptors.

    Raises ListenError if there are none.
    """
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if limit <= SPARE_DESCRIPTORS:
        raise ListenError(
            f"at most {limit} descriptors may be open; policyd needs {SPARE_DESCRIPTORS} and one for each connection "
            "(LimitNOFILE=, ulimit -n)"
        )
    return limit - SPARE_DESCRIPTORS


def _passed_descriptors(environment: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """Yields the descriptors that systemd has passed to this process, and their names (sd_listen_fds_with_names(3))."""
    count = environment.get("LISTEN_FDS", "")
    if environment.get("LISTEN_PID") != str(os.getpid()) or not count.isdigit():
        return
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    for number in range(int(count)):
        yield _FIRST_PASSED + number, names[number] if number < len(names) else ""


def _adopt(descriptor: int) -> Listener:
    try:
        listening = socket.socket(fileno=descriptor)
        listening.set_inheritable(False)
        is_listening = listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ListenError(f"descriptor {descriptor} from systemd is not a socket: {error.strerror}") from None
    if listening.type != socket.SOCK_STREAM or not is_listening:
        raise ListenError(f"descriptor {descriptor} from systemd is not a listening stream socket (use ListenStream=)")
    address = listening.getsockname()
    name = f"unix:{address}" if listening.family == socket.AF_UNIX else f"inet:{_endpoint(address)}"
    return Listener(listening, name)


def _listen_inet(address: InetAddress) -> list[Listener]:
    """Returns a listener for each address of the host: `localhost` may have two."""
    listeners: list[Listener] = []
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, place in found:
            listening = socket.socket(family, kind, protocol)
            listeners.append(Listener(listening, str(address)))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind(place)
            listening.listen(BACKLOG)
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise cannot_listen(address, error) from None
    return listeners


def _listen_unix(
    address: UnixAddress, *, mode: int, owner: str | None = None, group: str | None = None, setting: str = ""
) -> Listener:
    """Opens a unix socket with this owner and group; `setting` names the setting of the group, if it is not
    socket_group.
    """
    uid = _number(setting or "socket_owner", "user", owner, lambda name: pwd.getpwnam(name).pw_uid)
    gid = _number(setting or "socket_group", "group", group, lambda name: grp.getgrnam(name).gr_gid)
    path = Path(address.path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _locked(path.parent):
            _remove_stale_socket(address)
            umask = os.umask(0o177)  # only this user, until the owner and mode are right
            try:
                listening.bind(address.path)
            finally:
                os.umask(umask)
            if (uid, gid) != (-1, -1):  # a sandbox may forbid even a chown(2) that changes nothing
                os.chown(path, uid, gid)
            path.chmod(mode)
            listening.listen(BACKLOG)  # from now on clients can connect
            return Listener(listening, str(address), path)
    except OSError as error:
        listening.close()
        raise cannot_listen(address, error) from None
    except ListenError:
        listening.close()
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks a folder. Without the lock, one of two daemons that start at the same time could remove the other's new
    socket as a stale one.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_loopback(host: str) -> bool:
    """Whether an address, as getsockname(2) returns it, can be reached from this host only."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def cannot_listen(address: InetAddress | UnixAddress, error: OSError) -> ListenError:
    """The error to raise if an address cannot be bound."""
    match error.errno:
        case errno.EADDRINUSE:
            advice = "; is policyd running already?"
        case errno.EACCES | errno.EPERM:
            kind = "path" if isinstance(address, UnixAddress) else "port"
            advice = f"; run policyd as another user or use another {kind}"
        case _:
            advice = ""
    return ListenError(f"cannot listen on {address}: {error.strerror or error}{advice}")


def _remove_stale_socket(address: UnixAddress) -> None:
    """Removes the socket of an ended process, if there is one. Raises ListenError if the path is anything else."""
    path = Path(address.path)
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ListenError(
                f"cannot listen on {address}: the path exists and is not a socket; remove it if it is not needed"
            )
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.settimeout(0)
        try:
            trial.connect(address.path)
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            if error.errno != errno.EAGAIN:  # EAGAIN: the queue is full, so a process listens
                raise
    raise ListenError(f"cannot listen on {address}: another process serves it; is policyd running already?")


def _number(setting: str, what: str, name: str | None, look_up: Callable[[str], int]) -> int:
    """Returns the number of a user or group; -1, with which chown(2) changes nothing, if there is no name."""
    if name is None:
        return -1
    if name.isdigit():
        return int(name)
    try:
        return look_up(name)
    except KeyError:
        raise ListenError(f"{setting}: there is no {what} {name!r} on this host") from None


def _endpoint(address: tuple[str, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
