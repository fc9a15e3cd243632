"""`policyd import`: converts another system's list or table to a list file or rules.

Reads the files, parses the lines with the reader of the format, and returns the text to write and the report of losses.
Prints nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policyd.core.printable import printable
from policyd.core.ruleset import Verb
from policyd.exchange.access import postfix, sendmail
from policyd.exchange.firewall import ipset, iptables, nftables
from policyd.exchange.lists import plain, postgrey, rspamd_map, spamhaus_drop, whois
from policyd.exchange.model import (
    DUNNO,
    REJECT,
    ConversionReport,
    Imported,
    IncompleteError,
    Line,
    Term,
    Verdict,
    location,
)
from policyd.exchange.network_sets import blocked_addresses, network_texts, only_networks
from policyd.exchange.postfix import cidr, pcre, postconf, postfwd, regexp
from policyd.exchange.rules_yaml import Names, fits_list_file, list_file, rules, rules_yaml
from policyd.logs.files import MAX_LINE_BYTES, STANDARD_INPUT, LogError, NotTextError, read_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from policyd.exchange.rules_yaml import NewRule

# Maximum lines of a file: ten times a table of a million entries; a longer file would fill the memory.
MAX_LINES = 10_000_000


class ImportForm(StrEnum):
    """The form in which an import is written."""

    RULES = "rules"
    LIST = "list"


@dataclass(frozen=True, slots=True)
class ImportFormat:
    """A format that can be imported: its reader, and the fields of `ImportOptions` that the reader takes.

    `from_the_top` means that the first matching line decides, so a line exempts only from the lines below it.
    `longest_line` is the maximum length of a line in bytes. `verdict` is the default verdict for entries.
    """

    read: Callable[..., Imported]
    options: frozenset[str] = frozenset()
    from_the_top: bool = False
    longest_line: int = MAX_LINE_BYTES
    verdict: Verdict = REJECT


_ATTRIBUTE = frozenset({"attribute"})

# Maximum bytes of a line of JSON, which is often the whole document: enough for an nftables set of a million elements.
_MAX_JSON_LINE = 64 << 20

IMPORT_FORMATS: dict[str, ImportFormat] = {
    "plain": ImportFormat(plain.read, _ATTRIBUTE),
    "postfix-access": ImportFormat(postfix.read, _ATTRIBUTE | {"dotted", "delimiter"}),
    "postfix-cidr": ImportFormat(cidr.read, from_the_top=True),
    "postfix-pcre": ImportFormat(pcre.read, _ATTRIBUTE, from_the_top=True),
    "postfix-regexp": ImportFormat(regexp.read, _ATTRIBUTE, from_the_top=True),
    "sendmail-access": ImportFormat(sendmail.read),
    "postconf": ImportFormat(postconf.read, from_the_top=True),
    "postfwd": ImportFormat(postfwd.read, from_the_top=True),
    "postgrey": ImportFormat(postgrey.read, _ATTRIBUTE, verdict=DUNNO),
    "whois": ImportFormat(whois.read, longest_line=_MAX_JSON_LINE),
    "spamhaus-drop": ImportFormat(spamhaus_drop.read),
    "iptables-save": ImportFormat(iptables.read, frozenset({"port", "interface"})),
    "nft": ImportFormat(nftables.read, frozenset({"port", "interface", "sets"}), longest_line=_MAX_JSON_LINE),
    "ipset": ImportFormat(ipset.read, frozenset({"sets"})),
    "rspamd-map": ImportFormat(rspamd_map.read, _ATTRIBUTE),
}


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Options of an import.

    `attribute` (`client`, `helo_name`, `sender`, `recipient`) is the attribute that is looked up in the table; `dotted`
    and `delimiter` are as in `policyd.exchange.access.keys`. With `shape` None, a table with verdicts becomes rules; a
    file without verdicts becomes a list, or rules if its entries are of several kinds and `condition` is None.
    `condition` selects the entries for a list file. `verdict` is the verdict for entries (None: the format's default).
    `name` is the beginning of the rules' names (empty: the file's name). `port` and `interface` are those of the
    connection that is followed through a firewall; `sets` are the names of a firewall's sets to import.
    """

    attribute: str | None = None
    dotted: bool = False
    delimiter: str = ""
    shape: ImportForm | None = None
    condition: str | None = None
    verdict: Verdict | None = None
    name: str = ""
    port: int = 25
    interface: str = ""
    sets: tuple[str, ...] = ()


class ImportFailedError(Exception):
    """Nothing was imported. The message is one line; `exit_status` is 1, or 2 if a file cannot be read.

    `report` has the lines lost before the failure.
    """

    def __init__(self, message: str, exit_status: int, report: ConversionReport | None = None) -> None:
        super().__init__(printable(message))
        self.exit_status = exit_status
        self.report = report


