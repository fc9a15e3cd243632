"""Finds likely mistakes in a ruleset without errors: the warnings and notices of `policyd check`.

A warning is useful only if it can be trusted, so its statement is certain, even if the mistake is only likely. Lists
are checked in memory, and read again only to find the line of a mistake.
"""

from __future__ import annotations

import re
from itertools import chain, islice
from typing import TYPE_CHECKING

from policyd.config.checks.coverage import Coverage
from policyd.config.checks.regex_pitfalls import complaints
from policyd.config.checks.unreachable import always_excepted, unreachable
from policyd.config.conditions import FORGEABLE_SUBJECTS, Form
from policyd.config.durations import EXPIRY_NOTICE
from policyd.config.entries import entry_keys
from policyd.config.files import UnreadableError
from policyd.config.lists import WrittenEntry
from policyd.config.problems import Problem, Report, Severity, quoted
from policyd.config.yaml_tree import Scalar
from policyd.core.identity import Status
from policyd.core.ruleset import Kind, Verb
from policyd.core.tables import LongList, Networks, Repetitions
from policyd.tables.build import plain_entries

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

    from policyd.config.dns_lists import WrittenDnsList
    from policyd.config.written import RulesFile, WrittenCondition, WrittenRule
    from policyd.config.yaml_tree import Item
    from policyd.core.ruleset import Rule
    from policyd.core.tables import Entries
    from policyd.memory.definitions import CounterDefinition

_ADDRESS = re.compile(r"[0-9.]{7,15}|(ipv6:)?[0-9a-f:.]*:[0-9a-f:.]*", re.IGNORECASE)

# Parts of a counter's key that a client cannot forge for another client.
_OWN_PARTS = frozenset({"client_address", "client_network", "asn", "sasl_username", "ccert_fingerprint"})

# Expressions that every user name matches.
_ANY_USER = frozenset({".", ".+", ".*", "^.", "^.+", "^.+$", "^.*$"})

# Maximum number of a list's entries that are held as text at the same time.
CHUNK = 4096


def lint(rules_file: RulesFile, today: datetime.date, errors: Report | None = None) -> Report:
    """Returns all warnings and notices for a ruleset; `today` is the date in UTC.

    If the file has `errors`, returns only warnings that are certain despite them.
    """
    linter = _Linter(rules_file, today)
    if rules_file.index is not None:
        linter.run()
    elif errors is not None and errors.room(rules_file.path):
        linter.run_despite_errors({problem.rule for problem in errors.problems} | {""})
    return linter.report


def expiry_notice(rule: Rule, today: datetime.date) -> str:
    """Describes when a rule expires; empty if that is far off, or if the rule does not expire."""
    if rule.expires is None or rule.expires - today > EXPIRY_NOTICE:
        return ""
    days = (rule.expires - today).days
    if days <= 0:
        return f"expired on {rule.expires}, so it is skipped; remove it or set another date"
    return f"expires on {rule.expires}, in {days} {'day' if days == 1 else 'days'}"


def _lets_users_through(written: WrittenRule) -> bool:
    """Returns whether a rule lets every authenticated user through."""
    rule = written.rule
    return (
        rule.action.verb is Verb.DUNNO
        and not rule.observe
        and len(rule.match) == 1
        and not rule.exceptions
        and rule.match[0].name == "sasl_username_regex"
        and not _ANY_USER.isdisjoint(rule.match[0].values)
    )


