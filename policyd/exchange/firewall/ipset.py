"""ipset(8), export: two sets for `ipset restore`, one of each IP version, filled anew each time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyd.exchange.network_sets import rejected
from policyd.exchange.values import network_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    import netaddr

    from policyd.exchange.model import ExportOptions, Report, Row

_FAMILIES = {4: "inet", 6: "inet6"}

# What ipset itself takes unless it is told; a set cannot grow afterwards, so that twice the need is asked for.
_MAXELEM = 65536


def write(rows: Sequence[Row], report: Report, options: ExportOptions) -> str:
    """Commands for `ipset restore`. Each set is filled under another name and swapped in whole."""
    addresses = rejected(rows, report, deferred=options.deferred)
    lines = [
        f"# {options.heading}",
        "# Load with: ipset restore -file FILE",
        f"# and, once: iptables -I INPUT -p tcp --dport 25 -m set --match-set {options.name}4 src -j DROP",
    ]
    for version, family in _FAMILIES.items():
        name, filled = f"{options.name}{version}", f"{options.name}{version}-new"
        networks = [half for one in addresses.iter_cidrs() if one.version == version for half in _halved(one)]
        maxelem = max(_MAXELEM, 2 * len(networks))
        lines += [
            f"create {filled} hash:net family {family} maxelem {maxelem} -exist",
            f"flush {filled}",
            *(f"add {filled} {network_text(network)} -exist" for network in networks),
            f"create {name} hash:net family {family} maxelem {maxelem} -exist",
            f"swap {filled} {name}",
            f"destroy {filled}",
        ]
    return "\n".join(lines) + "\n"


def _halved(network: netaddr.IPNetwork) -> list[netaddr.IPNetwork]:
    """A network as a hash:net takes it: all but one of /0, which becomes two."""
    return [network] if network.prefixlen else list(network.subnet(1))
