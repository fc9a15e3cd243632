"""A ruleset as written: rules, conditions and lists, each with its line and column."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policyd.config.yaml_tree import Mapping, Scalar
from policyd.core.ruleset import Action, Condition, Kind, Rule, Verb
from policyd.core.tables import LongList, Networks
from policyd.memory.definitions import GreylistSettings

if TYPE_CHECKING:
    from policyd.config.checks.ruleset_tests import RulesetTest
    from policyd.config.conditions import ConditionType
    from policyd.config.databases import Database, DatabaseDefinition, DatabaseKind
    from policyd.config.dns_lists import WrittenDnsList
    from policyd.config.in_force import Data, LoadedFile, Outline, Text
    from policyd.config.lists import ListDefinition
    from policyd.config.problems import Problem
    from policyd.core.index import Index, Ruleset
    from policyd.core.tables import Entries
    from policyd.memory.definitions import CounterDefinition


@dataclass(frozen=True, slots=True)
class WrittenCondition:
    """A condition with its position: `values` written in place, and the lists that it names.

    `collections` has the parsed entries of both. `is_bracketed` says whether the values are in brackets.
    """

    condition: Condition
    type: ConditionType
    key: Scalar
    values: list[Scalar]
    lists: list[tuple[Scalar, ListDefinition]]
    collections: list[Entries]
    is_bracketed: bool = False

    @property
    def dns_list_names(self) -> tuple[str, ...]:
        """The DNS lists of `listed`, in order, each once; none for every other condition."""
        if self.condition.kind is not Kind.LISTED:
            return ()
        texts = (collection for collection in self.collections if not isinstance(collection, Networks | LongList))
        return tuple(dict.fromkeys(str(name) for names in texts for name in names))


@dataclass(frozen=True, slots=True)
class WrittenRule:
    """A rule with its position."""

    rule: Rule
    node: Mapping
    match: list[WrittenCondition]
    exceptions: list[WrittenCondition]

    def key(self, name: str) -> Scalar:
        """Returns the key of a field, for its position; an empty key at the rule's position if the field is absent."""
        item = self.node.items.get(name)
        return item.key if item is not None else Scalar("", self.node.line, self.node.column)


@dataclass(slots=True)
class WrittenCounter:
    """A counter with its position; `definition` is None if anything is wrong with it."""

    name: str
    line: int
    column: int
    definition: CounterDefinition | None = None
    where: list[WrittenCondition] = field(default_factory=list)
    used: bool = False

    @property
    def any_state(self) -> bool:
        """Whether requests are counted in every state that `where` allows, and not only at RCPT."""
        return any(condition.condition.subject == "protocol_state" for condition in self.where)


@dataclass(slots=True)
class RulesFile:
    """A rules file as it was read. `ruleset` is None if anything is wrong; `index` and `outline` are set even if tests
    are wrong or fail.

    `text` is its content, `root` the same as a tree, `files` the rules file and the list files. `unfetched` has a
    warning for each list that was not fetched in time. `next_end` is when the next entry of a list file ends (Unix
    seconds), None if none does; then `data` is None, too.
    """

    path: str
    text: Text | None = None
    root: Mapping | None = None
    rules: list[WrittenRule] = field(default_factory=list)
    lists: dict[str, ListDefinition] = field(default_factory=dict)
    dns_lists: dict[str, WrittenDnsList] = field(default_factory=dict)
    databases: dict[DatabaseKind, Database] = field(default_factory=dict)
    database_definitions: list[DatabaseDefinition] = field(default_factory=list)
    counters: dict[str, WrittenCounter] = field(default_factory=dict)
    greylist: GreylistSettings = field(default_factory=GreylistSettings)
    default: Action = field(default_factory=lambda: Action(Verb.DUNNO))
    observe: bool = False
    tests: list[RulesetTest] = field(default_factory=list)
    index: Index | None = None
    ruleset: Ruleset | None = None
    outline: Outline | None = None
    files: list[LoadedFile] = field(default_factory=list)
    unfetched: list[Problem] = field(default_factory=list)
    next_end: float | None = None
    data: Data | None = None
