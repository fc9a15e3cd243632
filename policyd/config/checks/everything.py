"""Whether networks together cover every address that there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from policyd.core.tables import Networks


def together_everything(collections: Sequence[Networks]) -> Iterator[str]:
    """`IPv4` or `IPv6`, or both, if these networks are all of it. Not if one of them is, which needs no adding up."""
    if _is_everything([one.v4 for one in collections], 32, 6):
        yield "IPv4"
    if _is_everything([one.v6 for one in collections], 128, 8):
        yield "IPv6"


def _is_everything(collections: Sequence[Iterable[int]], width: int, bits: int) -> bool:
    """Each network is its first address, followed by its prefix length in `bits` bits (`Networks`)."""
    mask = (1 << bits) - 1
    if any(0 in one for one in collections):
        return False
    # Networks that cover everything are at least as large together; few lists are, and need to be sorted.
    if sum(1 << width - (packed & mask) for one in collections for packed in one) < 1 << width:
        return False
    reached = 0
    for packed in sorted(packed for one in collections for packed in one):
        first, length = packed >> bits, packed & mask
        if first > reached:
            return False
        reached = max(reached, first + (1 << width - length))
    return reached == 1 << width
