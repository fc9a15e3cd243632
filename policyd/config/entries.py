"""Values of conditions, one by one and a million at a time: from text to what `policyd.core.index` compares.

`parse_entries` is the bulk way: one pass over many lines without an object for an entry beyond what the index
needs. It only says which lines are wrong. `explain_entry` says, of such a line, why, and what to write instead; it
may take its time (netaddr, idna).
"""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

import idna
import netaddr
import re2

from policyd.config.conditions import Form
from policyd.config.problems import did_you_mean, quoted
from policyd.core.identity import Status
from policyd.core.index import Networks, expression_options, fold_name, fold_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policyd.core.index import Entries

# The longest host name in its text form (RFC 1035 section 2.3.4: 255 octets on the wire), and the longest label.
MAX_HOST_NAME = 253
MAX_LABEL = 63

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"  # underscores are allowed: they occur in host names
_HOST_NAME = rf"{_LABEL}(?:\.{_LABEL})*\.?"
# A HELO argument may be any word: what a client says there is its own affair.
_HELO_NAME = r"[!-+\--~]{1,253}"
# A local part, then a domain or an address literal; or a bare word, as Postfix passes `root` on. Quotes are gone
# when a policy service sees an address, so a local part may hold blanks and `@`.
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

# A name that ends in a label of digits is an address, whole or cut short.
_NUMERIC = r"(?m)(?:^|\.)[0-9]+\.?$"


def _for_many(pattern: str) -> re2._Regexp:
    """RE2 looks through 30 MB of lines in 40 ms, `re` in 340. Bytes and LATIN1, as what it sees is ASCII."""
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    return re2.compile(pattern.encode("ascii"), options)


_ONE = {form: re.compile(pattern) for form, pattern in _FORMS.items()}
_MANY = {form: _for_many(rf"(?:{pattern}\n)*") for form, pattern in _FORMS.items()}
_ONE_NUMERIC = re.compile(_NUMERIC)
_MANY_NUMERIC = _for_many(_NUMERIC)

_HOST_NAMES = frozenset({Form.HOST_NAME, Form.DOMAIN})
_WITH_DOT = _HOST_NAMES | {Form.HELO_NAME}  # those that may end in one, for the root

_LENGTHS4 = {str(length): length for length in range(33)}
_LENGTHS6 = {str(length): length for length in range(129)}
_HOST_BITS4 = [(1 << 32 - length) - 1 for length in range(33)]
_HOST_BITS6 = [(1 << 128 - length) - 1 for length in range(129)]


def parse_entries(form: Form, lines: Sequence[bytes]) -> tuple[Entries, list[int]]:
    """The entries on these lines (UTF-8, without blanks around them), and the places of the lines that are none."""
    match form:
        case Form.NETWORK:
            return _networks(lines)
        case Form.EXPRESSION:
            return _expressions(lines)
        case Form.STATUS:
            statuses = [line.decode("utf-8", "replace") for line in lines]
            return statuses, [place for place, status in enumerate(statuses) if status not in set(Status)]
        case _:
            return _names(form, lines)


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
                append4(first << 6 | prefix)  # as Networks.append, without a call for each of a million
        except (OSError, ValueError, KeyError):
            bad.append(place)
    return networks, bad


def _network6(address: str, slash: str, length: str) -> tuple[int, int, int]:
    """(version, first address, prefix length). Raises OSError, ValueError and KeyError for what is no network."""
    prefix = _LENGTHS6[length] if slash else 128
    first = int.from_bytes(socket.inet_pton(socket.AF_INET6, address))
    if first & _HOST_BITS6[prefix]:
        raise ValueError("host bits")
    if first >> 32 == 0xFFFF and prefix >= 96:  # IPv4-mapped (RFC 4291 section 2.5.5.2) is the IPv4 network
        return 4, first & 0xFFFFFFFF, prefix - 96
    return 6, first, prefix


# Lines are checked in blocks, so that one odd line costs the slow way for its neighbours only.
_BLOCK = 4096


def _names(form: Form, lines: Sequence[bytes]) -> tuple[list[bytes], list[int]]:
    """Names, mail addresses and other text."""
    entries: list[bytes] = []
    bad = []
    for start in range(0, len(lines), _BLOCK):
        block = lines[start : start + _BLOCK]
        folded = _fold_block(form, block)
        if folded is not None:
            entries += folded
            continue
        for place, line in enumerate(block, start):
            one = fold_entry(form, line)
            if one:
                entries += one
            else:
                bad.append(place)
    return entries, bad


