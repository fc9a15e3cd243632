"""The rows of mail logs: `replay` over a month with lines of many forms, and over refusals of clients that never recur.

With BENCH_FORMER=/path/to/policyd in the environment, another build reads the same logs in turn, and each row compares
the two builds.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from typing import TYPE_CHECKING

import yaml

from tests.bench import corpus, servers
from tests.bench.bench import SHIPPED_RULES, Reading, Row
from tests.bench.processes import run_and_account

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.bench.bench import Bench

_SPAN = 30 * 86400  # seconds of the month

# Events on a mail server: their relative frequency and their log lines. A line begins with the program that writes it;
# `_month` adds `postfix/` unless a blank comes first. `q`, `r` and `s` are queue ids, `p` a process id, `a` an address,
# `n` its name, `k` a number.
_EVENTS: tuple[tuple[float, str], ...] = (
    (
        22,
        """smtpd[{p}]: connect from {n}[{a}]
smtpd[{p}]: {q}: client={n}[{a}]
cleanup[900]: {q}: message-id=<{k}@{n}>
qmgr[90]: {q}: from=<u{k}@corp.example>, size=4200, nrcpt=1 (queue active)
smtpd[{p}]: disconnect from {n}[{a}] ehlo=2 starttls=1 mail=1 rcpt=1 data=1 quit=1 commands=7
lmtp[77]: {q}: to=<b{p}@example.net>, relay=dovecot[private/lmtp], delay=0.2, dsn=2.0.0, status=sent (250 2.0.0 Saved)
qmgr[90]: {q}: removed""",
    ),
    (
        14,
        """smtpd[{p}]: warning: hostname {n} does not resolve to address {a}: Name or service not known
smtpd[{p}]: connect from unknown[{a}]
smtpd[{p}]: NOQUEUE: reject: RCPT from unknown[{a}]: 554 5.7.1 <b@example.net>: Relay access denied; \
from=<s{k}@spam.example> to=<b{p}@example.net> proto=ESMTP helo=<{n}>
smtpd[{p}]: disconnect from unknown[{a}] ehlo=1 mail=1 rcpt=0/1 quit=1 commands=3/4""",
    ),
    (
        14,
        """smtpd[{p}]: connect from {n}[{a}]
smtpd[{p}]: NOQUEUE: reject: RCPT from {n}[{a}]: 550 5.1.1 <b@example.net>: Recipient address rejected: User unknown; \
from=<s{k}@spam.example> to=<b{p}@example.net> proto=ESMTP helo=<{n}>
smtpd[{p}]: disconnect from {n}[{a}] ehlo=1 mail=1 rcpt=0/1 quit=1 commands=3/4""",
    ),
    (
        10,
        """postscreen[55]: CONNECT from [{a}]:{p} to [192.0.2.25]:25
dnsblog[56]: addr {a} listed by domain zen.example as 127.0.0.4
postscreen[55]: NOQUEUE: reject: RCPT from [{a}]:{p}: 550 5.7.1 Service unavailable; client [{a}] blocked using \
zen.example; from=<s{k}@spam.example>, to=<b@example.net>, proto=ESMTP, helo=<h>
postscreen[55]: DISCONNECT [{a}]:{p}""",
    ),
    (
        8,
        """smtpd[{p}]: {q}: client={n}[{a}]
qmgr[90]: {q}: from=<u@corp.example>, size=900, nrcpt=1 (queue active)
smtpd[7]: {r}: client=localhost[127.0.0.1]
qmgr[90]: {r}: from=<u@corp.example>, size=1900, nrcpt=1 (queue active)
smtp[4]: {q}: to=<b@example.net>, relay=127.0.0.1[127.0.0.1]:10024, delay=1, dsn=2.0.0, status=sent (250 2.0.0 from \
MTA(smtp:[127.0.0.1]:10025): 250 2.0.0 Ok: queued as {r})
qmgr[90]: {q}: removed
local[5]: {r}: to=<b@example.net>, relay=local, delay=0.1, dsn=2.0.0, status=sent (delivered to mailbox)
qmgr[90]: {r}: removed""",
    ),
    (
        6,
        """ sm-mta[{p}]: {s}: from=<u@corp.example>, size=3682, class=0, nrcpts=1, msgid=<m{k}@b>, proto=ESMTP, \
daemon=MTA, relay={n} [{a}]
 sm-mta[{p}]: {s}: to=<b@example.net>, delay=00:00:01, xdelay=00:00:01, mailer=local, pri=1, relay=local, dsn=2.0.0, \
stat=Sent""",
    ),
    (
        16,
        """ dovecot: imap-login: Login: user=<u{p}>, method=PLAIN, rip=203.0.113.7, lip=192.0.2.25, mpid={p}, TLS
 spamd[{p}]: spamd: result: . -1 - BAYES_00,HTML_MESSAGE scantime=0.3,size=9000,user=u,uid=99
anvil[66]: statistics: max connection rate 1/60s for (smtp:203.0.113.1)""",
    ),
    (
        5,
        """smtpd[{p}]: {q}: client={n}[{a}]
