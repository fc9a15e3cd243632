#!/bin/bash
# publicsuffixlist 1.1.2.20261023: the registered domain of a cloud server's host name is the name itself, or None
#
# privatesuffix() applies the private section of the list unless only_icann is set. That section contains the host
# name suffixes of hosting providers, so PTR names of the same provider do not share a domain: a counter for each
# domain counts every server separately. If the section has a wildcard for the names of a region, the full name of a
# server is a public suffix and the result is None.
#
# Seen (name, privatesuffix, privatesuffix with only_icann=True):
#   ec2-192-0-2-1.eu-west-1.compute.amazonaws.com ec2-192-0-2-1.eu-west-1.compute.amazonaws.com amazonaws.com
#   ec2-192-0-2-1.compute-1.amazonaws.com None amazonaws.com
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check publicsuffixlist==1.1.2.20261023

"$tmp/venv/bin/python" - >"$tmp/seen" <<'PYTHON'
from publicsuffixlist import PublicSuffixList

whole = PublicSuffixList()
icann = PublicSuffixList(only_icann=True)
for name in ("ec2-192-0-2-1.eu-west-1.compute.amazonaws.com", "ec2-192-0-2-1.compute-1.amazonaws.com"):
    print(name, whole.privatesuffix(name), icann.privatesuffix(name))
PYTHON

diff - "$tmp/seen" <<'EXPECTED'
ec2-192-0-2-1.eu-west-1.compute.amazonaws.com ec2-192-0-2-1.eu-west-1.compute.amazonaws.com amazonaws.com
ec2-192-0-2-1.compute-1.amazonaws.com None amazonaws.com
EXPECTED
echo "as described"
