"""requirements.lock: every dependency, and what the build needs, at one version, by hash, and without an address."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# `name==version \`, then its hashes, each on a line of its own.
PINNED = dict(re.findall(r"^([a-z0-9-]+)==([0-9][0-9a-z.]*) \\$", LOCK, re.MULTILINE))


def normal(name: str) -> str:
    """A name as the index has it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"[0-9]+", version)]


@pytest.mark.parametrize("needed", [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]])
def test_what_is_needed_is_pinned_at_a_version_that_will_do(needed: str) -> None:
    name, _, bounds = needed.partition(">=")
    least, _, below = bounds.partition(",<")
    pinned = numbers(PINNED[normal(name)])
    assert pinned >= numbers(least)
    assert not below or pinned < numbers(below)


def test_everything_has_a_hash_and_nothing_an_address() -> None:
    lines = [line for line in LOCK.splitlines() if line and not line.lstrip().startswith("#")]
    kinds = [line for line in lines if "==" in line]
    hashes = [line for line in lines if re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line)]
    assert len(kinds) + len(hashes) == len(lines)
    assert len(kinds) == len(PINNED)
    for before, line in itertools.pairwise(lines):
        assert not ("==" in before and "==" in line), f"{before} has no hash"
    assert "://" not in LOCK
