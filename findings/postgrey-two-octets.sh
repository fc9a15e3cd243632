#!/bin/bash
# postgrey (Debian 1.37-2): two octets in whitelist_clients mean a /24, not a /16
#
# postgrey accepts `192.0.2` as the network of all addresses that begin with these octets. `192.168` is accepted as
# well, and the comment in postgrey's source calls it a /16, but the code gives it a prefix length of 24: clients of
# 192.168.0.0/24 pass, and clients in the rest of the /16 are greylisted, without a message in the log. The script asks
# postgrey over its own socket.
#
# Seen:
#   192.168.0.5: action=DUNNO
#   192.168.7.5: action=DEFER_IF_PERMIT
set -euo pipefail
tmp=$(mktemp -d)
server=
trap 'kill "$server" 2>/dev/null && wait "$server"; rm -rf "$tmp"' EXIT
cd "$tmp"
apt-get -q=2 -o APT::Sandbox::User="$(id -un)" download postgrey=1.37-2 libnetaddr-ip-perl libsocket6-perl \
    libnet-server-perl libberkeleydb-perl libnet-dns-perl libdigest-hmac-perl libnet-ip-perl
for package in *.deb; do dpkg-deb -x "$package" root; done
chmod -R a+rX "$tmp"

echo 192.168 >clients
: >recipients
install -d -m 700 data
user=nobody group=nogroup
if [ "$(id -u)" = 0 ]; then chown "$user:$group" data .; else user=$(id -un) group=$(id -gn); fi
mapfile -t libraries < <(find "$tmp/root" -type d \( -path '*/perl5' -o -path '*/perl5/5.*' \) -printf '-I%p\n')
perl -T "${libraries[@]}" root/usr/sbin/postgrey --unix="$tmp/socket" --dbdir="$tmp/data" --user="$user" --group="$group" \
    --whitelist-clients="$tmp/clients" --whitelist-recipients="$tmp/recipients" >log 2>&1 &
server=$!
for _ in $(seq 100); do [ -S socket ] && break || sleep 0.1; done

python3 - >seen <<'PYTHON'
import socket

for address in ("192.168.0.5", "192.168.7.5"):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("socket")
        request = f"request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address={address}\nclient_name=unknown\n"
        connection.sendall(f"{request}sender=a@example.com\nrecipient=b@example.net\n\n".encode())
        print(f"{address}: {connection.recv(4096).decode().split()[0]}")
PYTHON

diff - seen <<'EXPECTED'
192.168.0.5: action=DUNNO
192.168.7.5: action=DEFER_IF_PERMIT
EXPECTED
echo "as described"
