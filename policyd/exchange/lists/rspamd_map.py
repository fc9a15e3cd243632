"""Imports and exports rspamd's maps (multimap: ip, hostname, from, rcpt, regexp and glob maps).

The option `attribute` is the attribute that is looked up in a map. Values after the keys, such as scores, are left out,
because rules have no scores; a key with a negative score is lost.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from policyd.exchange.lists import plain
from policyd.exchange.lists.expressions import Expressions
from policyd.exchange.model import Imported, ListEntry, Term, UnsupportedError
from policyd.exchange.regex_translation import from_perl
from policyd.exchange.values import (
    EXACT_CONDITIONS,
    SUFFIX_CONDITIONS,
    address_range,
    literal,
    looks_like_address,
    network_text,
    term,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from policyd.exchange.model import ConversionReport, ExportOptions, Line, Row

_LINE = re.compile(
    r'(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<slashed>/(?:[^/\\]|\\.)*/[a-z]*)|(?P<key>[^\s#"][^\s#]*))(?P<value>.*)',
    re.IGNORECASE,
)

# The condition on a name without a wildcard, for each attribute.
_NAME_CONDITIONS = SUFFIX_CONDITIONS | EXACT_CONDITIONS


def read(lines: Iterable[Line], report: ConversionReport, *, attribute: str | None = None) -> Imported:
    """The map's keys. `attribute` is `client` (also if it is None), `helo_name`, `sender` or `recipient`."""
    imported = Imported()
    expressions = Expressions(attribute, report)

    def take(line: Line) -> bool:
        text = line.text.strip()
        if not text or text.startswith("#"):
            return False
        terms = _read_line(line._replace(text=text), report, attribute or "client", expressions)
        imported.entries += [ListEntry(term, line) for term in terms]
        return True

    report.take_each(lines, take)
    return imported


def _read_line(line: Line, report: ConversionReport, attribute: str, expressions: Expressions) -> list[Term]:
    match = _LINE.fullmatch(line.text)
    if match is None:
        raise UnsupportedError("a key that begins with a quote but does not end with a quote")
    value = match["value"].split("#")[0].strip()
    if value.startswith("-"):
        raise UnsupportedError(
            "a negative score lets mail through; put such keys into a list of their own", exempts=True
        )
    if value:
        report.note(line, "the value after the key is not supported; all entries are treated alike")
    if match["slashed"]:
        pattern, _, flags = match["slashed"][1:].rpartition("/")
        return [expressions.read(_expression(pattern, flags), line)]
    key = match["key"] or re.sub(r"\\(.)", r"\1", match["quoted"] or "")
    if looks_like_address(key):
        networks = address_range(key.strip("[]"), report.on_host_bits(line))
        return [Term("cidr", network_text(network)) for network in networks]
    if key.startswith("*.") and not re.search(r"[*?\[]", key[2:]):
        expressions.assume(line)
        return [term(SUFFIX_CONDITIONS[attribute], key[1:])]
    if re.search(r"[*?\[]", key):
        return [expressions.read(_glob(key), line)]
    if key.startswith("@"):
        key = key[1:]
        attribute = "recipient" if attribute == "recipient" else "sender"
    if "@" in key:
        return [term("recipient" if attribute == "recipient" else "sender", key)]
    if "." not in key and attribute != "helo_name":
        raise UnsupportedError("neither an address nor a name with a dot")
    expressions.assume(line)
    if attribute in {"sender", "recipient"}:
        report.note(line, f"a bare domain became {attribute}_domain, which also covers the names under it")
    return [term(_NAME_CONDITIONS[attribute], key)]


def _expression(pattern: str, flags: str) -> str:
    """Converts an expression of rspamd. It is Perl's, but case-sensitive without the flag `i` (`regexp.c`)."""
    for flag in flags:
        if flag not in "imsxuUOrLA":
            raise UnsupportedError(f"'{flag}' is not a flag of an expression")
    postfix_flags = ("" if "i" in flags else "i") + ("x" if "x" in flags else "")
    return from_perl(pattern, postfix_flags)


def _glob(pattern: str) -> str:
    if "[" in pattern:
        raise UnsupportedError("a glob with brackets; write it as an expression between slashes")
    parts = re.split(r"([*?])", pattern)
    return "^" + "".join({"*": ".*", "?": "."}.get(part) or literal(part) for part in parts) + "$"


# --- Export -----------------------------------------------------------------------------------------------------------


def write(rows: Sequence[Row], report: ConversionReport, options: ExportOptions) -> str:
    """A map of one kind: networks, names, mail addresses, or expressions between slashes."""
    lines = [f"# {options.heading}"]
    condition = options.condition or plain.default_condition(rows)
    for entry in plain.entries(rows, report, options):
        if condition.endswith("_regex"):
            lines.append("/" + re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", entry) + "/i")
        elif condition.endswith("_suffix") and entry.startswith("."):
            lines.append(f"*{entry}")
        else:
            lines.append(entry)
    return "\n".join(lines) + "\n"