cleanup[9]: {q}: milter-reject: END-OF-MESSAGE from {n}[{a}]: 5.7.1 Spam message rejected; from=<s@spam.example> \
to=<b@example.net> proto=ESMTP helo=<{n}>""",
    ),
)


def _month(lines: int) -> Iterator[str]:
    """Yields a month of log lines of a mail server that runs Postfix, sendmail and a filter. The lines are the same in
    every run with the same number.
    """
    chance = random.Random(lines)
    events = [event.split("\n") for _, event in _EVENTS]
    weights = [weight for weight, _ in _EVENTS]
    written = number = 0
    while written < lines:
        number += 1
        # Half of the clients recur.
        client = chance.randrange(1 << 30) if number % 2 else chance.randrange(4000)
        address = corpus.numbered_address(client)
        stamp = time.strftime("%b %e %H:%M:%S", time.gmtime(corpus.LOG_START + _SPAN * written // lines))
        values = {
            "p": str(chance.randrange(1000, 1300)),
            "k": str(number),
            "a": address,
            "n": f"h{address.replace('.', '-')}.isp{client % 300}.example",
            "q": f"{number:X}A1B2C",
            "r": f"{number:X}D3E4F",
            "s": f"2153vN23{number:08d}",
        }
        for line in chance.choices(events, weights)[0]:
            head = f"{stamp} mx{number % 3}" + ("" if line.startswith(" ") else " postfix/")
            yield head + line.format_map(values) + "\n"
            written += 1


def _refusals(lines: int) -> Iterator[str]:
    """Yields refusals, each of a different client; every second client has a name."""
    for number in range(lines):
        address = corpus.numbered_address(number)
        client = f"h{number}.dyn.isp{number % 300}.example[{address}]" if number % 2 else f"unknown[{address}]"
        stamp = time.strftime("%b %e %H:%M:%S", time.gmtime(corpus.LOG_START + number))
        yield (
            f"{stamp} mx postfix/smtpd[{number % 300 + 100}]: NOQUEUE: reject: RCPT from {client}: 554 5.7.1"
            f" <b@example.net>: Relay access denied; from=<s{number}@spam{number % 9999}.example>"
            f" to=<b{number % 500}@example.net> proto=ESMTP helo=<h{number}.example>\n"
        )


def replay_month(bench: Bench) -> Row:
    """`policyd replay` over a month of a large mail server."""
    return _replay(bench, "replay_month", "a month with lines of every form", _month, bench.scale.log_lines)


def replay_refusals(bench: Bench) -> Row:
    """`policyd replay` without recurring clients, so no cache of clients helps."""
    return _replay(
        bench, "replay_refusals", "refusals, each of another client", _refusals, bench.scale.log_lines // 5, 0.5, 0.33
    )


def _replay(
    bench: Bench,
    name: str,
    what: str,
    generate: Callable[[int], Iterator[str]],
    lines: int,
    bar: float = 1.0,
    goal: float = 1.0,
) -> Row:
    log = _write(bench.folder / f"{name}.log", generate(lines))
    rules = _common_rules(bench.folder / "common.yaml")
    builds: dict[str, tuple[str, ...]] = {"policyd": (sys.executable, "-m", "policyd")}
    if former := os.environ.get("BENCH_FORMER"):
        builds["former"] = (former,)
    costs: dict[str, list[float]] = {build: [] for build in builds}
    peaks = dict.fromkeys(builds, 0.0)
    for _ in range(min(bench.scale.rounds, 3)):
        for build, command in builds.items():
            account = run_and_account((*command, "replay", "--rules", str(rules), "--json", str(log)), "")
            if account.status or json.loads(account.output)["lines"] < lines:
                raise servers.BenchError(f"{build} replay ended with status {account.status}")
            costs[build].append(account.cpu_seconds / lines * 1e6)
            peaks[build] = max(peaks[build], account.peak_mb)
    readings = [Reading("CPU of a line, start included", statistics.median(costs["policyd"]), "us")]
    readings.append(Reading("peak memory", peaks["policyd"], "MB"))
    if "former" in builds:
        ratio = statistics.median(new / old for new, old in zip(costs["policyd"], costs["former"], strict=True))
        readings.insert(0, Reading("ratio to the former build", ratio, "x", bar, goal))
    return Row(name, f"`policyd replay` of {lines:,} lines, {what}, under the shipped rules", tuple(readings))


def _common_rules(path: Path) -> Path:
    """Writes the shipped rules without features that version 0.1 lacks: lists of `block` and `allow`, and counters."""
    rules = yaml.safe_load(SHIPPED_RULES.read_text())
    new = {name for name, entries in rules["lists"].items() if isinstance(entries, dict)}
    new |= {rule["name"] for rule in rules["rules"] if "counter" in rule["match"]}
    rules["lists"] = {name: entries for name, entries in rules["lists"].items() if name not in new}
    rules["rules"] = [rule for rule in rules["rules"] if rule["name"] not in new]
    known = {key: rules[key] for key in ("lists", "rules", "default")}
    path.write_text(yaml.safe_dump(known, sort_keys=False))
    return path


def _write(path: Path, lines: Iterator[str]) -> Path:
    with path.open("w") as file:
        file.writelines(lines)
    return path
