"""Imports and exports Postfix's indexed access(5) tables (hash:, btree:, lmdb: ...).

The option `attribute` names the lookup that a table is for. Without it, keys with an `@` are senders (no lookup of a
client uses such keys) and all others are clients.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from policyd.exchange.access.keys import AccessTable
from policyd.exchange.access.specificity import exemptions_as_exceptions
from policyd.exchange.access.writer import keys_of
from policyd.exchange.model import Imported, Line, UnsupportedError, static_text
from policyd.exchange.postfix.table import logical_lines, parse_verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from policyd.exchange.model import ConversionReport, ExportOptions, Row

# Since Postfix 3.2, postmap(1) accepts a key in double quotes, which may contain blanks.
_LINE = re.compile(r'(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<key>[^\s"]\S*))(?:\s+(?P<result>.*))?')


def read(
    lines: Iterable[Line],
    report: ConversionReport,
    *,
    attribute: str | None = None,
    dotted: bool = False,
    delimiter: str = "",
) -> Imported:
    """The table's rows, most specific first; those for senders come before those for clients.

    `dotted` and `delimiter` are as in `AccessTable`, and so is `attribute`, unless it is None.
    """
    clients = AccessTable(attribute or "client", dotted=dotted, delimiter=delimiter)
    senders = AccessTable("sender", dotted=dotted, delimiter=delimiter)

    def take(line: Line) -> bool:
        match = _LINE.fullmatch(line.text)
        if match is None:
            raise UnsupportedError("a key that begins with a quote but does not end with a quote")
        key = (match["key"] or re.sub(r"\\(.)", r"\1", match["quoted"] or "")).lower()
        if not match["result"]:
            raise UnsupportedError("there is no action; postmap skips the line")
        verdict = parse_verdict(match["result"], line, report)
        table = senders if attribute is None and ("@" in key or key == "<>") else clients
        table.add(key, verdict, line, report)
        return True

    report.take_each(logical_lines(lines), take)
    of_clients, of_senders = clients.rows(), senders.rows()
    if attribute is None and of_clients:
        report.note(
            of_clients[0].line, "keys without @ were read as clients; use --attribute if they are something else"
        )
    if not of_clients or not of_senders:
        return Imported(rows=of_clients or of_senders)
    # Two tables in one file: a client that one table lets through must still pass the other.
    of_senders, unused = exemptions_as_exceptions(of_senders, report)
    for row in unused:
        report.lose(row.line, "no less specific key blocks a sender, so there is nothing to exempt from")
        report.taken -= 1
    return Imported(rows=[*of_senders, *of_clients])


# --- Export -----------------------------------------------------------------------------------------------------------


def write(rows: Sequence[Row], report: ConversionReport, options: ExportOptions) -> str:
    """An access(5) table for postmap(1), for the lookup of `options.attribute`."""
    lines = [f"# {options.heading}"]
    for written in keys_of(rows, options.attribute, report, dotted=options.dotted):
        text = "" if written.row is None else static_text(written.row, report)
        lines.append(f"{written.key}\t{written.verdict.verb} {text}".rstrip())
    if any(term.condition.startswith("hostname") for row in rows for term in row.match):
        note = "these are verified names only; for claimed names use check_reverse_client_hostname_access"
        report.note(Line(rows[0].line.path, 0, ""), note)
    return "\n".join(lines) + "\n"
