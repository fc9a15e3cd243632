"""From files to what the daemon and the tools work with: settings and ruleset, with every error's line.

`load` is the one way in. It is all or nothing: both are right, or `ConfigErrors` says all that is wrong with either.
Nothing here is held on to between two loads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policyd.config.checks.permissions import exposed_files
from policyd.config.checks.warnings import lint
from policyd.config.files import MAX_SETTINGS_BYTES, OversizedError, UnreadableError, read_file
from policyd.config.problems import ConfigErrors, Problem, Report, Severity
from policyd.config.rules_reader import read_rules
from policyd.config.settings import Settings, read_settings, rules_path_of
from policyd.config.yaml_tree import parse_yaml

if TYPE_CHECKING:
    import datetime
    from collections.abc import Iterator, Mapping, Sequence

    from policyd.config.lists import ListDefinition
    from policyd.config.settings import InetAddress, UnixAddress
    from policyd.config.written import RulesFile
    from policyd.core.index import Ruleset


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded. The daemon keeps `settings` and `ruleset`; the rest refers to the files' whole content.

    `warnings` are there if they were asked for, but those of files that everybody may write always; `seconds` is how
    long it all took.
    """

    settings: Settings
    ruleset: Ruleset
    rules_file: RulesFile
    warnings: tuple[Problem, ...]
    warning_lines: tuple[str, ...]
    seconds: float

    @property
    def lists(self) -> Mapping[str, ListDefinition]:
        """The ruleset's lists by name; `entries()` of each reads it back as it is written."""
        return self.rules_file.lists

    @property
    def summary(self) -> str:
        """What was loaded, in a line, as check, start and reload print it."""
        counts = self.ruleset.counts
        return (
            f"ruleset {self.ruleset.hash}: {_number(counts.rules, 'rule')}, {_number(counts.networks, 'network')}, "
            f"{_number(counts.names, 'name')}, {_number(counts.expressions, 'expression')}, {self.seconds:.2f} s"
        )


def load(
    config_path: str | os.PathLike[str] | None = None,
    rules_path: str | os.PathLike[str] | None = None,
    *,
    listen: Sequence[InetAddress | UnixAddress] = (),
    warnings_on: datetime.date | None = None,
    keep_lists: bool = True,
) -> Loaded:
    """Loads settings (all defaults without `config_path`) and the ruleset, from `rules_path` or where settings say.

    `rules_path` and `listen` replace what the settings say. With `warnings_on`, the date in UTC, the ruleset is also
    searched for what is likely not meant; who may write the files is looked at in any case. Without `keep_lists`, list
    files cannot be read back or searched for warnings afterwards, and take that much less memory. Raises ConfigErrors.
    """
    with _without_garbage_collection():
        return _load(config_path, rules_path, listen, warnings_on, keep_lists=keep_lists)


def load_settings(config_path: str | os.PathLike[str] | None = None) -> Settings:
    """The settings alone (all defaults without `config_path`), for what needs no ruleset. Raises ConfigErrors."""
    report = Report()
    settings, _ = _read_settings(config_path, report)
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
) -> Loaded:
    started = time.monotonic()
    report = Report()
    settings, rules = _read_settings(config_path, report)
    rules = rules if rules_path is None else os.fspath(rules_path)
    rules_file = None
    if rules is not None:
        rules_report = Report()
        rules_file = read_rules(rules, rules_report, keep_lists=keep_lists)
        report.extend(rules_report)
    if report or settings is None or rules is None or rules_file is None or rules_file.ruleset is None:
        raise ConfigErrors(report)
    settings = dataclasses.replace(settings, rules=rules, listen=tuple(listen) or settings.listen)
    warnings = Report() if warnings_on is None else lint(rules_file, warnings_on)
    lists = (one.file.path for one in rules_file.lists.values() if one.file is not None)
    named = () if config_path is None else (os.fspath(config_path),)
    for problem in exposed_files(dict.fromkeys((*named, rules, *lists))):
        warnings.add(problem)
    seconds = time.monotonic() - started
    return Loaded(settings, rules_file.ruleset, rules_file, warnings.problems, tuple(warnings.lines()), seconds)


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Loading makes objects by the hundred thousand, all of them to stay and none in a cycle: looking through them for
    garbage, again and again, doubles the time for 10,000 rules."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read_settings(path: str | os.PathLike[str] | None, report: Report) -> tuple[Settings | None, str | None]:
    """The settings, None where they are wrong; and the rules file they name, None where that cannot be known."""
    if path is None:
        return Settings(), Settings().rules
    path = os.fspath(path)
    try:
        content = read_file(path, MAX_SETTINGS_BYTES)
    except (UnreadableError, OversizedError) as error:
        unreadable = isinstance(error, UnreadableError)
        severity = Severity.UNREADABLE if unreadable else Severity.WRONG
        report.add(Problem(path, 0, 0, str(error), severity=severity))
        return None, None
    root = parse_yaml(content, path, report)
    if root is None:
        return None, None
    settings = read_settings(root, path, report)
    # A problem of syntax, say a duplicate key, leaves a tree and is none of the settings' own.
    return (None if report else settings), rules_path_of(root, path)


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
