"""Checks of `policyd doctor`: whether the server of the shared memory answers and accepts writes."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from policyd.state.opening import credentials_problem, shared_memory
from policyd.tools.doctor.diagnosis import Finding

if TYPE_CHECKING:
    from policyd.config.settings import Settings


def check_memory(settings: Settings) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """Connects to the server that `state` names, as the daemon does; returns findings, or a line if it works."""
    if settings.state is None:
        return (), ()
    findings = []
    path = settings.state_credentials
    if path is not None and (problem := credentials_problem(path)):
        what, _, write = problem.partition("; ")
        findings.append(
            Finding("policyd.yaml: state_credentials", what, write or "a file that policyd's user may read")
        )
    why, seconds = asyncio.run(_try_server(settings))
    if why:
        write = (
            "correct the server or policyd.yaml as the line above says; until then, each daemon counts alone, "
            "and mail goes on"
        )
        findings.append(Finding(f"policyd.yaml: state: {settings.state}", why, write))
        return tuple(findings), ()
    right = f"policyd.yaml: state: {settings.state} accepts writes, after {seconds * 1000:.1f} ms"
    return tuple(findings), (right,)


async def _try_server(settings: Settings) -> tuple[str, float]:
    """Returns the reason why the server cannot be used (empty if it can), and the seconds that the test took."""
    shared = shared_memory(settings)
    assert shared is not None
    began = monotonic()
    await shared.connect()
    seconds = monotonic() - began
    await shared.close()
    return shared.why, seconds
