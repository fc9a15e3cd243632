"""From what a request carries to the conditions that hold, in time that does not grow with the ruleset.

All entries of all rules stand in a few tables: one of address ranges, one of names for each attribute that is a
host name or a mail address's domain, one of exact values, one set of expressions for each attribute that has some.
A lookup answers with `Hits`: the numbers of the conditions that hold, and the numbers of the rules that are worth
looking at because of it. Each rule is filed under one of its conditions only, the one that will hold for the fewest
clients; the engine checks the others when the rule comes up.

Tables of addresses and names are flat arrays without an object for an entry: a million names take 50 MB, a million
networks 12, and a process that has built them hands them to another through shared memory (`__reduce_ex__`: pickle
protocol 5, buffers out of band) without a copy. The table of names uses `hash(bytes)`, whose key differs from
process to process: only a process forked from the same parent may build for another.
"""

from __future__ import annotations

import pickle
from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

import idna
import re2

from policyd.core.address import parse_address
from policyd.core.identity import Status
from policyd.core.ruleset import SENDER_STATES, Condition, Kind, Subject, Verb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from policyd.core.identity import Identity
    from policyd.core.protocol import Request
    from policyd.core.ruleset import Rule

# A domain name has at most 255 octets (RFC 1035 section 2.3.4), a mail address 254 (RFC 5321 section 4.5.3.1.3,
# erratum 1690). Ours is generous; what is longer is no name, so a long HELO costs no walk over its labels.
MAX_NAME = 255

Buffer: TypeAlias = "bytes | bytearray | array[int] | memoryview[int] | pickle.PickleBuffer"


class Hits(NamedTuple):
    """What a lookup found: conditions that hold, and rules filed under one of them, in their order."""

    conditions: frozenset[int]
    rules: tuple[int, ...]


NOTHING = Hits(frozenset(), ())


# --- What is compared ---------------------------------------------------------------------------------------------


def fold_value(value: bytes) -> bytes:
    """The form in which mail addresses and other attributes are compared: lower case, also outside ASCII."""
    if value.isascii():
        return value.lower()
    return value.decode("utf-8", "replace").lower().encode()


def fold_name(name: bytes) -> bytes:
    """The form in which host names and domains are compared: lower case, A-labels, no trailing dot.

    A name that has no A-label form (UTS 46) is compared as it is. One that is too long to be a name is empty.
    """
    if len(name) > MAX_NAME + 1:
        return b""
    if not name.isascii():
        try:
            name = idna.encode(name.decode("utf-8", "replace"), uts46=True)
        except idna.IDNAError:
            return fold_value(name).removesuffix(b".")
    return name.lower().removesuffix(b".")


def domain_of(address: bytes) -> bytes:
    """What follows the last `@`, folded; empty without `@` and for an address literal (RFC 5321 section 4.1.3)."""
    domain = address.rpartition(b"@")[2] if b"@" in address else b""
    return b"" if domain.startswith(b"[") else fold_name(domain)


def decode_for_expressions(value: bytes) -> bytes:
    """What expressions see: UTF-8, with U+FFFD for what is none, since RE2 finds nothing in invalid UTF-8."""
    return value if value.isascii() else value.decode("utf-8", "replace").encode()


# --- Entries, as the loader brings them ---------------------------------------------------------------------------


class Networks:
    """The networks of one list, or of a condition's own values: flat, in the order in which they were added."""

    __slots__ = ("v4", "v6")

    def __init__(self) -> None:
        self.v4 = array("Q")  # first address << 6 | prefix length
        self.v6: list[int] = []  # first address << 8 | prefix length

    def append(self, version: int, first: int, prefix: int) -> None:
        """Adds the network of `prefix` bits that begins at `first`; host bits must be zero, mapped IPv6 turned to 4."""
        if version == 4:
            self.v4.append(first << 6 | prefix)
        else:
            self.v6.append(first << 8 | prefix)

    def extend(self, others: Networks) -> None:
        """Adds these networks."""
        self.v4.extend(others.v4)
        self.v6.extend(others.v6)

    def __len__(self) -> int:
        return len(self.v4) + len(self.v6)


Entries: TypeAlias = "Networks | Sequence[bytes] | Sequence[str]"


# --- Tables -------------------------------------------------------------------------------------------------------


