#!/bin/bash
# google-re2 1.1.20251105: a set of 3,000 plain host name patterns does not compile, and the error has no reason
#
# Set.Compile() works within Options.max_mem, 8 MB by default, for the whole set and not for each pattern. Add()
# accepts every pattern; Compile() then fails with a message that mentions neither memory nor a pattern. With
# max_mem raised the same set compiles and matches.
#
# Seen:
#   8 MB, 1000 patterns: match [999]
#   8 MB, 3000 patterns: failed to compile Set
#   256 MB, 3000 patterns: match [2999]
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install --quiet --disable-pip-version-check google-re2==1.1.20251105

"$tmp/venv/bin/python" - >"$tmp/seen" 2>"$tmp/log" <<'PYTHON'
import re2

DEFAULT_MB = re2.Options().max_mem >> 20
for megabytes, count in ((DEFAULT_MB, 1000), (DEFAULT_MB, 3000), (256, 3000)):
    options = re2.Options()
    options.max_mem = megabytes << 20
    patterns = re2.Set.SearchSet(options)
    for number in range(count):
        patterns.Add(rf"^(dyn|pool|dsl|cable)[0-9a-f.-]+\.isp{number}\.example\.com$")
    try:
        patterns.Compile()
        result = f"match {patterns.Match(f'pool192-0-2-1.isp{count - 1}.example.com')}"
    except re2.error as error:
        message = error.args[0]
        result = message.decode() if isinstance(message, bytes) else message
    print(f"{megabytes} MB, {count} patterns: {result}")
PYTHON

diff - "$tmp/seen" <<'EXPECTED'
8 MB, 1000 patterns: match [999]
8 MB, 3000 patterns: failed to compile Set
256 MB, 3000 patterns: match [2999]
EXPECTED
echo "as described"
