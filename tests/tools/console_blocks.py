"""Reads commands with their output from a page of the documentation, and runs the commands again.

The page has them as a shell shows them, in blocks marked `console`: a line `$ command`, then its output. A line `...`
stands for any number of lines, `...` within a line for any text. `python -m tests.tools.console_blocks docs/tools.md`
writes today's output into the page, except into a block with `...`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]

_BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)

# Modification time of the logs. Syslog timestamps have no year, so the year comes from the file.
_MODIFIED = 1795262400  # 2026-11-21T12:00:00Z


def sessions(page: str) -> list[list[tuple[str, str]]]:
    """Returns, for each block, the commands with the output that the page shows."""
    found = []
    for block in _BLOCK.findall(page):
        parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
        assert parts[0] == "", f"a block that does not begin with a command: {parts[0]!r}"
        found.append(list(zip(parts[1::2], parts[2::2], strict=True)))
    return found


def outputs(commands: list[str]) -> list[str]:
    """Runs the commands of one block beside copies of the shipped rules and of the logs; returns their outputs."""
    with TemporaryDirectory() as folder:
        for name in ("config", "tests/data"):
            shutil.copytree(ROOT / name, Path(folder) / name)
        for file in (Path(folder) / "tests" / "data").iterdir():
            os.utime(file, (_MODIFIED, _MODIFIED))
        environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "TZ": "UTC",
            "LC_ALL": "C.UTF-8",
        }
        printed = []
        for command in commands:
            done = subprocess.run(
                ["/bin/sh", "-c", command],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=60,
                check=False,
            )
            printed.append("".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines()))
        return printed


def as_pattern(shown: str) -> re.Pattern[str]:
    """Makes an expression of the output in a page: `...` matches any text, a hash any hash, a version any version."""
    lines = [
        "(?:.*\n)*?" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + "\n"
        for line in shown.splitlines()
    ]
    pattern = re.sub(r"\b[0-9a-f]{8}\b", "[0-9a-f]{8}", "".join(lines))
    return re.compile(re.sub(r"policyd/[\w\\.]+", r"policyd/[\\w.]+", pattern))


def _rewritten(page: str) -> str:
    blocks = iter(sessions(page))

    def block(match: re.Match[str]) -> str:
        session = next(blocks)
        if any("..." in line for _, shown in session for line in shown.splitlines()):
            return match[0]
        printed = outputs([command for command, _ in session])
        return "".join(f"$ {command}\n{text}" for (command, _), text in zip(session, printed, strict=True))

    return _BLOCK.sub(block, page)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(_rewritten(Path(name).read_text()))
