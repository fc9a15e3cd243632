"""Fuzzing: what the program reads from outside, given what nobody would send.

`targets` says what must hold of whatever comes in; `inputs` has what to begin with and how to change it. They serve
`python -m tests.fuzz`, where atheris looks for new paths through the code (`make fuzz`), and `test_targets.py`, where
pytest tries the corpus, the findings and a few thousand fixed changes of them. docs/fuzzing.md tells more.
"""
