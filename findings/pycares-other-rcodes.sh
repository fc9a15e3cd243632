#!/bin/bash
# pycares 5.2.1: response codes above REFUSED are a success without records
#
# c-ares has an error for response codes 1 to 5 (SERVFAIL, REFUSED ...) and another for an answer without records
# (NODATA). Every other code, for example NOTAUTH (9), reaches the callback of query() with error None and an empty
# answer: code that reads "no error, no records" as "the name has no such record" turns a failure of the server into a
# fact about the client. The script asks its own name server on the loopback interface.
#
# Seen:
#   NOERROR, no records: error 1, DNS server returned answer with no data
#   SERVFAIL: error 3, DNS server returned general failure
#   REFUSED: error 6, DNS server refused query
#   YXDOMAIN: no error, 0 records
#   NOTAUTH: no error, 0 records
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check pycares==5.2.1

"$tmp/venv/bin/python" - >"$tmp/seen" <<'PYTHON'
import socket
import struct
import threading

import pycares

CODES = {"NOERROR, no records": 0, "SERVFAIL": 2, "REFUSED": 5, "YXDOMAIN": 6, "NOTAUTH": 9}
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 0))


def serve():
    """Answers with the response code that the first label of the question names, and no records."""
    while True:
        question, client = server.recvfrom(512)
        end = question.index(b"\0", 12) + 5
        code = int(question[13 : 13 + question[12]])
        server.sendto(question[:2] + struct.pack(">5H", 0x8180 | code, 1, 0, 0, 0) + question[12:end], client)


threading.Thread(target=serve, daemon=True).start()
port = server.getsockname()[1]
channel = pycares.Channel(servers=[f"127.0.0.1:{port}"], timeout=5, tries=1)
for title, code in CODES.items():
    done = threading.Event()

    def answered(result, error, title=title, done=done):
        if error is None:
            print(f"{title}: no error, {len(result.answer)} records")
        else:
            print(f"{title}: error {error}, {pycares.errno.strerror(error)}")
        done.set()

    channel.query(f"{code}.in-addr.arpa", pycares.QUERY_TYPE_PTR, callback=answered)
    done.wait(10)
channel.close()
PYTHON

diff - "$tmp/seen" <<'EXPECTED'
NOERROR, no records: error 1, DNS server returned answer with no data
SERVFAIL: error 3, DNS server returned general failure
REFUSED: error 6, DNS server refused query
YXDOMAIN: no error, 0 records
NOTAUTH: no error, 0 records
EXPECTED
echo "as described"
