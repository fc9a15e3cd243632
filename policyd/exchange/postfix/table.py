"""Reads the parts that all of Postfix's tables share: lines, `if` and `endif`, and right-hand sides (access(5)).

The file for each type of table reads the patterns, and decides their order.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from policyd.core.ruleset import Verb
from policyd.exchange.model import DUNNO, ConversionReport, SkippedError, UnsupportedError, Verdict, blocking

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from policyd.exchange.model import Line

# Actions that do something to the mail and let it continue to the next restriction (access(5), "OTHER ACTIONS").
_PASSING = {
    "BCC": "no copy is sent",
    "FILTER": "the mail is not filtered",
    "HOLD": "the mail is not held",
    "INFO": "nothing besides the decision is logged",
    "PREPEND": "no header is added",
    "REDIRECT": "the mail is not redirected",
    "WARN": "nothing besides the decision is logged",
}

_BLOCKING = {"REJECT": Verb.REJECT, "DEFER": Verb.DEFER, "DEFER_IF_PERMIT": Verb.DEFER_IF_PERMIT}

# access(5) documents OK; smtpd_check.c also accepts RELAY, and `permit` is a restriction.
_PERMITTING = frozenset({"OK", "RELAY", "PERMIT"})

NO_DISCARD = "DISCARD is not supported: policyd never accepts mail and then discards it; REJECT tells the sender"

# Maximum nesting of `if`: each line is compared with every open `if`. A nesting of two is common.
MAX_OPEN_IFS = 16

# The reply codes that Postfix gives a REJECT and a DEFER of a policy server (access_map_reject_code,
# access_map_defer_code), and 550, which is often written without a special meaning.
_USUAL_CODES = frozenset({"450", "550", "554"})


def logical_lines(lines: Iterable[Line]) -> Iterator[Line]:
    """Joins lines as Postfix does (`readllines.c`): a line that begins with a blank continues the line before it, even
    across comments and empty lines.
    """
    current: Line | None = None
    for line in lines:
        text = line.text.rstrip()
        if not text or text.lstrip().startswith("#"):
            continue
        if text[0] in " \t" and current is not None:
            current = current._replace(text=f"{current.text} {text.lstrip()}")
            continue
        if current is not None:
            yield current
        current = line._replace(text=text)
    if current is not None:
        yield current


def is_endif(line: Line) -> bool:
    """Whether a line of a cidr:, pcre: or regexp: table closes an `if`."""
    return line.text.split(maxsplit=1)[0].lower() == "endif"


def check_nesting(open_ifs: list[Any]) -> None:
    """Raises `UnsupportedError` if another `if` would exceed the maximum."""
    if len(open_ifs) >= MAX_OPEN_IFS:
        raise UnsupportedError(f"more than {MAX_OPEN_IFS} `if` within each other")


def close_if(open_ifs: list[Any]) -> None:
    """Closes the innermost `if`. Raises `SkippedError` if no `if` is open."""
    if not open_ifs:
        raise SkippedError("an endif without its if; Postfix skips it")
    open_ifs.pop()


def parse_verdict(result: str, line: Line, report: ConversionReport) -> Verdict:
    """Reads the right-hand side of an access table.

    Raises `UnsupportedError` if policyd has no equivalent. A difference in detail is noted in the report.
    """
    words = result.split(None, 1)
    if not words:
        raise UnsupportedError("there is no action")
    action, text = words[0].upper(), words[1] if len(words) > 1 else ""
    if action in _BLOCKING:
        return blocking(_BLOCKING[action], text)
    if re.fullmatch(r"[45]\d\d", action) and text:
        return _numeric(action, text, line, report)
    if action == "DUNNO":
        return DUNNO
    if result.isdecimal():
        report.note(line, "Postfix treats a number without text as OK (access(5)); it became DUNNO")
        return DUNNO
    if action in _PERMITTING:
        if text:
            report.note(line, f"Postfix ignores what follows {action}")
        report.note(
            line,
            f"{action} became DUNNO: it ends the ruleset, but does not skip the restrictions that follow in main.cf",
        )
        return DUNNO
    if action in _PASSING:
        report.note(line, f"{action} is not supported: {_PASSING[action]}, and passes as with DUNNO")
        return Verdict(Verb.DUNNO, passing=True)
    if action == "DISCARD":
        raise UnsupportedError(NO_DISCARD)
    if action == "DEFER_IF_REJECT":
        raise UnsupportedError(
            "DEFER_IF_REJECT is not supported: policyd does not know the results of later restrictions"
        )
    # A restriction may let mail through, unless its name says that it cannot.
    exempts = not action.startswith(("REJECT_", "DEFER_"))
    raise UnsupportedError(f"the restriction '{words[0]}' is not supported here; keep it in main.cf", exempts=exempts)


def lets_through(result: str, line: Line) -> bool:
    """Whether a right-hand side exempts mail from the lines below, or may do so, such as an unsupported restriction."""
    try:
        return parse_verdict(result, line, ConversionReport()).verb is Verb.DUNNO
    except UnsupportedError as error:
        return error.exempts


def _numeric(code: str, text: str, line: Line, report: ConversionReport) -> Verdict:
    verb = Verb.REJECT if code.startswith("5") else Verb.DEFER
    if code in {"421", "521"}:
        report.note(line, f"{code} became {verb}: Postfix does not hang up after it")
    elif code not in _USUAL_CODES:
        report.note(
            line, f"{code} became {verb}: Postfix itself chooses the reply code (access_map_reject_code, ..defer_code)"
        )
    return blocking(verb, text)
