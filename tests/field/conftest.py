"""Fixtures of the field tests: one Postfix and one unbound for all tests, and daemons."""

from __future__ import annotations

import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.field import every_mail
from tests.field.incidents import sakura_attempts
from tests.field.policyd import Policyd
from tests.field.postfix import Postfix
from tests.name_server import REFUSED, Reply, ScriptedServer, claim, host, start_unbound
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

# Reverse DNS of the tests' clients; the fixture `resolver` adds that of the clients in the sakura incident.
RECORDS = [
    *host("mail.sender.example", "192.0.2.25"),
    *host("mail6.sender.example", "2001:db8::25"),
    *claim("tk2-406-44074.vs.sakura.ne.jp", "192.0.2.66"),
    *claim("tk2-406-44074.vs.sakura.ne.jp", "2001:db8::66"),
    *claim("lost.sender.example", "192.0.2.67"),
    *claim("host.dynamic.silent.example", "192.0.2.68"),
    *claim("host.dynamic.mute.example", "192.0.2.69"),
    *claim("host.dynamic.refused.example", "192.0.2.70"),
    *claim("mail.partner.quiet.example", "180.222.51.99"),
]

# Zones whose server does not answer: one zone for each client, because unbound remembers silent servers, and answers
# SERVFAIL sooner the next time.
SILENT_ZONES = ["silent.example", "mute.example", "quiet.example", "113.0.203.in-addr.arpa"]
# Zones whose server answers REFUSED; unbound answers SERVFAIL instead.
REFUSED_ZONES = ["refused.example", "100.51.198.in-addr.arpa"]


@pytest.fixture(scope="session")
def open_folder() -> Iterator[Path]:
    """A folder that Postfix's own users may enter, with a path short enough for unix sockets in it."""
    with tempfile.TemporaryDirectory(prefix="policyd-field-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture(scope="session")
def postfix(open_folder: Path) -> Iterator[Postfix]:
    """A running Postfix. The policy service that it asks is not running yet."""
    require("postfix", "postconf", root=True)
    root = open_folder / "postfix"
    root.mkdir()
    with Postfix(root) as running:
        yield running


@pytest.fixture(scope="session")
def resolver(open_folder: Path) -> Iterator[str]:
    """A running unbound, as `address:port`."""
    require("unbound")
    folder = open_folder / "unbound"
    folder.mkdir()
    sakura = {(str(each.client_name), each.client_address) for each in sakura_attempts()}
    records = RECORDS + [line for name, address in sorted(sakura) for line in host(name, address)]
    with (
        ScriptedServer({}, otherwise=Reply(silent=True)) as silent,
        ScriptedServer({}, otherwise=Reply(rcode=REFUSED)) as refusing,
    ):
        zones = dict.fromkeys(SILENT_ZONES, silent.port) | dict.fromkeys(REFUSED_ZONES, refusing.port)
        with start_unbound(folder, records, zones) as address:
            yield address


class StartPolicyd(Protocol):
    """The signature of `start_policyd`: like that of `Policyd`, but without the folder and with changed settings."""

    def __call__(self, rules: str, **arguments: Any) -> AbstractContextManager[Policyd]: ...


@pytest.fixture(scope="session")
def start_policyd(postfix: Postfix, resolver: str, tmp_path_factory: pytest.TempPathFactory) -> StartPolicyd:
    """Daemons for `with` blocks: they listen on the port and the socket that Postfix asks, and use `resolver`."""

    def start(rules: str, **arguments: Any) -> Policyd:
        usual = {
            "listen": [f"inet:127.0.0.1:{postfix.port['policy']}", f"unix:{postfix.policy_socket}"],
            "socket_mode": "0660",
            "socket_group": "postfix",
            "dns": {"servers": [resolver], "timeout": "3s"},
        }
        return Policyd(tmp_path_factory.mktemp("policyd"), rules, **{**usual, **arguments})

    return start


@pytest.fixture(params=["inet", "unix"])
def service(request: pytest.FixtureRequest) -> str:
    """The smtpd service of a test: Postfix asks policyd over TCP or over a unix socket. Tests run with both."""
    return str(request.param)


@pytest.fixture
def listener(service: str, postfix: Postfix) -> Iterator[socket.socket]:
    """The socket that systemd would hold across restarts of the daemon, made as in policyd.socket."""
    if service == "inet":
        with socket.create_server(("127.0.0.1", postfix.port["policy"]), backlog=4096) as listening:
            yield listening
        return
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(postfix.policy_socket))
        shutil.chown(postfix.policy_socket, "postfix", "postfix")
        postfix.policy_socket.chmod(0o660)
        listening.listen(4096)
        yield listening
    postfix.policy_socket.unlink()


@pytest.fixture(scope="session")
def maillog(postfix: Postfix, start_policyd: StartPolicyd) -> Path:
    """The mail log of the tests' Postfix, with lines of many kinds. Needs exclusive use of the policy port."""
    with start_policyd(every_mail.RULES):
        every_mail.send_every_kind(postfix)
    return postfix.maillog
