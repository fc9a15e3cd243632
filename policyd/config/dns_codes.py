"""Parses codes of DNS lists: patterns of the answers that have a meaning, in Postfix's syntax (postconf(5)).

A code is an address whose parts are numbers or `[a;b;c..d]`.
"""

from __future__ import annotations

import re

from policyd.config.dns_list import Code
from policyd.config.problems import quoted

_PARTS = re.compile(r"\[[^\[\]]*\]|[^.\[\]]+")
_NUMBER = re.compile(r"[0-9]{1,3}")


class CodeError(Exception):
    """The text is not a code. The message says why."""


def parse_code(text: str) -> Code:
    """Parses `127.0.0.2` or `127.0.[0..2].[2;4..8]`. Raises CodeError."""
    written = text.strip()
    parts = _PARTS.findall(written)
    if ".".join(parts) != written or len(parts) != 4:
        raise CodeError(
            f"{quoted(text)} is not a code; write an address whose parts are numbers or [a;b;c..d], "
            "as in 127.0.0.[2..11]"
        )
    first, second, third, fourth = (_parse_part(part, text) for part in parts)
    return Code(written, (first, second, third, fourth))


def _parse_part(part: str, text: str) -> int:
    """Returns one part of a code as a bit mask."""
    if not part.startswith("["):
        return 1 << _parse_number(part, text)
    mask = 0
    for piece in part[1:-1].split(";"):
        first, dots, last = piece.partition("..")
        low = _parse_number(first, text)
        high = _parse_number(last, text) if dots else low
        if high < low:
            raise CodeError(f"{quoted(text)}: the range {piece.strip()} is empty; write {high}..{low}")
        mask |= (1 << high + 1) - (1 << low)
    return mask


def _parse_number(word: str, text: str) -> int:
    word = word.strip()
    if not _NUMBER.fullmatch(word) or int(word) > 255:
        raise CodeError(f"{quoted(text)}: {quoted(word)} is not a number from 0 to 255")
    return int(word)


def can_match(codes: tuple[Code, ...], refused: tuple[Code, ...]) -> bool:
    """Whether any address of the codes means *listed*. Addresses outside 127.0.0.0/8 and refusals do not."""
    return any(
        code.parts[3] & ~_refusals(second, third, refused)
        for code in codes
        if code.parts[0] >> 127 & 1
        for second in _numbers(code.parts[1])
        for third in _numbers(code.parts[2])
    )


def _numbers(mask: int) -> list[int]:
    return [number for number in range(256) if mask >> number & 1]


def _refusals(second: int, third: int, refused: tuple[Code, ...]) -> int:
    """Returns the last parts, as a bit mask, with which an address 127.`second`.`third`.x is a refusal."""
    if (second, third) == (255, 255):  # always a refusal, like 127.0.1.255 below
        return (1 << 256) - 1
    mask = 1 << 255 if (second, third) == (0, 1) else 0
    for code in refused:
        if code.parts[0] >> 127 & code.parts[1] >> second & code.parts[2] >> third & 1:
            mask |= code.parts[3]
    return mask
