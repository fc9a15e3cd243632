"""Reads `dns_lists:` of a ruleset: zone, key, codes and self-test of each list; reports every problem.

The key from a key file never appears in a message: messages have the list's name and the key file's path.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import idna

from policyd.config.definition_reader import NAME_PATTERN, TRUTHS, DefinitionReader, definitions
from policyd.config.dns_codes import CodeError, can_match, parse_code
from policyd.config.dns_list import Ask, DnsList
from policyd.config.files import OversizedError, UnreadableError
from policyd.config.key_file import KEY, read_first_line
from policyd.config.known_zones import known_zone
from policyd.config.problems import did_you_mean, quoted
from policyd.config.yaml_tree import Mapping, Scalar, Sequence, describe
from policyd.core.address import format_address, parse_address
from policyd.core.identity import may_be_host
from policyd.core.normalize import fold_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policyd.config.dns_list import Code
    from policyd.config.known_zones import KnownZone
    from policyd.config.problems import Report
    from policyd.config.yaml_tree import Item, Node

DNS_LIST_KEYS = ("zone", "key_file", "ask", "codes", "refused", "self_test")

# Maximum characters of a zone: an IPv6 address before it takes 64 of a name's 253.
MAX_ZONE = 253 - 64

_NAME = re.compile(NAME_PATTERN)
_LABELS = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")

# The entries that must be listed unless `self_test` names another entry (RFC 5782 section 5).
TEST_ADDRESS = "127.0.0.2"
TEST_NAME = "test"


@dataclass(slots=True)
class WrittenDnsList:
    """One list as written in the file. `definition` is None if anything about it is wrong."""

    name: str
    line: int
    column: int
    definition: DnsList | None = None
    key_file: str = ""  # the path of the key file; empty if there is none
    known: KnownZone | None = None  # the facts about a well-known zone
    exposes_key: bool = False  # the key is written in the rules file
    used: bool = False


def read_dns_lists(
    node: Node, path: str, report: Report, *, in_force: Iterable[DnsList] | None = None
) -> dict[str, WrittenDnsList]:
    """Returns the lists by name; a wrong list has no definition. `path` is the rules file's.

    With `in_force`, the definitions of the lists that rules use, only names are read, and no key file.
    """
    lists: dict[str, WrittenDnsList] = {}
    for item in definitions(node, "dns_lists", path, report):
        key = item.key
        written = lists[key.text] = WrittenDnsList(key.text, key.line, key.column)
        if in_force is not None:
            continue
        reader = _Reader(written, path, report)
        if not _NAME.fullmatch(key.text):
            reader.add(key, "this is not a name for a list; use letters, digits, '-', '_' and '.' only")
        written.definition = reader.read(item.value)
    for definition in in_force or ():
        lists[definition.name].definition = definition
    return lists


class _Reader(DefinitionReader):
    """Reads one definition."""

    def __init__(self, written: WrittenDnsList, path: str, report: Report) -> None:
        super().__init__(f"DNS list {quoted(written.name)}", path, report)
        self._written = written

    def read(self, node: Node) -> DnsList | None:
        """Returns the definition, or None if anything is wrong."""
        if not isinstance(node, Mapping):
            self.add(node, f"expected a definition (zone, codes), not {describe(node)}")
            return None
        self.check_keys(node, DNS_LIST_KEYS)
        shown_zone, zone = self._read_zone(node)
        known = self._written.known = known_zone(zone)
        ask = self._read_ask(node)
        codes = self._read_codes(node, "codes")
        if "codes" not in node.items:
            self.add(node, "'codes' is missing: the answers that mean listed, as in codes: '127.0.0.[2..11]'")
        if "refused" in node.items:
            refused = self._read_codes(node, "refused")
        else:
            refused = tuple(parse_code(text) for text in known.refused) if known is not None else ()
        if codes and not can_match(codes, refused):
            message = "can never match: an answer lies in 127.0.0.0/8, and is neither a refusal nor in `refused`"
            self.add(node.items["codes"].value, f"codes: {message}")
        self_test = self._read_self_test(node, ask, known)
        if self.is_wrong or ask is None:
            return None
        return DnsList(self._written.name, zone, shown_zone, ask, codes, refused, self_test)

    # --- The zone and its key ---------------------------------------------------------------------------------------

    def _read_zone(self, node: Mapping) -> tuple[str, str]:
        """Returns the zone for messages, and the zone to query; both are empty if they are wrong."""
        item, key_item = node.items.get("zone"), node.items.get("key_file")
        key = self._read_key(key_item) if key_item is not None else ""
        if item is None:
            self.add(node, "'zone' is missing: the zone to query, as in zone: zen.spamhaus.org")
            return "", ""
        written = self.text(item, "the name of a zone")
        if not written:
            return "", ""
        if KEY in written and key_item is None:
            self.add(item.value, f"zone: {KEY} needs `key_file`, the file whose first line replaces it")
        elif KEY not in written and key_item is not None:
            self.add(key_item.key, f"key_file: the zone has no {KEY} in it, so the key would not be used")
        # The key's form has been checked; a label takes its place here, so that no message can contain the key.
        shown = fold_zone(written.replace(KEY, "key-goes-here"))
        if shown is None:
            self.add(item.value, f"zone: {quoted(written)} is not the name of a zone; write it as zen.spamhaus.org")
            return "", ""
        zone = fold_zone(written.replace(KEY, key or "key-goes-here"))
        if zone is None:
            self.add(item.value, "zone: the name with the key is longer than a name can be")
            return "", ""
        if KEY not in written and (known := known_zone(zone)) is not None and known.keyed:
            self._written.exposes_key = True
            return f"{KEY}.{zone.partition('.')[2]}", zone
        return written.lower().removesuffix("."), zone

    def _read_key(self, item: Item) -> str:
        """Returns the key; if it cannot be used, reports that and returns an empty text."""
        name = self.text(item, "the name of a file")
        if not name:
            return ""
        path = self._written.key_file = str(Path(self.path).parent / name)
        try:
            key = read_first_line(path)
            mode = Path(path).stat().st_mode
        except (UnreadableError, OversizedError) as error:
            self.add(item.value, f"key_file: {path} {error}")
            return ""
        except OSError as error:
            self.add(item.value, f"key_file: {path} cannot be read: {error.strerror}")
            return ""
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            self.add(item.value, f"key_file: every user of this host can read {path}; chmod o-rwx {path}")
            return ""
        if not _LABELS.fullmatch(key):
            what = "is empty" if not key else "is not a key (letters, digits and '-'; dots between them)"
            self.add(item.value, f"key_file: the first line of {path} {what}")
            return ""
        return key

    # --- The other fields -------------------------------------------------------------------------------------------

    def _read_ask(self, node: Mapping) -> Ask | None:
        item = node.items.get("ask")
        if item is None:
            return Ask.CLIENT_ADDRESS
        word = self.text(item, f"one of {', '.join(Ask)}")
        if word in set(Ask):
            return Ask(word)
        if word:
            hint = did_you_mean(word, Ask) or f"; it is one of {', '.join(Ask)}"
            self.add(item.value, f"ask: a list cannot be asked for {quoted(word)}{hint}")
        return None

    def _read_codes(self, node: Mapping, key: str) -> tuple[Code, ...]:
        """Returns the valid codes; empty if the key is absent."""
        item = node.items.get(key)
        if item is None:
            return ()
        values = item.value.items if isinstance(item.value, Sequence) else [item.value]
        if not values:
            self.add(item.value, f"{key}: the list is empty; write a code, as in '127.0.0.[2..11]'")
        codes = []
        for value in values:
            if not isinstance(value, Scalar) or value.missing:
                self.add(value, f"{key}: expected a code, as '127.0.0.[2..11]' in quotes, not {describe(value)}")
                continue
            try:
                codes.append(parse_code(value.text))
            except CodeError as error:
                self.add(value, f"{key}: {error}")
        return tuple(codes)

    def _read_self_test(self, node: Mapping, ask: Ask | None, known: KnownZone | None) -> str:
        """Returns the entry that must be listed; empty if the list is not to be tested, or if the value is wrong."""
        by_address = ask is None or ask is Ask.CLIENT_ADDRESS
        default = TEST_ADDRESS if by_address else TEST_NAME
        if known is not None and known.lists_names is not by_address:
            default = known.self_test or default
        item = node.items.get("self_test")
        if item is None:
            return default
        written = self.text(item, "what must be listed, or no")
        truth = TRUTHS.get(written.lower())
        if truth is not None or not written:
            return default if truth else ""
        if by_address:
            address = parse_address(written.encode())
            if address is None:
                self.add(
                    item.value,
                    f"self_test: {quoted(written)} is not an address, but this list is queried for addresses",
                )
                return ""
            # An IPv4-mapped address is not converted: it tests a list with IPv6 only (RFC 5782 section 5).
            return (
                f"::ffff:{format_address(address)}" if ":" in written and address[0] == 4 else format_address(address)
            )
        name = fold_name(written.encode())
        if not may_be_host(name):
            self.add(item.value, f"self_test: {quoted(written)} is not a name, but this list is queried for names")
            return ""
        return name.decode("ascii")


def fold_zone(written: str) -> str | None:
    """Returns a zone's name in A-labels, lower case, without the trailing dot; None if it is not a name."""
    try:
        name = fold_name(written.encode()) if written.isascii() else idna.encode(written, uts46=True)
    except idna.IDNAError:
        return None
    return name.decode("ascii") if may_be_host(name) and len(name) <= MAX_ZONE else None
