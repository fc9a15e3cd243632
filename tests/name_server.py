"""DNS for tests, on loopback: a real unbound, and a scripted server that can misbehave.

    with ScriptedServer({"mail.example": Reply(["mail.example 300 A 192.0.2.1"], delay=4)}) as server:
        with start_unbound(folder, ["mx.example. 300 IN A 192.0.2.2"], {"example": server.port}) as resolver:
            ...  # resolver and server.address are of the form `127.0.0.1:PORT`; both answer queries

`host` and `claim` write records, and `reverse` a PTR name, for either server. Unit tests use `Zone` instead, which
answers from dicts.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import struct
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, cast

from policyd.core.address import parse_address
from policyd.core.identity import Reason
from tests.field.waiting import PATIENCE_SECONDS, until
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from policyd.dns.identify import AddressesAnswer, NamesAnswer

UNBOUND = "/usr/sbin/unbound"

# Names of three characters for PTR records: about as many as a message of 64 KiB can hold.
MANY_NAMES = ["".join(three) for three in itertools.product("abcdefghijklmnop", repeat=3)][:3800]

# RFC 1035 section 4.1.1.
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, YXDOMAIN = range(7)

TYPES = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "TXT": 16, "AAAA": 28}

# Maximum bytes of an answer over UDP: the EDNS size of c-ares and unbound (https://www.dnsflagday.net/2020/). Larger
# answers use TCP.
UDP_BYTES = 1232


def reverse(address: str) -> str:
    """The name where the PTR records of an address are."""
    return ipaddress.ip_address(address).reverse_pointer


def host(name: str, address: str, ttl: int = 300) -> list[str]:
    """The records of a host whose name verifies: forward and reverse."""
    kind = "AAAA" if ipaddress.ip_address(address).version == 6 else "A"
    return [f"{name} {ttl} {kind} {address}", *claim(name, address, ttl)]


def claim(name: str, address: str, ttl: int = 300) -> list[str]:
    """The PTR record that gives an address a name; the name need not resolve back."""
    return [f"{reverse(address)} {ttl} PTR {name}"]


# --- unbound ----------------------------------------------------------------------------------------------------------

_CONFIGURATION = """\
server:
  interface: 127.0.0.1@{port}
  access-control: 127.0.0.0/8 allow
  do-daemonize: no
  do-not-query-localhost: no
  use-syslog: no
  logfile: "{folder}/unbound.log"
  pidfile: ""
  chroot: ""
  username: ""
  directory: "{folder}"
  module-config: "iterator"
  num-threads: 1
  # These are all the names; every other name gets NXDOMAIN, except in the zones of other servers.
  local-zone: "." static
{records}
{zones}
remote-control:
  control-enable: no
"""

# `transparent` overrides the zone "." above, and unbound's built-in zones for documentation addresses.
_ZONE = """\
server:
  local-zone: "{zone}" transparent
stub-zone:
  name: "{zone}"
  stub-addr: 127.0.0.1@{port}
