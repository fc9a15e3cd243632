"""`policyd import`: another system's list or table as a list file or rules.

Reads the files, lets the file of the format make sense of the lines, and gives the text to write and the report of what
was lost. Prints nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policyd.core.printable import printable
from policyd.core.ruleset import Verb
from policyd.exchange.access import postfix, sendmail
from policyd.exchange.firewall import iptables, nftables
from policyd.exchange.lists import plain, rspamd_map, spamhaus_drop, whois
from policyd.exchange.model import REJECT, Imported, Line, Report, Term, Verdict, cut, place, shown
from policyd.exchange.network_sets import kept_out, only_networks, texts
from policyd.exchange.postfix import cidr, pcre, postfwd, regexp
from policyd.exchange.rules_yaml import Names, fits_list_file, list_file, rules, rules_yaml
from policyd.logs.files import MAX_LINE_BYTES, STANDARD_INPUT, LogError, NotTextError, read_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from policyd.exchange.rules_yaml import NewRule

# Ten times the million entries that are an ordinary size; what is longer is no table, and would fill the memory.
MAX_LINES = 10_000_000


class Shape(StrEnum):
    """What an import is written as."""

    RULES = "rules"
    LIST = "list"


@dataclass(frozen=True, slots=True)
class Format:
    """A format that can be imported: what reads it, and which options of `ImportOptions` it takes."""

    read: Callable[..., Imported]
    options: frozenset[str] = frozenset()


_NAMES = frozenset({"attribute"})

FORMATS: dict[str, Format] = {
    "plain": Format(plain.read, _NAMES),
    "postfix-access": Format(postfix.read, _NAMES | {"dotted", "delimiter"}),
    "postfix-cidr": Format(cidr.read),
    "postfix-pcre": Format(pcre.read, _NAMES),
    "postfix-regexp": Format(regexp.read, _NAMES),
    "sendmail-access": Format(sendmail.read),
    "postfwd": Format(postfwd.read),
    "whois": Format(whois.read),
    "spamhaus-drop": Format(spamhaus_drop.read),
    "iptables-save": Format(iptables.read),
    "nft": Format(nftables.read),
    "rspamd-map": Format(rspamd_map.read, _NAMES),
}


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What a table does not say itself.

    `attribute` (`client`, `helo_name`, `sender`, `recipient`) is what it is looked up for; `dotted` and `delimiter`
    are as in `policyd.exchange.access.keys`. `shape` None is what fits: rules for what has verdicts, a list for
    what has none. `condition` chooses which entries a list is to hold, where there are several kinds. `verdict` is for
    entries without one; `name` begins the rules' names.
    """

    attribute: str | None = None
    dotted: bool = False
    delimiter: str = ""
    shape: Shape | None = None
    condition: str | None = None
    verdict: Verdict = REJECT
    name: str = ""


