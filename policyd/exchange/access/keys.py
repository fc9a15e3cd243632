"""Reads the keys of Postfix's access(5) tables and sendmail's access_db: names, prefixes of addresses, mail addresses.

`AccessTable` takes the lines for one lookup (of a client, a sender, ...) and returns them as rows, in an order in which
the first matching row is the one that the lookup finds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policyd.exchange.access.specificity import Key, Name, Network, PlainKey, most_specific_first
from policyd.exchange.model import Row, Term, UnsupportedError
from policyd.exchange.values import (
    EXACT_CONDITIONS,
    SUFFIX_CONDITIONS,
    literal,
    looks_like_address,
    network,
    network_text,
    term,
)

if TYPE_CHECKING:
    import netaddr

    from policyd.exchange.model import ConversionReport, Line, Verdict

_OCTETS = re.compile(r"\d+(?:\.\d+){0,3}\.?")
_PAIRS = re.compile(r"[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){0,7}:?", re.IGNORECASE)

_POSTFIX_DOT = (
    "Postfix looks up a key with a leading dot only if parent_domain_matches_subdomains lacks smtpd_access_maps;"
    " it was read as the names under the domain (--dotted confirms this)"
)

# Attributes that can be looked up in a table.
LOOKUPS = tuple(SUFFIX_CONDITIONS)


@dataclass(slots=True)
class AccessTable:
    """The lines for the lookup of `attribute`: `client`, `helo_name`, `sender` or `recipient`.

    `dotted` means that a domain covers only itself, and that `.domain` covers the names under it, as if Postfix's
    parent_domain_matches_subdomains lacks smtpd_access_maps. `delimiter` is Postfix's recipient_delimiter: with `+`,
    `user@domain` also covers `user+extension@domain`. `leading_dot` is the note on a key `.domain` without `dotted`.
    """

    attribute: str
    dotted: bool = False
    delimiter: str = ""
    leading_dot: str = _POSTFIX_DOT
    _stages: tuple[dict[Key, Row], ...] = field(default_factory=lambda: ({}, {}, {}))

    def add(self, key: str, verdict: Verdict, line: Line, report: ConversionReport) -> None:
        """Adds a line under its key.

        Raises `UnsupportedError` if the lookup never uses such a key, or if a line with the same key has been added:
        postmap keeps the first.
        """
        stage, covered, condition = self._read_key(key, line, report)
        row = Row(line, (condition,), verdict)
        first = self._stages[stage].setdefault(covered, row)
        if first is not row:
            raise UnsupportedError(f"the same key as in line {first.line.number}, which takes precedence")

    def rows(self) -> list[Row]:
        """All rows in order: by stage of the lookup, then the most specific first."""
        return [
            row
            for number, stage in enumerate(self._stages)
            for row in most_specific_first(stage, last=not any(self._stages[number + 1 :]))
        ]

    def _read_key(self, key: str, line: Line, report: ConversionReport) -> tuple[int, Key, Term]:
        """Returns the stage of the lookup that uses the key, the names or addresses that the key covers, and the
        equivalent condition.
        """
        if self.attribute in {"sender", "recipient"}:
            return self._read_mail_key(key, line, report)
        if "@" in key or key == "<>":
            raise UnsupportedError(f"a lookup of a {self.attribute} never uses a mail address as its key")
        if self.attribute == "client":
            if (found := octet_network(key)) is not None:
                return 1, Network.of(found), Term("cidr", network_text(found))
            if key == "unknown":
                # Postfix's name for every client without a verified name; in policyd, it is not a host name.
                return 0, PlainKey(key), Term("client_name", key)
        elif key.startswith("["):
            return 0, PlainKey(key), term("helo_name", key)
        return 0, *self._read_name(key, line, report)

    def _read_mail_key(self, key: str, line: Line, report: ConversionReport) -> tuple[int, Key, Term]:
        if key.endswith("@") and len(key) > 1:
            extension = f"({literal(self.delimiter)}[^@]*)?" if self.delimiter else ""
            return 2, PlainKey(key), term(f"{self.attribute}_regex", f"^{literal(key[:-1])}{extension}@")
        if "@" not in key and key != "<>":
            return 1, *self._read_name(key, line, report)
        exact = term(self.attribute, key)
        local, _, domain = key.rpartition("@")
        if self.delimiter and local and self.delimiter not in local:
            pattern = f"^{literal(local)}({literal(self.delimiter)}[^@]*)?@{literal(domain)}$"
            return 0, PlainKey(key), term(f"{self.attribute}_regex", pattern)
        return 0, PlainKey(key), exact

    def _read_name(self, key: str, line: Line, report: ConversionReport) -> tuple[Key, Term]:
        if looks_like_address(key):
            raise UnsupportedError(self._why_no_name(key))
        if self.dotted and not key.startswith("."):
            if self.attribute in EXACT_CONDITIONS:
                return Name(key, exact=True), term(EXACT_CONDITIONS[self.attribute], key)
            return Name(key, exact=True), term(f"{self.attribute}_regex", f"@{literal(key)}$")
        if not self.dotted and key.startswith("."):
            report.note(line, self.leading_dot)
        return Name(key), term(SUFFIX_CONDITIONS[self.attribute], key)

    def _why_no_name(self, key: str) -> str:
        if "/" in key:
            return "in such a table a network with a prefix length never matches; use a cidr: table, or 192.0.2"
        if self.attribute != "client":
            return "an address as a key is supported only in a table for clients"
        return "not an address, a prefix of whole octets, or a name"


def octet_network(key: str) -> netaddr.IPNetwork | None:
    """The network of an address, or of a prefix of octets (`192.0.2`) or, in IPv6, of pairs of octets (`2001:db8`).

    Returns None for a key of another form, such as a name. Raises `UnsupportedError` if the numbers in an address or
    prefix are invalid (access(5), "HOST NAME/ADDRESS PATTERNS").
    """
    if _OCTETS.fullmatch(key):
        octets = key.removesuffix(".").split(".")
        if any(len(octet) > 3 or int(octet) > 255 or (octet[0] == "0" and octet != "0") for octet in octets):
            raise UnsupportedError("neither an address nor a prefix of an address")
        return network(".".join(octets + ["0"] * (4 - len(octets))) + f"/{8 * len(octets)}")
    if "::" in key:
        return network(key) if "/" not in key else None
    if ":" in key and _PAIRS.fullmatch(key):
        pairs = key.removesuffix(":").split(":")
        return network(":".join(pairs + ["0"] * (8 - len(pairs))) + f"/{16 * len(pairs)}")
    return None
