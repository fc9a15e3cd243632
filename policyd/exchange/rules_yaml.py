"""Writes rows and entries as rules.yaml and list files, which `policyd check` accepts.

Consecutive rows with the same verdict and exceptions become one rule for each condition, because their order does not
matter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from policyd.config.dns_list import Ask
from policyd.core.printable import printable
from policyd.exchange.model import by_condition

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from policyd.exchange.model import Imported, Line, NewDnsList, Term, Verdict

# Maximum number of values on the line of their condition; if there are more, each gets its own line.
_MAX_ON_LINE = 4

# Text that needs no quotes in YAML: within brackets, and as the value of `action`. Every value is text, even a number.
_PLAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/@+-]*[A-Za-z0-9._/@+-])?")
_PLAIN_TEXT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._/@+,()-]*[A-Za-z0-9._/@+,()-])?")


@dataclass(frozen=True, slots=True)
class NewRule:
    """A rule to write: values by condition, and its source, which is `count` lines from `first` to `last`."""

    name: str
    match: Mapping[str, tuple[str, ...]]
    exceptions: Mapping[str, tuple[str, ...]]
    verdict: Verdict
    first: Line
    last: Line
    count: int
    observe: bool = False
    at_least: int = 1  # the number of the lists in `listed` that must match

    @property
    def note(self) -> str:
        """The source of the rule, for its note."""
        path = Path(self.first.path).name
        if self.first.number == self.last.number:
            return f"line {self.first.number} of {path}"
        return f"{self.count:,} lines of {path}, {self.first.number} to {self.last.number}"


def rules(imported: Imported, names: Names, verdict: Verdict) -> list[NewRule]:
    """Makes rules from an import: one rule for the entries of each condition, with `verdict`, then rules for the rows.

    A row that has a name becomes a separate rule with this name.
    """
    made: list[NewRule] = []
    of_condition: dict[str, list[Line]] = {}
    for entry in imported.entries:
        of_condition.setdefault(entry.term.condition, []).append(entry.line)
    for condition, values in by_condition(entry.term for entry in imported.entries).items():
        lines = of_condition[condition]
        made.append(NewRule(names.next(), {condition: values}, {}, verdict, min(lines), max(lines), len(set(lines))))
    needed = len(imported.rows)
    while needed and imported.rows[needed - 1].verdict.passing:
        needed -= 1  # the row lets mail pass, and no row below it blocks
    rows = imported.rows[:needed]
    start = 0
    while start < len(rows):
        end = start + 1
        key = (rows[start].verdict, rows[start].exceptions, rows[start].name)
        while (
            end < len(rows)
            and not rows[start].name
            and (rows[end].verdict, rows[end].exceptions, rows[end].name) == key
        ):
            end += 1
        by_shape: dict[tuple[str, ...] | int, list[int]] = {}
        for place in range(start, end):
            conditions = tuple(dict.fromkeys(term.condition for term in rows[place].match))
            # All conditions of a rule must hold, so rows can share a rule only if each has the same single condition.
            by_shape.setdefault(conditions if len(conditions) == 1 else place, []).append(place)
        for places in by_shape.values():
            sources = [rows[place] for place in places]
            first, last = min(row.line for row in sources), max(row.line for row in sources)
            match = by_condition(term for row in sources for term in row.match)
            name = names.next(sources[0].name)
            made.append(
                NewRule(
                    name,
                    match,
                    by_condition(sources[0].exceptions),
                    key[0],
                    first,
                    last,
                    len(sources),
                    sources[0].observe,
                    sources[0].at_least,
                )
            )
        start = end
    return made


class Names:
    """Gives out unique rule names with characters that rules.yaml allows. A generated name begins with `prefix`."""

    def __init__(self, prefix: str, taken: Iterable[str] = ()) -> None:
        self._prefix = _rule_name(prefix) or "imported"
        self._given = {"default", *taken}
        self._number = 0
        self._suffixes: dict[str, int] = {}  # the last number given to each repeated name

    def next(self, wanted: str = "") -> str:
        """The wanted name in a valid and unique form, or a generated name if none is wanted."""
        name = _rule_name(wanted)
        base = name
        suffix = self._suffixes.get(base, 1)
        while not name or name in self._given:
            if base:
                suffix += 1
                name = f"{base}-{suffix}"
                self._suffixes[base] = suffix
            else:
                self._number += 1
                name = f"{self._prefix}-{self._number}"
        self._given.add(name)
        return name


def _rule_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-")


# --- Writing ----------------------------------------------------------------------------------------------------------


def rules_yaml(new_rules: Sequence[NewRule], heading: str, dns_lists: Sequence[NewDnsList] = ()) -> str:
    """The text of a rules file."""
    lines = _comment(heading)
    if dns_lists:
        lines += ["dns_lists:", *map(_dns_list, dns_lists), ""]
    lines.append("rules:" if new_rules else "rules: []")
    for rule in new_rules:
        lines.append(f"  - name: {scalar(rule.name)}")
        lines += _conditions("match", rule.match, rule.at_least)
        if rule.exceptions:
            lines += _conditions("except", rule.exceptions)
        lines.append(f"    action: {_action(rule.verdict)}")
        if rule.observe:
            lines.append("    mode: observe")
        lines.append(f"    note: {scalar(printable(rule.note))}")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _dns_list(dns_list: NewDnsList) -> str:
    fields = [f"zone: {scalar(dns_list.zone)}"]
    if dns_list.key_file:
        fields.append(f"key_file: {scalar(dns_list.key_file)}")
    if dns_list.ask is not Ask.CLIENT_ADDRESS:
        fields.append(f"ask: {dns_list.ask}")
    fields.append(f"codes: {_quoted(dns_list.codes)}")
    return f"  {scalar(dns_list.name)}: {{{', '.join(fields)}}}"


def _conditions(key: str, conditions: Mapping[str, tuple[str, ...]], at_least: int = 1) -> Iterator[str]:
    if at_least > 1:
        yield f"    {key}: {{listed: {{at_least: {at_least}, of: {_flow_values(conditions['listed'])}}}}}"
        return
    if all(len(values) <= _MAX_ON_LINE for values in conditions.values()):
        yield f"    {key}: {{{', '.join(f'{name}: {_flow_values(values)}' for name, values in conditions.items())}}}"
        return
    yield f"    {key}:"
    for name, values in conditions.items():
        if len(values) <= _MAX_ON_LINE:
            yield f"      {name}: {_flow_values(values)}"
            continue
        yield f"      {name}:"
        yield from (f"        - {value_scalar(value)}" for value in values)


def _flow_values(values: tuple[str, ...]) -> str:
    if len(values) == 1:
        return value_scalar(values[0])
    return f"[{', '.join(value_scalar(value) for value in values)}]"


def _action(verdict: Verdict) -> str:
    action = verdict.action
    return action if _PLAIN_TEXT.fullmatch(action) else _quoted(action)


def value_scalar(value: str) -> str:
    """A value of a condition; `$` at its beginning would name a list, so it is doubled."""
    return scalar("$" + value if value.startswith("$") else value)


def scalar(text: str) -> str:
    """A text as a YAML scalar, in quotes if it needs them."""
    return text if _PLAIN.fullmatch(text) else _quoted(text)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def list_file(entries: Iterable[Term], heading: str) -> str:
    """The text of a list file: one entry per line, without repetitions."""
    return "\n".join([*_comment(heading), *dict.fromkeys(entry.value for entry in entries)]) + "\n"


def fits_list_file(value: str) -> bool:
    """Whether a list file can contain the value: nothing in it looks like a comment, and no blank is at either end."""
    return value == value.strip() and re.search(r"(?:^|\s)[#;]", value) is None


def _comment(text: str) -> list[str]:
    return [f"# {printable(line)}" for line in text.splitlines()]