class ImportFailedError(Exception):
    """Nothing was imported. The message is one line; `exit_status` is 1 for content, 2 for an unreadable file."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(printable(message))
        self.exit_status = exit_status


@dataclass(frozen=True, slots=True)
class Result:
    """What was imported: the text to write, and what it is; the rules or entries in it; and the report."""

    shape: Shape
    text: str
    rules: tuple[NewRule, ...]
    entries: tuple[Term, ...]
    report: Report


def import_files(
    name: str, paths: Sequence[str], options: ImportOptions, advance: Callable[[int], None] | None = None
) -> Result:
    """Imports files of the format `name`, one after the other; `-` is standard input.

    `advance` is told of the bytes that have been read. Raises `ImportFailedError`.
    """
    report = Report()
    arguments: dict[str, Any] = {option: getattr(options, option) for option in FORMATS[name].options}
    found: list[tuple[str, Imported]] = []
    for path in paths:
        lines, before = _Lines(path, advance), report.taken
        imported = FORMATS[name].read(lines, report, **arguments)
        if report.taken == before and not imported.rows and not imported.entries:
            raise _nothing_found(name, path, lines, report)
        found.append((path, imported))
    if options.shape is Shape.LIST or (options.shape is None and not any(imported.rows for _, imported in found)):
        return _as_list(name, found, options, report)
    return _as_rules(name, found, options, report)


class _Lines:
    """The lines of a file as text, counted."""

    def __init__(self, path: str, advance: Callable[[int], None] | None) -> None:
        self._path = path
        self._advance = advance
        self.count = 0

    def __iter__(self) -> Iterator[Line]:
        shown_path = "standard input" if self._path == STANDARD_INPUT else self._path
        try:
            for block in read_blocks([self._path], self._advance):
                for raw in block.lines:
                    self.count += 1
                    if len(raw) == MAX_LINE_BYTES:
                        message = f"{shown_path}:{self.count}: the line is longer than {MAX_LINE_BYTES // 1024} KiB"
                        raise ImportFailedError(message, 1)
                    if self.count > MAX_LINES:
                        raise ImportFailedError(f"{shown_path}: has more than {MAX_LINES:,} lines; split it", 1)
                    text = raw.decode("utf-8", "replace").rstrip("\r")
                    yield Line(shown_path, self.count, text.removeprefix("\ufeff") if self.count == 1 else text)
        except NotTextError:
            raise ImportFailedError(f"{shown_path}: is a binary file, no table or list", 1) from None
        except LogError as error:
            raise ImportFailedError(str(error), 2) from None


def _nothing_found(name: str, path: str, lines: _Lines, report: Report) -> ImportFailedError:
    where = "standard input" if path == STANDARD_INPUT else path
    losses = [loss for loss in report.losses if loss.line.path == where]
    if not losses:
        what = "is empty" if lines.count == 0 else f"has nothing of the format {name} in it"
        return ImportFailedError(f"{where}: {what}", 1)
    first = losses[0]
    more = f" ({len(losses):,} lines in all)" if len(losses) > 1 else ""
    where = f"{place(first.line)}: nothing of the format {name} could be read"
    return ImportFailedError(f"{where}: {shown(first.line.text)}: {cut(first.reason)}{more}", 1)


# --- Writing ----------------------------------------------------------------------------------------------------------


def _as_rules(name: str, found: list[tuple[str, Imported]], options: ImportOptions, report: Report) -> Result:
    made: list[NewRule] = []
    for path, imported in found:
        names = Names(options.name or _stem(path) or name, taken={rule.name for rule in made})
        made += rules(imported, names, options.verdict)
    text = rules_yaml(made, _heading(name, found, report))
    return Result(Shape.RULES, text, tuple(made), (), report)


def _as_list(name: str, found: list[tuple[str, Imported]], options: ImportOptions, report: Report) -> Result:
    """A list file. One file serves one condition, so that of several kinds of entries one is chosen."""
    counts = Counter(term.condition for _, imported in found for term in _blocking_terms(imported))
    condition = options.condition or max(counts, key=lambda name: (counts[name], name == "cidr"), default="cidr")
    entries: list[Term] = []
    for _, imported in found:
        entries += _entries_for(condition, imported, report)
    if not entries:
        raise ImportFailedError(f"{_name_of(found[0][0])}: there is no entry for {condition} in it", 1)
    text = list_file(entries, f"{_heading(name, found, report)}\nA list for {condition}.")
    return Result(Shape.LIST, text, (), tuple(entries), report)


def _blocking_terms(imported: Imported) -> Iterator[Term]:
    yield from (entry.term for entry in imported.entries)
    for row in imported.rows:
        if row.verdict.verb is not Verb.DUNNO:
            yield from row.match


def _entries_for(condition: str, imported: Imported, report: Report) -> Iterator[Term]:
    for term, line in imported.entries:
        if term.condition != condition:
            report.lose(line, f"it is for {term.condition}, and the list for {condition} (--condition, or --as rules)")
        elif not fits_list_file(term.value):
            report.lose(line, "a list file would take part of it for a comment; import as rules")
        else:
            yield term
    kept = []
    for row in imported.rows:
        if condition == "cidr" and only_networks(row):
            kept.append(row)
        elif row.verdict.verb is Verb.DUNNO:
            report.lose(row.line, "a list cannot exempt; import as rules")
        elif row.exceptions or len(row.match) != 1 or row.match[0].condition != condition:
            report.lose(row.line, f"it is no single entry for {condition} (--condition, or --as rules)")
        elif not fits_list_file(row.match[0].value):
            report.lose(row.line, "a list file would take part of it for a comment; import as rules")
        else:
            yield row.match[0]
    yield from (Term("cidr", network) for network in texts(kept_out(kept)))


def _heading(name: str, found: list[tuple[str, Imported]], report: Report) -> str:
    files = ", ".join(_name_of(path) for path, _ in found)
    lost = f"{len(report.losses):,} lost" if report.losses else "nothing lost"
    return f"Imported from {files} ({name}): {report.taken:,} taken, {lost}."


def _name_of(path: str) -> str:
    return "standard input" if path == STANDARD_INPUT else Path(path).name


def _stem(path: str) -> str:
    return "" if path == STANDARD_INPUT else Path(path).name.partition(".")[0]


def as_json_object(result: Result) -> dict[str, Any]:
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
        **result.report.as_json_object(),
    }
