from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

from policyd.cli import main, options

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., "Ended"]


class Ended(NamedTuple):
    """The result of a command."""

    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides settings that are installed on this host."""
    monkeypatch.setattr(options, "DEFAULT_CONFIG", str(tmp_path / "not-installed"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `policyd` with these arguments, in this process, through the entry point that a shell would start."""

    def run_policyd(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["policyd", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            assert end.code is None or isinstance(end.code, int)
            status = end.code or 0
        out, err = capfd.readouterr()
        return Ended(status, out, err)

    return run_policyd
