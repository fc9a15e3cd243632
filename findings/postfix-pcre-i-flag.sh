#!/bin/bash
# Postfix 3.7.11 (Debian 3.7.11-0+deb12u1): the "i" flag of a pcre table makes a pattern case-SENSITIVE
#
# In Perl and most other tools "/pattern/i" ignores case. In pcre_table(5) patterns ignore case without a flag, and "i"
# toggles that off: a pattern with the usual "i" misses "Pool-1.example.com". regexp tables behave the same.
#
# Seen:
#   pcre /^pool-/, Pool-1.example.com: REJECT
#   pcre /^pool-/i, Pool-1.example.com: no match
#   regexp /^pool-/, Pool-1.example.com: REJECT
#   regexp /^pool-/i, Pool-1.example.com: no match
set -euo pipefail
# postmap uses a dynamicmaps.cf only if root owns it.
[ "$(id -u)" = 0 ] || exec unshare --map-root-user bash "$0"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
apt-get -q=2 -o APT::Sandbox::User="$(id -un)" download postfix=3.7.11-0+deb12u1 postfix-pcre=3.7.11-0+deb12u1 \
    libpcre2-8-0=10.42-1+deb12u2 libicu72=72.1-3+deb12u1 libnsl2=1.3.0-2 libtirpc3=1.3.3+ds-1 \
    libdb5.3=5.3.28+dfsg2-1
for package in *.deb; do dpkg-deb -x "$package" root; done
LD_LIBRARY_PATH=root/usr/lib/postfix:$(echo root/usr/lib/*-linux-gnu):$(echo root/lib/*-linux-gnu)
export LD_LIBRARY_PATH
mkdir config
cat >config/main.cf <<CONFIG
shlib_directory = $tmp/root/usr/lib/postfix
meta_directory = $tmp/config
CONFIG
echo 'pcre postfix-pcre.so dict_pcre_open' >config/dynamicmaps.cf

for kind in pcre regexp; do
    for pattern in '/^pool-/' '/^pool-/i'; do
        echo "$pattern REJECT" >table
        found=$(root/usr/sbin/postmap -c config -q Pool-1.example.com "$kind:$tmp/table") || found="no match"
        echo "$kind $pattern, Pool-1.example.com: $found"
    done
done >seen

diff - seen <<'EXPECTED'
pcre /^pool-/, Pool-1.example.com: REJECT
pcre /^pool-/i, Pool-1.example.com: no match
regexp /^pool-/, Pool-1.example.com: REJECT
regexp /^pool-/i, Pool-1.example.com: no match
EXPECTED
echo "as described"
