#!/bin/bash
# nft (Debian nftables 1.0.6-2+deb12u2): JSON output omits auto-merge, so a restored set refuses its own updates
#
# A set of networks with auto-merge accepts an address inside a network that it already contains. `nft -j list ruleset`
# does not write the flag; the text output does. After a restore from the JSON output the set looks the same, and the
# update that worked before fails. Runs in a separate network namespace; needs the right to create one.
#
# Seen:
#   text output: auto-merge
#   JSON output: no auto-merge
#   update before the restore: accepted
#   update after the restore: refused, interval overlaps with an existing one
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
update() {
    if nft add element inet filter clients '{ 192.0.2.5 }' 2>error; then
        echo "update $1: accepted"
    else
        echo "update $1: refused, $(sed -n 's/^Error: //p' error)"
    fi
}
nft -f - <<'RULESET'
table inet filter {
    set clients {
        type ipv4_addr
        flags interval
        auto-merge
        elements = { 192.0.2.0/24 }
    }
}
RULESET
echo "text output: $(nft list ruleset | grep -o auto-merge)"
nft -j list ruleset >saved.json
grep -q auto-merge saved.json && echo "JSON output: auto-merge" || echo "JSON output: no auto-merge"
update "before the restore"
nft flush ruleset
nft -j -f saved.json
update "after the restore"
INSIDE
unshare --map-root-user --net sh inside.sh >seen

diff - seen <<'EXPECTED'
text output: auto-merge
JSON output: no auto-merge
update before the restore: accepted
update after the restore: refused, interval overlaps with an existing one
EXPECTED
echo "as described"
