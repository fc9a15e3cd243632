"""Settings of hypothesis, and groups of tests.

Hypothesis has no deadline, and uses the same examples in every CI run, because the result of CI must depend on the
commit alone; on a developer's machine it tries new examples.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.examples import UNIT

HERE = Path(__file__).parent

settings.register_profile("policyd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("policyd"), derandomize=True)
settings.register_profile("unit", settings.get_profile("policyd"), max_examples=10)
settings.load_profile("unit" if UNIT else "ci" if os.environ.get("CI") else "policyd")

# Folders and fixtures of tests that start programs and wait for them.
SLOW_FOLDERS = {HERE / name for name in ("bench", "faults", "field", "fuzz")}
SLOW_FIXTURES = {"postfix", "start_policyd"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests that need Postfix and root as `field`, and tests that `make unit` leaves out as `slow`."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        folders = set(item.path.parents)
        if HERE / "field" in folders or "postfix" in fixtures:
            item.add_marker(pytest.mark.field)
        if folders & SLOW_FOLDERS or fixtures & SLOW_FIXTURES:
            item.add_marker(pytest.mark.slow)
