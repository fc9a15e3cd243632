"""Runs every target over its corpus, its earlier findings, and a few thousand mutations, which are always the same."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.fuzz import costly, inputs
from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    from pathlib import Path

# Number of mutations for each target: some thousands in total. Long runs are for `make fuzz`.
MUTATIONS = 150

# Number of inputs of 64 KiB for each target, and the CPU seconds that each input may take (elapsed time would fail on
# a busy machine). The slowest inputs take a third of that.
LONG_INPUTS = 4
SECONDS = 1.0

# Bytes of an input that a failure shows.
SHOWN = 500

NAMES = list(TARGETS)


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_and_earlier_findings_break_nothing(name: str, tmp_path: Path) -> None:
    seeds = inputs.seeds(name, TARGETS[name].seeds)
    assert seeds
    for content in seeds:
        began = time.process_time()
        _check(name, content, tmp_path)
        assert time.process_time() - began < SECONDS, content[:SHOWN]


@pytest.mark.parametrize(
    ("name", "content"), [pytest.param(name, made, id=f"{name}: {what}") for name, what, made in costly.INPUTS]
)
def test_an_input_that_was_once_slow_takes_at_most_a_second(name: str, content: str, tmp_path: Path) -> None:
    began = time.process_time()
    _check(name, content.encode(), tmp_path)
    assert time.process_time() - began < SECONDS


@pytest.mark.parametrize("name", NAMES)
def test_mutated_inputs_break_nothing(name: str, tmp_path: Path) -> None:
    for content in inputs.mutations(inputs.short_seeds(name, TARGETS[name].seeds), MUTATIONS, name):
        _check(name, content, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_an_input_of_64_kib_takes_at_most_a_second(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    seeds = inputs.short_seeds(name, TARGETS[name].seeds)
    for _ in range(LONG_INPUTS):
        content = inputs.stretch(rng.choice(seeds), rng)
        began = time.process_time()
        _check(name, content, tmp_path)
        assert time.process_time() - began < SECONDS, content[:SHOWN]


def _check(name: str, content: bytes, folder: Path) -> None:
    try:
        TARGETS[name].check(content, folder)
    except Exception as error:
        kept = folder / "finding"
        kept.write_bytes(content)
        error.add_note(f"the input of {len(content)} bytes is in {kept}: {content[:SHOWN]!r}")
        raise


def test_every_target_states_its_promise() -> None:
    for target in TARGETS.values():
        assert target.invariant.endswith(".")


def test_the_corpus_is_small_and_belongs_to_the_targets() -> None:
    corpus = inputs.FOLDER / "corpus"
    assert sum(path.stat().st_size for path in corpus.rglob("*") if path.is_file()) < 1_000_000
    assert {path.name for path in corpus.iterdir()} - {"found"} == set(TARGETS)
    assert {path.stem for path in (corpus / "found").glob("*")} <= set(TARGETS)
    assert {path.name for path in (inputs.FOLDER / "findings").iterdir()} <= set(TARGETS)


def test_mutations_are_the_same_in_every_run() -> None:
    seeds = inputs.corpus("rules")
    once, again = (list(inputs.mutations(seeds, 50, "seed")) for _ in range(2))
    assert once == again
    assert len({*once}) > 40


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed (make fuzz does)")
def test_atheris_runs_from_the_corpus_without_a_finding(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--runs", "2000", "--work", str(tmp_path), "protocol"],
        cwd=inputs.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.stdout.splitlines()[-1] == "2,000 executions, 0 findings", ended.stdout + ended.stderr
