"""Answers of DNS lists as the decision log has them: `zen:127.0.0.2+127.0.0.9`, `dnswl:-`, `psbl:?timeout`.

`-` is *not listed*, `?` *unknown* with its reason. Pure; both directions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyd.core.dns_lists import NOT_LISTED, ListAnswer, ListAnswers, ListStatus, unknown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def format_answers(answers: Mapping[str, ListAnswer]) -> tuple[bytes, ...]:
    """Returns the answers of the lists that were asked, sorted by name."""
    if isinstance(answers, ListAnswers):
        if answers.shown is None:
            answers.shown = _format(answers)
        return answers.shown
    return _format(answers)


def _format(answers: Mapping[str, ListAnswer]) -> tuple[bytes, ...]:
    return tuple(
        [
            b"%b:-" % name.encode() if answer.status is ListStatus.NOT_LISTED else _formatted(name, answer)
            for name, answer in sorted(answers.items())
            if answer.asked
        ]
    )


def _formatted(name: str, answer: ListAnswer) -> bytes:
    if answer.status is ListStatus.LISTED:
        return f"{name}:{'+'.join(answer.addresses)}".encode("ascii")
    return f"{name}:?{answer.reason}".encode("ascii")


def parse_answers(words: Iterable[bytes]) -> dict[str, ListAnswer]:
    """Returns the answers in a line. Words of another form, and the mark of a cut line, are skipped."""
    answers = {}
    for word in words:
        name, colon, said = word.decode("ascii", "replace").partition(":")
        if not name or not colon or not said:
            continue
        if said == "-":
            answers[name] = NOT_LISTED
        elif said.startswith("?"):
            answers[name] = unknown(said[1:])
        else:
            answers[name] = ListAnswer(ListStatus.LISTED, tuple(said.split("+")))
    return answers
