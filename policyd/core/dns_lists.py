"""Answers of DNS lists (RFC 5782), and their combination.

An answer is *listed*, *not listed*, or *unknown* if the list gave no usable answer. `policyd.config.dns_lists` reads
the definitions of lists, `policyd.dns` asks the lists, and `policyd.core.engine` uses their answers.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class ListStatus(Enum):
    """The status of an answer."""

    LISTED = "listed"
    NOT_LISTED = "not listed"
    UNKNOWN = "unknown"


# Reasons of an unknown answer, in addition to those of a failed lookup (`policyd.core.identity.Reason`).
REFUSED_BY_LIST: Final = "refused_by_list"  # an answer that means: this list does not answer you
OUTSIDE_127: Final = "outside_127"  # an answer outside 127.0.0.0/8
OUT_OF_USE: Final = "out_of_use"  # not asked: the list failed its self-test, or a reload removed or changed it


class ListAnswer(NamedTuple):
    """The answer of one list for one request.

    `addresses` holds the addresses in the list's answer, as text; `reason` is why an answer is unknown. If the request
    has nothing to look up in this list, `asked` is False and the status is *not listed*.
    """

    status: ListStatus
    addresses: tuple[str, ...] = ()
    reason: str | None = None
    asked: bool = True


class ListAnswers(dict[str, ListAnswer]):
    """Answers by the list's name. Must not be changed, because its attributes are derived from the answers."""

    __slots__ = ("none_listed", "shown")

    def __init__(self, answers: Mapping[str, ListAnswer]) -> None:
        super().__init__(answers)
        self.none_listed = all(answer.status is ListStatus.NOT_LISTED for answer in answers.values())
        self.shown: tuple[bytes, ...] | None = None  # the answers as the decision log shows them


NOT_LISTED: Final = ListAnswer(ListStatus.NOT_LISTED)
NEVER_ASKED: Final = ListAnswer(ListStatus.NOT_LISTED, asked=False)


def unknown(reason: str, addresses: tuple[str, ...] = ()) -> ListAnswer:
    """Returns an unknown answer with its reason."""
    return ListAnswer(ListStatus.UNKNOWN, addresses, reason)


def combine(answers: Iterable[ListAnswer]) -> ListAnswer:
    """Combines several answers: listed if any is listed, else unknown if any is unknown, else not listed."""
    answers = tuple(answers)
    if len(answers) == 1:
        return answers[0]
    listed = [answer for answer in answers if answer.status is ListStatus.LISTED]
    if listed:
        addresses = sorted({address for answer in listed for address in answer.addresses})
        return ListAnswer(ListStatus.LISTED, tuple(addresses))
    for answer in answers:
        if answer.status is ListStatus.UNKNOWN:
            return answer
    return NOT_LISTED if any(answer.asked for answer in answers) else NEVER_ASKED