"""


def read_log(log: Path) -> str:
    return log.read_text() if log.exists() else ""


@contextmanager
def start_unbound(
    folder: Path, records: Iterable[str], zones: Mapping[str, int] | None = None, *, port: int = 0
) -> Iterator[str]:
    """Runs unbound on a port (0: any free one); yields `127.0.0.1:PORT`. Its configuration and log are in the folder.

    It knows `records` (`NAME TTL TYPE DATA`). `zones` maps each zone to the port of the server on
    127.0.0.1 that answers for its names. No other name exists. Raises AssertionError with unbound's log if unbound
    ends, TimeoutError if it hangs.
    """
    port = port or free_port()
    (folder / "unbound.conf").write_text(
        _CONFIGURATION.format(
            port=port,
            folder=folder,
            records="\n".join(f"  local-data: '{record}'" for record in records),
            zones="".join(_ZONE.format(zone=zone, port=server) for zone, server in (zones or {}).items()),
        )
    )
    log = folder / "unbound.log"
    log.unlink(missing_ok=True)  # left by an earlier unbound
    process = subprocess.Popen([UNBOUND, "-d", "-c", folder / "unbound.conf"], stdin=subprocess.DEVNULL)
    try:
        until("unbound, or its end", lambda: process.poll() is not None or "start of service" in read_log(log) or None)
        assert process.poll() is None, read_log(log)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_SECONDS)


# --- A scripted server ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """A reply of a `ScriptedServer`: these records (`OWNER TTL TYPE DATA`), whatever name was asked for.

    A name may have `\\010` for a byte and `\\.` for a dot inside a label. A reply that is too long for a datagram, or
    any reply with `truncated`, is sent over UDP without its records and marked as truncated; over TCP it is complete.
    """

    records: Sequence[str] = ()
    rcode: int = NOERROR
    delay: float = 0.0  # seconds
    silent: bool = False
    truncated: bool = False
    wrong_id: bool = False
    other_question: str = ""  # a name: the reply repeats a question for this name instead
    cut: int = 0  # bytes that are missing at the end of the message
    junk: bytes | None = None  # sent instead of the message


@dataclass
class ScriptedServer:
    """A name server on a port of 127.0.0.1, UDP and (by default) TCP, in its own thread.

    `script` has the reply for a name, or for a name and a type (`mail.example AAAA`); it may be changed at any time.
    All other names get `otherwise`. `asked` has the questions it got, in order.
    """

    script: dict[str, Reply]
    otherwise: Reply = field(default_factory=lambda: Reply(rcode=NXDOMAIN))
    tcp: bool = True
    port: int = 0
    asked: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        """The address in the form of `dns.servers` in policyd.yaml."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.port = self.port or free_port()
        started = threading.Event()
        self._faults: list[dict[str, Any]] = []
        self._clients: set[asyncio.StreamWriter] = set()
        self._unanswered: list[tuple[bytes, Callable[[bytes], None], int]] = []
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _, fault: self._faults.append(fault))
        self._thread = threading.Thread(target=self._run, args=(started,))
        self._thread.start()
        if not started.wait(PATIENCE_SECONDS):
            raise TimeoutError("the name server does not come up")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
        self._loop.close()
        assert not self._faults, self._faults

    def _run(self, started: threading.Event) -> None:
        self._loop.run_until_complete(self._serve(started))

    async def _serve(self, started: threading.Event) -> None:
        self._ended = asyncio.Event()
        udp, _ = await self._loop.create_datagram_endpoint(lambda: _Datagrams(self), ("127.0.0.1", self.port))
        tcp = await asyncio.start_server(self._serve_tcp, "127.0.0.1", self.port) if self.tcp else None
        started.set()
        await self._ended.wait()
        udp.close()
        if tcp is not None:
            tcp.close()
        for writer in list(self._clients):
            writer.close()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def send(message: bytes) -> None:
            writer.write(struct.pack("!H", len(message)) + message)

        self._clients.add(writer)
        try:
            while True:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
                self.reply(await reader.readexactly(length), send, longest=65535)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has closed the connection
        finally:
            self._clients.discard(writer)
            writer.close()

    def reply(self, query: bytes, send: Callable[[bytes], None], longest: int) -> None:
        """Sends the scripted reply to a query, after its delay."""
        labels, after = [], 12
        while query[after]:
            labels.append(query[after + 1 : after + 1 + query[after]].decode("latin-1").lower())
            after += 1 + query[after]
        name, number = ".".join(labels), int.from_bytes(query[after + 1 : after + 3])
        kind = next((text for text, value in TYPES.items() if value == number), str(number))
        self.asked.append(f"{name} {kind}")
        reply = self.script.get(f"{name} {kind}", self.script.get(name, self.otherwise))
        if reply.silent:
            self._unanswered.append((query[: after + 5], send, longest))
        else:
            message = encode_reply(query[: after + 5], reply, longest)
            self._loop.call_later(reply.delay, send, message)

    def break_silence(self, reply: Reply) -> None:
        """Sends this reply to every unanswered query, and from now on in place of `otherwise`."""
        self._loop.call_soon_threadsafe(self._break_silence, reply)

    def _break_silence(self, reply: Reply) -> None:
        self.otherwise = reply
        for query, send, longest in self._unanswered:
            send(encode_reply(query, reply, longest))
        self._unanswered.clear()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: ScriptedServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, query: bytes, client: tuple[str, int]) -> None:
        self._server.reply(query, lambda message: self._transport.sendto(message, client), UDP_BYTES)


