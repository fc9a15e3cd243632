#!/bin/bash
# Postfix 3.7.11 (Debian 3.7.11-0+deb12u1): a texthash table that was just written delays its reader
#
# Postfix reads a `texthash:` file again until its last change is about two seconds old, to be sure that the file is
# complete. A script that writes a table and runs postmap at once waits a second or more for each lookup; with an older
# file the same lookup takes milliseconds. A timeout of one second is too short.
#
# Seen:
#   new file: REJECT after 1 second or more
#   old file: REJECT within half a second
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
apt-get -q=2 -o APT::Sandbox::User="$(id -un)" download postfix=3.7.11-0+deb12u1 libicu72=72.1-3+deb12u1 \
    libnsl2=1.3.0-2 libtirpc3=1.3.3+ds-1 libdb5.3=5.3.28+dfsg2-1
for package in *.deb; do dpkg-deb -x "$package" root; done
LD_LIBRARY_PATH=root/usr/lib/postfix:$(echo root/usr/lib/*-linux-gnu):$(echo root/lib/*-linux-gnu)
export LD_LIBRARY_PATH
mkdir config
echo "shlib_directory = $tmp/root/usr/lib/postfix" >config/main.cf

# Prints the result of a lookup and the time it took, in milliseconds.
look_up() {
    local start end found
    start=$(date +%s%3N)
    found=$(root/usr/sbin/postmap -c config -q dyn.example.com "texthash:$tmp/table")
    end=$(date +%s%3N)
    echo "$found $((end - start))"
}
echo 'dyn.example.com REJECT' >table
look_up >new
touch -d '1 hour ago' table
look_up >old
{
    awk '{ print "new file:", $1, ($2 >= 1000 ? "after 1 second or more" : "after " $2 " ms") }' new
    awk '{ print "old file:", $1, ($2 < 500 ? "within half a second" : "after " $2 " ms") }' old
} >seen

diff - seen <<'EXPECTED'
new file: REJECT after 1 second or more
old file: REJECT within half a second
EXPECTED
echo "as described"
