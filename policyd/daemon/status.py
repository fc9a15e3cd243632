"""The sections of `policyd status`: a function for each section, which reads the daemon's state.

A section returns data for programs, lines for people, and points that need attention; the command prints them, so a new
section needs only a function in SECTIONS. No file is read. Only the time at which a list or database was last
fetched comes from the file system, because a fetch that finds it unchanged does not inform the daemon.
"""

from __future__ import annotations

import datetime
import os
import statistics
import time
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from policyd import __version__
from policyd.config.databases import DatabaseInfo, DatabaseKind
from policyd.config.durations import EXPIRY_NOTICE
from policyd.config.list_sources import checked_at, late_since
from policyd.config.mmdb import MmdbFile
from policyd.core.identity import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from policyd.config.in_force import LoadedFile
    from policyd.core.ruleset import Rule
    from policyd.daemon.counters import Rates
    from policyd.daemon.reload import LoadResult
    from policyd.daemon.server import Server
    from policyd.state.sqlite import StateFile

# Seconds after which a top-level `mode: observe` needs attention.
OBSERVE_SECONDS = 7 * 86400

# Seconds for which a loss of log lines needs attention.
LOST_SECONDS = 86400

ROOT_NOTICE = "running as root, which policyd does not need; give it a user of its own"

# Maximum number of lines of a section: a ruleset may have thousands of lists. The data for programs has all.
MAX_LINES = 100


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """Result of a reload. `at` is in Unix seconds; `data` means `reload --data`; `errors` is empty if it succeeded."""

    at: float
    data: bool
    errors: tuple[str, ...] = ()
    summary: str = ""
    changes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    left_alone: tuple[str, ...] = ()


