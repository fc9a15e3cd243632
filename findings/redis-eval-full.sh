#!/bin/bash
# redis-server 7.0.15 (Debian 5:7.0.15-1~deb12u10): a full server lets a script write after a first EXPIRE or DEL
#
# A server over `maxmemory` with `noeviction` refuses INCR, alone or as the first write of a script. A script whose
# first write needs no memory (EXPIRE, DEL) passes that check, and its later writes are not checked: counters and new
# keys are stored beyond the limit. So the order of the two commands decides whether a script can count.
#
# Seen:
#   INCR: OOM
#   EVAL, INCR first: OOM
#   EVAL, EXPIRE then INCR: 2
#   EVAL, DEL then SET of 100 kB: 100000
set -euo pipefail
tmp=$(mktemp -d)
server=
trap 'kill "$server" 2>/dev/null && wait "$server"; rm -rf "$tmp"' EXIT
cd "$tmp"
apt-get -q=2 -o APT::Sandbox::User="$(id -un)" download redis-server=5:7.0.15-1~deb12u10 \
    redis-tools=5:7.0.15-1~deb12u10 liblzf1=3.6-3 libjemalloc2=5.3.0-1 libatomic1=12.2.0-14+deb12u1
for package in *.deb; do dpkg-deb -x "$package" root; done
LD_LIBRARY_PATH=$(echo "$tmp"/root/usr/lib/*-linux-gnu)
export LD_LIBRARY_PATH PATH="$tmp/root/usr/bin:$PATH"

redis-server --port 0 --unixsocket "$tmp/socket" --save '' --maxmemory-policy noeviction >log &
server=$!
redis() { redis-cli -s "$tmp/socket" "$@" 2>&1 | sed 's/^OOM .*/OOM/' | grep .; }
timeout 10 sh -c 'until [ -S socket ]; do sleep 0.1; done'
redis set count 1 >/dev/null
redis config set maxmemory 1 >/dev/null
{
    echo "INCR: $(redis incr count)"
    echo "EVAL, INCR first: $(redis eval "return redis.call('INCR', KEYS[1])" 1 count)"
    echo "EVAL, EXPIRE then INCR: $(redis eval "redis.call('EXPIRE', KEYS[1], 60)
        return redis.call('INCR', KEYS[1])" 1 count)"
    echo "EVAL, DEL then SET of 100 kB: $(redis eval "redis.call('DEL', KEYS[1])
        redis.call('SET', KEYS[1], string.rep('x', 100000))
        return redis.call('STRLEN', KEYS[1])" 1 count)"
} >seen

diff - seen <<'EXPECTED'
INCR: OOM
EVAL, INCR first: OOM
EVAL, EXPIRE then INCR: 2
EVAL, DEL then SET of 100 kB: 100000
EXPECTED
echo "as described"