def encode_reply(query: bytes, reply: Reply, longest: int) -> bytes:
    """Encodes a reply to a query (header and question) as a message (RFC 1035 section 4)."""
    if reply.junk is not None:
        return reply.junk
    identifier = bytes(each ^ 0xFF for each in query[:2]) if reply.wrong_id else query[:2]
    question = encode_name(reply.other_question) + query[-4:] if reply.other_question else query[12:]
    records = b"".join(map(encode_record, reply.records))
    count = len(reply.records)
    is_truncated = 12 + len(question) + len(records) > longest or (reply.truncated and longest < 65535)
    if is_truncated:
        records, count = b"", 0
    # QR, AA, RD and RA; TC.
    flags = 0x8580 | (0x0200 if is_truncated else 0) | reply.rcode
    message = identifier + struct.pack("!HHHHH", flags, 1, count, 0, 0) + question + records
    return message[: len(message) - reply.cut]


def encode_record(text: str) -> bytes:
    """Encodes a record, `OWNER TTL TYPE DATA`. The owner `@` is the question's name, as a compression pointer."""
    owner, ttl, kind, data = text.split(" ", 3)
    match kind:
        case "A" | "AAAA":
            rdata = ipaddress.ip_address(data).packed
        case "TXT":
            rdata = bytes([len(data)]) + data.encode()
        case _:
            rdata = encode_name(data)
    name = b"\xc0\x0c" if owner == "@" else encode_name(owner)
    return name + struct.pack("!HHIH", TYPES[kind], 1, int(ttl), len(rdata)) + rdata


def encode_name(text: str) -> bytes:
    """Encodes a name in presentation form (RFC 1035 section 5.1), without compression."""
    labels, label = [], bytearray()
    rest = text.removesuffix(".")
    while rest:
        if rest[0] == "." and label:
            labels.append(bytes(label))
            label.clear()
            rest = rest[1:]
        elif rest[0] == "\\" and rest[1:4].isdigit():
            label.append(int(rest[1:4]))
            rest = rest[4:]
        else:
            character = rest[1] if rest[0] == "\\" else rest[0]
            label += character.encode()
            rest = rest[2:] if rest[0] == "\\" else rest[1:]
    if label:
        labels.append(bytes(label))
    return b"".join(bytes([len(each)]) + each for each in labels) + b"\0"


# --- A dict instead of DNS --------------------------------------------------------------------------------------------


@dataclass
class Zone:
    """Implements `policyd.dns.identify.IdentityLookups` with a dict of records and a dict of failures.

    The key of both is a name and a type (`1.2.0.192.in-addr.arpa PTR`). `records` has names or addresses; a missing key
    means that there is no record. `failures` has the reason why a lookup fails. `asked` has the questions it got.
    """

    records: Mapping[str, Sequence[str]] = field(default_factory=dict)
    failures: Mapping[str, Reason] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def names(self, name: bytes) -> NamesAnswer:
        """PTR records."""
        found = self._find(name, "PTR")
        return found if isinstance(found, Reason) else tuple(each.encode("latin-1") for each in found)

    async def addresses(self, names: Sequence[bytes], version: int) -> Sequence[AddressesAnswer]:
        """A or AAAA records."""
        answers: list[AddressesAnswer] = []
        for name in names:
            found = self._find(name, "A" if version == 4 else "AAAA")
            if isinstance(found, Reason):
                answers.append(found)
            else:
                addresses = [parse_address(each.encode()) for each in found]
                answers.append(tuple(each for each in addresses if each is not None))
        return answers

    def _find(self, name: bytes, kind: str) -> Sequence[str] | Reason:
        question = f"{name.decode('latin-1')} {kind}"
        self.asked.append(question)
        return self.failures.get(question) or self.records.get(question, ())
