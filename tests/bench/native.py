"""The tools in C: the floor, the load generators and the resolver, compiled for each run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent
TOOLS = ("floor", "load", "mail", "resolver")


def build(folder: Path) -> dict[str, Path]:
    """Compiles every tool into a folder; returns the programs by name.

    Raises FileNotFoundError without a C compiler (`CC`, or cc), CalledProcessError if a tool cannot be compiled.
    """
    compiler = os.environ.get("CC", "cc")
    for tool in TOOLS:
        command = (compiler, "-std=gnu17", "-O2", "-Wall", "-Wextra", "-o", folder / tool, SOURCES / f"{tool}.c")
        subprocess.run(command, check=True)
    return {tool: folder / tool for tool in TOOLS}
