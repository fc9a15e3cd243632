"""What the field tests stand on: one Postfix and one unbound for all of them, a daemon for each."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.field.postfix import Client, Postfix

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder `field`, so that `-m 'not field'` leaves them out."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.field)


def require(*programs: str) -> None:
    """Skip without root or one of the programs; under CI a field test that cannot run is a failure."""
    missing = [program for program in programs if shutil.which(program, path=os.defpath + ":/usr/sbin") is None]
    if os.geteuid() != 0:
        missing.insert(0, "root's rights")
    if not missing:
        return
    reason = f"the field tests need {' and '.join(missing)}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def open_folder() -> Iterator[Path]:
    """A folder that Postfix's own users may enter, with a path short enough for unix sockets in it."""
    with tempfile.TemporaryDirectory(prefix="policyd-field-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture(scope="session")
def postfix(open_folder: Path) -> Iterator[Postfix]:
    """A running Postfix; nobody answers its policy questions yet."""
    require("postfix", "postconf")
    root = open_folder / "postfix"
    root.mkdir()
    with Postfix(root) as running:
        yield running
