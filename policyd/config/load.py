"""Loads settings and ruleset, for the daemon and the tools, with the line of every error.

`load` returns both, or raises `ConfigErrors` with every problem of both. This module keeps nothing between two loads.
"""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policyd.config.checks.owners import count_networks
from policyd.config.checks.permissions import exposed_files
from policyd.config.checks.warnings import lint
from policyd.config.databases import warnings_of
from policyd.config.files import (
    MAX_RULES_BYTES,
    MAX_SETTINGS_BYTES,
    OversizedError,
    UnreadableError,
    read_dated,
    read_file,
)
from policyd.config.garbage_collection import without_garbage_collection
from policyd.config.in_force import LoadedFile, Text, Texts, file_hash
from policyd.config.problems import ConfigErrors, Problem, Report, Severity, counted
from policyd.config.rules_reader import read_rules
from policyd.config.settings import Settings, read_settings, rules_path_of
from policyd.config.yaml_tree import parse_yaml

if TYPE_CHECKING:
    import datetime
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from policyd.config.databases import DatabaseInfo
    from policyd.config.in_force import Outline
    from policyd.config.lists import ListDefinition
    from policyd.config.settings import InetAddress, UnixAddress
    from policyd.config.written import RulesFile
    from policyd.core.index import Ruleset
    from policyd.tables.kept import TableStore


@dataclass(frozen=True, slots=True)
class Loaded:
    """The result of a load.

    `warnings` always has those about files: world-writable files, lists and databases that were not fetched in time,
    and databases that are old or have no IPv6 networks (none of these if the load read no file). Warnings about the
    ruleset are included if requested. `warning_lines` shows them, with a count if there are too many for a file.
    `seconds` is the duration of the load. `files` are the settings, rules and list files that were read, `texts` the
    content of the settings and the rules file. If texts were loaded instead of these two files, `left_alone` has the
    path of each whose content on disk differs from its text. If warnings were requested, `network_counts` has a line
    for each value of `asn` and `country` that the rules use and the databases have.
    """

    settings: Settings
    ruleset: Ruleset
    rules_file: RulesFile
    warnings: tuple[Problem, ...]
    warning_lines: tuple[str, ...]
    seconds: float
    files: tuple[LoadedFile, ...]
    texts: Texts
    left_alone: tuple[str, ...] = ()
    network_counts: tuple[str, ...] = ()

    @property
    def next_end(self) -> float | None:
        """When the next entry of a list file ends (Unix seconds), None if none does."""
        return self.rules_file.next_end

    @property
    def outline(self) -> Outline:
        """Returns the parts that can be compared with another load."""
        assert self.rules_file.outline is not None
        return self.rules_file.outline

    @property
    def lists(self) -> Mapping[str, ListDefinition]:
        """The ruleset's lists by name; `entries()` of each reads it back as it is written."""
        return self.rules_file.lists

    @property
    def databases(self) -> tuple[DatabaseInfo, ...]:
        """The databases of networks, `asn` first."""
        return tuple(self.rules_file.databases[kind].info for kind in sorted(self.rules_file.databases))

    @property
    def summary(self) -> str:
        """Describes the load in one line, including a top-level `mode: observe`, for check, start and reload."""
        counts = self.ruleset.counts
        observes = "; mode: observe, so every answer is DUNNO" if self.ruleset.observe else ""
        return (
            f"ruleset {self.ruleset.hash}: {counted(counts.rules, 'rule')}, {counted(counts.networks, 'network')}, "
            f"{counted(counts.names, 'name')}, {counted(counts.expressions, 'expression')}, {self.seconds:.2f} s"
            f"{observes}"
        )


def load(
    config_path: str | os.PathLike[str] | None = None,
    rules_path: str | os.PathLike[str] | None = None,
    *,
    listen: Sequence[InetAddress | UnixAddress] = (),
    warnings_on: datetime.date | None = None,
    keep_lists: bool = True,
    texts: Texts | None = None,
    list_files: Mapping[str, str] | None = None,
    tables: TableStore | None = None,
    databases: bool = True,
    databases_in_force: Collection[DatabaseInfo] = (),
) -> Loaded:
    """Loads settings (all defaults without `config_path`) and the ruleset, from `rules_path` or from the path in the
    settings.

    `rules_path` and `listen` replace the settings' values. With `warnings_on`, the date in UTC, the ruleset is also
    checked for likely mistakes. Without `keep_lists`, the bytes of list files are
    not kept, and a list file that is needed again is read again and must not have changed. `texts` are loaded instead
    of the settings and the rules file on disk; list files, databases and keys are read, unless `texts.data` is set.
    `list_files` maps the name of a list to the file to read instead of its own. `tables` has tables for reuse, and gets
    the tables that are used. Without `databases`, the databases of the rules file are not read, and no address has an
    owner unless the caller provides it. Databases in `databases_in_force` whose files have not changed are not parsed
    again: see `RecordsInForce`. Raises ConfigErrors.
    """
    with without_garbage_collection():
        return _load(
            config_path,
            rules_path,
            listen,
            warnings_on,
            keep_lists=keep_lists,
            texts=texts,
            list_files=list_files,
            tables=tables,
            databases=databases,
            databases_in_force=databases_in_force,
        )


