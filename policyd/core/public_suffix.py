"""The registrable domain of a host name: the domain directly under a public suffix.

The list of public suffixes (https://publicsuffix.org) is passed in, as a function that cuts a name down to its
registrable domain: `policyd.config.public_suffixes` has it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from policyd.core.identity import may_be_host

if TYPE_CHECKING:
    from collections.abc import Callable

# Maximum number of names whose registrable domain is remembered. A site's clients have names under some thousands of
# domains, and a search of the list is slow (20 us).
MAX_REMEMBERED = 16_384


class RegistrableDomains:
    """Finds registrable domains; `cut` takes a name and returns its registrable domain, or None for a suffix."""

    def __init__(self, cut: Callable[[str], str | None]) -> None:
        self._cut = functools.lru_cache(maxsize=MAX_REMEMBERED)(cut)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._cut.__wrapped__,)

    def of(self, name: bytes) -> str | None:
        """Returns the registrable domain of a folded host name; None for a public suffix or an invalid name."""
        host, _, parent = name.partition(b".")
        if not host or not may_be_host(name):
            return None
        above = self._cut(parent.decode("ascii")) if parent else None
        # A parent without a registrable domain is a public suffix, so the name itself was registered.
        return above if above is not None else self._cut(name.decode("ascii"))