def _fold_block(form: Form, lines: Sequence[bytes]) -> list[bytes] | None:
    """The lines as they are compared, if all are ASCII and right."""
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
    """One name, address or text in the forms in which it is compared; empty if it is none.

    A mail address whose domain is outside ASCII has two: clients send it as it is (SMTPUTF8) or in A-labels.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return ()
    match form:
        case Form.TEXT:
            return (fold_value(line),) if _is(form, text) else ()
        case Form.SENDER | Form.RECIPIENT:
            if text.isascii():
                return (fold_value(line),) if _is(form, text) else ()
            local, at, domain = text.rpartition("@")
            folded = _fold_host_name(domain)
            if not at or folded is None or not _is(form, f"x@{folded.decode()}") or not _is(Form.TEXT, local):
                return ()
            return (fold_value(line), fold_value(local.encode()) + b"@" + folded) if local else ()
        case _:
            dot = "." if form is Form.DOMAIN and text.startswith(".") else ""
            folded = _fold_host_name(text[len(dot) :])
            if folded is None or len(folded) > MAX_HOST_NAME or not _is(form, folded.decode()):
                return ()
            if form in _HOST_NAMES and (folded == b"unknown" or _ONE_NUMERIC.search(folded.decode())):
                return ()
            return (dot.encode() + folded,)


def _fold_host_name(text: str) -> bytes | None:
    if not text.isascii():
        try:
            idna.encode(text, uts46=True)
        except (idna.IDNAError, UnicodeError):
            return None
    return fold_name(text.encode()) or None


def _is(form: Form, text: str) -> bool:
    return _ONE[form].fullmatch(text.lower()) is not None


def _expressions(lines: Sequence[bytes]) -> tuple[list[str], list[int]]:
    expressions = []
    bad = []
    options = expression_options()
    for place, line in enumerate(lines):
        try:
            text = line.decode("utf-8")
            re2.compile(text, options)
        except (UnicodeDecodeError, re2.error):
            bad.append(place)
        else:
            if text:
                expressions.append(text)
            else:
                bad.append(place)
    return expressions, bad


# --- Why a line is none -----------------------------------------------------------------------------------------------


def explain_entry(form: Form, line: bytes) -> str:
    """What is wrong with a line that `parse_entries` refused, and what to write instead."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"{quoted(line.decode('utf-8', 'replace'))} is not UTF-8 (byte 0x{line[error.start]:02x})"
    control = re.search(r"[\x00-\x1f\x7f]", text)
    if control and form is not Form.EXPRESSION:
        return f"{quoted(text)} has a control character (U+{ord(control.group()):04X}) in it"
    if not text:
        return _explain_empty(form)
    match form:
        case Form.NETWORK:
            return _explain_network(text)
        case Form.STATUS:
            return f"{quoted(text)} is no status of reverse DNS; it is one of {', '.join(Status)}{did_you_mean(text, Status)}"
        case Form.EXPRESSION:
            return _explain_expression(text)
        case Form.SENDER | Form.RECIPIENT:
            return _explain_address(form, text)
        case _:
            return _explain_name(form, text)


def _explain_empty(form: Form) -> str:
    match form:
        case Form.SENDER:
            return "'' is no mail address; the null sender is written '<>'"
        case Form.EXPRESSION:
            return "the expression is empty, so it would be found in everything; '^$' is found where there is nothing"
        case Form.HELO_NAME:
            return "'' is no HELO name; for a client that gave none write helo_name_regex: '^$'"
        case _:
            return f"'' is no {form.value}"


def _explain_network(text: str) -> str:
    address, slash, length = text.partition("/")
    bare = address.strip("[]")
    if bare != address and netaddr.valid_ipv6(bare):
        return f"{quoted(text)} is no network; write it without brackets: '{bare}{slash}{length}'"
    if "%" in address:
        return f"{quoted(text)} has a zone id, which no client_address has; write '{address.partition('%')[0]}{slash}{length}'"
    if "-" in text:
        return f"{quoted(text)} is a range, not a network{_range_as_networks(text)}"
    octets = address.rstrip(".").split(".")
    if 1 < len(octets) < 4 or (address.endswith(".") and len(octets) < 4):
        padded = ".".join(octets + ["0"] * (4 - len(octets)))
        if netaddr.valid_ipv4(padded, netaddr.INET_PTON):
            meant = f"{padded}/{length or 8 * len(octets)}"
            return f"{quoted(text)} is no whole address; did you mean '{meant}'?"
    if "." in address and netaddr.valid_ipv4(
        ".".join(str(int(o)) if o.isdecimal() else o for o in octets), netaddr.INET_PTON
    ):
        plain = ".".join(str(int(octet)) for octet in octets)
        if plain != address:
            return f"{quoted(text)} has a number with leading zeros, which some read as octal; did you mean '{plain}{slash}{length}'?"
    if not (netaddr.valid_ipv4(address, netaddr.INET_PTON) or netaddr.valid_ipv6(address)):
        hint = "; names go into hostname or hostname_suffix" if re.search("[g-zG-Z]", text) else ""
        return f"{quoted(text)} is neither an IPv4 nor an IPv6 network{hint}"
    try:
        network = netaddr.IPNetwork(text)
    except (netaddr.AddrFormatError, ValueError):
        longest = 128 if ":" in address else 32
        return f"{quoted(text)} has no valid prefix length (0 to {longest})"
    if network.ip != network.network:
        return f"{quoted(text)} has host bits set; did you mean '{network.cidr}'? (for the one address write '{network.ip}')"
    return f"{quoted(text)} is not written as a network; did you mean '{network.cidr}'?"


