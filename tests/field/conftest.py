"""What the field tests stand on: one Postfix and one unbound for all of them, a daemon for each."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.field.postfix import Postfix
from tests.requirements import require

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder `field`, so that `-m 'not field'` leaves them out."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.field)


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
    require("postfix", "postconf", root=True)
    root = open_folder / "postfix"
    root.mkdir()
    with Postfix(root) as running:
        yield running
