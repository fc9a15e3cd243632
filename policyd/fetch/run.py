"""One run of `policyd fetch`: fetches all lists and databases that are due, checks them and puts them in place.

The old copy of a list or database stays in force until the new copy has passed every guard. The new copy then replaces
it in one rename, and the old copy is kept as `.previous`. The file is therefore always the old or the new copy, even
after a killed run. If a new copy is refused, the old copy stays in force.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

from policyd.config.conditions import CONDITIONS, Form
from policyd.config.databases import MAX_DATABASE_BYTES, DatabaseError, DatabaseFile
from policyd.config.files import MAX_LIST_BYTES, OversizedError, UnreadableError, read_file
from policyd.config.list_sources import checked_at, read_key, state_path
from policyd.config.lists import ListFile
from policyd.config.problems import Report
from policyd.config.rules_reader import read_rules
from policyd.core.printable import printable
from policyd.exchange.importing import ImportFailedError, ImportForm, ImportOptions, import_files
from policyd.fetch.guards import (
    Protected,
    RefusedError,
    Rules,
    check_amount,
    check_names,
    check_networks,
    first_wrong,
    networks_of,
)
from policyd.fetch.source import FetchError, Validators, get
from policyd.tools.list_lock import list_lock
from policyd.tools.replace_file import beside, replace_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from policyd.config.databases import DatabaseDefinition, DatabaseInfo
    from policyd.config.list_sources import Source
    from policyd.config.lists import ListDefinition
    from policyd.config.written import RulesFile

# Maximum bytes of a state file; policyd writes a URL and four short values.
_MAX_STATE_BYTES = 64 << 10

# Seconds after which a temporary file is assumed to be from a killed run. A run with slow servers takes minutes. The
# hard link to the old copy has the time of that copy, which may be older, but the link exists for milliseconds only.
_LEFTOVER_SECONDS = 3600.0

# Bytes at the beginning of an answer that are searched for the first non-blank byte.
_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Choice:
    """Options of a run, by names of lists and kinds of databases.

    `only`: these and no others (empty: all). `force`: also files that are not due or have not changed. `dry_run`:
    change nothing. `accept`: these without min_entries and without a comparison with the copy in force.
    """

    only: Collection[str] = ()
    force: bool = False
    dry_run: bool = False
    accept: Collection[str] = ()


@dataclass(slots=True)
class FetchOutcome:
    """The result of a run.

    `refused` has a line for each list or database that was refused, `messages` a line for each other that was chosen.
    `changed` names those with a new copy. `paths` are the files of all lists and databases with `from:`.
    """

    messages: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


class NoSourceError(Exception):
    """There is no list or database with `from:` of this name. The message has the names that exist."""


@dataclass(slots=True)
class _NewCopy:
    """A new copy that has passed its own guards; `temporary` holds it beside its target.

    `replaces` is the SHA-256 of the copy with which it was compared, None if there was none. `modified` is the time
    (Unix seconds) that the file gets; None for now.
    """

    job: _Job
    content: bytes
    temporary: Path
    state: dict[str, str]
    message: str
    replaces: str | None
    modified: float | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    """A list or database with `from:`; the other field is None. Each of `names` selects it on the command line."""

    list: ListDefinition | None
    database: DatabaseDefinition | None
    source: Source
    path: str

    @property
    def shown(self) -> str:
        """The name in messages."""
        return self.list.name if self.list is not None else f"database {self._database.names}"

    @property
    def names(self) -> set[str]:
        return {self.list.name} if self.list is not None else {*self._database.max_ages}

    @property
    def _database(self) -> DatabaseDefinition:
        assert self.database is not None
        return self.database

    @property
    def target(self) -> Path:
        return Path(self.path)

    @property
    def max_bytes(self) -> int:
        return MAX_LIST_BYTES if self.list is not None else MAX_DATABASE_BYTES


def fetch(rules: Rules, choice: Choice) -> FetchOutcome:
    """Fetches lists and databases. Raises NoSourceError, and UnreadableError if the rules cannot be read."""
    return _Run(rules, choice).run()


class _Run:
    def __init__(self, rules: Rules, choice: Choice) -> None:
        self._rules = rules
        self._choice = choice
        self._outcome = FetchOutcome()
        # Errors are ignored here, because a run may repair missing or wrong lists.
        report = Report()
        rules_file = read_rules(rules.path, report, text=rules.text)
        if rules_file is None or rules_file.root is None:
            raise UnreadableError("\n".join(report.lines()))
        self._file: RulesFile = rules_file

    def run(self) -> FetchOutcome:
        jobs = [*self._jobs()]
        known = sorted({name for job in jobs for name in job.names})
        for name in (*self._choice.only, *self._choice.accept):
            if name not in known:
                message = f"'{name}' is not a list or database with from:; there are: {', '.join(known) or 'none'}"
                raise NoSourceError(message)
        new: list[_NewCopy] = []
        try:
            for job in jobs:
                self._outcome.paths.append(job.path)
                if not self._choice.only or not job.names.isdisjoint(self._choice.only):
                    try:
                        _remove_leftovers(job.target)
                        found = self._fetch(job)
                    except (RefusedError, FetchError, UnreadableError, OSError) as error:
                        self._refuse(job, _describe(error))
                    else:
                        new += [] if found is None else [found]
            for each in self._judge_together(new):
                try:
                    self._put(each)
                except OSError as error:
                    self._refuse(each.job, f"{each.job.path} cannot be replaced: {_describe(error)}")
        finally:
            for each in new:
                each.temporary.unlink(missing_ok=True)
        return self._outcome

    def _jobs(self) -> Iterator[_Job]:
        for database in self._file.database_definitions:
            if database.source is not None:
                yield _Job(None, database, database.source, database.path)
        for definition in self._file.lists.values():
            if definition.source is not None and definition.file_path:
                yield _Job(definition, None, definition.source, definition.file_path)

    def _refuse(self, job: _Job, reason: str) -> None:
        self._outcome.refused.append(printable(f"{job.shown}: refused: {reason}"))

    # --- One list or database -----------------------------------------------------------------------------------------

    def _fetch(self, job: _Job) -> _NewCopy | None:
        """A new copy that has passed its own guards; None if there is nothing to do."""
        source, shown, target = job.source, job.shown, job.target
        wait = _wait(target, source)
        if wait > 0 and not self._choice.force:
            self._outcome.messages.append(f"{shown}: not due for {wait / 3600:.1f} h")
            return None
        old = _old_content(target, job.max_bytes)
        state = _read_state(target)
        known = Validators()
        same_source = state.get("url") == source.url and state.get("format") == source.format
        if not self._choice.force and old is not None and same_source and state.get("sha256") == _sha256(old):
            known = Validators(state.get("etag", ""), state.get("last_modified", ""))
        key = "" if source.key_file is None else read_key(source.key_file)
        try:
            fetched = get(source.url, key, known, job.max_bytes)
        except FetchError as error:
            if error.retry_after and not self._choice.dry_run:
                _write_retry(target, time.time() + error.retry_after)
            raise
        if fetched.content is None:
            self._outcome.messages.append(f"{shown}: unchanged")
            if not self._choice.dry_run:
                os.utime(state_path(str(target)))
            return None
        content, modified = fetched.content, None
        _check_page(content, "a list" if job.list is not None else "a database")
        if job.list is not None:
            condition = self._condition(job.list.name)
            content = _converted(source, condition, content, target)
            message = self._guard(job.list.name, source, condition, content, old)
        new_state = {
            "url": source.url,
            "format": source.format,
            "etag": fetched.validators.etag,
            "last_modified": fetched.validators.last_modified,
            "sha256": _sha256(content),
        }
        if content == old:
            self._outcome.messages.append(f"{shown}: unchanged")
            if not self._choice.dry_run:
                _write_state(target, new_state)
            return None
        temporary = beside(target, "checked")
        try:
            temporary.write_bytes(content)
            if job.database is not None:
                modified = _modified(fetched.validators)
                os.utime(temporary, (modified, modified))
                message = self._judge_database(job.database, temporary)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return _NewCopy(job, content, temporary, new_state, message, None if old is None else _sha256(old), modified)

    def _judge_database(self, definition: DatabaseDefinition, new: Path) -> str:
        """Refuses a database that cannot be used or, unless it is accepted, is older or has lost more than half of its
        networks. Returns the message. Raises RefusedError.
        """
        (after, count), before = _read_database(definition, str(new)), None
        with contextlib.suppress(RefusedError):
            before = _read_database(definition, definition.path)
        message = f"database {definition.names}: {count:,} networks, of {after.date}"
        if before is None:
            return message
        info, old_count = before
        if self._choice.accept and not {*definition.max_ages}.isdisjoint(self._choice.accept):
            return f"{message} ({old_count:,} before, of {info.date})"
        if after.built < info.built:
            raise RefusedError(
                f"is of {_format_time(after.built)}, older than the copy in force, of {_format_time(info.built)}"
            )
        if 2 * count < old_count:
            raise RefusedError(f"has {count:,} networks, fewer than half of the {old_count:,} in force")
        return f"{message} ({old_count:,} before, of {info.date})"

    def _condition(self, name: str) -> str:
        """The first condition that uses the list; cidr if none does."""
        for rule in self._file.rules:
            for written in (*rule.match, *rule.exceptions):
                if any(definition.name == name for _, definition in written.lists):
                    return written.type.name
        return "cidr"

    def _guard(self, name: str, source: Source, condition: str, content: bytes, old: bytes | None) -> str:
        """Applies the guards to a new copy of a list. Returns the message. Raises RefusedError."""
        entries = [entry.text for entry in ListFile(name, content).entries()]
        if not entries:
            raise RefusedError("nothing arrived that is an entry")
        if wrong := first_wrong(CONDITIONS[condition].form, entries):
            raise RefusedError(wrong)
        before = [] if old is None else [entry.text for entry in ListFile(name, old).entries()]
        new_keys, old_keys = set(entries), set(before)
        if name not in self._choice.accept:
            check_amount(new_keys, old_keys, source)
        protected = [
            (protecting.text, [entry.text for entry in self._file.lists[protecting.text].entries()])
            for protecting in source.never
            if protecting.text in self._file.lists
        ]
        if CONDITIONS[condition].form is Form.NETWORK:
            check_networks(
                networks_of(entries),
                Protected((f"list '{each}'", networks_of(texts)) for each, texts in protected),
                allow_reserved=source.allow_reserved,
            )
        elif CONDITIONS[condition].form is not Form.EXPRESSION:
            check_names(entries, [(each, text) for each, texts in protected for text in texts])
        came, went = len(new_keys - old_keys), len(old_keys - new_keys)
        return f"{name}: {len(new_keys):,} entries (+{came:,} -{went:,})"

    # --- All new copies together ------------------------------------------------------------------------------------

    def _judge_together(self, new: list[_NewCopy]) -> list[_NewCopy]:
        """Returns the new copies with which the ruleset loads and passes its tests."""
        if not new or not self._problem(new):
            return new
        good = []
        for copy in new:
            if problem := self._problem([copy]):
                self._refuse(copy.job, f"the ruleset does not accept it: {problem}")
            else:
                good.append(copy)
        if good and (problem := self._problem(good)):
            for copy in good:
                self._refuse(copy.job, f"the ruleset does not accept it together with others: {problem}")
            return []
        return good

    def _problem(self, new: list[_NewCopy]) -> str:
        """The first error of the ruleset with these copies in place; empty if there is none."""
        report = Report()
        lists = {copy.job.list.name: str(copy.temporary) for copy in new if copy.job.list is not None}
        databases = {copy.job.path: str(copy.temporary) for copy in new if copy.job.list is None}
        read_rules(
            self._rules.path,
            report,
            text=self._rules.text,
            list_files=lists,
            database_files=databases,
            keep_lists=False,
        )
        problem = next(report.lines(), "")
        for copy in new:
            problem = problem.replace(str(copy.temporary), copy.job.path)
        return problem

    def _put(self, copy: _NewCopy) -> None:
        if self._choice.dry_run:
            self._outcome.messages.append(f"{copy.message} (dry run: not put in place)")
            return
        target = copy.job.target
        with list_lock(target.parent):
            present = _old_content(target, copy.job.max_bytes)
            if (None if present is None else _sha256(present)) != copy.replaces:
                self._outcome.messages.append(f"{copy.job.shown}: left alone: it was replaced while this ran")
                return
            _keep_previous(target)
            replace_file(target, copy.content, copy.modified)
            _write_state(target, copy.state)
        self._outcome.messages.append(copy.message)
        self._outcome.changed.append(copy.job.shown)


def _describe(error: Exception) -> str:
    """Describes an error; a read-only file system is most likely the unit's sandbox."""
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return f"{error}; policyd-fetch.service may write to the folders in its ReadWritePaths= only"
    return str(error)


