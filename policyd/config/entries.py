"""Parses values of conditions into the forms that `policyd.core.index` compares.

`parse_entries` parses many lines in one pass, with no more objects than the index needs. It only says which lines are
wrong; `policyd.config.entry_messages` says why.
"""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

import idna
import re2

from policyd.config.comparison import parse_comparison
from policyd.config.conditions import Form
from policyd.config.countries import COUNTRIES
from policyd.config.definition_reader import NAME_PATTERN
from policyd.core.identity import Status
from policyd.core.lookups import expression_options
from policyd.core.normalize import fold_name, fold_value
from policyd.core.tables import Networks

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from policyd.core.tables import PlainEntries

# Maximum bytes of an expression. The longest in well-known lists have 3,000; RE2 would need gigabytes to refuse an
# expression of 100 MB.
MAX_EXPRESSION = 10_000

# Bytes of memory for one expression in RE2, enough for 44,000 instructions. Plain text of MAX_EXPRESSION has fewer,
# real expressions have 20 to 500. With 8 MiB, refusing `\pL{1000}` takes 50 ms instead of 6.
_MEMORY = 1 << 20
_MAX_INSTRUCTIONS = 44_000

# Maximum size, in RE2 instructions, of the expressions that are parsed together: a base, and an amount for each. An
# index cannot hold more, so compiling them, which can take minutes, would be useless.
_ROOM = 250_000
_ROOM_EACH = 500

# The longest host name in its text form (RFC 1035 section 2.3.4: 255 octets on the wire), and the longest label.
MAX_HOST_NAME = 253
MAX_LABEL = 63

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"  # underscores are allowed: they occur in host names
_HOST_NAME = rf"{_LABEL}(?:\.{_LABEL})*\.?"
# A HELO argument may be any word without a comma that does not end in two dots: a comparison removes only one.
_HELO_NAME = r"[!-+\--~]{0,252}[!-+\-/-~]\.?"
# A local part, then a domain or an address literal; or a bare word such as `root`, which Postfix sends unchanged.
# Postfix removes quotes before it asks a policy service, so a local part may contain blanks and `@`.
_ADDRESS = r"(?:[!-;=?-~](?:[ -;=?-~]*[!-;=?-~])?@[^@<>\x00-\x20\x7f]+|[!-\-/-;=?A-~]+)"
_TEXT = r"[^\x00-\x1f\x7f]*"

_FORMS = {
    Form.HOST_NAME: _HOST_NAME,
    Form.DOMAIN: rf"\.?{_HOST_NAME}",
    Form.HELO_NAME: _HELO_NAME,
    Form.SENDER: rf"(?:{_ADDRESS}|<>)",
    Form.RECIPIENT: _ADDRESS,
    Form.TEXT: _TEXT,
}

_LIST_NAME = re.compile(NAME_PATTERN)

# A name that ends in a label of digits is an address, complete or truncated.
_NUMERIC = r"(?m)(?:^|\.)[0-9]+\.?$"


def _for_many(pattern: str) -> re2._Regexp:
    """Compiles a pattern for many lines with RE2, which searches 30 MB in 40 ms; `re` takes 340 ms.

    The pattern is for bytes in LATIN1, because the input is ASCII.
    """
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    return re2.compile(pattern.encode("ascii"), options)


_ONE = {form: re.compile(pattern) for form, pattern in _FORMS.items()}
_MANY = {form: _for_many(rf"(?:{pattern}\n)*") for form, pattern in _FORMS.items()}
_ONE_NUMERIC = re.compile(_NUMERIC)
_MANY_NUMERIC = _for_many(_NUMERIC)

_HOST_NAMES = frozenset({Form.HOST_NAME, Form.DOMAIN})
_WITH_DOT = _HOST_NAMES | {Form.HELO_NAME}  # these may end in a dot (the root)

_LENGTHS4 = {str(length): length for length in range(33)}
_LENGTHS6 = {str(length): length for length in range(129)}
_HOST_BITS4 = [(1 << 32 - length) - 1 for length in range(33)]
_HOST_BITS6 = [(1 << 128 - length) - 1 for length in range(129)]


