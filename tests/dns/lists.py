"""Definitions of DNS lists for tests."""

from __future__ import annotations

from policyd.config.dns_codes import parse_code
from policyd.config.dns_list import Ask, DnsList


def dns_list(
    name: str = "zen",
    *,
    zone: str = "",
    ask: Ask = Ask.CLIENT_ADDRESS,
    codes: str = "127.0.0.[2..11]",
    refused: str = "",
    self_test: str = "127.0.0.2",
) -> DnsList:
    """A definition as the loader makes it; the zone is `NAME.test` unless it is given."""
    zone = zone or f"{name}.test"
    refusals = (parse_code(refused),) if refused else ()
    return DnsList(name, zone, zone, ask, (parse_code(codes),), refusals, self_test)
