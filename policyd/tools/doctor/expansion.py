"""Expands `$name` in a parameter of main.cf as Postfix does (mac_expand(3)).

Supports `$name`, `${name}`, `$(name)`, `${name?text}`, `${name:text}`, `${name?{text}:{text}}` and
`${{text} == {text} ? {text} : {text}}` with the other comparisons, also of compatibility levels (`<level`). The work is
bounded, because parameters may name each other in circles.
"""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

# Maximum levels of parameters that name each other; Postfix warns at 100.
_MAX_DEPTH = 16

# Maximum number of references in a value, over all levels. Eight parameters that each name the next one eight times
# reach it.
_MAX_REFERENCES = 2000

# Maximum characters of an expanded value. A restriction list has a few hundred.
_MAX_VALUE = 64 * 1024

_NAME = re.compile(r"\w+")
_COMPARISON = re.compile(r"\s*(==|!=|<=|>=|<|>)(level)?\s*(?=\{)")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def expand(text: str, value_of: Callable[[str], str]) -> str:
    """Returns a value with its references expanded.

    `value_of` gives the unexpanded value of a parameter, or an empty text. A reference beyond the limits stays as it
    is, and so does a reference that Postfix could not read either. A result longer than the limit is cut.
    """
    return _Expansion(value_of).expand(text, 0)


class _Expansion:
    """The expansion of one value."""

    def __init__(self, value_of: Callable[[str], str]) -> None:
        self._value_of = value_of
        self._references = 0

    def expand(self, text: str, depth: int) -> str:
        pieces = []
        place = 0
        while (dollar := text.find("$", place)) >= 0:
            pieces.append(text[place:dollar])
            end, expanded = self._reference(text, dollar, depth)
            pieces.append(expanded)
            place = end
        return "".join([*pieces, text[place:]])[:_MAX_VALUE]

    def _reference(self, text: str, dollar: int, depth: int) -> tuple[int, str]:
        """Returns the end of the reference that begins at `dollar`, and its value."""
        self._references += 1
        following = text[dollar + 1 : dollar + 2]
        if following == "$":
            return dollar + 2, "$"
        if following in {"{", "("}:
            end = _end_of_braces(text, dollar + 1, following)
            expanded = self._braced(text[dollar + 2 : end - 1], depth) if end else None
            return (end, expanded) if expanded is not None else (dollar + 1, "$")
        name = _NAME.match(text, dollar + 1)
        return (name.end(), self._value(name[0], depth)) if name else (dollar + 1, "$")

    def _value(self, name: str, depth: int) -> str:
        if depth >= _MAX_DEPTH or self._references > _MAX_REFERENCES:
            return f"${name}"
        return self.expand(self._value_of(name), depth + 1)

    def _braced(self, inner: str, depth: int) -> str | None:
        """Expands the text between the braces of a reference; returns None if it cannot be read."""
        if depth >= _MAX_DEPTH:
            return None
        rest = inner.lstrip()
        if rest.startswith("{"):
            comparison = self._comparison(rest, depth)
            if comparison is None:
                return None
            holds, rest = comparison
            value = "true" if holds else ""
        else:
            name = _NAME.match(rest)
            if name is None:
                return None
            rest = rest[name.end() :]
            value = self._value(name[0], depth)
        if not rest.strip():
            return value
        branch = _branch(rest.lstrip(), is_set=bool(value))
        return None if branch is None else self.expand(branch, depth + 1)

    def _comparison(self, text: str, depth: int) -> tuple[bool, str] | None:
        """Returns whether `{left} == {right}` holds, and the rest of the text; None if it cannot be read."""
        end = _end_of_braces(text, 0, "{")
        comparison = _COMPARISON.match(text, end) if end else None
        if comparison is None:
            return None
        last = _end_of_braces(text, comparison.end(), "{")
        if not last:
            return None
        left = self.expand(text[1 : end - 1], depth + 1)
        right = self.expand(text[comparison.end() + 1 : last - 1], depth + 1)
        compare = _COMPARE[comparison[1]]
        if comparison[2]:
            return compare(_level(left), _level(right)), text[last:].lstrip()
        if left.isdigit() and right.isdigit():
            return compare(int(left), int(right)), text[last:].lstrip()
        return compare(left, right), text[last:].lstrip()


def _branch(rest: str, *, is_set: bool) -> str | None:
    """Returns the branch of `?{text}:{text}`, `?text` or `:text` that applies; None if it cannot be read."""
    kind, branch = rest[0], rest[1:].lstrip()
    if kind not in "?:":
        return None
    end = _end_of_braces(branch, 0, "{") if branch.startswith("{") else 0
    if not end:  # the old form without braces, with one branch
        return rest[1:] if is_set == (kind == "?") else ""
    first, following = branch[1 : end - 1].strip(), branch[end:].strip()
    if kind == ":" or not following:
        return first if is_set == (kind == "?") else ""
    if not following.startswith(":"):
        return None
    second = following[1:].strip()
    return first if is_set else second[1:-1].strip() if second.startswith("{") and second.endswith("}") else second


def _end_of_braces(text: str, start: int, opening: str) -> int:
    """Returns the position after the brace that closes the brace at `start`; 0 if no brace closes it."""
    closing = {"{": "}", "(": ")"}[opening]
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == opening) - (text[place] == closing)
        if not depth:
            return place + 1
    return 0


def _level(text: str) -> tuple[int, ...]:
    """Returns a compatibility level such as `3.6` as numbers (compat_level(3))."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3]) or (0,)
