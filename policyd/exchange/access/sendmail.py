"""Imports and exports sendmail's access_db (cf/README, "ANTI-SPAM CONFIGURATION CONTROL").

One file serves several lookups: of the client (`Connect:`), the sender (`From:`) and the recipient (`To:`); a key
without a tag serves clients and senders. Each lookup is a separate table, which a mail must pass. So only exemptions of
clients become DUNNO, because the rows for clients come last; the other exemptions become exceptions.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from policyd.core.ruleset import DEFAULT_TEXT, Verb
from policyd.exchange.access.keys import AccessTable
from policyd.exchange.access.specificity import exemptions_as_exceptions
from policyd.exchange.access.writer import keys_of
from policyd.exchange.model import DUNNO, REJECT, Imported, UnsupportedError, Verdict, blocking, static_text
from policyd.exchange.postfix.table import NO_DISCARD

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from policyd.exchange.access.writer import Written
    from policyd.exchange.model import ConversionReport, ExportOptions, Line, Row

_LINE = re.compile(r"(?:(?P<tag>[A-Za-z_0-9]+):(?!:))?(?P<key>\S*)\s+(?P<result>.+)")
_ERROR = re.compile(r'(?:ERROR:)?\s*(?:(?P<dsn>[245]\.\d{1,3}\.\d{1,3})\s*:?\s*)?"?(?P<text>[^"]*)"?', re.IGNORECASE)
_LEADING_DOT = "sendmail looks up `example.com`, not `.example.com`; it was read as the names under the domain"
_LOOKUPS = {"connect": "client", "from": "sender", "to": "recipient"}


def read(lines: Iterable[Line], report: ConversionReport) -> Imported:
    """The rows for recipients, then for senders, then for clients; those of each lookup are most specific first."""
    tables = {
        attribute: AccessTable(attribute, leading_dot=_LEADING_DOT) for attribute in ("recipient", "sender", "client")
    }
    untagged: list[tuple[Line, str, Verdict]] = []

    def take(line: Line) -> bool:
        text = line.text.strip()
        if not text or text.startswith("#"):
            return False
        tag, key, verdict = _read_line(line._replace(text=text), report)
        if not tag:
            untagged.append((line, key, verdict))
            return False
        if tag not in _LOOKUPS:
            raise UnsupportedError(f"the tag '{tag}:' is not supported: it does not decide who may send mail")
        tables[_LOOKUPS[tag]].add(key, verdict, line, report)
        return True

    report.take_each(lines, take)
    for line, key, verdict in untagged:
        _add_untagged(tables, key, verdict, line, report)
    clients = tables["client"].rows()
    client_lines = {row.line for row in clients}
    imported = Imported()
    for attribute in ("recipient", "sender"):
        rows, unused = exemptions_as_exceptions(tables[attribute].rows(), report)
        imported.rows += rows
        for row in (row for row in unused if row.line not in client_lines):
            report.lose(row.line, f"no less specific key blocks a {attribute}, so there is nothing to exempt from")
            report.taken -= 1
    imported.rows += clients
    return imported


def _read_line(line: Line, report: ConversionReport) -> tuple[str, str, Verdict]:
    match = _LINE.fullmatch(line.text)
    if match is None:
        raise UnsupportedError("not a line of an access_db; write `KEY ACTION`")
    tag, key = (match["tag"] or "").lower(), match["key"].lower()
    if tag == "ipv6":  # `IPv6:2001:db8`, without another tag
        tag = ""
    if _is_first_pair(tag):  # `2001:db8 REJECT`: the tag is the first pair of an address
        tag, key = "", f"{tag}:{key}"
    # Each run of blanks becomes one blank, because `_ERROR` would take quadratic time for long runs.
    result = " ".join(match["result"].split())
    return tag, key.removeprefix("ipv6:"), _verdict(result, line, report)


def _is_first_pair(tag: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{1,4}", tag) is not None and any(c.isdigit() for c in tag)


def _add_untagged(
    tables: dict[str, AccessTable], key: str, verdict: Verdict, line: Line, report: ConversionReport
) -> None:
    """Adds a line to each lookup that uses its key without a tag, unless a tagged line has the same key."""
    errors = []
    added = False
    for attribute in ("sender",) if "@" in key else ("client", "sender"):
        try:
            tables[attribute].add(key, verdict, line, report)
            added = True
        except UnsupportedError as error:
            errors.append(str(error))
    if added:
        report.taken += 1
    else:
        report.lose(line, errors[0])


def _verdict(result: str, line: Line, report: ConversionReport) -> Verdict:
    action = result.upper()
    if action in {"OK", "RELAY"}:
        what = "RELAY became DUNNO: Postfix decides which hosts may relay (mynetworks, relay_domains)"
        report.note(
            line,
            what
            if action == "RELAY"
            else "OK became DUNNO, or for senders and recipients an exception: it exempts from this table alone",
        )
        return DUNNO
    if action == "SKIP":
        report.note(line, "SKIP became DUNNO; sendmail refuses the client unless FEATURE(`access_db') has `skip'")
        return DUNNO
    if action == "REJECT":
        return REJECT
    if action.startswith("DISCARD"):
        raise UnsupportedError(NO_DISCARD)
    if action.startswith("QUARANTINE"):
        report.note(line, "QUARANTINE is not supported: the mail is not held, and passes as with DUNNO")
        return Verdict(Verb.DUNNO, passing=True)
    if re.match(r"ERROR:[45]\d\d:", action):
        report.note(line, 'the number is part of the text, and sendmail rejects for good; write ERROR:D.S.N:"450 text"')
    return _error(result)


def _error(result: str) -> Verdict:
    """Reads `ERROR:5.7.1:550 text`, `ERROR:550 text`, `ERROR:text` or `550 text`, with or without quotes.

    sendmail takes three digits for a reply code only if a blank follows them (`parseaddr.c`).
    """
    error = _ERROR.fullmatch(result)
    if error is not None and (match := re.match(r"([45])\d\d(?: |$)", error["text"].strip())):
        verb = Verb.REJECT if match[1] == "5" else Verb.DEFER
        return blocking(verb, f"{error['dsn'] or ''} {error['text'].strip()[match.end() :]}")
    if error is not None and error["dsn"]:
        verb = Verb.REJECT if error["dsn"].startswith("5") else Verb.DEFER
        return blocking(verb, f"{error['dsn']} {error['text']}")
    if result.upper().startswith("ERROR:"):
        return blocking(Verb.REJECT, result[len("ERROR:") :].strip().strip('"'))
    raise UnsupportedError(f"the action '{result.split(maxsplit=1)[0]}' is not supported")


# --- Export -----------------------------------------------------------------------------------------------------------

_TAGS = {"client": "Connect", "sender": "From", "recipient": "To"}


def write(rows: Sequence[Row], report: ConversionReport, options: ExportOptions) -> str:
    """An access_db for makemap(8): the keys of each lookup, with the lookup's tag."""
    lines = [f"# {options.heading}"]
    by_lookup: dict[str, list[Row]] = {attribute: [] for attribute in _TAGS}
    for row in rows:
        by_lookup[_lookup(row)].append(row)
    for attribute, lookup_rows in by_lookup.items():
        for written in keys_of(lookup_rows, attribute, report, dotted=False):
            prefix = "IPv6:" if attribute == "client" and ":" in written.key else ""
            lines.append(f"{_TAGS[attribute]}:{prefix}{written.key}\t{_action(written, report)}")
    exempting = [row for row in rows if row.verdict.verb is Verb.DUNNO]
    if exempting and sum(map(bool, by_lookup.values())) > 1:
        note = "the exemption holds for one of sendmail's lookups only; the other lookups are still made"
        for row in exempting:
            report.note(row.line, note)
    return "\n".join(lines) + "\n"


def _lookup(row: Row) -> str:
    """The lookup for a rule's first condition; `keys_of` reports a rule that has two conditions."""
    condition = row.match[0].condition
    return next((name for name in ("sender", "recipient") if condition.startswith(name)), "client")


def _action(written: Written, report: ConversionReport) -> str:
    verdict = written.verdict
    if verdict.verb is Verb.DUNNO or written.row is None:
        # Not SKIP: without `skip' in FEATURE(`access_db'), sendmail (8.17) refuses the client.
        return "OK"
    rejects = verdict.verb is Verb.REJECT
    text = static_text(written.row, report)
    if not text:
        return "REJECT" if rejects else 'ERROR:4.7.1:"450 Try again later"'
    code, _, rest = text.partition(" ") if verdict.code else ("5.7.1" if rejects else "4.7.1", "", text)
    text = (rest or DEFAULT_TEXT).replace('"', "'")
    return f'ERROR:{code}:"{550 if rejects else 450} {text}"'
