#!/bin/bash
# rbldnsd (Debian 1.0~20210120-2): a zone file that is complete as ip4set loses its ranges as ip4trie
#
# ip4set reads FROM-TO ranges; ip4trie reads addresses and CIDR blocks. Given a range, ip4trie logs "invalid address",
# leaves the line out, and serves the rest: after the word ip4set is changed to ip4trie on the command line, the clients
# of the range are not listed any more, and rbldnsd still starts.
#
# Seen:
#   ip4set: range listed, block listed
#   ip4trie: range not listed, block listed
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
192.0.2.10-192.0.2.20
198.51.100.0/24
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
    set.example:ip4set:list trie.example:ip4trie:list >log 2>&1 &
server=$!

python3 - "$port" >seen <<'PYTHON'
import socket
import struct
import sys
import time

client = socket.socket(type=socket.SOCK_DGRAM)
client.settimeout(5)
client.connect(("127.0.0.1", int(sys.argv[1])))


def listed(name):
    """Asks for the A record of a name: NXDOMAIN is "not listed"."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = struct.pack(">6H", 1, 0, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)
    for _ in range(50):
        try:
            client.send(question)
            return {0: "listed", 3: "not listed"}[client.recv(512)[3] & 15]
        except ConnectionRefusedError:  # the server is starting
            time.sleep(0.1)
    raise SystemExit("rbldnsd did not start")


for zone in ("set", "trie"):
    in_range, in_block = listed(f"15.2.0.192.{zone}.example"), listed(f"1.100.51.198.{zone}.example")
    print(f"ip4{zone}: range {in_range}, block {in_block}")
PYTHON
kill "$server"
wait "$server" || true # the log is complete when the server has ended
sed -n 's/^rbldnsd: file/log: file/p' log >>seen

diff - seen <<'EXPECTED'
ip4set: range listed, block listed
ip4trie: range not listed, block listed
log: file list(2): invalid address
EXPECTED
echo "as described"
