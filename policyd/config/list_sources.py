"""Reads `from:` of a list or database: where and how often `policyd fetch` gets it, and the guards for a new copy.

The daemon never downloads. It accepts that the file does not exist before the first fetch, and warns of a late fetch.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from policyd.config.definition_reader import TRUTHS, DefinitionReader
from policyd.config.durations import YEAR, whole_duration
from policyd.config.files import OversizedError, UnreadableError
from policyd.config.key_file import KEY, read_first_line
from policyd.config.problems import did_you_mean, quoted
from policyd.config.yaml_tree import Mapping, Scalar, Sequence, describe

if TYPE_CHECKING:
    from policyd.config.problems import Report
    from policyd.config.yaml_tree import Item, Node

SOURCE_KEYS = ("url", "key_file", "format", "every", "min_entries", "max_change", "never", "allow_reserved")

# The keys for a database: its format is detected, and it has no entries for the guards to compare.
DATABASE_SOURCE_KEYS = ("url", "key_file", "every")

# The names of the importers (policyd.exchange.importing.IMPORT_FORMATS); a test compares them.
SOURCE_FORMATS = (
    "plain",
    "postfix-access",
    "postfix-cidr",
    "postfix-pcre",
    "postfix-regexp",
    "sendmail-access",
    "postconf",
    "postfwd",
    "postgrey",
    "whois",
    "spamhaus-drop",
    "iptables-save",
    "nft",
    "ipset",
    "rspamd-map",
)

# Defaults: EVERY in seconds, MAX_CHANGE as a fraction of the entries.
EVERY = 86400.0
MIN_ENTRIES = 1
MAX_CHANGE = 0.5

# Minimum of `every`, in seconds; a shorter interval would burden the publisher.
_MIN_EVERY = 60.0
_PERCENT = re.compile(r"([0-9]{1,6})%")
_COUNT = re.compile(r"[0-9]{1,9}")
_URL_CHARACTERS = re.compile(r"[!-~]{1,2000}")
_KEY = re.compile(r"[!-~]{1,500}")


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a list or database. `every` is in seconds, `max_change` a fraction of the entries in force.

    `url` may contain `{key}`, which stands for the first line of `key_file`. Messages show `{key}`, never
    the key itself.
    """

    url: str
    key_file: str | None = None
    format: str = "plain"
    every: float = EVERY
    min_entries: int = MIN_ENTRIES
    max_change: float = MAX_CHANGE
    never: tuple[Scalar, ...] = ()
    allow_reserved: bool = False


def state_path(fetched: str) -> Path:
    """Returns the path of the state file beside a fetched file. It exists after the first successful fetch."""
    path = Path(fetched)
    return path.with_name(f".{path.name}.fetched")


def checked_at(fetched: str) -> float | None:
    """When a file was last fetched, or found unchanged (Unix seconds): the time of its state file; None if never."""
    try:
        return state_path(fetched).stat().st_mtime
    except OSError:
        return None


def late_since(path: str, every: float, modified: float) -> float | None:
    """When a file was last fetched or found unchanged, if that is longer ago than twice `every`; otherwise None.

    Without a state file, `modified` counts, the time of the file itself. Times are in Unix seconds.
    """
    checked = checked_at(path)
    checked = modified if checked is None else checked
    return checked if time.time() - checked > 2 * every else None


def late_message(what: str, checked: float) -> str:
    """The warning for a file that `policyd fetch` does not keep current."""
    days = (time.time() - checked) / 86400
    return f"{what} has not been fetched for {days:.1f} days, more than twice its interval; run policyd fetch"


def read_key(path: str) -> str:
    """Returns the key that replaces `{key}` in a URL. Raises UnreadableError, with the file's name."""
    try:
        key = read_first_line(path)
    except (UnreadableError, OversizedError) as error:
        raise UnreadableError(f"key_file: {path} {error}") from error
    if not _KEY.fullmatch(key):
        raise UnreadableError(f"key_file: the first line of {path} is not a key")
    return key


def read_source(
    node: Node, path: str, prefix: str, report: Report, keys: tuple[str, ...] = SOURCE_KEYS
) -> Source | None:
    """Reads the value of `from:` in the rules file at `path`; if anything is wrong, reports it and returns None.

    `keys` are the allowed keys: SOURCE_KEYS or DATABASE_SOURCE_KEYS.
    """
    return _Reader(path, prefix, report, keys).read(node)