class RangeTable:
    """IPv4 and IPv6 addresses -> a number, by ranges that do not overlap.

    IPv4: the starts of the ranges, sorted, and a table over the top 16 bits that says where to look among them.
    IPv6: upper and lower halves of the starts in two arrays, compared one after the other.
    """

    __slots__ = ("_numbers4", "_numbers6", "_starts4", "_starts6_high", "_starts6_low", "_top")

    def __init__(  # noqa: PLR0917 - what __reduce_ex__ passes
        self,
        top: Buffer,
        starts4: Buffer,
        numbers4: Buffer,
        starts6_high: Buffer,
        starts6_low: Buffer,
        numbers6: Buffer,
    ) -> None:
        self._top = _view(top, "I")
        self._starts4 = _view(starts4, "I")
        self._numbers4 = _view(numbers4, "I")
        self._starts6_high = _view(starts6_high, "Q")
        self._starts6_low = _view(starts6_low, "Q")
        self._numbers6 = _view(numbers6, "I")

    @classmethod
    def build(cls, v4: list[int], v6: list[int], filing: Filing) -> RangeTable:
        """From network keys (`_network_key`), in any order; sorts both lists."""
        starts4, numbers4 = array("I"), array("I")
        _flatten(v4, 32, filing, starts4, numbers4)
        top = _count_before_blocks(starts4)
        starts6: list[int] = []
        numbers6 = array("I")
        _flatten(v6, 128, filing, starts6, numbers6)
        high = array("Q", (start >> 64 for start in starts6))
        low = array("Q", (start & 0xFFFFFFFFFFFFFFFF for start in starts6))
        return cls(top, starts4, numbers4, high, low, numbers6)

    def number4(self, address: int) -> int:
        """The number of the range that an IPv4 address lies in; 0 for none."""
        top, block = self._top, address >> 16
        # There is always a range that starts at 0, so the place found is never -1.
        return self._numbers4[bisect_right(self._starts4, address, top[block], top[block + 1]) - 1]

    def number6(self, address: int) -> int:
        """The same for IPv6."""
        high = address >> 64
        end = bisect_right(self._starts6_high, high)
        begin = bisect_left(self._starts6_high, high, 0, end)
        return self._numbers6[bisect_right(self._starts6_low, address & 0xFFFFFFFFFFFFFFFF, begin, end) - 1]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        parts = (
            self._top,
            self._starts4,
            self._numbers4,
            self._starts6_high,
            self._starts6_low,
            self._numbers6,
        )
        return type(self), tuple(_packed(part, protocol) for part in parts)


def _count_before_blocks(starts: array[int]) -> array[int]:
    """How many starts lie before each block of 65,536 addresses, and before the end of the last one."""
    if len(starts) > 65536:
        return array("I", (bisect_left(starts, block << 16) for block in range(65537)))
    counts = array("I")
    for place, start in enumerate(starts):  # most rulesets have few, and a bisection for each block takes 10 ms
        counts.extend(array("I", (place,)) * ((start >> 16) + 1 - len(counts)))
    counts.extend(array("I", (len(starts),)) * (65537 - len(counts)))
    return counts


def _network_key(packed: int, number: int) -> int:
    """An integer that sorts networks by first address, the wider first; `packed` as in `Networks`."""
    return packed << 32 | number


def _flatten(keys: list[int], width: int, filing: Filing, starts: array[int] | list[int], numbers: array[int]) -> None:
    """Turns networks into ranges that do not overlap, neighbours with the same number merged.

    Networks either nest or are disjoint, so a stack of those still open is enough.
    """
    keys.sort()
    prefix_bits = 6 if width == 32 else 8
    prefix_mask = (1 << prefix_bits) - 1
    starts.append(0)
    numbers.append(0)

    def begin(start: int, number: int) -> None:
        if starts[-1] == start:  # what was to begin here is wholly covered by what does
            numbers[-1] = number
        elif numbers[-1] != number:
            starts.append(start)
            numbers.append(number)

    open_end, open_number = (
        1 << width + 1,
        0,
    )  # the innermost network still open: the whole space, with nothing
    outer: list[tuple[int, int]] = []
    for key in keys:
        number, packed = key & 0xFFFFFFFF, key >> 32
        first = packed >> prefix_bits
        while open_end <= first:
            ended = open_end
            open_end, open_number = outer.pop()
            begin(ended, open_number)
        outer.append((open_end, open_number))
        open_end = first + (1 << width - (packed & prefix_mask))
        open_number = filing.union(open_number, number)
        begin(first, open_number)
    while outer:
        ended = open_end
        open_end, open_number = outer.pop()
        if ended < 1 << width:
            begin(ended, open_number)


