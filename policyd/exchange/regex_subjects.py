"""Decides whether expressions can match a host name, address or mail address, and whether one implies another.

Uses finite automata over printable ASCII in lower case. Constructs that the automata cannot express, such as word
boundaries, count as "may match", so `can_match` is never wrongly false and `implies` never wrongly true.
"""

from __future__ import annotations

import functools
import heapq
import re
from collections import deque
from dataclasses import dataclass, field

import re2

from policyd.core.lookups import expression_options

# Printable ASCII without capitals: expressions ignore case.
_ALPHABET = frozenset(chr(code) for code in range(0x20, 0x7F) if not 0x41 <= code <= 0x5A)

# A character that represents the text around a match; no expression contains it.
_AROUND = "\0"

# Maximum number of states of an automaton. Expressions of real tables have up to 500; `{1000}` repeats its part 1,000
# times.
_MAX_STATES = 4_000

# Maximum number of combined states visited for one question. Real tables need up to 300.
_MAX_VISITED = 3_000

# Maximum steps for the questions about one line. A step takes 0.3 us: one character in one state of one automaton. The
# lines of the longest public table take 29,000 steps on average, and at most 330,000.
_MAX_LINE_STEPS = 1_000_000

# Maximum steps for the questions about one file: `_FIRST_STEPS`, and `_STEPS_PER_LINE` for each line, up to
# `_MAX_FILE_STEPS`.
_FIRST_STEPS = 8_000_000
_STEPS_PER_LINE = 40_000
_MAX_FILE_STEPS = 60_000_000

# Maximum number of states of all automata that are kept for further questions; a state takes some 500 bytes.
_MAX_KEPT_STATES = 200_000

# Maximum nesting of groups; each takes a few levels of Python's own stack.
_MAX_DEPTH = 50

_START, _END = "start", "end"

_FAR = 1 << 30

_REPEAT = re.compile(r"\{(\d{1,4})(?:(,)(\d{0,4}))?\}")
_FLAGS = re.compile(r"\(\?(?:P?<\w+>|([a-zA-Z]*)(?:-[a-zA-Z]+)?(:?))")
_CLASS = re.compile(r"\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\]", re.DOTALL)
_HEX = re.compile(r"\\x(?:[0-9a-fA-F]{2}|\{[0-9a-fA-F]{1,6}\})")
_UNICODE_CLASS = re.compile(r"\\[pP](?:\{\^?\w+\}|\w)")


class _UnsupportedError(Exception):
    """The expression has a construct without an automaton."""