class _Linter:
    """The checks of one ruleset."""

    def __init__(self, rules_file: RulesFile, today: datetime.date) -> None:
        self.report = Report()
        self._file = rules_file
        self._today = today
        # None if there are errors for which no index was built.
        self._coverage = None if rules_file.index is None else Coverage(rules_file.rules, rules_file.index)
        self._checked: set[tuple[str, Form]] = set()  # lists, each with the form of its entries

    def run(self) -> None:
        """Runs every check."""
        self._check_top()
        for written in self._file.rules:
            self._check_rule(written)
        assert self._coverage is not None
        for written, cover in unreachable(self._file.rules, self._coverage):
            message = f"no request can reach it: rule '{cover.rule.name}' (line {cover.rule.line}) always decides first"
            self._warn_at(written.key("name"), message, written.rule.name)
        for definition in self._file.lists.values():
            if not definition.used:
                message = f"list {quoted(definition.name)} is not used by any rule"
                self._warn(self._file.path, definition.line, definition.column, message, "")
        for dns_list in self._file.dns_lists.values():
            self._check_dns_list(dns_list)
        for counter in self._file.counters.values():
            if not counter.used:
                message = f"counter {quoted(counter.name)} is not used by any rule"
                self._warn(self._file.path, counter.line, counter.column, message, "")
        self._check_user_limits()

    def _check_user_limits(self) -> None:
        """Finds rules with counters of users below a rule that lets every authenticated user through."""
        exempting: WrittenRule | None = None
        for written in self._file.rules:
            if _lets_users_through(written):
                exempting = exempting or written
            for condition, counter in self._counters_of(written):
                if exempting is not None and any(part.name == "sasl_username" for part in counter.per):
                    message = (
                        f"counter {counter.name} counts users, and rule '{exempting.rule.name}' (line "
                        f"{exempting.rule.line}) lets users through first; move this rule above it"
                    )
                    self._warn_at(condition.key, message, written.rule.name)

    def _counters_of(self, written: WrittenRule) -> Iterator[tuple[WrittenCondition, CounterDefinition]]:
        """Yields the counters that a rule compares, each with its condition."""
        for condition in written.match:
            if condition.condition.kind is not Kind.COUNTER:
                continue
            for name in dict.fromkeys(
                str(entry).partition(">=")[0] for entries in _texts(condition) for entry in entries
            ):
                counter = self._file.counters.get(name)
                if counter is not None and counter.definition is not None:
                    yield condition, counter.definition

    def _check_counters(self, written: WrittenRule) -> None:
        """Finds rejections by a count that other clients can raise."""
        for condition, counter in self._counters_of(written):
            if not any(part.name in _OWN_PARTS for part in counter.per):
                message = (
                    f"other clients can raise counter {counter.name}, so that honest mail is rejected; add "
                    "client_address or client_network to its per, or write DEFER"
                )
                self._warn_at(condition.key, message, written.rule.name)

    def _check_dns_list(self, written: WrittenDnsList) -> None:
        name, definition, known = quoted(written.name), written.definition, written.known
        messages = []
        if not written.used:
            messages.append(f"DNS list {name} is not used by any rule, so it is neither asked nor tested")
        if definition is not None and known is not None and known.lists_names is definition.takes_addresses:
            kind, instead = "addresses", "client_address"
            if known.lists_names:
                kind, instead = "names", "hostname, helo_name or sender_domain"
            messages.append(f"DNS list {name}: {definition.shown_zone} lists {kind}; set ask to {instead}")
        if written.exposes_key:
            messages.append(
                f"DNS list {name}: the key is in this file; write {{key}} in its place, and the key into a key_file"
            )
        for message in messages:
            self._warn(self._file.path, written.line, written.column, message, "")

    def run_despite_errors(self, wrong: set[str]) -> None:
        """Checks each valid rule by itself: a comparison with rules that could not be read would be uncertain."""
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
        """Finds texts cut at a `#` that was probably not meant as a comment."""
        name, value = item.key.text, item.value
        if isinstance(value, Scalar) and value.cut and not value.text.upper().startswith("DUNNO"):
            message = (
                f"{name}: the text ends before {quoted(value.cut)}, because ' #' begins a comment; put quotes around "
                "the whole text, or a blank after the '#' if it is a comment"
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
        excepted = None if self._coverage is None else always_excepted(written, self._coverage)
        if excepted is not None:
            message = f"no request can reach it: its except holds wherever its match does ({excepted.condition.name})"
            self._warn_at(excepted.key, message, rule.name)
        if rule.action.verb is Verb.REJECT:
            for condition in written.match:
                if condition.condition.kind is Kind.STATUS and any(
                    Status.ERROR in entries for entries in _texts(condition)
                ):
                    message = (
                        "under reverse_dns: error a REJECT is answered DEFER, because a failure of DNS is temporary; "
                        "give it a DEFER rule of its own"
                    )
                    self._warn_at(condition.key, message, rule.name)
            self._check_counters(written)
        if not rule.observe:
            self._check_forgeable(written)
            self._check_weak(written)
        for condition in (*written.match, *written.exceptions):
            self._check_values(condition, rule.name)

    def _check_expiry(self, written: WrittenRule) -> None:
        rule = written.rule
        if notice := expiry_notice(rule, self._today):
            report = self._warn_at if rule.expired(self._today) else self._notice_at
            report(written.key("expires"), notice, rule.name)

    def _check_forgeable(self, written: WrittenRule) -> None:
        rule = written.rule
        if rule.action.verb is not Verb.DUNNO:
            for condition in written.exceptions:
                if condition.condition.subject in FORGEABLE_SUBJECTS:
                    message = f"this exemption rests only on {condition.condition.name}, which anyone can forge"
                    self._warn_at(condition.key, message, rule.name)
        elif all(condition.condition.subject in FORGEABLE_SUBJECTS for condition in written.match):
            names = " and ".join(condition.condition.name for condition in written.match)
            message = f"this exemption rests only on {names}, which anyone can forge"
            self._warn_at(written.key("match"), message, rule.name)

    def _check_weak(self, written: WrittenRule) -> None:
        """Finds rules with only one weak condition: the country, or a name that contains the address."""
        rule, verb = written.rule, written.rule.action.verb
        names = {condition.condition.name for condition in written.match}
        if verb in {Verb.REJECT, Verb.DUNNO} and names == {"country"}:
            what = "this exemption" if verb is Verb.DUNNO else "this REJECT"
            message = f"{what} rests only on country, for which public data are sometimes wrong; add a condition"
            self._warn_at(written.match[0].key, message, rule.name)
        if verb is Verb.REJECT and names == {"hostname_generic"}:
            message = (
                "this REJECT rests only on hostname_generic, and honest small servers have such names; "
                "add a condition, or write DEFER"
            )
            self._warn_at(written.match[0].key, message, rule.name)
        if verb is not Verb.DUNNO:
            for condition in written.exceptions:
                if condition.condition.name == "country":
                    message = "this exemption rests only on country, for which public data are sometimes wrong"
                    self._warn_at(condition.key, message, rule.name)

    # --- Values -----------------------------------------------------------------------------------------------------

    def _check_values(self, written: WrittenCondition, rule: str) -> None:
        name, form = written.condition.name, written.type.form
        named: set[str] = set()
        for value, definition in written.lists:
            if definition.name in named:
                self._warn_at(value, f"{name}: list {quoted(definition.name)} is named twice", rule)
            named.add(definition.name)
            source = definition.file.path if definition.file is not None else f"${definition.name}"
            if (source, form) not in self._checked:
                self._checked.add((source, form))
                entries = definition.parse(form, rule, name, self.report)
                using = f"{name}: list {quoted(definition.name)}"
                try:
                    self._check_entries(form, entries, definition.entries, using, rule)
                except UnreadableError as error:  # the file was read again to find the lines
                    self._warn(source, 0, 0, f"{using}: {error}", rule)
        if written.values:
            path = self._file.path
            inline = [WrittenEntry(value.text, path, value.line, value.column) for value in written.values]
            self._check_entries(form, written.collections[0], lambda: iter(inline), name, rule)
        self._check_literal(written, rule)
        if form is Form.NETWORK and self._coverage is not None:
            reported = {version for entries in written.collections for version in _covered_versions(entries)}
            for version in (4, 6):
                if version not in reported and self._coverage.is_every_address(written, version):
                    message = f"{name}: these networks together cover every IPv{version} address"
                    self._warn_at(written.key, message, rule)

    def _check_literal(self, written: WrittenCondition, rule: str) -> None:
        """Finds `helo_name: [192.0.2.1]`, which YAML reads as a list."""
        if written.type.form is Form.HELO_NAME and written.is_bracketed and len(written.values) == 1:
            (value,) = written.values
            if _ADDRESS.fullmatch(value.text):
                message = (
                    f"{written.condition.name}: YAML reads the brackets as a list, so this is the name {value.text}; "
                    f"for the address literal write '[{value.text}]' in quotes"
                )
                self._warn_at(value, message, rule)

    def _check_entries(
        self, form: Form, entries: Entries, written: Callable[[], Iterable[WrittenEntry]], using: str, rule: str
    ) -> None:
        """Checks entries; `written` reads them as written in the file."""
        repeated = _repeated(entries)
        if repeated.count:
            self._report_duplicates(form, written(), repeated, using, rule)
        if form is Form.NETWORK and _covered_versions(entries):
            for entry in written():
                if entry.text.endswith("/0"):
                    version = "IPv6" if ":" in entry.text else "IPv4"
                    self._warn_entry(entry, f"{using}: {quoted(entry.text)} covers every {version} address", rule)
        if form is Form.EXPRESSION:
            for entry in written():
                for complaint in complaints(entry.text):
                    self._warn_entry(entry, f"{using}: {complaint}", rule)

    def _report_duplicates(
        self, form: Form, written: Iterable[WrittenEntry], repeated: Repetitions, using: str, rule: str
    ) -> None:
        """Finds the lines of repeated entries, in the order of the file; counts those that will not be shown."""
        lines: dict[Hashable, int] = {}
        reported = 0
        entries = iter(written)
        while chunk := [*islice(entries, CHUNK)]:
            for entry, keys in zip(chunk, _keys(form, chunk), strict=True):
                key = next((key for key in keys if key in repeated.examples), None)
                if key is None:
                    continue
                if key not in lines:
                    lines[key] = entry.line
                    continue
                if not self.report.room(entry.path):
                    self.report.count_more(entry.path, repeated.count - reported)
                    return
                message = f"{using}: {quoted(entry.text)} is a duplicate (first at line {lines[key]})"
                self._warn_entry(entry, message, rule)
                reported += 1

    def _warn_entry(self, entry: WrittenEntry, message: str, rule: str) -> None:
        self._warn(entry.path, entry.line, entry.column, message, rule)


def _texts(written: WrittenCondition) -> Iterator[Sequence[bytes] | Sequence[str]]:
    return (entries for entries in written.collections if not isinstance(entries, Networks | LongList))


def _keys(form: Form, written: Sequence[WrittenEntry]) -> Iterator[Sequence[Hashable]]:
    """Yields the keys by which each entry is compared. A mail address outside ASCII has two forms."""
    for key in entry_keys(form, [entry.text.encode() for entry in written]):
        yield key if isinstance(key, tuple) and form is not Form.NETWORK else (key,)


def _repeated(entries: Entries) -> Repetitions:
    """Finds entries that repeat an entry above. For most long lists, building their tables has found them."""
    if isinstance(entries, LongList) and entries.repeated is not None:
        return entries.repeated
    plain = plain_entries(entries)
    keys: Iterable[Hashable]
    if isinstance(plain, Networks):
        keys = chain(((4, packed) for packed in plain.v4), ((6, packed) for packed in plain.v6))
    else:
        keys = plain
    repeated = Repetitions()
    seen: set[Hashable] = set()
    for key in keys:
        if key in seen:
            repeated.add(key)
        seen.add(key)
    return repeated


def _covered_versions(entries: Entries) -> set[int]:
    """The IP versions for which one of these networks covers every address (first address 0, length 0)."""
    blocks = [block for block in _read(entries) if isinstance(block, Networks)]
    return {version for block in blocks for version, packed in ((4, block.v4), (6, block.v6)) if 0 in packed}


def _read(entries: Entries) -> Iterable[Networks | Sequence[bytes] | Sequence[str]]:
    return entries.read() if isinstance(entries, LongList) else (entries,)