def parse_entries(  # noqa: PLR0911 - one match, with a return for each form of entry
    form: Form, lines: Sequence[bytes]
) -> tuple[PlainEntries, list[int]]:
    """Returns the entries on these lines (UTF-8, without blanks around them), and the places of invalid lines."""
    match form:
        case Form.NETWORK:
            return _networks(lines)
        case Form.EXPRESSION:
            return _expressions(lines)
        case Form.ASN | Form.COUNTRY | Form.YES:
            return _owners(form, lines)
        case Form.STATUS:
            statuses = [line.decode("utf-8", "replace") for line in lines]
            return statuses, [place for place, status in enumerate(statuses) if status not in set(Status)]
        case Form.DNS_LIST:
            names = [line.decode("utf-8", "replace") for line in lines]
            return names, [place for place, name in enumerate(names) if not _LIST_NAME.fullmatch(name)]
        case Form.COUNTER:
            terms = [parse_comparison(line.decode("utf-8", "replace")) for line in lines]
            bad = [place for place, term in enumerate(terms) if term is None]
            return [f"{term[0]}>={term[1]}" for term in terms if term is not None], bad
        case _:
            return _names(form, lines)


def entry_keys(form: Form, lines: Sequence[bytes]) -> list[Hashable]:
    """Returns a key for each valid line; entries with the same meaning have equal keys, however they are written."""
    if form is not Form.NETWORK:
        entries, _ = parse_entries(form, lines)
        if not isinstance(entries, Networks) and len(entries) == len(lines):
            return [*entries]
        return [fold_entry(form, line) for line in lines]
    keys: list[Hashable] = [0] * len(lines)
    places4 = [place for place, line in enumerate(lines) if b":" not in line]
    networks, _ = _networks([lines[place] for place in places4])
    for place, packed in zip(places4, networks.v4, strict=True):
        keys[place] = 4, packed
    for place, line in enumerate(lines):
        if b":" in line:
            parsed, _ = _networks([line])
            keys[place] = (4, parsed.v4[0]) if parsed.v4 else (6, parsed.v6[0])
    return keys


def _networks(lines: Sequence[bytes]) -> tuple[Networks, list[int]]:
    networks = Networks()
    bad = []
    append4 = networks.v4.append
    inet_pton, ipv4, from_bytes, lengths, host_bits = (
        socket.inet_pton,
        socket.AF_INET,
        int.from_bytes,
        _LENGTHS4,
        _HOST_BITS4,
    )
    for place, line in enumerate(lines):
        try:
            address, slash, length = line.decode("ascii").partition("/")
            if ":" in address:
                networks.append(*_network6(address, slash, length))
                continue
            prefix = lengths[length] if slash else 32
            first = from_bytes(inet_pton(ipv4, address))
            if first & host_bits[prefix]:
                bad.append(place)
            else:
                # The same as Networks.append, without a call for each of a million networks.
                append4(first << 6 | prefix)
        except (OSError, ValueError, KeyError):
            bad.append(place)
    return networks, bad


def _network6(address: str, slash: str, length: str) -> tuple[int, int, int]:
    """Returns version, first address, prefix length. Raises OSError, ValueError or KeyError for an invalid network."""
    prefix = _LENGTHS6[length] if slash else 128
    first = int.from_bytes(socket.inet_pton(socket.AF_INET6, address))
    if first & _HOST_BITS6[prefix]:
        raise ValueError("host bits")
    if first >> 32 == 0xFFFF and prefix >= 96:  # IPv4-mapped (RFC 4291 section 2.5.5.2) is the IPv4 network
        return 4, first & 0xFFFFFFFF, prefix - 96
    return 6, first, prefix


# An AS number: 4 bytes (RFC 6793), from 1.
_ASN = re.compile(r"(?:AS)?([1-9][0-9]{0,9})", re.IGNORECASE)
MAX_ASN = 0xFFFFFFFF


def _owners(form: Form, lines: Sequence[bytes]) -> tuple[list[bytes], list[int]]:
    """Parses AS numbers, countries, and the value of hostname_generic."""
    entries = []
    bad = []
    for place, line in enumerate(lines):
        entry = fold_owner(form, line.decode("utf-8", "replace"))
        if entry is None:
            bad.append(place)
        else:
            entries.append(entry)
    return entries, bad


def fold_owner(form: Form, text: str) -> bytes | None:
    """Returns the form in which AS numbers (`9371`), countries (`JP`) and `yes` are compared; None for invalid text."""
    match form:
        case Form.ASN:
            found = _ASN.fullmatch(text)
            return found[1].encode() if found and int(found[1]) <= MAX_ASN else None
        case Form.COUNTRY:
            return text.upper().encode() if text.isascii() and text.upper() in COUNTRIES else None
        case _:
            return b"yes" if text.lower() in {"yes", "true"} else None


# Lines are checked in blocks, so that an unusual line slows down only its block.
_BLOCK = 4096


