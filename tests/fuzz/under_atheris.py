"""Runs one target under atheris with options of libFuzzer: `python -m tests.fuzz.under_atheris TARGET OPTION...`.

Ends with a traceback and status 77 at a finding, whose input is written where `-artifact_prefix` says. An input that
takes more than SECONDS of CPU time is also a finding.
"""

from __future__ import annotations

import gc
import hashlib
import random
import sys
import tempfile
import time
from pathlib import Path

import atheris

from tests.fuzz import inputs

with atheris.instrument_imports(include=["policyd"], enable_loader_override=False):
    from tests.fuzz.targets import TARGETS

# Maximum CPU seconds of an input. The limit is one second for 64 KiB, but counting every branch makes the code two to
# three times as slow.
SECONDS = 3.0

# One mutation in this many stretches the input to the maximum length.
STRETCHED = 500


def main() -> None:
    """Runs until libFuzzer ends it."""
    name, *options = sys.argv[1:]
    check = TARGETS[name].check
    folder = Path(tempfile.mkdtemp(prefix="policyd-fuzz-"))
    prefix = next((option.partition("=")[2] for option in options if option.startswith("-artifact_prefix=")), "")

    def try_input(content: bytes) -> None:
        try:
            check_in_time(content)
        except Exception:  # libFuzzer writes most of these inputs, but not all; it would use the same name
            Path(f"{prefix}crash-{hashlib.sha1(content).hexdigest()}").write_bytes(content)
            raise

    def check_in_time(content: bytes) -> None:
        began = time.process_time()
        check(content, folder)
        seconds = time.process_time() - began
        if seconds > SECONDS:
            raise TimeoutError(f"{len(content)} bytes took {seconds:.1f} s")

    def mutate(content: bytes, longest: int, seed: int) -> bytes:
        if seed % STRETCHED == 0:
            return inputs.stretch(content, random.Random(seed), longest)
        mutated: bytes = atheris.Mutate(content, longest)
        return mutated

    # To merge corpora, libFuzzer starts itself again, by the program name that it got.
    again = folder / "again"
    again.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.fuzz.under_atheris {name} "$@"\n')
    again.chmod(0o700)
    gc.freeze()  # garbage collections skip the objects that exist now
    atheris.Setup([str(again), *options], try_input, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
