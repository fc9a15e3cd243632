"""The lock files pin every package to one version, with hashes and without URLs, and agree with each other."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
RUN = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
NEEDED = {
    "requirements.lock": RUN,
    "requirements-test.lock": [*RUN, *EXTRAS["test"]],
    "requirements-fuzz.lock": EXTRAS["fuzz"],
}

# `name==version ; marker \`, where the marker is optional; then its hashes, one on each line.
PIN = re.compile(r"^([a-z0-9-]+)==([0-9][0-9a-z.]*)( ; .+)? \\$", re.MULTILINE)
REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:>=([0-9.]+))?(?:,<([0-9.]+))?(?:; .+)?")


def normalized(name: str) -> str:
    """The normalized name of a package (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"[0-9]+", version)]


def pinned(lock: str) -> dict[str, set[str]]:
    """Versions by name. A package has several only if markers choose among them by the version of Python."""
    versions: dict[str, set[str]] = {}
    for name, version, marker in PIN.findall((ROOT / lock).read_text()):
        assert name not in versions or "python" in marker
        versions.setdefault(name, set()).add(version)
    return versions


@pytest.mark.parametrize(("lock", "needed"), [(lock, needed) for lock, all_ in NEEDED.items() for needed in all_])
def test_each_requirement_is_pinned_at_a_version_that_satisfies_it(lock: str, needed: str) -> None:
    match = REQUIREMENT.fullmatch(needed)
    assert match, f"{needed}: this test does not understand it"
    name, minimum, below = match.groups()
    versions = pinned(lock)[normalized(name)]
    assert any(
        numbers(version) >= numbers(minimum or "0") and (below is None or numbers(version) < numbers(below))
        for version in versions
    )


@pytest.mark.parametrize("lock", NEEDED)
def test_every_package_has_a_hash_and_no_url(lock: str) -> None:
    text = (ROOT / lock).read_text()
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    pins = [line for line in lines if "==" in line]
    hashes = [line for line in lines if re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line)]
    assert len(pins) + len(hashes) == len(lines)
    assert len(pins) == len(PIN.findall(text))
    for before, line in itertools.pairwise(lines):
        assert not ("==" in before and "==" in line), f"{before} has no hash"
    assert "://" not in text


def test_the_tests_run_with_the_versions_of_a_release() -> None:
    release, tested = pinned("requirements.lock"), pinned("requirements-test.lock")
    assert release
    assert {name: tested.get(name) for name in release} == release
