"""A DNS list stops answering while mail flows: requests that do not need the list are not affected, and policyd soon
uses the list again when it answers again.

A rule above that of the list lets the clients of half of the connections through; the clients of the other half need
the list. Each answer is checked.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.bench.processes import memory_mb
from tests.faults.conftest import LONG, add_text
from tests.field.policyd import Policyd
from tests.name_server import NXDOMAIN, Reply, ScriptedServer
from tests.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path

CONNECTIONS = 500 if LONG else 100
SILENT_SECONDS = 60.0 if LONG else 4.0
TIMEOUT = 5.0 if LONG else 1.0  # `dns.timeout`
LOOKUPS = 2000  # `dns.lookups`
PAUSE_SECONDS = 0.25  # seconds between two requests of a connection

# Maximum seconds of an answer that needs no DNS; more in the short form, which runs beside other tests.
QUICK = 0.1 if LONG else 2.0
# Maximum seconds until the list is used again, and seconds that a busy machine may add to a deadline.
NORMAL, MARGIN = (10.0, 0.5) if LONG else (20.0, 3.0)

RULES = """\
dns_lists:
  zen: {zone: zen.test, codes: '127.0.0.[2..11]'}
rules:
  - {name: friends, match: {cidr: 198.18.0.0/16}, action: DUNNO}
  - {name: listed, match: {listed: zen}, action: 'REJECT 5.7.1 listed by {list}'}
"""

TEST = {"2.0.0.127.zen.test": Reply(["@ 60 A 127.0.0.2"])}
LISTED = Reply(["@ 60 A 127.0.0.4"])


class Zone(dict[str, Reply]):
    """The list: until it falls silent, it lists the addresses of 198.19.0.0/17 and no others."""

    silent = False

    def get(self, question: str, otherwise: Reply | None = None) -> Reply | None:  # type: ignore[override] # its only caller passes these
        if self.silent:
            return Reply(silent=True)
        name = question.split(maxsplit=1)[0]
        if name in TEST:
            return TEST[name]
        labels = name.split(".")
        listed = labels[2:4] == ["19", "198"] and int(labels[1]) < 128
        return LISTED if listed else Reply(rcode=NXDOMAIN)


@dataclass
class Storm:
    """Requests over many connections, and their results over time."""

    without_list: list[float] = field(default_factory=list)  # seconds of each answer that needs no list
    with_list: list[tuple[float, float, bytes]] = field(default_factory=list)  # time, seconds, and the answer
    wrong: list[str] = field(default_factory=list)

    async def ask(self, port: int, number: int, ended: asyncio.Event) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        needs_list = number % 2 == 1
        for serial in itertools.count():
            if ended.is_set():
                break
            # Each connection has 40 addresses in each half of its network; the lower half of 198.19.0.0/16 is listed.
            half = 128 if serial % 2 else 0
            place = number * 40 + serial // 2 % 40
            address = f"198.{19 if needs_list else 18}.{half + place // 256 % 128}.{place % 256}"
            began = time.monotonic()
            writer.write(
                f"request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address={address}\n\n".encode("ascii")
            )
            answer = (await reader.readuntil(b"\n\n")).strip()
            seconds = time.monotonic() - began
            if not needs_list:
                self.without_list.append(seconds)
                if answer != b"action=DUNNO":
                    self.wrong.append(f"{address}: {answer!r}")
            else:
                self.with_list.append((began + seconds, seconds, answer))
                may = {b"action=DUNNO"} if half else {b"action=DUNNO", b"action=REJECT 5.7.1 listed by zen"}
                if answer not in may:
                    self.wrong.append(f"{address}: {answer!r}")
            await asyncio.sleep(PAUSE_SECONDS)
        writer.close()


def test_a_silent_list_delays_nothing_else_and_is_used_again_when_it_returns(tmp_path: Path) -> None:
    zone, port = Zone(), free_port()
    with ScriptedServer(zone) as server:
        dns = {"servers": [server.address], "timeout": f"{TIMEOUT:.0f}s", "lookups": LOOKUPS}
        with Policyd(tmp_path, RULES, listen=[f"inet:127.0.0.1:{port}"], dns=dns) as policyd:
            storm = Storm()
            before = memory_mb(policyd.pid)
            silent_at, back_at = asyncio.run(drive(storm, zone, port))
            after = memory_mb(policyd.pid)
            log = policyd.operational_log.read_text()
    assert storm.wrong == []
    slowest = max(storm.without_list)
    assert slowest < QUICK
    waits = [seconds for _, seconds, _ in storm.with_list]
    assert max(waits) < TIMEOUT + MARGIN
    # Listed clients are rejected before the list falls silent, and again after it has come back.
    assert any(answer.startswith(b"action=REJECT") for at, _, answer in storm.with_list if at < silent_at)
    returned = [at for at, _, answer in storm.with_list if at > back_at and answer.startswith(b"action=REJECT")]
    assert returned, log
    normal = returned[0] - back_at
    assert normal < NORMAL
    assert all(seconds < QUICK + MARGIN for at, seconds, _ in storm.with_list if at > returned[0] + MARGIN)
    lines = [line for line in log.splitlines() if "DNS list zen" in line]
    assert 1 <= len([line for line in lines if "out of use" in line]) <= 1 + SILENT_SECONDS // 60
    assert "in use again" in lines[-1]
    assert after < before + 60
    add_text(
        f"a DNS list silent for {SILENT_SECONDS:.0f} s, {CONNECTIONS} connections: {len(storm.without_list):,} answers "
        f"without the list, slowest {slowest * 1000:.0f} ms; {len(storm.with_list):,} with it, longest wait "
        f"{max(waits):.2f} s "
        f"(dns.timeout {TIMEOUT:.0f} s); in use {normal:.1f} s after its return; {after - before:+.0f} MB"
    )
    logged = [json.loads(line) for line in policyd.decision_log.read_text().splitlines()]
    reasons = {answer for each in logged for answer in each.get("lists", {}).values() if answer.startswith("?")}
    assert reasons == {"?timeout", "?out_of_use"}


async def drive(storm: Storm, zone: Zone, port: int) -> tuple[float, float]:
    """Runs the storm; returns the times at which the list fell silent and came back."""
    ended = asyncio.Event()
    asking = [asyncio.create_task(storm.ask(port, number, ended)) for number in range(CONNECTIONS)]
    await asyncio.sleep(3)
    zone.silent = True
    silent_at = time.monotonic()
    await asyncio.sleep(SILENT_SECONDS + (0 if LONG else 4 * TIMEOUT))
    zone.silent = False
    back_at = time.monotonic()
    await asyncio.sleep(NORMAL + 3)
    ended.set()
    await asyncio.gather(*asking)
    return silent_at, back_at
