"""Decides which of the addresses that Postfix asks belong to policyd.

policyd answers a probe (a request with `policyd_probe`) with its version. Even if another program answers, or none, an
address counts as policyd's if the settings or the systemd socket unit name it, or if it is the socket of the shipped
unit. Other policy services are not checked.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from policyd.config.settings import InetAddress, UnixAddress, parse_listen
from policyd.core.protocol import PROBE, REQUEST_TYPE, parse_probe_reply
from policyd.tools.doctor.policy_client import AskError, PolicyAnswer, ask

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policyd.config.settings import Settings
    from policyd.core.protocol import ProbeReply
    from policyd.tools.doctor.postfix_config import PostfixConfig

# The socket of the shipped unit policyd.socket, relative to Postfix's queue directory.
SHIPPED_SOCKET = "private/policyd"

# Folders of systemd units, by precedence (systemd.unit(5)).
_UNIT_FOLDERS = (
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
)

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost", ""})
_ANYWHERE = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound

# Attributes of the question. The question has no sender and no recipient, so a greylisting service stores nothing. The
# address is for documentation (RFC 5737), and the name cannot exist (RFC 2606).
QUESTION_ATTRIBUTES = {
    "request": REQUEST_TYPE.decode(),
    "protocol_state": "CONNECT",
    "protocol_name": "ESMTP",
    "client_address": "192.0.2.1",
    "client_name": "unknown",
    "reverse_client_name": "unknown",
    "helo_name": "policyd-doctor.invalid",
    "instance": "policyd-doctor",
    PROBE.decode(): "1",
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question to an endpoint, with the answer; without an answer, `error` is the reason.

    `policyd` is the parsed answer of policyd; None without an answer, or if another service answered.
    """

    endpoint: InetAddress | UnixAddress
    answer: PolicyAnswer | None
    policyd: ProbeReply | None = None
    error: str = ""


def ask_version(endpoint: InetAddress | UnixAddress, timeout: float) -> Question:
    """Asks the service at an endpoint for its version. `timeout` is in seconds."""
    try:
        answer = ask(endpoint, QUESTION_ATTRIBUTES, timeout)
    except AskError as error:
        return Question(endpoint, None, error=str(error))
    return Question(endpoint, answer, parse_probe_reply(answer.content))


def systemd_sockets(root: str = "/") -> tuple[InetAddress | UnixAddress, ...]:
    """Returns the addresses of an installed policyd.socket with its drop-ins (systemd.socket(5)); empty without it."""
    folders = [Path(root, folder) for folder in _UNIT_FOLDERS]
    unit = next((path for folder in folders if (path := folder / "policyd.socket").is_file()), None)
    if unit is None:
        return ()
    drop_ins = {path.name: path for folder in reversed(folders) for path in folder.glob("policyd.socket.d/*.conf")}
    written: list[str] = []
    for path in (unit, *(drop_ins[name] for name in sorted(drop_ins))):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for value in re.findall(r"^\s*ListenStream\s*=[ \t]*(.*?)\s*$", text, re.MULTILINE):
            written = [*written, value] if value else []
    return tuple(address for value in written if (address := _systemd_address(value)) is not None)


def _systemd_address(written: str) -> InetAddress | UnixAddress | None:
    if written.startswith("/"):
        return UnixAddress(written)
    if written.isdigit():
        return InetAddress("::", int(written))
    try:
        return parse_listen(f"inet:{written}")
    except ValueError:
        return None


def is_expected(
    address: InetAddress | UnixAddress,
    postfix: PostfixConfig,
    settings: Settings,
    sockets: Iterable[InetAddress | UnixAddress],
) -> bool:
    """Whether an address that Postfix asks is meant for policyd, whichever program answers there."""
    listened = (*settings.listen, *sockets)
    if postfix.is_saved and any(_same_elsewhere(address, listening) for listening in listened):
        return True
    return is_shipped_socket(address, postfix) or any(_same(address, listening) for listening in listened)


def is_shipped_socket(address: InetAddress | UnixAddress, postfix: PostfixConfig) -> bool:
    """Whether an address is the socket of the shipped policyd.socket, not that of a service in master.cf."""
    if not isinstance(address, UnixAddress):
        return False
    path = os.path.normpath(f"{postfix.value('queue_directory')}/{SHIPPED_SOCKET}")
    spawned = any(service.kind == "unix" and service.name == Path(path).name for service in postfix.services)
    return address.path == path and not spawned


def for_main_cf(address: InetAddress | UnixAddress, postfix: PostfixConfig) -> str:
    """Returns an address in the form of check_policy_service.

    A socket below the queue directory gets its relative path, which works with and without a chroot.
    """
    queue = postfix.value("queue_directory")
    if isinstance(address, UnixAddress) and address.path.startswith(f"{queue}/"):
        return f"unix:{address.path.removeprefix(f'{queue}/')}"
    return str(address)


def _same(asked: InetAddress | UnixAddress, listened: InetAddress | UnixAddress) -> bool:
    if isinstance(asked, UnixAddress) and isinstance(listened, UnixAddress):
        return os.path.realpath(asked.path) == os.path.realpath(listened.path)
    if isinstance(asked, UnixAddress) or isinstance(listened, UnixAddress):
        return False
    if asked.port != listened.port:
        return False
    if listened.host in _ANYWHERE or asked.host == listened.host:
        return True
    return "localhost" in {asked.host, listened.host} and {asked.host, listened.host} <= _LOOPBACK


def _same_elsewhere(asked: InetAddress | UnixAddress, listened: InetAddress | UnixAddress) -> bool:
    """Whether the address that a Postfix on another system asks may be this address of policyd.

    Compares only the port, or the file name of the socket, because hosts and folders may have other names there.
    """
    if isinstance(asked, UnixAddress):
        return isinstance(listened, UnixAddress) and Path(asked.path).name == Path(listened.path).name
    return isinstance(listened, InetAddress) and asked.port == listened.port
