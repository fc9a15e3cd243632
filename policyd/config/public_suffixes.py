"""The list of public suffixes (https://publicsuffix.org). Each function reads it at its first call (60 ms)."""

from __future__ import annotations

import functools

from publicsuffixlist import PublicSuffixList

from policyd.core.public_suffix import RegistrableDomains


@functools.cache
def registry_suffixes() -> PublicSuffixList:
    """Returns the suffixes of registries only: the ICANN section."""
    return PublicSuffixList(only_icann=True)


@functools.cache
def all_suffixes() -> PublicSuffixList:
    """Returns both sections, with the suffixes under which a company gives names to its customers."""
    return PublicSuffixList()


@functools.cache
def registrable_domains() -> RegistrableDomains:
    """Returns an object that finds registrable domains by the ICANN section."""
    return RegistrableDomains(registry_suffixes().privatesuffix)
