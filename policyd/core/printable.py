"""Escapes text from files, clients, name servers and Postfix for messages: the result is one line and cannot control a
terminal.

The caller decides how much of it is shown.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with line breaks, control, bidirectional and unencodable characters escaped as `\\x1b`."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
