"""Imports postgrey's lists of clients and recipients that are not greylisted (postgrey(8)).

An entry is a name with the names under it, an address, a network, the first octets of an address, or an expression
between slashes, which postgrey matches against the client's name, case-insensitively. A list of recipients has
`local@`, mail addresses, domains and expressions. A list is one of recipients if an entry has an `@`, or if `attribute`
is `recipient`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from policyd.exchange.lists import plain
from policyd.exchange.model import Imported, ListEntry
from policyd.exchange.values import literal, term

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policyd.exchange.model import ConversionReport, Line, Term

_EXPRESSION = re.compile(r"/\S+/")
# postgrey 1.37 reads two octets as a /24 network, although a comment in its source says /16.
_TWO_OCTETS = re.compile(r"\d{1,3}\.\d{1,3}", re.ASCII)


def read(lines: Iterable[Line], report: ConversionReport, *, attribute: str | None = None) -> Imported:
    """The list's entries, which are exemptions. `attribute` is `client` or `recipient`; None means that the entries
    decide.
    """
    found = [bare for line in lines if (bare := _without_comment(line)).text]
    if attribute is None:
        attribute = "recipient" if any(_is_mail_address(line) for line in found) else "client"
    if attribute == "recipient":
        imported = Imported()

        def take(line: Line) -> bool:
            imported.entries.append(ListEntry(_recipient(line.text), line))
            return True

        report.take_each((line for line in found if _is_mail_address(line)), take)
        rest = (line for line in found if not _is_mail_address(line))
        imported.entries += plain.read(rest, report, attribute=attribute).entries
    else:
        imported = plain.read((_as_network(line, report) for line in found), report, attribute=attribute)
    if imported.entries:
        whom = "mail to these recipients passes" if attribute == "recipient" else "these clients pass"
        place = "put the imported rules right above the rules that greylist"
        report.note(imported.entries[0].line, f"{whom} every rule below; {place}")
    return imported


def _without_comment(line: Line) -> Line:
    text = re.sub(r"#.*", "", line.text).strip()
    # All expressions ignore case.
    return line._replace(text=f"{text}i" if _EXPRESSION.fullmatch(text) else text)


def _is_mail_address(line: Line) -> bool:
    return "@" in line.text and re.fullmatch(r"[^\s/]\S*", line.text) is not None


def _recipient(address: str) -> Term:
    """Returns a condition for `user@` or `user@domain`, also with an extension: `user+extension@domain`."""
    user, _, domain = address.partition("@")
    end = f"{literal(domain)}$" if domain else ""
    return term("recipient_regex", rf"^{literal(user)}(\+[^@]+)?@{end}")


def _as_network(line: Line, report: ConversionReport) -> Line:
    if _TWO_OCTETS.fullmatch(line.text) is None:
        return line
    network = f"{line.text}.0.0/24"
    report.note(line, f"postgrey reads two octets as a /24 network: {network}")
    return line._replace(text=network)
