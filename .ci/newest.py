#!/usr/bin/env python3
"""Tests policyd with the newest packages that pyproject.toml allows, without Postfix, and names those that break it.

Installs the locked versions into a separate virtual environment, then upgrades all of them. If a test fails, moves each
package in turn back to its locked version, and repeats the failed tests.

    newest.py [PYTEST_ARGUMENT...]

Exit status: 0 if all tests pass or nothing is newer than the lock, 1 if newer versions break some tests, 2 if the tests
fail with the locked versions too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Environment:
    """A virtual environment with policyd, installed as editable, and first the versions of requirements-test.lock."""

    def __init__(self, folder: Path) -> None:
        self._bin = folder / "bin"
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        self.install("--require-hashes", "-r", "requirements-test.lock")
        self.install("--no-deps", "--no-build-isolation", "--editable", ".")

    def install(self, *arguments: str) -> None:
        """Calls pip. Raises CalledProcessError if pip fails; pip has printed the reason."""
        self._run(["pip", "install", "--quiet", "--disable-pip-version-check", *arguments], check=True)

    def versions(self) -> dict[str, str]:
        """Installed versions by name, without policyd itself."""
        listed = subprocess.run(
            [self._bin / "pip", "list", "--disable-pip-version-check", "--format=json", "--exclude=policyd"],
            cwd=ROOT, check=True, stdout=subprocess.PIPE,
        )  # fmt: skip
        return {package["name"]: package["version"] for package in json.loads(listed.stdout)}

    def passes(self, *arguments: str) -> bool:
        """Whether pytest passes."""
        return self._run(["pytest", *arguments], check=False).returncode == 0

    def _run(self, command: list[str], *, check: bool) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([self._bin / command[0], *command[1:]], cwd=ROOT, check=check)


def pins(versions: dict[str, str]) -> list[str]:
    return [f"{name}=={version}" for name, version in versions.items()]


def culprits(environment: Environment, locked: dict[str, str], newest: dict[str, str], failed: list[str]) -> list[str]:
    """Names each package that makes the failed tests pass if it alone is moved back to its locked version.

    If a package needs another at an exact version, pip moves that back with it (pydantic-core with pydantic).
    """
    found = []
    for name, version in changed(locked, newest).items():
        environment.install(f"{name}=={version}")
        if environment.passes(*failed):
            found.append(name)
        environment.install("--no-deps", *pins(newest))
    return found


def changed(locked: dict[str, str], newest: dict[str, str]) -> dict[str, str]:
    """The locked versions of the packages that are newer now, by name."""
    return {name: version for name, version in locked.items() if newest.get(name, version) != version}


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="policyd-newest-") as folder:
        environment = Environment(Path(folder) / "venv")
        locked = environment.versions()
        environment.install("--upgrade", "--upgrade-strategy=eager", "--editable", ".[test]")
        newest = environment.versions()
        newer = changed(locked, newest)
        if not newer:
            print("The locked versions are the newest; `make test` has tested them.", flush=True)
            return 0
        for name, version in newer.items():
            print(f"{name}: {version} is locked, {newest[name]} is the newest", flush=True)
        tests = ["-m", "not field", "-o", f"cache_dir={folder}/cache", *arguments]
        if environment.passes(*tests):
            return 0
        failed = [*tests, "--last-failed", "--no-summary", "--tb=no"]
        broken_by = culprits(environment, locked, newest, failed)
        for name in broken_by:
            print(f"{name} {newest[name]} breaks the tests above; {locked[name]} does not.", file=sys.stderr)
        if broken_by:
            return 1
        environment.install("--no-deps", *pins(locked))
        if environment.passes(*failed):
            print("The newest versions break the tests above, but no single package does.", file=sys.stderr)
            return 1
        print("The tests above fail with the locked versions too.", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