@dataclass(frozen=True, slots=True)
class ImportResult:
    """The result of an import: the text to write and its form, the rules or entries in it, and the report.

    `lost_exemptions` counts lost lines that would have exempted clients from a block that was kept.
    """

    shape: ImportForm
    text: str
    rules: tuple[NewRule, ...]
    entries: tuple[Term, ...]
    report: ConversionReport
    lost_exemptions: int = 0


def import_files(
    name: str, paths: Sequence[str], options: ImportOptions, advance: Callable[[int], None] | None = None
) -> ImportResult:
    """Imports files of the format `name`, one after the other; `-` is standard input.

    `advance` is called with the number of bytes read since its last call. Raises `ImportFailedError`.
    """
    report = ConversionReport()
    arguments: dict[str, Any] = {option: getattr(options, option) for option in IMPORT_FORMATS[name].options}
    found: list[tuple[str, Imported]] = []
    for path in paths:
        lines, before = _Lines(path, IMPORT_FORMATS[name].longest_line, advance), report.taken
        try:
            imported = IMPORT_FORMATS[name].read(lines, report, **arguments)
        except IncompleteError as error:
            message = f"{location(error.line)}: {error}; nothing was imported; get the file again"
            raise ImportFailedError(message, 1, report) from None
        if report.taken == before and not imported.rows and not imported.entries:
            raise _nothing_found(name, path, lines, report)
        found.append((path, imported))
    make = _as_list if _is_list(found, options) else _as_rules
    result = make(name, found, options, report)
    return replace(result, lost_exemptions=_lost_exemptions(name, found, report))


def _is_list(found: list[tuple[str, Imported]], options: ImportOptions) -> bool:
    if options.shape is not None or any(imported.rows for _, imported in found):
        return options.shape is ImportForm.LIST
    kinds = {entry.term.condition for _, imported in found for entry in imported.entries}
    return len(kinds) == 1 or options.condition is not None


def _lost_exemptions(name: str, found: list[tuple[str, Imported]], report: ConversionReport) -> int:
    """Counts lost lines that would have exempted clients from a block that was kept."""
    files = {_shown_path(path): number for number, (path, _) in enumerate(found)}
    blocks = [
        line
        for _, imported in found
        for line, verdict in (
            *((row.line, row.verdict) for row in imported.rows),
            *((entry.line, REJECT) for entry in imported.entries),
        )
        if verdict.verb is not Verb.DUNNO
    ]
    # If a format is not read from the top, a lost line may exempt from any block of its file.
    position = max(
        ((files[line.path], line.number if IMPORT_FORMATS[name].from_the_top else 1 << 60) for line in blocks),
        default=(-1, 0),
    )
    return sum(loss.exempts and (files[loss.line.path], loss.line.number) < position for loss in report.losses)


def _shown_path(path: str) -> str:
    return "standard input" if path == STANDARD_INPUT else path


class _Lines:
    """Reads the lines of a file as text, and counts them."""

    def __init__(self, path: str, longest: int, advance: Callable[[int], None] | None) -> None:
        self._path = path
        self._longest = longest
        self._advance = advance
        self.count = 0

    def __iter__(self) -> Iterator[Line]:
        shown_path = _shown_path(self._path)
        try:
            for block in read_blocks([self._path], self._advance, self._longest):
                for raw in block.lines:
                    self.count += 1
                    if len(raw) == self._longest:
                        message = f"{shown_path}:{self.count}: the line is longer than {self._longest // 1024} KiB"
                        raise ImportFailedError(message, 1)
                    if self.count > MAX_LINES:
                        raise ImportFailedError(f"{shown_path}: has more than {MAX_LINES:,} lines; split it", 1)
                    text = _decode(raw).rstrip("\r")
                    text = text.removeprefix("\ufeff") if self.count == 1 else text
                    yield Line(shown_path, self.count, text, block.ended)
        except NotTextError:
            raise ImportFailedError(f"{shown_path}: is a binary file, not a table or list", 1) from None
        except LogError as error:
            raise ImportFailedError(str(error), 2) from None


def _decode(raw: bytes) -> str:
    """A line as text: UTF-8, or ISO-2022-JP (RFC 1468), which Japanese registries use."""
    if b"\x1b$" in raw or b"\x1b(" in raw:
        return raw.decode("iso2022_jp", "replace")
    return raw.decode("utf-8", "replace")


def _nothing_found(name: str, path: str, lines: _Lines, report: ConversionReport) -> ImportFailedError:
    where = _shown_path(path)
    if any(loss.line.path == where for loss in report.losses):
        return ImportFailedError(f"{where}: nothing of the format {name} could be read", 1, report)
    what = "is empty" if lines.count == 0 else f"has no entry in the format {name}"
    return ImportFailedError(f"{where}: {what}", 1, report)


# --- Writing ----------------------------------------------------------------------------------------------------------


