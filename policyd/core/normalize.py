"""Normalizes names and values for comparison and for expressions."""

from __future__ import annotations

import idna

# Maximum bytes of a host name: 255 octets (RFC 1035 section 2.3.4). A longer HELO argument is not a name, so no time is
# spent on its labels.
MAX_NAME = 255


def fold_value(value: bytes) -> bytes:
    """Returns the form in which mail addresses and other attributes are compared: lower case, also outside ASCII."""
    if value.isascii():
        return value.lower()
    return value.decode("utf-8", "replace").lower().encode()


def fold_name(name: bytes) -> bytes:
    """Returns the form in which host names and domains are compared: lower case, A-labels, no trailing dot.

    A name without an A-label form (UTS 46) stays in UTF-8. A text that is too long to be a name becomes empty.
    """
    if len(name) > MAX_NAME + 1:
        return b""
    if not name.isascii():
        try:
            name = idna.encode(name.decode("utf-8", "replace"), uts46=True)
        except idna.IDNAError:
            return fold_value(name).removesuffix(b".")
    return name.lower().removesuffix(b".")


def domain_of(address: bytes) -> bytes:
    """Returns the domain of a mail address, folded: the part after the last `@`.

    It is empty without `@` and for an address literal (RFC 5321 section 4.1.3).
    """
    _, at, domain = address.rpartition(b"@")
    return b"" if not at or domain.startswith(b"[") else fold_name(domain)


def decode_for_expressions(value: bytes) -> bytes:
    """Returns the text that expressions see: UTF-8, with U+FFFD for invalid bytes (RE2 matches valid UTF-8 only)."""
    return value if value.isascii() else value.decode("utf-8", "replace").encode()
