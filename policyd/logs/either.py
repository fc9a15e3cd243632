"""Reads logs of both kinds: the decisions of decision logs, and the mails of mail logs.

The first block of a file shows its kind: only a decision log, bare or within a journal, has a decision there. Files of
both kinds may be read together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from policyd.decision_log.reader import parse_anywhere
from policyd.logs.files import LogError, read_blocks
from policyd.logs.maillog import MailLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from policyd.logs.counts import LineCounts
    from policyd.logs.transaction import Observation


class Batch(NamedTuple):
    """Lines of a decision log, as one text with line ends, or mails of a mail log; never both."""

    text: bytes = b""
    mails: Sequence[Observation] = ()


def batches(paths: Iterable[str], advance: Callable[[int], None] | None = None) -> Iterator[Batch]:
    """Everything in these files, in order. Raises `LogError`, also for a file that is not a log of either kind."""
    maillog = MailLog()
    is_decisions = False
    name, known = "", 0
    for block in read_blocks(paths, advance):
        if block.first:
            _refuse_foreign(name, known)
            name, known = block.name, 0
            is_decisions = any(parse_anywhere(line) is not None for line in block.lines)
            if not is_decisions:
                maillog.start_file(block.modified)
        if is_decisions:
            known += len(block.text)
            yield Batch(text=block.text)
        else:
            before = _known(maillog.counts)
            mails = maillog.feed(block.lines)
            known += _known(maillog.counts) - before
            yield Batch(mails=mails)
    _refuse_foreign(name, known)
    yield Batch(mails=maillog.finish())


def _known(counts: LineCounts) -> int:
    """The number of lines in a known form."""
    return counts.used + counts.other - counts.blank


def _refuse_foreign(name: str, known: int) -> None:
    if name and not known:
        raise LogError(f"{name}: neither a decision log of policyd nor a mail log of Postfix or sendmail")
