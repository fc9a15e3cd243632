"""The results as a table in Markdown, and as JSON for comparing runs."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.peers import find_postfix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.bench import Reading, Row

# Load average above which a machine is busy with other work.
_BUSY = 0.7
_BUSY_REMARK = (
    "**The machine had other work** when this run began. This changes times, especially latencies, and to a lesser "
    "degree ratios to the floor of the same run; use the figures of a quiet machine instead."
)

_VERDICTS = {"goal": "beyond the bar: goal met", "bar": "met", "missed": "**missed**"}


def machine() -> dict[str, str]:
    """The environment of the figures: hardware, system, versions."""
    cpu_info = Path("/proc/cpuinfo").read_text()
    memory_info = Path("/proc/meminfo").read_text()
    model = re.search(r"^model name\s*: (.+)$", cpu_info, re.MULTILINE)
    total = re.search(r"^MemTotal: +([0-9]+) kB$", memory_info, re.MULTILINE)
    found = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": model[1] if model else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(total[1]) / 1e6:.0f} GB" if total else "unknown",
        "kernel": platform.release().partition("-")[0],
        "load before": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
        "policyd": importlib.metadata.version("policyd"),
        "uvloop": importlib.metadata.version("uvloop"),
    }
    if (postconf := find_postfix("postconf")) is not None:
        ended = subprocess.run((postconf, "-d", "-h", "mail_version"), check=True, capture_output=True, text=True)
        found["Postfix"] = ended.stdout.strip()
    return found


def as_json(machine: dict[str, str], rows: Sequence[Row]) -> dict[str, Any]:
    """All figures and the machine, in types that JSON has."""
    return {
        "machine": machine,
        "rows": {
            row.name: {
                "what": row.what,
                **({"left_out": row.left_out} if row.left_out else {}),
                "readings": [_reading_as_json(reading) for reading in row.readings],
                **({"series": row.series} if row.series else {}),
            }
            for row in rows
        },
    }


def _reading_as_json(reading: Reading) -> dict[str, Any]:
    limits = {"bar": reading.bar, "goal": reading.goal, "verdict": reading.verdict or None}
    return {
        "label": reading.label,
        "value": round(reading.value, 4),
        "unit": reading.unit,
        **{key: value for key, value in limits.items() if value is not None},
    }


def as_markdown(machine: dict[str, str], rows: Sequence[Row], remark: str = "") -> str:
    """The table, with the machine and remarks above it."""
    lines = [", ".join(f"{key} {value}" for key, value in machine.items()) + ".", ""]
    busy = float(machine["load before"]) > _BUSY
    for text in (remark, _BUSY_REMARK if busy else ""):
        lines += [text, ""] if text else []
    lines += ["| row | what | measured | bar | goal | |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        limited = [reading for reading in row.readings if reading.bar is not None or reading.goal is not None]
        cells = (
            f"`{row.name}`",
            row.what,
            f"left out: {row.left_out}" if row.left_out else "; ".join(map(_shown, row.readings)),
            "; ".join(_limit(reading, reading.bar) for reading in limited if reading.bar is not None),
            "; ".join(_limit(reading, reading.goal) for reading in limited if reading.goal is not None),
            _VERDICTS.get(verdict(row), ""),
        )
        lines.append(f"| {' | '.join(cells)} |")
    for row in rows:
        lines += _series_table(row)
    return "\n".join(lines) + "\n"


def _series_table(row: Row) -> list[str]:
    """The points of a row's plot, in microseconds."""
    if not row.series:
        return []
    names = list(row.series)
    sizes = sorted({size for points in row.series.values() for size in points})
    lines = ["", f"{row.what}, in µs:", "", f"| entries | {' | '.join(names)} |", "| ---: " * (len(names) + 1) + "|"]
    for size in sizes:
        costs = (row.series[name].get(size) for name in names)
        lines.append(f"| {size:,} | {' | '.join('' if cost is None else _number(cost) for cost in costs)} |")
    return lines


def verdict(row: Row) -> str:
    """The worst verdict on a row's readings that have a bar."""
    found = {reading.verdict for reading in row.readings if reading.bar is not None}
    return next((worst for worst in ("missed", "bar", "goal") if worst in found), "")


def _shown(reading: Reading) -> str:
    return f"{reading.label} {_number(reading.value)}{_unit(reading)}"


def _limit(reading: Reading, limit: float) -> str:
    return f"{'≥' if reading.more_is_better else '≤'} {_number(limit)}{_unit(reading)}"


def _unit(reading: Reading) -> str:
    return {"": "", "us": " µs"}.get(reading.unit, f" {reading.unit}")


def _number(value: float) -> str:
    """Two decimals below 10, one below 100, otherwise none; none for a whole number either."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
