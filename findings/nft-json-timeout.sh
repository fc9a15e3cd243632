#!/bin/bash
# nft (Debian nftables 1.0.6-2+deb12u2): JSON output turns a timeout of half a second into no timeout
#
# `nft -j list ruleset` writes a timeout in whole seconds: 500 ms becomes 0, and nft reads 0 as "no timeout". A block
# with such a timeout is permanent after a restore from the JSON output. Runs in a separate network namespace; needs
# the right to create one.
#
# Seen:
#   text output: timeout 500ms
#   JSON output: "timeout": 0
#   after the restore and 2 seconds: elements = { 192.0.2.9 }
set -euo pipefail
if ! unshare --map-root-user --net true 2>/dev/null; then
    echo "skipped: cannot create a network namespace; run as root" >&2
    exit 0
fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
apt-get -q=2 -o APT::Sandbox::User="$(id -un)" download nftables=1.0.6-2+deb12u2 libnftables1=1.0.6-2+deb12u2 \
    libnftnl11=1.2.4-2 libjansson4=2.14-2 libedit2=3.1-20221030-2 libmnl0=1.0.4-3 libxtables12=1.8.9-2 libbsd0=0.11.7-2
for package in *.deb; do dpkg-deb -x "$package" root; done
LD_LIBRARY_PATH=$(echo "$tmp"/root/usr/lib/*-linux-gnu)
export LD_LIBRARY_PATH PATH="$tmp/root/usr/sbin:$PATH"

cat >inside.sh <<'INSIDE'
set -eu
nft -f - <<'RULESET'
table inet filter {
    set blocked {
        type ipv4_addr
        flags timeout
        elements = { 192.0.2.9 timeout 500ms }
    }
}
RULESET
nft list ruleset >saved.text
nft -j list ruleset >saved.json
echo "text output: $(grep -o 'timeout [0-9a-z]*ms' saved.text)"
echo "JSON output: $(grep -o '"timeout": [0-9]*' saved.json)"
nft flush ruleset
nft -j -f saved.json
sleep 2
echo "after the restore and 2 seconds: $(nft list ruleset | grep -o 'elements.*')"
INSIDE
unshare --map-root-user --net sh inside.sh >seen

diff - seen <<'EXPECTED'
text output: timeout 500ms
JSON output: "timeout": 0
after the restore and 2 seconds: elements = { 192.0.2.9 }
EXPECTED
echo "as described"