class _Reader(DefinitionReader):
    def __init__(self, path: str, prefix: str, report: Report, keys: tuple[str, ...]) -> None:
        super().__init__(f"{prefix}from", path, report)
        self._keys = keys

    def read(self, node: Node) -> Source | None:
        if not isinstance(node, Mapping):
            self.add(node, f"expected the keys 'url', 'every' and so on, not {describe(node)}")
            return None
        self.check_keys(node, self._keys)
        source = Source(
            self._url(node),
            self._key_file(node),
            self._format(node),
            self._every(node),
            self._min_entries(node),
            self._max_change(node),
            self._never(node),
            self._allow_reserved(node),
        )
        return None if self.is_wrong else source

    def _text(self, item: Item | None, meaning: str) -> str | None:
        """Returns the text of a field; None if it is absent, or not text, which is reported."""
        return (self.text(item, meaning) or None) if item is not None else None

    def _url(self, node: Mapping) -> str:
        item = node.items.get("url")
        if item is None:
            self.add(node, "'url' is missing: the address to fetch from, as in url: https://lists.example/drop.txt")
            return ""
        url = self._text(item, "an address that begins with https:// or http://")
        if url is None:
            return ""
        key_file = node.items.get("key_file")
        if KEY in url and key_file is None:
            self.add(item.value, f"url: {KEY} needs `key_file`, the file whose first line replaces it")
        elif KEY not in url and key_file is not None:
            self.add(key_file.key, f"key_file: the url has no {KEY} in it, so the key would not be used")
        if problem := url_problem(url.replace(KEY, "key")):
            self.add(item.value, f"url: {quoted(url)} {problem}")
        return url

    def _key_file(self, node: Mapping) -> str | None:
        name = self._text(node.items.get("key_file"), "the name of a file")
        return None if name is None else str(Path(self.path).parent / name)

    def _format(self, node: Mapping) -> str:
        item = node.items.get("format")
        name = self._text(item, "the name of a format")
        if item is not None and name is not None and name not in SOURCE_FORMATS:
            hint = did_you_mean(name, SOURCE_FORMATS) or f"; there are {', '.join(SOURCE_FORMATS)}"
            self.add(item.value, f"format: unknown format {quoted(name)}{hint}")
        return name or "plain"

    def _every(self, node: Mapping) -> float:
        item = node.items.get("every")
        text = self._text(item, "an interval, as in 12h")
        if item is None or text is None:
            return EVERY
        seconds = whole_duration(text, "mhdw", _MIN_EVERY, YEAR)
        if seconds is None:
            self.add(
                item.value, f"every: {quoted(text)} is not an interval from 1m to 366d; write it as 30m, 12h, 1d or 1w"
            )
            return EVERY
        return seconds

    def _min_entries(self, node: Mapping) -> int:
        item = node.items.get("min_entries")
        text = self._text(item, "a number")
        if item is None or text is None:
            return MIN_ENTRIES
        if not _COUNT.fullmatch(text):
            self.add(item.value, f"min_entries: {quoted(text)} is not a number")
            return MIN_ENTRIES
        return int(text)

    def _max_change(self, node: Mapping) -> float:
        item = node.items.get("max_change")
        text = self._text(item, "a percentage, as in 30%")
        if item is None or text is None:
            return MAX_CHANGE
        found = _PERCENT.fullmatch(text)
        if found is None:
            self.add(item.value, f"max_change: {quoted(text)} is not a percentage; write it as 30%")
            return MAX_CHANGE
        return int(found[1]) / 100

    def _never(self, node: Mapping) -> tuple[Scalar, ...]:
        item = node.items.get("never")
        if item is None:
            return ()
        values = item.value.items if isinstance(item.value, Sequence) else [item.value]
        names = []
        for value in values:
            if isinstance(value, Scalar) and not value.missing:
                names.append(Scalar(value.text.removeprefix("$"), value.line, value.column, value.plain))
            else:
                self.add(value, f"never: expected the name of a list, not {describe(value)}")
        return tuple(names)

    def _allow_reserved(self, node: Mapping) -> bool:
        item = node.items.get("allow_reserved")
        text = self._text(item, "true or false")
        if item is not None and text is not None and text not in TRUTHS:
            self.add(item.value, f"allow_reserved: {quoted(text)} is neither true nor false")
        return TRUTHS.get(text or "", False)


def url_problem(url: str) -> str:
    """Describes the problem of a URL to fetch from; empty if there is none."""
    if not _URL_CHARACTERS.fullmatch(url):
        return "is not a URL (printable ASCII without blanks, at most 2,000 characters)"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme not in {"http", "https"}:
        return "does not begin with https:// or http://"
    if not parts.hostname or port == 0:
        return "has the port 0" if parts.hostname else "names no host"
    if parts.username is not None or parts.password is not None:
        return f"has a user name or password in it; write {KEY} and key_file"
    return ""