class NameTable:
    """Byte strings -> a number, as an open-addressing hash table in flat arrays.

    `marks` has a byte for each slot: 0 for an empty one, or seven further bits of the hash of the key that is there.
    Slots are at least four times as many as keys, so that a miss, which is what most lookups are, mostly ends at the
    first mark; and marks are small enough to be found in the processor's cache, even those of a million keys.
    """

    __slots__ = ("_ends", "_keys", "_numbers", "_places", "marks", "mask")

    def __init__(self, marks: Buffer, places: Buffer, ends: Buffer, keys: Buffer, numbers: Buffer) -> None:
        self.marks = memoryview(marks)
        self.mask = len(self.marks) - 1
        self._places = _view(places, "I")
        self._ends = _view(ends, "I")
        self._keys = memoryview(keys)
        self._numbers = _view(numbers, "I")

    @classmethod
    def build(cls, entries: Mapping[bytes, int]) -> NameTable:
        """From keys and their numbers (not 0). Raises ValueError beyond 4 GiB of keys."""
        keys = b"".join(entries)
        if len(keys) > 0xFFFFFFFF:
            raise ValueError("more than 4 GiB of names")
        size = 4
        while size < 4 * len(entries):
            size *= 2
        mask = size - 1
        marks = bytearray(size)
        places = array("I", [0]) * size
        for place, key_hash in enumerate(map(hash, entries)):
            slot = key_hash & mask
            while marks[slot]:
                slot = (slot + 1) & mask
            marks[slot] = key_hash >> 32 & 0x7F | 0x80
            places[slot] = place
        ends = array("I", accumulate(map(len, entries), initial=0))
        return cls(marks, places, ends, keys, array("I", entries.values()))

    def number(self, key: bytes) -> int:
        """The key's number; 0 for none. Where `marks[hash(key) & mask]` is 0 there is none: look there first."""
        key_hash = hash(key)
        mark = key_hash >> 32 & 0x7F | 0x80
        mask, marks = self.mask, self.marks
        slot = key_hash & mask
        while found := marks[slot]:
            if found == mark:
                place = self._places[slot]
                if self._keys[self._ends[place] : self._ends[place + 1]] == key:
                    return self._numbers[place]
            slot = (slot + 1) & mask
        return 0

    def __len__(self) -> int:
        return len(self._numbers)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        parts = (self.marks, self._places, self._ends, self._keys, self._numbers)
        return type(self), tuple(_packed(part, protocol) for part in parts)


def _view(part: Buffer, item: Literal["I", "Q"]) -> memoryview[int]:
    return memoryview(part).cast("B").cast(item)


def _packed(part: memoryview[int], protocol: int) -> pickle.PickleBuffer | bytes:
    return pickle.PickleBuffer(part) if protocol >= 5 else bytes(part)


# --- Lookups: one for each way in which an attribute is looked at ---------------------------------------------------


def _sender_of(request: Request) -> bytes | None:
    """The sender, empty for the null sender; None before MAIL, where an empty one says nothing."""
    return request.get("sender") if request.get("protocol_state") in SENDER_STATES else None


def _recipient_of(request: Request) -> bytes | None:
    """The recipient; None where there is none, or several."""
    return request.get("recipient") or None


# Of every other attribute, the text is the attribute.
_TEXT_OF: Mapping[str, Callable[[Request], bytes | None]] = {"sender": _sender_of, "recipient": _recipient_of}


class AddressLookup:
    """`cidr`: the networks that `client_address` lies in."""

    def __init__(self, table: RangeTable, hits: list[Hits]) -> None:
        self._table = table
        self._hits = hits

    def find(self, request: Request, _identity: Identity | None) -> Hits:
        address = parse_address(request.get("client_address"))
        if address is None:
            return NOTHING
        number = self._table.number4(address[1]) if address[0] == 4 else self._table.number6(address[1])
        return self._hits[number] if number else NOTHING


