"""`hostname_generic`: whether a host name contains the client's own address, as the names do that a provider generates.

Only the labels left of the registrable domain are searched. This replaces lists of expressions (`dyn`, `pool`, `adsl`),
which are never complete and match honest names.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policyd.core.address import Address
    from policyd.core.public_suffix import RegistrableDomains

_DIGITS = re.compile(rb"[0-9]+")
_LETTERS_AND_DIGITS = re.compile(rb"[0-9a-z]+")
# One character between two hexadecimal digits that is neither a letter nor a digit.
_SEPARATOR = re.compile(rb"(?<=[0-9a-f])[^0-9a-z](?=[0-9a-f])")


def is_generic(name: bytes, address: Address, domains: RegistrableDomains) -> bool:
    """Whether the labels of a folded host name left of its registrable domain contain the whole address.

    IPv4: the four numbers as consecutive whole runs of digits; or twelve padded digits or eight hexadecimal digits as a
    whole run of letters and digits. IPv6: all 32 nibbles or the last 16, with or without single separators. All of
    them in order or reversed (IPv4 octet by octet).
    """
    registrable = domains.of(name)
    if registrable is None:
        return False
    labels = name[: -len(registrable)]
    return _contains_ipv4(labels, address[1]) if address[0] == 4 else _contains_ipv6(labels, address[1])


def _contains_ipv4(labels: bytes, number: int) -> bool:
    octets = number.to_bytes(4)
    backwards = octets[::-1]
    numbers = [run.lstrip(b"0") or b"0" for run in _DIGITS.findall(labels)]
    for wanted in ([b"%d" % octet for octet in octets], [b"%d" % octet for octet in backwards]):
        if any(numbers[place : place + 4] == wanted for place in range(len(numbers) - 3)):
            return True
    whole = {b"%03d%03d%03d%03d" % (*octets,), b"%03d%03d%03d%03d" % (*backwards,)}
    whole |= {octets.hex().encode(), backwards.hex().encode()}
    return not whole.isdisjoint(_LETTERS_AND_DIGITS.findall(labels))


def _contains_ipv6(labels: bytes, number: int) -> bool:
    # The full form contains the last 16 nibbles in the same direction, so these decide.
    last = b"%032x" % number
    joined = _SEPARATOR.sub(b"", labels)
    return last[16:] in joined or last[:15:-1] in joined
