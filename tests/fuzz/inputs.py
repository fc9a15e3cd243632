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

# Maximum bytes of an input. An input of this length may take at most a second of CPU time.
LONG = 64 * 1024

# Maximum bytes of an input that is mutated; longer ones are only tried unchanged.
MUTATED = 8 * 1024

# Pieces that often break parsers.
ODD = (
    b"", b"\0", b"\n", b"\r\n", b"\r", b"\t", b" ", b"\x0b", b"\x0c", b"\x1c", b"\x1b[2J", b"\x7f", b"\x80", b"\xff",
    b"\xc2\x85", b"\xc2\xa0", b"\xe2\x80\xa8", b"\xe2\x80\xae", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xef\xbf\xbd",
    b"\xf0\x9f\x98\x80", b"\xc4\xb0", b"\xc3\x9f", b"\xd9\xa1", b"\xc2\xb2", b"%s", b"{", b"}", b"[", b"]", b"(", b")",
    b"<", b">", b"@", b"=", b":", b"::", b";", b",", b".", b"..", b"#", b"$", b"$$", b"!", b"*", b"+", b"-", b"/",
    b"\\", b"|", b"^", b"'", b'"', b"~", b"&", b"0", b"00", b"-1", b"255", b"256", b"65536", b"4294967296", b"1e999",
    b"9" * 30, b"/0", b"/33", b"/129", b"0.0.0.0", b"::ffff:192.0.2.1", b"unknown", b"null", b"NaN", b"A" * 300,
)  # fmt: skip


def corpus(name: str) -> list[bytes]:
    """The corpus of a target."""
    return [*by_hand(name), *from_long_runs(name)]


def by_hand(name: str) -> list[bytes]:
    """The inputs written by hand."""
    return [path.read_bytes() for path in sorted((FOLDER / "corpus" / name).glob("*"))]


def from_long_runs(name: str) -> list[bytes]:
    """The inputs that long runs added."""
    path = FOLDER / "corpus" / "found" / f"{name}.txt"
    return [ast.literal_eval(line) for line in path.read_text("ascii").splitlines()] if path.exists() else []


def findings(name: str) -> list[bytes]:
    """The inputs that once broke a promise."""
    return [path.read_bytes() for path in sorted((FOLDER / "findings" / name).glob("*"))]


def seeds(name: str, patterns: Sequence[str]) -> list[bytes]:
    """The corpus, the findings, and the files of the project that the patterns name."""
    files = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return [*corpus(name), *findings(name), *(path.read_bytes() for path in files)]


def mutate(content: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Makes a few random changes to an input."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randint(0, len(content))
        end = min(len(content), at + rng.choice((1, 1, 2, 5, 20, 200)))
        match rng.randrange(7):
            case 0:
                content = content[:at] + rng.choice(ODD) + content[at:]
            case 1:
                content = content[:at] + rng.choice(ODD) + content[end:]
            case 2:
                content = content[:at] + content[end:]
            case 3:
                content = content[:end] + content[at:end] * rng.choice((1, 2, 20)) + content[end:]
            case 4:
                content = content[:at] + bytes((rng.randrange(256),)) + content[at + 1 :]
            case 5:
                other = rng.choice(others)
                start = rng.randint(0, len(other))
                content = content[:at] + other[start : start + rng.choice((5, 40, 400))] + content[end:]
            case 6:
                lines = content.split(b"\n")
                lines.insert(rng.randrange(len(lines) + 1), lines.pop(rng.randrange(len(lines))))
                content = b"\n".join(lines)
    return content[:LONG]


def mutations(begin: Sequence[bytes], count: int, seed: str) -> Iterator[bytes]:
    """`count` mutated inputs, the same for the same seed."""
    rng = random.Random(seed)
    known = [*begin]
    for _ in range(count):
        made = mutate(rng.choice(known), begin, rng)
        if rng.randrange(4) == 0:
            known.append(made)  # to mutate it again later
        yield made


_WORDS = re.compile(rb"[\w.-]+|[^\w\s.-]+|\s")
_UNITS = (re.compile(rb"(?s)."), _WORDS, re.compile(rb"[^\n]*\n|[^\n]+"))
_NUMBER = re.compile(rb"[0-9]+")


def short_seeds(name: str, patterns: Sequence[str]) -> list[bytes]:
    """The seeds that are short enough to be mutated."""
    return [content for content in seeds(name, patterns) if len(content) <= MUTATED]


def tokens(content: bytes) -> list[bytes]:
    """The words of an input, and the separators between them."""
    return _WORDS.findall(content)


def stretch(content: bytes, rng: random.Random, length: int = LONG) -> bytes:
    """Repeats a piece of an input (bytes, words or lines) up to a length, unchanged or with other numbers each time.
    Such an input shows time or memory that grows quadratically.
    """
    content = content[:length]
    units = rng.choice(_UNITS).findall(content) or [b"x"]
    first = rng.randrange(len(units))
    piece = b"".join(units[first : first + rng.choice((1, 1, 2, 4))])
    copies = max(0, length - len(content)) // len(piece)
    repeated = piece * copies
    if rng.randrange(2):
        repeated = b"".join(_renumber(piece, number) for number in range(copies))[: length - len(content)]
    return b"".join(units[:first]) + repeated + b"".join(units[first:])


def _renumber(piece: bytes, number: int) -> bytes:
    """Replaces the numbers in a piece by digits of `number` in base 250, from the right. Addresses stay addresses."""

    def digit(_: re.Match[bytes]) -> bytes:
        nonlocal number
        number, rest = divmod(number, 250)
        return b"%d" % rest

    if len(piece) > 4096:
        return piece
    return _NUMBER.sub(lambda found: digit(found)[::-1], piece[::-1])[::-1]
