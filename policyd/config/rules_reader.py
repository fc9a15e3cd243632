"""Reads rules.yaml with its lists, builds the `Ruleset`, and reports every problem.

Reading goes on after a problem, so that one run shows all of them; the index is built only if there was none. The
result (`RulesFile`) also has the line of each part, for the warnings and the tools.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import re2

from policyd.config.actions import ActionError, parse_action
from policyd.config.checks.never_matches import why_impossible
from policyd.config.checks.ruleset_tests import read_tests, run_tests
from policyd.config.conditions import CONDITIONS, DATABASE_OF, KNOWN_VALUES, UNPROVEN, Form
from policyd.config.counters import read_counters, read_greylist
from policyd.config.databases import DatabaseInfo, DatabaseKind, read_databases
from policyd.config.dates import parse_date
from policyd.config.definition_reader import NAME_PATTERN, TRUTHS
from policyd.config.dns_list import Ask
from policyd.config.dns_lists import read_dns_lists
from policyd.config.files import (
    MAX_LIST_BYTES,
    MAX_RULES_BYTES,
    ListChangedError,
    OversizedError,
    UnreadableError,
    read_dated,
)
from policyd.config.in_force import HASH_DIGITS, Data, LoadedFile, Text, file_hash
from policyd.config.list_sources import checked_at, late_message, late_since, read_source
from policyd.config.lists import ListDefinition, ListFile, parse_values
from policyd.config.other_words import meant_condition
from policyd.config.outline import outline_of
from policyd.config.problems import Problem, Severity, did_you_mean, quoted
from policyd.config.public_suffixes import registrable_domains
from policyd.config.written import RulesFile, WrittenCondition, WrittenRule
from policyd.config.yaml_tree import Mapping, Scalar, Sequence, describe, parse_yaml
from policyd.core.index import Counter, Counts, Ruleset
from policyd.core.owners import Owners
from policyd.core.protocol import ATTRIBUTES
from policyd.core.ruleset import DEFAULT_RULE, Action, Condition, Kind, Rule, Subject, Verb
from policyd.core.tables import LongList, Networks
from policyd.memory.window import MAX_DISTINCT
from policyd.tables.build import build_tables
from policyd.tables.index import build_index

if TYPE_CHECKING:
    import datetime
    from collections.abc import Collection, Iterable, Iterator
    from collections.abc import Mapping as Mapping_

    from policyd.config.conditions import ConditionType
    from policyd.config.list_sources import Source
    from policyd.config.problems import Report
    from policyd.config.yaml_tree import Item, Node
    from policyd.core.public_suffix import RegistrableDomains
    from policyd.core.tables import Entries
    from policyd.tables.index import MakeTables
    from policyd.tables.kept import TableStore

TOP_KEYS = ("mode", "databases", "lists", "dns_lists", "counters", "greylist", "rules", "default", "tests")
RULE_KEYS = ("name", "match", "except", "action", "mode", "expires", "note")
LIST_KEYS = ("file", "allow_empty", "local", "from")
MODES = ("enforce", "observe")

# Maximum characters of a path in a message. A path may have 4,096 bytes (PATH_MAX, limits.h), an invalid path more.
MAX_PATH_SHOWN = 1000

_NAME = re.compile(NAME_PATTERN)
_AT_LEAST = re.compile(r"[1-9][0-9]?")

# Values of `ask` with which a DNS list may let mail through: the connection proves the client's address, DNS its name.
PROVEN_ASKS = (Ask.CLIENT_ADDRESS, Ask.HOSTNAME)


def read_rules(
    path: str,
    report: Report,
    *,
    keep_lists: bool = True,
    text: Text | None = None,
    list_files: Mapping_[str, str] | None = None,
    tables: TableStore | None = None,
    data: Data | None = None,
    databases: bool = True,
    database_files: Mapping_[str, str] | None = None,
    databases_in_force: Collection[DatabaseInfo] = (),
) -> RulesFile | None:
    """Reads a rules file (or its `text`) and its lists, builds the ruleset, and runs the tests inside it.

    Returns None if the file cannot be read or is not YAML, or if a list file changed meanwhile. Adds all problems to
    the report, which must be empty before. Without `keep_lists`, the bytes of list files are freed after parsing.
    `list_files` maps the name of a list to the file to read instead of its own; `database_files` does so for the path
    of a database. `tables` has the tables of the ruleset in force, and gets the tables of this ruleset. With `data`,
    files are not read, databases are left out, and tests are not run. Without `databases`, the declared databases are
    not read and are assumed to be valid. Databases in `databases_in_force` are not parsed again if their files have not
    changed.
    """
    try:
        content, modified = read_dated(path, MAX_RULES_BYTES) if text is None else (bytes(text), text.modified)
    except UnreadableError as error:
        report.add(Problem(path, 0, 0, str(error), severity=Severity.UNREADABLE))
        return None
    except OversizedError as error:
        report.add(Problem(path, 0, 0, str(error)))
        return None
    root = parse_yaml(content, path, report)
    if root is None:
        return None
    reader = _Reader(
        path,
        content,
        report,
        list_files or {},
        tables=tables,
        data=data,
        databases=databases,
        database_files=database_files or {},
        databases_in_force=databases_in_force,
    )
    try:
        rules_file = reader.read(root)
        rules_file.text = Text(content, modified)
        rules_are_right = not report
        reader.read_tests(root)
        if rules_are_right:
            reader.add_files_and_outline(root)
            reader.set_ends()
        if not keep_lists and data is None:
            reader.forget_list_files()
        ruleset = reader.build() if rules_are_right else None
    except ListChangedError as error:
        report.add(Problem(error.path, 0, 0, str(error)))
        return None
    if ruleset is not None:
        rules_file.index = ruleset.index
        if data is None:
            run_tests(rules_file.tests, ruleset, path, report)  # also if a test cannot be read
        if not report:
            rules_file.ruleset = ruleset
    return rules_file


class _Reader:
    """Reads one rules file."""

    def __init__(
        self,
        path: str,
        content: bytes,
        report: Report,
        list_files: Mapping_[str, str],
        *,
        tables: TableStore | None,
        data: Data | None,
        databases: bool,
        database_files: Mapping_[str, str],
        databases_in_force: Collection[DatabaseInfo],
    ) -> None:
        self._now = time.time()
        self._data = data
        self._reads_databases = databases and data is None
        self._path = path
        self._tables = tables
        self._known_lists = {} if tables is None else tables.lengths()
        self._replaced = list_files
        self._replaced_databases = database_files
        self._databases_in_force = databases_in_force
        self._report = report
        self._hash = hashlib.sha256(content)
        self._file = RulesFile(path)
        self._list_files: dict[str, ListFile | None] = {}
        self._hashed: set[str] = set()  # list files that are part of the ruleset's hash
        self._missing: set[str] = set()  # missing list files that are allowed to be missing
        self._conditions = 0
        self._declared: set[str] = set()  # the kinds of the declared databases
        self._rule = ""  # the name of the rule that is being read, for its problems
        self._prefix = ""  # begins each message: a list, `default`, or the number of a rule without a name

    def read(self, root: Node) -> RulesFile:
        if not isinstance(root, Mapping):
            self._add(root, f"expected a ruleset (rules: and other keys), not {describe(root)}")
            return self._file
        self._file.root = root
        self._check_keys(root, TOP_KEYS)
        if (databases := root.get("databases")) is not None:
            if self._reads_databases:
                self._file.databases, self._file.database_definitions = read_databases(
                    databases,
                    self._path,
                    self._report,
                    replaced=self._replaced_databases,
                    in_force=self._databases_in_force,
                )
            self._declared = {item.key.text for item in databases} if isinstance(databases, Mapping) else set()
        if (lists := root.get("lists")) is not None:
            self._read_lists(lists)
        if (dns_lists := root.get("dns_lists")) is not None:
            self._file.dns_lists = read_dns_lists(
                dns_lists, self._path, self._report, in_force=None if self._data is None else self._data.dns_lists
            )
        if (counters := root.get("counters")) is not None:
            self._file.counters = read_counters(counters, self._path, self._report, self._read_where)
        if (greylist := root.get("greylist")) is not None:
            self._file.greylist = read_greylist(greylist, self._path, self._report)
        self._file.observe = self._read_mode(root)
        self._read_all_rules(root)
        default = root.get("default")
        if default is not None:
            self._prefix = "default: "
            self._file.default = self._read_action(default)[1] or self._file.default
            if self._file.default.verb is Verb.GREYLIST:
                self._add(default, "GREYLIST cannot be the default: name the suspects in a rule")
            self._prefix = ""
        return self._file

    def read_tests(self, root: Node) -> None:
        """Reads the tests inside the ruleset, which name its rules."""
        tests = root.get("tests") if isinstance(root, Mapping) else None
        if isinstance(root, Mapping) and tests is not None:
            self._file.tests = read_tests(
                tests,
                self._path,
                self._report,
                rules=self._names_of_rules(root),
                dns_lists=self._file.dns_lists.keys(),
                counters=self._file.counters.keys(),
            )

    def add_files_and_outline(self, root: Node) -> None:
        """Adds the files that were read, and the outline. Call it only if nothing was wrong."""
        serves: dict[str, list[str]] = {}
        every: dict[str, float] = {}  # seconds, for each file that is fetched
        for definition in self._file.lists.values():
            if definition.file is not None:
                serves.setdefault(definition.file.path, []).append(definition.name)
                if definition.source is not None:
                    every[definition.file.path] = definition.source.every
        assert self._file.text is not None
        rules = LoadedFile(self._path, "rules", file_hash(self._file.text.content), self._file.text.modified)
        lists = [
            LoadedFile(
                path,
                "list",
                file.hash,
                file.modified,
                tuple(serves[path]),
                file.count,
                hashed=path in self._hashed,
                every=every.get(path),
                missing=path in self._missing,
            )
            for path, file in self._list_files.items()
            if file is not None and (path not in self._missing or path in every)
        ]
        self._file.files = [rules, *lists]
        self._file.outline = outline_of(self._file, root)

    def forget_list_files(self) -> None:
        """Frees the bytes of list files."""
        for list_file in self._list_files.values():
            if list_file is not None:
                list_file.forget_content()

    def build(self) -> Ruleset | None:
        """Builds the ruleset; reports entries that do not fit into the index. Call it only if nothing was wrong."""
        written = self._file.rules
        rules = tuple(rule.rule for rule in written)
        entries = {
            condition.condition.number: condition.collections
            for rule in written
            for condition in (*rule.match, *rule.exceptions)
        }
        dns_lists = tuple(
            dns_list.definition for dns_list in self._file.dns_lists.values() if dns_list.used and dns_list.definition
        )
        hostname_lists = frozenset(dns_list.name for dns_list in dns_lists if dns_list.ask is Ask.HOSTNAME)
        counters = [counter for counter in self._file.counters.values() if counter.definition is not None]
        entries |= {
            condition.condition.number: condition.collections for counter in counters for condition in counter.where
        }
        counter_conditions = [[condition.condition for condition in counter.where] for counter in counters]
        try:
            is_generic = any(c.kind is Kind.GENERIC for rule in rules for c in (*rule.match, *rule.exceptions))
            domains = self._domains() if is_generic else None
            make_tables: MakeTables = build_tables
            if self._tables is not None:
                make_tables = partial(build_tables, make_list_table=self._tables.make_list_table)
            index = build_index(
                rules, entries, make_tables, hostname_lists, domains, counter_conditions=counter_conditions
            )
        except re2.error:
            message = (
                "all expressions on one attribute together are too large for RE2; shorten repetitions such as {1000}"
            )
            self._report.add(Problem(self._path, 0, 0, message))
            return None
        except ValueError as error:
            self._report.add(Problem(self._path, 0, 0, f"is too large to be indexed: {error}"))
            return None
        self._add_differences()
        if self._file.data is not None:
            self._file.data = self._file.data._replace(dns_lists=dns_lists, domains=domains)
        return Ruleset(
            rules,
            self._file.default,
            index,
            self._file.observe,
            self._hash.hexdigest()[:HASH_DIGITS],
            self._count(),
            dns_lists,
            self._owners(),
            tuple(Counter(counter.name, counter.definition, any_state=counter.any_state) for counter in counters),
            self._file.greylist if any(rule.action.verb is Verb.GREYLIST for rule in rules) else None,
        )

    def _domains(self) -> RegistrableDomains:
        if self._data is not None and self._data.domains is not None:
            return self._data.domains
        return registrable_domains()

    def _owners(self) -> Owners | None:
        databases = self._file.databases
        if not databases:
            return None
        asn, country = databases.get(DatabaseKind.ASN), databases.get(DatabaseKind.COUNTRY)
        return Owners(asn.records if asn is not None else None, country.records if country is not None else None)

    def _add_differences(self) -> None:
        """Adds to the outline how many entries each list has gained and lost, if its table was patched."""
        differences = {} if self._tables is None else self._tables.differences
        outline = self._file.outline
        for name, definition in self._file.lists.items():
            if outline is not None and definition.file is not None and definition.file.path in differences:
                outline.differences[name] = differences[definition.file.path]

    def _count(self) -> Counts:
        """Counts what was loaded, without AS numbers and countries; a list with several uses counts once."""
        lengths: dict[Kind, dict[int, int]] = defaultdict(dict)
        for rule in self._file.rules:
            for written in (*rule.match, *rule.exceptions):
                for collection in written.collections:
                    if written.condition.subject not in {Subject.ASN, Subject.COUNTRY}:
                        lengths[written.condition.kind][id(collection)] = len(collection)
        names = lengths[Kind.NAME] | lengths[Kind.DOMAIN] | lengths[Kind.VALUE]
        return Counts(
            len(self._file.rules),
            sum(lengths[Kind.NETWORK].values()),
            sum(names.values()),
            sum(lengths[Kind.EXPRESSION].values()),
        )

    # --- Problems ---------------------------------------------------------------------------------------------------

    def _add(self, node: Node, message: str) -> None:
        self._report.add(Problem(self._path, node.line, node.column, self._prefix + message, self._rule))

    def _will_be_shown(self) -> bool:
        """Whether the next problem will be printed, so that a suggestion, which is slow to find, is useful."""
        return self._report.room(self._path) > 0

    def _check_keys(self, node: Mapping, known: tuple[str, ...]) -> None:
        for item in node:
            key = item.key.text
            if key not in known:
                hint = did_you_mean(key, known)
                if not hint and key in CONDITIONS and known is RULE_KEYS:
                    hint = "; it is a condition, and belongs under match or except"
                hint = hint or f"; there are {', '.join(known)}"
                self._add(item.key, f"unknown key {quoted(key)}{hint}")

    def _text(self, item: Item, meaning: str) -> str | None:
        """Returns the text of a field. Reports a problem and returns None if it is not text."""
        value = item.value
        if isinstance(value, Scalar) and not value.missing:
            return value.text
        self._add(value, f"{item.key.text}: expected {meaning}, not {describe(value)}")
        return None

    # --- Lists ------------------------------------------------------------------------------------------------------

    def _read_lists(self, node: Node) -> None:
        if not isinstance(node, Mapping):
            self._add(node, f"lists: expected names with their entries, not {describe(node)}")
            return
        for item in node:
            key = item.key
            self._prefix = f"list {quoted(key.text)}: "
            if not _NAME.fullmatch(key.text):
                self._add(key, "this is not a name for a list; use letters, digits, '-', '_' and '.' only")
            definition = ListDefinition(key.text, self._path, key.line, key.column)
            self._file.lists[key.text] = definition
            self._read_list(definition, item.value)
        self._prefix = ""
        for definition in self._file.lists.values():
            if definition.source is not None:
                self._use_protected(definition.name, definition.source)

    def _use_protected(self, name: str, source: Source) -> None:
        """Marks the lists under `never` as used; reports names of lists that are not defined."""
        for each in source.never:
            protected = self._file.lists.get(each.text)
            if protected is not None:
                protected.used = True
            else:
                hint = did_you_mean(each.text, self._file.lists)
                message = f"list {quoted(name)}: from: never: list {quoted(each.text)} is not defined{hint}"
                self._add(each, message)

    def _read_list(self, definition: ListDefinition, node: Node) -> None:
        if isinstance(node, Mapping):
            self._read_list_file(definition, node)
            return
        values = node.items if isinstance(node, Sequence) else [node]
        if not values or (isinstance(node, Scalar) and node.missing):
            self._add(node, "has no entries; remove the list, or add entries")
        for value in values:
            if not isinstance(value, Scalar) or (value.missing and value is not node):
                self._add(value, f"expected an entry, not {describe(value)}")
            elif value.text.startswith("$$"):
                definition.values.append(Scalar(value.text[1:], value.line, value.column, value.plain))
            elif value.text.startswith("$"):
                self._add(value, f"{quoted(value.text)}: a list cannot contain another list; give the condition both")
            elif not value.missing:
                definition.values.append(value)

    def _read_list_file(self, definition: ListDefinition, node: Mapping) -> None:
        self._check_keys(node, LIST_KEYS)
        allow_empty = self._truth(node, "allow_empty")
        definition.local = self._truth(node, "local")
        if (written := node.items.get("from")) is not None:
            definition.source = read_source(written.value, self._path, self._prefix, self._report)
            if definition.local:
                self._add(written.key, "a list is either fetched (from) or written by this host (local), not both")
        is_manual = written is None and not definition.local  # kept by people, so the same on every host
        item = node.items.get("file")
        if item is None:
            self._add(node, "'file' is missing")
            return
        name = self._text(item, "the name of a file")
        if not name:
            if name == "":
                self._add(item.value, "file: expected the name of a file, not ''")
            return
        path = self._replaced.get(definition.name) or str(Path(self._path).parent / name)
        definition.file_path = path
        may_be_missing = definition.name not in self._replaced and (
            definition.local or (written is not None and checked_at(path) is None)
        )
        definition.file = file = self._list_file(path, item.value, may_be_missing=may_be_missing)
        if file is not None and path in self._missing and written is not None:
            message = "has not been fetched yet, so the list is empty; run policyd fetch"
            self._file.unfetched.append(Problem(path, 0, 0, f"{self._prefix}{message}", severity=Severity.WARNING))
        elif file is not None and definition.source is not None and definition.name not in self._replaced:
            since = late_since(path, definition.source.every, file.modified)
            if since is not None:
                message = late_message(f"list {quoted(definition.name)}", since)
                self._file.unfetched.append(Problem(path, 0, 0, message, severity=Severity.WARNING))
        if file is not None and is_manual and path not in self._hashed:
            self._hashed.add(path)
            self._hash.update(file.content)
        if file is not None and self._data is None:
            file.forget_known_content()
        if file is not None and not (allow_empty or path in self._missing) and not file.has_entries():
            message = "has no entries, so the list would have no effect; if that is intended, write allow_empty: true"
            self._report.add(Problem(path, 1, 1, f"{self._prefix}{message}"))

    def _truth(self, node: Mapping, name: str) -> bool:
        """The value of a boolean key; false if it is absent."""
        item = node.items.get(name)
        text = None if item is None else self._text(item, "true or false")
        if item is not None and text is not None and text not in TRUTHS:
            self._add(item.value, f"{name}: {quoted(text)} is neither true nor false")
        return TRUTHS.get(text or "", False)

    def _list_file(self, path: str, node: Node, *, may_be_missing: bool) -> ListFile | None:
        """Reads a list file once. If it cannot be used, reports that for the first list that names it; returns None.

        A missing file that is allowed to be missing has no entries.
        """
        if path not in self._list_files:
            self._list_files[path] = None
            if self._data is not None:
                self._list_files[path] = file = self._list_file_in_force(path)
                return file
            try:
                content, modified = read_dated(path, MAX_LIST_BYTES)
            except (UnreadableError, OversizedError) as error:
                if may_be_missing and isinstance(error.__cause__, FileNotFoundError):
                    self._missing.add(path)
                    self._list_files[path] = ListFile(path, b"", 0.0)
                    return self._list_files[path]
                shown = path if len(path) <= MAX_PATH_SHOWN else path[: MAX_PATH_SHOWN - 3] + "..."
                self._add(node, f"{shown} {error}")
                return None
            if (nul := content.find(b"\0")) >= 0:
                line = content.count(b"\n", 0, nul) + 1
                message = "has a NUL byte; a list is a text file in UTF-8"
                self._report.add(Problem(path, line, nul - content.rfind(b"\n", 0, nul), f"{self._prefix}{message}"))
                return None
            file = self._list_files[path] = ListFile(path, content, modified, self._known_lists, self._now)
            for line, column, end in file.wrong_ends:
                message = f"expires: {quoted(end)} is not an end; write it as 2026-12-06 or 2026-12-06T18:30Z (UTC)"
                self._report.add(Problem(path, line, column, f"{self._prefix}{message}"))
        return self._list_files[path]

    def _list_file_in_force(self, path: str) -> ListFile:
        """Returns the list file of the ruleset in force, without the entries that have ended by now."""
        assert self._data is not None
        text = self._data.lists.get(path)
        if text is None:
            self._missing.add(path)
            return ListFile(path, b"", 0.0)
        return ListFile(path, bytes(text), text.modified, self._known_lists, self._now)

    def set_ends(self) -> None:
        """Sets when the next entry ends; if any entry will end, keeps the bytes of all list files.

        Raises ListChangedError.
        """
        files = {
            path: file for path, file in self._list_files.items() if file is not None and path not in self._missing
        }
        self._file.next_end = min((file.next_end for file in files.values() if file.next_end is not None), default=None)
        if self._file.next_end is not None:
            self._file.data = Data({path: Text(file.content, file.modified) for path, file in files.items()})

    # --- Rules ------------------------------------------------------------------------------------------------------

    def _names_of_rules(self, root: Mapping) -> set[str]:
        """The names of all rules, including wrong rules."""
        rules = root.get("rules")
        nodes = rules.items if isinstance(rules, Sequence) else []
        names = (node.get("name") for node in nodes if isinstance(node, Mapping))
        return {name.text for name in names if isinstance(name, Scalar)}

    def _read_all_rules(self, root: Mapping) -> None:
        rules = root.get("rules")
        if rules is None:
            self._add(root, "'rules' is missing (for none, write rules: [])")
            return
        if not isinstance(rules, Sequence):
            self._add(rules, f"rules: expected a list of rules, not {describe(rules)}")
            return
        lines: dict[str, int] = {}
        for number, node in enumerate(rules.items):
            self._rule, self._prefix = "", f"rule number {number + 1}: "
            if isinstance(node, Mapping):
                written = self._read_rule(number, node, lines)
                if written is not None:
                    self._file.rules.append(written)
            else:
                self._add(node, f"expected a rule (name, match, action), not {describe(node)}")
        self._rule = self._prefix = ""

    def _read_rule(self, number: int, node: Mapping, lines: dict[str, int]) -> WrittenRule | None:
        """Reads one rule. Returns None without a condition or a valid action.

        `lines` has the line of each earlier name.
        """
        name = self._read_name(node, lines)
        self._check_keys(node, RULE_KEYS)
        verb = action = None
        if (written_action := node.get("action")) is not None:
            verb, action = self._read_action(written_action)
        else:
            self._add(node, "'action' is missing")
        expires = self._read_expires(node)
        note = ""
        if (item := node.items.get("note")) is not None:
            note = self._text(item, "text") or ""
        match = self._read_conditions(node, "match")
        exceptions = self._read_conditions(node, "except")
        if not match and "match" not in node.items:
            self._add(node, "'match' is missing; a rule needs at least one condition")
        observe = self._read_mode(node)
        if verb is not None:
            exempting, where = _exempting(verb, match, exceptions)
            self._check_unproven(exempting, where)
            self._check_listed(exempting, where)
            self._check_counter(exempting, where)
        impossible = why_impossible(verb, match)
        if impossible is not None:
            self._add(impossible[0].key, f"match can never hold: {impossible[1]}")
        if action is None or not match:
            return None
        rule = Rule(
            name or "",
            number,
            tuple(condition.condition for condition in match),
            tuple(condition.condition for condition in exceptions),
            action,
            observe,
            expires,
            note,
            node.line,
        )
        return WrittenRule(rule, node, match, exceptions)

    def _read_name(self, node: Mapping, lines: dict[str, int]) -> str | None:
        item = node.items.get("name")
        if item is None:
            self._add(node, "'name' is missing")
            return None
        name = self._text(item, "text")
        if name is None:
            return None
        if not _NAME.fullmatch(name):
            message = "is not a name for a rule; use letters, digits, '-', '_' and '.' only"
            self._add(item.value, f"{quoted(name)} {message}")
            return None
        self._rule, self._prefix = name, ""
        if name == DEFAULT_RULE:
            self._add(item.value, f"'{DEFAULT_RULE}' is the name of the default action; choose another name")
        elif name in lines:
            self._add(item.value, f"duplicate name (first at line {lines[name]})")
        else:
            lines[name] = item.value.line
        return name

    def _read_action(self, node: Node) -> tuple[Verb | None, Action | None]:
        """Reads an action. If it is wrong, returns only its verb, if that is valid."""
        if not isinstance(node, Scalar):
            self._add(node, f"action: expected text, not {describe(node)}")
            return None, None
        try:
            action = parse_action(node.text)
        except ActionError as error:
            self._add(node, str(error))
            return error.verb, None
        return action.verb, action

    def _read_mode(self, node: Mapping) -> bool:
        """Whether the mode is `observe`."""
        item = node.items.get("mode")
        mode = None if item is None else self._text(item, "enforce or observe")
        if item is not None and mode is not None and mode not in MODES:
            self._add(item.value, f"mode: {quoted(mode)} is neither enforce nor observe{did_you_mean(mode, MODES)}")
        return mode == "observe"

    def _read_expires(self, node: Mapping) -> datetime.date | None:
        item = node.items.get("expires")
        text = None if item is None else self._text(item, "a date")
        if item is None or text is None:
            return None
        date = parse_date(text)
        if date is None:
            self._add(item.value, f"expires: {quoted(text)} is not a date; write it as 2027-03-31")
        return date

    def _check_unproven(self, exempting: list[WrittenCondition], where: str) -> None:
        """Checks the first principle for names that their owner chooses: they must not let mail through."""
        for condition in exempting:
            name = condition.condition.name
            if name in UNPROVEN:
                instead = ""
                if name.startswith("reverse_client_name"):
                    verified = name.replace("reverse_client_name", "hostname")
                    instead = f"; write {verified}, which sees verified names only"
                self._add(
                    condition.key,
                    f"{name} is not allowed in {where}: {UNPROVEN[name]}, and a lie must not let mail through{instead}",
                )

    def _check_listed(self, exempting: list[WrittenCondition], where: str) -> None:
        """Checks the first principle for DNS lists: a value that the client chooses must not let it through."""
        for condition in exempting:
            for name in condition.dns_list_names:
                written = self._file.dns_lists.get(name)
                definition = written.definition if written is not None else None
                if definition is not None and definition.ask not in PROVEN_ASKS:
                    self._add(
                        condition.key,
                        f"listed: {quoted(name)} looks up {definition.ask}, so it is not allowed in {where}: the "
                        "client chooses that itself, and a lie must not let mail through; write a list that looks up "
                        "client_address or hostname",
                    )

    def _check_counter(self, exempting: list[WrittenCondition], where: str) -> None:
        """Checks the second principle for counters: a lost count must not reject."""
        for condition in exempting:
            if condition.condition.kind is Kind.COUNTER:
                self._add(
                    condition.key,
                    f"counter is not allowed in {where}: after a restart, or while the memory is unavailable, "
                    "counts are low, and a failure would reject",
                )

    def _read_where(self, node: Mapping) -> list[WrittenCondition]:
        """Reads the conditions under `where` of a counter."""
        return [*self._read_each_condition(node)]

    # --- Conditions -------------------------------------------------------------------------------------------------

    def _read_conditions(self, rule: Mapping, key: str) -> list[WrittenCondition]:
        item = rule.items.get(key)
        if item is None:
            return []
        if not isinstance(item.value, Mapping):
            self._add(item.value, f"{key}: expected conditions (key: value), not {describe(item.value)}")
            return []
        if not item.value.items:
            self._add(item.value, f"{key}: at least one condition is needed")
        return [*self._read_each_condition(item.value)]

    def _read_each_condition(self, conditions: Mapping) -> Iterator[WrittenCondition]:
        for item in conditions:
            condition_type = CONDITIONS.get(item.key.text)
            if condition_type is None:
                name = item.key.text
                hint = _suggest_condition(name) if self._will_be_shown() else ""
                self._add(item.key, f"unknown condition {quoted(name)}{hint}")
                continue
            written = self._read_condition(condition_type, item)
            if written is not None:
                yield written

    def _read_condition(self, condition_type: ConditionType, item: Item) -> WrittenCondition | None:
        name = condition_type.name
        if name in DATABASE_OF and DATABASE_OF[name] not in self._declared:
            kind = DATABASE_OF[name]
            meaning = (
                "which system announces an address" if kind == DatabaseKind.ASN else "in which country an address is"
            )
            message = f"{name} needs a database that says {meaning}; add 'databases: {{{kind}: FILE}}' at the top"
            self._add(item.key, message)
        value, at_least = item.value, 1
        if condition_type.form is Form.DNS_LIST and isinstance(value, Mapping):
            names, at_least = self._read_at_least(value)
            if names is None:
                return None
            value = names
        nodes = value.items if isinstance(value, Sequence) else [value]
        if not nodes:
            self._add(item.value, f"{name}: the list is empty, so it can never hold")
            return None
        written, values, lists = self._read_values(name, nodes)
        form, report = condition_type.form, self._report
        collections = [definition.parse(form, self._rule, self._prefix + name, report) for _, definition in lists]
        if values:
            inline = parse_values(
                form, values, path=self._path, rule=self._rule, using=self._prefix + name, report=report
            )
            collections.insert(0, inline)
        if name in KNOWN_VALUES:
            self._check_known(name, values)
        if form is Form.COUNTER:
            self._check_comparisons(item, collections)
        if form is Form.DNS_LIST:
            collections = [self._dns_list_names(item, written, at_least)]
        number = self._conditions
        self._conditions += 1
        condition = Condition(name, condition_type.subject, condition_type.kind, tuple(written), number, at_least)
        is_bracketed = isinstance(item.value, Sequence) and item.value.flow
        return WrittenCondition(condition, condition_type, item.key, values, lists, collections, is_bracketed)

    def _read_values(
        self, name: str, nodes: Iterable[Node]
    ) -> tuple[list[str], list[Scalar], list[tuple[Scalar, ListDefinition]]]:
        """The values of a condition: all values as written, the values in place, and the lists."""
        written: list[str] = []
        values: list[Scalar] = []
        lists: list[tuple[Scalar, ListDefinition]] = []
        for node in nodes:
            if not isinstance(node, Scalar):
                self._add(node, f"{name}: expected a value, not {describe(node)}")
            elif node.missing:
                self._add(node, f"{name}: there is no value; for an empty one write ''")
            else:
                written.append(node.text)
                if node.text.startswith("$$"):
                    values.append(Scalar(node.text[1:], node.line, node.column, node.plain))
                elif not node.text.startswith("$"):
                    values.append(node)
                elif (definition := self._file.lists.get(node.text[1:])) is not None:
                    definition.used = True
                    lists.append((node, definition))
                else:
                    hint = did_you_mean(node.text[1:], self._file.lists) if self._will_be_shown() else ""
                    hint = hint or "; a literal '$' is written '$$'"
                    self._add(node, f"{name}: list {quoted(node.text[1:])} is not defined{hint}")
        return written, values, lists

    def _read_at_least(self, node: Mapping) -> tuple[Node | None, int]:
        """Reads `{at_least: N, of: [...]}`: returns the names (None if they are missing) and N."""
        self._check_keys(node, ("at_least", "of"))
        number, names = node.items.get("at_least"), node.get("of")
        at_least = 1
        if number is None:
            self._add(node, "listed: 'at_least' is missing: how many of the lists must say so")
        elif (text := self._text(number, "a number")) is not None:
            if _AT_LEAST.fullmatch(text):
                at_least = int(text)
            else:
                self._add(number.value, f"at_least: {quoted(text)} is not a number from 1 to 99")
        if names is None:
            self._add(node, "listed: 'of' is missing: the names of the lists")
        elif isinstance(names, Mapping):
            self._add(names, f"of: expected names of DNS lists, not {describe(names)}")
            names = None
        return names, at_least

    def _dns_list_names(self, item: Item, values: list[str], at_least: int) -> list[str]:
        """Returns the names under `listed`, each once and in order; reports undefined names, and too few names."""
        names: dict[str, None] = {}
        for text in values:
            definition = self._file.lists.get(text[1:]) if text.startswith("$") else None
            names.update(
                dict.fromkeys([text] if definition is None else (entry.text for entry in definition.entries()))
            )
        if len(names) < at_least:
            self._add(item.value, f"listed: at_least {at_least} of {len(names)} can never hold")
        for name in names:
            if not _NAME.fullmatch(name):
                continue  # already reported
            written = self._file.dns_lists.get(name)
            if written is not None:
                written.used = True
            else:
                hint = did_you_mean(name, self._file.dns_lists) or "; define it under dns_lists"
                self._add(item.value, f"listed: DNS list {quoted(name)} is not defined{hint}")
        return [*names]

    def _check_comparisons(self, item: Item, collections: list[Entries]) -> None:
        """Reports counters that are not defined, and numbers that a counter cannot reach."""
        for entry in (
            str(text) for texts in collections if not isinstance(texts, Networks | LongList) for text in texts
        ):
            name, _, minimum = entry.rpartition(">=")
            written = self._file.counters.get(name)
            if written is None:
                hint = did_you_mean(name, self._file.counters) or "; define it under counters"
                self._add(item.value, f"counter: counter {quoted(name)} is not defined{hint}")
                continue
            written.used = True
            definition = written.definition
            if definition is not None and definition.distinct is not None and int(minimum) > MAX_DISTINCT:
                self._add(
                    item.value,
                    f"counter: {quoted(name)} counts distinct values, and can be compared with "
                    f"{MAX_DISTINCT - 1} at most",
                )

    def _check_known(self, name: str, values: list[Scalar]) -> None:
        known = KNOWN_VALUES[name]
        for value in values:
            if value.text.upper() not in known and value.text.lower() not in known:
                hint = did_you_mean(value.text.upper(), known) or f"; Postfix sends {', '.join(known)}"
                self._add(value, f"{name}: {quoted(value.text)} can never hold{hint}")


def _exempting(
    verb: Verb, match: list[WrittenCondition], exceptions: list[WrittenCondition]
) -> tuple[list[WrittenCondition], str]:
    """Returns the conditions of a rule that let mail through, and where they stand, for a message."""
    if verb is Verb.DUNNO:
        return match, "the match of a DUNNO rule"
    return exceptions, f"the except of a {verb} rule"


def _suggest_condition(name: str) -> str:
    """Suggests what to write instead of a condition that does not exist."""
    stem, _, ending = name.rpartition("_")
    if stem in ATTRIBUTES and ending in {"suffix", "domain"}:
        if stem in {"client_name", "reverse_client_name"}:
            return "; did you mean 'hostname_suffix'?"
        return f"; there are {stem} and {stem}_regex"
    return meant_condition(name) or did_you_mean(name, CONDITIONS)