@dataclass(slots=True)
class Automaton:
    """Accepts the texts that an expression matches. `exact` is false if it may also accept other texts."""

    exact: bool = True
    accept: int = 0
    # For each state: the states reached without a character (with an assertion or ""), and those reached by one.
    _silent: list[list[tuple[str, int]]] = field(default_factory=list)
    _moves: list[list[tuple[frozenset[str], int]]] = field(default_factory=list)
    _known_closures: dict[tuple[frozenset[int], bool, bool], frozenset[int]] = field(default_factory=dict)
    _known_steps: dict[tuple[frozenset[int], str], frozenset[int]] = field(default_factory=dict)
    _distances: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The number of states."""
        return len(self._moves)

    def new_state(self) -> int:
        """Adds a state without transitions."""
        if len(self._moves) >= _MAX_STATES:
            raise _UnsupportedError
        self._silent.append([])
        self._moves.append([])
        return len(self._moves) - 1

    def connect(self, start: int, end: int, assertion: str = "") -> None:
        """Adds a transition from `start` to `end` without a character, if the assertion holds."""
        self._silent[start].append((assertion, end))

    def move(self, start: int, characters: frozenset[str], end: int) -> None:
        """Adds a transition from `start` to `end` for these characters."""
        self._moves[start].append((characters, end))

    def first(self) -> frozenset[int]:
        """The states before the first character."""
        return self._closure(frozenset({0}), at_start=True, at_end=False)

    def step(self, states: frozenset[int], character: str) -> frozenset[int]:
        """The states after one more character."""
        known = self._known_steps.get((states, character))
        if known is None:
            reached = {end for state in states for characters, end in self._moves[state] if character in characters}
            closed = self._closure(frozenset(reached), at_start=False, at_end=False)
            known = frozenset([state for state in closed if self.distances()[state] < _FAR])
            self._known_steps[states, character] = known
        return known

    def accepts(self, states: frozenset[int], *, at_start: bool) -> bool:
        """Whether a text may end in these states; `at_start` if it is empty."""
        return self.accept in states or self.accept in self._closure(states, at_start=at_start, at_end=True)

    def distances(self) -> list[int]:
        """The minimum number of characters from each state to acceptance, or `_FAR` if acceptance cannot be reached.

        Applies after the first character, where the assertion `_START` no longer holds.
        """
        if not self._distances:
            before: list[list[tuple[int, int]]] = [[] for _ in self._moves]
            for state, silent in enumerate(self._silent):
                for assertion, end in silent:
                    if assertion != _START:
                        before[end].append((state, 0))
                for _, end in self._moves[state]:
                    before[end].append((state, 1))
            self._distances = [_FAR] * len(before)
            self._distances[self.accept] = 0
            waiting = deque([self.accept])
            while waiting:
                end = waiting.popleft()
                for state, length in before[end]:
                    if self._distances[end] + length < self._distances[state]:
                        self._distances[state] = self._distances[end] + length
                        waiting.append(state)
        return self._distances

    def reachable(self, characters: list[str]) -> bool:
        """Whether some text of these characters is accepted, ignoring assertions: fast, and often sufficient."""
        found, waiting = {0}, [0]
        while waiting:
            state = waiting.pop()
            ends = [end for _, end in self._silent[state]]
            ends += [end for group, end in self._moves[state] if not group.isdisjoint(characters)]
            for end in ends:
                if end not in found:
                    found.add(end)
                    waiting.append(end)
        return self.accept in found

    def groups(self) -> list[frozenset[str]]:
        """The sets of characters that have transitions."""
        return [characters for moves in self._moves for characters, _ in moves]

    def _closure(self, states: frozenset[int], *, at_start: bool, at_end: bool) -> frozenset[int]:
        key = states, at_start, at_end
        known = self._known_closures.get(key)
        if known is None:
            found, waiting = set(states), list(states)
            while waiting:
                for assertion, end in self._silent[waiting.pop()]:
                    if end in found or (assertion == _START and not at_start) or (assertion == _END and not at_end):
                        continue
                    found.add(end)
                    waiting.append(end)
            known = self._known_closures[key] = frozenset(found)
        return known


def _anything(around: frozenset[str]) -> Automaton:
    """The automaton for an unsupported expression: it may match every text."""
    made = Automaton(exact=False)
    made.accept = made.new_state()
    made.move(0, _ALPHABET | around, 0)
    return made


@functools.lru_cache(maxsize=1024)
def _matching(token: str) -> frozenset[str]:
    """The characters of the alphabet that a class or an escape matches."""
    try:
        compiled = re2.compile(token, expression_options())
    except re2.error:
        raise _UnsupportedError from None
    return frozenset(character for character in _ALPHABET if compiled.fullmatch(character))


class _Parser:
    """Builds the automaton of an expression in RE2's syntax, part by part from left to right."""

    def __init__(self, expression: str) -> None:
        self._text = expression
        self._place = 0
        self._made = Automaton()

    @property
    def size(self) -> int:
        """The number of states so far."""
        return self._made.size

    def build(self, around: frozenset[str]) -> Automaton:
        """Returns the automaton; a match may lie between characters of `around`. Raises `_UnsupportedError`."""
        made = self._made
        start = made.new_state()
        made.move(start, around, start)
        begin, end = self._alternatives(0)
        if self._place < len(self._text):
            raise _UnsupportedError
        made.connect(start, begin)
        made.accept = end
        made.move(end, around, end)
        return made

    def _alternatives(self, depth: int) -> tuple[int, int]:
        if depth > _MAX_DEPTH:
            raise _UnsupportedError
        begin, end = self._made.new_state(), self._made.new_state()
        while True:
            first, last = self._sequence(depth)
            self._made.connect(begin, first)
            self._made.connect(last, end)
            if not self._text.startswith("|", self._place):
                return begin, end
            self._place += 1

    def _sequence(self, depth: int) -> tuple[int, int]:
        begin = end = self._made.new_state()
        while self._place < len(self._text) and self._text[self._place] not in "|)":
            first, last = self._repeated(depth)
            self._made.connect(end, first)
            end = last
        return begin, end

    def _repeated(self, depth: int) -> tuple[int, int]:
        start = self._place
        part = self._part(depth)
        after = self._place
        minimum, maximum = self._quantifier()
        if (minimum, maximum) == (1, 1):
            return part
        made = self._made
        begin = end = made.new_state()
        for number in range(max(minimum, maximum or minimum or 1)):
            if number:  # the same part again
                self._place = start
                part = self._part(depth)
                self._place = after
            made.connect(end, part[0])
            if number >= minimum:
                made.connect(end, part[1])
            end = part[1]
        if maximum is None:  # the last part any number of times
            made.connect(part[1], part[0])
        self._quantifier()  # skips the quantifier if the part was parsed again
        return begin, end

    def _quantifier(self) -> tuple[int, int | None]:
        """The minimum and maximum number of repetitions of the part before it (None: unlimited)."""
        character = self._text[self._place : self._place + 1]
        match = _REPEAT.match(self._text, self._place)
        if character and character in "*+?":
            self._place += 1
            found: tuple[int, int | None] = {"*": (0, None), "+": (1, None), "?": (0, 1)}[character]
        elif match is not None:
            self._place = match.end()
            minimum = int(match[1])
            found = (minimum, int(match[3]) if match[3] else None) if match[2] else (minimum, minimum)
            if found == (0, 0):
                raise _UnsupportedError
        else:
            return 1, 1
        if self._text.startswith("?", self._place):  # lazy: no difference here
            self._place += 1
        return found

    def _part(self, depth: int) -> tuple[int, int]:
        text, place = self._text, self._place
        character = text[place]
        if character == "(":
            return self._group(depth)
        begin, end = self._made.new_state(), self._made.new_state()
        if character in "^$":
            self._place += 1
            self._made.connect(begin, end, _START if character == "^" else _END)
        elif character == "\\":
            self._escape(begin, end)
        elif character == "[":
            match = _CLASS.match(text, place)
            if match is None:
                raise _UnsupportedError
            self._place = match.end()
            self._made.move(begin, _matching(match[0]), end)
        elif character == ".":
            self._place += 1
            self._made.move(begin, _ALPHABET, end)
        else:
            self._place += 1
            self._made.move(begin, frozenset({character.lower()}), end)
        return begin, end

    def _group(self, depth: int) -> tuple[int, int]:
        match = _FLAGS.match(self._text, self._place)
        self._place = match.end() if match else self._place + 1
        if match is not None and match[0] != "(?:":
            self._made.exact = False  # with `-i` the expression matches less than the case-insensitive automaton
            if match[1] is not None and not match[2]:  # only flags: `(?i)`
                if not self._text.startswith(")", self._place):
                    raise _UnsupportedError
                self._place += 1
                state = self._made.new_state()
                return state, state
        found = self._alternatives(depth + 1)
        if not self._text.startswith(")", self._place):
            raise _UnsupportedError
        self._place += 1
        return found

    def _escape(self, begin: int, end: int) -> None:
        text, place = self._text, self._place
        letter = text[place + 1 : place + 2]
        self._place += 2
        if letter == "A":
            self._made.connect(begin, end, _START)
        elif letter == "z":
            self._made.connect(begin, end, _END)
        elif letter in ("b", "B"):
            self._made.exact = False
            self._made.connect(begin, end)
        elif letter == "Q":
            stop = text.find("\\E", place)
            stop = stop if stop >= 0 else len(text)
            state = begin
            for character in text[place + 2 : stop]:
                following = self._made.new_state()
                self._made.move(state, frozenset({character.lower()}), following)
                state = following
            self._made.connect(state, end)
            self._place = stop + 2
        elif letter and (letter.isdigit() or letter == "C"):
            raise _UnsupportedError
        else:
            match = _HEX.match(text, place) or _UNICODE_CLASS.match(text, place)
            token = match[0] if match else text[place : place + 2]
            self._place = place + len(token)
            self._made.move(begin, _matching(token), end)


