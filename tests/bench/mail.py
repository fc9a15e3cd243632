"""The row with a real Postfix: the messages a second that it accepts with each policy service, and without any."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import corpus, servers
from tests.bench.bench import LeftOut, Reading, Row
from tests.bench.peers import POSTFWD_RULES, find_postfix
from tests.field.postfix import Postfix
from tests.field.waiting import until
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.bench.bench import Bench

# Number of simultaneous SMTP sessions, each with one message; 20 keep two cores busy.
SESSIONS = 20

# An smtpd(8) that asks one policy service or none; added to the configuration of the field tests' Postfix.
_SERVICE = """\
127.0.0.1:{port} inet n - y - - smtpd
  -o smtpd_delay_reject=yes
  -o {{ smtpd_recipient_restrictions = {restrictions} }}
"""

# Mail is accepted at full speed, even if deliveries are slower.
_NO_FLOW_CONTROL = "in_flow_delay = 0\n"


def mail(bench: Bench) -> Row:
    """Messages a second that Postfix accepts with no policy service, the floor, policyd, postfwd."""
    if find_postfix("postfix") is None:
        raise LeftOut("there is no Postfix on this machine")
    if os.geteuid() != 0:
        raise LeftOut("Postfix's master(8) needs root")
    scale = bench.scale
    clients = corpus.write_clients(bench.folder / "clients", corpus.strangers(20_000))
    rates: dict[str, list[float]] = {"none": [], "floor": [], "policyd": [], "postfwd": []}
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="policyd-bench-")))
        folder.chmod(0o755)  # Postfix's own users must enter it
        _, daemon = running.enter_context(servers.policyd(bench.rules_with_lists(scale.entries), pinned=False))
        services = {
            "none": None,
            "floor": running.enter_context(servers.floor(bench.tools["floor"], pinned=False)),
            "policyd": daemon,
        }
        if Path(servers.POSTFWD).exists():
            services["postfwd"] = running.enter_context(servers.postfwd(POSTFWD_RULES, pinned=False))
        else:
            del rates["postfwd"]
        postfix = Postfix(folder)
        ports = _add_services(folder, {name: server and server.address for name, server in services.items()})
        with postfix:
            for name in services:  # not measured: the first messages wait until Postfix's processes have started
                _messages_a_second(bench, folder, ports[name], clients, max(scale.messages // 10, 2 * SESSIONS))
            for pair in range(scale.mail_pairs):
                # The floor and policyd change their order from pair to pair. The others, for reference, run in every
                # third pair.
                names = ["floor", "policyd"] if pair % 2 else ["policyd", "floor"]
                names += [name for name in ("none", "postfwd") if name in services and pair % 3 == 0]
                for name in names:
                    rates[name].append(_messages_a_second(bench, folder, ports[name], clients, scale.messages))
    ratios = [a / b for a, b in zip(rates["policyd"], rates["floor"], strict=True)]
    faster = sum(ratio > 1 for ratio in ratios)
    return Row(
        "mail",
        "messages that a real Postfix accepts over 20 sessions if it asks policyd, compared with the floor",
        (
            Reading("ratio to the floor", statistics.median(ratios), "x", 0.95, more_is_better=True),
            # With equal speed, policyd is faster in 2 to 8 of 10 pairs by chance (sign test, 5 %).
            Reading(f"pairs of {len(ratios)} in which policyd was faster", faster, "", goal=2, more_is_better=True),
            *(Reading(name, statistics.median(values), "/s") for name, values in rates.items()),
        ),
    )


def _add_services(root: Path, addresses: Mapping[str, str | None]) -> dict[str, int]:
    """Adds an smtpd(8) for each policy service to a Postfix that has not started; returns their ports."""
    ports = {name: free_port() for name in addresses}
    with (root / "etc" / "main.cf").open("a") as main_cf, (root / "etc" / "master.cf").open("a") as master_cf:
        main_cf.write(_NO_FLOW_CONTROL)
        for name, address in addresses.items():
            restriction = f", check_policy_service {address}" if address else ""
            master_cf.write(_SERVICE.format(port=ports[name], restrictions=f"reject_unauth_destination{restriction}"))
    return ports


def _messages_a_second(bench: Bench, root: Path, port: int, clients: Path, count: int) -> float:
    """Sends messages; returns how many a second Postfix accepted. Waits until Postfix has delivered all of them."""
    command = (
        bench.tools["mail"],
        "-a",
        f"inet:127.0.0.1:{port}",
        "-f",
        clients,
        "-n",
        str(count),
        "-s",
        str(SESSIONS),
    )
    report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    if report["failed"] or report["taken"] != count:
        raise servers.BenchError(f"Postfix did not take all messages: {report}")
    queues = [root / "queue" / name for name in ("incoming", "active", "deferred")]
    until("the end of all deliveries", lambda: not any(_has_files(queue) for queue in queues) or None, seconds=60)
    return float(report["per_second"])


def _has_files(folder: Path) -> bool:
    return any(path.is_file() for path in folder.rglob("*"))
