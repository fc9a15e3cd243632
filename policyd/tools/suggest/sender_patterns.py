"""Finds the pattern of sender addresses that change from mail to mail: `rainbow+err000123@`, `rainbow+err000124@`.

Bulk mailers number their bounce addresses, or write the recipient into them (VERP), so a list of addresses is useless.
A `Shape` has the constant parts; senders of one shape probably come from one mailer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Words before the changing part, the longest first. After such a word, letters may change as well as digits.
_BOUNCE_WORD = re.compile("bounces|bounce|errors|error|return|bnc|err|ret")

# Characters that separate the parts of a local part (the text before the @).
_SEPARATOR = re.compile(r"([-+=._])")

# Expressions for the changing parts.
_CHANGING = {"digits": "[0-9]+", "word": "[a-z0-9]+", "rest": ".+"}

# Minimum length of a literal with a separator, such as `rainbow+err`, that identifies a mailer. Shorter literals, such
# as `news` or `b-`, are common, so their patterns need the domain too.
_MIN_DISTINCTIVE = 8


class Shape(NamedTuple):
    """The parts of a local part, in lower case: literal text, and markers of the changing parts (`digits`, `word`,
    `rest`), each with a NUL in front.
    """

    pieces: tuple[str, ...]

    @property
    def literal(self) -> str:
        """The literal text of all pieces."""
        return "".join(piece for piece in self.pieces if not piece.startswith("\0"))

    @property
    def distinctive(self) -> bool:
        """Whether the literal text alone identifies this mailer."""
        return len(self.literal) >= _MIN_DISTINCTIVE and bool(_SEPARATOR.search(self.literal))

    def expression(self, domain: str) -> str:
        """Returns an RE2 expression for senders of this shape; an empty `domain` stands for any domain."""
        local = "".join(_CHANGING[piece[1:]] if piece.startswith("\0") else _escape(piece) for piece in self.pieces)
        return f"^{local}@{_escape(domain)}$" if domain else f"^{local}@"


def shape_of(local: str) -> Shape | None:
    """Returns the shape of a local part; None if no part of it seems to change."""
    pieces: list[str] = []
    tokens = _SEPARATOR.split(local.lower())
    for place, token in enumerate(tokens):
        if tokens[place + 1 : place + 2] == ["="]:
            # VERP (https://cr.yp.to/proto/verp.txt): the rest is the recipient's address.
            pieces.append("\0rest")
            break
        pieces.extend(_pieces_of(token))
    if not any(piece.startswith("\0") for piece in pieces):
        return None
    return Shape(tuple(pieces))


def _pieces_of(token: str) -> list[str]:
    if not token or _SEPARATOR.fullmatch(token):
        return [token] if token else []
    if (word := _BOUNCE_WORD.match(token)) is not None and token[word.end() :].isalnum():
        return [word[0], "\0word"]
    if not any(character.isdigit() for character in token):
        return [token]
    if token.isdigit():
        return ["\0digits"]
    if (numbered := re.fullmatch(r"([a-z]+)[0-9]+", token)) is not None:
        return [numbered[1], "\0digits"]
    return ["\0word"] if token.isalnum() else ["\0rest"]


def _escape(text: str) -> str:
    return re.sub(r"([^A-Za-z0-9_-])", r"\\\1", text)