# --- Questions --------------------------------------------------------------------------------------------------------

# Host names as Postfix accepts them (`valid_hostname.c`): labels of letters, digits, `-` and `_`. The second expression
# excludes names that consist of digits and dots only.
_LABEL = "[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
NAMES = (rf"^{_LABEL}(?:\.{_LABEL})*$", "[a-z_-]")

# Addresses as Postfix writes them; for IPv6, the expression also matches a few other texts.
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
ADDRESSES = (rf"^(?:{_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}|(?:[0-9a-f]{{0,4}}:)+[0-9a-f]{{0,4}})$",)

# Mail addresses contain no blank or colon, unlike header lines. The null sender is `<>`, as in Postfix's tables.
MAIL_ADDRESSES = (rf"^(?:<>|[^ :@]+@{_LABEL}(?:\.{_LABEL})*)$",)

# The note on an expression that can match neither the name nor the address of a client.
ONLY_SENDERS = "only a mail address can match it, so it was read as an expression for senders (--attribute)"


class Questions:
    """Answers questions about the expressions of one file, in bounded time.

    The limits count steps, so that the same file gets the same answers on every machine. Beyond a limit, `can_match` is
    true and `implies` is false; `gave_up` says whether this happened for the current line.
    """

    def __init__(self) -> None:
        self.gave_up = False
        self._spent = 0
        self._allowed = _FIRST_STEPS
        self._limit = 0
        self._known: dict[tuple[str, frozenset[str]], Automaton] = {}
        self._kept_states = 0

    def begin_line(self) -> None:
        """Begins the questions about another line."""
        self.gave_up = False
        self._allowed = min(self._allowed + _STEPS_PER_LINE, _MAX_FILE_STEPS)
        self._limit = min(self._spent + _MAX_LINE_STEPS, self._allowed)

    def _is_over(self) -> bool:
        """Whether a limit has been reached."""
        self.gave_up |= self._spent >= self._limit
        return self.gave_up

    def _automaton(self, expression: str, around: frozenset[str] = _ALPHABET | {_AROUND}) -> Automaton:
        known = self._known.get((expression, around))
        if known is None:
            parser = _Parser(expression)
            try:
                known = parser.build(around)
            except _UnsupportedError:
                known = _anything(around)
                self.gave_up |= parser.size >= _MAX_STATES
            self._spent += 15 * parser.size
            self._kept_states += known.size
            if self._kept_states > _MAX_KEPT_STATES:
                self._known.clear()
                self._kept_states = known.size
            self._known[expression, around] = known
        return known

    def can_match(self, language: tuple[str, ...], needed: list[str], excluded: list[str]) -> bool:
        """Whether every expression of `needed` and none of `excluded` may be found in some text of a language (`NAMES`,
        ...).
        """
        if self._is_over():
            return True
        wanted = [self._automaton(text) for text in (*needed, *language)]
        # An inexact automaton would exclude too much; without it the answer may be a wrong "may match", but not a wrong
        # "cannot match".
        unwanted = [automaton for text in excluded if (automaton := self._automaton(text)).exact]
        return self._meet(wanted, unwanted)

    def implies(self, inner: str, outer: str) -> bool:
        """Whether `outer` is found in every text in which `inner` is found."""
        if self._is_over() or not (automaton := self._automaton(outer)).exact:
            return False
        # `outer` nearly always matches within the match of `inner`, so the first search has no text around that match.
        without_text = self._automaton(inner, frozenset({_AROUND}))
        return not self._meet([without_text], [automaton]) or not self._meet([self._automaton(inner)], [automaton])

    def _meet(self, wanted: list[Automaton], unwanted: list[Automaton]) -> bool:
        """Whether all wanted automata and no unwanted automaton accept some text; true if the search takes too long."""
        automata = (*wanted, *unwanted)
        self._spent += 5 * sum(automaton.size for automaton in automata)  # each is searched once
        representatives = _representatives(automata)
        if not all(automaton.reachable(representatives) for automaton in wanted):
            return False
        wanted_count = len(wanted)
        first = tuple(automaton.first() for automaton in automata)
        seen = {first}
        distances = [automaton.distances() for automaton in wanted]
        waiting = [(0, 0, first, True)]  # a heap: the state nearest to acceptance comes first
        while waiting:
            _, _, states, at_start = heapq.heappop(waiting)
            self._spent += len(representatives) * sum(map(len, states))
            self.gave_up |= len(seen) >= _MAX_VISITED
            if self._is_over() or _is_accepted(automata, states, wanted_count, at_start=at_start):
                return True
            for character in representatives:
                following = _following(automata, states, character, wanted_count)
                if following is None or following in seen:
                    continue
                if any(
                    automaton.accept in reached
                    for automaton, reached in zip(unwanted, following[wanted_count:], strict=True)
                ):
                    continue  # an expression that has matched stays matched, whatever follows
                seen.add(following)
                wanted_states = following[:wanted_count]
                distance = sum(
                    min(lengths[state] for state in reached)
                    for lengths, reached in zip(distances, wanted_states, strict=True)
                )
                heapq.heappush(waiting, (distance, len(seen), following, False))
        return False


