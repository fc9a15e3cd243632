"""Text of others in messages of our own: one line of it stays one line, and does nothing to a terminal.

Text of a file, a client, a name server or Postfix is escaped here. The caller decides how much of it is shown.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with line breaks, control and bidirectional characters, and what no encoding has, escaped as `\\x1b`."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
