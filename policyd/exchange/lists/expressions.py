"""Reads the expressions of plain lists and rspamd's maps, which do not name the attribute that they are for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyd.exchange.model import SkippedError
from policyd.exchange.regex_subjects import MAIL_ADDRESSES, NAMES, ONLY_SENDERS, Questions
from policyd.exchange.values import term

if TYPE_CHECKING:
    from policyd.exchange.model import ConversionReport, Line, Term

_CONDITIONS = {
    "client": "hostname_regex",
    "helo_name": "helo_name_regex",
    "sender": "sender_regex",
    "recipient": "recipient_regex",
}
_ASSUMED = "read as host names of clients; use --attribute if the list is for something else"


class Expressions:
    """Reads the expressions of one list for `attribute`.

    If it is None, an expression is for clients, or for senders if it can match mail addresses only.
    """

    def __init__(self, attribute: str | None, report: ConversionReport) -> None:
        self._attribute = attribute
        self._report = report
        self._questions = Questions()
        self._is_assumed = False

    def read(self, pattern: str, line: Line) -> Term:
        """The term for an expression in RE2's syntax. Raises `SkippedError` if no value of the attribute can match."""
        attribute = self._attribute or "client"
        self._questions.begin_line()
        if attribute == "helo_name":
            return term(_CONDITIONS[attribute], pattern)
        is_mail = attribute in {"sender", "recipient"}
        if not self._questions.can_match(MAIL_ADDRESSES if is_mail else NAMES, [pattern], []):
            if self._attribute is not None or not self._questions.can_match(MAIL_ADDRESSES, [pattern], []):
                what = f"mail address of a {attribute}" if is_mail else "host name"
                raise SkippedError(f"no {what} can match it; a list for headers or texts of mails cannot be imported")
            self._report.note(line, ONLY_SENDERS)
            return term("sender_regex", pattern)
        self.assume(line)
        return term(_CONDITIONS[attribute], pattern)

    def assume(self, line: Line) -> None:
        """Notes, once, that the list was read as a list for clients, if no attribute was given."""
        if self._attribute is None and not self._is_assumed:
            self._is_assumed = True
            self._report.note(line, _ASSUMED)
