"""Facts about well-known DNS lists: whether they list addresses or names, their refusals, and their test entries.

127.255.255.0/24 and 127.0.1.255 are refusals of every list, and are not repeated here (`policyd.dns.list_answers`).
"""

from __future__ import annotations

from typing import NamedTuple


class KnownZone(NamedTuple):
    """The facts about a zone, and about the zones under it."""

    lists_names: bool
    refused: tuple[str, ...] = ()
    self_test: str = ""  # instead of 127.0.0.2 or TEST
    keyed: bool = False  # the first label of its zones is a customer's key


# By zone. A zone under another, such as sbl.spamhaus.org or KEY.zen.dq.spamhaus.net, has the facts of its parent; the
# longest matching name wins. Not here: hostkarma.junkemailfilter.com, because it lists addresses and names; and
# ix.dnsbl.manitu.net, which has been empty since January 2025 (https://heise.de/-10248714).
_KNOWN = {
    # Zones and answers: https://docs.spamhaus.com/datasets/docs/source/10-data-type-documentation/datasets/040-zones.html
    # Refusals and test entries: https://www.spamhaus.org/faqs/dnsbl-usage/
    "spamhaus.org": KnownZone(lists_names=False),
    "dbl.spamhaus.org": KnownZone(lists_names=True, self_test="dbltest.com"),
    "zrd.dq.spamhaus.net": KnownZone(lists_names=True, keyed=True),
    "dbl.dq.spamhaus.net": KnownZone(lists_names=True, self_test="dbltest.com", keyed=True),
    "dq.spamhaus.net": KnownZone(lists_names=False, keyed=True),
    # 127.0.0.255: https://www.dnswl.org/?page_id=15. A resolver that asks far too much gets 127.0.10.3, the highest
    # trust, for every address: https://www.dnswl.org/?p=120
    "list.dnswl.org": KnownZone(lists_names=False, refused=("127.0.0.255", "127.0.10.3")),
    "dwl.dnswl.org": KnownZone(lists_names=True, refused=("127.0.0.255", "127.0.10.3")),
    # https://uribl.com/refused.shtml and https://uribl.com/about.shtml (the test entry)
    "uribl.com": KnownZone(lists_names=True, refused=("127.0.0.1",), self_test="test.uribl.com"),
    # https://www.surbl.org/guidelines
    "surbl.org": KnownZone(lists_names=True, refused=("127.0.0.1",), self_test="test.surbl.org"),
    # https://docs.abusix.com/docs/guardian-mail/production-zones
    "dblack.mail.abusix.zone": KnownZone(lists_names=True, keyed=True),
    "mail.abusix.zone": KnownZone(lists_names=False, keyed=True),
    # Lists of addresses without refusals of their own.
    "bl.spamcop.net": KnownZone(lists_names=False),  # https://www.spamcop.net/bl.shtml
    "psbl.surriel.com": KnownZone(lists_names=False),  # https://psbl.org/
    "b.barracudacentral.org": KnownZone(lists_names=False),  # https://www.barracudacentral.org/rbl
    "bl.mailspike.net": KnownZone(lists_names=False),  # https://www.mailspike.org/usage.html
    "rep.mailspike.net": KnownZone(lists_names=False),
    "wl.mailspike.net": KnownZone(lists_names=False),
    "dnsbl-1.uceprotect.net": KnownZone(lists_names=False),  # https://www.uceprotect.net/
    "dnsbl-2.uceprotect.net": KnownZone(lists_names=False),
    "dnsbl-3.uceprotect.net": KnownZone(lists_names=False),
}


def known_zone(zone: str) -> KnownZone | None:
    """Returns the facts about a zone (lower case, without the trailing dot), or None."""
    while zone:
        if (known := _KNOWN.get(zone)) is not None:
            return known
        zone = zone.partition(".")[2]
    return None
