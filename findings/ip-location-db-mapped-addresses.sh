#!/bin/bash
# @ip-location-db/geo-whois-asn-country-mmdb 2.3.2026061719, read by maxminddb 3.2.0: an IPv4-mapped address is unknown
#
# A server with a dual-stack socket sees IPv4 clients as ::ffff:a.b.c.d. The MMDB format keeps IPv4 networks at ::/96,
# and a database may contain an alias at ::ffff:0:0/96. This database contains no alias: the same client has a country
# as 1.1.1.1 and none as ::ffff:1.1.1.1. maxminddb does not convert the address.
#
# Seen:
#   1.1.1.1: AU
#   ::1.1.1.1: AU
#   ::ffff:1.1.1.1: None
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

with maxminddb.open_database("package/geo-whois-asn-country.mmdb") as reader:
    for address in ("1.1.1.1", "::1.1.1.1", "::ffff:1.1.1.1"):
        record = reader.get(address)
        print(f"{address}: {record and record['country_code']}")
PYTHON

diff - seen <<'EXPECTED'
1.1.1.1: AU
::1.1.1.1: AU
::ffff:1.1.1.1: None
EXPECTED
echo "as described"