class DomainTable:
    """Names -> the conditions that a name satisfies by being one of them or by lying under one.

    Each key stands for two sets of conditions: those that hold for this very name, and those that hold for the
    names under it. So exact names, suffixes, and suffixes with a leading dot are one walk over one table.
    """

    __slots__ = ("_exact", "_table", "_under")

    def __init__(self, table: NameTable, exact: list[Hits], under: list[Hits]) -> None:
        self._table = table
        self._exact = exact  # by the number in the table
        self._under = under

    def find(self, name: bytes) -> Hits:
        """What holds for a folded name. An empty one satisfies nothing."""
        if not name:
            return NOTHING
        table = self._table
        marks, mask = table.marks, table.mask
        found = self._exact[table.number(name)] if marks[hash(name) & mask] else NOTHING
        dot = name.find(b".")
        while dot >= 0:
            parent = name[dot + 1 :]
            if marks[hash(parent) & mask] and (number := table.number(parent)):
                found = merge((found, self._under[number]))
            dot = name.find(b".", dot + 1)
        return found


class NameLookup:
    """`helo_name`, `helo_name_suffix`, `sender_domain`, `recipient_domain`."""

    def __init__(self, subject: str, table: DomainTable) -> None:
        self._subject = subject
        self._text_of = _TEXT_OF.get(subject)
        self._name_of = fold_name if subject == "helo_name" else domain_of
        self._table = table

    def find(self, request: Request, _identity: Identity | None) -> Hits:
        text = self._text_of(request) if self._text_of is not None else request.get(self._subject)
        return self._table.find(self._name_of(text)) if text else NOTHING


class ValueLookup:
    """Mail addresses and all other attributes: equality."""

    def __init__(self, subject: str, table: NameTable, hits: list[Hits]) -> None:
        self._subject = subject
        self._text_of = _TEXT_OF.get(subject)
        self._table = table
        self._hits = hits
        self._empty = b"<>" if subject == "sender" else b""

    def find(self, request: Request, _identity: Identity | None) -> Hits:
        text = self._text_of(request) if self._text_of is not None else request.get(self._subject)
        if text is None:
            return NOTHING
        return self._hits[self._table.number(fold_value(text) or self._empty)]


class _ExpressionSet:
    """Expressions compiled by RE2 into one automaton. Raises re2.error where it cannot."""

    # RE2's budget for the automaton: a start, and for each expression what names that fit a long list of patterns
    # were seen to need. With too little it drops its states and starts anew at almost every name.
    MEMORY = 8 << 20
    MEMORY_EACH = 16 << 10

    def __init__(self, expressions: tuple[str, ...]) -> None:
        compiled = re2.Set.SearchSet(expression_options(self.MEMORY + self.MEMORY_EACH * len(expressions)))
        for expression in expressions:
            compiled.Add(expression)
        compiled.Compile()
        self.match = compiled.Match  # UTF-8 -> the places of the expressions that are found in it


# The sets in use. Compiling one holds up requests (19 ms for 1,671 expressions), and most reloads bring the same
# expressions: they share the set with the ruleset that they replace.
_sets: WeakValueDictionary[tuple[str, ...], _ExpressionSet] = WeakValueDictionary()


class ExpressionTable:
    """All expressions on one attribute: one pass over the text, however many there are.

    Raises re2.error where RE2 cannot compile them together.
    """

    def __init__(self, expressions: tuple[str, ...], hits: tuple[Hits, ...]) -> None:
        self._expressions = expressions
        self._hits = hits
        self._set = _sets.get(expressions) or _ExpressionSet(expressions)
        _sets[expressions] = self._set
        self._match = self._set.match
        self._empty = self._all(self._match(b"") or [])

    def find(self, text: bytes) -> Hits:
        """What holds for a text, of any bytes."""
        if not text:
            return self._empty
        places = self._match(text if text.isascii() else decode_for_expressions(text))
        return self._all(places) if places else NOTHING

    def _all(self, places: list[int]) -> Hits:
        return merge([self._hits[place] for place in places])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._expressions, self._hits)


def expression_options(max_mem: int = _ExpressionSet.MEMORY) -> re2.Options:
    """How every expression of a ruleset is compiled (https://github.com/google/re2/wiki/Syntax)."""
    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    options.max_mem = max_mem
    return options


