"""Requirements of some tests."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.examples import UNIT


def require(*programs: str, root: bool = False) -> None:
    """Skips the test if a program or root's rights are missing; under CI that is a failure instead.

    `make unit` leaves out all tests that need programs.
    """
    if UNIT:
        pytest.skip(f"make unit does not start {', '.join(programs) or 'anything as root'}")
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = [program for program in programs if shutil.which(program, path=path) is None]
    if root and os.geteuid() != 0:
        missing.append("root's rights")
    if not missing:
        return
    reason = f"missing here: {', '.join(missing)}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
