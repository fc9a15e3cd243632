"""Inputs of up to 64 KiB that once took seconds to minutes, or broke a promise by their length. They are generated,
because files with them would be long.
"""

from __future__ import annotations

from tests.fuzz.inputs import LONG


def _lines(template: str, count: int) -> str:
    """`count` lines, each with its number in place of `%d`."""
    return "".join(template.replace("%d", str(number)) for number in range(count))


def _filled(begin: str, template: str) -> str:
    """A beginning, and after it as many lines as fit into 64 KiB."""
    room = LONG - len(begin.encode())
    return begin + _lines(template, room // len(template))[:room].rpartition("\n")[0] + "\n"


_MATCH = "rules:\n- name: a\n  action: REJECT\n  match:\n"
_EXPRESSIONS = _MATCH + "    helo_name_regex:\n"
_MANY_RULES = "rules:\n" + _lines("- {name: r%d, match: {helo_name: x%d}, action: REJECT}\n", 600)
_MANY_LISTS = "lists:\n" + _lines("  abcdefgh%d: x\n", 1500)

# The target, the cause of the cost, the input.
INPUTS = (
    (
        "rules",
        "a suggestion for each of many unknown lists",
        _filled(_MANY_LISTS + _MATCH + "    helo_name:\n", "    - $abcdefgx%d\n"),
    ),
    (
        "rules",
        "a suggestion for each of many unknown rules in a test",
        _filled(_MANY_RULES + "tests:\n- given: {}\n  expect: REJECT\n  observed:\n", "  - x%dr\n"),
    ),
    (
        "rules",
        "the explanation of each failing test",
        _filled(_MANY_RULES + "tests:\n", "- {given: {helo_name: a}, expect: REJECT}\n"),
    ),
    ("rules", "expressions that no index holds", _filled(_EXPRESSIONS, "    - '%d\\pL{9}'\n")),
    ("rules", "expressions too large for RE2", _filled(_EXPRESSIONS, "    - '%d\\pL{999}'\n")),
    ("rules", "expressions of many labels", _EXPRESSIONS + _lines("    - %d" + "a\\." * 3300 + "a\n", 6)),
    (
        "rules",
        "senders, and expressions that are found in none",
        _filled(
            _MATCH + "    sender:\n" + _lines("    - a%d@b.example\n", 1000) + "    sender_regex:\n", "    - x%d\n"
        ),
    ),
    (
        "rules",
        "rules that share expressions which are not found in their value",
        _filled(
            "lists:\n  l:\n" + _lines("  - a%db\n", 2500) + "rules:\n",
            "- {name: r%d, match: {helo_name: x, helo_name_regex: $l}, action: REJECT}\n",
        ),
    ),
    (
        "rules",
        "rules that have an entry in common",
        _filled("rules:\n", "- {name: r%d, match: {hostname_suffix: a, helo_name: [x%d, y]}, action: DEFER}\n"),
    ),
    (
        "rules",
        "rules that share a list of networks",
        _filled(
            "lists:\n  l:\n" + _lines("  - 2001:db8::%d\n", 2300) + "rules:\n",
            "- {name: r%d, match: {cidr: $l, sender: a%d@b.example}, action: REJECT}\n",
        ),
    ),
    (
        "rules",
        "rules that differ in one entry of many",
        "lists:\n  a:\n"
        + _lines("  - h%d\n", 1500)
        + "  b:\n"
        + _lines("  - h%d\n", 1500)
        + "rules:\n"
        + _lines("- {name: a%d, match: {hostname: $a, helo_name: [c, x%d]}, action: REJECT}\n", 100)
        + _lines("- {name: b%d, match: {hostname: $b, helo_name: [c, y%d]}, action: REJECT}\n", 100),
    ),
    ("import-plain", "ranges of hundreds of networks", _filled("0", "::%d-ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe\n")),
    ("import-plain", "a word of colons", "0" + ":" * 60_000 + "x\n"),
    (
        "import-postfix-cidr",
        "addresses that pass and block in turn",
        _filled("5", "2001:db8::%d OK\n2001:db8:1::%d REJECT\n"),
    ),
    ("import-sendmail-access", "blanks before a quote", "0Connect:x ERROR:5.7.1" + " " * 1000 + '"a"b"\n'),
    ("import-postfwd", "blanks in a macro", "0&&A { x" + " " * 2000 + ";" + " " * 2000 + "x\n"),
    ("import-postfwd", "blanks in an item", "0id=x; a=x" + " " * 60_000 + "x; action=REJECT\n"),
    ("import-postfwd", "blanks in a negated value", "0id=x; client_name=!!(" + " " * 60_000 + "x; action=REJECT\n"),
    ("import-postfwd", "blanks before a comma", "0id=x; client_address=1" + " " * 60_000 + "x; action=REJECT\n"),
    ("import-postfix-pcre", "classes that open and do not end", "0/[" + "[:" * 31_000 + "/ REJECT\n"),
    (
        "import-postfix-pcre",
        "shorter classes that open and do not end",
        _filled("0", "/[" + "[:" * 4500 + "%d/ REJECT\n"),
    ),
    ("import-postfix-regexp", "classes that open and do not end", "0/[" + "[:" * 31_000 + "/ REJECT\n"),
    ("import-postfix-pcre", "expressions of colons", _filled("0", "/" + ":" * 9_000 + "x%d/ REJECT\n")),
    ("import-postfix-pcre", "expressions too large for RE2", _filled("0", "/\\pL{999}%d/ REJECT\n")),
    (
        "import-postfwd",
        "expressions too large for RE2",
        _filled("0", "id=x; helo_name=~/\\pL{999}%d/; action=REJECT\n"),
    ),
    ("import-rspamd-map", "expressions too large for RE2", _filled("0", "/\\pL{999}%d/\n")),
    ("import-postfix-pcre", "a group of 60,000 digits", "0/(a)/ REJECT $" + "1" * 60_000 + "\n"),
    ("decision-log", "a word without a value", "2026-11-21T17:16:00Z REJECT client=x[1] " + "a" * 60_000 + "\n"),
)
