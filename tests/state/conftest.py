"""The servers of the tests of shared memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.state.servers import PROGRAMS, StateServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(params=PROGRAMS)
async def server(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[StateServer]:
    """A running server, of each program that is installed."""
    started = StateServer(tmp_path, request.param)
    try:
        yield started
        await started.close_memories()
    finally:
        started.stop()
