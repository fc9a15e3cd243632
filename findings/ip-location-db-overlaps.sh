#!/bin/bash
# @ip-location-db/asn and @ip-location-db/geo-whois-asn-country 2.3.2026061719: ranges of the CSV files overlap
#
# The rows of both files are sorted by the start of their ranges, and the ranges look disjoint, so a bisection for the
# last start at or below an address is the obvious lookup. It is wrong after the end of an inner range: an address there
# still belongs to the outer range, but the lookup finds the row of the inner range. The script counts the rows that
# begin inside an earlier range, and how many of these have another owner than the earlier range that ends last.
#
# Seen:
#   asn-ipv4.csv: 411961 rows, 1 begins inside an earlier range, 1 with another owner
#   geo-whois-asn-country-ipv4.csv: 334373 rows, 6825 begin inside an earlier range, 5141 with another owner
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
for name in asn geo-whois-asn-country; do
    npm pack --silent "@ip-location-db/$name@2.3.2026061719" >/dev/null
    tar -xzf "ip-location-db-$name-2.3.2026061719.tgz" "package/$name-ipv4.csv"
done

python3 - >seen <<'PYTHON'
import csv
from ipaddress import IPv4Address

for name in ("asn-ipv4.csv", "geo-whois-asn-country-ipv4.csv"):
    rows = inside = differing = 0
    reach, owner = -1, ""
    with open(f"package/{name}", encoding="utf-8", newline="") as lines:
        for first, last, row_owner, *_ in csv.reader(lines):
            rows += 1
            if int(IPv4Address(first)) <= reach:
                inside += 1
                differing += row_owner != owner
            if int(IPv4Address(last)) > reach:
                reach, owner = int(IPv4Address(last)), row_owner
    verb = "begins" if inside == 1 else "begin"
    print(f"{name}: {rows} rows, {inside} {verb} inside an earlier range, {differing} with another owner")
PYTHON

diff - seen <<'EXPECTED'
asn-ipv4.csv: 411961 rows, 1 begins inside an earlier range, 1 with another owner
geo-whois-asn-country-ipv4.csv: 334373 rows, 6825 begin inside an earlier range, 5141 with another owner
EXPECTED
echo "as described"