def _range_as_networks(text: str) -> str:
    first, _, last = text.partition("-")
    try:
        networks = netaddr.iprange_to_cidrs(first.strip(), last.strip())
    except (netaddr.AddrFormatError, ValueError, IndexError):
        return "; write it as networks"
    shown = [str(network) for network in networks]
    return f"; write {', '.join(shown)}" if len(shown) <= 4 else f"; it takes {len(shown)} networks"


def _explain_expression(text: str) -> str:
    try:
        re2.compile(text, expression_options())
    except re2.error as error:
        reason = error.args[0]
        reason = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        hint = ""
        if reason.startswith(("invalid perl operator: (?", "invalid escape sequence: \\")) and re.search(
            r"\(\?<?[=!]|\\[1-9]", text
        ):
            hint = " (RE2 has no look-ahead, look-behind or back-references: they are what makes matching slow)"
        elif text.startswith("*"):
            hint = f"; an expression is no shell pattern; did you mean {quoted(_as_expression(text))}?"
        return f"{quoted(text)} is no expression that RE2 can compile: {quoted(reason)[1:-1]}{hint}"
    raise AssertionError(f"a good expression: {text!r}")


def _as_expression(pattern: str) -> str:
    """`*.example.com` as an expression."""
    return f"{pattern.lstrip('*').replace('.', chr(92) + '.')}$"


def _explain_address(form: Form, text: str) -> str:
    recipient = form is Form.RECIPIENT
    domain_condition = "recipient_domain" if recipient else "sender_domain"
    if text == "<>" and recipient:
        return "'<>' is the null sender, and no recipient"
    if text.startswith("<") and text.endswith(">"):
        return f"{quoted(text)} has angle brackets; write {quoted(text[1:-1])}"
    local, at, domain = text.rpartition("@")
    if not at:
        if "." in text:
            return f"{quoted(text)} has no '@'; for everybody at a domain write {domain_condition}: {text.lstrip('*')}"
        return f"{quoted(text)} is no mail address"
    if local in {"", "*"} and domain:
        return f"{quoted(text)} has no local part; for everybody at a domain write {domain_condition}: {domain}"
    if not domain:
        return f"{quoted(text)} has no domain; for a local part at any domain write {'recipient' if recipient else 'sender'}_regex: '^{local}@'"
    return f"{quoted(text)} is no mail address"


def _explain_name(form: Form, text: str) -> str:
    name = text.removeprefix(".") if form is Form.DOMAIN else text
    if form is Form.HELO_NAME:
        if len(text) > MAX_HOST_NAME:
            return f"{quoted(text)} is longer than {MAX_HOST_NAME} characters"
        return f"{quoted(text)} is no HELO name: it has a blank, a comma or what UTS 46 does not allow in it"
    if name.rstrip(".").lower() == "unknown":
        return "'unknown' is what Postfix writes for no host name; use reverse_dns: missing, mismatch or error"
    if netaddr.valid_ipv4(name.strip("[]"), netaddr.INET_PTON) or netaddr.valid_ipv6(name.strip("[]")) or "/" in name:
        return f"{quoted(text)} is an address or a network, not a host name; use cidr"
    if "@" in name:
        return (
            f"{quoted(text)} is a mail address, not a host name or domain{_domain_hint(form, name.rpartition('@')[2])}"
        )
    if name.startswith("*"):
        bare = name.lstrip("*.")
        meant = f"hostname_suffix: .{bare}" if form is Form.HOST_NAME else f".{bare}"
        return f"{quoted(text)} is no host name: '*' stands for nothing here; for names under {bare} write '{meant}'"
    if form is Form.HOST_NAME and name.startswith("."):
        return f"{quoted(text)} is no host name; for names under a domain write hostname_suffix: {name}"
    if len(name) > MAX_HOST_NAME:
        return f"{quoted(text)} is longer than a host name can be ({MAX_HOST_NAME} characters)"
    labels = name.removesuffix(".").split(".")
    if "" in labels:
        return (
            f"{quoted(text)} is no host name: it has an empty label{_domain_hint(form, '.'.join(filter(None, labels)))}"
        )
    long = next((label for label in labels if len(label) > MAX_LABEL), None)
    if long:
        return f"{quoted(text)} is no host name: {quoted(long)} is longer than {MAX_LABEL} characters"
    if labels[-1].isdecimal():
        return f"{quoted(text)} is no host name: it ends in a number, as only addresses do"
    if not text.isascii():
        try:
            idna.encode(name, uts46=True)
        except (idna.IDNAError, UnicodeError) as error:
            return f"{quoted(text)} is no host name: {error}"
    odd = re.search(r"[^A-Za-z0-9_.-]", name)
    if odd:
        return f"{quoted(text)} is no host name: '{odd.group()}' cannot be in one"
    return f"{quoted(text)} is no host name: a label cannot begin or end with '-'"


def _domain_hint(form: Form, meant: str) -> str:
    return f"; did you mean '{meant}'?" if fold_entry(form, meant.encode()) else ""
