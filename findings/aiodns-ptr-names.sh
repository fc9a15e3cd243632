#!/bin/bash
# aiodns 4.0.4 with pycares 5.2.1: query() returns one name of a PTR answer
#
# An address may have several PTR records, and the second name may be the only one that is forward-confirmed.
# DNSResolver.query(NAME, "PTR") returns the first name; the list `aliases` of the result, the field for further names,
# is empty. query_dns() returns both records. The script asks its own name server on the loopback interface.
#
# Seen:
#   query: a.example.com []
#   query_dns: a.example.com b.example.com
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check aiodns==4.0.4 pycares==5.2.1

"$tmp/venv/bin/python" -W ignore::DeprecationWarning - >"$tmp/seen" <<'PYTHON'
import asyncio
import struct

import aiodns


class TwoNames(asyncio.DatagramProtocol):
    """Answers each question with two PTR records."""

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, question, client):
        answer = b""
        for host in (b"a", b"b"):
            name = bytes([1]) + host + b"\7example\3com\0"
            answer += b"\xc0\x0c" + struct.pack(">HHIH", 12, 1, 300, len(name)) + name
        end = question.index(b"\0", 12) + 5
        header = question[:2] + struct.pack(">5H", 0x8180, 1, 2, 0, 0)
        self.transport.sendto(header + question[12:end] + answer, client)


async def main():
    loop = asyncio.get_running_loop()
    server, _ = await loop.create_datagram_endpoint(TwoNames, local_addr=("127.0.0.1", 0))
    port = server.get_extra_info("sockname")[1]
    resolver = aiodns.DNSResolver([f"127.0.0.1:{port}"], timeout=5, tries=1)
    name = "1.2.0.192.in-addr.arpa"
    found = await resolver.query(name, "PTR")
    print("query:", found.name, found.aliases)
    result = await resolver.query_dns(name, "PTR")
    print("query_dns:", *(record.data.dname for record in result.answer))


asyncio.run(main())
PYTHON

diff - "$tmp/seen" <<'EXPECTED'
query: a.example.com []
query_dns: a.example.com b.example.com
EXPECTED
echo "as described"
