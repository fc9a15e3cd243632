#!/bin/bash
# ipset (Debian 7.17-1): an address of a range in a hash:net set is "in the set", but cannot be deleted from it
#
# `add SET FROM-TO` stores the range as the CIDR blocks that cover it. `test` then finds each address, while `del` of
# one address fails: it deletes stored blocks only. The listing does not contain the range either. Runs in a separate
# network namespace; needs the right to create one and the ip_set module of the kernel.
#
# Seen:
#   members: 192.0.2.0/30 192.0.2.4/31
#   test 192.0.2.1: in the set
#   del 192.0.2.1: Element cannot be deleted from the set: it's not added
#   del 192.0.2.0-192.0.2.5: done
set -euo pipefail
if ! unshare --map-root-user --net true 2>/dev/null; then
    echo "skipped: cannot create a network namespace; run as root" >&2
    exit 0
fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
apt-get -q=2 -o APT::Sandbox::User="$(id -un)" download ipset=7.17-1 libipset13=7.17-1 libmnl0=1.0.4-3
for package in *.deb; do dpkg-deb -x "$package" root; done
LD_LIBRARY_PATH=$(echo "$tmp"/root/usr/lib/*-linux-gnu)
export LD_LIBRARY_PATH PATH="$tmp/root/usr/sbin:$PATH"

cat >inside.sh <<'INSIDE'
set -eu
delete() {
    if ipset del clients "$1" 2>error; then
        echo "del $1: done"
    else
        echo "del $1: $(sed 's/^ipset v[0-9.]*: //' error)"
    fi
}
ipset create clients hash:net
ipset add clients 192.0.2.0-192.0.2.5
echo "members: $(ipset save clients | sed -n 's/^add clients //p' | sort | xargs)"
ipset test clients 192.0.2.1 2>error && echo "test 192.0.2.1: in the set"
delete 192.0.2.1
delete 192.0.2.0-192.0.2.5
INSIDE
unshare --map-root-user --net sh inside.sh >seen

diff - seen <<'EXPECTED'
members: 192.0.2.0/30 192.0.2.4/31
test 192.0.2.1: in the set
del 192.0.2.1: Element cannot be deleted from the set: it's not added
del 192.0.2.0-192.0.2.5: done
EXPECTED
echo "as described"
