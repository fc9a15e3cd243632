"""Reads `counters:` and `greylist:` of a ruleset, and reports every problem."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from policyd.config.definition_reader import NAME_PATTERN, DefinitionReader, definitions
from policyd.config.durations import YEAR, whole_duration
from policyd.config.problems import did_you_mean, quoted
from policyd.config.written import WrittenCounter
from policyd.config.yaml_tree import Mapping, Scalar, Sequence, describe
from policyd.core.protocol import ATTRIBUTES
from policyd.memory.definitions import Answered, CounterDefinition, GreylistSettings, KeyPart

if TYPE_CHECKING:
    from collections.abc import Callable

    from policyd.config.problems import Report
    from policyd.config.written import WrittenCondition
    from policyd.config.yaml_tree import Item, Node

COUNTER_KEYS = ("count", "per", "within", "where", "answered")
GREYLIST_KEYS = ("wait", "retry_within", "remember")

# Parts of a key that are not attributes, but derived from attributes (`asn` with the help of a database).
DERIVED_PARTS = ("client_network", "sender_domain", "recipient_domain", "asn")

# Maximum number of parts of a key; with more, almost every request would have its own key.
MAX_PARTS = 4

_NAME = re.compile(NAME_PATTERN)
_NETWORK = re.compile(r"client_network(?:/([0-9]{1,2})(?:/([0-9]{1,3}))?)?")


def read_counters(
    node: Node, path: str, report: Report, read_where: Callable[[Mapping], list[WrittenCondition]]
) -> dict[str, WrittenCounter]:
    """Returns the counters by name; a wrong counter has no definition.

    `path` is the rules file's. `read_where` reads the conditions under `where`.
    """
    counters: dict[str, WrittenCounter] = {}
    for item in definitions(node, "counters", path, report):
        key = item.key
        written = counters[key.text] = WrittenCounter(key.text, key.line, key.column)
        reader = _Reader(f"counter {quoted(key.text)}", path, report)
        if not _NAME.fullmatch(key.text):
            reader.add(key, "this is not a name for a counter; use letters, digits, '-', '_' and '.' only")
        written.definition = reader.read_counter(written, item.value, read_where)
    return counters


def read_greylist(node: Node, path: str, report: Report) -> GreylistSettings:
    """Reads the times of greylisting; a missing time has its default."""
    return _Reader("greylist", path, report).read_greylist(node)


class _Reader(DefinitionReader):
    def read_counter(
        self, written: WrittenCounter, node: Node, read_where: Callable[[Mapping], list[WrittenCondition]]
    ) -> CounterDefinition | None:
        """Returns the definition, or None if anything is wrong. Sets `written.where`."""
        if not isinstance(node, Mapping):
            self.add(node, f"expected a definition (count, per, within), not {describe(node)}")
            return None
        self.check_keys(node, COUNTER_KEYS)
        for key in ("count", "per", "within"):
            if key not in node.items:
                self.add(node, f"'{key}' is missing")
        distinct = self._read_count(node.items.get("count"))
        per = self._read_per(node.items.get("per"))
        within = self._duration(node.items.get("within"), 0)
        answered = self._read_answered(node.items.get("answered"))
        where = node.items.get("where")
        if where is not None and not isinstance(where.value, Mapping):
            self.add(where.value, f"where: expected conditions (key: value), not {describe(where.value)}")
        elif where is not None and isinstance(where.value, Mapping):
            written.where = read_where(where.value)
            for condition in written.where:
                if condition.condition.needs_facts:
                    self.add(
                        condition.key,
                        f"where: {condition.condition.name} is not allowed here: what is counted must be known "
                        "from the request alone, without DNS and counters",
                    )
        if self.is_wrong:
            return None
        conditions = tuple(
            f"{condition.condition.name}: {', '.join(condition.condition.values)}" for condition in written.where
        )
        return CounterDefinition(written.name, distinct, per, within, answered, conditions)

    def read_greylist(self, node: Node) -> GreylistSettings:
        """Returns the times; a wrong time is replaced by its default."""
        defaults = GreylistSettings()
        if not isinstance(node, Mapping):
            self.add(node, f"expected times (wait, retry_within, remember), not {describe(node)}")
            return defaults
        self.check_keys(node, GREYLIST_KEYS)
        settings = GreylistSettings(
            self._duration(node.items.get("wait"), defaults.wait),
            self._duration(node.items.get("retry_within"), defaults.retry_within),
            self._duration(node.items.get("remember"), defaults.remember),
        )
        if settings.wait >= settings.retry_within and not self.is_wrong:
            self.add(node, "wait must be shorter than retry_within, or no client could come back in time")
        return settings

    def _duration(self, item: Item | None, default: int) -> int:
        if item is None:
            return default
        text = self.text(item, "a time such as 30s, 10m, 2h or 7d")
        seconds = whole_duration(text, "smhd", 1, YEAR)
        if seconds is None and text:
            message = f"{item.key.text}: {quoted(text)} is not a time from 1s to 366d; write it as 30s, 10m, 2h or 7d"
            self.add(item.value, message)
        return int(seconds) if seconds is not None else default

    def _read_count(self, item: Item | None) -> KeyPart | None:
        if item is None:
            return None
        text = self.text(item, "requests, or distinct and an attribute")
        word, _, attribute = text.partition(" ")
        if text == "requests" or not text:
            return None
        if word != "distinct" or not attribute.strip():
            hint = did_you_mean(word, ("requests", "distinct"))
            self.add(item.value, f"count: {quoted(text)} is neither requests nor distinct ATTRIBUTE{hint}")
            return None
        return self._part(item.value, "count", attribute.strip())

    def _read_per(self, item: Item | None) -> tuple[KeyPart, ...]:
        if item is None:
            return ()
        nodes = item.value.items if isinstance(item.value, Sequence) else [item.value]
        if not 1 <= len(nodes) <= MAX_PARTS:
            self.add(item.value, f"per: expected 1 to {MAX_PARTS} parts, not {len(nodes)}")
            return ()
        parts = []
        for node in nodes:
            if not isinstance(node, Scalar) or not node.text:
                self.add(node, f"per: expected an attribute, not {describe(node)}")
            elif (part := self._part(node, "per", node.text)) is not None:
                if part in parts:
                    self.add(node, f"per: {quoted(node.text)} is repeated")
                parts.append(part)
        return tuple(parts)

    def _part(self, node: Node, key: str, text: str) -> KeyPart | None:
        network = _NETWORK.fullmatch(text)
        if network is not None:
            defaults = KeyPart("client_network").prefixes
            v4, v6 = (int(length or default) for length, default in zip(network.groups(), defaults, strict=True))
            if v4 <= 32 and v6 <= 128:
                return KeyPart("client_network", (v4, v6))
            self.add(node, f"{key}: {quoted(text)}: the lengths are at most /32 for IPv4 and /128 for IPv6")
            return None
        if text in ATTRIBUTES or text in DERIVED_PARTS:
            return KeyPart(text)
        known = (*ATTRIBUTES, *DERIVED_PARTS)
        hint = did_you_mean(text, known) or f"; write such an attribute, or {', '.join(DERIVED_PARTS)}"
        self.add(node, f"{key}: {quoted(text)} is not an attribute of the request{hint}")
        return None

    def _read_answered(self, item: Item | None) -> Answered:
        if item is None:
            return Answered.ANY
        text = self.text(item, "any or DUNNO")
        for answered in Answered:
            if answered.value.lower() == text.lower():
                return answered
        if text:
            self.add(item.value, f"answered: {quoted(text)} is neither any nor DUNNO")
        return Answered.ANY