class ExpressionLookup:
    """`helo_name_regex`, `sender_regex`, and `NAME_regex` of every other attribute."""

    def __init__(self, subject: str, table: ExpressionTable) -> None:
        self._subject = subject
        self._text_of = _TEXT_OF.get(subject)
        self._table = table

    def find(self, request: Request, _identity: Identity | None) -> Hits:
        text = self._text_of(request) if self._text_of is not None else request.get(self._subject)
        return NOTHING if text is None else self._table.find(text)


class HostnameLookup:
    """`hostname`, `hostname_suffix` or `hostname_regex`: what the verified names satisfy or, where none verified,
    the claimed ones."""

    def __init__(self, table: DomainTable | ExpressionTable) -> None:
        self._table = table

    def find(self, _request: Request, identity: Identity | None) -> Hits:
        if identity is None:
            return NOTHING
        names = identity.verified or identity.claimed
        if len(names) == 1:
            return self._table.find(names[0])
        return merge([self._table.find(name) for name in names])


class StatusLookup:
    """`reverse_dns`."""

    def __init__(self, hits: dict[Status, Hits]) -> None:
        self.hits = hits

    def find(self, _request: Request, identity: Identity | None) -> Hits:
        return NOTHING if identity is None else self.hits[identity.status]


Lookup: TypeAlias = "AddressLookup | NameLookup | ValueLookup | ExpressionLookup | HostnameLookup | StatusLookup"


def merge(found: Sequence[Hits]) -> Hits:
    """All of these hits as one."""
    found = [hits for hits in found if hits.conditions]
    if not found:
        return NOTHING
    if len(found) == 1:
        return found[0]
    conditions = frozenset[int]().union(*(hits.conditions for hits in found))
    return Hits(conditions, tuple(sorted({rule for hits in found for rule in hits.rules})))


# --- The index ------------------------------------------------------------------------------------------------------


class Filed(NamedTuple):
    """A lookup, and the rules that are filed under conditions which it answers."""

    lookup: int  # its place in `Index.lookups`
    first: int  # the first such rule: until the ruleset has come to it, the lookup need not be made
    needs_identity: bool
    surely_needed: bool  # whether nothing but the identity can rule `first` out
    rules: tuple[int, ...]  # all such rules, in order; only where `needs_identity`
    exempting: tuple[int, ...]  # of these, the enforcing DUNNO rules


# A lookup's place and a condition's number, of each of some conditions.
Pairs: TypeAlias = "tuple[tuple[int, int], ...]"


class Plan(NamedTuple):
    """How to check one rule that came up."""

    match: Pairs  # without the condition under which the rule is filed
    exceptions: Pairs
    match_identity: Pairs  # what needs the client's identity, all of it
    exceptions_identity: Pairs


class Index(NamedTuple):
    """Everything that the engine asks while it decides."""

    lookups: tuple[Lookup, ...]
    filed: tuple[Filed, ...]  # by `first`
    plans: tuple[Plan, ...]  # by the rule's number
    lookup_of: tuple[int, ...]  # by the condition's number


class Filing:
    """Numbers each combination of conditions that some entry stands for, and makes its Hits; 0 is no condition."""

    def __init__(self, rule_of: Mapping[int, int]) -> None:
        self._rule_of = rule_of  # condition -> the rule that is filed under it
        self._numbers: dict[frozenset[int], int] = {frozenset(): 0}
        self._unions: dict[tuple[int, int], int] = {}
        self.hits: list[Hits] = [NOTHING]

    def number(self, conditions: Iterable[int]) -> int:
        """The number of a combination."""
        combination = frozenset(conditions)
        number = self._numbers.get(combination)
        if number is None:
            number = self._numbers[combination] = len(self.hits)
            self.hits.append(self.hits_of(combination))
        return number

    def hits_of(self, combination: frozenset[int]) -> Hits:
        """What a lookup answers that finds these conditions."""
        rules = sorted({self._rule_of[condition] for condition in combination if condition in self._rule_of})
        return Hits(combination, tuple(rules))

    def union(self, one: int, other: int) -> int:
        """The number of two combinations taken together."""
        if one == other or not other:
            return one
        if not one:
            return other
        number = self._unions.get((one, other))
        if number is None:
            number = self.number(self.hits[one].conditions | self.hits[other].conditions)
            self._unions[one, other] = number
        return number


