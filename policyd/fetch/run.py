"""One run of `policyd fetch`: every list that is due is fetched, converted, judged and put in its place.

A list in force is never touched before its new copy has passed every guard; it is then replaced in one rename, and the
former copy is kept as `.previous`. So a list is always the old one or the new one, wherever a run is killed. What is
refused leaves the old copy in force, for as long as it takes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from policyd.config.conditions import CONDITIONS, Form
from policyd.config.files import MAX_LIST_BYTES, OversizedError, UnreadableError, read_file
from policyd.config.list_sources import checked_at, read_key, state_path
from policyd.config.lists import ListFile
from policyd.config.problems import Report
from policyd.config.rules_reader import read_rules
from policyd.core.printable import printable
from policyd.exchange.importing import ImportFailedError, ImportOptions, Shape, import_files
from policyd.fetch.guards import (
    Protected,
    RefusedError,
    check_amount,
    check_names,
    check_networks,
    first_wrong,
    networks_of,
)
from policyd.fetch.source import FetchError, Validators, get
from policyd.tools.list_lock import list_lock
from policyd.tools.replace_file import replace_file

if TYPE_CHECKING:
    from collections.abc import Collection

    from policyd.config.in_force import Text
    from policyd.config.list_sources import Source
    from policyd.config.lists import ListDefinition
    from policyd.config.written import RulesFile

_MAX_STATE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules text that new copies are judged by: the one in force, or the file's (`text` None)."""

    path: str
    text: Text | None


@dataclass(frozen=True, slots=True)
class Choice:
    """Options of a run: only the lists in `only` (all if empty), also what is not due or unchanged (`force`),
    nothing but say (`dry_run`), and for the lists in `accept` without min_entries and max_change."""

    only: Collection[str] = ()
    force: bool = False
    dry_run: bool = False
    accept: Collection[str] = ()


@dataclass(slots=True)
class Outcome:
    """The result of a run: a line for each list that was looked at, by whether it was refused; `changed` lists."""

    said: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


class NoSuchListError(Exception):
    """A list that was named is not fetched. The message says which are."""


@dataclass(slots=True)
class _New:
    """A new copy that has passed its own guards; `temporary` holds it beside its target."""

    name: str
    target: Path
    content: bytes
    temporary: Path
    state: dict[str, str]
    said: str


def fetch(rules: Rules, choice: Choice) -> Outcome:
    """Fetches lists. Raises NoSuchListError, UnreadableError if the rules file cannot be read."""
    return _Run(rules, choice).run()


