"""Runs the daemon's self-tests of DNS lists once, for `policyd doctor`."""

from __future__ import annotations

import asyncio
from random import SystemRandom
from typing import TYPE_CHECKING

from policyd.dns.list_health import SelfTestOutcome
from policyd.dns.lists import self_test
from policyd.tools.doctor.diagnosis import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policyd.config.dns_list import DnsList
    from policyd.config.settings import Dns
    from policyd.dns.list_health import SelfTestResult


_ADVICE = "correct dns_lists or your resolver as the line above says; until then, the answers of this list are unknown"


def check_dns_lists(lists: Sequence[DnsList], dns: Dns) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """Tests every list that has a self-test; returns findings, and a line for each list that passed."""
    tested = [dns_list for dns_list in lists if dns_list.self_test]
    results = asyncio.run(_test_all(tested, dns)) if tested else []
    findings, passed = [], []
    for dns_list, result in zip(tested, results, strict=True):
        if result.outcome is SelfTestOutcome.PASSED:
            passed.append(f"DNS list {dns_list.name} ({dns_list.shown_zone}) passes its self-test")
        else:
            findings.append(Finding(f"DNS list {dns_list.name} ({dns_list.shown_zone})", result.message, _ADVICE))
    return tuple(findings), tuple(passed)


async def _test_all(lists: Sequence[DnsList], dns: Dns) -> list[SelfTestResult]:
    return await asyncio.gather(*(self_test(dns_list, dns, SystemRandom()) for dns_list in lists))
