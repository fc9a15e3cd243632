#!/bin/bash
# idna 3.20: a plain ASCII host name with hyphens in its third and fourth place is refused
#
# "r3---sn-abc.example.com" is a valid host name (RFC 952, RFC 1123), and some content networks use names of this form.
# idna.encode() refuses it in every mode, because RFC 5891 reserves these places in IDNA labels: code that normalizes
# every host name with encode() loses such hosts. encode() folds the case of ASCII labels only if uts46 is set.
#
# Seen:
#   r3---sn-abc.example.com {}: IDNAError
#   r3---sn-abc.example.com {'uts46': True}: IDNAError
#   MAIL.example.com {}: MAIL.example.com
#   MAIL.example.com {'uts46': True}: mail.example.com
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check idna==3.20

"$tmp/venv/bin/python" - >"$tmp/seen" <<'PYTHON'
import idna

for name in ("r3---sn-abc.example.com", "MAIL.example.com"):
    for options in ({}, {"uts46": True}):
        try:
            result = idna.encode(name, **options).decode()
        except idna.IDNAError as error:
            result = type(error).__name__
        print(f"{name} {options}: {result}")
PYTHON

diff - "$tmp/seen" <<'EXPECTED'
r3---sn-abc.example.com {}: IDNAError
r3---sn-abc.example.com {'uts46': True}: IDNAError
MAIL.example.com {}: MAIL.example.com
MAIL.example.com {'uts46': True}: mail.example.com
EXPECTED
echo "as described"