def _is_accepted(
    automata: tuple[Automaton, ...], states: tuple[frozenset[int], ...], wanted_count: int, *, at_start: bool
) -> bool:
    """Whether a text may end here: the first `wanted_count` automata accept the text, and no other does."""
    return all(
        automaton.accepts(reached, at_start=at_start) == (number < wanted_count)
        for number, (automaton, reached) in enumerate(zip(automata, states, strict=True))
    )


def _following(
    automata: tuple[Automaton, ...], states: tuple[frozenset[int], ...], character: str, wanted_count: int
) -> tuple[frozenset[int], ...] | None:
    """The states after one more character, or None if one of the first `wanted_count` automata has none."""
    following: list[frozenset[int]] = []
    for automaton, before in zip(automata, states, strict=True):
        reached = automaton.step(before, character)
        if not reached and len(following) < wanted_count:
            return None
        following.append(reached)
    return tuple(following)


def _representatives(automata: tuple[Automaton, ...]) -> list[str]:
    """Returns one character from each group of characters that all automata treat in the same way."""
    groups = list(dict.fromkeys(group for automaton in automata for group in automaton.groups()))
    known = (_ALPHABET | {_AROUND}).intersection(*(frozenset().union(*automaton.groups()) for automaton in automata))
    alike: dict[tuple[bool, ...], str] = {}
    for character in sorted(known):
        alike.setdefault(tuple([character in group for group in groups]), character)
    return list(alike.values())
