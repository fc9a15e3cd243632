"""`make bench`: measures the rows of a table, prints the table, and writes it to files.

A row that needs something that this machine lacks is left out. A missed bar is reported, but is not a failure. The exit
status is 1 only if measuring a row fails.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import counters, dns_lists, find, logs, mail, native, owners, peers, plot, reloading, report, rows
from tests.bench.bench import QUICK, Bench, LeftOut, Row, Scale

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[2] / "docs"

ROWS: dict[str, Callable[[Bench], Row]] = {
    "decision": rows.decision,
    "entries": rows.entries,
    "rules": rows.rules,
    "expressions": rows.expressions,
    "latency": rows.latency,
    "mail": mail.mail,
    "load": rows.load_time,
    "memory": rows.memory,
    "reload": rows.reload,
    "expiry": rows.expiry,
    "reload_rule": reloading.reload_rule,
    "reload_list": reloading.reload_list,
    "reload_list_load": reloading.reload_list_load,
    "reload_memory": reloading.reload_memory,
    "dense_lists": reloading.dense_lists,
    "request_former": reloading.request_former,
    "first_load": reloading.first_load,
    "check": reloading.check,
    "idle": rows.idle,
    "dns": rows.dns,
    "lists_unneeded": dns_lists.lists_unneeded,
    "lists_cached": dns_lists.lists_cached,
    "lists_asked": dns_lists.lists_asked,
    "owners": owners.owners,
    "counters": counters.counters,
    "counters_shared": counters.counters_shared,
    "replay": rows.replay,
    "replay_month": logs.replay_month,
    "replay_refusals": logs.replay_refusals,
    "find": find.find,
    "status": find.status,
    "postfwd": peers.postfwd,
    "growth": peers.growth,
}

_QUICK_REMARK = (
    "**A quick run**: smaller lists, single short runs. It only shows that the benchmark works; do "
    "not quote its figures."
)

# The results of a run are between these lines of docs/performance.md.
_BEGIN, _END = "<!-- results: make bench BENCH_PUBLISH=1 -->\n", "<!-- end of results -->\n"


def main() -> int:
    """Measures the rows that the command line names, or all of them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("rows", nargs="*", help=f"rows to measure, of {', '.join(ROWS)}; all of them if none is named")
    parser.add_argument("--quick", action="store_true", help="small and short, for work on the benchmark itself")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for results.md, results.json and growth.svg")
    parser.add_argument("--publish", action="store_true", help="put the results into docs/performance.md as well")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.rows if name not in ROWS]
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if arguments.publish and (arguments.quick or arguments.rows):
        parser.error("only a full run of all rows is published")
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {arguments.out}: {error.strerror}")
    machine = report.machine()
    measured, failed = _measure(arguments.rows or list(ROWS), QUICK if arguments.quick else Scale())
    table = report.as_markdown(machine, measured, _QUICK_REMARK if arguments.quick else "")
    print(table)
    (arguments.out / "results.md").write_text(table)
    (arguments.out / "results.json").write_text(json.dumps(report.as_json(machine, measured), indent=1) + "\n")
    for row in measured:
        if row.series:
            (arguments.out / "growth.svg").write_text(plot.draw(row.series))
    print(f"Written to {arguments.out}.", file=sys.stderr)
    if arguments.publish and not failed:
        _publish(arguments.out, table)
    return int(failed)


def _measure(names: Sequence[str], scale: Scale) -> tuple[list[Row], bool]:
    """Measures the rows; also returns whether measuring one of them failed."""
    measured, failed = [], False
    with tempfile.TemporaryDirectory(prefix="policyd-bench-") as path:
        folder = Path(path)
        bench = Bench(scale, folder, native.build(folder))
        for name in names:
            began = time.monotonic()
            print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
            try:
                measured.append(ROWS[name](bench))
                print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
            except LeftOut as reason:
                measured.append(Row(name, "", left_out=str(reason)))
                print(f"left out: {reason}", file=sys.stderr)
            except Exception as error:  # noqa: BLE001 - the failure of a row does not prevent the other rows
                first_line = next(iter(str(error).splitlines()), type(error).__name__)
                measured.append(Row(name, "", left_out=f"failed: {first_line}"))
                failed = True
                print("failed", file=sys.stderr)
                traceback.print_exc()
    return measured, failed


def _publish(results: Path, table: str) -> None:
    """Puts the table into docs/performance.md, and the plot into docs/performance.svg."""
    page = DOCS / "performance.md"
    head, begin, rest = page.read_text().partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    assert begin, f"{page} has no line {_BEGIN!r}"
    assert end, f"{page} has no line {_END!r}"
    page.write_text(f"{head}{begin}{table}{end}{tail}")
    shutil.copy(results / "growth.svg", DOCS / "performance.svg")


if __name__ == "__main__":
    sys.exit(main())
