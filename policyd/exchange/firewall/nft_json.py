"""Converts the output of `nft -j list ruleset` (libnftables-json(5)) to the text that `nft list ruleset` would print.

A part of a rule that this file cannot convert becomes an unknown word, so that the rule is reported. nft leaves
`auto-merge` out of its JSON and writes a timeout below a second as 0; neither matters to an import. The number of a
line is that of the object in the document's list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from policyd.exchange.json_document import json_document

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from policyd.exchange.model import Line

# Maximum nesting of values; nft uses some 10 levels.
_DEPTH = 50

_UNREADABLE = "unreadable"


def as_text(lines: Iterable[Line]) -> Iterator[Line]:
    """Yields the lines of a ruleset in text form; the file may be text or JSON. Raises `IncompleteError`."""
    waiting = iter(lines)
    for line in waiting:
        if not line.text.strip():
            continue
        if line.text.lstrip().startswith("{"):
            yield from _of_document(line, waiting)
        else:
            yield line
            yield from waiting


def _of_document(first: Line, following: Iterable[Line]) -> Iterator[Line]:
    document = json_document(first, following)
    objects = document.get("nftables") if isinstance(document, dict) else None
    tables: dict[str, list[Line]] = {}
    chains: dict[str, list[Line]] = {}
    for number, item in enumerate(objects if isinstance(objects, list) else [], 1):
        if not isinstance(item, dict) or len(item) != 1:
            continue
        ((kind, fields),) = item.items()
        if not isinstance(fields, dict):
            continue
        table = f"{fields.get('family', 'ip')} {_word(fields.get('table', fields.get('name', '')))}"
        inner = tables.setdefault(table, []) if kind != "metainfo" else []
        if kind == "chain":
            where = chains[f"{table} {fields.get('name')}"] = []
            inner.append(first._replace(number=number, text=f"chain {_word(fields.get('name'))} {{"))
            where += [first._replace(number=number, text=text) for text in _hook(fields)]
            inner += [first._replace(number=number, text=f"\0{table} {fields.get('name')}")]  # the place for its rules
            inner.append(first._replace(number=number, text="}"))
        elif kind == "rule":
            where = chains.setdefault(f"{table} {fields.get('chain')}", [])
            where.append(first._replace(number=number, text=" ".join(map(_statement, _list(fields.get("expr"))))))
        elif kind in {"set", "map"}:
            inner += [first._replace(number=number, text=text) for text in _set(kind, fields)]
    for table, inner in tables.items():
        yield first._replace(number=inner[0].number if inner else 1, text=f"table {table} {{")
        for line in inner:
            if line.text.startswith("\0"):
                yield from chains.get(line.text[1:], [])
            else:
                yield line
        yield first._replace(number=inner[-1].number if inner else 1, text="}")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _word(value: Any) -> str:
    """A value as one word of a ruleset, without characters that would end the word."""
    text = str(value)
    return text if text and not any(c.isspace() or c in '{};,"=#\0' for c in text) else _UNREADABLE


def _hook(fields: dict[str, Any]) -> Iterator[str]:
    if "hook" in fields:
        kind, hook, priority = (_word(fields.get(name, 0)) for name in ("type", "hook", "prio"))
        yield f"type {kind} hook {hook} priority {priority}"
        yield f"policy {_word(fields.get('policy', 'accept'))}"


def _set(kind: str, fields: dict[str, Any]) -> Iterator[str]:
    yield f"{kind} {_word(fields.get('name'))} {{"
    types = " . ".join(map(_word, _list(fields.get("type"))))
    yield f"type {types} : {_word(fields.get('map'))}" if kind == "map" else f"type {types}"
    if fields.get("elem"):
        yield f"elements = {{ {', '.join(map(_element, _list(fields['elem'])))} }}"
    yield "}"


def _element(element: Any, depth: int = 0) -> str:
    if depth > _DEPTH:
        return _UNREADABLE
    if isinstance(element, dict) and isinstance(element.get("elem"), dict):
        fields = element["elem"]
        timeout = f" timeout {_word(fields['timeout'])}s" if "timeout" in fields else ""
        return _value(fields.get("val"), depth + 1) + timeout
    if isinstance(element, list) and len(element) == 2:
        return f"{_element(element[0], depth + 1)} : {_verdict(element[1])}"
    return _value(element, depth + 1)


def _value(value: Any, depth: int = 0) -> str:
    """The right side of a comparison."""
    text = _UNREADABLE
    match value:
        case _ if depth > _DEPTH:
            pass
        case list():
            text = "{ " + ", ".join(_value(item, depth + 1) for item in value) + " }"
        case {"prefix": {"addr": address, "len": length}}:
            text = f"{_word(address)}/{_word(length)}"
        case {"range": [first, last]}:
            text = f"{_value(first, depth + 1)}-{_value(last, depth + 1)}"
        case {"set": elements}:
            text = "{ " + ", ".join(_element(item, depth + 1) for item in _list(elements)) + " }"
        case {"elem": _}:
            text = _element(value, depth + 1)
        case str() | int():
            text = _word(value)
    return text


def _left(value: Any) -> str:
    match value:
        case {"payload": {"protocol": protocol, "field": field}}:
            return f"{_word(protocol)} {_word(field)}"
        case {"meta": {"key": key}}:
            return f"meta {_word(key)}"
        case {"ct": {"key": key}}:
            return f"ct {_word(key)}"
        case {"fib": {"result": result, "flags": flags}}:
            return f"fib {_word(' '.join(map(str, _list(flags))))} {_word(result)}"
        case _:
            return _UNREADABLE


def _verdict(value: Any) -> str:
    match value:
        case {"jump": {"target": target}}:
            return f"jump {_word(target)}"
        case {"goto": {"target": target}}:
            return f"goto {_word(target)}"
        case {"accept": _} | {"drop": _} | {"return": _} | {"continue": _}:
            return str(next(iter(value)))
        case _:
            return _UNREADABLE


def _statement(value: Any) -> str:
    """One statement of a rule."""
    text = _UNREADABLE
    match value:
        case {"match": {"op": operator, "left": left, "right": right}}:
            negation = {"!=": "!= "}.get(operator, "" if operator in {"==", "in"} else f"{_UNREADABLE} ")
            text = f"{_left(left)} {negation}{_value(right)}"
        case {"vmap": {"key": key, "data": data}}:
            text = f"{_left(key)} vmap {_value(data)}"
        case {"accept": _} | {"drop": _} | {"return": _} | {"continue": _} | {"jump": _} | {"goto": _}:
            text = _verdict(value)
        case dict() if len(value) == 1:  # `counter`, `log`, `reject`, or a word that the reader does not know
            text = _word(next(iter(value)))
    return text
