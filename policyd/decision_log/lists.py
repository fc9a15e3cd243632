"""Writes and reads the answers of DNS lists in the decision log: `zen:127.0.0.2+127.0.0.9`, `dnswl:-`, `psbl:?timeout`.

`-` means *not listed*; `?` means *unknown*, and its reason follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyd.core.dns_lists import NOT_LISTED, ListAnswer, ListAnswers, ListStatus, unknown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def format_answers(answers: Mapping[str, ListAnswer]) -> tuple[bytes, ...]:
    """Returns the words of `lists=`: the answers of the lists that were asked, sorted by name."""
    if isinstance(answers, ListAnswers):
        if answers.shown is None:
            answers.shown = _format_all(answers)
        return answers.shown
    return _format_all(answers)


def _format_all(answers: Mapping[str, ListAnswer]) -> tuple[bytes, ...]:
    return tuple(
        [
            b"%b:-" % name.encode() if answer.status is ListStatus.NOT_LISTED else _format_answer(name, answer)
            for name, answer in sorted(answers.items())
            if answer.asked
        ]
    )


def _format_answer(name: str, answer: ListAnswer) -> bytes:
    if answer.status is ListStatus.LISTED:
        return f"{name}:{'+'.join(answer.addresses)}".encode("ascii")
    return f"{name}:?{answer.reason}".encode("ascii")


def parse_answers(words: Iterable[bytes]) -> dict[str, ListAnswer]:
    """Parses the words of `lists=`. Words of another form are skipped, such as the `...` of a cut value."""
    answers = {}
    for word in words:
        name, _, answer = word.decode("ascii", "replace").partition(":")
        if not name or not answer:
            continue
        if answer == "-":
            answers[name] = NOT_LISTED
        elif answer.startswith("?"):
            answers[name] = unknown(answer[1:])
        else:
            answers[name] = ListAnswer(ListStatus.LISTED, tuple(answer.split("+")))
    return answers
