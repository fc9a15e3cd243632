"""How hypothesis runs here, and which tests belong together.

Hypothesis never goes by the clock, and in CI takes the same examples each time: new examples on a developer's machine
find what has not been thought of, but the result of CI must depend on the commit alone.
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
    """Marks what needs Postfix and root `field`, and what `make unit` leaves out `slow`.

    One process runs all that is `field`, since these tests share one Postfix.
    """
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        folders = set(item.path.parents)
        if HERE / "field" in folders or "postfix" in fixtures:
            item.add_marker(pytest.mark.field)
            item.add_marker(pytest.mark.xdist_group("postfix"))
        if folders & SLOW_FOLDERS or fixtures & SLOW_FIXTURES:
            item.add_marker(pytest.mark.slow)
