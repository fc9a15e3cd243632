"""Fuzzing of every reader of untrusted input.

`targets` has the promises; `inputs` has the seeds and mutations. `python -m tests.fuzz` (`make fuzz`) runs them with
atheris, and `test_targets.py` tries the corpus, the findings and a few thousand fixed mutations with pytest. See
docs/fuzzing.md.
"""