def build_index(rules: Sequence[Rule], entries: Mapping[int, Sequence[Entries]]) -> Index:
    """Files every entry of every condition.

    `entries` has, by the condition's number, the collections of its entries: `Networks`; folded names, with a
    leading dot where only names under it are meant; folded values; expressions; or statuses. A list that several
    conditions use is the same object in each. Conditions are numbered from 0 without a gap.

    Raises ValueError where an attribute's entries are more than a table can hold.
    """
    conditions = {c.number: c for rule in rules for c in (*rule.match, *rule.exceptions)}
    filed_under = {_filing_condition(rule, entries).number: rule.number for rule in rules}
    filing = Filing(filed_under)
    families: dict[tuple[str, Kind], list[Condition]] = defaultdict(list)
    for condition in conditions.values():
        kind: Kind = Kind.DOMAIN if condition.kind is Kind.NAME else condition.kind
        families[condition.subject, kind].append(condition)

    lookups: list[Lookup] = []
    lookup_of = [0] * len(conditions)
    # Networks last: what their million integers take for a while is not given back to the other tables.
    for (subject, kind), family in sorted(families.items(), key=lambda one: one[0][1] is Kind.NETWORK):
        for condition in family:
            lookup_of[condition.number] = len(lookups)
        lookups.append(_build_lookup(subject, kind, _collections(family, entries), filing))

    def pair(condition: Condition) -> tuple[int, int]:
        return lookup_of[condition.number], condition.number

    plans = tuple(
        Plan(
            tuple(pair(c) for c in rule.match if not c.needs_identity and c.number not in filed_under),
            tuple(pair(c) for c in rule.exceptions if not c.needs_identity),
            tuple(pair(c) for c in rule.match if c.needs_identity),
            tuple(pair(c) for c in rule.exceptions if c.needs_identity),
        )
        for rule in rules
    )
    return Index(tuple(lookups), _filed(rules, conditions, filed_under, lookup_of), plans, tuple(lookup_of))


def _filed(
    rules: Sequence[Rule],
    conditions: Mapping[int, Condition],
    filed_under: Mapping[int, int],
    lookup_of: Sequence[int],
) -> tuple[Filed, ...]:
    by_lookup: dict[int, list[int]] = defaultdict(list)
    with_identity: set[int] = set()
    for condition, rule in filed_under.items():
        by_lookup[lookup_of[condition]].append(rule)
        if conditions[condition].needs_identity:
            with_identity.add(lookup_of[condition])
    filed = []
    for lookup, numbers in by_lookup.items():
        numbers.sort()
        needs_identity = lookup in with_identity
        exempting = (n for n in numbers if rules[n].action.verb is Verb.DUNNO and not rules[n].observe)
        filed.append(
            Filed(
                lookup,
                numbers[0],
                needs_identity,
                needs_identity and _rests_on_identity(rules[numbers[0]]),
                tuple(numbers) if needs_identity else (),
                tuple(exempting) if needs_identity else (),
            )
        )
    return tuple(sorted(filed, key=lambda one: one.first))


def _rests_on_identity(rule: Rule) -> bool:
    return rule.expires is None and all(c.needs_identity for c in (*rule.match, *rule.exceptions))


def _filing_condition(rule: Rule, entries: Mapping[int, Sequence[Entries]]) -> Condition:
    """The condition of a rule's match that is likely to hold for the fewest requests."""
    return min(rule.match, key=lambda condition: _breadth(condition, entries[condition.number]))


def _breadth(condition: Condition, collections: Sequence[Entries]) -> int:
    mail_or_helo = condition.subject in {"helo_name", "sender", "recipient"}
    match condition.kind:
        case Kind.NETWORK:
            return 8 if any(_has_wide(networks) for networks in collections) else 0
        case Kind.NAME | Kind.DOMAIN:
            return 1 if mail_or_helo else 2
        case Kind.VALUE:
            return 1 if mail_or_helo else 6
        case Kind.EXPRESSION if condition.subject == Subject.HOSTNAME:
            return 4
        case Kind.EXPRESSION:
            return 3 if mail_or_helo else 5
        case Kind.STATUS:
            return 7