def _as_rules(
    name: str, found: list[tuple[str, Imported]], options: ImportOptions, report: ConversionReport
) -> ImportResult:
    kinds = {entry.term.condition for _, imported in found for entry in imported.entries}
    if options.shape is None and len(kinds) > 1:
        first = next(imported.entries[0].line for _, imported in found if imported.entries)
        what = f"entries for {', '.join(sorted(kinds))}, so they were written as rules"
        report.note(first._replace(number=0), f"{what}; --as list --condition NAME writes a list file of one kind")
    made: list[NewRule] = []
    for path, imported in found:
        names = Names(options.name or _stem(path) or name, taken={rule.name for rule in made})
        made += rules(imported, names, options.verdict or IMPORT_FORMATS[name].verdict)
    dns_lists = [dns_list for _, imported in found for dns_list in imported.dns_lists]
    text = rules_yaml(made, _heading(name, found, report), dns_lists)
    return ImportResult(ImportForm.RULES, text, tuple(made), (), report)


def _as_list(
    name: str, found: list[tuple[str, Imported]], options: ImportOptions, report: ConversionReport
) -> ImportResult:
    """Makes a list file, which has entries for one condition only: by default the most frequent one."""
    counts = Counter(term.condition for _, imported in found for term in _blocking_terms(imported))
    condition = options.condition or max(counts, key=lambda kind: (counts[kind], kind == "cidr"), default="cidr")
    if condition == "listed":
        message = "asks DNS lists, which a list file cannot define; write rules, without --as list"
        raise ImportFailedError(f"{_name_of(found[0][0])}: {message}", 1, report)
    entries: list[Term] = []
    for _, imported in found:
        entries += _entries_for(condition, imported, report)
    if not entries:
        raise ImportFailedError(f"{_name_of(found[0][0])}: there is no entry for {condition} in it", 1, report)
    from_input = [(path, imported) for path, imported in found if path == STANDARD_INPUT]
    text = list_file(entries, f"{_heading(name, from_input, report)}\nA list for {condition}.")
    return ImportResult(ImportForm.LIST, text, (), tuple(entries), report)


def _blocking_terms(imported: Imported) -> Iterator[Term]:
    yield from (entry.term for entry in imported.entries)
    for row in imported.rows:
        if row.verdict.verb is not Verb.DUNNO:
            yield from row.match


def _entries_for(condition: str, imported: Imported, report: ConversionReport) -> Iterator[Term]:
    for term, line in imported.entries:
        if term.condition != condition:
            report.lose(
                line, f"it is for {term.condition}, but the list is for {condition} (--condition, or --as rules)"
            )
        elif not fits_list_file(term.value):
            report.lose(line, "part of it would be a comment in a list file; import as rules")
        else:
            yield term
    kept = []
    for row in imported.rows:
        if condition == "cidr" and only_networks(row):
            kept.append(row)
        elif row.verdict.verb is Verb.DUNNO:
            report.lose(row.line, "a list cannot exempt; import as rules", exempts=True)
        elif row.exceptions or len(row.match) != 1 or row.match[0].condition != condition:
            report.lose(row.line, f"it is not a single entry for {condition} (--condition, or --as rules)")
        elif not fits_list_file(row.match[0].value):
            report.lose(row.line, "part of it would be a comment in a list file; import as rules")
        else:
            yield row.match[0]
    yield from (Term("cidr", network) for network in network_texts(blocked_addresses(kept)))


def _heading(name: str, found: list[tuple[str, Imported]], report: ConversionReport) -> str:
    """The first comment of the output, with the names of the files in `found`.

    A list file names no input except standard input: the name of a fetched file is temporary and differs on each host,
    and would change the ruleset's hash, which covers comments.
    """
    files = f" from {', '.join(_name_of(path) for path, _ in found)}" if found else ""
    lost = f"{len(report.losses):,} lost" if report.losses else "nothing lost"
    return f"Imported{files} ({name}): {report.taken:,} taken, {lost}."


def _name_of(path: str) -> str:
    return "standard input" if path == STANDARD_INPUT else Path(path).name


def _stem(path: str) -> str:
    return "" if path == STANDARD_INPUT else Path(path).name.partition(".")[0]


def as_json_object(result: ImportResult) -> dict[str, Any]:
    """The result and its report for programs."""
    return {
        "shape": str(result.shape),
        "text": result.text,
        "rules": [
            {
                "name": rule.name,
                "match": {name: list(values) for name, values in rule.match.items()},
                "except": {name: list(values) for name, values in rule.exceptions.items()},
                "action": rule.verdict.action,
                "note": rule.note,
            }
            for rule in result.rules
        ],
        "entries": [term.value for term in result.entries],
        "lost_exemptions": result.lost_exemptions,
        **result.report.as_json_object(),
    }