class _Run:
    def __init__(self, rules: Rules, choice: Choice) -> None:
        self._rules = rules
        self._choice = choice
        self._outcome = Outcome()
        # Lists that are missing or wrong must not keep a run from repairing them, so errors do not matter here.
        report = Report()
        rules_file = read_rules(rules.path, report, text=rules.text)
        if rules_file is None or rules_file.root is None:
            raise UnreadableError("\n".join(report.lines()))
        self._file: RulesFile = rules_file

    def run(self) -> Outcome:
        sources = {name: one for name, one in self._file.lists.items() if one.source is not None and one.file_path}
        for name in (*self._choice.only, *self._choice.accept):
            if name not in sources:
                there = ", ".join(sources) or "none"
                raise NoSuchListError(f"'{name}' is not a list with from:; there are: {there}")
        new: list[_New] = []
        try:
            for name, definition in sources.items():
                if not self._choice.only or name in self._choice.only:
                    try:
                        one = self._fetch(definition)
                    except (RefusedError, FetchError, UnreadableError, OSError) as error:
                        self._refuse(name, str(error))
                    else:
                        new += [] if one is None else [one]
            for one in self._judge_together(new):
                try:
                    self._put(one)
                except OSError as error:
                    self._refuse(one.name, f"{one.target} cannot be replaced: {error.strerror or error}")
        finally:
            for one in new:
                one.temporary.unlink(missing_ok=True)
        return self._outcome

    def _refuse(self, name: str, reason: str) -> None:
        self._outcome.refused.append(printable(f"{name}: refused: {reason}"))

    # --- One list ---------------------------------------------------------------------------------------------------

    def _fetch(self, definition: ListDefinition) -> _New | None:
        """A new copy that has passed its own guards; None if there is nothing to do."""
        source, name = definition.source, definition.name
        assert source is not None
        target = Path(definition.file_path)
        wait = _wait(target, source)
        if wait > 0 and not self._choice.force:
            self._outcome.said.append(f"{name}: not due for {wait / 3600:.1f} h")
            return None
        old = _old_content(target)
        state = _read_state(target)
        known = Validators()
        same_source = state.get("url") == source.url and state.get("format") == source.format
        if not self._choice.force and old is not None and same_source and state.get("sha256") == _sha256(old):
            known = Validators(state.get("etag", ""), state.get("last_modified", ""))
        key = "" if source.key_file is None else read_key(source.key_file)
        try:
            fetched = get(source.url, key, known)
        except FetchError as error:
            if error.retry_after and not self._choice.dry_run:
                _write_retry(target, time.time() + error.retry_after)
            raise
        if fetched.content is None:
            self._outcome.said.append(f"{name}: unchanged")
            if not self._choice.dry_run:
                os.utime(state_path(str(target)))
            return None
        condition = self._condition(name)
        content = _converted(source, condition, fetched.content, target)
        said = self._guard(name, source, condition, content, old)
        new_state = {
            "url": source.url,
            "format": source.format,
            "etag": fetched.validators.etag,
            "last_modified": fetched.validators.last_modified,
            "sha256": _sha256(content),
        }
        if content == old:
            self._outcome.said.append(f"{name}: unchanged")
            if not self._choice.dry_run:
                _write_state(target, new_state)
            return None
        temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}.checked")
        one = _New(name, target, content, temporary, new_state, said)
        try:
            temporary.write_bytes(content)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return one

    def _condition(self, name: str) -> str:
        """The condition that uses the list; cidr if none does."""
        for rule in self._file.rules:
            for written in (*rule.match, *rule.exceptions):
                if any(definition.name == name for _, definition in written.lists):
                    return written.type.name
        return "cidr"

    def _guard(self, name: str, source: Source, condition: str, content: bytes, old: bytes | None) -> str:
        """Refuses what must not get in place. Returns what to say of it. Raises RefusedError."""
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
            (one.text, [entry.text for entry in self._file.lists[one.text].entries()])
            for one in source.never
            if one.text in self._file.lists
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

    # --- All together -----------------------------------------------------------------------------------------------

    def _judge_together(self, new: list[_New]) -> list[_New]:
        """Those new copies with which the ruleset loads and passes its tests."""
        if not new or not self._problem(new):
            return new
        good = []
        for one in new:
            if problem := self._problem([one]):
                self._refuse(one.name, f"the ruleset does not accept it: {problem}")
            else:
                good.append(one)
        if good and (problem := self._problem(good)):
            for one in good:
                self._refuse(one.name, f"the ruleset does not accept it together with others: {problem}")
            return []
        return good

    def _problem(self, new: list[_New]) -> str:
        """The first error of the ruleset with these copies in place; empty if there is none."""
        report = Report()
        files = {one.name: str(one.temporary) for one in new}
        read_rules(self._rules.path, report, text=self._rules.text, list_files=files, keep_lists=False)
        problem = next(report.lines(), "")
        for one in new:
            problem = problem.replace(str(one.temporary), str(one.target))
        return problem

    def _put(self, one: _New) -> None:
        self._outcome.said.append(one.said + (" (dry run: not put in place)" if self._choice.dry_run else ""))
        if self._choice.dry_run:
            return
        with list_lock(one.target.parent):
            _keep_previous(one.target)
            replace_file(one.target, one.content)
            _write_state(one.target, one.state)
        self._outcome.changed.append(one.name)


def _converted(source: Source, condition: str, content: bytes, target: Path) -> bytes:
    """The list file that the answer makes. Raises RefusedError."""
    if not content.strip():
        raise RefusedError("nothing arrived")
    if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise RefusedError("an HTML or XML page arrived instead of a list")
    if b"\0" in content:
        raise RefusedError("binary data arrived instead of a list")
    if source.format == "plain" and condition != "cidr":
        return content  # as policyd writes lists; each line is judged as an entry of the condition
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}.arrived")
    try:
        temporary.write_bytes(content)
        options = ImportOptions(shape=Shape.LIST, condition=condition)
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


def _keep_previous(target: Path) -> None:
    """Keeps the copy in force as `.previous`, without a moment at which either name has half a list."""
    link = target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}.previous")
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
    """Seconds until the list is due; 0 or less if it is."""
    now = time.time()
    retry = 0.0
    with contextlib.suppress(OSError):
        retry = _retry_path(target).stat().st_mtime - now
    checked = checked_at(str(target))
    if checked is None or not target.exists():
        return retry
    return max(retry, min(checked, now) + source.every - now)


def _retry_path(target: Path) -> Path:
    """A file whose time says when the server may be asked again (Retry-After)."""
    return target.with_name(f".{target.name}.retry")


def _write_retry(target: Path, at: float) -> None:
    path = _retry_path(target)
    path.touch()
    os.utime(path, (at, at))


def _old_content(target: Path) -> bytes | None:
    try:
        return read_file(str(target), MAX_LIST_BYTES)
    except (UnreadableError, OversizedError):
        return None


def _read_state(target: Path) -> dict[str, str]:
    """Reads the state that the last fetch left; empty if there is none, or it cannot be read."""
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
