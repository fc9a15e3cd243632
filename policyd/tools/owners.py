"""Finds the owners of clients in a log: from the databases that a ruleset declares, otherwise from the decision log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyd.core.owners import Owner
from policyd.core.protocol import Request
from policyd.tools.display import shown

if TYPE_CHECKING:
    from policyd.core.index import Ruleset


def owner_of(ruleset: Ruleset | None, client_address: bytes, logged: Owner) -> Owner:
    """Returns the owner of an address, from the ruleset's databases or else from the decision log."""
    if ruleset is None or ruleset.owners is None:
        return logged
    found = ruleset.owners.find(Request.of({"client_address": client_address}))
    asn, asn_name = (found.asn, found.asn_name) if found.asn else (logged.asn, logged.asn_name)
    return Owner(asn, asn_name, found.country or logged.country)


def system_name(asn: int, asn_name: str) -> str:
    """Formats an autonomous system as `AS9371 Example Internet Inc.`.

    Everything but printable ASCII is escaped, because the registrant chose the name.
    """
    return f"AS{asn} {shown(asn_name.encode('utf-8', 'replace'))}".rstrip()