def _check_page(content: bytes, instead_of: str) -> None:
    """Refuses an empty answer and an error page. Raises RefusedError."""
    if not content.strip():
        raise RefusedError("nothing arrived")
    if content[:_PAGE_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise RefusedError(f"an HTML or XML page arrived instead of {instead_of}")


def _converted(source: Source, condition: str, content: bytes, target: Path) -> bytes:
    """Converts the answer to a list file. Raises RefusedError."""
    if b"\0" in content:
        raise RefusedError("binary data arrived instead of a list")
    if source.format == "plain" and condition != "cidr":
        return content  # policyd's own list format; each line is checked as an entry of the condition
    temporary = beside(target, "arrived")
    try:
        temporary.write_bytes(content)
        options = ImportOptions(shape=ImportForm.LIST, condition=condition)
        result = import_files(source.format, [str(temporary)], options)
    except ImportFailedError as error:
        raise RefusedError(
            str(error).replace(str(temporary), "the answer").replace(temporary.name, "the answer")
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    if result.report.losses:
        loss = result.report.losses[0]
        raise RefusedError(f"line {loss.line.number} is not an entry: '{loss.line.text[:80]}': {loss.reason}")
    return result.text.encode()


def _read_database(definition: DatabaseDefinition, path: str) -> tuple[DatabaseInfo, int]:
    """The database in a file, and the number of its networks; counting a million takes 2 s. Raises RefusedError."""
    try:
        found = DatabaseFile(path).read(frozenset(definition.max_ages), definition.max_ages)
        first = next(iter(found.values()))
        return first.info, sum(1 for _ in first.ranges())
    except DatabaseError as error:
        raise RefusedError(f"line {error.line}: {error}" if error.line else str(error)) from None
    except (UnreadableError, OversizedError) as error:
        raise RefusedError(str(error)) from None


def _modified(validators: Validators) -> float:
    """The server's Last-Modified in Unix seconds, but no later than now; now if the server sends none."""
    try:
        return min(parsedate_to_datetime(validators.last_modified).timestamp(), time.time())
    except (ValueError, TypeError, OverflowError):
        return time.time()


def _format_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(seconds))


def _remove_leftovers(target: Path) -> None:
    """Removes the temporary files that killed runs have left beside a list or database."""
    names = "|".join(re.escape(name[:200]) for name in (target.name, state_path(str(target)).name))
    leftover = re.compile(rf"\.(?:{names})\.[0-9a-f]{{16}}\.(?:arrived|checked|previous|new)")
    before = time.time() - _LEFTOVER_SECONDS
    with os.scandir(target.parent) as folder:
        found = [each.path for each in folder if leftover.fullmatch(each.name) and each.stat().st_mtime < before]
    if found:
        with list_lock(target.parent):
            for path in found:
                Path(path).unlink(missing_ok=True)


def _keep_previous(target: Path) -> None:
    """Keeps the copy in force as `.previous`; neither file is ever incomplete."""
    link = beside(target, "previous")
    try:
        link.hardlink_to(target)
    except FileNotFoundError:
        return
    try:
        link.replace(target.with_name(f"{target.name}.previous"))
    finally:
        link.unlink(missing_ok=True)


# --- The state beside a list ------------------------------------------------------------------------------------------


def _wait(target: Path, source: Source) -> float:
    """Seconds until the list or database is due; 0 or less if it is due."""
    now = time.time()
    retry = 0.0
    with contextlib.suppress(OSError):
        retry = _retry_path(target).stat().st_mtime - now
    checked = checked_at(str(target))
    if checked is None or not target.exists():
        return retry
    return max(retry, min(checked, now) + source.every - now)


def _retry_path(target: Path) -> Path:
    """A file whose modification time says when the server may be asked again (Retry-After)."""
    return target.with_name(f".{target.name}.retry")


def _write_retry(target: Path, at: float) -> None:
    path = _retry_path(target)
    path.touch()
    os.utime(path, (at, at))


def _old_content(target: Path, max_bytes: int) -> bytes | None:
    try:
        return read_file(str(target), max_bytes)
    except (UnreadableError, OversizedError):
        return None


def _read_state(target: Path) -> dict[str, str]:
    """The state of the last fetch; empty if there is no state, or it cannot be read."""
    try:
        state = json.loads(read_file(str(state_path(str(target))), _MAX_STATE_BYTES))
    except (UnreadableError, OversizedError, ValueError, RecursionError):
        return {}
    if not isinstance(state, dict):
        return {}
    return {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, str)}


def _write_state(target: Path, state: dict[str, str]) -> None:
    replace_file(state_path(str(target)), json.dumps(state).encode() + b"\n")
    _retry_path(target).unlink(missing_ok=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
