"""Imports and exports plain lists of addresses, networks, ranges, names, mail addresses and expressions, one per line.

Comments begin with `#`, `;` or `//`. After an address a line may have more words or fields: many lists add a date, a
country or a reason.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from policyd.core.ruleset import Verb
from policyd.exchange.lists.expressions import Expressions
from policyd.exchange.model import Imported, ListEntry, Term, UnsupportedError
from policyd.exchange.network_sets import network_texts, rejected_addresses
from policyd.exchange.regex_translation import from_perl
from policyd.exchange.values import SUFFIX_CONDITIONS, address_range, literal, looks_like_address, network_text, term

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from policyd.exchange.model import ConversionReport, ExportOptions, Line, Row

_COMMENT = re.compile(r"(?:^|\s)(?:[#;]|//).*")

# The condition on a mail address, for each attribute.
_MAIL_CONDITIONS = {"client": "sender", "helo_name": "helo_name", "sender": "sender", "recipient": "recipient"}

_EXPRESSION = re.compile(r"/(?P<pattern>(?:[^/\\]|\\.)+)/(?P<flags>[a-z]*)(?:\s.*)?", re.IGNORECASE)
# A mechanism of SPF (RFC 7208 section 5.6): tools that list the mail hosts of large providers write it.
_SPF = re.compile(r"\+?ip[46]:(\S+)", re.IGNORECASE)
_LOCAL_PART = re.compile(r"[^\s@,/<>]+@")
# `192.0.2` and `192.0.2.`. A single number is more likely a mistake than a network of 16 million addresses.
_OCTETS = re.compile(r"\d{1,3}(?:\.\d{1,3}){1,2}\.?", re.ASCII)


def read(lines: Iterable[Line], report: ConversionReport, *, attribute: str | None = None) -> Imported:
    """The list's entries. `attribute` is the attribute that names and domains are compared with: `client` (also if it
    is None), `helo_name`, `sender` or `recipient`.
    """
    imported = Imported()
    expressions = Expressions(attribute, report)

    def take(line: Line) -> bool:
        stripped = line.text.strip()
        # An expression may contain the characters that begin a comment.
        text = stripped if _EXPRESSION.fullmatch(stripped) else _COMMENT.sub("", line.text).strip()
        if text:
            terms = _read_entry(text, line, report, attribute or "client", expressions)
            imported.entries += [ListEntry(term, line) for term in terms]
        return bool(text)

    report.take_each(lines, take)
    return imported


def _read_entry(
    text: str, line: Line, report: ConversionReport, attribute: str, expressions: Expressions
) -> list[Term]:
    if (expression := _EXPRESSION.fullmatch(text)) is not None:
        if "i" not in expression["flags"]:
            report.note(line, "the expression was read as case-insensitive, as with `/i`")
        return [expressions.read(from_perl(expression["pattern"]), line)]
    word, *more = text.split()
    if len(more) > 1 and more[0] == "-":  # FIRST - LAST
        word, more = f"{word}-{more[1]}", more[2:]
    word, comma, field = word.partition(",")
    word = word.strip('"')
    if more or field:
        if not looks_like_address(word):
            raise UnsupportedError("more than one word; an entry is a single word")
        report.note(line, f"the first {'field' if comma else 'word'} is the entry; the rest was left out")
    if (mechanism := _SPF.fullmatch(word)) is not None:
        word = mechanism[1]
    if looks_like_address(word):
        return _networks(word, line, report)
    if word.startswith("*."):
        word = word[1:]
    elif word.startswith("@"):
        word = word[1:]
        attribute = "recipient" if attribute == "recipient" else "sender"
    elif _LOCAL_PART.fullmatch(word):
        attribute = "recipient" if attribute == "recipient" else "sender"
        return [term(f"{attribute}_regex", f"^{literal(word)}")]
    if "@" in word or word == "<>":
        return [term(_MAIL_CONDITIONS[attribute], word)]
    return [term(SUFFIX_CONDITIONS[attribute], word)]


def _networks(word: str, line: Line, report: ConversionReport) -> list[Term]:
    if word.endswith(".*") or _OCTETS.fullmatch(word):
        octets = word.rstrip(".*").split(".")
        word = ".".join(octets + ["0"] * (4 - len(octets))) + f"/{8 * len(octets)}"
    found = address_range(word.strip("[]"), report.on_host_bits(line))
    if len(found) > 1:
        report.note(line, "the range was written as networks")
    return [Term("cidr", network_text(found_network)) for found_network in found]


# --- Export -----------------------------------------------------------------------------------------------------------


def write(rows: Sequence[Row], report: ConversionReport, options: ExportOptions) -> str:
    """A list of the entries of one condition that rules reject, one per line; networks are merged to the fewest."""
    return "\n".join([f"# {options.heading}", *entries(rows, report, options)]) + "\n"


def entries(rows: Sequence[Row], report: ConversionReport, options: ExportOptions) -> list[str]:
    """The entries of one condition that rules reject. Reports rules that a list cannot express."""
    condition = options.condition or default_condition(rows)
    if condition == "cidr":
        return network_texts(rejected_addresses(rows, report, deferred=options.deferred))
    found: dict[str, None] = {}
    for row in rows:
        if row.verdict.verb is Verb.DUNNO:
            report.lose(row.line, "a list cannot exempt: a rule below may block the clients that it lets through")
        elif row.verdict.verb is not Verb.REJECT and not options.deferred:
            report.lose(row.line, f"{row.verdict.verb} is not a rejection (--deferred treats it as one)")
        elif row.exceptions or {term.condition for term in row.match} != {condition}:
            report.lose(row.line, f"the list can express only {condition} without exceptions (--condition)")
        else:
            report.taken += 1
            found.update(dict.fromkeys(term.value for term in row.match))
    return list(found)


def default_condition(rows: Sequence[Row]) -> str:
    """`cidr` if it is the first condition of a blocking row, or if no row blocks.

    Otherwise the first condition of the first blocking row.
    """
    conditions = [term.condition for row in rows if row.verdict.verb is not Verb.DUNNO for term in row.match[:1]]
    return "cidr" if "cidr" in conditions or not conditions else conditions[0]