def _has_wide(networks: Entries) -> bool:
    """Whether there is a network so wide that much of the Internet lies in it. Long lists have none."""
    return (
        isinstance(networks, Networks)
        and len(networks) < 1000
        and (any(packed & 0x3F < 6 for packed in networks.v4) or any(packed & 0xFF < 12 for packed in networks.v6))
    )


def _collections(
    family: Iterable[Condition], entries: Mapping[int, Sequence[Entries]]
) -> list[tuple[Entries, dict[Kind, set[int]]]]:
    """Each collection once, with the conditions that use it, by kind."""
    users: dict[int, tuple[Entries, dict[Kind, set[int]]]] = {}
    for condition in family:
        for collection in entries[condition.number]:
            _, by_kind = users.setdefault(id(collection), (collection, {}))
            by_kind.setdefault(condition.kind, set()).add(condition.number)
    return list(users.values())


def _build_lookup(
    subject: str, kind: Kind, collections: list[tuple[Any, dict[Kind, set[int]]]], filing: Filing
) -> Lookup:
    match kind:
        case Kind.NETWORK:
            v4: list[int] = []
            v6: list[int] = []
            for networks, users in collections:
                number = filing.number(users[kind])
                v4 += [_network_key(packed, number) for packed in networks.v4]
                v6 += [_network_key(packed, number) for packed in networks.v6]
            return AddressLookup(RangeTable.build(v4, v6, filing), filing.hits)
        case Kind.VALUE:
            return ValueLookup(subject, NameTable.build(_by_entry(collections, kind, filing)), filing.hits)
        case Kind.EXPRESSION:
            by_expression = _by_entry(collections, kind, filing)
            hits = tuple(filing.hits[number] for number in by_expression.values())
            expressions = ExpressionTable(tuple(by_expression), hits)
            return (
                HostnameLookup(expressions) if subject == Subject.HOSTNAME else ExpressionLookup(subject, expressions)
            )
        case Kind.STATUS:
            by_status = _by_entry(collections, kind, filing)
            return StatusLookup({status: filing.hits[by_status.get(status, 0)] for status in Status})
        case _:
            domains = _build_domains(collections, filing)
            return HostnameLookup(domains) if subject == Subject.HOSTNAME else NameLookup(subject, domains)


def _by_entry(collections: list[tuple[Any, dict[Kind, set[int]]]], kind: Kind, filing: Filing) -> dict[Any, int]:
    """Each entry with the number of the conditions that it satisfies."""
    numbers: dict[Any, int] = {}
    for entries, users in collections:
        number = filing.number(users[kind])
        if not numbers:
            numbers = dict.fromkeys(entries, number)
            continue
        for entry in entries:
            numbers[entry] = filing.union(numbers.get(entry, 0), number)
    return numbers


def _build_domains(collections: list[tuple[Any, dict[Kind, set[int]]]], filing: Filing) -> DomainTable:
    """Names and suffixes of all collections; a key's number stands for a pair (exact, under) of combinations."""
    known = [(0, 0)]  # pairs by number
    numbers = {(0, 0): 0}
    keys: dict[bytes, int] = {}

    def number_of(pair: tuple[int, int]) -> int:
        number = numbers.setdefault(pair, len(known))
        if number == len(known):
            known.append(pair)
        return number

    def add(names: Sequence[bytes], exact: int, under: int) -> None:
        nonlocal keys
        number = number_of((exact, under))
        if not keys:
            keys = dict.fromkeys(names, number)
            return
        for name in names:
            old = keys.get(name, 0)
            if not old:
                keys[name] = number
            elif old != number:
                old_exact, old_under = known[old]
                keys[name] = number_of((filing.union(old_exact, exact), filing.union(old_under, under)))

    for names, users in collections:
        whole = filing.number(users.get(Kind.NAME, ()))
        suffix = filing.number(users.get(Kind.DOMAIN, ()))
        only_under = [name[1:] for name in names if name.startswith(b".")]
        add(
            [name for name in names if not name.startswith(b".")] if only_under else names,
            filing.union(whole, suffix),
            suffix,
        )
        if only_under:
            add(only_under, 0, suffix)
            if whole:  # a HELO argument may be any word, one that begins with a dot too
                add([name for name in names if name.startswith(b".")], whole, 0)
    exact = [filing.hits[pair[0]] for pair in known]
    under = [filing.hits[pair[1]] for pair in known]
    return DomainTable(NameTable.build(keys), exact, under)
