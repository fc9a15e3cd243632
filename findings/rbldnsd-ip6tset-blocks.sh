#!/bin/bash
# rbldnsd (Debian 1.0~20210120-2): ip6tset reads a /64 as four groups only and drops CIDR notation
#
# ip6tset is the data set for lists of /64 blocks. It reads "2001:db8:0:2", which is not an IPv6 address, and drops
# "2001:db8:0:1::/64", the notation of RFC 4291, with "invalid address" in the log. ip6trie reads both: a list in
# CIDR notation serves nothing when its type changes from ip6trie to ip6tset, and rbldnsd still starts.
#
# Seen:
#   ip6tset: CIDR notation not listed, four groups listed
#   ip6trie: CIDR notation listed, four groups listed
#   log: file list(2): invalid address
set -euo pipefail
tmp=$(mktemp -d)
server=
trap 'kill "$server" 2>/dev/null && wait "$server"; rm -rf "$tmp"' EXIT
cd "$tmp"
apt-get -q=2 -o APT::Sandbox::User="$(id -un)" download rbldnsd=1.0~20210120-2
dpkg-deb -x rbldnsd_*.deb root

mkdir zones
cat >zones/list <<'ZONE'
:127.0.0.2:listed
2001:db8:0:1::/64
2001:db8:0:2
ZONE
user=()
if [ "$(id -u)" = 0 ]; then # rbldnsd refuses to serve as root
    user=(-u nobody)
    chmod -R a+rX "$tmp"
fi
port=$(
    python3 - <<'PYTHON'
import socket

with socket.socket(type=socket.SOCK_DGRAM) as probe:
    probe.bind(("127.0.0.1", 0))
    print(probe.getsockname()[1])
PYTHON
)
root/usr/sbin/rbldnsd -n "${user[@]}" -b "127.0.0.1/$port" -w "$tmp/zones" \
    tset.example:ip6tset:list trie.example:ip6trie:list >log 2>&1 &
server=$!

python3 - "$port" >seen <<'PYTHON'
import ipaddress
import socket
import struct
import sys
import time

client = socket.socket(type=socket.SOCK_DGRAM)
client.settimeout(5)
client.connect(("127.0.0.1", int(sys.argv[1])))


def listed(address, zone):
    """Asks for the A record of an address in a zone: NXDOMAIN is "not listed"."""
    name = ipaddress.ip_address(address).reverse_pointer.removesuffix("ip6.arpa") + zone
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = struct.pack(">6H", 1, 0, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)
    for _ in range(50):
        try:
            client.send(question)
            return {0: "listed", 3: "not listed"}[client.recv(512)[3] & 15]
        except ConnectionRefusedError:  # the server is starting
            time.sleep(0.1)
    raise SystemExit("rbldnsd did not start")


for kind in ("tset", "trie"):
    cidr, groups = (listed(f"2001:db8:0:{block}::1", f"{kind}.example") for block in (1, 2))
    print(f"ip6{kind}: CIDR notation {cidr}, four groups {groups}")
PYTHON
kill "$server"
wait "$server" || true # the log is complete when the server has ended
sed -n 's/^rbldnsd: file/log: file/p' log >>seen

diff - seen <<'EXPECTED'
ip6tset: CIDR notation not listed, four groups listed
ip6trie: CIDR notation listed, four groups listed
log: file list(2): invalid address
EXPECTED
echo "as described"
