"""The rows of two interactive commands: `policyd status`, and `policyd find`, compared with awk, sort and uniq."""

from __future__ import annotations

import random
import shlex
import statistics
import sys
import time
from typing import TYPE_CHECKING

from tests.bench import corpus, servers
from tests.bench.bench import Reading, Row
from tests.bench.processes import run_and_account
from tests.field.policyd import Policyd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.bench import Bench

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # the digits of decision ids


def _decisions(lines: int) -> Iterator[str]:
    """Lines of a decision log. Half of them are about recurring clients, the others about new clients."""
    chance = random.Random(lines)
    for number in range(lines):
        client = chance.randrange(4000) if number % 2 else chance.randrange(1 << 30)
        address = corpus.numbered_address(client)
        name = f"h{address.replace('.', '-')}.isp{client % 300}.example"
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(corpus.LOG_START + number // 2))
        decision = "".join(chance.choices(_CROCKFORD, k=8))
        rule, action, reply = "no-reverse-dns", "DEFER", f' reply="4.7.25 {address} has no name ({decision})"'
        if number % 3:
            rule, action, reply = "known", "DUNNO", ""
        yield (
            f"{stamp}.{number % 1000:03}+00:00 {action} id={decision} rule={rule} client={name}[{address}]"
            f" rdns=verified state=RCPT from=<s{client % 9999}@spam.example> to=<b{number % 500}@example.net>"
            f" helo=<{name}> instance={number:x}.6a70.0 ruleset=48058007 ms=0.2{reply}\n"
        )


def find(bench: Bench) -> Row:
    """`policyd find --by client` over a decision log, compared with awk, sort and uniq."""
    lines = bench.scale.log_lines
    log = bench.folder / "find.log"
    with log.open("w") as file:
        file.writelines(_decisions(lines))
    quoted = shlex.quote(str(log))
    commands = {
        "policyd": f"{shlex.quote(sys.executable)} -m policyd find --by client {quoted} > /dev/null",
        "awk": f"awk '{{print $5}}' {quoted} | sort | uniq -c > /dev/null",
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    peaks = dict.fromkeys(commands, 0.0)
    for _ in range(min(bench.scale.rounds, 3)):
        for name, command in commands.items():
            began = time.monotonic()
            account = run_and_account(("/bin/sh", "-c", command), "")
            seconds[name].append(time.monotonic() - began)
            if account.status:
                raise servers.BenchError(f"{name} ended with status {account.status}")
            peaks[name] = max(peaks[name], account.peak_mb)
    ratio = statistics.median(ours / awk for ours, awk in zip(seconds["policyd"], seconds["awk"], strict=True))
    return Row(
        "find",
        f"`policyd find --by client` over {lines:,} decisions, compared with awk, sort and uniq -c",
        (
            Reading("ratio to the pipeline's time", ratio, "x", 2.0, 1.0),
            *(Reading(f"{name}, time", statistics.median(taken), "s") for name, taken in seconds.items()),
            *(Reading(f"{name}, peak memory", peak, "MB") for name, peak in peaks.items()),
        ),
    )


def status(bench: Bench) -> Row:
    """`policyd status` from its start to the prompt, and `policyd --version` for comparison."""
    folder = bench.folder / "status"
    folder.mkdir(exist_ok=True)
    seconds: dict[str, list[float]] = {"status": [], "--version": []}
    rules = bench.shipped
    with Policyd(folder, rules, listen=["unix:s"], control="c.sock") as policyd:
        settings = ("-c", str(policyd.settings))
        for _ in range(10):
            for name, arguments in (("status", ("status", *settings)), ("--version", ("--version",))):
                began = time.monotonic()
                account = run_and_account((sys.executable, "-m", "policyd", *arguments), "")
                seconds[name].append(time.monotonic() - began)
                if account.status or not account.output:
                    raise servers.BenchError(f"policyd {name} ended with status {account.status}")
    taken = {name: statistics.median(each) for name, each in seconds.items()}
    return Row(
        "status",
        "`policyd status` from its start to the prompt",
        (Reading("time", taken["status"], "s", 0.25, 0.15), Reading("policyd --version", taken["--version"], "s")),
    )
