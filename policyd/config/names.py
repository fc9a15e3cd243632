"""Finds the names of a ruleset's rules, lists, databases, DNS lists and counters, for completion on a command line.

Nothing is checked, and a file that is unreadable, too large or half-edited gives the names that can be found: pressing
a key must not print an error or take noticeable time.
"""

from __future__ import annotations

import re
from pathlib import Path

from policyd.config.definition_reader import NAME_PATTERN
from policyd.config.files import MAX_SETTINGS_BYTES, OversizedError, UnreadableError, read_file
from policyd.config.problems import Report
from policyd.config.yaml_tree import Mapping, Node, Scalar, Sequence, parse_yaml

# Maximum bytes of a rules file for completion: half a second of parsing. Most rules files are a hundredth of that.
MAX_COMPLETION_BYTES = 1 << 20

# A shell could split or expand any other text.
_NAME = re.compile(NAME_PATTERN)


def ruleset_names(sections: str, settings: str | None, rules: str | None) -> list[str]:
    """The names in a section of the ruleset, or in several joined by `+`.

    A section is `rules`, `lists`, `databases`, `dns_lists` or `counters`. The rules file is the argument `rules`, or
    else the one that the settings file `settings` names; if both are None, the result is empty.
    """
    path = rules if rules is not None else _rules_of(settings)
    root = _tree(path, MAX_COMPLETION_BYTES) if path is not None else None
    if root is None:
        return []
    return [name for section in sections.split("+") for name in _names(root.get(section)) if _NAME.fullmatch(name)]


def _names(node: Node | None) -> list[str]:
    """The names that a section of the ruleset defines."""
    if isinstance(node, Mapping):
        return list(node.items)
    if not isinstance(node, Sequence):
        return []
    names = [item.get("name") for item in node.items if isinstance(item, Mapping)]
    return [name.text for name in names if isinstance(name, Scalar)]


def _rules_of(settings: str | None) -> str | None:
    """The rules file that the settings name."""
    if settings is None:
        return None
    root = _tree(settings, MAX_SETTINGS_BYTES)
    rules = root.get("rules") if root is not None else None
    name = rules.text if isinstance(rules, Scalar) and not rules.missing else "rules.yaml"
    return str(Path(settings).parent / name)


def _tree(path: str, max_bytes: int) -> Mapping | None:
    try:
        content = read_file(path, max_bytes)
    except (UnreadableError, OversizedError):
        return None
    root = parse_yaml(content, path, Report())
    return root if isinstance(root, Mapping) else None