def load_settings(config_path: str | os.PathLike[str] | None = None) -> Settings:
    """Loads only the settings (all defaults without `config_path`). Raises ConfigErrors."""
    report = Report()
    settings, _, _ = _read_settings(config_path, report)
    if report or settings is None:
        raise ConfigErrors(report)
    return settings


def _load(
    config_path: str | os.PathLike[str] | None,
    rules_path: str | os.PathLike[str] | None,
    listen: Sequence[InetAddress | UnixAddress],
    warnings_on: datetime.date | None,
    *,
    keep_lists: bool,
    texts: Texts | None,
    list_files: Mapping[str, str] | None,
    tables: TableStore | None,
    databases: bool,
    databases_in_force: Collection[DatabaseInfo],
) -> Loaded:
    started = time.monotonic()
    report = Report()
    settings, rules, settings_text = _read_settings(config_path, report, texts.settings if texts else None)
    rules = rules if rules_path is None else os.fspath(rules_path)
    rules_file = None
    if rules is not None:
        rules_report = Report()
        text = texts.rules if texts else None
        rules_file = read_rules(
            rules,
            rules_report,
            keep_lists=keep_lists,
            text=text,
            list_files=list_files,
            tables=tables,
            data=texts.data if texts else None,
            databases=databases,
            databases_in_force=databases_in_force,
        )
        if rules_report and rules_file is not None and warnings_on is not None:
            rules_report.extend(lint(rules_file, warnings_on, rules_report))
        report.extend(rules_report)
    if report or settings is None or rules is None or rules_file is None or rules_file.ruleset is None:
        raise ConfigErrors(report)
    settings = dataclasses.replace(settings, rules=rules, listen=tuple(listen) or settings.listen)
    warnings = Report() if warnings_on is None else lint(rules_file, warnings_on)
    reads_files = texts is None or texts.data is None
    lists = (definition.file.path for definition in rules_file.lists.values() if definition.file is not None)
    files_of_databases = (definition.info.path for definition in rules_file.databases.values())
    named = () if config_path is None else (os.fspath(config_path),)
    network_counts, missing = ([], []) if warnings_on is None else count_networks(rules_file)
    if reads_files:
        exposed = exposed_files(dict.fromkeys((*named, rules, *lists, *files_of_databases)))
        for problem in (*exposed, *rules_file.unfetched, *warnings_of(rules_file.databases), *missing):
            warnings.add(problem)
    assert rules_file.text is not None
    loaded = Texts(settings_text, rules_file.text, rules_file.data)
    files = [*rules_file.files]
    if config_path is not None and settings_text is not None:
        files.insert(
            0,
            LoadedFile(os.fspath(config_path), "settings", file_hash(settings_text.content), settings_text.modified),
        )
    left_alone = () if texts is None or not reads_files else tuple(_edited(config_path, rules, loaded))
    return Loaded(
        settings,
        rules_file.ruleset,
        rules_file,
        warnings.problems,
        tuple(warnings.lines()),
        time.monotonic() - started,
        tuple(files),
        loaded,
        left_alone,
        tuple(network_counts),
    )


def _edited(config_path: str | os.PathLike[str] | None, rules: str, texts: Texts) -> Iterator[str]:
    """Yields the paths of the settings and rules file, if their content differs from the texts."""
    for path, text, limit in (
        (config_path, texts.settings, MAX_SETTINGS_BYTES),
        (rules, texts.rules, MAX_RULES_BYTES),
    ):
        if path is None or text is None:
            continue
        try:
            is_edited = read_file(os.fspath(path), limit) != text.content
        except (UnreadableError, OversizedError):
            is_edited = True
        if is_edited:
            yield os.fspath(path)


def _read_settings(
    path: str | os.PathLike[str] | None, report: Report, text: Text | None = None
) -> tuple[Settings | None, str | None, Text | None]:
    """Reads the settings from the file or its `text`; returns them, the rules file that they name, and the file's text.

    The first two are None if the settings are wrong, the text is None if there is no file.
    """
    if path is None:
        return Settings(), Settings().rules, None
    path = os.fspath(path)
    try:
        text = Text(*read_dated(path, MAX_SETTINGS_BYTES)) if text is None else text
    except (UnreadableError, OversizedError) as error:
        unreadable = isinstance(error, UnreadableError)
        severity = Severity.UNREADABLE if unreadable else Severity.WRONG
        report.add(Problem(path, 0, 0, str(error), severity=severity))
        return None, None, None
    root = parse_yaml(bytes(text), path, report)
    if root is None:
        return None, None, text
    settings = read_settings(root, path, report)
    # After a problem in the YAML, such as a duplicate key, there may still be a tree; its settings are not used.
    return (None if report else settings), rules_path_of(root, path), text
