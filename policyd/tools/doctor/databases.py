"""Checks of `policyd doctor`: whether each database of systems or countries can be used, and is not too old."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyd.config.databases import read_databases
from policyd.config.files import MAX_RULES_BYTES, OversizedError, UnreadableError, read_file
from policyd.config.problems import Report
from policyd.config.yaml_tree import Mapping, parse_yaml
from policyd.tools.doctor.diagnosis import Finding

if TYPE_CHECKING:
    from policyd.config.databases import DatabaseInfo

_FETCH = "fetch a newer file, put it in place by renaming, then run policyd reload (docs/owners.md has sources)"


def check_databases(rules: str, now: float) -> tuple[tuple[Finding, ...], tuple[str, ...], tuple[str, ...]]:
    """Reads the databases that a rules file declares, even if the rest of the file has errors; `now` is in Unix
    seconds.

    Returns three parts: findings, a line for each database that can be used and is not too old, and notes. An
    unreadable rules file counts as a file without databases.
    """
    report = Report()
    try:
        root = parse_yaml(read_file(rules, MAX_RULES_BYTES), rules, Report())
    except (UnreadableError, OversizedError):
        return (), (), ()
    node = root.get("databases") if isinstance(root, Mapping) else None
    if node is None:
        return (), (), ()
    databases, _ = read_databases(node, rules, report)
    findings = [
        Finding(
            f"{problem.path}:{problem.line}" if problem.line else problem.path,
            problem.message,
            "what policyd check says; docs/owners.md has the keys and the formats",
        )
        for problem in report.problems
    ]
    right, notes = [], []
    for kind in sorted(databases):
        info = databases[kind].info
        if info.missing:
            notes.append(f"{info.shown}, so the {kind} database is empty; see policyd fetch --list {kind}")
            continue
        if notice := info.age_notice(now):
            findings.append(Finding(info.path, notice, _FETCH))
        else:
            right.append(_described(info))
        if not info.has_ipv6:
            notes.append(f"{info.path}: the {kind} database has IPv4 networks only, so no IPv6 client has a record")
    return tuple(findings), tuple(right), tuple(notes)


def _described(info: DatabaseInfo) -> str:
    return f"{info.path}: the {info.kind} database ({info.format}) is dated {info.date}"
