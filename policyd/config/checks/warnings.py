"""What is likely not meant, in a ruleset that is right: the warnings and notices of `policyd check`.

A warning is worth its line only if it can be trusted, so each of them is certain of what it says. Lists are looked
at as they are in memory; only where something is found are they read again, for the line.
"""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING

from policyd.config.checks.everything import together_everything
from policyd.config.checks.regex_pitfalls import complaints
from policyd.config.checks.unreachable import always_excepted, unreachable
from policyd.config.conditions import FORGEABLE_SUBJECTS, Form
from policyd.config.entries import entry_keys
from policyd.config.lists import Entry
from policyd.config.problems import Problem, Report, Severity, quoted
from policyd.config.yaml_tree import Scalar
from policyd.core.identity import Status
from policyd.core.ruleset import Kind, Verb
from policyd.core.tables import Networks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from policyd.config.written import RulesFile, WrittenCondition, WrittenRule
    from policyd.config.yaml_tree import Item
    from policyd.core.ruleset import Rule
    from policyd.core.tables import Entries

_ADDRESS = re.compile(r"[0-9.]{7,15}|(ipv6:)?[0-9a-f:.]*:[0-9a-f:.]*", re.IGNORECASE)

# How long before a rule expires its author hears of it.
EXPIRY_NOTICE = datetime.timedelta(days=14)


def lint(rules_file: RulesFile, today: datetime.date, errors: Report | None = None) -> Report:
    """All warnings and notices for a ruleset; `today` is the date in UTC.

    With `errors`, those of the same file, only what is certain in spite of them.
    """
    linter = _Linter(rules_file, today)
    if rules_file.outline is not None:
        linter.run()
    elif errors is not None and errors.room(rules_file.path):
        linter.run_beside({problem.rule for problem in errors.problems} | {""})
    return linter.report


def expiry_notice(rule: Rule, today: datetime.date) -> str:
    """What there is to say of a rule's date; empty if that is far off or there is none."""
    if rule.expires is None or rule.expires - today > EXPIRY_NOTICE:
        return ""
    days = (rule.expires - today).days
    if days <= 0:
        return f"expired on {rule.expires}, so it is skipped; take it away or give it a new date"
    return f"expires on {rule.expires}, in {days} {'day' if days == 1 else 'days'}"


