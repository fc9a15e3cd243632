"""An upgrade of the files does not affect a running daemon: it imports nothing after its start."""

from __future__ import annotations

import gzip
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.request import urlopen

from tests.daemon.client import Client, request, unnamed
from tests.field.waiting import until
from tests.mmdb import SYSTEMS, maxmind_asn, write_mmdb
from tests.name_server import NXDOMAIN, Reply, ScriptedServer, claim, reverse
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from tests.daemon.conftest import StartPolicyd
    from tests.field.policyd import Policyd

# An audit hook (https://docs.python.org/3/library/audit_events.html), which records every new import in the daemon and
# in its forked processes.
HOOK = """
import os, sys
log = os.open(os.environ["IMPORTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
sys.addaudithook(lambda event, args: event == "import" and os.write(log, f"{args[0]}\\n".encode()))
"""

RULES = """
lists: {drop: {file: drop.txt}}
rules:
  - {name: drop, match: {cidr: $drop}, action: 'DEFER 4.7.1 {client_address} {rule} {id}'}
  - {name: names, match: {hostname_suffix: [x.example, "b\u00fccher.example"]}, action: REJECT, expires: 2099-01-01}
  - {name: senders, match: {sender_regex: '^bad'}, except: {recipient: postmaster@d.example}, action: REJECT}
  - {name: unnamed, match: {reverse_dns: [missing, error]}, action: DEFER}
tests:
  - {given: {client_address: 192.0.2.1}, expect: DEFER}
"""
# Features that a later reload may use for the first time.
MORE = """
databases: {asn: asn.mmdb, country: country.csv.gz}
counters:
  mails: {count: requests, per: sasl_username, within: 1h}
  doors: {count: distinct client_address, per: [client_network/20, recipient], within: 2h}
greylist: {wait: 5m}
dns_lists: {zen: {zone: zen.example, codes: '127.0.0.[2..11]', self_test: no}}
rules:
  - {name: system, match: {asn: AS64496, country: JP, hostname_generic: yes}, action: 'REJECT {asn} {country}'}
  - {name: systems, match: {asn_name_regex: 'Nowhere'}, action: REJECT}
  - {name: busy, match: {counter: [mails > 300, doors > 10]}, action: DEFER}
  - {name: listed, match: {listed: zen}, action: 'REJECT 5.7.1 {list} ({id})'}
  - {name: suspects, match: {reverse_dns: [missing, error, mismatch]}, action: GREYLIST}
"""
BROKEN = RULES.replace("cidr", "cidre").replace("hostname_suffix", "hostname_sufix") + "rulez: [\n"


def exercise(policyd: Policyd, port: int, control: Path, metrics: int) -> None:
    """Exercises the daemon: requests, DNS, metrics, control commands, reloads, rotation of its log, and its end."""
    with Client(port) as client:
        client.ask(request(client_address="192.0.2.1"))
        client.ask(request(sender="bad@x.example", helo_name="b\u00fccher.example"))
        for host in (31, 32, 33):
            client.ask(unnamed(f"198.51.100.{host}"))
        client.ask(unnamed("2001:db8::1"))
        client.ask(unnamed("no address"))
    with Client(port) as client:
        client.send(b"junk\n\n")
        client.is_closed()
    urlopen(f"http://127.0.0.1:{metrics}/metrics").read()
    commands = (
        ("status",), ("status", "--alive"), ("reload", "--data"), ("reload",),
        ("forget", "198.51.100.31"), ("forget", "x.example"),
    )  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "IMPORTS"}}
    for rules in (RULES.replace("4.7.1", "4.7.2"), BROKEN, MORE, RULES):
        policyd.rules.write_text(rules)
        for command in commands:
            subprocess.run(
                [sys.executable, "-m", "policyd", *command, "-c", policyd.settings],
                env=environment,
                capture_output=True,
                timeout=60,
                check=False,
            )
        with Client(port) as client:
            client.ask(unnamed("192.0.2.77"))
            client.ask(request(client_address="198.51.100.31", sasl_username="alice"))
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(control))
        peer.sendall(b'{"command": "rules"}\njunk\n')
        peer.makefile("rb").read()
    settings = policyd.settings.read_text()
    for text in (settings.replace("format: json", "format: text"), settings + "limits: {idle_timeout: 1}\n", settings):
        policyd.settings.write_text(text)
        policyd.reload()
    policyd.decision_log.rename(policyd.decision_log.with_suffix(".1"))
    with Client(port) as client:
        client.ask(request())
        until("a new log", lambda: policyd.decision_log.exists() or None)
        os.kill(policyd.pid, signal.SIGTERM)


def test_nothing_is_imported_after_the_start(
    start_policyd: StartPolicyd,
    port: int,
    tmp_path: Path,
    run_before_python: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_before_python(HOOK)
    imports = tmp_path / "imports"
    monkeypatch.setenv("IMPORTS", str(imports))
    (tmp_path / "drop.txt").write_text("192.0.2.0/24\n2001:db8:1::/48\n")
    write_mmdb(tmp_path / "asn.mmdb", {network: maxmind_asn(*system) for network, system in SYSTEMS.items()})
    (tmp_path / "country.csv.gz").write_bytes(gzip.compress(b"192.0.2.0,192.0.2.255,JP\n"))
    control, metrics = tmp_path / "c.sock", free_port()
    name = "mail.x.example"
    zone = {reverse("198.51.100.31"): Reply([*claim(name, "198.51.100.31")]), f"{name} A": Reply(["x. 60 A 192.0.2.9"])}
    with ScriptedServer(zone, otherwise=Reply(rcode=NXDOMAIN)) as dns:
        settings = {"control": str(control), "metrics": f"127.0.0.1:{metrics}", "dns": {"servers": [dns.address]}}
        with start_policyd(RULES, **settings) as policyd:
            at_start = imports.read_text().splitlines()
            exercise(policyd, port, control, metrics)
        later = imports.read_text().splitlines()[len(at_start) :]
    assert "policyd.daemon.main" in at_start
    assert " ".join(later) == ""
