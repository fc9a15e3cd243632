"""Parses actions: `REJECT 5.7.1 Mail from {client_address} is not accepted here ({id})` -> `Action`."""

from __future__ import annotations

import re

from policyd.config.problems import did_you_mean, quoted
from policyd.core.ruleset import Action, Verb

# The placeholders that a text may contain. Each stands for a part of the request, the client or the decision.
PLACEHOLDERS = (
    "client_address",
    "hostname",
    "reverse_dns",
    "helo_name",
    "sender",
    "recipient",
    "list",
    "asn",
    "country",
    "count",
    "sasl_username",
    "rule",
    "id",
)

# The class of the enhanced status codes of each verb (RFC 3463 section 2); DUNNO sends no code to a client.
CODE_CLASSES = {Verb.REJECT: "5", Verb.DEFER: "4", Verb.DEFER_IF_PERMIT: "4", Verb.GREYLIST: "4"}

# The default text of a GREYLIST rule.
GREYLIST_TEXT = "Greylisted, please try again later"

# Answers of access(5) with which mail skips the restrictions that follow.
_PERMITTING = frozenset({"OK", "PERMIT", "RELAY"})

# Action words of other mail software and of firewalls, each with policyd's word.
_OTHER_WORDS = {
    "ACCEPT": "DUNNO",
    "ALLOW": "DUNNO",
    "PASS": "DUNNO",
    "NONE": "DUNNO",
    "GREYLISTING": "GREYLIST",
    "DENY": "REJECT",
    "BLOCK": "REJECT",
    "DROP": "REJECT",
    "TEMPFAIL": "DEFER",
    "DEFER_IF_REJECT": "DEFER_IF_PERMIT",
}

_ENHANCED_CODE = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")
_WELL_FORMED_CODE = re.compile(r"[245]\.(0|[1-9][0-9]{0,2})\.(0|[1-9][0-9]{0,2})")
_REPLY_CODE = re.compile(r"[0-9]{3}(?![^\s-])")
_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class ActionError(Exception):
    """The text is not an action. The message says why and what to write; `verb` is the verb, if it could be read."""

    def __init__(self, message: str, verb: Verb | None = None) -> None:
        super().__init__(message)
        self.verb = verb


def parse_action(written: str) -> Action:
    """Parses the action of a rule or of `default`. Raises ActionError."""
    word, rest = _split_word(written)
    if not word:
        raise ActionError("the action is empty; it is REJECT, DEFER, DEFER_IF_PERMIT, GREYLIST or DUNNO")
    verb = _parse_verb(word, rest)
    if verb is Verb.DUNNO:
        if rest:
            raise ActionError(
                f"DUNNO takes neither code nor text, which no client would see; remove {quoted(rest)}", verb
            )
        return Action(verb)
    code, text = _split_code(verb, rest)
    if verb is Verb.GREYLIST and not text:
        text = GREYLIST_TEXT
    return Action(verb, code, _parse_text(verb, text))


def _split_word(text: str) -> tuple[str, str]:
    """Returns the first word and the rest, without blanks between them and at the end."""
    first, *rest = text.split(maxsplit=1) or [""]
    return first, rest[0].rstrip() if rest else ""


def _parse_verb(word: str, rest: str) -> Verb:
    upper = word.upper()
    if upper in Verb.__members__:
        return Verb[upper]
    if upper in _PERMITTING:
        raise ActionError(
            f"{upper} is refused: it would skip the restrictions that follow in main.cf; "
            "write DUNNO, which ends the ruleset without that"
        )
    if rest and word.isascii() and re.fullmatch("[45][0-9]{2}", word):
        raise ActionError(
            f"a reply code is not allowed, because Postfix puts its own in front of the text; write "
            f"{'REJECT' if word[0] == '5' else 'DEFER'} {quoted(rest)[1:-1]}"
        )
    if word.isascii() and word.isdigit():
        meant = {"4": "DEFER", "5": "REJECT"}.get(word[0]) if len(word) == 3 else None
        raise ActionError(
            f"a bare number is refused: Postfix treats it as OK, which would skip the restrictions that follow in "
            f"main.cf; write {meant or 'REJECT, DEFER, DEFER_IF_PERMIT or DUNNO'}"
        )
    meant = _OTHER_WORDS.get(upper)
    hint = f"; did you mean '{meant}'?" if meant else did_you_mean(word, Verb)
    raise ActionError(
        f"unknown action {quoted(word)}{hint or '; it is REJECT, DEFER, DEFER_IF_PERMIT, GREYLIST or DUNNO'}"
    )


def _split_code(verb: Verb, rest: str) -> tuple[str, str]:
    """Splits an enhanced status code off the text; the code is empty if there is none. Raises ActionError."""
    first, text = _split_word(rest)
    code = ""
    if _ENHANCED_CODE.fullmatch(first):
        wanted = CODE_CLASSES[verb]
        if not _WELL_FORMED_CODE.fullmatch(first):
            raise ActionError(f"{quoted(first)} is not an enhanced status code (RFC 3463), such as {wanted}.7.1", verb)
        if first[0] != wanted:
            other = "REJECT" if first[0] == "5" else "DEFER"
            instead = f", or {other}" if first[0] in "45" else ""
            raise ActionError(
                f"{verb} takes a {wanted}.x.x code, not {first}; write {wanted}{first[1:]}{instead}", verb
            )
        code, rest = first, text
    reply_code = _REPLY_CODE.match(rest)
    if reply_code:
        raise ActionError(
            f"the text begins with the code {reply_code.group()}; leave it out, Postfix prepends its own", verb
        )
    if code and _ENHANCED_CODE.match(rest):
        raise ActionError(f"a second code after {code}: {quoted(rest)}", verb)
    return code, rest


def _parse_text(verb: Verb, text: str) -> tuple[str, ...]:
    """Parses the template into the pieces of `Action.text`. Raises ActionError."""
    odd = re.search(r"[^ -~]", text)
    if odd:
        what = "a line break" if odd.group() in "\r\n" else quoted(odd.group())
        raise ActionError(f"the text has {what} in it; a reply is printable ASCII on one line", verb)
    pieces = [""]
    end = 0
    for braces in _BRACES.finditer(text):
        pieces[-1] += text[end : braces.start()]
        end = braces.end()
        name = braces.group(1)
        if name is not None:
            if name not in PLACEHOLDERS:
                known = did_you_mean(name, PLACEHOLDERS) or f"; there are {', '.join(PLACEHOLDERS)}"
                raise ActionError(f"unknown placeholder {quoted(braces.group())}{known}", verb)
            pieces += [name, ""]
        elif braces.group() in {"{{", "}}"}:
            pieces[-1] += braces.group()[0]
        else:
            raise ActionError(
                f"a '{braces.group()}' without its counterpart; for a brace itself write '{braces.group() * 2}'", verb
            )
    pieces[-1] += text[end:]
    return tuple(pieces) if text else ()
