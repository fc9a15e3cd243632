"""Parses the values of the condition `counter`: `NAME > N` and `NAME >= N`."""

from __future__ import annotations

import re

from policyd.config.problems import quoted

_COMPARISON = re.compile(r"([A-Za-z0-9._-]+?)\s*(>=|>)\s*([0-9]{1,9})")


def parse_comparison(text: str) -> tuple[str, int] | None:
    """Returns a counter's name and the smallest value for which the comparison holds; None for other text."""
    match = _COMPARISON.fullmatch(text.strip())
    return (match[1], int(match[3]) + (match[2] == ">")) if match is not None else None


def why_not_comparison(text: str) -> str:
    """Returns why a value of `counter` is not a comparison, and what to write."""
    for sign in ("<=", "<", "==", "="):
        if sign in text and ">" not in text:
            return f"{quoted(text)}: a counter can only be compared with > and >=, as in mails-of-user > 300"
    return f"{quoted(text)} is not a comparison; write NAME > N or NAME >= N, as in mails-of-user > 300"