@dataclass(slots=True)
class Running:
    """The daemon's state. Times are in Unix seconds; `lost_at` is the time of the last loss of log lines."""

    server: Server
    loaded: LoadResult
    rates: Rates
    lines_lost: Callable[[], dict[str, int]]
    state_file: StateFile | None = None
    started: float = field(default_factory=time.time)
    loaded_at: float = field(default_factory=time.time)
    lost_at: float | None = None
    failed: ReloadResult | None = None  # the last full reload, if it failed
    data_failed: ReloadResult | None = None  # `reload --data`, if it failed and nothing was loaded since
    left_alone: tuple[str, ...] = ()  # files that the last `reload --data` found edited
    loader_ended: str = ""  # why the loading process has ended
    _lost_before: int = 0

    def reloaded(self, result: ReloadResult) -> None:
        """Records how a reload ended."""
        if result.data:
            self.data_failed = result if result.errors else None
        else:
            self.failed = result if result.errors else None
            if not result.errors:
                self.data_failed = None
        if not result.errors:
            self.loaded_at = result.at
            self.left_alone = result.left_alone

    def check(self, now: float) -> None:
        """Does the work that is due once a second; `now` is on the monotonic clock."""
        self.rates.sample(now)
        lost = sum(self.lines_lost().values())
        if lost > self._lost_before:
            self.lost_at, self._lost_before = time.time(), lost


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the status: keys and values for programs, labelled lines for people, and problems.

    `attention` makes the exit status 1; `notices` do not.
    """

    data: dict[str, Any] = field(default_factory=dict)
    lines: tuple[tuple[str, str], ...] = ()
    attention: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def status(running: Running) -> dict[str, Any]:
    """Returns the status of all sections: `data`, `lines` (label and text), `attention` and `notices`."""
    data: dict[str, Any] = {}
    lines: list[tuple[str, str]] = []
    attention: list[str] = []
    notices: list[str] = []
    for section in (make(running) for make in SECTIONS):
        data |= section.data
        lines += section.lines[:MAX_LINES]
        if len(section.lines) > MAX_LINES:
            lines.append(("", f"and {len(section.lines) - MAX_LINES:,} more (status --json has all)"))
        attention += section.attention
        notices += section.notices
    return {"data": data, "lines": lines, "attention": attention, "notices": notices}


# --- The sections -----------------------------------------------------------------------------------------------------


def _daemon(running: Running) -> Section:
    data = {"version": __version__, "pid": os.getpid(), "since": _format_time(running.started)}
    line = (
        f"policyd {__version__}, process {os.getpid()}, since {_format_time(running.started)} ({_age(running.started)})"
    )
    notices = () if os.geteuid() else (ROOT_NOTICE,)
    attention = (running.loader_ended,) if running.loader_ended else ()
    return Section(data, (("daemon", line),), attention, notices)


def _mode(running: Running) -> Section:
    if not running.server.ruleset.observe:
        return Section({"mode": "enforce"}, (("mode", "enforce"),))
    since = _rules_modified(running)
    line = f"observe: every answer is DUNNO; the rules were last edited {_format_time(since)} ({_age(since)})"
    attention: tuple[str, ...] = ()
    if time.time() - since > OBSERVE_SECONDS:
        attention = (f"mode: observe is at the top of the rules, last edited {_age(since)} ago; no mail is refused",)
    return Section({"mode": "observe", "observe_since": _format_time(since)}, (("mode", line),), attention)


def _rules_modified(running: Running) -> float:
    """Returns the modification time of the rules file in force."""
    return next(file.modified for file in running.loaded.files if file.kind == "rules")


def _ruleset(running: Running) -> Section:
    ruleset, loaded = running.server.ruleset, running.loaded
    about = {
        "at": _format_time(running.loaded_at),
        "seconds": round(loaded.seconds, 3),
        "rules": ruleset.counts.rules,
        "networks": ruleset.counts.networks,
        "names": ruleset.counts.names,
        "expressions": ruleset.counts.expressions,
    }
    files = [
        {
            "path": file.path,
            "kind": file.kind,
            "hash": file.hash,
            "in_ruleset_hash": file.hashed and file.kind != "settings",
            "modified": _format_time(file.modified),
        }
        for file in loaded.files
        if not file.missing
    ]
    lines = [("ruleset", f"{loaded.summary.removeprefix('ruleset ')}; loaded {_age(running.loaded_at)} ago")]
    lines += [
        ("file", f"{file.hash} {file.path}, written {_age(file.modified)} ago")
        for file in loaded.files
        if file.kind != "list"
    ]
    return Section({"ruleset": ruleset.hash, "loaded": about, "files": files}, tuple(lines))


def _reload(running: Running) -> Section:
    failures = [each for each in (running.failed, running.data_failed) if each is not None]
    lines: list[tuple[str, str]] = []
    for failure in failures:
        command = "reload --data" if failure.data else "reload"
        lines.append((command, f"failed {_age(failure.at)} ago; ruleset {running.server.ruleset.hash} stays in force"))
        lines += [("", error) for error in failure.errors]
    data = {
        "failures": [{"at": _format_time(each.at), "data": each.data, "errors": list(each.errors)} for each in failures]
    }
    attention = tuple(f"the last {'reload --data' if each.data else 'reload'} failed" for each in failures)
    notices = tuple(f"{path} has been edited since it was loaded" for path in running.left_alone)
    return Section({"reload": data}, tuple(lines), attention, notices)


def _answers(running: Running) -> Section:
    rates = running.rates.per_second(monotonic())
    text = ", ".join(f"{verb} {rate:.1f}" for verb, rate in rates.items())
    rounded = {verb: round(rate, 3) for verb, rate in rates.items()}
    return Section({"answers_per_second": rounded}, (("answers/s", f"{text} (over the last minute)"),))


def _connections(running: Running) -> Section:
    server = running.server
    data = {
        "open": len(server.connections),
        "limit": server.max_connections,
        "accepted": server.counters.accepted,
        "refused": server.counters.refused,
    }
    line = f"{data['open']:,} open of {data['limit']:,} at most; refused {data['refused']:,}"
    return Section({"connections": data}, (("connections", line),))


def _dns(running: Running) -> Section:
    counters = running.server.counters.dns
    asked = counters.outcomes.total()
    failed = sum(count for (status, _), count in counters.outcomes.items() if status is Status.ERROR)
    median = round(statistics.median(counters.recent) * 1000, 1) if counters.recent else None
    cached = running.server.facts.resolver.cached_clients
    data = {"asked": asked, "failed": failed, "median_ms": median, "cached": cached}
    line = f"asked {asked:,}, failed {failed:,}" + ("" if median is None else f", median {median} ms")
    return Section({"dns": data}, (("dns", f"{line}; {data['cached']:,} clients cached"),))


def _lists(running: Running) -> Section:
    files = [file for file in running.loaded.files if file.kind == "list"]
    data = [
        {
            "lists": list(file.lists),
            "path": file.path,
            "hash": file.hash,
            "modified": None if file.missing else _format_time(file.modified),
            "age_seconds": None if file.missing else max(0, round(time.time() - file.modified)),
            "entries": file.entries,
            "fetched": None if file.every is None else _fetch_data(file.path, file.every),
        }
        for file in files
    ]
    lines = tuple(("list", _list_line(file)) for file in files)
    return Section({"lists": data}, lines, tuple(_late_lists(files)))


def _late_lists(files: Sequence[LoadedFile]) -> Iterator[str]:
    """Yields a message for each fetched list that is not current."""
    for file in files:
        if notice := _late_message(f"list {', '.join(file.lists)}", file.lists[0], file):
            yield notice


def _late_message(what: str, name: str, file: LoadedFile | DatabaseInfo) -> str:
    """Returns a message if a fetched file is not current; empty if it is current, or not fetched."""
    if file.every is None:
        return ""
    if file.missing and checked_at(file.path) is None:
        return f"{what} has not been fetched yet, so it is empty; see policyd fetch --list {name}"
    modified = file.built if isinstance(file, DatabaseInfo) else file.modified
    if (since := late_since(file.path, file.every, modified)) is not None:
        return f"{what} has not been fetched for {_age(since)}; see policyd fetch --list {name}"
    return ""


def _fetch_data(path: str, every: float) -> dict[str, Any]:
    checked = checked_at(path)
    return {"every_seconds": every, "checked": None if checked is None else _format_time(checked)}


def _list_line(file: LoadedFile) -> str:
    if file.missing:
        return f"{', '.join(file.lists)}: empty, because {file.path} has not been fetched yet"
    mark = "" if file.hashed else " (not part of the ruleset's hash)"
    return f"{', '.join(file.lists)}: {file.entries or 0:,} entries, {_age(file.modified)} old, {file.hash}{mark}"


def _dns_lists(running: Running) -> Section:
    data, lines, attention = [], [], []
    for name, state in running.server.facts.lists.states.items():
        health, counters = state.health, state.counters
        tested = None if health.tested_at is None else monotonic() - health.tested_at
        data.append(
            {
                "list": name,
                "zone": state.definition.shown_zone,
                "usable": health.usable,
                "why": health.why or None,
                "self_test": None if health.last_test is None else health.last_test.value,
                "tested_seconds_ago": None if tested is None else round(tested),
                "asked": counters.asked,
            }
        )
        if not state.definition.self_test:
            test = "no self-test"
        elif health.last_test is None or tested is None:
            test = "not tested yet"
        else:
            test = f"self-test {health.last_test.value} {_age(time.time() - tested)} ago"
        use = "in use" if health.usable else f"out of use: {health.why}"
        lines.append(("DNS list", f"{name}: {use}; {test}; asked {counters.asked:,}"))
        if not health.usable:
            attention.append(f"DNS list {name} is out of use: {health.why}")
    return Section({"dns_lists": data}, tuple(lines), tuple(attention))


def _databases(running: Running) -> Section:
    now = time.time()
    databases = running.loaded.databases
    data = [
        {
            "kind": info.kind,
            "path": info.path,
            "format": info.format,
            "hash": info.hash,
            "built": None if info.missing else _format_time(info.built),
            "age_seconds": None if info.missing else max(0, round(now - info.built)),
            "old": info.is_old(now),
            "fetched": None if info.every is None else _fetch_data(info.path, info.every),
        }
        for info in databases
    ]
    lines = tuple(
        (
            "database",
            f"{info.kind}: empty, because {info.path} has not been fetched yet"
            if info.missing
            else f"{info.kind}: {info.path} of {info.date} ({info.format}), {_age(info.built)} old, {info.hash}",
        )
        for info in databases
    )
    attention = [info.age_notice(now) for info in databases]
    attention += [_late_message(f"database {info.kind}", info.kind, info) for info in databases]
    owners = running.loaded.ruleset.owners
    sources = {} if owners is None else {DatabaseKind.ASN: owners.asn, DatabaseKind.COUNTRY: owners.country}
    for info in databases:
        source = sources.get(info.kind)
        if isinstance(source, MmdbFile) and source.is_damaged:
            attention.append(
                f"the {info.kind} database {info.path} is damaged: fetch it again, then run policyd reload"
            )
    return Section({"databases": data}, lines, tuple(filter(None, attention)))


def _memory(running: Running) -> Section:
    """Counters and greylisting. No lines if there is no rule that uses them, no state file and no shared server."""
    memory, file = running.server.memory, running.state_file
    local, shared = memory.local, memory.shared
    data: dict[str, Any] = {
        "keys": len(local),
        "limit": local.max_keys,
        "evicted": local.evicted,
        "state_file": None,
        "shared": None,
    }
    lines = []
    attention = []
    if running.server.remembers or file is not None or shared is not None:
        lines.append(("memory", f"{len(local):,} keys of {local.max_keys:,}; evicted {local.evicted:,}"))
    if file is not None:
        data["state_file"] = {"path": str(file.path), "used": file.is_used, "why": file.why or None}
        use = "in use" if file.is_used else "not in use"
        lines.append(("state file", f"{file.path}: {use}" + (f": {file.why}" if file.why else "")))
        if file.why:
            attention.append(f"state_file {file.path} {'cannot be written' if file.is_used else use}: {file.why}")
    if shared is not None:
        why = shared.why if not shared.is_up else ""
        data["shared"] = {"server": shared.name, "up": shared.is_up, "why": why or None}
        lines.append(("shared", f"{shared.name}: " + ("up" if shared.is_up else f"no answer: {why}")))
        if not shared.is_up:
            attention.append(f"the shared memory {shared.name} does not answer: {why}; this host counts alone")
    return Section({"memory": data}, tuple(lines), tuple(attention))


def _logs(running: Running) -> Section:
    lost = running.lines_lost()
    attention: tuple[str, ...] = ()
    lines: tuple[tuple[str, str], ...] = ()
    if any(lost.values()):
        text = ", ".join(f"{count:,} of the {log} log" for log, count in lost.items() if count)
        lines = (("lines lost", text),)
        if running.lost_at is not None and time.time() - running.lost_at < LOST_SECONDS:
            attention = (f"log lines were lost: {text}",)
    return Section({"lines_lost": lost}, lines, attention)


def ending_rules(server: Server) -> list[Rule]:
    """Returns the rules that have expired, or expire within EXPIRY_NOTICE."""
    notice = server.today + EXPIRY_NOTICE
    return [rule for rule in server.ruleset.rules if rule.expired(notice)]


def _endings(running: Running) -> Section:
    today = running.server.today
    ending = ending_rules(running.server)
    expired = [rule for rule in ending if rule.expired(today)]
    data = [{"rule": rule.name, "expires": str(rule.expires), "expired": rule.expired(today)} for rule in ending]
    lines = tuple(
        ("rule ends", f"{rule.name}: {'expired' if rule.expired(today) else 'expires'} on {rule.expires}")
        for rule in ending
    )
    attention: tuple[str, ...] = ()
    if expired:
        names = ", ".join(rule.name for rule in expired[:5]) + (", ..." if len(expired) > 5 else "")
        attention = (f"expired rules: {names}; remove them or set another date",)
    return Section({"ending_rules": data}, lines, attention)


SECTIONS: tuple[Callable[[Running], Section], ...] = (
    _mode,
    _daemon,
    _ruleset,
    _reload,
    _answers,
    _connections,
    _dns,
    _lists,
    _dns_lists,
    _databases,
    _memory,
    _logs,
    _endings,
)


# --- Times ------------------------------------------------------------------------------------------------------------


def _format_time(seconds: float) -> str:
    """Formats a time as RFC 3339, with the local offset."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).astimezone().isoformat(timespec="seconds")


def _age(seconds: float) -> str:
    """Formats how long ago a time was, in the largest unit that gives 2 or more."""
    age = max(0.0, time.time() - seconds)
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if age >= 2 * length:
            return f"{age / length:.0f} {unit}"
    return f"{age:.0f} s"
