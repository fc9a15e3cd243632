"""`python -m tests.fuzz [TARGET...]`: looks for inputs that break a promise, one target after the other, with atheris.

Each target runs in a separate process, with limits on executions, seconds and memory. The inputs that a run collects
stay in the folder of `--work`, and the next run continues from them. `--keep` puts the smallest set of them that
reaches the same code into the corpus, in place of the inputs of earlier long runs. A finding goes into `findings/`,
where pytest tries it from then on, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import ast
import re
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import inputs
from tests.fuzz.targets import TARGETS

# Limits of one input, which libFuzzer enforces: seconds, for inputs that never end (under_atheris.py cannot time them),
# and memory. Every target needs about 70 MB of memory for its modules.
HANG_SECONDS = 60
MEMORY_MB = 512

# Maximum bytes kept for one target, because every checkout contains the corpus.
KEPT_BYTES = 8 * 1024

# The folder of the targets' files. On a disk, writing takes longer than reading and checking.
IN_MEMORY = Path("/dev/shm")

# Maximum number of words of the corpus in libFuzzer's dictionary.
WORDS = 400


@dataclass(frozen=True)
class Outcome:
    """The result of a run. `seconds` is CPU time, `branches` the number of branches reached in policyd's code."""

    name: str
    executions: int
    seconds: float
    branches: int
    memory_mb: int
    kept: int
    finding: str = ""

    @property
    def row(self) -> str:
        """A row of the table in docs/fuzzing.md."""
        return f"| {self.name} | {self.executions:,} | {self.seconds:.0f} | {self.branches:,} | {self.memory_mb} |"


def main() -> int:
    """Runs the targets; returns the exit status."""
    options = _options()
    names = options.targets or list(TARGETS)
    shares = sum(TARGETS[name].share for name in names)
    outcomes = []
    for name in names:
        seconds = options.seconds
        if options.total:
            seconds = max(1, options.total * TARGETS[name].share // shares)
        outcome = run(name, options.runs, seconds, options.seed, options.work / name)
        outcomes.append(outcome)
        print(outcome.row, outcome.finding, flush=True)
        if options.keep and not outcome.finding:
            keep(name, options.work / name)
    total = sum(outcome.executions for outcome in outcomes)
    print(f"{total:,} executions, {sum(bool(outcome.finding) for outcome in outcomes)} findings")
    return int(any(outcome.finding for outcome in outcomes))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", choices=[[], *TARGETS], help=", ".join(TARGETS))
    parser.add_argument("--runs", type=int, default=10_000, help="maximum executions of each target")
    parser.add_argument("--seconds", type=int, default=10, help="maximum seconds for each target")
    parser.add_argument("--total", type=int, default=0, help="seconds for all targets together; replaces --seconds")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choices; 0, the default: the time")
    parser.add_argument(
        "--work", type=Path, default=inputs.ROOT / "build" / "fuzz", help="folder for the collected inputs"
    )
    parser.add_argument("--keep", action="store_true", help="put the smallest collected inputs into the corpus")
    return parser.parse_args()


def run(name: str, runs: int, seconds: int, seed: int, work: Path) -> Outcome:
    """Fuzzes one target. Runs of the same code with the same `seed`, if it is not 0, try the same inputs."""
    with tempfile.TemporaryDirectory(
        prefix="policyd-fuzz-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None
    ) as temporary:
        folder = Path(temporary)
        seeds = _write(inputs.short_seeds(name, TARGETS[name].seeds), folder / "seeds")
        work.mkdir(parents=True, exist_ok=True)
        (folder / "words").write_text(_words(name))
        arguments = [
            f"-runs={runs}",
            f"-max_total_time={seconds}",
            f"-seed={seed}",
            f"-max_len={TARGETS[name].longest}",
            f"-timeout={HANG_SECONDS}",
            f"-rss_limit_mb={MEMORY_MB}",
            f"-dict={folder / 'words'}",
            f"-artifact_prefix={folder}/found-",
            "-print_final_stats=1",
            "-reload=0",
        ]
        began = _cpu_seconds()
        ended = _atheris(name, folder, [*arguments, str(work), str(seeds)], seconds + HANG_SECONDS + 60, seed)
        took = _cpu_seconds() - began
        finding = ""
        for found in sorted(folder.glob("found-*")):
            kept = inputs.FOLDER / "findings" / name / found.name.removeprefix("found-")
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(found.read_bytes())
            finding = str(kept.relative_to(inputs.ROOT))
        if ended.returncode and not finding:
            finding = "ended without an input"
        if finding:
            print(ended.stdout[-4000:], ended.stderr[-1000:], file=sys.stderr)  # with the traceback
    progress = re.findall(r"^#(\d+)\t.*?cov: (\d+)", ended.stderr, re.MULTILINE)
    executions, branches = map(int, progress[-1]) if progress else (0, 0)
    memory = re.search(r"stat::peak_rss_mb:\s+(\d+)", ended.stderr)
    return Outcome(
        name,
        executions,
        took,
        branches,
        int(memory[1]) if memory else 0,
        sum(1 for _ in work.iterdir()),
        finding,
    )


def _cpu_seconds() -> float:
    """Returns the CPU seconds of child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def keep(name: str, work: Path) -> None:
    """Replaces the corpus of long runs by inputs that reach additional code, shortest first, up to a maximum size."""
    with tempfile.TemporaryDirectory(prefix="policyd-fuzz-") as temporary:
        folder = Path(temporary)
        written = _write(inputs.by_hand(name), folder / "written")
        merged = folder / "merged"
        merged.mkdir()
        for input_file in written.iterdir():  # so that code which these inputs reach needs no new input
            (merged / input_file.name).write_bytes(input_file.read_bytes())
        ended = _atheris(name, folder, ["-merge=1", str(merged), str(work)], 600)
        assert ended.returncode == 0, ended.stderr[-1000:]
        new = sorted(
            (path.read_bytes() for path in merged.iterdir() if not (written / path.name).exists()),
            key=lambda content: (len(content), content),
        )
    lines: list[str] = []
    for content in new:
        lines.append(repr(content) + "\n")
        assert ast.literal_eval(lines[-1]) == content
        if sum(map(len, lines)) > KEPT_BYTES:
            lines.pop()
            break
    (inputs.FOLDER / "corpus" / "found").mkdir(exist_ok=True)
    (inputs.FOLDER / "corpus" / "found" / f"{name}.txt").write_text("".join(lines), "ascii")


def _atheris(
    name: str, folder: Path, arguments: list[str], seconds: int, seed: int = 0
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz.under_atheris", name, *arguments],
        check=False,
        cwd=inputs.ROOT,
        env={
            "TMPDIR": str(folder),
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": ":".join(filter(None, sys.path)),
            "PYTHONHASHSEED": str(seed or "random"),  # because the order of sets influences which branches are reached
        },
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
    )


def _write(contents: list[bytes], folder: Path) -> Path:
    folder.mkdir()
    for number, content in enumerate(contents):
        (folder / f"{number:04}").write_bytes(content)
    return folder


def _words(name: str) -> str:
    """Returns a dictionary for libFuzzer: the words of the corpus, and strings that often break parsers."""
    words = dict.fromkeys(word for seed in inputs.corpus(name) for word in inputs.tokens(seed) if 2 <= len(word) <= 30)
    chosen = [*filter(None, inputs.ODD), *list(words)[:WORDS]]
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in chosen if len(word) <= 60)


if __name__ == "__main__":
    sys.exit(main())
