#!/bin/bash
# @ip-location-db/geo-whois-asn-country-mmdb 2.3.2026061719, read by maxminddb 3.2.0: the -ipv6 file has no answer
# for any IPv4 address, without an error
#
# The -ipv4 file refuses IPv6 addresses with ValueError. The -ipv6 file returns None for an IPv4 address, as for an
# unknown address. `ip_version` does not distinguish it from the file with both families: 6 is the depth of the tree.
# The prefix length 0 of the answer shows that the file contains nothing for IPv4.
#
# Seen (file, ip_version, database_type, 193.0.0.1, 2001:4860:4860::8888):
#   -ipv4 4 country ipv4: NL /20, ValueError
#   -ipv6 6 country ipv6: None /0, US /32
#   both 6 country ipvAll: NL /20, US /32
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check maxminddb==3.2.0
npm pack --silent @ip-location-db/geo-whois-asn-country-mmdb@2.3.2026061719 >/dev/null
tar -xzf ip-location-db-*.tgz

venv/bin/python - >seen <<'PYTHON'
import maxminddb


def look_up(reader, address):
    try:
        record, prefix = reader.get_with_prefix_len(address)
    except ValueError as error:
        return type(error).__name__
    return f"{record and record['country_code']} /{prefix}"


for title, suffix in (("-ipv4", "-ipv4"), ("-ipv6", "-ipv6"), ("both", "")):
    with maxminddb.open_database(f"package/geo-whois-asn-country{suffix}.mmdb") as reader:
        metadata = reader.metadata()
        found = ", ".join(look_up(reader, address) for address in ("193.0.0.1", "2001:4860:4860::8888"))
        print(f"{title} {metadata.ip_version} {metadata.database_type}: {found}")
PYTHON

diff - seen <<'EXPECTED'
-ipv4 4 country ipv4: NL /20, ValueError
-ipv6 6 country ipv6: None /0, US /32
both 6 country ipvAll: NL /20, US /32
EXPECTED
echo "as described"
