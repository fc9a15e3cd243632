"""The seeds of fuzzing, and their mutations.

The corpus is in `corpus/TARGET/`, a file for each case written by hand, and in `corpus/found/TARGET.txt`, inputs that
long runs added: a Python bytes literal on each line. `findings/TARGET/` has inputs that once broke a promise.
"""

from __future__ import annotations

import ast
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]

# The bar for time (a second, on any machine that is not much slower than ours) is for inputs of this length.
LONG = 64 * 1024

# Maximum bytes of an input that is mutated; longer ones are only tried as they are.
CHANGED = 8 * 1024

# Pieces that often break parsers.
ODD = (
    b"", b"\0", b"\n", b"\r\n", b"\r", b"\t", b" ", b"\x0b", b"\x0c", b"\x1c", b"\x1b[2J", b"\x7f", b"\x80", b"\xff",
    b"\xc2\x85", b"\xc2\xa0", b"\xe2\x80\xa8", b"\xe2\x80\xae", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xef\xbf\xbd",
    b"\xf0\x9f\x98\x80", b"\xc4\xb0", b"\xc3\x9f", b"\xd9\xa1", b"\xc2\xb2", b"%s", b"{", b"}", b"[", b"]", b"(", b")",
    b"<", b">", b"@", b"=", b":", b"::", b";", b",", b".", b"..", b"#", b"$", b"$$", b"!", b"*", b"+", b"-", b"/",
    b"\\", b"|", b"^", b"'", b'"', b"~", b"&", b"0", b"00", b"-1", b"255", b"256", b"65536", b"4294967296", b"1e999",
    b"9" * 30, b"/0", b"/33", b"/129", b"0.0.0.0", b"::ffff:192.0.2.1", b"unknown", b"null", b"NaN", b"A" * 300,
)  # fmt: skip


def own(name: str) -> list[bytes]:
    """The corpus of a target."""
    return [*written(name), *found(name)]


def written(name: str) -> list[bytes]:
    """The inputs written by hand."""
    return [path.read_bytes() for path in sorted((FOLDER / "corpus" / name).glob("*"))]


def found(name: str) -> list[bytes]:
    """The inputs that long runs added."""
    path = FOLDER / "corpus" / "found" / f"{name}.txt"
    return [ast.literal_eval(line) for line in path.read_text("ascii").splitlines()] if path.exists() else []


def findings(name: str) -> list[bytes]:
    """The inputs that once broke a promise."""
    return [path.read_bytes() for path in sorted((FOLDER / "findings" / name).glob("*"))]


def seeds(name: str, patterns: Sequence[str]) -> list[bytes]:
    """The corpus, the findings, and the files of the project that the patterns name."""
    files = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return [*own(name), *findings(name), *(path.read_bytes() for path in files)]


def changed(content: bytes, others: Sequence[bytes], chosen: random.Random) -> bytes:
    """The input with a few changes of the kind that people, networks and attackers make."""
    for _ in range(chosen.choice((1, 1, 1, 2, 3, 6))):
        at = chosen.randint(0, len(content))
        end = min(len(content), at + chosen.choice((1, 1, 2, 5, 20, 200)))
        match chosen.randrange(7):
            case 0:
                content = content[:at] + chosen.choice(ODD) + content[at:]
            case 1:
                content = content[:at] + chosen.choice(ODD) + content[end:]
            case 2:
                content = content[:at] + content[end:]
            case 3:
                content = content[:end] + content[at:end] * chosen.choice((1, 2, 20)) + content[end:]
            case 4:
                content = content[:at] + bytes((chosen.randrange(256),)) + content[at + 1 :]
            case 5:
                other = chosen.choice(others)
                start = chosen.randint(0, len(other))
                content = content[:at] + other[start : start + chosen.choice((5, 40, 400))] + content[end:]
            case 6:
                lines = content.split(b"\n")
                lines.insert(chosen.randrange(len(lines) + 1), lines.pop(chosen.randrange(len(lines))))
                content = b"\n".join(lines)
    return content[:LONG]


def changes(begin: Sequence[bytes], count: int, seed: str) -> Iterator[bytes]:
    """`count` mutated inputs, the same for the same seed."""
    chosen = random.Random(seed)
    known = [*begin]
    for _ in range(count):
        made = changed(chosen.choice(known), begin, chosen)
        if chosen.randrange(4) == 0:
            known.append(made)  # changed again later
        yield made


_WORDS = re.compile(rb"[\w.-]+|[^\w\s.-]+|\s")
_UNITS = (re.compile(rb"(?s)."), _WORDS, re.compile(rb"[^\n]*\n|[^\n]+"))
_NUMBER = re.compile(rb"[0-9]+")


def to_change(name: str, patterns: Sequence[str]) -> list[bytes]:
    """The seeds that are short enough to be changed often."""
    return [content for content in seeds(name, patterns) if len(content) <= CHANGED]


def tokens(content: bytes) -> list[bytes]:
    """The words of an input, and the separators between them."""
    return _WORDS.findall(content)


def stretched(content: bytes, chosen: random.Random, length: int = LONG) -> bytes:
    """The input with a piece of it (a byte, a word, a line, or some of them) repeated up to a length, as it is or with
    other numbers each time: such an input shows time or memory that grows quadratically.
    """
    content = content[:length]
    units = chosen.choice(_UNITS).findall(content) or [b"x"]
    first = chosen.randrange(len(units))
    piece = b"".join(units[first : first + chosen.choice((1, 1, 2, 4))])
    copies = max(0, length - len(content)) // len(piece)
    repeated = piece * copies
    if chosen.randrange(2):
        repeated = b"".join(_renumbered(piece, number) for number in range(copies))[: length - len(content)]
    return b"".join(units[:first]) + repeated + b"".join(units[first:])


def _renumbered(piece: bytes, number: int) -> bytes:
    """The piece with its numbers replaced by the digits of another, from the right; addresses stay addresses."""

    def digit(_: re.Match[bytes]) -> bytes:
        nonlocal number
        number, rest = divmod(number, 250)
        return b"%d" % rest

    if len(piece) > 4096:
        return piece
    return _NUMBER.sub(lambda found: digit(found)[::-1], piece[::-1])[::-1]
