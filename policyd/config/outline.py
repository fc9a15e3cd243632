"""Says what changed from one ruleset to the next: rules, lists with their sizes, and databases."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from policyd.config.in_force import Outline
from policyd.config.yaml_tree import Mapping, Scalar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policyd.config.written import RulesFile
    from policyd.config.yaml_tree import Node

# Maximum number of lines for a reload's changes; a generated ruleset may have thousands.
MAX_CHANGES = 50


def outline_of(rules_file: RulesFile, root: Node) -> Outline:
    """The outline of a rules file that was read without an error."""
    lists: dict[str, tuple[bytes, int]] = {}
    for name, definition in rules_file.lists.items():
        if definition.file is not None:
            lists[name] = definition.file.version, definition.file.count
        else:
            lists[name] = _digest(*(value.text for value in definition.values)), len(definition.values)
    default = root.get("default") if isinstance(root, Mapping) else None
    return Outline(
        {written.rule.name: _digest(*_words(written.node)) for written in rules_file.rules},
        lists,
        b"" if default is None else _digest(*_words(default)),
        rules_file.observe,
        databases={
            str(kind): "empty" if database.info.missing else f"of {database.info.date}, {database.info.hash}"
            for kind, database in sorted(rules_file.databases.items())
        },
    )


def _digest(*words: str) -> bytes:
    return hashlib.blake2b("\0".join(words).encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _words(node: Node) -> Iterator[str]:
    if isinstance(node, Scalar):
        yield node.text
    elif isinstance(node, Mapping):
        yield "{"
        for item in node:
            yield item.key.text
            yield from _words(item.value)
        yield "}"
    else:
        yield "["
        for each in node.items:
            yield from _words(each)
        yield "]"


def changes(old: Outline, new: Outline) -> tuple[str, ...]:
    """Describes the changes between two outlines, one per line: at most MAX_CHANGES, and a count of the others."""
    lines = []
    if old.observe != new.observe:
        lines.append("mode: observe, every answer is DUNNO" if new.observe else "mode: observe has ended")
    lines += _rule_changes(old.rules, new.rules)
    kept = [name for name in new.rules if name in old.rules]
    if kept != [name for name in old.rules if name in new.rules]:
        lines.append("the order of the rules changed")
    if old.default != new.default:
        lines.append("the default action changed")
    for name, (digest, count) in new.lists.items():
        before = old.lists.get(name)
        if before is None:
            lines.append(f"list {name} added: {count:,} entries")
        elif before[0] != digest:
            difference = _difference(new, name, count - before[1])
            lines.append(f"list {name} changed: {before[1]:,} entries before, {count:,} now{difference}")
    for kind, version in new.databases.items():
        if kind not in old.databases:
            lines.append(f"database {kind} added: {version}")
        elif old.databases[kind] != version:
            lines.append(f"database {kind} changed: {old.databases[kind]} before, now {version}")
    lines += [f"database {kind} removed" for kind in old.databases if kind not in new.databases]
    lines += [f"list {name} removed" for name in old.lists if name not in new.lists]
    if len(lines) > MAX_CHANGES:
        lines[MAX_CHANGES:] = [f"and {len(lines) - MAX_CHANGES:,} more changes"]
    return tuple(lines)


def _difference(outline: Outline, name: str, growth: int) -> str:
    """Shows how many entries were added to a list and removed from it; empty if that is unknown.

    If networks were merged, it is unknown: added minus removed is not the list's `growth`.
    """
    added, removed = outline.differences.get(name, (0, 0))
    return f" (+{added:,} -{removed:,})" if (added or removed) and added - removed == growth else ""


def _rule_changes(old: dict[str, bytes], new: dict[str, bytes]) -> Iterator[str]:
    for name, digest in new.items():
        if name not in old:
            yield f"rule {name} added"
        elif old[name] != digest:
            yield f"rule {name} changed"
    for name in old:
        if name not in new:
            yield f"rule {name} removed"