class _Linter:
    """One look at one ruleset."""

    def __init__(self, rules_file: RulesFile, today: datetime.date) -> None:
        self.report = Report()
        self._file = rules_file
        self._today = today
        self._looked_at: set[tuple[str, Form]] = set()  # lists, once for each form in which they are used

    def run(self) -> None:
        """Looks at everything."""
        self._check_top()
        for written in self._file.rules:
            self._check_rule(written)
        for written, cover in unreachable(self._file.rules):
            message = f"no request can reach it: rule '{cover.rule.name}' (line {cover.rule.line}) always decides first"
            self._warn_at(written.key("name"), message, written.rule.name)
        for definition in self._file.lists.values():
            if not definition.used:
                message = f"list {quoted(definition.name)} is not used by any rule"
                self._warn(self._file.path, definition.line, definition.column, message, "")

    def run_beside(self, wrong: set[str]) -> None:
        """Looks at the rules that are right, each alone: a rule that could not be read may be what makes sense of the
        others."""
        self._check_top()
        for written in self._file.rules:
            if written.rule.name not in wrong:
                self._check_rule(written)

    def _check_top(self) -> None:
        items = self._file.root.items if self._file.root is not None else {}
        mode, default = items.get("mode"), items.get("default")
        if self._file.observe and mode is not None:
            message = "mode: observe: everything is decided and logged, and every answer is DUNNO"
            self._notice_at(mode.key, message)
        if default is not None and self._file.default.verb is Verb.REJECT:
            message = (
                "default: REJECT rejects every client that no rule lets through; try it with mode: observe first, or "
                "write DEFER"
            )
            self._warn_at(default.key, message, "")
        if default is not None:
            self._check_cut(default, "")

    def _check_cut(self, item: Item, rule: str) -> None:
        """A text that ends before a `#` was meant."""
        name, value = item.key.text, item.value
        if isinstance(value, Scalar) and value.cut and not value.text.upper().startswith("DUNNO"):
            message = (
                f"{name}: the text ends before {quoted(value.cut)}, since ' #' begins a comment; put quotes around all "
                "of it, or, for a comment, a blank after the '#'"
            )
            self._warn_at(value, message, rule)

    def _notice_at(self, node: Scalar, message: str, rule: str = "") -> None:
        self.report.add(Problem(self._file.path, node.line, node.column, message, rule, Severity.NOTICE))

    def _warn(self, path: str, line: int, column: int, message: str, rule: str) -> None:
        self.report.add(Problem(path, line, column, message, rule, Severity.WARNING))

    def _warn_at(self, node: Scalar, message: str, rule: str) -> None:
        self._warn(self._file.path, node.line, node.column, message, rule)

    # --- Rules ------------------------------------------------------------------------------------------------------

    def _check_rule(self, written: WrittenRule) -> None:
        rule = written.rule
        self._check_expiry(written)
        for field in ("action", "note"):
            if (item := written.node.items.get(field)) is not None:
                self._check_cut(item, rule.name)
        excepted = always_excepted(written)
        if excepted is not None:
            message = f"no request can reach it: its except holds wherever its match does ({excepted.condition.name})"
            self._warn_at(excepted.key, message, rule.name)
        if rule.action.verb is Verb.REJECT:
            for one in written.match:
                if one.condition.kind is Kind.STATUS and any(Status.ERROR in entries for entries in _texts(one)):
                    message = (
                        "under reverse_dns: error a REJECT is answered DEFER, since a failure of DNS is temporary; "
                        "give it a DEFER rule of its own"
                    )
                    self._warn_at(one.key, message, rule.name)
        if not rule.observe:
            self._check_forgeable(written)
        for one in (*written.match, *written.exceptions):
            self._check_values(one, rule.name)

    def _check_expiry(self, written: WrittenRule) -> None:
        rule = written.rule
        if notice := expiry_notice(rule, self._today):
            report = self._warn_at if rule.expired(self._today) else self._notice_at
            report(written.key("expires"), notice, rule.name)

    def _check_forgeable(self, written: WrittenRule) -> None:
        rule = written.rule
        if rule.action.verb is not Verb.DUNNO:
            for one in written.exceptions:
                if one.condition.subject in FORGEABLE_SUBJECTS:
                    message = f"this exemption rests only on {one.condition.name}, which anyone can forge"
                    self._warn_at(one.key, message, rule.name)
        elif all(one.condition.subject in FORGEABLE_SUBJECTS for one in written.match):
            names = " and ".join(one.condition.name for one in written.match)
            message = f"this exemption rests only on {names}, which anyone can forge"
            self._warn_at(written.key("match"), message, rule.name)

    # --- Values -----------------------------------------------------------------------------------------------------

    def _check_values(self, one: WrittenCondition, rule: str) -> None:
        name, form = one.condition.name, one.type.form
        named: set[str] = set()
        for value, definition in one.lists:
            if definition.name in named:
                self._warn_at(value, f"{name}: list {quoted(definition.name)} is named twice", rule)
            named.add(definition.name)
            source = definition.file.path if definition.file is not None else f"${definition.name}"
            if (source, form) not in self._looked_at:
                self._looked_at.add((source, form))
                entries = definition.parse(form, rule, name, self.report)
                self._check_entries(form, entries, definition.entries, f"{name}: list {quoted(definition.name)}", rule)
        if one.values:
            path = self._file.path
            inline = [Entry(value.text, path, value.line, value.column) for value in one.values]
            self._check_entries(form, one.collections[0], lambda: iter(inline), name, rule)
        self._check_literal(one, rule)
        networks = [entries for entries in one.collections if isinstance(entries, Networks)]
        for version in together_everything(networks):
            message = f"{name}: these networks together are every {version} address there is"
            self._warn_at(one.key, message, rule)

    def _check_literal(self, one: WrittenCondition, rule: str) -> None:
        """`helo_name: [192.0.2.1]`, which YAML reads as a list."""
        if one.type.form is Form.HELO_NAME and one.is_bracketed and len(one.values) == 1:
            (value,) = one.values
            if _ADDRESS.fullmatch(value.text):
                message = (
                    f"{one.condition.name}: YAML reads the brackets as a list, so this is the name {value.text}; for "
                    f"the address literal write '[{value.text}]' in quotes"
                )
                self._warn_at(value, message, rule)

    def _check_entries(
        self, form: Form, entries: Entries, written: Callable[[], Iterable[Entry]], using: str, rule: str
    ) -> None:
        """`written` reads the entries as they stand in the file."""
        if _has_duplicates(entries):
            self._report_duplicates(form, [*written()], using, rule)
        if isinstance(entries, Networks) and _has_everything(entries):
            for entry in written():
                if entry.text.endswith("/0"):
                    version = "IPv6" if ":" in entry.text else "IPv4"
                    self._warn_entry(entry, f"{using}: {quoted(entry.text)} is every {version} address there is", rule)
        if form is Form.EXPRESSION:
            for entry in written():
                for complaint in complaints(entry.text):
                    self._warn_entry(entry, f"{using}: {complaint}", rule)

    def _report_duplicates(self, form: Form, written: Sequence[Entry], using: str, rule: str) -> None:
        lines: dict[object, int] = {}
        for entry, key in zip(written, entry_keys(form, [entry.text.encode() for entry in written]), strict=True):
            if key in lines:
                message = f"{using}: {quoted(entry.text)} is a duplicate (first at line {lines[key]})"
                self._warn_entry(entry, message, rule)
            else:
                lines[key] = entry.line

    def _warn_entry(self, entry: Entry, message: str, rule: str) -> None:
        self._warn(entry.path, entry.line, entry.column, message, rule)


def _texts(one: WrittenCondition) -> Iterator[Sequence[bytes] | Sequence[str]]:
    return (entries for entries in one.collections if not isinstance(entries, Networks))


def _has_duplicates(entries: Entries) -> bool:
    if isinstance(entries, Networks):
        return len(set(entries.v4)) < len(entries.v4) or len(set(entries.v6)) < len(entries.v6)
    return len(set(entries)) < len(entries)


def _has_everything(networks: Networks) -> bool:
    return 0 in networks.v4 or 0 in networks.v6  # a first address of 0 and a prefix length of 0