def _names(form: Form, lines: Sequence[bytes]) -> tuple[list[bytes], list[int]]:
    """Parses names, mail addresses and other text."""
    entries: list[bytes] = []
    bad = []
    for start in range(0, len(lines), _BLOCK):
        block = lines[start : start + _BLOCK]
        folded = _fold_block(form, block)
        if folded is not None:
            entries += folded
            continue
        for place, line in enumerate(block, start):
            forms = fold_entry(form, line)
            if forms:
                entries += forms
            else:
                bad.append(place)
    return entries, bad


def _fold_block(form: Form, lines: Sequence[bytes]) -> list[bytes] | None:
    """Returns the forms in which the lines are compared; None if the lines must be checked one by one."""
    joined = b"\n".join(lines).lower() + b"\n"
    if not joined.isascii() or not _MANY[form].fullmatch(joined):
        return None
    names = joined.split(b"\n")
    names.pop()
    if len(names) != len(lines):  # a line break within a value
        return None
    if form in _WITH_DOT and b".\n" in joined:
        names = [name.removesuffix(b".") for name in names]
    if form in _HOST_NAMES and (
        _MANY_NUMERIC.search(joined) or len(max(names, key=len)) > MAX_HOST_NAME or b"unknown" in names
    ):
        return None
    return names


def fold_entry(form: Form, line: bytes) -> tuple[bytes, ...]:
    """Returns the forms in which a name, address or text is compared; empty if it is invalid.

    A mail address with a domain outside ASCII has two: clients send it in UTF-8 (SMTPUTF8) or in A-labels.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return ()
    match form:
        case Form.TEXT:
            return (fold_value(line),) if _has_form(form, text) else ()
        case Form.SENDER | Form.RECIPIENT:
            return _fold_address(form, text)
        case Form.DOMAIN if text.startswith("."):
            return tuple(b"." + name for name in _fold_name_of(Form.HOST_NAME, text[1:]))
        case Form.DOMAIN:
            return _fold_name_of(Form.HOST_NAME, text)
        case _:
            return _fold_name_of(form, text)


def _fold_address(form: Form, text: str) -> tuple[bytes, ...]:
    folded = fold_value(text.encode())
    if text.isascii():
        return (folded,) if _has_form(form, text) else ()
    local, at, domain = text.rpartition("@")
    name = _fold_host_name(domain)
    if not (local and at and name) or not _has_form(form, f"x@{name.decode()}") or not _has_form(Form.TEXT, local):
        return ()
    return folded, fold_value(local.encode()) + b"@" + name


def _fold_name_of(form: Form, text: str) -> tuple[bytes, ...]:
    name = _fold_host_name(text)
    if name is None or len(name) > MAX_HOST_NAME or name.endswith(b".") or not _has_form(form, name.decode()):
        return ()
    if form in _HOST_NAMES and (name == b"unknown" or _ONE_NUMERIC.search(name.decode())):
        return ()
    return (name,)


def _fold_host_name(text: str) -> bytes | None:
    if not text.isascii():
        if len(text) > MAX_HOST_NAME:  # the A-label form is longer still
            return None
        try:
            idna.encode(text, uts46=True)
        except (idna.IDNAError, UnicodeError):
            return None
    return fold_name(text.encode()) or None


def _has_form(form: Form, text: str) -> bool:
    return _ONE[form].fullmatch(text.lower()) is not None


def _expressions(lines: Sequence[bytes]) -> tuple[list[str], list[int]]:
    expressions = []
    bad = []
    room = _ROOM
    for place, line in enumerate(lines):
        if not 0 < len(line) <= MAX_EXPRESSION or room < 0:
            bad.append(place)
            continue
        try:
            text = line.decode("utf-8")
            room += _ROOM_EACH - compile_expression(text).programsize
        except (UnicodeDecodeError, ExpressionError) as error:
            if isinstance(error, ExpressionError) and error.is_too_large:
                room -= _MAX_INSTRUCTIONS
            bad.append(place)
        else:
            expressions.append(text)
    return expressions, bad


class ExpressionError(Exception):
    """RE2 does not compile the expression. The message is RE2's."""

    @property
    def is_too_large(self) -> bool:
        """Whether the expression is valid, but needs more memory than allowed."""
        return "too large" in str(self)


def compile_expression(text: str) -> re2._Regexp:
    """Compiles a single expression within the memory limit of an entry. Raises ExpressionError."""
    try:
        return re2.compile(text, expression_options(_MEMORY))
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        words = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise ExpressionError(words) from None
