"""`policyd block` and `allow`: write a line with an end and a reason into one of this host's lists.

The line goes into a copy of the list, and the rules in force are checked with the copy. After that, the copy replaces
the list in one rename, under the same lock as `policyd fetch`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from policyd.config.conditions import Form
from policyd.config.dates import format_end
from policyd.config.entries import parse_entries
from policyd.config.entry_messages import explain_entry
from policyd.config.files import MAX_LIST_BYTES, OversizedError, UnreadableError, read_file
from policyd.config.lists import ListFile
from policyd.config.problems import Report
from policyd.config.rules_reader import read_rules
from policyd.core.printable import printable
from policyd.core.ruleset import Kind, Verb
from policyd.core.tables import Networks
from policyd.fetch.guards import MIN_PREFIX, Protected, RefusedError, check_names, networks_of, ranges, shown
from policyd.tools.list_lock import list_lock
from policyd.tools.replace_file import beside, replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policyd.config.lists import ListDefinition
    from policyd.config.written import RulesFile
    from policyd.decision_log.reader import LoggedDecision
    from policyd.fetch.guards import Rules

# Maximum characters of a reason; the rest is left out.
MAX_WHY = 500

# Lists whose entries `block` does not block, besides the lists that a `never` names.
_PROTECTED = ("allowed-networks", "own-networks")

# The shipped ruleset's folder of lists, and the condition and action of its rule for each list.
_FOLDER = "/var/lib/policyd/lists"
_SHIPPED_RULES = {
    "allowed-networks": ("cidr", "DUNNO"),
    "blocked-networks": ("cidr", "REJECT 5.7.1 Mail from {client_address} is not accepted here ({id})"),
    "allowed-hosts": ("hostname", "DUNNO"),
    "blocked-hosts": ("hostname_suffix", "REJECT 5.7.1 Mail from {hostname} is not accepted here ({id})"),
}


class Side(StrEnum):
    """The side whose lists are changed: block or allow."""

    BLOCK = "blocked"
    ALLOW = "allowed"


@dataclass(frozen=True, slots=True)
class LocalEntry:
    """An entry in a list: its end as written (empty: for ever), and the comment with author and reason."""

    what: str
    end: str
    comment: str


class LocalLists:
    """The two lists of one side in the rules in force. Raises UnreadableError if the rules cannot be read."""

    def __init__(self, rules: Rules, side: Side) -> None:
        self._rules = rules
        self._side = side
        report = Report()
        rules_file = read_rules(rules.path, report, text=rules.text)
        if rules_file is None or rules_file.root is None:
            raise UnreadableError("\n".join(report.lines()))
        self._file: RulesFile = rules_file

    def add(self, what: str, end: float | None, comment: str) -> str:
        """Adds an entry, or replaces the line of an existing entry. Returns the new line.

        Raises RefusedError, UnreadableError, OSError.
        """
        kind, entry = self._read(what)
        definition = self._list(kind)
        if self._side is Side.BLOCK:
            self._check(kind, entry)
        expires = "" if end is None else f"  expires={format_end(end)}"
        line = f"{entry}{expires}  # {comment}"
        self._change(definition, entry, line)
        return line

    def end(self, what: str) -> str:
        """Removes an entry from its list. Returns the entry as it was in the list.

        Raises RefusedError if the list does not have it, UnreadableError, OSError.
        """
        kind, entry = self._read(what)
        definition = self._list(kind)
        if entry not in {kept.what for kept in self._entries(definition)}:
            raise RefusedError(f"{entry} is not in list '{definition.name}'")
        self._change(definition, entry, None)
        return entry

    def entries(self) -> list[LocalEntry]:
        """The entries of both lists that have not ended."""
        return [entry for kind in ("networks", "hosts") for entry in self._entries(self._list(kind))]

    def entry_for_decision(self, decision: LoggedDecision) -> str:
        """Returns the entry to allow for the client of a decision. Raises RefusedError."""
        rule_name = decision.rule_name.decode("utf-8", "replace")
        if decision.decided == Verb.DUNNO.value.encode():
            raise RefusedError("that decision let the client through")
        rule = next((rule.rule for rule in self._file.rules if rule.rule.name == rule_name), None)
        address = decision.client_address.decode("ascii", "replace")
        if rule is None:
            return decision.hostname.decode("ascii", "replace") or address
        kinds = {condition.kind for condition in rule.match}
        subjects = {condition.subject for condition in rule.match}
        if subjects <= {"sender", "sender_domain"}:
            raise RefusedError(
                f"rule '{rule_name}' refuses a sender, and anyone can forge a sender: change the rule, or allow the "
                f"client itself: policyd allow {address}"
            )
        if Kind.NETWORK in kinds or not decision.hostname:
            return address
        return decision.hostname.decode("ascii", "replace")

    # --- Entries ----------------------------------------------------------------------------------------------------

    def _read(self, what: str) -> tuple[str, str]:
        """Returns `networks` or `hosts`, and the entry as lists have it. Raises RefusedError."""
        if "@" in what:
            raise RefusedError(f"'{what}' is a mail address, which anyone can forge; name an address, network or host")
        raw = what.strip().encode("utf-8", "surrogateescape")
        if ":" in what or "/" in what or what.replace(".", "").isdigit():
            networks, bad = parse_entries(Form.NETWORK, [raw])
            if bad:
                raise RefusedError(f"'{what}': {explain_entry(Form.NETWORK, raw)}")
            assert isinstance(networks, Networks)
            return "networks", _network_text(networks)
        _, bad = parse_entries(Form.HOST_NAME, [raw])
        if bad:
            raise RefusedError(f"'{what}': {explain_entry(Form.HOST_NAME, raw)}")
        if "." not in what.strip("."):
            raise RefusedError(f"'{what}' has no dot; name an address, a network or a host name")
        return "hosts", what.strip().rstrip(".").lower()

    def _check(self, kind: str, entry: str) -> None:
        """Refuses an entry that is too large, or that covers or lies in a protected one. Raises RefusedError."""
        names = {named.text for each in self._file.lists.values() if each.source for named in each.source.never}
        texts = {
            name: [kept.text for kept in self._file.lists[name].entries()]
            for name in (*_PROTECTED, *sorted(names))
            if name in self._file.lists
        }
        if kind == "hosts":
            check_names([entry], [(name, text) for name, found in texts.items() for text in found])
            return
        protected = Protected((f"list '{name}'", networks_of(found)) for name, found in texts.items())
        for network, prefix in ranges(networks_of([entry])):
            if prefix < MIN_PREFIX[network[0]]:
                raise RefusedError(f"{entry} is larger than a /{MIN_PREFIX[network[0]]}; such a network needs a rule")
            if meets := protected.meets(network):
                raise RefusedError(f"{entry} covers or lies in {meets}")

    # --- The files --------------------------------------------------------------------------------------------------

    def _list(self, kind: str) -> ListDefinition:
        name = f"{self._side}-{kind}"
        definition = self._file.lists.get(name)
        if definition is None or not definition.local or not definition.file_path:
            condition, action = _SHIPPED_RULES[name]
            raise RefusedError(
                f"{self._rules.path} has no list '{name}' with local: yes; add these lines, then run policyd reload:\n"
                f"  lists:\n    {name}: {{file: {_FOLDER}/{name}.txt, allow_empty: yes, local: yes}}\n"
                f"  rules:\n    - name: {name}\n      match: {{{condition}: ${name}}}\n      action: {action}"
            )
        return definition

    def _entries(self, definition: ListDefinition) -> Iterator[LocalEntry]:
        content = _content(Path(definition.file_path))
        now = time.time()
        for line in content.splitlines():
            for entry in ListFile("", line, now=now).entries():
                text = line.decode("utf-8", "replace")
                _, _, comment = text.partition(" #")
                _, _, end = text.partition(" #")[0].partition("expires=")
                yield LocalEntry(entry.text, end.strip(), comment.strip())

    def _change(self, definition: ListDefinition, entry: str, line: str | None) -> None:
        """Replaces an entry's lines by `line`, or removes them if `line` is None.

        Nothing changes if the ruleset does not load or fails a test afterwards. Raises RefusedError, UnreadableError,
        OSError.
        """
        target = Path(definition.file_path)
        with list_lock(target.parent):
            is_new = not target.exists()
            kept = [
                each
                for each in _content(target).splitlines(keepends=True)
                if entry not in {found.text for found in ListFile("", each).entries()}
            ]
            if kept and not kept[-1].endswith(b"\n"):
                kept[-1] += b"\n"
            content = b"".join(kept) + (b"" if line is None else line.encode() + b"\n")
            temporary = beside(target, "checked")
            try:
                temporary.write_bytes(content)
                report = Report()
                read_rules(
                    self._rules.path, report, text=self._rules.text, list_files={definition.name: str(temporary)}
                )
            finally:
                temporary.unlink(missing_ok=True)
            if report:
                problem = next(report.lines()).replace(str(temporary), str(target))
                raise RefusedError(f"the ruleset does not accept it: {problem}")
            replace_file(target, content)
            if is_new:
                target.chmod(0o644)  # the daemon, which runs as another user, reads the list


def comment_of(author: str, why: str) -> str:
    """The comment of an entry: date, author and reason, in one line."""
    when = time.strftime("%Y-%m-%d", time.gmtime())
    reason = printable(" ".join(why[:MAX_WHY].split()))
    return f"{when} {printable(author)}" + (f": {reason}" if reason else "")


def _content(path: Path) -> bytes:
    """The bytes of a list; none if the file does not exist. Raises UnreadableError."""
    try:
        return read_file(str(path), MAX_LIST_BYTES)
    except UnreadableError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return b""
        raise UnreadableError(f"{path} {error}") from error
    except OversizedError as error:
        raise UnreadableError(f"{path} {error}") from error


def _network_text(networks: Networks) -> str:
    (((version, first, _), prefix),) = ranges(networks)
    text = shown(version, first, prefix)
    return text.partition("/")[0] if prefix == (32 if version == 4 else 128) else text
